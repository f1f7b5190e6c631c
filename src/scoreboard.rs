//! What the workers are doing, in memory that they share with the master.
//!
//! Workers write, the master reads and believes nothing in it that could hurt it: every value is a
//! plain word, and a nonsensical one is read as "nothing known".

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::os::memory::SharedMemory;
use crate::time::MonotonicTime;

/// The master's: how many rows have ever been in use.
const BOARD_HEAD_WORDS: usize = 16;
const ROW_HEAD_WORDS: usize = 32;
/// Where a row's head keeps whether the worker has ever been ready.
const EVER_READY: usize = 30;
/// Where a row's head counts the clients that are connected.
const CLIENTS: usize = 31;
/// Rows that are looked at for a fair share; with more workers the kernel's turns must do.
const FAIR_ROWS_MAX: usize = 128;
const THREAD_WORDS: usize = 16;
const LABEL_WORDS: usize = 8;
const EXIT_NOTE_WORDS: usize = 24;
/// Where a seat says until when its unit of work has asked for time.
const EXTENDED_UNTIL: usize = 11;
/// Where a seat says which thread sits there.
const THREAD_ID: usize = 12;

/// The longest time for which a unit of work may ask at once. The master believes no more.
pub(crate) const EXTENSION_MAX: Duration = Duration::from_secs(60 * 60);

/// The board: one row a worker process, one seat a thread.
#[derive(Debug)]
pub(crate) struct Scoreboard {
    shared: SharedMemory,
    rows: usize,
    threads_per_row: usize,
}

/// How far a worker has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerStatus {
    /// It has not said that it is ready.
    Booting,
    /// It serves.
    Ready,
    /// It serves, and wants to be replaced.
    ReplacementRequested,
    /// It has been told to leave, by whomever.
    Draining,
}

/// A unit of work in progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WorkUnit {
    /// When it began.
    pub(crate) started_at: MonotonicTime,
    /// What it is called; empty if its protocol names nothing.
    pub(crate) label: String,
    /// The thread's place in its worker.
    pub(crate) thread_index: usize,
    /// The thread's number in the kernel; 0 if it has not said.
    pub(crate) thread_id: u64,
}

impl Scoreboard {
    /// A board for at most `rows` processes of `seats` threads each. Only rows in use cost memory.
    ///
    /// # Errors
    /// `ENOMEM`, from mmap(2).
    pub(crate) fn new(rows: usize, threads_per_row: usize) -> io::Result<Self> {
        let threads_per_row = threads_per_row.max(1);
        let words = BOARD_HEAD_WORDS + rows * (ROW_HEAD_WORDS + threads_per_row * THREAD_WORDS);
        Ok(Self { shared: SharedMemory::new(words)?, rows, threads_per_row })
    }

    /// How many threads a row has room for.
    pub(crate) fn threads_per_row(&self) -> usize {
        self.threads_per_row
    }

    /// How many rows there are.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Says that rows up to this one have been in use. For the master.
    pub(crate) fn mark_row_used(&self, row: usize) {
        let word = &self.shared.words()[0];
        word.store(word.load(Ordering::Relaxed).max(row as u64 + 1), Ordering::Release);
    }

    /// How many clients a worker would have if all who are connected were spread evenly over the
    /// workers that serve.
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

    /// A process's row.
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
    /// Clears the row for a new process. For the master, before the fork.
    pub(crate) fn reset(self) {
        self.words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }

    /// How far the worker has come.
    pub(crate) fn status(self) -> WorkerStatus {
        match self.words[0].load(Ordering::Acquire) {
            1 => WorkerStatus::Ready,
            2 => WorkerStatus::ReplacementRequested,
            3 => WorkerStatus::Draining,
            _ => WorkerStatus::Booting,
        }
    }

