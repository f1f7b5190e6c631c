//! The scoreboard: what the workers are doing, in memory that they share with the master.
//!
//! Workers write it, and the master does not trust what it reads: every value is a plain word, and
//! an implausible one counts as unknown.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::os::memory::{MappingId, SharedMemory};
use crate::time::MonotonicTime;

/// The head of the board. Word 0, which the master writes, is the number of rows ever used.
const BOARD_HEAD_WORDS: usize = 16;
const ROW_HEAD_WORDS: usize = 64;
/// The word of a row's head that tells whether the worker has ever been ready.
const EVER_READY: usize = 30;
/// The word of a row's head that counts the connected clients.
const CLIENTS: usize = 31;
/// How many rows are read for a fair share. With more workers, the kernel's wake-up order decides.
const FAIR_ROWS_MAX: usize = 128;
const THREAD_WORDS: usize = 16;
const LABEL_WORDS: usize = 8;
const EXIT_NOTE_WORDS: usize = 24;
/// The word of a row's head with the length of the status text, which follows.
const STATUS_TEXT: usize = 32;
const STATUS_TEXT_WORDS: usize = 24;
/// The word of a thread's entry with the deadline that its unit of work has asked for.
const EXTENDED_UNTIL: usize = 11;
/// The word of a thread's entry with the thread's number in the kernel.
const THREAD_ID: usize = 12;

/// The longest extension that a unit of work may ask for at once: 1 h. The master ignores a longer
/// one.
pub(crate) const EXTENSION_MAX: Duration = Duration::from_secs(60 * 60);

/// The scoreboard: one row a worker process, one entry a thread.
#[derive(Debug)]
pub(crate) struct Scoreboard {
    shared: SharedMemory,
    rows: usize,
    threads_per_row: usize,
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

impl Scoreboard {
    /// Maps a board for at most `rows` processes of `threads_per_row` threads each. Only rows in
    /// use cost memory.
    ///
    /// # Errors
    /// `ENOMEM`, from mmap(2).
    pub(crate) fn new(rows: usize, threads_per_row: usize) -> io::Result<Self> {
        let threads_per_row = threads_per_row.max(1);
        let words = BOARD_HEAD_WORDS + rows * (ROW_HEAD_WORDS + threads_per_row * THREAD_WORDS);
        Ok(Self { shared: SharedMemory::new(words)?, rows, threads_per_row })
    }

    /// Returns the mapping that a child must keep to use it.
    pub(crate) fn mapping(&self) -> MappingId {
        self.shared.id()
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

    /// Returns how many clients a worker would have if all connected clients were spread evenly
    /// over the workers that serve.
    pub(crate) fn fair_client_share(&self) -> usize {
        let used = self.shared.words()[0].load(Ordering::Acquire);
        let rows = usize::try_from(used).unwrap_or(0).min(self.rows).min(FAIR_ROWS_MAX);
        let serving =
            (0..rows).map(|row| self.row(row)).filter(|r| r.status() == WorkerStatus::Ready);
        let (mut workers, mut clients) = (0, 0u64);
        for row in serving {
            workers += 1;
            clients = clients.saturating_add(row.clients());
        }
        usize::try_from(clients.div_ceil(workers.max(1))).unwrap_or(usize::MAX)
    }

    /// Returns a process's row.
    ///
    /// # Panics
    /// If there is no such row.
    pub(crate) fn row(&self, index: usize) -> Row<'_> {
        assert!(index < self.rows);
        let length = ROW_HEAD_WORDS + self.threads_per_row * THREAD_WORDS;
        let start = BOARD_HEAD_WORDS + index * length;
        Row { words: &self.shared.words()[start..start + length] }
    }
}

/// One process's row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<'a> {
    words: &'a [AtomicU64],
}

impl<'a> Row<'a> {
    /// Clears the row for a new process. Only the master calls it, before the fork.
    pub(crate) fn reset(self) {
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
        ThreadEntry { words: &self.words[start..start + THREAD_WORDS] }
    }

    /// Returns how many entries the row has.
    pub(crate) fn thread_count(self) -> usize {
        (self.words.len() - ROW_HEAD_WORDS) / THREAD_WORDS
    }

    fn threads(self) -> impl Iterator<Item = ThreadEntry<'a>> {
        (0..self.thread_count()).map(move |index| self.thread(index))
    }
}

/// One thread's entry. Only that thread writes it, so plain loads and stores suffice for counting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThreadEntry<'a> {
    words: &'a [AtomicU64],
}

impl ThreadEntry<'_> {
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

    /// Counts a completed unit of work. Returns the new count.
    pub(crate) fn count_unit(self) -> u64 {
        let units = self.units().wrapping_add(1);
        self.words[1].store(units, Ordering::Relaxed);
        units
    }

    fn units(self) -> u64 {
        self.words[1].load(Ordering::Relaxed)
    }

    /// Returns its unit of work, if it is busy. `thread_index` is its index in the row.
    fn unit(self, thread_index: usize) -> Option<WorkUnit> {
        let started_at = self.busy_since()?;
        let (label, thread_id) = (self.label(), self.thread_id());
        Some(WorkUnit { started_at, label, thread_index, thread_id })
    }

    fn busy_since(self) -> Option<MonotonicTime> {
        match self.words[0].load(Ordering::Acquire) {
            0 => None,
            nanos => Some(MonotonicTime::from_nanos(nanos)),
        }
    }

    /// Returns the time from which `timeout` counts. Ignores a start in the future, and an
    /// extension above [`EXTENSION_MAX`]: no correct worker writes them.
    fn timeout_base(self, now: MonotonicTime, timeout: Duration) -> Option<MonotonicTime> {
        let since = self.busy_since().filter(|since| *since <= now)?;
        let until = MonotonicTime::from_nanos(self.words[EXTENDED_UNTIL].load(Ordering::Acquire));
        let is_plausible = until <= now + EXTENSION_MAX;
        Some(if is_plausible { since.max(until - timeout) } else { since })
    }

    fn label(self) -> String {
        read_text(&self.words[2], &self.words[3..3 + LABEL_WORDS])
    }
}

/// Stores text in words, cut to their size. A concurrent reader may see a mixture of two texts.
fn write_text(length: &AtomicU64, words: &[AtomicU64], text: &[u8]) {
    let stored = &text[..text.len().min(words.len() * 8)];
    for (word, bytes) in words.iter().zip(stored.chunks(8)) {
        word.store(little_endian(bytes), Ordering::Relaxed);
    }
    length.store(stored.len() as u64, Ordering::Release);
}

/// Returns up to eight bytes as a number, the first byte lowest. Two loads that may overlap are
/// cheaper than a copy of so few bytes.
#[inline]
fn little_endian(bytes: &[u8]) -> u64 {
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
fn read_text(length: &AtomicU64, words: &[AtomicU64]) -> String {
    let length = usize::try_from(length.load(Ordering::Acquire)).unwrap_or(0);
    let bytes: Vec<u8> =
        words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
    let shown = &bytes[..length.min(bytes.len())];
    String::from_utf8_lossy(shown).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests;
