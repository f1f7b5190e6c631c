//! What a whole message means: a call that wants an answer, or one that does not.

use rmp::decode::{read_array_len, read_int, read_str_len};

use super::scan::Fault;

/// A request, `[0, id, method, params]`, or a notification, `[2, method, params]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message<'a> {
    /// The number that the answer repeats; none if no answer is wanted.
    pub(super) id: Option<u32>,
    /// The method's name, as it came.
    pub(super) method: &'a [u8],
    /// The parameters, one encoded value.
    pub(super) params: &'a [u8],
}

impl<'a> Message<'a> {
    /// Understands a whole message.
    #[inline]
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Fault> {
        Self::read(bytes).ok_or(Fault::Garbage)
    }

    fn read(mut bytes: &'a [u8]) -> Option<Self> {
        let length = read_array_len(&mut bytes).ok()?;
        let kind: u8 = read_int(&mut bytes).ok()?;
        let id = match (kind, length) {
            (0, 4) => Some(read_int(&mut bytes).ok()?),
            (2, 3) => None,
            // A server is not answered, so it reads no response.
            _ => return None,
        };
        let name = usize::try_from(read_str_len(&mut bytes).ok()?).ok()?;
        let (method, params) = bytes.split_at_checked(name)?;
        Some(Self { id, method, params })
    }
}
