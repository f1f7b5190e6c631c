//! The output of a session: what is to be sent, and how much of it was.

use std::mem;

/// How much output a peer acknowledges within its first round trips: ten segments (RFC 6928). An answer
/// that is longer is still on its way when the socket's buffer has taken it.
pub(crate) const SHORT_OUTPUT: usize = 10 * 1460;

/// How many bytes of output a peer must accept within `write_timeout`, unless it accepts all.
pub(super) const WRITE_STEP: usize = 4 << 10;

/// Output that waits in a buffer, which it owns only meanwhile.
#[derive(Debug, Default)]
pub(super) struct Output {
    bytes: Vec<u8>,
    sent: usize,
    longest: OutputLength,
    /// How many bytes were discarded, because the socket failed or the peer did not read.
    lost: usize,
}

/// How much output the peer has been sent in one piece.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum OutputLength {
    #[default]
    None,
    Short,
    Long,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum IoProgress {
    /// Enough bytes moved.
    Made,
    /// Too few bytes moved: the write deadline stays.
    None,
}

impl Output {
    pub(super) fn unsent(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    pub(super) fn is_sent(&self) -> bool {
        self.sent == self.bytes.len()
    }

    /// Returns whether there is neither output to send nor output that was sent before a pause.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Returns whether all has been sent, and the connection is not yet told to continue.
    pub(super) fn is_paused(&self) -> bool {
        self.is_sent() && !self.is_empty()
    }

    /// Returns the most that the peer has been sent in one piece.
    pub(super) fn longest(&self) -> OutputLength {
        self.longest
    }

    /// Returns how many bytes were never sent.
    pub(super) fn lost(&self) -> usize {
        self.lost
    }

    /// Counts `n` sent bytes.
    pub(super) fn count_sent(&mut self, n: usize) -> IoProgress {
        let (before, was_paused) = (self.sent, self.is_paused());
        self.sent = (self.sent + n).min(self.bytes.len());
        let is_long = !self.is_sent() || self.bytes.len() > SHORT_OUTPUT;
        let length = if is_long { OutputLength::Long } else { OutputLength::Short };
        self.longest = self.longest.max(length);
        let ends = self.is_sent() && (n > 0 || was_paused);
        if ends || self.sent / WRITE_STEP > before / WRITE_STEP {
            IoProgress::Made
        } else {
            IoProgress::None
        }
    }

    /// Makes room for more, after all has been sent.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.sent = 0;
    }

    /// Discards what has not been sent.
    pub(super) fn discard(&mut self) {
        self.lost += self.unsent().len();
        self.clear();
    }

    /// Returns the buffer that more output is appended to: `spare`, if there is no other.
    pub(super) fn buffer(&mut self, spare: &mut Vec<u8>) -> &mut Vec<u8> {
        if self.bytes.capacity() == 0 {
            mem::swap(&mut self.bytes, spare);
        }
        &mut self.bytes
    }

    /// Returns an empty buffer to the caller, or frees it if the caller has one already.
    pub(super) fn return_buffer(&mut self, spare: &mut Vec<u8>) {
        if self.bytes.is_empty() && self.bytes.capacity() > 0 {
            let buffer = mem::take(&mut self.bytes);
            if spare.capacity() == 0 {
                *spare = buffer;
            }
        }
    }

    /// Returns how much memory it owns.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }
}
