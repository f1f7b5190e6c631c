//! A tokenizer for Rust, as far as the checks of the architecture need one.

/// A word or a punctuation character (`::` is one token), with its line number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) text: String,
    pub(crate) line: usize,
}

impl Token {
    pub(crate) fn is(&self, text: &str) -> bool {
        self.text == text
    }

    pub(crate) fn is_word(&self) -> bool {
        self.text.starts_with(is_word_char)
    }
}

pub(crate) fn is_word_char(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// Returns the text with comments and literals replaced by spaces. Line breaks stay, so line
/// numbers stay the same.
pub(crate) fn strip_comments_and_literals(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_or_comment_end(&chars, at);
        if end > at {
            code.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        } else {
            code.push(chars[at]);
            at += 1;
        }
    }
    code
}

/// Returns the end of the comment or literal that begins at `at`; `at` if none begins there.
fn literal_or_comment_end(chars: &[char], at: usize) -> usize {
    let get = |index: usize| chars.get(index).copied().unwrap_or('\0');
    let in_word = at > 0 && is_word_char(chars[at - 1]);
    match (chars[at], get(at + 1)) {
        ('/', '/') => at + chars[at..].iter().take_while(|c| **c != '\n').count(),
        ('/', '*') => find(chars, at + 2, &['*', '/']),
        ('"', _) => string_end(chars, at + 1),
        ('r', '"' | '#') if !in_word || get(at - 1) == 'b' => {
            let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
            if get(at + 1 + hashes) != '"' {
                return at; // a raw identifier
            }
            let closing: Vec<char> = std::iter::once('"').chain(vec!['#'; hashes]).collect();
            find(chars, at + 2 + hashes, &closing)
        }
        ('\'', '\\') => {
            let rest = chars[at + 3..].iter().take_while(|c| **c != '\'').count();
            at + 4 + rest
        }
        ('\'', _) if get(at + 2) == '\'' => at + 3,
        _ => at, // a lifetime, or code
    }
}

fn string_end(chars: &[char], mut at: usize) -> usize {
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

/// Returns the index after the next occurrence of `closing`, or the end.
fn find(chars: &[char], from: usize, closing: &[char]) -> usize {
    let from = from.min(chars.len());
    let found = chars[from..].windows(closing.len()).position(|window| window == closing);
    found.map_or(chars.len(), |offset| from + offset + closing.len())
}

/// Splits stripped text into tokens.
pub(crate) fn tokenize(code: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    for (index, text) in code.lines().enumerate() {
        let line = index + 1;
        let mut rest = text.trim_start();
        while let Some(first) = rest.chars().next() {
            let length = match first {
                c if is_word_char(c) => rest.find(|c| !is_word_char(c)).unwrap_or(rest.len()),
                ':' if rest.starts_with("::") => 2,
                c => c.len_utf8(),
            };
            tokens.push(Token { text: rest[..length].to_owned(), line });
            rest = rest[length..].trim_start();
        }
    }
    tokens
}

/// Returns the tokens without the items that are marked `#[cfg(test)]` or `#[cfg(doctest)]`.
pub(crate) fn without_tests(tokens: Vec<Token>) -> Vec<Token> {
    let mut kept = Vec::with_capacity(tokens.len());
    let mut at = 0;
    while at < tokens.len() {
        let words: Vec<&str> = tokens[at..].iter().take(7).map(|t| t.text.as_str()).collect();
        match words.as_slice() {
            ["#", "[", "cfg", "(", "test" | "doctest", ")", "]"] => {
                at = item_end(&tokens, at + 7);
            }
            _ => {
                kept.push(tokens[at].clone());
                at += 1;
            }
        }
    }
    kept
}

/// Returns the index after the item that begins at `at`: after its `;`, or after its braces.
pub(crate) fn item_end(tokens: &[Token], at: usize) -> usize {
    let is_visibility =
        |token: &&Token| ["pub", "(", "crate", "super", ")"].contains(&&*token.text);
    let first = tokens[at..].iter().find(|token| !is_visibility(token));
    let is_use = first.is_some_and(|token| token.is("use"));
    let mut depth = 0_usize;
    for (offset, token) in tokens[at..].iter().enumerate() {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" => depth = depth.saturating_sub(1),
            "}" => {
                depth = depth.saturating_sub(1);
                if depth == 0 && !is_use {
                    return at + offset + 1;
                }
            }
            ";" | "," if depth == 0 => return at + offset + 1,
            _ => (),
        }
    }
    tokens.len()
}

/// A struct with named fields: its name, its first and last line, and how many fields it has.
pub(crate) struct StructSize {
    pub(crate) name: String,
    pub(crate) lines: (usize, usize),
    pub(crate) fields: usize,
}

/// Returns the structs with named fields.
pub(crate) fn structs(tokens: &[Token]) -> Vec<StructSize> {
    let starts = (0..tokens.len().saturating_sub(1)).filter(|at| tokens[*at].is("struct"));
    let sizes = starts.filter(|at| tokens[at + 1].is_word()).filter_map(|at| {
        let end = item_end(tokens, at);
        let open = (at..end).find(|index| tokens[*index].is("{") || tokens[*index].is("("))?;
        if tokens[open].is("(") {
            return None;
        }
        let mut depth = 0_usize;
        let mut fields = 0;
        for token in &tokens[open..end] {
            match token.text.as_str() {
                "{" | "(" | "[" => depth += 1,
                "}" | ")" | "]" => depth = depth.saturating_sub(1),
                ":" if depth == 1 => fields += 1,
                _ => (),
            }
        }
        let lines = (tokens[at].line, tokens[end - 1].line);
        Some(StructSize { name: tokens[at + 1].text.clone(), lines, fields })
    });
    sizes.collect()
}