    /// Says how far the worker has come.
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
        self.words[0].fetch_max(word, Ordering::AcqRel); // it never goes back
    }

    /// Whether the worker has ever said that it is ready.
    pub(crate) fn was_ready(self) -> bool {
        self.words[EVER_READY].load(Ordering::Relaxed) != 0
    }

    /// How many clients are connected to the worker.
    fn clients(self) -> u64 {
        self.words[CLIENTS].load(Ordering::Relaxed)
    }

    /// Says how many clients are connected to the worker.
    pub(crate) fn set_clients(self, clients: usize) {
        self.words[CLIENTS].store(clients as u64, Ordering::Relaxed);
    }

    /// Leaves a word for the master, such as why the worker could not boot. Cut to 192 bytes.
    pub(crate) fn set_exit_note(self, exit_note: &str) {
        write_text(&self.words[1], &self.words[2..2 + EXIT_NOTE_WORDS], exit_note.as_bytes());
    }

    /// The word that the worker left; empty if none.
    pub(crate) fn exit_note(self) -> String {
        read_text(&self.words[1], &self.words[2..2 + EXIT_NOTE_WORDS])
    }

    /// How many units of work the worker has done.
    pub(crate) fn units(self) -> u64 {
        self.threads().map(ThreadEntry::units).fold(0, u64::wrapping_add)
    }

    /// Whether any thread is at a unit of work.
    pub(crate) fn is_busy(self) -> bool {
        self.threads().any(|seat| seat.busy_since().is_some())
    }

    /// The unit of work whose time is up first, if each has `timeout` and what it has asked for.
    pub(crate) fn most_overdue_unit(
        self,
        now: MonotonicTime,
        timeout: Duration,
    ) -> Option<WorkUnit> {
        let busy = self
            .threads()
            .enumerate()
            .filter_map(|(seat, words)| Some((words.timeout_base(now, timeout)?, seat, words)));
        let (_, seat, words) = busy.min_by_key(|(from, ..)| *from)?;
        let since = words.busy_since()?;
        Some(WorkUnit {
            started_at: since,
            label: words.label(),
            thread_index: seat,
            thread_id: words.thread_id(),
        })
    }

    /// From when on `timeout` counts for the oldest and for the youngest unit of work: from its
    /// beginning, or so much later that its time is up when it has asked for.
    pub(crate) fn busy_interval(
        self,
        now: MonotonicTime,
        timeout: Duration,
    ) -> Option<(MonotonicTime, MonotonicTime)> {
        let bases = || self.threads().filter_map(|seat| seat.timeout_base(now, timeout));
        Some((bases().min()?, bases().max()?))
    }

    /// A thread's seat.
    ///
    /// # Panics
    /// If the row has no such seat.
    pub(crate) fn thread(self, index: usize) -> ThreadEntry<'a> {
        let start = ROW_HEAD_WORDS + index * THREAD_WORDS;
        ThreadEntry { words: &self.words[start..start + THREAD_WORDS] }
    }

    /// How many seats there are.
    pub(crate) fn thread_count(self) -> usize {
        (self.words.len() - ROW_HEAD_WORDS) / THREAD_WORDS
    }

    fn threads(self) -> impl Iterator<Item = ThreadEntry<'a>> {
        (0..self.thread_count()).map(move |index| self.thread(index))
    }
}

/// One thread's place. Written by that thread alone, so plain loads and stores suffice to count.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThreadEntry<'a> {
    words: &'a [AtomicU64],
}

