//! What the workers are doing, in memory that they share with the master.
//!
//! Workers write, the master reads and believes nothing in it that could hurt it: every value is a
//! plain word, and a nonsensical one is read as "nothing known".

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::os::memory::SharedWords;
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
const SEAT_WORDS: usize = 16;
const LABEL_WORDS: usize = 8;
const NOTE_WORDS: usize = 24;
/// Where a seat says until when its unit of work has asked for time.
const EXTENDED: usize = 11;
/// Where a seat says which thread sits there.
const THREAD: usize = 12;

/// The longest time for which a unit of work may ask at once. The master believes no more.
pub(crate) const EXTENSION_MAX: Duration = Duration::from_secs(60 * 60);

/// The board: one row a worker process, one seat a thread.
#[derive(Debug)]
pub(crate) struct Scoreboard {
    shared: SharedWords,
    rows: usize,
    seats: usize,
}

/// How far a worker has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It has not said that it is ready.
    Booting,
    /// It serves.
    Ready,
    /// It serves, and wants to be replaced.
    Spent,
    /// It has been told to leave, by whomever.
    Leaving,
}

/// A unit of work in progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unit {
    /// When it began.
    pub(crate) since: MonotonicTime,
    /// What it is called; empty if its protocol names nothing.
    pub(crate) label: String,
    /// The thread's place in its worker.
    pub(crate) seat: usize,
    /// The thread's number in the kernel; 0 if it has not said.
    pub(crate) thread: u64,
}

impl Scoreboard {
    /// A board for at most `rows` processes of `seats` threads each. Only rows in use cost memory.
    ///
    /// # Errors
    /// `ENOMEM`, from mmap(2).
    pub(crate) fn new(rows: usize, seats: usize) -> io::Result<Self> {
        let seats = seats.max(1);
        let words = BOARD_HEAD_WORDS + rows * (ROW_HEAD_WORDS + seats * SEAT_WORDS);
        Ok(Self { shared: SharedWords::new(words)?, rows, seats })
    }

    /// How many threads a row has room for.
    pub(crate) fn seats(&self) -> usize {
        self.seats
    }

    /// How many rows there are.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Says that rows up to this one have been in use. For the master.
    pub(crate) fn note_use(&self, row: usize) {
        let word = &self.shared.words()[0];
        word.store(word.load(Ordering::Relaxed).max(row as u64 + 1), Ordering::Release);
    }

