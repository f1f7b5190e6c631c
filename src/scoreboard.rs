//! The scoreboard: what the workers are doing, in memory that they share with the master.
//!
//! Workers write it, and the master does not trust what it reads: every value is a plain word, and
//! an implausible one counts as unknown.

mod accept_waits;
mod counters;
mod latency;
mod limits;
mod text;
mod thread;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::os::memory::{MappingId, PublishedMemory, SharedMemory};
use crate::time::MonotonicTime;
pub(crate) use accept_waits::{ACCEPT_WAIT_BOUNDS, AcceptWaits};
use counters::{
    COUNTER_WORDS, COUNTERS_PER_ROW_MAX, ThreadCounters, WORKER_COUNTER_WORDS, WorkerCounters,
};
pub(crate) use counters::{WorkCounts, WorkTotals};
pub(crate) use latency::Histogram;
pub(crate) use limits::COUNT_MAX;
use text::{read_text, write_text};
use thread::THREAD_WORDS;
pub(crate) use thread::{EXTENSION_MAX, ThreadEntry, UnitTimeout, WorkUnit};

/// The head of the board. Word 0, which the master writes, is the number of rows ever used.
const BOARD_HEAD_WORDS: usize = 16;
const ROW_HEAD_WORDS: usize = 80;
/// The word of a row's head that tells whether the worker has ever been ready.
const EVER_READY: usize = 29;
/// The word of a row's head that counts the connected clients.
const CLIENTS: usize = 30;
/// How many rows are read for a fair share. With more workers, the kernel's wake-up order decides.
const FAIR_ROWS_MAX: usize = 128;
const EXIT_NOTE_WORDS: usize = 24;
/// The word of a row's head with the drain mode for which the worker is drained.
const DRAINED: usize = 28;
/// The word of a row's head with the length of the status text, which follows.
const STATUS_TEXT: usize = 31;
const STATUS_TEXT_WORDS: usize = 24;
/// How many bits a drain mode has, and how many a word has. So few that all are in one page: RLIMIT_FSIZE
/// holds for what the master publishes.
const DRAIN_MODE_BITS: usize = 4;
const DRAIN_MODES_PER_WORD: usize = 64 / DRAIN_MODE_BITS;
const DRAIN_MODE_MASK: u64 = (1 << DRAIN_MODE_BITS) - 1;
/// The first of the words of a row's head with the worker's counters.
const WORKER_COUNTERS: usize = ROW_HEAD_WORDS - WORKER_COUNTER_WORDS;

/// What a worker would have if all connected clients were spread evenly over the workers that serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClientShare {
    pub(crate) clients: usize,
    /// Whether no other worker serves.
    pub(crate) is_whole: bool,
}

/// The scoreboard: one row a worker process, one entry a thread.
#[derive(Debug)]
pub(crate) struct Scoreboard {
    shared: SharedMemory,
    /// The drain modes of the rows' workers, which only the master writes.
    drain_modes: PublishedMemory,
    rows: usize,
    threads_per_row: usize,
    counters_per_row: usize,
}

/// The status of a worker, in the order in which a worker has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum WorkerStatus {
    /// It is not ready yet.
    Booting,
    /// It serves clients.
    Ready,
    /// It serves clients, and has asked to be replaced.
    ReplacementRequested,
    /// It stops: told by the master or by another process, or by its own choice.
    Draining,
}

/// The drain mode of a worker: a count of its changes, modulo 16, so that an answer to an earlier one is not
/// taken for an answer to the present one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DrainMode(u64);

impl DrainMode {
    /// Returns the next one: on if this one is off, and off if it is on.
    pub(crate) fn next(self) -> Self {
        Self((self.0 + 1) % (1 << DRAIN_MODE_BITS))
    }

    /// Returns whether the worker accepts no clients.
    pub(crate) fn is_on(self) -> bool {
        self.0 % 2 == 1
    }

    pub(crate) fn from_word(word: u64) -> Self {
        Self(word)
    }

    pub(crate) fn word(self) -> u64 {
        self.0
    }
}

