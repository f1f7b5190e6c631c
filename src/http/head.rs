//! Parses and checks the head of a request, with its framing (RFC 9112, sections 3 and 6). Independent of
//! the connection.

use std::mem::MaybeUninit;

use httparse::{Error, Header, Status};

use super::error::RequestError;
use super::target::{has_host, split_target};

/// A valid head.
#[derive(Debug)]
pub(super) struct Head<'a> {
    pub(super) method: &'a str,
    pub(super) target: &'a str,
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
    pub(super) version: Version,
    pub(super) fields: &'a [Header<'a>],
    pub(super) framing: Framing,
    pub(super) reusable: Reusable,
    pub(super) expects: Expects,
}

/// The HTTP version of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1, or a later 1.x, which is served as 1.1 (RFC 9110, section 2.5).
    Http11,
}

/// How the end of a request's body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// By `Content-Length`; 0 without a body.
    Length(u64),
    /// By the chunked coding.
    Chunked,
}

/// Whether another request may follow on the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reusable {
    /// Another request may follow.
    Yes,
    /// The connection closes after this request.
    No,
}

/// Whether the client waits for an interim response before it sends the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expects {
    /// The client does not wait.
    Nothing,
    /// The client waits for `100 Continue`.
    Continue,
}

/// Number of header fields that are parsed on the stack. Higher limits are rare.
const FIELDS_ON_STACK: usize = 100;

/// Parses and checks a whole head of at most `fields` fields, and passes it to `act`. `bytes` must
/// begin with the request line, end with the empty line, and contain no bare line feed (see `scan`).
/// `act` gets an error if the request is malformed, ambiguous or not supported.
pub(super) fn with_head<R>(
    bytes: &[u8],
    fields: usize,
    act: impl FnOnce(Result<Head<'_>, RequestError>) -> R,
) -> R {
    with_slots(fields, |slots| match parse(bytes, slots) {
        Ok(Some((head, length))) if length == bytes.len() => act(Ok(head)),
        Ok(_) => act(Err(RequestError::bad_request("the head is malformed"))),
        Err(RequestError::VERSION) => match as_http_1_1(bytes) {
            Some(copy) => with_head(&copy, fields, act),
            None => act(Err(RequestError::VERSION)),
        },
        Err(error) => act(Err(error)),
    })
}

/// Parses and checks the head with which `bytes` begin, and passes it to `act` with its length. `bytes`
/// must begin with the request line. Returns `None` for a head that is not whole, not valid, or of HTTP
/// 1.2 to 1.9: `scan` and [`with_head`] then find out which.
pub(super) fn with_first_head<R>(
    bytes: &[u8],
    fields: usize,
    act: impl FnOnce(Head<'_>, usize) -> R,
) -> Option<R> {
    with_slots(fields, |slots| match parse(bytes, slots) {
        Ok(Some((head, length))) if !has_bare_line_feed(&bytes[..length]) => {
            Some(act(head, length))
        }
        _ => None,
    })
}

/// Calls a function with memory for so many fields.
fn with_slots<'b, R>(
    fields: usize,
    call: impl for<'h> FnOnce(&'h mut [MaybeUninit<Header<'b>>]) -> R,
) -> R {
    if fields <= FIELDS_ON_STACK {
        let mut slots = [const { MaybeUninit::uninit() }; FIELDS_ON_STACK];
        call(&mut slots[..fields])
    } else {
        let mut slots: Vec<_> = (0..fields).map(|_| MaybeUninit::uninit()).collect();
        call(&mut slots)
    }
}

/// Returns whether a line ends without CR, which httparse allows. Looks at all pairs of bytes, as the
/// compiler then compares many at once.
fn has_bare_line_feed(head: &[u8]) -> bool {
    let pairs = head.iter().zip(head.iter().skip(1));
    let is_bare = |(before, byte): (&u8, &u8)| (*byte == b'\n') & (*before != b'\r');
    head.starts_with(b"\n") | pairs.fold(false, |found, pair| found | is_bare(pair))
}

/// Checks a request line, including its CR LF, before the rest of the head has arrived.
///
/// # Errors
/// The same as those of [`with_head`] for the same line.
pub(super) fn check_request_line(line: &[u8]) -> Result<(), RequestError> {
    match httparse::Request::new(&mut []).parse(line) {
        Ok(_) => Ok(()),
        Err(error) => match (error_of(error, line), as_http_1_1(line)) {
            (RequestError::VERSION, Some(copy)) => check_request_line(&copy),
            (error, _) => Err(error),
        },
    }
}

/// Parses and checks the head with which `bytes` begin, and returns it with its length; `None` if it is
/// not whole.
fn parse<'h, 'b: 'h>(
    bytes: &'b [u8],
    slots: &'h mut [MaybeUninit<Header<'b>>],
) -> Result<Option<(Head<'h>, usize)>, RequestError> {
    let mut request = httparse::Request::new(&mut []);
    let length = match request.parse_with_uninit_headers(bytes, slots) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return Ok(None),
        Err(error) => return Err(error_of(error, bytes)),
    };
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version)
    else {
        return Err(RequestError::bad_request("the request line is malformed"));
    };
    let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
    let fields: &'h [Header<'b>] = request.headers;
    let (path, query) = split_target(method, target)?;
    let (framing, reusable, expects) = FramingHeaders::collect(fields)?.resolve(version)?;
    // After a CONNECT, the client sends tunnel data, never another request.
    let reusable = if method == "CONNECT" { Reusable::No } else { reusable };
    let head = Head { method, target, path, query, version, fields, framing, reusable, expects };
    Ok(Some((head, length)))
}

