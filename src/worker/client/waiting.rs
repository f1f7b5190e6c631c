//! Input that waits until a client's output has been sent.

use std::collections::VecDeque;

use super::INPUT_BYTES;

/// Received bytes in their order, and whether the end of the stream follows.
#[derive(Default)]
pub(super) struct WaitingInput {
    bytes: VecDeque<u8>,
    has_ended: bool,
}

impl WaitingInput {
    /// Adds received bytes; none is the end of the stream.
    pub(super) fn add(&mut self, input: &[u8]) {
        self.bytes.extend(input);
        self.has_ended |= input.is_empty();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty() && !self.has_ended
    }

    pub(super) fn has_bytes(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// Returns whether the end of the stream has been received, and not been taken.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Returns how many bytes of memory it owns.
    pub(super) fn memory(&self) -> usize {
        self.bytes.capacity()
    }

    /// Returns what comes next, if anything does: at most `INPUT_BYTES` bytes, or none for the end of the
    /// stream. A connection may keep what it is given, and its memory is not counted here. So it gets no
    /// more at once than a receive of another class returns.
    pub(super) fn next_piece(&self) -> Option<&[u8]> {
        let (first, _) = self.bytes.as_slices();
        (!self.is_empty()).then(|| &first[..first.len().min(INPUT_BYTES)])
    }

    /// Removes the first `length` bytes, or the end of the stream if that is 0. Frees memory of which
    /// little is used.
    pub(super) fn remove_piece(&mut self, length: usize) {
        if length == 0 {
            self.has_ended = false;
        }
        self.bytes.drain(..length);
        let rest = self.bytes.len();
        if self.bytes.capacity() > 4 * rest {
            self.bytes.shrink_to(2 * rest);
        }
    }

    /// Drops all bytes.
    pub(super) fn clear(&mut self) {
        self.bytes = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_is_handed_over_in_pieces_and_in_order() {
        let input: Vec<u8> = (0..300_000u32).flat_map(u32::to_ne_bytes).collect();
        let mut waiting = WaitingInput::default();
        input.chunks(4096).for_each(|piece| waiting.add(piece));
        waiting.add(&[]);
        let mut received = Vec::new();
        while let Some(piece) = waiting.next_piece() {
            let length = piece.len();
            assert!(length <= 64 << 10, "{length}");
            assert_eq!(length == 0, received.len() == input.len(), "the end comes last");
            received.extend_from_slice(piece);
            waiting.remove_piece(length);
        }
        assert_eq!(received, input);
        assert!(waiting.is_empty());
    }

    #[test]
    fn memory_follows_what_waits() {
        let mut waiting = WaitingInput::default();
        waiting.add(&[0; 1 << 20]);
        assert!(waiting.memory() >= 1 << 20);
        for _ in 0..15 {
            waiting.remove_piece(64 << 10);
        }
        assert!(waiting.memory() <= 256 << 10, "{}", waiting.memory());
        waiting.remove_piece(64 << 10);
        assert_eq!(waiting.memory(), 0);
        waiting.add(&[0; 4096]);
        waiting.clear();
        assert_eq!(waiting.memory(), 0);
    }
}
