//! An answer as a handler makes it, and the bytes of its head (RFC 9112, section 4). It must never
//! know to which client it goes.

use super::body::{Body, Content};
use super::error::RequestError;

const TEXT: &str = "text/plain; charset=utf-8";

/// An answer: a status, header fields and a body.
///
/// `RunAtWallTime`, `Content-Length`, `Transfer-Encoding` and `Connection` are written by the server. A
/// response with a field that cannot be sent, be it one of these, a name that is no token or a
/// value with a control character, is not sent at all: the client gets a 500.
#[derive(Debug)]
pub struct Response {
    status: u16,
    /// The type that came with a constructor; a field of that name replaces it.
    content_type: Option<&'static str>,
    /// The other fields, as they will be sent.
    fields: Vec<u8>,
    validity: Validity,
    pub(super) closing: Closing,
    pub(super) body: Body,
}

/// Whether all parts of a response can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Validity {
    Valid,
    Invalid,
}

/// What a handler wants to happen to the connection after its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closing {
    AsRequested,
    Close,
}

/// What is said about the length of a body (RFC 9112, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// So many bytes.
    Known(u64),
    /// Chunk by chunk.
    Chunked,
    /// Nothing: there is no body, or it ends with the connection.
    Unspecified,
}

/// What is said about the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionHeader {
    /// It goes on, as is usual in HTTP/1.1.
    Omitted,
    /// It goes on, as an HTTP/1.0 client has asked.
    KeepAlive,
    /// It ends after this answer.
    Close,
}

impl Response {
    /// A response of this status, with a body of no declared type. A status outside 200 to 599 is
    /// answered with 500.
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

    /// 200 with plain text in UTF-8.
    pub fn text(body: impl Into<Body>) -> Self {
        Self { content_type: Some(TEXT), ..Self::new(200, body) }
    }

    /// 200 with JSON that has been serialised already.
    pub fn json(body: impl Into<Body>) -> Self {
        Self { content_type: Some("application/json"), ..Self::new(200, body) }
    }

    /// This status, with its number and name as text, such as `404 Not Found`.
    pub fn status(status: u16) -> Self {
        let body = format!("{status} {}\n", reason_phrase(status));
        Self { content_type: Some(TEXT), ..Self::new(status, body) }
    }

    /// The same with another status.
    #[must_use]
    pub fn with_status(self, status: u16) -> Self {
        let Self { content_type, fields, validity, closing, body, .. } = self;
        let new = Self::new(status, body);
        let validity = if validity == Validity::Valid { new.validity } else { validity };
        Self { content_type, fields, validity, closing, ..new }
    }

    /// The same with one more field. A `Content-Type` replaces the one that came with a
    /// constructor. White space around the value is left out.
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

    /// The same, and the connection is closed after it.
    #[must_use]
    pub fn closing(mut self) -> Self {
        self.closing = Closing::Close;
        self
    }

    /// The status code.
    pub fn code(&self) -> u16 {
        self.status
    }

    /// What a refused request is answered with.
    pub(super) fn rejection(error: RequestError) -> Self {
        let body = format!("{} {}: {}\n", error.status, reason_phrase(error.status), error.reason);
        Self { content_type: Some(TEXT), ..Self::new(error.status, body) }.closing()
    }

    /// Itself, or a 500 if it cannot be sent.
    pub(super) fn validated(self) -> Self {
        match self.validity {
            Validity::Valid => self,
            Validity::Invalid => Self::status(500),
        }
    }

    /// The length to announce. Statuses without content drop their body (RFC 9110, sections
    /// 15.3.5, 15.3.6 and 15.4.5).
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
        // More than all that is written besides the fields; the body is often small, too.
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
            Length::Unspecified => (),
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

/// Whether a byte may stand in a field name (`tchar` of RFC 9110, section 5.6.2).
pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn is_sendable(name: &str, value: &[u8]) -> bool {
    const OURS: [&str; 4] = ["date", "content-length", "transfer-encoding", "connection"];
    !name.is_empty()
        && name.bytes().all(is_token_byte)
        && !OURS.iter().any(|ours| name.eq_ignore_ascii_case(ours))
        && value.iter().all(|&byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f))
}

/// The usual reason phrase (RFC 9110, section 15); empty for a status without one.
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
    fn a_field_that_cannot_be_sent_makes_a_500() {
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
        let repaired = Response::text("").header("", "").with_status(201).validated();
        assert_eq!(repaired.code(), 500);
    }

    #[test]
    fn a_given_content_type_replaces_the_constructor_s() {
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
