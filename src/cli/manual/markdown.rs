//! Turns pages of the guide into sections of a man page. Knows the Markdown that the guide uses.

use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

/// Adds the blocks of a text: headings, paragraphs, lists, tables and code.
pub(super) fn add(roff: &mut Roff, text: &str) {
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line.trim().is_empty() || line.starts_with("# ") || line.starts_with("<!--") {
            continue;
        }
        if let Some(title) = line.strip_prefix("## ") {
            roff.control("SH", [plain(title).to_uppercase().as_str()]);
        } else if let Some(title) = line.strip_prefix("### ") {
            roff.control("SS", [plain(title).as_str()]);
        } else if line.starts_with("```") {
            roff.control("PP", []).control("EX", []);
            for line in lines.by_ref().take_while(|line| !line.starts_with("```")) {
                roff.text([roman(line)]);
            }
            roff.control("EE", []);
        } else if line.starts_with('|') {
            lines.next_if(|line| line.starts_with("|--"));
            while let Some(row) = lines.next_if(|line| line.starts_with('|')) {
                add_row(roff, row);
            }
        } else if let Some((mark, item)) = list_item(line) {
            let mut item = item.to_owned();
            while let Some(more) = lines.next_if(|line| line.starts_with("  ")) {
                item = format!("{item} {}", more.trim());
            }
            roff.control("IP", [mark.as_str(), "4"]).text(inlines(&item));
        } else {
            let mut paragraph = line.to_owned();
            while let Some(more) = lines.next_if(|line| !line.trim().is_empty()) {
                paragraph = format!("{paragraph} {}", more.trim());
            }
            roff.control("PP", []).text(inlines(&paragraph));
        }
    }
}

/// Adds a row of a table: the first cell is a tag, and the others follow it.
fn add_row(roff: &mut Roff, row: &str) {
    let row = row.trim().trim_start_matches('|').trim_end_matches('|').replace("\\|", "\u{1}");
    let cells: Vec<String> = row.split('|').map(|it| it.trim().replace('\u{1}', "|")).collect();
    let (tag, others) = cells.split_first().expect("a cell");
    roff.control("TP", []).text(inlines(tag)).text(inlines(&others.join(": ")));
}

fn list_item(line: &str) -> Option<(String, &str)> {
    if let Some(item) = line.strip_prefix("* ") {
        return Some(("\\(bu".to_owned(), item));
    }
    let (number, item) = line.split_once(". ")?;
    number.bytes().all(|byte| byte.is_ascii_digit()).then(|| (format!("{number}."), item))
}

fn plain(text: &str) -> String {
    let texts = inlines(text).into_iter().map(|inline| match inline {
        Inline::Roman(text) | Inline::Italic(text) | Inline::Bold(text) => text,
        Inline::LineBreak => String::new(),
    });
    texts.collect()
}

/// Returns the parts of a text: code and what is strong are bold, and of a link its text remains.
pub(super) fn inlines(text: &str) -> Vec<Inline> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['`', '*', '[']) {
        let (before, from) = rest.split_at(at);
        let marked = |mark: &str| {
            let inner = from.strip_prefix(mark)?;
            let end = inner.find(mark)?;
            Some((&inner[..end], &inner[end + mark.len()..]))
        };
        let link = || {
            let (inner, after) = from.strip_prefix('[')?.split_once("](")?;
            Some((inner, after.split_once(')')?.1))
        };
        let (mut found, after) = match (marked("`"), marked("**"), marked("*"), link()) {
            (Some((code, after)), ..) => (vec![bold(code)], after),
            (_, Some((strong, after)), ..) => (vec![bold(plain(strong))], after),
            (_, _, Some((weak, after)), _) => (vec![italic(plain(weak))], after),
            (.., Some((inner, after))) => (inlines(inner), after),
            _ => (vec![roman(&from[..1])], &from[1..]),
        };
        if !before.is_empty() {
            parts.push(roman(before));
        }
        parts.append(&mut found);
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(roman(rest));
    }
    parts
}

#[test]
fn blocks_of_markdown_become_macros() {
    let mut roff = Roff::new();
    let page = "# Page\n\n## A `b`\n\nOne\n.two [three](x.md#y).\n\n* four\n  *five*\n\n\
                | k | v |\n|---|---|\n| `x` | a\\|b |\n\n```text\n.code\n```\n";
    add(&mut roff, page);
    let expected = ".SH \"A B\"\n.PP\nOne .two three.\n.IP \\(bu 4\nfour \\fIfive\\fR\n.TP\n\
                    \\fBx\\fR\na|b\n.PP\n.EX\n\\&.code\n.EE\n";
    assert_eq!(roff.to_roff(), expected);
}
