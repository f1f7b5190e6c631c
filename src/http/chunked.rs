//! A strict decoder of the chunked coding (RFC 9112, section 7.1): it checks and drops chunk extensions
//! and trailers. Independent of the connection.

use crate::app::Limits;

use super::error::RequestError;
use super::request::hex_digit;
use super::response::is_token_byte;

/// Maximum number of digits of a chunk size: as many as 64 bits hold.
const SIZE_DIGITS_MAX: u8 = 16;

/// The result of decoding a piece of input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decoded {
    /// All of it was used, and the body continues.
    Partial,
    /// The body ended after this many bytes of the input.
    Whole(usize),
}

/// A decoder for one body. It stores only its state in the grammar.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    state: State,
    /// Bytes of the body in all chunk sizes so far.
    body: usize,
    /// Bytes of all chunk extensions so far.
    extensions: usize,
    /// Bytes of the trailer section so far.
    trailer: usize,
    /// Fields of the trailer section so far.
    fields: usize,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Size { digits: u8, size: u64 },
    Extension { size: u64, state: Extension },
    SizeLf { size: usize },
    Data { left: usize },
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
}

/// The state in the extensions of a chunk: `*( BWS ";" BWS name [ BWS "=" BWS value ] )`.
#[derive(Clone, Copy, Debug)]
enum Extension {
    /// Whitespace, which `;` must follow.
    BeforeSemicolon,
    BeforeName,
    Name,
    /// Whitespace, which `=` or `;` must follow.
    AfterName,
    BeforeValue,
    Value,
    Quoted,
    /// After a backslash in a quoted value.
    Escaped,
    AfterQuoted,
}

impl Extension {
    /// Returns the state after one byte; none if the byte is invalid.
    fn next(self, byte: u8) -> Option<Self> {
        use Extension::*;
        let is_text = matches!(byte, b'\t' | b' '..=b'~' | 0x80..);
        Some(match (self, byte) {
            (Quoted, b'"') => AfterQuoted,
            (Quoted, b'\\') => Escaped,
            (Quoted | Escaped, _) if is_text => Quoted,
            (BeforeSemicolon | Name | AfterName | Value | AfterQuoted, b';') => BeforeName,
            (Name | AfterName, b'=') => BeforeValue,
            (BeforeValue, b'"') => Quoted,
            (BeforeSemicolon | BeforeName | AfterName | BeforeValue, b' ' | b'\t') => self,
            (Name, b' ' | b'\t') => AfterName,
            (Value | AfterQuoted, b' ' | b'\t') => BeforeSemicolon,
            (BeforeName | Name, _) if is_token_byte(byte) => Name,
            (BeforeValue | Value, _) if is_token_byte(byte) => Value,
            _ => return None,
        })
    }

    /// Returns whether the extensions may end here.
    fn is_complete(self) -> bool {
        matches!(self, Self::Name | Self::Value | Self::AfterQuoted)
    }
}

impl Default for State {
    fn default() -> Self {
        Self::Size { digits: 0, size: 0 }
    }
}

impl Decoder {
    /// Decodes `input`, appending body bytes to `body`.
    ///
    /// # Errors
    /// Malformed chunks, extensions or trailers, or larger ones than `limits` allow.
    pub(super) fn decode(
        &mut self,
        input: &[u8],
        body: &mut Vec<u8>,
        limits: &Limits,
    ) -> Result<Decoded, RequestError> {
        let mut at = 0;
        while at < input.len() {
            if let State::Data { left } = self.state {
                let here = left.min(input.len() - at);
                body.extend_from_slice(&input[at..at + here]);
                at += here;
                let left = left - here;
                self.state = if left == 0 { State::DataCr } else { State::Data { left } };
                continue;
            }
            let byte = input[at];
            at += 1;
            if let (State::EndLf, b'\n') = (self.state, byte) {
                return Ok(Decoded::Whole(at));
            }
            self.state = self.next_state(byte, limits)?;
        }
        Ok(Decoded::Partial)
    }