    /// How many clients a worker would have if all who are connected were spread evenly over the
    /// workers that serve.
    pub(crate) fn fair_share(&self) -> usize {
        let used = self.shared.words()[0].load(Ordering::Acquire);
        let rows = usize::try_from(used).unwrap_or(0).min(self.rows).min(FAIR_ROWS_MAX);
        let serving = (0..rows).map(|row| self.row(row)).filter(|r| r.stage() == Stage::Ready);
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
        let length = ROW_HEAD_WORDS + self.seats * SEAT_WORDS;
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
    pub(crate) fn stage(self) -> Stage {
        match self.words[0].load(Ordering::Acquire) {
            1 => Stage::Ready,
            2 => Stage::Spent,
            3 => Stage::Leaving,
            _ => Stage::Booting,
        }
    }

    /// Says how far the worker has come.
    pub(crate) fn set_stage(self, stage: Stage) {
        let word = match stage {
            Stage::Booting => 0,
            Stage::Ready => 1,
            Stage::Spent => 2,
            Stage::Leaving => 3,
        };
        if stage == Stage::Ready {
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
    pub(crate) fn set_note(self, note: &str) {
        write_text(&self.words[1], &self.words[2..2 + NOTE_WORDS], note.as_bytes());
    }

    /// The word that the worker left; empty if none.
    pub(crate) fn note(self) -> String {
        read_text(&self.words[1], &self.words[2..2 + NOTE_WORDS])
    }

    /// How many units of work the worker has done.
    pub(crate) fn units(self) -> u64 {
        self.seats().map(Seat::units).fold(0, u64::wrapping_add)
    }

    /// Whether any thread is at a unit of work.
    pub(crate) fn is_busy(self) -> bool {
        self.seats().any(|seat| seat.busy_since().is_some())
    }

    /// The unit of work whose time is up first, if each has `timeout` and what it has asked for.
    pub(crate) fn oldest_unit(self, now: MonotonicTime, timeout: Duration) -> Option<Unit> {
        let busy = self
            .seats()
            .enumerate()
            .filter_map(|(seat, words)| Some((words.counts_from(now, timeout)?, seat, words)));
        let (_, seat, words) = busy.min_by_key(|(from, ..)| *from)?;
        let since = words.busy_since()?;
        Some(Unit { since, label: words.label(), seat, thread: words.thread() })
    }

    /// From when on `timeout` counts for the oldest and for the youngest unit of work: from its
    /// beginning, or so much later that its time is up when it has asked for.
    pub(crate) fn busy_times(self, now: MonotonicTime, timeout: Duration) -> Option<(MonotonicTime, MonotonicTime)> {
        let times = || self.seats().filter_map(|seat| seat.counts_from(now, timeout));
        Some((times().min()?, times().max()?))
    }

    /// A thread's seat.
    ///
    /// # Panics
    /// If the row has no such seat.
    pub(crate) fn seat(self, index: usize) -> Seat<'a> {
        let start = ROW_HEAD_WORDS + index * SEAT_WORDS;
        Seat { words: &self.words[start..start + SEAT_WORDS] }
    }

    /// How many seats there are.
    pub(crate) fn seat_count(self) -> usize {
        (self.words.len() - ROW_HEAD_WORDS) / SEAT_WORDS
    }

    fn seats(self) -> impl Iterator<Item = Seat<'a>> {
        (0..self.seat_count()).map(move |index| self.seat(index))
    }
}

/// One thread's place. Written by that thread alone, so plain loads and stores suffice to count.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seat<'a> {
    words: &'a [AtomicU64],
}

