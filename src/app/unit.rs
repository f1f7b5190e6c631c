//! What is recorded of a unit of work: the request, the response, and the id.

use std::fmt;
use std::net::SocketAddr;

/// One unit of work, for its record in the access log.
#[derive(Clone, Copy)]
pub struct Unit<'a> {
    /// The kind of work.
    pub kind: UnitKind,
    /// The client's address; none for a unix socket and for a job.
    pub client: Option<SocketAddr>,
    /// The id, if the handler has asked for it.
    pub id: Option<RequestId>,
    /// What was asked.
    pub request: UnitRequest<'a>,
    /// What was answered.
    pub response: UnitResponse<'a>,
}

/// The kind of a unit of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitKind {
    /// A request of HTTP.
    Http,
    /// A call of MessagePack-RPC.
    Rpc,
    /// A run of a job.
    Job,
    /// Another unit of work, of which only the label is known.
    Other,
}

impl UnitKind {
    /// Returns the name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Rpc => "rpc",
            Self::Job => "job",
            Self::Other => "other",
        }
    }
}

/// The request of a unit of work. What is not known is empty.
#[derive(Clone, Copy)]
pub struct UnitRequest<'a> {
    /// The method, such as `GET`.
    pub method: &'a [u8],
    /// The path without the query; the method of a call; the label of a run.
    pub path: &'a [u8],
    /// The query.
    pub query: Option<&'a [u8]>,
    /// The protocol, such as `HTTP/1.1`.
    pub protocol: &'a [u8],
    /// The request line as it was received, if that differs from method, path, query and protocol.
    pub line: Option<&'a [u8]>,
    /// Returns the value of the first header field of a name.
    pub field: &'a dyn Fn(&str) -> Option<&'a [u8]>,
}

/// The response of a unit of work.
#[derive(Clone, Copy, Debug)]
pub struct UnitResponse<'a> {
    /// The status: 200 or 500 for calls and runs.
    pub status: u16,
    /// The status line and the header fields.
    pub head: &'a [u8],
    /// How many bytes of the body have been appended to the output.
    pub body_bytes: u64,
    /// Whether the whole body has been.
    pub is_complete: bool,
}

/// How a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitEnd {
    /// All of it was passed to the kernel.
    Complete,
    /// The client has disconnected, or was disconnected, before.
    Aborted,
    /// The application could not produce all of it.
    Failed,
}

/// The id of a request: 1 to 128 letters, digits and `-_.~+/=:;,@`.
#[derive(Clone, Copy)]
pub struct RequestId {
    bytes: [u8; RequestId::LENGTH_MAX],
    length: u8,
}

impl RequestId {
    /// The length of the longest id, in bytes.
    pub const LENGTH_MAX: usize = 128;

    /// Returns the id with this text; `None` if it is too long, empty, or has other characters.
    pub fn new(text: &[u8]) -> Option<Self> {
        let is_valid = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.~+/=:;,@".contains(byte);
        let mut bytes = [0; Self::LENGTH_MAX];
        if text.is_empty() || !text.iter().all(is_valid) {
            return None;
        }
        bytes.get_mut(..text.len())?.copy_from_slice(text);
        Some(Self { bytes, length: text.len() as u8 })
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

/// Returns a `traceparent` field if it is valid (W3C Trace Context, section 3.2): version, trace id,
/// parent id and flags in lower-case hexadecimal digits.
pub fn valid_traceparent(value: &[u8]) -> Option<&str> {
    const LENGTH: usize = 55;
    let text = str::from_utf8(value).ok()?;
    let is_hex = |part: &str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let is_zero = |part: &str| part.bytes().all(|byte| byte == b'0');
    let mut parts = text.split('-');
    let (version, trace, parent, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let has_lengths = (version.len(), trace.len(), parent.len(), flags.len()) == (2, 32, 16, 2);
    // A later version may append parts. They are neither read nor handed on.
    let has_more = parts.next().is_some();
    if !has_lengths || version == "ff" || has_more && version == "00" {
        return None;
    }
    let is_valid = [version, trace, parent, flags].into_iter().all(is_hex);
    (is_valid && !is_zero(trace) && !is_zero(parent)).then(|| &text[..LENGTH])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_id_has_safe_characters_only() {
        for good in ["a", "Root=1-67891233-abc;Parent=53995c3f42cd8ad8", &"x".repeat(128)] {
            assert_eq!(RequestId::new(good.as_bytes()).unwrap().as_str(), good);
        }
        for bad in ["", "a b", "a\"", "a\\", "a\n", "é", "%s", &"x".repeat(129)] {
            assert!(RequestId::new(bad.as_bytes()).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn valid_traceparent_follows_the_standard() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(valid_traceparent(good.as_bytes()), Some(good));
        let later = format!("01{}-more", &good[2..]);
        assert_eq!(valid_traceparent(later.as_bytes()), Some(&later[..55]));
        for bad in [
            format!("{good}-more"),
            good.to_uppercase(),
            format!("ff{}", &good[2..]),
            good.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            good.replace("00f067aa0ba902b7", &"0".repeat(16)),
            good.replace('4', "g"),
            good[1..].to_owned(),
            String::new(),
        ] {
            assert_eq!(valid_traceparent(bad.as_bytes()), None, "{bad}");
        }
    }
}