impl ThreadEntry<'_> {
    /// The thread has been at one piece of work since then.
    pub(crate) fn set_busy(self, started_at: MonotonicTime) {
        self.words[EXTENDED_UNTIL].store(0, Ordering::Relaxed);
        self.words[0].store(started_at.as_nanos().max(1), Ordering::Release);
    }

    /// The thread is idle, or busy with nothing that belongs to a client.
    pub(crate) fn set_idle(self) {
        self.words[0].store(0, Ordering::Release);
    }

    /// The work asks for time until then, at most [`EXTENSION_MAX`] from now. Its time only ever
    /// becomes more.
    pub(crate) fn extend_deadline(self, until: MonotonicTime) {
        self.words[EXTENDED_UNTIL].fetch_max(until.as_nanos(), Ordering::Release);
    }

    /// This thread sits here.
    pub(crate) fn set_thread_id(self, thread_id: u64) {
        self.words[THREAD_ID].store(thread_id, Ordering::Relaxed);
    }

    fn thread_id(self) -> u64 {
        self.words[THREAD_ID].load(Ordering::Relaxed)
    }

    /// The work is called so.
    #[inline]
    pub(crate) fn set_label(self, label: &[u8]) {
        if label.len() <= 8 {
            self.words[3].store(little_endian(label), Ordering::Relaxed); // most need no loop
            self.words[2].store(label.len() as u64, Ordering::Release);
        } else {
            write_text(&self.words[2], &self.words[3..3 + LABEL_WORDS], label);
        }
    }

    /// The work has no name.
    pub(crate) fn clear_label(self) {
        self.words[2].store(0, Ordering::Relaxed);
    }

    /// Counts one more unit of work. Returns how many that makes.
    pub(crate) fn count_unit(self) -> u64 {
        let units = self.units().wrapping_add(1);
        self.words[1].store(units, Ordering::Relaxed);
        units
    }

    fn units(self) -> u64 {
        self.words[1].load(Ordering::Relaxed)
    }

    fn busy_since(self) -> Option<MonotonicTime> {
        match self.words[0].load(Ordering::Acquire) {
            0 => None,
            nanos => Some(MonotonicTime::from_nanos(nanos)),
        }
    }

    /// From when on `timeout` counts. A stamp that no honest worker could have written now is
    /// nonsense, which is passed over.
    fn timeout_base(self, now: MonotonicTime, timeout: Duration) -> Option<MonotonicTime> {
        let since = self.busy_since().filter(|since| *since <= now)?;
        let until = MonotonicTime::from_nanos(self.words[EXTENDED_UNTIL].load(Ordering::Acquire));
        let is_plausible = until <= now.saturating_add(EXTENSION_MAX);
        Some(if is_plausible { since.max(until.saturating_sub(timeout)) } else { since })
    }

    fn label(self) -> String {
        read_text(&self.words[2], &self.words[3..3 + LABEL_WORDS])
    }
}

/// Stores text in words, cut to their size. A reader at the same moment may see a mixture.
fn write_text(length: &AtomicU64, words: &[AtomicU64], text: &[u8]) {
    let shown = &text[..text.len().min(words.len() * 8)];
    for (word, piece) in words.iter().zip(shown.chunks(8)) {
        word.store(little_endian(piece), Ordering::Relaxed);
    }
    length.store(shown.len() as u64, Ordering::Release);
}

/// Up to eight bytes as a number, the first one lowest. Two loads that may overlap are cheaper than
/// a copy of so few bytes.
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

