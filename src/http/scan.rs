//! Finds the end of a head in input that arrives in pieces, and rejects lines that do not end in
//! CR LF. Only the first line is parsed, because it must be a request line.

use memchr::memchr;

use super::error::RequestError;
use super::head;

/// Maximum number of empty lines before a request line (RFC 9112, section 2.2, asks for one at least).
const BLANK_LINES_MAX: u8 = 2;

/// The result of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scan {
    /// The length of the head, including the empty line at its end.
    Whole(usize),
    /// The end has not arrived yet.
    Partial,
}

/// Scans for the end of one head. It stores its position, so a head that arrives byte by byte is scanned
/// once.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    /// Number of bytes already scanned.
    scanned: usize,
    /// Start of the current line.
    line: usize,
    first: FirstLine,
    /// Number of empty lines before the request line.
    blanks: u8,
}

/// The state of the request line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum FirstLine {
    /// Its end has not been seen.
    #[default]
    Incomplete,
    /// Its length in bytes is known.
    Complete(usize),
    /// It is a valid request line.
    Checked,
}

impl Scanner {
    /// Returns the length of the empty lines to skip before the request line, without an incomplete
    /// one.
    ///
    /// # Errors
    /// There are too many.
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

    /// Returns whether nothing was scanned yet.
    pub(super) fn is_new(&self) -> bool {
        self.scanned == 0
    }

    /// Scans `bytes`, which begin with the head and include the bytes of earlier calls. The result
    /// depends on the bytes only, not on how they were split over the calls.
    ///
    /// # Errors
    /// The head does not end within `limit` bytes, a line ends in a bare LF, or the first line is not
    /// a request line.
    pub(super) fn scan(&mut self, bytes: &[u8], limit: usize) -> Result<Scan, RequestError> {
        let found = self.search(bytes, limit);
        if let Ok(Scan::Whole(_)) = found {
            return found; // the parser of the head checks the request line first
        }
        if let FirstLine::Complete(end) = self.first {
            head::check_request_line(&bytes[..end])?;
            self.first = FirstLine::Checked;
        }
        found
    }

    fn search(&mut self, bytes: &[u8], limit: usize) -> Result<Scan, RequestError> {
        let seen = &bytes[..bytes.len().min(limit)];
        while let Some(line_feed) = memchr(b'\n', &seen[self.scanned..]) {
            let end = self.scanned + line_feed + 1;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &[u8], limit: usize, expected: Result<Scan, u16>) {
        let whole = Scanner::default().scan(bytes, limit).map_err(|error| error.status);
        assert_eq!(whole, expected, "at once");
        let mut scanner = Scanner::default();
        let mut found = Ok(Scan::Partial);
        for end in 1..=bytes.len() {
            found = scanner.scan(&bytes[..end], limit).map_err(|error| error.status);
            if found != Ok(Scan::Partial) {
                break;
            }
        }
        assert_eq!(found, expected, "byte by byte");
    }

    #[test]
    fn scan_finds_the_end_within_the_exact_limit() {
        let head = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        check(head, 100, Ok(Scan::Whole(head.len())));
        check(head, head.len(), Ok(Scan::Whole(head.len())));
        check(head, head.len() - 1, Err(431));
        check(head, 15, Err(414));
        check(head, 16, Err(431));
        check(&head[..head.len() - 1], 100, Ok(Scan::Partial));
    }

    #[test]
    fn scan_bare_line_feed_is_rejected_at_once() {
        check(b"\n", 100, Err(400));
        check(b"GET / HTTP/1.1\n", 100, Err(400));
        check(b"GET / HTTP/1.1\r\nA: b\n", 100, Err(400));
        check(b"GET / HTTP/1.1\r\n\n", 100, Err(400));
    }

    #[test]
    fn scan_bad_request_line_is_rejected_before_the_rest() {
        check(b"GET /\r\n", 100, Err(400));
        check(b"GET / HTTP/2.0\r\nA: b\n", 100, Err(505));
    }
}
