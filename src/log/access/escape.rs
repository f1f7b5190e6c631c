//! Escapes what clients send, so that no client can end a record, close a quoted field, or reach a
//! terminal as a command.

use crate::log::escape::is_unsafe;

/// Ends a text that was cut.
const MARK: &[u8] = b"...";
const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// Appends a text as nginx writes it: `\xHH` for each control character, quotation mark and backslash,
/// and for each byte beyond ASCII. Appends at most `limit` bytes and a mark.
pub(super) fn push_text(out: &mut Vec<u8>, text: &[u8], limit: usize) {
    if text.len() <= limit && text.iter().all(|byte| is_plain(*byte)) {
        return out.extend_from_slice(text);
    }
    let end = out.len() + limit;
    let mut rest = text;
    while !rest.is_empty() {
        let plain = rest.iter().position(|byte| !is_plain(*byte)).unwrap_or(rest.len());
        let (run, after) = rest.split_at(plain);
        let room = end - out.len();
        if run.len() > room {
            out.extend_from_slice(&run[..room]);
            return out.extend_from_slice(MARK);
        }
        out.extend_from_slice(run);
        rest = after;
        if let [byte, after @ ..] = rest {
            if out.len() + 4 > end {
                return out.extend_from_slice(MARK);
            }
            let digits = [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]];
            out.extend_from_slice(&[b'\\', b'x', digits[0], digits[1]]);
            rest = after;
        }
    }
}

/// Appends a text as a JSON string, with its quotation marks. Bytes that are not UTF-8 become U+FFFD.
/// Appends at most `limit` bytes and a mark besides the quotation marks.
pub(super) fn push_json(out: &mut Vec<u8>, text: &[u8], limit: usize) {
    out.push(b'"');
    let end = out.len() + limit;
    let plain = text.iter().position(|byte| !is_plain(*byte)).unwrap_or(text.len());
    if plain == text.len() && plain <= limit {
        out.extend_from_slice(text);
    } else {
        push_json_chars(out, text, end);
    }
    out.push(b'"');
}

fn push_json_chars(out: &mut Vec<u8>, text: &[u8], end: usize) {
    for chunk in text.utf8_chunks() {
        let invalid = (!chunk.invalid().is_empty()).then_some(char::REPLACEMENT_CHARACTER);
        for character in chunk.valid().chars().chain(invalid) {
            let (mut utf8, mut escape) = ([0; 4], *b"\\u0000");
            let encoded: &[u8] = match character {
                '"' => b"\\\"",
                '\\' => b"\\\\",
                _ if is_unsafe(character) => {
                    // All of these characters have four digits at most.
                    let number = u32::from(character);
                    for (index, digit) in escape[2..].iter_mut().enumerate() {
                        *digit = HEX[(number >> (12 - 4 * index) & 15) as usize];
                    }
                    &escape
                }
                _ => character.encode_utf8(&mut utf8).as_bytes(),
            };
            if out.len() + encoded.len() > end {
                return out.extend_from_slice(MARK);
            }
            out.extend_from_slice(encoded);
        }
    }
}

/// Whether a byte stands for itself in both formats.
fn is_plain(byte: u8) -> bool {
    PLAIN[usize::from(byte)]
}

static PLAIN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = b' ';
    while byte <= b'~' {
        table[byte as usize] = byte != b'"' && byte != b'\\';
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8], limit: usize) -> String {
        let mut out = b"before ".to_vec();
        push_text(&mut out, bytes, limit);
        String::from_utf8(out).unwrap().split_off(7)
    }

    fn json(bytes: &[u8], limit: usize) -> String {
        let mut out = b"before ".to_vec();
        push_json(&mut out, bytes, limit);
        String::from_utf8(out).unwrap().split_off(7)
    }

    #[test]
    fn push_text_escapes_as_nginx_does() {
        assert_eq!(text(b"GET /a?b=c", 99), "GET /a?b=c");
        assert_eq!(text(b"a\"b\\c\r\n\x1b[\x7f\xff", 99), r"a\x22b\x5Cc\x0D\x0A\x1B[\x7F\xFF");
        assert_eq!(text("é".as_bytes(), 99), r"\xC3\xA9");
    }

    #[test]
    fn push_text_cuts_between_escapes() {
        assert_eq!(text(b"abcdef", 6), "abcdef");
        assert_eq!(text(b"abcdefg", 6), "abcdef...");
        assert_eq!(text(b"abc\x00\x00", 7), r"abc\x00...");
        assert_eq!(text(b"abcd\x00", 7), "abcd...");
    }

    #[test]
    fn push_json_is_valid_and_safe() {
        let all: Vec<u8> = (0..=255).collect();
        let line = json(&all, 9999);
        assert!(!line.chars().any(is_unsafe), "{line}");
        let parsed: String = serde_json::from_str(&line).unwrap();
        assert_eq!(parsed, String::from_utf8_lossy(&all));
        let unsafe_text = "a\u{2028}\u{202e}é\"\\";
        let parsed: String = serde_json::from_str(&json(unsafe_text.as_bytes(), 99)).unwrap();
        assert_eq!(parsed, unsafe_text);
        for limit in 0..40 {
            let cut: String = serde_json::from_str(&json(unsafe_text.as_bytes(), limit)).unwrap();
            assert!(cut == unsafe_text || cut.ends_with("..."), "{cut:?}");
        }
        assert_eq!(json(&[b'x'; 9], 4), "\"xxxx...\"");
    }
}