    /// Returns the state after one byte outside a chunk's data.
    fn next_state(&mut self, byte: u8, limits: &Limits) -> Result<State, RequestError> {
        Ok(match (self.state, byte) {
            (State::Size { digits, size }, b'\r') if digits > 0 => {
                State::SizeLf { size: self.reserve_body(size, limits)? }
            }
            (State::Size { digits, size }, b';' | b' ' | b'\t') if digits > 0 => {
                self.next_extension(size, Extension::BeforeSemicolon, byte, limits)?
            }
            (State::Extension { size, state }, b'\r') if state.is_complete() => {
                State::SizeLf { size: self.reserve_body(size, limits)? }
            }
            (State::Extension { size, state }, _) => {
                self.next_extension(size, state, byte, limits)?
            }
            (State::Size { digits, size }, _) => match hex_digit(byte) {
                Some(digit) if digits < SIZE_DIGITS_MAX => {
                    State::Size { digits: digits + 1, size: size << 4 | u64::from(digit) }
                }
                _ => return Err(RequestError::bad_request("a chunk size is malformed")),
            },
            (State::SizeLf { size: 0 }, b'\n') => State::TrailerStart,
            (State::SizeLf { size }, b'\n') => State::Data { left: size },
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::default(),
            (State::SizeLf { .. } | State::DataCr | State::DataLf, _) => {
                return Err(RequestError::bad_request("a chunk does not end in CR LF"));
            }
            (State::TrailerStart, b'\r') => State::EndLf,
            (_, _) => return self.next_trailer_state(byte, limits),
        })
    }

    /// Returns the state after one byte of a chunk extension. All extensions of a body together may be
    /// as large as a head.
    fn next_extension(
        &mut self,
        size: u64,
        state: Extension,
        byte: u8,
        limits: &Limits,
    ) -> Result<State, RequestError> {
        self.extensions += 1;
        if self.extensions > limits.max_head_bytes {
            return Err(RequestError::EXTENSIONS);
        }
        let state = state.next(byte);
        let state = state.ok_or(RequestError::bad_request("a chunk extension is malformed"))?;
        Ok(State::Extension { size, state })
    }

    fn next_trailer_state(&mut self, byte: u8, limits: &Limits) -> Result<State, RequestError> {
        self.trailer += 1;
        if self.trailer > limits.max_head_bytes {
            return Err(RequestError::HEAD);
        }
        Ok(match (self.state, byte) {
            (State::TrailerStart, _) if is_token_byte(byte) => {
                self.fields += 1;
                if self.fields > limits.max_header_fields {
                    return Err(RequestError::FIELDS);
                }
                State::TrailerName
            }
            (State::TrailerName, b':') => State::TrailerValue,
            (State::TrailerName, _) if is_token_byte(byte) => State::TrailerName,
            (State::TrailerValue, b'\r') => State::TrailerLf,
            (State::TrailerValue, b'\t' | b' '..=b'~' | 0x80..) => State::TrailerValue,
            (State::TrailerLf, b'\n') => State::TrailerStart,
            _ => return Err(RequestError::bad_request("a trailer is malformed")),
        })
    }

