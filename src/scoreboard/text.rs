//! Text in words that other processes read and write.

use std::sync::atomic::{AtomicU64, Ordering};

/// Stores text in words, cut to their size. A concurrent reader may see a mixture of two texts.
pub(super) fn write_text(length: &AtomicU64, words: &[AtomicU64], text: &[u8]) {
    let stored = &text[..text.len().min(words.len() * 8)];
    for (word, bytes) in words.iter().zip(stored.chunks(8)) {
        word.store(little_endian(bytes), Ordering::Relaxed);
    }
    length.store(stored.len() as u64, Ordering::Release);
}

/// Returns up to eight bytes as a number, the first byte lowest. Two loads that may overlap are
/// cheaper than a copy of so few bytes.
#[inline]
pub(super) fn little_endian(bytes: &[u8]) -> u64 {
    let last = |width: usize| 8 * (bytes.len() - width);
    if let Some(all) = bytes.first_chunk() {
        return u64::from_le_bytes(*all);
    }
    if let (Some(first), Some(end)) = (bytes.first_chunk(), bytes.last_chunk()) {
        let (first, end) = (u32::from_le_bytes(*first), u32::from_le_bytes(*end));
        return u64::from(first) | u64::from(end) << last(4);
    }
    if let (Some(first), Some(end)) = (bytes.first_chunk(), bytes.last_chunk()) {
        let (first, end) = (u16::from_le_bytes(*first), u16::from_le_bytes(*end));
        return u64::from(first) | u64::from(end) << last(2);
    }
    bytes.first().copied().map_or(0, u64::from)
}

/// Reads text from words with any contents. Control characters are replaced by `?`.
pub(super) fn read_text(length: &AtomicU64, words: &[AtomicU64]) -> String {
    let length = usize::try_from(length.load(Ordering::Acquire)).unwrap_or(0);
    let bytes: Vec<u8> =
        words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
    let shown = &bytes[..length.min(bytes.len())];
    String::from_utf8_lossy(shown).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
