//! The response of a handler, and the bytes of its head (RFC 9112, section 4). Independent of the
//! connection.

use super::body::{Body, Content};
use super::error::RequestError;

const TEXT: &str = "text/plain; charset=utf-8";

/// A response: a status, header fields and a body.
///
/// The server writes `Date`, `Content-Length`, `Transfer-Encoding` and `Connection`. A field is invalid
/// if it is one of these, if its name is not a token, or if its value contains a control character. If
/// a response has an invalid field, the client gets a 500 instead.
#[derive(Debug)]
pub struct Response {
    status: u16,
    /// The type that a constructor has set. A field of that name replaces it.
    content_type: Option<&'static str>,
    /// The other fields, encoded.
    fields: Vec<u8>,
    validity: Validity,
    pub(super) closing: Closing,
    pub(super) body: Body,
}

/// Returns a response once it is known.
type Look = Box<dyn FnMut() -> Option<Response> + Send>;

/// Whether all parts of a response can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Validity {
    Valid,
    Invalid,
}

/// Whether a handler closes the connection after its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closing {
    AsRequested,
    Close,
}

/// How the length of a body is announced (RFC 9112, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// By `Content-Length`.
    Known(u64),
    /// By the chunked coding.
    Chunked,
    /// Not at all: there is no body, or it ends with the connection.
    Unspecified,
    /// The response itself is not known yet.
    Unknown,
}

/// The `Connection` field of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionHeader {
    /// No field: the connection stays open, the default of HTTP/1.1.
    Omitted,
    /// The connection stays open, as an HTTP/1.0 client has requested.
    KeepAlive,
    /// The connection closes after this response.
    Close,
}

impl Response {
    /// Creates a response with this status and no content type. For a status outside 200 to 599, the
    /// client gets a 500.
    pub fn new(status: u16, body: impl Into<Body>) -> Self {
        Self {
            status,
            content_type: None,
            fields: Vec::new(),
            validity: if (200..600).contains(&status) {
                Validity::Valid
            } else {
                Validity::Invalid
            },
            closing: Closing::AsRequested,
            body: body.into(),
        }
    }

    /// Creates a response with status 200 and plain text in UTF-8.
    pub fn text(body: impl Into<Body>) -> Self {
        Self { content_type: Some(TEXT), ..Self::new(200, body) }
    }

    /// Creates a response with status 200 and serialised JSON.
    pub fn json(body: impl Into<Body>) -> Self {
        Self { content_type: Some("application/json"), ..Self::new(200, body) }
    }

    /// Creates a response with this status, and its number and name as text, such as `404 Not Found`.
    pub fn status(status: u16) -> Self {
        let body = format!("{status} {}\n", reason_phrase(status));
        Self { content_type: Some(TEXT), ..Self::new(status, body) }
    }

    /// Creates a response that is not known yet: `look` returns it once it is. It gets the fields of
    /// this one too. `look` is called whenever the session is woken, so it must not wait.
    #[allow(dead_code, reason = "for routes that wait")]
    pub(crate) fn later(look: impl FnMut() -> Option<Self> + Send + 'static) -> Self {
        let look: Look = Box::new(look);
        Self::new(200, Body(Content::Later(Box::new(look))))
    }

    /// Returns the response that [`later`](Self::later) has promised, if it is known by now.
    pub(super) fn take_later(&mut self) -> Option<Self> {
        let Content::Later(look) = &mut self.body.0 else { return None };
        let mut found = look.downcast_mut::<Look>()?()?;
        found.fields.extend_from_slice(&self.fields);
        Some(found)
    }

    /// Replaces the status.
    #[must_use]
    pub fn with_status(self, status: u16) -> Self {
        let Self { content_type, fields, validity, closing, body, .. } = self;
        let new = Self::new(status, body);
        let validity = if validity == Validity::Valid { new.validity } else { validity };
        Self { content_type, fields, validity, closing, ..new }
    }

