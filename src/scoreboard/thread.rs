//! The entry of one thread on the scoreboard.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::counters::ThreadCounters;
use super::text::{little_endian, read_text, write_text};
use crate::time::MonotonicTime;

/// The words of one entry.
pub(super) const THREAD_WORDS: usize = 16;
const LABEL_WORDS: usize = 8;
/// The word of a thread's entry with the deadline that its unit of work has asked for.
const EXTENDED_UNTIL: usize = 11;
/// The word of a thread's entry with the thread's number in the kernel.
const THREAD_ID: usize = 12;
/// The word of a thread's entry with the start of its last unit of work.
const UNIT_STARTED: usize = 13;
/// The word of a thread's entry that tells whether it has used its counters: until then their pages
/// cost no memory.
const HAS_COUNTED: usize = 14;

/// The longest extension that a unit of work may ask for at once: 1 h. The master ignores a longer
/// one.
pub(crate) const EXTENSION_MAX: Duration = Duration::from_secs(60 * 60);

/// How long a unit of work may take, in nanoseconds: their division is cheap.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UnitTimeout(u64);

impl UnitTimeout {
    /// Converts a setting, for which zero is no limit.
    pub(crate) fn new(timeout: Duration) -> Self {
        let nanos = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        Self(if nanos == 0 { u64::MAX } else { nanos })
    }
}

/// A unit of work in progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WorkUnit {
    /// When it began.
    pub(crate) started_at: MonotonicTime,
    /// Its label; empty if its protocol sets none.
    pub(crate) label: String,
    /// The thread's index in its worker.
    pub(crate) thread_index: usize,
    /// The thread's number in the kernel; 0 if unknown.
    pub(crate) thread_id: u64,
}

/// One thread's entry. Only that thread writes it, so plain loads and stores suffice for counting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThreadEntry<'a> {
    words: &'a [AtomicU64; THREAD_WORDS],
    counters: ThreadCounters<'a>,
}

impl<'a> ThreadEntry<'a> {
    /// Returns the entry in these words.
    ///
    /// # Panics
    /// If there are too few words.
    pub(super) fn new(words: &'a [AtomicU64], counters: ThreadCounters<'a>) -> Self {
        Self { words: words.first_chunk().expect("the row has all words"), counters }
    }

    /// Marks the thread as busy with a unit of work since `started_at`.
    pub(crate) fn set_busy(self, started_at: MonotonicTime) {
        self.words[EXTENDED_UNTIL].store(0, Ordering::Relaxed);
        self.words[0].store(started_at.as_nanos().max(1), Ordering::Release);
    }

    /// Marks the thread as idle, or as busy without a client's unit of work.
    pub(crate) fn set_idle(self) {
        self.words[0].store(0, Ordering::Release);
    }

    /// Extends the deadline of the unit of work to `until`, at most [`EXTENSION_MAX`] from now. An
    /// earlier deadline than the present one has no effect.
    pub(crate) fn extend_deadline(self, until: MonotonicTime) {
        self.words[EXTENDED_UNTIL].fetch_max(until.as_nanos(), Ordering::Release);
    }

    /// Sets the thread's number in the kernel.
    pub(crate) fn set_thread_id(self, thread_id: u64) {
        self.words[THREAD_ID].store(thread_id, Ordering::Relaxed);
    }

    fn thread_id(self) -> u64 {
        self.words[THREAD_ID].load(Ordering::Relaxed)
    }

    /// Sets the label of the unit of work.
    #[inline]
    pub(crate) fn set_label(self, label: &[u8]) {
        if label.len() <= 8 {
            self.words[3].store(little_endian(label), Ordering::Relaxed); // most labels need no loop
            self.words[2].store(label.len() as u64, Ordering::Release);
        } else {
            write_text(&self.words[2], &self.words[3..3 + LABEL_WORDS], label);
        }
    }

    /// Clears the label of the unit of work.
    pub(crate) fn clear_label(self) {
        self.words[2].store(0, Ordering::Relaxed);
    }