impl Seat<'_> {
    /// The thread has been at one piece of work since then.
    pub(crate) fn set_busy(self, since: MonotonicTime) {
        self.words[EXTENDED].store(0, Ordering::Relaxed);
        self.words[0].store(since.as_nanos().max(1), Ordering::Release);
    }

    /// The thread is idle, or busy with nothing that belongs to a client.
    pub(crate) fn set_idle(self) {
        self.words[0].store(0, Ordering::Release);
    }

    /// The work asks for time until then, at most [`EXTENSION_MAX`] from now. Its time only ever
    /// becomes more.
    pub(crate) fn extend(self, until: MonotonicTime) {
        self.words[EXTENDED].fetch_max(until.as_nanos(), Ordering::Release);
    }

    /// This thread sits here.
    pub(crate) fn set_thread(self, number: u64) {
        self.words[THREAD].store(number, Ordering::Relaxed);
    }

    fn thread(self) -> u64 {
        self.words[THREAD].load(Ordering::Relaxed)
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
    fn counts_from(self, now: MonotonicTime, timeout: Duration) -> Option<MonotonicTime> {
        let since = self.busy_since().filter(|since| *since <= now)?;
        let until = MonotonicTime::from_nanos(self.words[EXTENDED].load(Ordering::Acquire));
        let believed = until <= now.saturating_add(EXTENSION_MAX);
        Some(if believed { since.max(until.saturating_sub(timeout)) } else { since })
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
    fn bytes_become_a_number_at_any_length() {
        let bytes = [1, 0x82, 3, 0x84, 5, 0x86, 7, 0x88];
        for length in 0..=8 {
            let expected = bytes[..length].iter().rev().fold(0, |sum, &b| sum << 8 | u64::from(b));
            assert_eq!(little_endian(&bytes[..length]), expected, "{length}");
        }
    }

    #[test]
    fn rows_and_seats_do_not_touch_each_other() {
        let board = Scoreboard::new(3, 2).unwrap();
        board.row(1).seat(1).set_busy(MonotonicTime::from_nanos(9));
        board.row(1).seat(1).set_label(b"GET /hang");
        board.row(1).set_stage(Stage::Ready);
        board.row(1).set_note("a note");
        board.row(1).set_stage(Stage::Leaving);
        assert!(board.row(1).was_ready() && !board.row(0).was_ready());
        assert_eq!(board.row(0).oldest_unit(NOW, TIMEOUT), None);
        assert_eq!(board.row(2).oldest_unit(NOW, TIMEOUT), None);
        assert_eq!(board.row(0).stage(), Stage::Booting);
        let unit =
            Unit { since: MonotonicTime::from_nanos(9), label: "GET /hang".into(), seat: 1, thread: 0 };
        assert_eq!(board.row(1).oldest_unit(NOW, TIMEOUT), Some(unit));
        assert_eq!(board.row(1).note(), "a note");
    }

    #[test]
    fn the_oldest_of_several_units_is_found_and_units_are_summed() {
        let board = Scoreboard::new(1, 3).unwrap();
        let row = board.row(0);
        row.seat(0).set_busy(MonotonicTime::from_nanos(30));
        row.seat(2).set_busy(MonotonicTime::from_nanos(20));
        row.seat(0).count_unit();
        row.seat(2).count_unit();
        assert_eq!(row.oldest_unit(NOW, TIMEOUT).map(|unit| unit.seat), Some(2));
        assert_eq!(row.units(), 2);
        row.reset();
        assert_eq!((row.oldest_unit(NOW, TIMEOUT), row.units()), (None, 0));
    }

    #[test]
    fn time_that_was_asked_for_moves_the_end_of_one_unit_and_ends_with_it() {
        let board = Scoreboard::new(1, 2).unwrap();
        let (row, second) = (board.row(0), Duration::from_secs(1));
        let (old, young) = (NOW.saturating_sub(40 * second), NOW.saturating_sub(10 * second));
        row.seat(0).set_busy(old);
        row.seat(1).set_busy(young);
        assert_eq!(row.busy_times(NOW, TIMEOUT), Some((old, young)));
        row.seat(0).extend(NOW.saturating_add(5 * second));
        assert_eq!(row.busy_times(NOW, TIMEOUT), Some((NOW.saturating_sub(25 * second), young)));
        row.seat(0).extend(NOW.saturating_add(second)); // less than it has
        assert_eq!(row.busy_times(NOW, TIMEOUT), Some((NOW.saturating_sub(25 * second), young)));
        row.seat(0).extend(NOW.saturating_add(EXTENSION_MAX));
        let unit = row.oldest_unit(NOW, TIMEOUT).unwrap();
        assert_eq!((unit.seat, unit.since), (1, young));
        row.seat(0).set_busy(old);
        assert_eq!(row.busy_times(NOW, TIMEOUT), Some((old, young)));
    }

    #[test]
    fn more_time_than_anybody_may_ask_for_is_nonsense() {
        let board = Scoreboard::new(1, 1).unwrap();
        let since = NOW.saturating_sub(TIMEOUT);
        board.row(0).seat(0).set_busy(since);
        board.row(0).seat(0).extend(NOW.saturating_add(EXTENSION_MAX + Duration::from_nanos(1)));
        assert_eq!(board.row(0).busy_times(NOW, TIMEOUT), Some((since, since)));
        board.row(0).seat(0).set_busy(NOW.saturating_add(TIMEOUT));
        assert_eq!(board.row(0).busy_times(NOW, TIMEOUT), None);
    }

    #[test]
    fn text_is_cut_and_made_printable() {
        let board = Scoreboard::new(1, 1).unwrap();
        board.row(0).set_note(&"x".repeat(500));
        assert_eq!(board.row(0).note().len(), NOTE_WORDS * 8);
        board.row(0).set_note("one\ntwo");
        assert_eq!(board.row(0).note(), "one?two");
    }
}
