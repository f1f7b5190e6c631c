//! Parses a whole message: a request, or a notification.

use rmp::decode::{read_array_len, read_int, read_str_len};

use super::arguments::Params;
use super::limits::Limits;
use super::scan::{self, ScanError};

/// A request, `[0, id, method, params]`, or a notification, `[2, method, params]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message<'a> {
    /// The ID that the response repeats; none for a notification.
    pub(super) id: Option<u32>,
    /// The method's name.
    pub(super) method: &'a [u8],
    /// The parameters.
    pub(super) params: Params<'a>,
}

impl<'a> Message<'a> {
    /// Parses a whole message.
    #[inline]
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, ScanError> {
        Self::read(bytes).ok_or(ScanError::Malformed)
    }

    /// Parses the message at the start of `bytes` without a scan, and returns its length. Its head must
    /// have the shortest encoding, and its parameters must be a short array of numbers and short
    /// strings, as in nearly all calls. Returns none for any other message, valid or not.
    #[inline]
    pub(super) fn parse_flat(bytes: &'a [u8], limits: &Limits) -> Option<(Self, usize)> {
        let (id, at) = match *bytes {
            [0x94, 0, id @ ..=0x7f, ..] => (Some(id.into()), 3),
            [0x94, 0, 0xcc, id, ..] => (Some(id.into()), 4),
            [0x94, 0, 0xcd, a, b, ..] => (Some(u16::from_be_bytes([a, b]).into()), 5),
            [0x94, 0, 0xce, a, b, c, d, ..] => (Some(u32::from_be_bytes([a, b, c, d])), 7),
            [0x93, 2, ..] => (None, 2),
            _ => return None,
        };
        let name = bytes.get(at).filter(|marker| **marker & 0xe0 == 0xa0)? & 0x1f;
        let (method, rest) = bytes[at + 1..].split_at_checked(name.into())?;
        let params = scan::flat_array(rest)?;
        let length = bytes.len() - rest.len() + params;
        let within = length <= limits.message && limits.depth >= 2;
        let params = Params { bytes: &rest[..params], flat: true };
        within.then_some((Self { id, method, params }, length))
    }

    fn read(mut bytes: &'a [u8]) -> Option<Self> {
        let length = read_array_len(&mut bytes).ok()?;
        let kind: u8 = read_int(&mut bytes).ok()?;
        let id = match (kind, length) {
            (0, 4) => Some(read_int(&mut bytes).ok()?),
            (2, 3) => None,
            // A server sends no requests, so a response is invalid.
            _ => return None,
        };
        let name = usize::try_from(read_str_len(&mut bytes).ok()?).ok()?;
        let (method, params) = bytes.split_at_checked(name)?;
        let flat = scan::flat_array(params) == Some(params.len());
        Some(Self { id, method, params: Params { bytes: params, flat } })
    }
}