    /// Marks the thread as busy with a unit of work since `started_at`, and begins to time the unit.
    #[inline]
    pub(crate) fn begin_unit(self, started_at: MonotonicTime) {
        self.words[UNIT_STARTED].store(started_at.as_nanos(), Ordering::Relaxed);
        self.set_busy(started_at);
    }

    /// Returns when the last unit of work began.
    pub(crate) fn unit_started(self) -> MonotonicTime {
        MonotonicTime::from_nanos(self.words[UNIT_STARTED].load(Ordering::Relaxed))
    }

    /// Counts a unit of work that has lasted from `started_at` to `now`. A thread that is still busy is
    /// so with something else from now on. A unit that took more than half of its time limit, which is
    /// `timeout` or its extension, is a near miss.
    #[inline]
    pub(crate) fn end_unit(
        self,
        started_at: MonotonicTime,
        now: MonotonicTime,
        timeout: UnitTimeout,
    ) {
        self.words[1].store(self.units().wrapping_add(1), Ordering::Relaxed);
        let nanos = now.as_nanos().saturating_sub(started_at.as_nanos());
        self.use_counters().add_unit(nanos);
        if nanos > timeout.0 / 2 {
            self.count_near_miss(started_at, now, timeout);
        }
        if self.busy_since().is_some() {
            self.words[0].store(now.as_nanos(), Ordering::Release);
        }
    }

    /// Counts a near miss.
    pub(crate) fn add_near_miss(self) {
        self.use_counters().add_near_miss();
    }

    #[cold]
    fn count_near_miss(self, started_at: MonotonicTime, now: MonotonicTime, timeout: UnitTimeout) {
        let until = MonotonicTime::from_nanos(self.words[EXTENDED_UNTIL].load(Ordering::Relaxed));
        let limit = until.duration_since(started_at).max(Duration::from_nanos(timeout.0));
        if now.duration_since(started_at) > limit / 2 {
            self.add_near_miss();
        }
    }

    /// Counts bytes that were received from a client.
    #[inline]
    pub(crate) fn count_received(self, bytes: usize) {
        self.use_counters().add_received(bytes);
    }

    /// Counts bytes that were sent to a client.
    #[inline]
    pub(crate) fn count_sent(self, bytes: usize) {
        self.use_counters().add_sent(bytes);
    }

    #[inline]
    fn use_counters(self) -> ThreadCounters<'a> {
        self.words[HAS_COUNTED].store(1, Ordering::Relaxed);
        self.counters
    }

    pub(super) fn has_counted(self) -> bool {
        self.words[HAS_COUNTED].load(Ordering::Relaxed) != 0
    }

    pub(super) fn units(self) -> u64 {
        self.words[1].load(Ordering::Relaxed)
    }

    /// Returns its unit of work, if it is busy. `thread_index` is its index in the row.
    pub(super) fn unit(self, thread_index: usize) -> Option<WorkUnit> {
        let started_at = self.busy_since()?;
        let (label, thread_id) = (self.label(), self.thread_id());
        Some(WorkUnit { started_at, label, thread_index, thread_id })
    }

    /// Returns since when the thread has been busy, if it is.
    pub(crate) fn busy_since(self) -> Option<MonotonicTime> {
        match self.words[0].load(Ordering::Acquire) {
            0 => None,
            nanos => Some(MonotonicTime::from_nanos(nanos)),
        }
    }

    /// Returns the time from which `timeout` counts. Ignores a start in the future, and an
    /// extension above [`EXTENSION_MAX`]: no correct worker writes them.
    pub(super) fn timeout_base(
        self,
        now: MonotonicTime,
        timeout: Duration,
    ) -> Option<MonotonicTime> {
        let since = self.busy_since().filter(|since| *since <= now)?;
        let until = MonotonicTime::from_nanos(self.words[EXTENDED_UNTIL].load(Ordering::Acquire));
        let is_plausible = until <= now + EXTENSION_MAX;
        Some(if is_plausible { since.max(until - timeout) } else { since })
    }

    fn label(self) -> String {
        read_text(&self.words[2], &self.words[3..3 + LABEL_WORDS])
    }
}