impl Scoreboard {
    /// Maps a board for at most `rows` processes of `threads_per_row` threads each. Only rows in
    /// use cost memory.
    ///
    /// # Errors
    /// `ENOMEM`, `EMFILE` or `ENFILE`, from mmap(2) and memfd_create(2).
    pub(crate) fn new(rows: usize, threads_per_row: usize) -> io::Result<Self> {
        let threads_per_row = threads_per_row.max(1);
        let counters_per_row = threads_per_row.min(COUNTERS_PER_ROW_MAX);
        let row_words = ROW_HEAD_WORDS + threads_per_row * THREAD_WORDS;
        let words = BOARD_HEAD_WORDS + rows * (row_words + counters_per_row * COUNTER_WORDS);
        Ok(Self {
            shared: SharedMemory::new(words)?,
            drain_modes: PublishedMemory::new(rows.div_ceil(DRAIN_MODES_PER_WORD))?,
            rows,
            threads_per_row,
            counters_per_row,
        })
    }

    /// Returns the mappings that a child must keep to use it.
    pub(crate) fn mappings(&self) -> [MappingId; 2] {
        [self.shared.id(), self.drain_modes.id()]
    }

    /// Returns how many threads a row has entries for.
    pub(crate) fn threads_per_row(&self) -> usize {
        self.threads_per_row
    }

    /// Returns how many rows there are.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Marks the rows up to this one as used. Only the master calls it.
    pub(crate) fn mark_row_used(&self, row: usize) {
        let word = &self.shared.words()[0];
        word.store(word.load(Ordering::Relaxed).max(row as u64 + 1), Ordering::Release);
    }

    /// Returns the drain mode of a row's worker.
    ///
    /// # Panics
    /// If there is no such row.
    pub(crate) fn drain_mode(&self, row: usize) -> DrainMode {
        let (index, shift) = drain_mode_place(row);
        DrainMode(self.drain_modes.load(index) >> shift & DRAIN_MODE_MASK)
    }

    /// Sets the drain mode of a row's worker. Only the master calls it: another process dies.
    ///
    /// # Panics
    /// If there is no such row.
    pub(crate) fn set_drain_mode(&self, row: usize, mode: DrainMode) {
        let (index, shift) = drain_mode_place(row);
        let others = self.drain_modes.load(index) & !(DRAIN_MODE_MASK << shift);
        self.drain_modes.store(index, others | mode.0 << shift);
    }

    /// Returns a worker's share of the connected clients. Workers in drain mode do not serve.
    pub(crate) fn fair_client_share(&self) -> ClientShare {
        let used = self.shared.words()[0].load(Ordering::Acquire);
        let rows = usize::try_from(used).unwrap_or(0).min(self.rows).min(FAIR_ROWS_MAX);
        let rows = (0..rows).filter(|row| !self.drain_mode(*row).is_on()).map(|row| self.row(row));
        let serving = rows.filter(|row| row.status() == WorkerStatus::Ready);
        let (mut workers, mut clients) = (0, 0u64);
        for row in serving {
            workers += 1;
            clients = clients.saturating_add(row.clients());
        }
        let clients = usize::try_from(clients.div_ceil(workers.max(1))).unwrap_or(usize::MAX);
        ClientShare { clients, is_whole: workers == 1 }
    }

    /// Returns a process's row.
    ///
    /// # Panics
    /// If there is no such row.
    pub(crate) fn row(&self, index: usize) -> Row<'_> {
        assert!(index < self.rows);
        let length = ROW_HEAD_WORDS + self.threads_per_row * THREAD_WORDS;
        let start = BOARD_HEAD_WORDS + index * length;
        let counters_length = self.counters_per_row * COUNTER_WORDS;
        // Behind all rows, so that these are dense.
        let counters = BOARD_HEAD_WORDS + self.rows * length + index * counters_length;
        Row {
            words: &self.shared.words()[start..start + length],
            counters: &self.shared.words()[counters..counters + counters_length],
        }
    }
}

/// Returns the word of a row's drain mode, and its first bit there.
fn drain_mode_place(row: usize) -> (usize, usize) {
    (row / DRAIN_MODES_PER_WORD, row % DRAIN_MODES_PER_WORD * DRAIN_MODE_BITS)
}