/// Reads text from words, whatever they hold: what is not printable is escaped.
fn read_text(length: &AtomicU64, words: &[AtomicU64]) -> String {
    let length = usize::try_from(length.load(Ordering::Acquire)).unwrap_or(0);
    let bytes: Vec<u8> =
        words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
    let shown = &bytes[..length.min(bytes.len())];
    String::from_utf8_lossy(shown).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: MonotonicTime = MonotonicTime::from_nanos(1_000_000_000_000_000);
    const TIMEOUT: Duration = Duration::from_secs(30);

    #[test]
    fn little_endian_matches_bytes_at_any_length() {
        let bytes = [1, 0x82, 3, 0x84, 5, 0x86, 7, 0x88];
        for length in 0..=8 {
            let expected = bytes[..length].iter().rev().fold(0, |sum, &b| sum << 8 | u64::from(b));
            assert_eq!(little_endian(&bytes[..length]), expected, "{length}");
        }
    }

    #[test]
    fn rows_and_threads_are_independent() {
        let board = Scoreboard::new(3, 2).unwrap();
        board.row(1).thread(1).set_busy(MonotonicTime::from_nanos(9));
        board.row(1).thread(1).set_label(b"GET /hang");
        board.row(1).set_status(WorkerStatus::Ready);
        board.row(1).set_exit_note("a note");
        board.row(1).set_status(WorkerStatus::Draining);
        assert!(board.row(1).was_ready() && !board.row(0).was_ready());
        assert_eq!(board.row(0).most_overdue_unit(NOW, TIMEOUT), None);
        assert_eq!(board.row(2).most_overdue_unit(NOW, TIMEOUT), None);
        assert_eq!(board.row(0).status(), WorkerStatus::Booting);
        let unit = WorkUnit {
            started_at: MonotonicTime::from_nanos(9),
            label: "GET /hang".into(),
            thread_index: 1,
            thread_id: 0,
        };
        assert_eq!(board.row(1).most_overdue_unit(NOW, TIMEOUT), Some(unit));
        assert_eq!(board.row(1).exit_note(), "a note");
    }

    #[test]
    fn most_overdue_unit_is_found_and_units_are_summed() {
        let board = Scoreboard::new(1, 3).unwrap();
        let row = board.row(0);
        row.thread(0).set_busy(MonotonicTime::from_nanos(30));
        row.thread(2).set_busy(MonotonicTime::from_nanos(20));
        row.thread(0).count_unit();
        row.thread(2).count_unit();
        assert_eq!(row.most_overdue_unit(NOW, TIMEOUT).map(|unit| unit.thread_index), Some(2));
        assert_eq!(row.units(), 2);
        row.reset();
        assert_eq!((row.most_overdue_unit(NOW, TIMEOUT), row.units()), (None, 0));
    }

    #[test]
    fn extension_applies_to_one_unit_only() {
        let board = Scoreboard::new(1, 2).unwrap();
        let (row, second) = (board.row(0), Duration::from_secs(1));
        let (old, young) = (NOW.saturating_sub(40 * second), NOW.saturating_sub(10 * second));
        row.thread(0).set_busy(old);
        row.thread(1).set_busy(young);
        assert_eq!(row.busy_interval(NOW, TIMEOUT), Some((old, young)));
        row.thread(0).extend_deadline(NOW.saturating_add(5 * second));
        assert_eq!(row.busy_interval(NOW, TIMEOUT), Some((NOW.saturating_sub(25 * second), young)));
        row.thread(0).extend_deadline(NOW.saturating_add(second)); // less than it has
        assert_eq!(row.busy_interval(NOW, TIMEOUT), Some((NOW.saturating_sub(25 * second), young)));
        row.thread(0).extend_deadline(NOW.saturating_add(EXTENSION_MAX));
        let unit = row.most_overdue_unit(NOW, TIMEOUT).unwrap();
        assert_eq!((unit.thread_index, unit.started_at), (1, young));
        row.thread(0).set_busy(old);
        assert_eq!(row.busy_interval(NOW, TIMEOUT), Some((old, young)));
    }

    #[test]
    fn extension_beyond_maximum_is_ignored() {
        let board = Scoreboard::new(1, 1).unwrap();
        let since = NOW.saturating_sub(TIMEOUT);
        board.row(0).thread(0).set_busy(since);
        board
            .row(0)
            .thread(0)
            .extend_deadline(NOW.saturating_add(EXTENSION_MAX + Duration::from_nanos(1)));
        assert_eq!(board.row(0).busy_interval(NOW, TIMEOUT), Some((since, since)));
        board.row(0).thread(0).set_busy(NOW.saturating_add(TIMEOUT));
        assert_eq!(board.row(0).busy_interval(NOW, TIMEOUT), None);
    }

    #[test]
    fn exit_note_is_truncated_and_printable() {
        let board = Scoreboard::new(1, 1).unwrap();
        board.row(0).set_exit_note(&"x".repeat(500));
        assert_eq!(board.row(0).exit_note().len(), EXIT_NOTE_WORDS * 8);
        board.row(0).set_exit_note("one\ntwo");
        assert_eq!(board.row(0).exit_note(), "one?two");
    }
}
