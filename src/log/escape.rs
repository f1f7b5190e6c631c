//! Escapes control characters, for all formats: a text from a worker, a program or a client can
//! neither end a record nor reach a terminal as a command.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};

use slog::{OwnedKVList, Record};
use slog_term::{Decorator, RecordDecorator};

/// Escapes the control characters in a text as JSON does: a line feed as `\n`, ESC as `\u001b`.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    let Some(first) = text.find(is_unsafe) else { return Cow::Borrowed(text) };
    let mut escaped = String::with_capacity(text.len() + 16);
    escaped.push_str(&text[..first]);
    for character in text[first..].chars() {
        match character {
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            _ if is_unsafe(character) => {
                // It never fails. All of these characters have four digits at most.
                let _ = write!(escaped, "\\u{:04x}", u32::from(character));
            }
            _ => escaped.push(character),
        }
    }
    Cow::Owned(escaped)
}

/// Returns how many bytes a character takes at most in a log record, whatever its format.
pub fn escaped_len(character: char) -> usize {
    match character {
        '"' | '\\' => 2, // in JSON
        _ if is_unsafe(character) => 6,
        _ => character.len_utf8(),
    }
}

/// Whether a character is a control character (C0, DEL, C1), ends a line, or changes the direction
/// of the text after it.
pub(super) fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{061c}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// A decorator that escapes messages, keys and values, but not the layout between them.
pub(super) struct Escaping<D>(pub(super) D);

impl<D: Decorator> Decorator for Escaping<D> {
    fn with_record<F>(&self, record: &Record<'_>, values: &OwnedKVList, f: F) -> io::Result<()>
    where
        F: FnOnce(&mut dyn RecordDecorator) -> io::Result<()>,
    {
        self.0.with_record(record, values, |inner| f(&mut EscapingRecord { inner, escapes: false }))
    }
}

struct EscapingRecord<'a> {
    inner: &'a mut dyn RecordDecorator,
    /// Whether a message, a key or a value is being written.
    escapes: bool,
}

impl Write for EscapingRecord<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.escapes {
            self.inner.write_all(escape(&String::from_utf8_lossy(bytes)).as_bytes())?;
        } else {
            self.inner.write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Forwards the start of a part, which is text or layout.
macro_rules! parts {
    ($($part:ident $escapes:literal;)*) => {
        $(fn $part(&mut self) -> io::Result<()> {
            self.escapes = $escapes;
            self.inner.$part()
        })*
    };
}

impl RecordDecorator for EscapingRecord<'_> {
    parts! {
        reset false;
        start_whitespace false;
        start_timestamp false;
        start_level false;
        start_separator false;
        start_comma false;
        start_msg true;
        start_key true;
        start_value true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_of_control_characters_is_that_of_json() {
        assert!(matches!(escape("plain, é and \\n"), Cow::Borrowed(_)));
        let all: String = ('\0'..='\u{9f}').chain("\u{2028}\u{202e}\u{2066}é".chars()).collect();
        let escaped = escape(&all);
        assert!(!escaped.contains(is_unsafe), "{escaped}");
        assert!(escaped.len() <= all.chars().map(escaped_len).sum());
        let quoted = escaped.replace("\"", "").replace("\\]", "]");
        let parsed: String = serde_json::from_str(&format!("\"{quoted}\"")).unwrap();
        assert_eq!(parsed, all.replace(['"', '\\'], ""));
    }
}
