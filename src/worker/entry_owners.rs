//! Which thread of a worker has which entry on the scoreboard.

use std::iter;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// Which thread has which entry of a worker's row. No thread waits for another.
#[derive(Debug)]
pub(super) struct EntryOwners(Box<[EntryOwner]>);

/// The owner of one entry: the number of its thread, and in the lower bits how many trackers and guards
/// the thread has. It keeps the entry between uses, until another thread needs one. 0 is no owner.
#[derive(Debug, Default)]
struct EntryOwner(AtomicU64);

const USES_BITS: u32 = 24;
const USES: u64 = (1 << USES_BITS) - 1;

/// How often a thread looks for an entry that others take and give back meanwhile.
const ATTEMPTS: usize = 100;

/// A number that no other thread of the process has or has had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ThreadNumber(u64);

impl ThreadNumber {
    /// Returns the number of the calling thread. Unlike [`thread::current`], it counts no references.
    pub(super) fn current() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        thread_local!(static NUMBER: ThreadNumber = ThreadNumber(NEXT.fetch_add(1, Ordering::Relaxed)));
        NUMBER.with(|number| *number)
    }
}

/// Why a thread gets no entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoEntry;

impl EntryOwners {
    pub(super) fn new(entries: usize) -> Self {
        Self(iter::repeat_with(EntryOwner::default).take(entries).collect())
    }

    /// Takes the thread's entry, or else a free one. Returns its index and whether the thread is new
    /// there.
    pub(super) fn take_any(&self, thread: ThreadNumber) -> Result<(usize, bool), NoEntry> {
        if let Some(index) = self.find(|owner| owner.take_again(thread)) {
            return Ok((index, false));
        }
        for _ in 0..ATTEMPTS {
            if let Some(index) = self.take_free(thread) {
                return Ok((index, true));
            }
            thread::yield_now();
        }
        Err(NoEntry)
    }

    /// Takes a free entry for a thread that has none. Looks once.
    pub(super) fn take_free(&self, thread: ThreadNumber) -> Option<usize> {
        let unused = self.find(|owner| owner.is_unused() && owner.take_free(thread));
        unused.or_else(|| self.find(|owner| owner.take_free(thread)))
    }

    fn find(&self, take: impl Fn(&EntryOwner) -> bool) -> Option<usize> {
        self.0.iter().position(take)
    }

    /// Takes an entry once more, if the thread is its owner.
    #[inline]
    pub(super) fn take_again(&self, index: usize, thread: ThreadNumber) -> bool {
        self.0[index].take_again(thread)
    }

    /// Takes one entry. Returns whether the thread is new there.
    pub(super) fn take_one(&self, index: usize, thread: ThreadNumber) -> Result<bool, NoEntry> {
        let owner = self.0.get(index).ok_or(NoEntry)?;
        if owner.take_again(thread) {
            return Ok(false);
        }
        owner.take_free(thread).then_some(true).ok_or(NoEntry)
    }

    /// Ends one use of an entry.
    pub(super) fn give_back(&self, index: usize) {
        self.0[index].0.fetch_sub(1, Ordering::Release);
    }
}

impl EntryOwner {
    fn is_unused(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    /// Adds a use if the thread is the owner.
    fn take_again(&self, thread: ThreadNumber) -> bool {
        let seen = self.0.load(Ordering::Relaxed);
        seen >> USES_BITS == thread.0 && self.replace(seen, seen + 1)
    }

    /// Makes the thread the owner if no thread uses the entry.
    fn take_free(&self, thread: ThreadNumber) -> bool {
        let seen = self.0.load(Ordering::Relaxed);
        seen & USES == 0 && self.replace(seen, thread.0 << USES_BITS | 1)
    }

    fn replace(&self, seen: u64, new: u64) -> bool {
        self.0.compare_exchange(seen, new, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests;