fn error_of(error: Error, bytes: &[u8]) -> RequestError {
    match error {
        Error::HeaderName => RequestError::bad_request("a header name is malformed"),
        Error::HeaderValue => RequestError::bad_request("a header value is malformed"),
        Error::TooManyHeaders => RequestError::FIELDS,
        Error::Version if has_other_version(bytes) => RequestError::VERSION,
        Error::Version | Error::NewLine | Error::Token | Error::Status => {
            RequestError::bad_request("the request line is malformed")
        }
    }
}

/// Returns a copy with the version 1.1 if the first line ends in a version from 1.2 to 1.9. The parser
/// knows 1.0 and 1.1 only.
fn as_http_1_1(bytes: &[u8]) -> Option<Vec<u8>> {
    let end = bytes.iter().position(|&byte| byte == b'\r')?;
    match bytes[..end] {
        [.., b' ', b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'2'..=b'9'] => {
            let mut copy = bytes.to_vec();
            copy[end - 1] = b'1';
            Some(copy)
        }
        _ => None,
    }
}

/// Returns whether the first line is a request line with a version other than 1.0 and 1.1.
fn has_other_version(bytes: &[u8]) -> bool {
    let line = bytes.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|&byte| byte == b' ').skip(2);
    match (words.next(), words.next()) {
        (Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor]), None) => {
            major.is_ascii_digit() && minor.is_ascii_digit()
        }
        _ => false,
    }
}

/// The header fields that affect framing, before they are checked together.
#[derive(Default)]
struct FramingHeaders<'a> {
    host: Option<&'a [u8]>,
    length: Option<u64>,
    /// Whether Transfer-Encoding is present.
    is_encoded: bool,
    /// The number of transfer codings.
    codings: usize,
    /// The number of those that are `chunked`.
    chunked: usize,
    /// Whether the last transfer coding is `chunked`.
    ends_chunked: bool,
    close: bool,
    keep_alive: bool,
    expects: bool,
    unknown_expectation: bool,
}

impl<'a> FramingHeaders<'a> {
    fn collect(fields: &[Header<'a>]) -> Result<Self, RequestError> {
        let mut headers = Self::default();
        for field in fields {
            headers.record(field.name, field.value)?;
        }
        Ok(headers)
    }

    fn record(&mut self, name: &str, value: &'a [u8]) -> Result<(), RequestError> {
        match name.len() {
            4 if name.eq_ignore_ascii_case("host") => {
                if self.host.replace(value).is_some() {
                    return Err(RequestError::bad_request("duplicate Host"));
                }
                // Empty if the target has no authority (RFC 9110, section 7.2).
                if !value.is_empty() && !has_host(value) {
                    return Err(RequestError::bad_request("Host is malformed"));
                }
            }
            6 if name.eq_ignore_ascii_case("expect") => {
                for expectation in list_elements(value) {
                    self.expects = true;
                    self.unknown_expectation |= !expectation.eq_ignore_ascii_case(b"100-continue");
                }
            }
            10 if name.eq_ignore_ascii_case("connection") => {
                for option in list_elements(value) {
                    self.close |= option.eq_ignore_ascii_case(b"close");
                    self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            14 if name.eq_ignore_ascii_case("content-length") => {
                let length = decimal(value)
                    .ok_or(RequestError::bad_request("Content-Length is malformed"))?;
                if self.length.replace(length).is_some() {
                    return Err(RequestError::bad_request("duplicate Content-Length"));
                }
            }
            17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                self.is_encoded = true;
                for coding in list_elements(value) {
                    self.ends_chunked = coding.eq_ignore_ascii_case(b"chunked");
                    self.chunked += usize::from(self.ends_chunked);
                    self.codings += 1;
                }
            }
            _ => (),
        }
        Ok(())
    }

    fn resolve(self, version: Version) -> Result<(Framing, Reusable, Expects), RequestError> {
        let framing = self.framing(version)?;
        let (reusable, expects) = match version {
            Version::Http10 if self.keep_alive && !self.close => (Reusable::Yes, Expects::Nothing),
            // Expectations are newer than 1.0 and ignored there (RFC 9110, section 10.1.1).
            Version::Http10 => (Reusable::No, Expects::Nothing),
            Version::Http11 => {
                if self.host.is_none() {
                    return Err(RequestError::bad_request("Host is missing"));
                }
                if self.unknown_expectation {
                    return Err(RequestError::EXPECTATION);
                }
                let reusable = if self.close { Reusable::No } else { Reusable::Yes };
                (reusable, if self.expects { Expects::Continue } else { Expects::Nothing })
            }
        };
        Ok((framing, reusable, expects))
    }

    fn framing(&self, version: Version) -> Result<Framing, RequestError> {
        if !self.is_encoded {
            return Ok(Framing::Length(self.length.unwrap_or(0)));
        }
        if self.length.is_some() {
            return Err(RequestError::bad_request(
                "both Content-Length and Transfer-Encoding present",
            ));
        }
        if version == Version::Http10 {
            return Err(RequestError::bad_request("HTTP/1.0 has no Transfer-Encoding"));
        }
        // Otherwise the end of the body is unknown (RFC 9112, section 6.3).
        if !self.ends_chunked {
            return Err(RequestError::bad_request("the last transfer coding is not chunked"));
        }
        if self.chunked > 1 {
            return Err(RequestError::bad_request("the transfer coding chunked is applied twice"));
        }
        if self.codings > 1 {
            return Err(RequestError::CODING);
        }
        Ok(Framing::Chunked)
    }
}

/// Returns the elements of a comma-separated list. Empty ones are ignored (RFC 9110, section 5.6.1.2).
fn list_elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

/// Parses a number that consists of digits only.
fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests;
