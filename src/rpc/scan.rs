//! Finds the end of a message in bytes that may stop anywhere. It looks at each byte once, however
//! often it is called, and must never know what a message means.

use super::limits::Limits;

/// Where the search for a message's end stands.
#[derive(Debug)]
pub(super) struct Scanner {
    /// Where the next value begins, seen from the beginning of the message.
    at: usize,
    /// How many values the innermost open array or map still misses; the message itself is the
    /// only one outside all of them.
    missing: usize,
    /// The same for those around it, the innermost last.
    outer: Vec<usize>,
}

impl Default for Scanner {
    fn default() -> Self {
        Self { at: 0, missing: 1, outer: Vec::new() }
    }
}

/// What the search has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scan {
    /// The message has so many bytes.
    Whole(usize),
    /// Its end is not there yet.
    Partial,
}

/// Why a connection is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScanError {
    /// No MessagePack, or none that is a call.
    Malformed,
    /// More bytes than a message may have, or more than it could have.
    TooLong,
    /// More levels than a message may have.
    TooDeep,
}

/// The first bytes of a value.
struct Head {
    /// Their number, and that of the bytes that follow them and are no values.
    length: usize,
    /// The number of values that follow.
    values: usize,
}

impl Scanner {
    /// Goes on with a message, of which `bytes` are all that have come so far. After its end the
    /// next message may begin.
    pub(super) fn scan(&mut self, bytes: &[u8], limits: &Limits) -> Result<Scan, ScanError> {
        let (mut at, mut missing) = (self.at, self.missing);
        let scan = loop {
            let Some(head) = Head::read(bytes.get(at..).unwrap_or_default())? else {
                break Scan::Partial;
            };
            let end = at.saturating_add(head.length);
            // A value has at least one byte.
            if end.saturating_add(head.values) > limits.message {
                return Err(ScanError::TooLong);
            }
            if end > bytes.len() {
                break Scan::Partial;
            }
            at = end;
            if head.values > 0 {
                if self.outer.len() >= limits.depth {
                    return Err(ScanError::TooDeep);
                }
                self.outer.push(missing);
                missing = head.values;
                continue;
            }
            missing -= 1;
            // Perhaps those around it are whole now, too.
            while missing == 0
                && let Some(outer) = self.outer.pop()
            {
                missing = outer - 1;
            }
            if missing == 0 {
                (at, missing) = (0, 1);
                break Scan::Whole(end);
            }
        };
        (self.at, self.missing) = (at, missing);
        Ok(scan)
    }

    /// Whether it is between two messages.
    pub(super) fn is_idle(&self) -> bool {
        self.at == 0
    }

    /// Frees its memory, between two messages.
    pub(super) fn reset(&mut self) {
        self.outer = Vec::new();
    }

    /// Bytes of memory owned besides its own.
    #[cfg(test)]
    pub(super) fn footprint(&self) -> usize {
        self.outer.capacity() * size_of::<usize>()
    }
}

/// How long a value is whose marker says all about that; 0 for the others.
const FIXED: [u8; 256] = {
    let mut lengths = [0; 256];
    let mut marker = 0;
    while marker < 256 {
        lengths[marker] = match marker {
            // Numbers, nil, false and true.
            0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => 1,
            0xcc | 0xd0 => 2,
            0xcd | 0xd1 => 3,
            0xca | 0xce | 0xd2 => 5,
            0xcb | 0xcf | 0xd3 => 9,
            // Short texts.
            0xa0..=0xbf => 1 + (marker & 0x1f) as u8,
            // Extensions of 1, 2, 4, 8 and 16 bytes, with their type.
            0xd4..=0xd8 => 2 + (1 << (marker - 0xd4)),
            _ => 0,
        };
        marker += 1;
    }
    lengths
};

/// The length of the short array of short values that `bytes` begin with; none if they begin with
/// something else, or if it is not all there.
#[inline]
pub(super) fn flat_array(bytes: &[u8]) -> Option<usize> {
    let count = bytes.first().filter(|marker| **marker & 0xf0 == 0x90)? & 0x0f;
    let mut at = 1;
    for _ in 0..count {
        at += short_value(bytes.get(at..)?)?;
    }
    (at <= bytes.len()).then_some(at)
}

/// How long the short value is that `bytes` begin with, all there or not; none if they begin with
/// something else. A small number is told by a branch, which is foreseen: what follows need not wait
/// for the table.
#[inline]
pub(super) fn short_value(bytes: &[u8]) -> Option<usize> {
    let marker = *bytes.first()?;
    if marker.cast_signed() >= -32 {
        return Some(1);
    }
    match FIXED[usize::from(marker)] {
        0 => None,
        length => Some(length.into()),
    }
}

impl Head {
    /// The head that `bytes` begin with; none if it is not all there.
    #[inline(always)]
    fn read(bytes: &[u8]) -> Result<Option<Self>, ScanError> {
        let Some(&marker) = bytes.first() else {
            return Ok(None);
        };
        let fixed = FIXED[usize::from(marker)];
        if fixed > 0 {
            return Ok(Some(Self { length: fixed.into(), values: 0 }));
        }
        let low = usize::from(marker & 0x0f);
        match marker {
            0x80..=0x8f => Ok(Some(Self { length: 1, values: 2 * low })),
            0x90..=0x9f => Ok(Some(Self { length: 1, values: low })),
            // Lengths in one, two and four bytes: bytes, extensions with their type, text.
            0xc4..=0xc6 => Ok(Self::counted(bytes, marker - 0xc4, 0)),
            0xc7..=0xc9 => Ok(Self::counted(bytes, marker - 0xc7, 1)),
            0xd9..=0xdb => Ok(Self::counted(bytes, marker - 0xd9, 0)),
            // Arrays and maps, whose counts have two or four bytes.
            0xdc | 0xdd => Ok(Self::container(bytes, marker - 0xdc + 1, 1)),
            0xde | 0xdf => Ok(Self::container(bytes, marker - 0xde + 1, 2)),
            _ => Err(ScanError::Malformed),
        }
    }

    /// A value with a length in 2^`power` bytes, and `more` bytes than that says.
    fn counted(bytes: &[u8], power: u8, more: usize) -> Option<Self> {
        let (count, width) = count(bytes, power)?;
        Some(Self { length: (1 + width + more).saturating_add(count), values: 0 })
    }

    /// An array or a map with a count in 2^`power` bytes, and so many values for each.
    fn container(bytes: &[u8], power: u8, each: usize) -> Option<Self> {
        let (count, width) = count(bytes, power)?;
        Some(Self { length: 1 + width, values: count.saturating_mul(each) })
    }
}

/// The number behind the marker, in 2^`power` bytes, and how many bytes that is.
fn count(bytes: &[u8], power: u8) -> Option<(usize, usize)> {
    let width = 1 << power;
    let digits = bytes.get(1..1 + width)?;
    Some((digits.iter().fold(0, |sum, &digit| sum << 8 | usize::from(digit)), width))
}