/// One process's row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<'a> {
    words: &'a [AtomicU64],
    /// The counters of its threads.
    counters: &'a [AtomicU64],
}

impl<'a> Row<'a> {
    /// Clears the row for a new process. Only the master calls it, before the fork.
    pub(crate) fn reset(self) {
        self.used_counters().for_each(ThreadCounters::reset);
        self.words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }

    /// Returns the worker's status.
    pub(crate) fn status(self) -> WorkerStatus {
        match self.words[0].load(Ordering::Acquire) {
            1 => WorkerStatus::Ready,
            2 => WorkerStatus::ReplacementRequested,
            3 => WorkerStatus::Draining,
            _ => WorkerStatus::Booting,
        }
    }

    /// Sets the worker's status. A status before the present one has no effect.
    pub(crate) fn set_status(self, status: WorkerStatus) {
        let word = match status {
            WorkerStatus::Booting => 0,
            WorkerStatus::Ready => 1,
            WorkerStatus::ReplacementRequested => 2,
            WorkerStatus::Draining => 3,
        };
        if status == WorkerStatus::Ready {
            self.words[EVER_READY].store(1, Ordering::Relaxed);
        }
        self.words[0].fetch_max(word, Ordering::AcqRel);
    }

    /// Whether the worker has ever been ready.
    pub(crate) fn was_ready(self) -> bool {
        self.words[EVER_READY].load(Ordering::Relaxed) != 0
    }

    /// Returns how many clients are connected to the worker.
    pub(crate) fn clients(self) -> u64 {
        self.words[CLIENTS].load(Ordering::Relaxed)
    }

    /// Sets how many clients are connected to the worker.
    pub(crate) fn set_clients(self, clients: usize) {
        self.words[CLIENTS].store(clients as u64, Ordering::Relaxed);
    }

    /// Returns the drain mode for which the worker is drained: it has no clients, and accepts none.
    pub(crate) fn drained_for(self) -> DrainMode {
        DrainMode(self.words[DRAINED].load(Ordering::Acquire))
    }

    /// Sets the drain mode for which the worker is drained.
    pub(crate) fn set_drained_for(self, mode: DrainMode) {
        self.words[DRAINED].store(mode.0, Ordering::Release);
    }

    /// Sets a note for the master, such as why the worker failed to boot. It is cut to 192 bytes.
    pub(crate) fn set_exit_note(self, exit_note: &str) {
        write_text(&self.words[1], &self.words[2..2 + EXIT_NOTE_WORDS], exit_note.as_bytes());
    }

    /// Returns the worker's note; empty if none.
    pub(crate) fn exit_note(self) -> String {
        read_text(&self.words[1], &self.words[2..2 + EXIT_NOTE_WORDS])
    }

    /// Sets what the worker is doing, in words. It is cut to 192 bytes.
    pub(crate) fn set_status_text(self, text: &str) {
        let (length, words) = self.status_text_words();
        write_text(length, words, text.as_bytes());
    }

    /// Returns what the worker is doing; empty if it has not told.
    pub(crate) fn status_text(self) -> String {
        let (length, words) = self.status_text_words();
        read_text(length, words)
    }

    fn status_text_words(self) -> (&'a AtomicU64, &'a [AtomicU64]) {
        let first = STATUS_TEXT + 1;
        (&self.words[STATUS_TEXT], &self.words[first..first + STATUS_TEXT_WORDS])
    }

    /// Returns how many units of work the worker has completed.
    pub(crate) fn units(self) -> u64 {
        self.threads().map(ThreadEntry::units).fold(0, u64::wrapping_add)
    }