    /// Adds a field. A `Content-Type` replaces the one that a constructor has set. White space around
    /// the value is dropped.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        if !is_sendable(name, value) {
            self.validity = Validity::Invalid;
            return self;
        }
        if name.eq_ignore_ascii_case("content-type") {
            self.content_type = None;
        }
        for part in [name.as_bytes(), b": ", value.trim_ascii(), b"\r\n"] {
            self.fields.extend_from_slice(part);
        }
        self
    }

    /// Closes the connection after this response.
    #[must_use]
    pub fn closing(mut self) -> Self {
        self.closing = Closing::Close;
        self
    }

    /// Returns the status code.
    pub fn code(&self) -> u16 {
        self.status
    }

    /// Creates the response to a rejected request.
    pub(super) fn rejection(error: RequestError) -> Self {
        let body = format!("{} {}: {}\n", error.status, reason_phrase(error.status), error.reason);
        Self { content_type: Some(TEXT), ..Self::new(error.status, body) }.closing()
    }

    /// Returns itself, or a 500 if it is invalid.
    pub(super) fn validated(self) -> Self {
        match self.validity {
            Validity::Valid => self,
            Validity::Invalid => Self::status(500),
        }
    }

    /// Returns the length to announce. The body of a status without content is dropped (RFC 9110,
    /// sections 15.3.5, 15.3.6 and 15.4.5).
    pub(super) fn measure(&mut self) -> Length {
        if let 204 | 205 | 304 = self.status {
            self.body = Body::default();
            return if self.status == 205 { Length::Known(0) } else { Length::Unspecified };
        }
        match &self.body.0 {
            Content::Empty => Length::Known(0),
            Content::Static(bytes) => Length::Known(bytes.len() as u64),
            Content::Owned(bytes) => Length::Known(bytes.len() as u64),
            Content::Stream { length, .. } => length.map_or(Length::Chunked, Length::Known),
            Content::Live(_) => Length::Chunked,
            Content::Later(_) => Length::Unknown,
        }
    }

    /// Appends the status line and all fields.
    pub(super) fn write_head(
        &self,
        length: Length,
        connection_header: ConnectionHeader,
        date: &[u8; 29],
        out: &mut Vec<u8>,
    ) {
        // More than everything besides the fields needs; a small body fits as well.
        out.reserve(256 + self.fields.len());
        match self.status {
            200 => out.extend_from_slice(b"HTTP/1.1 200 OK\r\nDate: "),
            status => {
                out.extend_from_slice(b"HTTP/1.1 ");
                out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
                out.push(b' ');
                out.extend_from_slice(reason_phrase(status).as_bytes());
                out.extend_from_slice(b"\r\nDate: ");
            }
        }
        out.extend_from_slice(date);
        if let Some(content_type) = self.content_type {
            out.extend_from_slice(b"\r\nContent-Type: ");
            out.extend_from_slice(content_type.as_bytes());
        }
        match length {
            Length::Known(length) => {
                out.extend_from_slice(b"\r\nContent-Length: ");
                out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
            }
            Length::Chunked => out.extend_from_slice(b"\r\nTransfer-Encoding: chunked"),
            Length::Unspecified | Length::Unknown => (),
        }
        out.extend_from_slice(match connection_header {
            ConnectionHeader::Omitted => b"\r\n",
            ConnectionHeader::KeepAlive => b"\r\nConnection: keep-alive\r\n",
            ConnectionHeader::Close => b"\r\nConnection: close\r\n",
        });
        out.extend_from_slice(&self.fields);
        out.extend_from_slice(b"\r\n");
    }
}

/// Returns whether a byte is valid in a field name (`tchar` of RFC 9110, section 5.6.2).
pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn is_sendable(name: &str, value: &[u8]) -> bool {
    const RESERVED: [&str; 4] = ["date", "content-length", "transfer-encoding", "connection"];
    !name.is_empty()
        && name.bytes().all(is_token_byte)
        && !RESERVED.iter().any(|reserved| name.eq_ignore_ascii_case(reserved))
        && value.iter().all(|&byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f))
}

/// Returns the standard reason phrase (RFC 9110, section 15); empty for other statuses.
fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        207 => "Multi-Status",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        418 => "I'm a Teapot",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        423 => "Locked",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        511 => "Network Authentication Required",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn validated_with_invalid_field_returns_500() {
        let good = Response::text("").header("X-A", "b").header("x", b"\xff\t").validated();
        assert_eq!(good.code(), 200);
        for (name, value) in [
            ("", "x"),
            ("a b", "x"),
            ("a:", "x"),
            ("a\r\n", "x"),
            ("é", "x"),
            ("a", "x\r\nb: c"),
            ("a", "x\n"),
            ("a", "x\ny"),
            ("a", "x\0y"),
            ("a", "x\ry"),
            ("Content-Length", "5"),
            ("date", "x"),
            ("Transfer-Encoding", "chunked"),
            ("CONNECTION", "close"),
        ] {
            let response = Response::text("").header(name, value).header("X-A", "b").validated();
            assert_eq!(response.code(), 500, "{name:?}: {value:?}");
            assert!(response.fields.is_empty());
        }
        for status in [0, 100, 199, 600, 65535] {
            assert_eq!(Response::new(status, "").validated().code(), 500, "{status}");
            assert_eq!(Response::text("").with_status(status).validated().code(), 500, "{status}");
        }
        let still_invalid = Response::text("").header("", "").with_status(201).validated();
        assert_eq!(still_invalid.code(), 500);
    }

    #[test]
    fn header_content_type_replaces_the_constructors() {
        let mut out = Vec::new();
        let response = Response::text("x").header("content-type", "a/b");
        response.write_head(Length::Known(1), ConnectionHeader::Omitted, &[b'd'; 29], &mut out);
        let expected = format!(
            "HTTP/1.1 200 OK\r\nDate: {}\r\nContent-Length: 1\r\ncontent-type: a/b\r\n\r\n",
            "d".repeat(29)
        );
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
