//! Settings as YAML that loads back. It must never know which options there are.

use super::overlay::APP;
use super::shape::Kind;
use super::table::{KEYS, Settings};

/// Every value on its line, with its source as a comment.
pub(super) fn describe(settings: &Settings) -> String {
    let mut out = String::new();
    let comment = |key: &str| format!("  # {}", settings.source(key).to_string().escape_debug());
    if settings.app_options.is_empty() {
        out.push_str(&format!("app: {}{}\n", scalar(&settings.app), comment(APP)));
    } else {
        out.push_str(&format!("app:{}\n  name: {}\n", comment(APP), scalar(&settings.app)));
        for (name, value) in &settings.app_options {
            out.push_str(&format!("  {}: {}\n", scalar(name), scalar(value)));
        }
    }
    for key in KEYS {
        let (name, texts, comment) = (key.name, key.show(settings), comment(key.name));
        match (key.kind, texts.as_slice()) {
            (Kind::Maybe, []) => out.push_str(&format!("{name}: null{comment}\n")),
            (_, []) => out.push_str(&format!("{name}: []{comment}\n")),
            (Kind::One | Kind::Switch | Kind::Maybe, [text, ..]) => {
                out.push_str(&format!("{name}: {}{comment}\n", scalar(text)));
            }
            (Kind::Many | Kind::Pairs, texts) => {
                out.push_str(&format!("{name}:{comment}\n"));
                for text in texts {
                    out.push_str(&format!("  - {}\n", scalar(text)));
                }
            }
        }
    }
    out
}

/// A text as a YAML scalar: as it is where that is safe, else in double quotes.
fn scalar(text: &str) -> String {
    if is_plain(text) {
        return text.to_owned();
    }
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            _ if c.is_alphanumeric() => out.push(c),
            _ => out.push_str(&format!("\\U{:08x}", u32::from(c))),
        }
    }
    out.push('"');
    out
}

/// Whether the text, unquoted, can be nothing but itself: no sign of YAML's, no word for null.
fn is_plain(text: &str) -> bool {
    let usual = |b: u8| b.is_ascii_alphanumeric() || b"_./".contains(&b);
    text.bytes().next().is_some_and(usual)
        && text.bytes().all(|b| usual(b) || b":@=+,-".contains(&b))
        && !text.ends_with(':')
        && !text.eq_ignore_ascii_case("null")
}