    /// Returns the size of the next chunk, if the body stays within its limit.
    fn reserve_body(&mut self, size: u64, limits: &Limits) -> Result<usize, RequestError> {
        let remaining = limits.max_body_bytes.saturating_sub(self.body);
        let size = usize::try_from(size)
            .ok()
            .filter(|&size| size <= remaining)
            .ok_or(RequestError::BODY)?;
        self.body += size;
        Ok(size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: fn() -> Limits = || Limits {
        max_head_bytes: 40,
        max_header_fields: 2,
        max_body_bytes: 20,
        ..Limits::default()
    };

    /// Expects this body and number of unused bytes, or this status, for pieces of several sizes.
    #[track_caller]
    fn check(input: &str, expected: Result<(&str, usize), u16>) {
        for size in [input.len(), 1, 2, 3] {
            let mut decoder = Decoder::default();
            let mut body = Vec::new();
            let mut used = 0;
            let mut result = Ok(Decoded::Partial);
            for piece in input.as_bytes().chunks(size) {
                result = decoder.decode(piece, &mut body, &LIMITS());
                match result {
                    Ok(Decoded::Partial) => used += piece.len(),
                    Ok(Decoded::Whole(here)) => used += here,
                    Err(_) => (),
                }
                if result != Ok(Decoded::Partial) {
                    break;
                }
            }
            let text = String::from_utf8(body).unwrap();
            let found = result.map(|_| (text.as_str(), input.len() - used));
            assert_eq!(found.map_err(|error| error.status), expected, "{input:?} by {size}");
        }
    }

    #[test]
    fn chunks_are_joined_and_trailers_dropped() {
        check("0\r\n\r\n", Ok(("", 0)));
        check("5\r\nhello\r\n0\r\n\r\nGET", Ok(("hello", 3)));
        check("1\r\na\r\n00A\r\n0123456789\r\n0\r\nA: b\r\nC:\r\n\r\n", Ok(("a0123456789", 0)));
        check("0000000000000001\r\na\r\n0\r\n\r\n", Ok(("a", 0)));
    }

    #[test]
    fn chunk_extensions_are_ignored() {
        for extension in [
            ";a",
            ";a=b",
            ";a=\"b\"",
            " ; a = b",
            "\t;\ta\t=\tb",
            ";a ;b=c;d",
            ";a=\"; \\\" = é\\\\\";b",
            ";a=\"\"",
        ] {
            let input = format!("1{extension}\r\na\r\n0{extension}\r\n\r\n");
            check(&input, Ok(("a", 0)));
        }
    }

    #[test]
    fn malformed_chunk_extensions_are_rejected() {
        for extension in [
            ";",
            " ",
            " a",
            ";;a",
            ";a;",
            ";a=",
            ";a=;b",
            ";=b",
            ";a==b",
            ";a b",
            ";a ",
            ";a=b ",
            ";a=\"b\" ",
            ";a=b c",
            ";a=\"b\"c",
            ";a=\"b",
            ";a=\"b\\\"",
            ";a=\"b\0\"",
            ";a=\"\\\r\n\"",
            ";a\n",
            ";a\rb",
            ";\0",
            ";é",
            ";a=\"b\n",
        ] {
            check(&format!("1{extension}\r\na\r\n0\r\n\r\n"), Err(400));
        }
    }

    #[test]
    fn chunk_extensions_over_limit_are_rejected() {
        let chunk = |length: usize| format!("1;{}\r\na\r\n", "x".repeat(length - 1));
        check(&format!("{}0\r\n\r\n", chunk(40)), Ok(("a", 0)));
        check(&chunk(41), Err(413));
        check(&format!("{}{}0\r\n\r\n", chunk(20), chunk(20)), Ok(("aa", 0)));
        check(&format!("{}{}", chunk(20), chunk(21)), Err(413));
    }

    #[test]
    fn malformed_chunks_are_rejected() {
        for input in [
            "\r\n",
            " 1\r\n",
            "1 \r\n",
            "+1\r\n",
            "-1\r\n",
            "0x1\r\n",
            "g\r\n",
            "1;\r\n",
            "1\n",
            "1\ra",
            "00000000000000001\r\n",
            "1\r\nab",
            "1\r\na\n",
            "1\r\na\rb",
            "0\r\n\n",
            "0\r\n\rx",
            "0\r\n A: b\r\n",
            "0\r\nA : b\r\n",
            "0\r\n: b\r\n",
            "0\r\nA\r\n",
            "0\r\nA: b\n",
            "0\r\nA: b\rc",
            "0\r\nA: \0\r\n",
        ] {
            check(input, Err(400));
        }
    }

    #[test]
    fn chunked_body_over_limit_is_rejected() {
        check("14\r\n01234567890123456789\r\n0\r\n\r\n", Ok(("01234567890123456789", 0)));
        check("15\r\n", Err(413));
        check("a\r\n0123456789\r\nb\r\n", Err(413));
        check("ffffffffffffffff\r\n", Err(413));
        check("0\r\nA:\r\nB:\r\nC:\r\n\r\n", Err(431));
        check(&format!("0\r\nA: {}\r\n\r\n", "x".repeat(40)), Err(431));
    }
}
