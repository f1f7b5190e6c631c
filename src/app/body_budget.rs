//! The memory that the partial requests of all clients of a worker may take together. Independent of
//! protocols.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts the bytes of all bodies and messages that have not arrived completely.
#[derive(Debug, Default)]
pub(crate) struct BodyBudget {
    used: AtomicUsize,
}

/// What one connection has of the budget. It returns it when it is dropped.
#[derive(Debug)]
pub(crate) struct BodyShare<'b> {
    budget: &'b BodyBudget,
    bytes: usize,
}

impl BodyBudget {
    /// Returns a share of nothing.
    pub(crate) fn share(&self) -> BodyShare<'_> {
        BodyShare { budget: self, bytes: 0 }
    }
}

impl BodyShare<'_> {
    /// Changes the share to `bytes`. Returns whether all shares together are at most `limit`; zero is
    /// no limit. A share that has become smaller is never too much.
    pub(crate) fn resize(&mut self, bytes: usize, limit: usize) -> bool {
        let before = std::mem::replace(&mut self.bytes, bytes);
        if bytes <= before {
            self.budget.used.fetch_sub(before - bytes, Ordering::Relaxed);
            return true;
        }
        let used = self.budget.used.fetch_add(bytes - before, Ordering::Relaxed) + bytes - before;
        limit == 0 || used <= limit
    }

    /// Returns whether it has nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

impl Drop for BodyShare<'_> {
    fn drop(&mut self) {
        if !self.is_empty() {
            self.resize(0, 0);
        }
    }
}
