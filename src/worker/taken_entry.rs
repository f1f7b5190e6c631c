//! The entry on the scoreboard that a thread has taken.

use std::marker::PhantomData;

use super::entry_owners::{NoEntry, ThreadNumber};
use super::lifecycle::Lifecycle;
use crate::os::process;
use crate::scoreboard::ThreadEntry;

/// A thread entry that the calling thread has taken. It is not `Send`.
pub(super) struct TakenEntry<'a> {
    pub(super) thread: ThreadEntry<'a>,
    pub(super) lifecycle: &'a Lifecycle,
    index: usize,
    /// Whether the thread still uses it. Otherwise another thread may have taken it.
    is_held: bool,
    stays_in_thread: PhantomData<*const ()>,
}

impl<'a> TakenEntry<'a> {
    #[track_caller]
    pub(super) fn any(lifecycle: &'a Lifecycle) -> Self {
        match lifecycle.entry_owners().take_any(ThreadNumber::current()) {
            Ok((index, is_new)) => Self::new(lifecycle, index, is_new),
            Err(NoEntry) => panic!(
                "no thread entry is free: `WorkerClass::threads` returns {}, and as many other threads \
                 have one; return how many threads work at the same time",
                lifecycle.board_row().thread_count()
            ),
        }
    }

    pub(super) fn try_any(lifecycle: &'a Lifecycle) -> Option<Self> {
        let (index, is_new) = lifecycle.entry_owners().take_any(ThreadNumber::current()).ok()?;
        Some(Self::new(lifecycle, index, is_new))
    }

    #[track_caller]
    pub(super) fn one(lifecycle: &'a Lifecycle, index: usize) -> Self {
        match lifecycle.entry_owners().take_one(index, ThreadNumber::current()) {
            Ok(is_new) => Self::new(lifecycle, index, is_new),
            Err(NoEntry) => panic!("another thread has the thread entry {index}, or there is none"),
        }
    }

    fn new(lifecycle: &'a Lifecycle, index: usize, is_new: bool) -> Self {
        let thread = lifecycle.board_row().thread(index);
        if is_new {
            thread.set_thread_id(process::thread_id());
        }
        Self { thread, lifecycle, index, is_held: true, stays_in_thread: PhantomData }
    }

    pub(super) fn is_held(&self) -> bool {
        self.is_held
    }

    /// Lets other threads take it, until [`retake`](Self::retake).
    pub(super) fn release(&mut self) {
        if std::mem::take(&mut self.is_held) {
            self.lifecycle.entry_owners().give_back(self.index);
        }
    }

    /// Takes it again, or a free one if another thread has it. Returns false if no entry is free.
    #[inline]
    pub(super) fn retake(&mut self) -> bool {
        self.is_held || self.take_anew()
    }

    fn take_anew(&mut self) -> bool {
        let (owners, thread) = (self.lifecycle.entry_owners(), ThreadNumber::current());
        self.is_held = owners.take_again(self.index, thread);
        if !self.is_held
            && let Some(index) = owners.take_free(thread)
        {
            *self = Self::new(self.lifecycle, index, true);
        }
        self.is_held
    }
}

impl Drop for TakenEntry<'_> {
    fn drop(&mut self) {
        self.release();
    }
}
