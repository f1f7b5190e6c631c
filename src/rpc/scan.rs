//! Finds the end of a message in incomplete input. It reads each byte once, over any number of calls.
//! Independent of the message's content.

use super::limits::Limits;

/// Scans for the end of a message.
#[derive(Debug)]
pub(super) struct Scanner {
    /// Offset of the next value in the message.
    at: usize,
    /// Number of missing values of the innermost open array or map. Outside all of them, it is 1 for
    /// the message itself.
    missing: usize,
    /// The same for the enclosing arrays and maps, the innermost last.
    outer: Vec<usize>,
}

impl Default for Scanner {
    fn default() -> Self {
        Self { at: 0, missing: 1, outer: Vec::new() }
    }
}

/// The result of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scan {
    /// The length of the message.
    Whole(usize),
    /// The end has not arrived yet.
    Partial,
}

/// Why a message is rejected and its connection closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScanError {
    /// Not MessagePack, or not a call.
    Malformed,
    /// Larger than the limit, or certain to become so.
    TooLong,
    /// Nested deeper than the limit.
    TooDeep,
}

/// The first bytes of a value.
struct Head {
    /// Their number, plus the number of following bytes that are not values.
    length: usize,
    /// The number of following values.
    values: usize,
}

impl Scanner {
    /// Continues the scan of a message, of which `bytes` is everything that has arrived. After its end,
    /// call it for the next message.
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
            // The enclosing arrays and maps may be complete now, too.
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

    /// Returns whether it is between two messages.
    pub(super) fn is_idle(&self) -> bool {
        self.at == 0
    }

    /// Frees its memory. Call it between two messages.
    pub(super) fn reset(&mut self) {
        self.outer = Vec::new();
    }

    /// Returns the number of heap bytes it owns.
    #[cfg(test)]
    pub(super) fn footprint(&self) -> usize {
        self.outer.capacity() * size_of::<usize>()
    }
}

/// The length of each value whose marker determines it; 0 for other markers.
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
            // Short strings.
            0xa0..=0xbf => 1 + (marker & 0x1f) as u8,
            // Extensions of 1, 2, 4, 8 and 16 bytes, with their type.
            0xd4..=0xd8 => 2 + (1 << (marker - 0xd4)),
            _ => 0,
        };
        marker += 1;
    }
    lengths
};

/// Returns the length of the short array of short values at the start of `bytes`; none for anything
/// else, or if it is incomplete.
#[inline]
pub(super) fn flat_array(bytes: &[u8]) -> Option<usize> {
    let count = bytes.first().filter(|marker| **marker & 0xf0 == 0x90)? & 0x0f;
    let mut at = 1;
    for _ in 0..count {
        at += short_value(bytes.get(at..)?)?;
    }
    (at <= bytes.len()).then_some(at)
}

/// Returns the length of the short value at the start of `bytes`, complete or not; none for anything
/// else. A small number takes a branch, which is predicted, so the next step need not wait for the
/// table.
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
    /// Reads the head at the start of `bytes`; none if it is incomplete.
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
            // Lengths in one, two and four bytes: bytes, extensions with their type, strings.
            0xc4..=0xc6 => Ok(Self::counted(bytes, marker - 0xc4, 0)),
            0xc7..=0xc9 => Ok(Self::counted(bytes, marker - 0xc7, 1)),
            0xd9..=0xdb => Ok(Self::counted(bytes, marker - 0xd9, 0)),
            // Arrays and maps, with counts of two or four bytes.
            0xdc | 0xdd => Ok(Self::container(bytes, marker - 0xdc + 1, 1)),
            0xde | 0xdf => Ok(Self::container(bytes, marker - 0xde + 1, 2)),
            _ => Err(ScanError::Malformed),
        }
    }

    /// Returns the head of a value with a length in 2^`power` bytes, and `more` bytes beyond that length.
    fn counted(bytes: &[u8], power: u8, more: usize) -> Option<Self> {
        let (count, width) = count(bytes, power)?;
        Some(Self { length: (1 + width + more).saturating_add(count), values: 0 })
    }

    /// Returns the head of an array or map with a count in 2^`power` bytes, and `each` values per entry.
    fn container(bytes: &[u8], power: u8, each: usize) -> Option<Self> {
        let (count, width) = count(bytes, power)?;
        Some(Self { length: 1 + width, values: count.saturating_mul(each) })
    }
}

/// Returns the number after the marker, in 2^`power` bytes, and its width in bytes.
fn count(bytes: &[u8], power: u8) -> Option<(usize, usize)> {
    let width = 1 << power;
    let digits = bytes.get(1..1 + width)?;
    Some((digits.iter().fold(0, |sum, &digit| sum << 8 | usize::from(digit)), width))
}
