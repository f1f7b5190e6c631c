//! The memory that a ring sends from: filled between two submissions, and empty after each.

/// How many bytes can be sent in one submission.
const ARENA_BYTES: usize = 256 << 10;
/// How many bytes are copied for one send: copying more costs as much as the system call that it saves.
const SEND_BYTES_MAX: usize = 16 << 10;

/// A place for copies of what is sent.
pub(super) struct OutputArena {
    memory: Box<[u8]>,
    used: usize,
}

impl OutputArena {
    pub(super) fn new() -> Self {
        Self { memory: vec![0; ARENA_BYTES].into_boxed_slice(), used: 0 }
    }

    /// Returns whether bytes can be added now, or never.
    pub(super) fn fits(&self, bytes: &[u8]) -> bool {
        bytes.len() > SEND_BYTES_MAX || bytes.len() <= ARENA_BYTES - self.used
    }

    /// Copies bytes. Returns `None` if they are too many.
    pub(super) fn add(&mut self, bytes: &[u8]) -> Option<&[u8]> {
        let copy = self.memory[self.used..].get_mut(..bytes.len())?;
        if bytes.len() > SEND_BYTES_MAX {
            return None;
        }
        copy.copy_from_slice(bytes);
        self.used += bytes.len();
        Some(copy)
    }

    /// Forgets all bytes.
    pub(super) fn clear(&mut self) {
        self.used = 0;
    }
}