    /// Returns the counters of the whole worker.
    pub(crate) fn worker_counters(self) -> WorkerCounters<'a> {
        WorkerCounters::new(&self.words[WORKER_COUNTERS..])
    }

    /// Returns what the worker has counted. The units of work in progress at `now` count for the busy
    /// time.
    pub(crate) fn counts(self, now: MonotonicTime) -> WorkCounts {
        let units = self.units().min(COUNT_MAX);
        let mut counts = WorkCounts { units, ..WorkCounts::default() };
        self.worker_counters().add_to(&mut counts);
        self.used_counters().for_each(|counters| counters.add_to(&mut counts));
        let starts = self.threads().filter_map(ThreadEntry::busy_since);
        let ages = starts.map(|start| now.duration_since(start));
        counts.busy = ages.fold(counts.unit_time, Duration::saturating_add);
        counts
    }

    /// Adds how many units of work of the worker have lasted how long.
    pub(crate) fn add_durations_to(self, durations: &mut Histogram) {
        self.used_counters().for_each(|counters| counters.add_durations_to(durations));
    }

    /// Returns what the worker has counted, and how long its units of work have lasted.
    pub(crate) fn totals(self, now: MonotonicTime) -> WorkTotals {
        let mut totals = WorkTotals { counts: self.counts(now), ..WorkTotals::default() };
        self.add_durations_to(&mut totals.durations);
        totals
    }

    /// Returns the counters that a thread has used. The others are not read: that would cost memory.
    fn used_counters(self) -> impl Iterator<Item = ThreadCounters<'a>> {
        let groups = self.counters.len() / COUNTER_WORDS;
        let is_used = move |group: &usize| {
            let mut threads = (*group..self.thread_count()).step_by(groups);
            threads.any(|index| self.thread(index).has_counted())
        };
        (0..groups).filter(is_used).map(move |group| self.counters_of(group))
    }

    /// Returns the counters of a thread.
    fn counters_of(self, thread_index: usize) -> ThreadCounters<'a> {
        let groups = self.counters.len() / COUNTER_WORDS;
        let start = thread_index % groups * COUNTER_WORDS;
        let is_shared = self.thread_count() > groups;
        ThreadCounters::new(&self.counters[start..], is_shared)
    }

    /// Whether any thread works on a unit of work.
    pub(crate) fn is_busy(self) -> bool {
        self.threads().any(|thread| thread.busy_since().is_some())
    }

    /// Returns the unit of work that times out first, if each has `timeout` and its extension.
    pub(crate) fn most_overdue_unit(
        self,
        now: MonotonicTime,
        timeout: Duration,
    ) -> Option<WorkUnit> {
        let busy = self.threads().enumerate().filter_map(|(index, thread)| {
            Some((thread.timeout_base(now, timeout)?, index, thread))
        });
        let (_, thread_index, thread) = busy.min_by_key(|(base, ..)| *base)?;
        thread.unit(thread_index)
    }

    /// Returns the units of work in progress, by thread. Ignores a start in the future.
    pub(crate) fn units_in_progress(self, now: MonotonicTime) -> impl Iterator<Item = WorkUnit> {
        self.threads().enumerate().filter_map(move |(thread_index, thread)| {
            thread.unit(thread_index).filter(|unit| unit.started_at <= now)
        })
    }

    /// Returns the times from which `timeout` counts for the units of work that time out first and
    /// last: the unit's start, or later, so that it times out at the deadline that it has asked
    /// for.
    pub(crate) fn busy_interval(
        self,
        now: MonotonicTime,
        timeout: Duration,
    ) -> Option<(MonotonicTime, MonotonicTime)> {
        let bases = || self.threads().filter_map(|thread| thread.timeout_base(now, timeout));
        Some((bases().min()?, bases().max()?))
    }

    /// Returns a thread's entry.
    ///
    /// # Panics
    /// If the row has no such entry.
    pub(crate) fn thread(self, index: usize) -> ThreadEntry<'a> {
        let start = ROW_HEAD_WORDS + index * THREAD_WORDS;
        ThreadEntry::new(&self.words[start..], self.counters_of(index))
    }

    /// Returns how many entries the row has.
    pub(crate) fn thread_count(self) -> usize {
        (self.words.len() - ROW_HEAD_WORDS) / THREAD_WORDS
    }

    fn threads(self) -> impl Iterator<Item = ThreadEntry<'a>> {
        (0..self.thread_count()).map(move |index| self.thread(index))
    }
}

#[cfg(test)]
mod tests;
