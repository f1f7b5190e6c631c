//! Finds where a head ends, however slowly it trickles in, and refuses lines that do not end in
//! CR LF. It must never know what the lines say, save that the first has to be a request line.

use std::io::BufRead;

use super::error::RequestError;
use super::head;

/// Empty lines tolerated before a request line (RFC 9112, section 2.2, asks for one at least).
const BLANK_LINES_MAX: u8 = 2;

/// What a search has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scan {
    /// The head is so many bytes long, its empty line included.
    Whole(usize),
    /// The end has not arrived yet.
    Partial,
}

/// A search for the end of one head. It remembers how far it got, so that a head which comes byte
/// by byte costs no more than one that comes at once.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    /// Bytes already looked at.
    scanned: usize,
    /// Where the present line begins.
    line: usize,
    first: FirstLine,
    blanks: u8,
}

/// How much is known of the request line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum FirstLine {
    /// Its end has not been seen.
    #[default]
    Incomplete,
    /// It is so many bytes long.
    Complete(usize),
    /// It has been found to be a request line.
    Checked,
}

impl Scanner {
    /// How many bytes of empty lines to leave out before the request line. An incomplete empty
    /// line is not counted.
    ///
    /// # Errors
    /// There have been too many.
    pub(super) fn skip_blank_lines(&mut self, bytes: &[u8]) -> Result<usize, RequestError> {
        let mut skipped = 0;
        while self.scanned == 0 && bytes[skipped..].starts_with(b"\r\n") {
            if self.blanks == BLANK_LINES_MAX {
                return Err(RequestError::bad_request("empty lines before the request line"));
            }
            self.blanks += 1;
            skipped += 2;
        }
        Ok(skipped)
    }

    /// Searches `bytes`, which begin with the head and hold at least what earlier calls were given.
    /// The result depends on the bytes alone, not on how they were spread over the calls.
    ///
    /// # Errors
    /// The head cannot end within `limit` bytes, a line ends in a bare LF, or the first line is
    /// no request line.
    pub(super) fn scan(&mut self, bytes: &[u8], limit: usize) -> Result<Scan, RequestError> {
        let found = self.search(bytes, limit);
        if let Ok(Scan::Whole(_)) = found {
            return found; // whoever parses the head meets the request line first
        }
        if let FirstLine::Complete(end) = self.first {
            head::check_request_line(&bytes[..end])?;
            self.first = FirstLine::Checked;
        }
        found
    }

    fn search(&mut self, bytes: &[u8], limit: usize) -> Result<Scan, RequestError> {
        let seen = &bytes[..bytes.len().min(limit)];
        while let Some(length) = through_line_feed(&seen[self.scanned..]) {
            let end = self.scanned + length;
            match &seen[self.line..end] {
                b"\r\n" => return Ok(Scan::Whole(end)),
                [.., b'\r', b'\n'] => (),
                _ => return Err(RequestError::bad_request("a line of the head ends in a bare LF")),
            }
            if self.first == FirstLine::Incomplete {
                self.first = FirstLine::Complete(end);
            }
            self.line = end;
            self.scanned = end;
        }
        self.scanned = seen.len();
        if bytes.len() < limit {
            return Ok(Scan::Partial);
        }
        Err(if self.first == FirstLine::Incomplete {
            RequestError::REQUEST_LINE
        } else {
            RequestError::HEAD
        })
    }
}

/// The number of bytes up to and with the first line feed.
fn through_line_feed(bytes: &[u8]) -> Option<usize> {
    let mut rest = bytes;
    // For a slice this is a search by the C library's memchr(3), and cannot fail.
    let length = rest.skip_until(b'\n').unwrap_or(0);
    (length > 0 && bytes[length - 1] == b'\n').then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &[u8], limit: usize, expected: Result<Scan, u16>) {
        let whole = Scanner::default().scan(bytes, limit).map_err(|fault| fault.status);
        assert_eq!(whole, expected, "at once");
        let mut scanner = Scanner::default();
        let mut found = Ok(Scan::Partial);
        for end in 1..=bytes.len() {
            found = scanner.scan(&bytes[..end], limit).map_err(|fault| fault.status);
            if found != Ok(Scan::Partial) {
                break;
            }
        }
        assert_eq!(found, expected, "byte by byte");
    }

    #[test]
    fn the_end_is_found_and_the_limit_is_exact() {
        let head = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        check(head, 100, Ok(Scan::Whole(head.len())));
        check(head, head.len(), Ok(Scan::Whole(head.len())));
        check(head, head.len() - 1, Err(431));
        check(head, 15, Err(414));
        check(head, 16, Err(431));
        check(&head[..head.len() - 1], 100, Ok(Scan::Partial));
    }

    #[test]
    fn bare_line_feed_is_rejected_at_once() {
        check(b"\n", 100, Err(400));
        check(b"GET / HTTP/1.1\n", 100, Err(400));
        check(b"GET / HTTP/1.1\r\nA: b\n", 100, Err(400));
        check(b"GET / HTTP/1.1\r\n\n", 100, Err(400));
    }

    #[test]
    fn bad_request_line_is_rejected_before_the_rest_arrives() {
        check(b"GET /\r\n", 100, Err(400));
        check(b"GET / HTTP/2.0\r\nA: b\n", 100, Err(505));
    }
}
