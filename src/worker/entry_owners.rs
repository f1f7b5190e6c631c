//! Which thread of a worker has which entry on the scoreboard.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

/// Which thread has which entry of a worker's row.
#[derive(Debug)]
pub(super) struct EntryOwners(Mutex<Vec<EntryOwner>>);

/// The owner of one entry. It keeps the entry between uses, until another thread needs one.
#[derive(Clone, Debug, Default)]
struct EntryOwner {
    thread: Option<ThreadId>,
    /// How many trackers and guards the thread has.
    uses: usize,
}

/// Why a thread gets no entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoEntry;

impl EntryOwners {
    pub(super) fn new(entries: usize) -> Self {
        Self(Mutex::new(vec![EntryOwner::default(); entries]))
    }

    /// Takes the thread's entry, or else a free one. Returns its index and whether the thread is new
    /// there.
    pub(super) fn take_any(&self, thread: ThreadId) -> Result<(usize, bool), NoEntry> {
        let mut owners = self.lock();
        let its_own = owners.iter().position(|owner| owner.thread == Some(thread));
        let unused = || owners.iter().position(|owner| owner.thread.is_none());
        let free = || owners.iter().position(|owner| owner.uses == 0);
        let index = its_own.or_else(unused).or_else(free).ok_or(NoEntry)?;
        Ok((index, owners[index].take(thread)))
    }

    /// Takes one entry. Returns whether the thread is new there.
    pub(super) fn take_one(&self, index: usize, thread: ThreadId) -> Result<bool, NoEntry> {
        let mut owners = self.lock();
        let owner = owners.get_mut(index).ok_or(NoEntry)?;
        let is_free = owner.uses == 0 || owner.thread == Some(thread);
        is_free.then(|| owner.take(thread)).ok_or(NoEntry)
    }

    /// Ends one use of an entry.
    pub(super) fn give_back(&self, index: usize) {
        self.lock()[index].uses -= 1;
    }

    fn lock(&self) -> MutexGuard<'_, Vec<EntryOwner>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EntryOwner {
    fn take(&mut self, thread: ThreadId) -> bool {
        self.uses += 1;
        self.thread.replace(thread) != Some(thread)
    }
}

#[cfg(test)]
mod tests;
