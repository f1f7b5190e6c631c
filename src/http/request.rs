//! The request that a handler gets: borrowed from the input. Independent of the connection.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::net::SocketAddr;
use std::time::Duration;

use super::head::{Head, Version};
use crate::app::{RequestId, UnitHandle, valid_traceparent};

/// One request with its whole body.
#[derive(Debug)]
pub struct Request<'a> {
    head: &'a Head<'a>,
    body: &'a [u8],
    client: Option<SocketAddr>,
    unit: UnitHandle<'a>,
    id: &'a OnceCell<RequestId>,
}

impl<'a> Request<'a> {
    pub(super) fn new(
        head: &'a Head<'a>,
        body: &'a [u8],
        client: Option<SocketAddr>,
        unit: UnitHandle<'a>,
        id: &'a OnceCell<RequestId>,
    ) -> Self {
        Self { head, body, client, unit, id }
    }

    /// Returns the method, in the case in which it was sent.
    pub fn method(&self) -> &'a str {
        self.head.method
    }

    /// Returns the request target as it was sent: ASCII, neither decoded nor normalised.
    pub fn target(&self) -> &'a str {
        self.head.target
    }

    /// Returns the target's path, without scheme, host and query; not decoded. It is `*` for
    /// `OPTIONS *`, and the host and port for `CONNECT`.
    pub fn path(&self) -> &'a str {
        self.head.path
    }

    /// Returns the query, which follows the first `?` of the target; not decoded.
    pub fn query(&self) -> Option<&'a str> {
        self.head.query
    }

    /// Returns the first value of this name in the query, with `%XX` and `+` decoded. Invalid UTF-8 is
    /// replaced. A name without `=` has an empty value.
    pub fn query_value(&self, name: &str) -> Option<Cow<'a, str>> {
        self.head.query?.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decoded(key) == name).then(|| percent_decoded(value))
        })
    }

    /// Returns the names and values in the query, decoded as by [`query_value`](Self::query_value).
    pub(crate) fn query_pairs(&self) -> impl Iterator<Item = (Cow<'a, str>, Cow<'a, str>)> {
        let pairs = self.head.query.unwrap_or("").split('&').filter(|pair| !pair.is_empty());
        pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decoded(name), percent_decoded(value))
        })
    }

    /// Returns the HTTP version.
    pub fn version(&self) -> Version {
        self.head.version
    }

    /// Returns the value of the first field of this name; the comparison ignores case. The value has no
    /// surrounding white space, and may contain non-ASCII bytes.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Returns all fields in the order in which they were sent.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        self.head.fields.iter().map(|field| (field.name, field.value))
    }

    /// Returns the whole body, with its chunks joined; empty if there is none.
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    /// Returns the client's address; none for a unix socket.
    pub fn client(&self) -> Option<SocketAddr> {
        self.client
    }

    /// Returns the request's id, which is also in the access log. It is made at the first call: 32
    /// hexadecimal digits, different for each request of all workers. If the setting
    /// `request_id_header` names a field and the request has it, its value is the id. Outside a
    /// worker, the id is empty.
    pub fn id(&self) -> &str {
        if let Some(id) = self.id.get() {
            return id.as_str();
        }
        match self.unit.request_id(&|name| self.header(name)) {
            Some(id) => self.id.get_or_init(|| id).as_str(),
            None => "",
        }
    }

    /// Returns the request's `traceparent` field if it is valid (W3C Trace Context): the trace to
    /// which the request belongs.
    pub fn traceparent(&self) -> Option<&'a str> {
        self.header("traceparent").and_then(valid_traceparent)
    }

    /// Extends the deadline of the request to `time` from now, at most one hour. Call it again while
    /// there is progress. Until then, the request does not count as hung.
    pub fn extend_deadline(&self, time: Duration) {
        self.unit.extend_deadline(time);
    }
}

fn percent_decoded(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    loop {
        rest = match rest {
            [] => break,
            [b'+', rest @ ..] => {
                bytes.push(b' ');
                rest
            }
            [b'%', high, low, tail @ ..] => match (hex_digit(*high), hex_digit(*low)) {
                (Some(high), Some(low)) => {
                    bytes.push(high << 4 | low);
                    tail
                }
                _ => {
                    bytes.push(b'%');
                    &rest[1..]
                }
            },
            [byte, rest @ ..] => {
                bytes.push(*byte);
                rest
            }
        };
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns the value of a hexadecimal digit.
pub(super) fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_decoded_keeps_invalid_escapes() {
        for (text, expected) in [
            ("a", "a"),
            ("a+b", "a b"),
            ("%41%6a", "Aj"),
            ("%4", "%4"),
            ("%zz%", "%zz%"),
            ("%C3%A9", "é"),
            ("%ff", "\u{fffd}"),
        ] {
            assert_eq!(percent_decoded(text), expected, "{text:?}");
        }
    }
}
