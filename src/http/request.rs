//! A request as a handler sees it: borrowed from the bytes it came in. It must never know how
//! those arrived.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Duration;

use super::head::{Head, Version};
use crate::app::DeadlineExtender;

/// One request, its body whole.
#[derive(Debug)]
pub struct Request<'a> {
    head: &'a Head<'a>,
    body: &'a [u8],
    client: Option<SocketAddr>,
    extender: DeadlineExtender<'a>,
}

impl<'a> Request<'a> {
    pub(super) fn new(
        head: &'a Head<'a>,
        body: &'a [u8],
        client: Option<SocketAddr>,
        extender: DeadlineExtender<'a>,
    ) -> Self {
        Self { head, body, client, extender }
    }

    /// The method, in the case in which it came.
    pub fn method(&self) -> &'a str {
        self.head.method
    }

    /// The request target as it came: ASCII, neither decoded nor normalised.
    pub fn target(&self) -> &'a str {
        self.head.target
    }

    /// The target's path: without scheme and host, and without what follows a `?`; not decoded.
    /// `*` for `OPTIONS *`; the host and port for `CONNECT`.
    pub fn path(&self) -> &'a str {
        self.head.path
    }

    /// What follows the first `?` of the target; not decoded.
    pub fn query(&self) -> Option<&'a str> {
        self.head.query
    }

    /// The first value of this name in the query, with `%XX` and `+` decoded; bytes that are not
    /// UTF-8 are replaced. A name without `=` has the empty value.
    pub fn query_value(&self, name: &str) -> Option<Cow<'a, str>> {
        self.head.query?.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decoded(key) == name).then(|| percent_decoded(value))
        })
    }

    /// The version of the protocol.
    pub fn version(&self) -> Version {
        self.head.version
    }

    /// The value of the first field of this name, which is compared without regard to case. The
    /// value has no white space around it; it may hold bytes beyond ASCII.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// All fields, in the order in which they came.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        self.head.fields.iter().map(|field| (field.name, field.value))
    }

    /// The whole body, with chunks put together; empty if there is none.
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    /// The address at the other end of the connection; none for a unix socket.
    pub fn client(&self) -> Option<SocketAddr> {
        self.client
    }

    /// Asks for more time: the answer needs until so long from now, at least. At most an hour, but
    /// the handler may ask again, as often as there is progress. Until then the worker is not taken
    /// for hung on its account.
    pub fn extend_deadline(&self, time: Duration) {
        self.extender.extend_deadline(time);
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

/// The worth of a hexadecimal digit.
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
    fn percent_decoding_leaves_what_is_not_an_escape() {
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
