//! A worker's life as its class sees it: beat, ready, stop, units of work.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use slog::warn;

use super::tracker::{Desk, Work};
use crate::heartbeat::Heartbeat;
use crate::log::{Log, error_chain};
use crate::os::signal::{self, Signal, SignalPipe};
use crate::os::{clock, file, process};
use crate::scoreboard::{Row, Scoreboard, WorkerStatus};
use crate::time::MonotonicTime;

/// Whether, and how, a worker is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// Go on.
    None,
    /// Finish what is begun, then leave.
    Graceful,
    /// Leave now; clients see a closed connection.
    Now,
}

/// A worker's life. Shared by the worker's threads.
#[derive(Debug)]
pub struct Lifecycle {
    heartbeat: Heartbeat,
    timeout: Duration,
    beat_every: Duration,
    /// When the next beat is due, in nanoseconds; the end of time if nobody listens.
    beat_due: AtomicU64,
    signals: SignalPipe,
    stop: AtomicU8,
    /// A pipe into which a byte is put when the worker begins to stop, and never taken out.
    stop_sign: (OwnedFd, OwnedFd),
    orphaned: AtomicBool,
    /// How often the master has changed whose the queues are.
    moves: AtomicU64,
    /// When the worker was told to stop, in nanoseconds; 0 before.
    stopped_at: AtomicU64,
    board: Arc<Scoreboard>,
    row: usize,
    doorbell: OwnedFd,
    units: AtomicU64,
    units_max: u64,
    log: Log,
}

/// What a worker is made with.
pub(crate) struct Terms {
    /// Its sign of life.
    pub(crate) heartbeat: Heartbeat,
    /// The longest silence and the longest unit of work; zero is for ever.
    pub(crate) timeout: Duration,
    /// Its signals.
    pub(crate) signals: SignalPipe,
    /// Its board.
    pub(crate) board: Arc<Scoreboard>,
    /// Its row on it.
    pub(crate) row: usize,
    /// A pipe: a byte in it makes the master look at the board.
    pub(crate) doorbell: OwnedFd,
    /// After so many units of work it asks to be replaced; zero is never.
    pub(crate) units_max: u64,
    /// Its log, to be reopened on demand.
    pub(crate) log: Log,
}

impl Lifecycle {
    /// A life.
    ///
    /// # Errors
    /// No descriptors for a pipe.
    pub(crate) fn new(terms: Terms) -> io::Result<Self> {
        let beat_every = (terms.timeout / 10).min(Duration::from_millis(100));
        Ok(Self {
            heartbeat: terms.heartbeat,
            timeout: terms.timeout,
            beat_every,
            beat_due: AtomicU64::new(if terms.timeout.is_zero() { u64::MAX } else { 0 }),
            signals: terms.signals,
            stop: AtomicU8::new(0),
            stop_sign: file::pipe()?,
            orphaned: AtomicBool::new(false),
            moves: AtomicU64::new(0),
            stopped_at: AtomicU64::new(0),
            board: terms.board,
            row: terms.row,
            doorbell: terms.doorbell,
            units: AtomicU64::new(0),
            units_max: terms.units_max,
            log: terms.log,
        })
    }

    /// Says that the worker can serve. To be called once the class can take clients.
    pub fn ready(&self) {
        self.notify();
        self.tell(WorkerStatus::Ready);
    }

    /// Says that the worker lives. To be called on every turn of the class's loop: it costs a
    /// system call at most once in a tenth of `timeout` or 100 ms, and a comparison otherwise.
    pub fn notify(&self) {
        if !self.timeout.is_zero() {
            self.notify_at(clock::now_coarse());
        }
    }

    /// As [`notify`](Self::notify), for who has just looked at the clock.
    #[inline]
    pub(super) fn notify_at(&self, now: MonotonicTime) {
        if now >= MonotonicTime::from_nanos(self.beat_due.load(Ordering::Relaxed)) {
            self.beat(now);
        }
    }

    #[cold] // as seen from a loop that turns a million times a second
    fn beat(&self, now: MonotonicTime) {
        self.beat_due.store(now.saturating_add(self.beat_every).as_nanos(), Ordering::Relaxed);
        // It can fail only if the file was given away, which would show as silence: as it should.
        let _ = self.heartbeat.beat(now);
    }

    /// The moment up to which a class may sleep before the next [`notify`](Self::notify): a third
    /// of `timeout` from now; `None` if nobody listens for a beat.
    pub fn next_beat(&self) -> Option<MonotonicTime> {
        self.pulse().map(|pulse| clock::now().saturating_add(pulse))
    }

    /// How long a class may sleep before the next [`notify`](Self::notify): a third of `timeout`;
    /// `None` if nobody listens for a beat.
    pub fn pulse(&self) -> Option<Duration> {
        (!self.timeout.is_zero()).then(|| self.timeout / 3)
    }

    /// The present moment.
    pub fn now(&self) -> MonotonicTime {
        clock::now()
    }

    /// Whether the worker is to stop, as of this moment. It reads the signals, so call it when
    /// [`wake_fd`](Self::wake_fd) is readable, or now and then. The answer never softens.
    pub fn stop(&self) -> Stop {
        signal::mark_polled();
        self.hear()
    }

    /// As [`stop`](Self::stop), for who serves on behalf of a class, which may never ask itself.
    pub(super) fn hear(&self) -> Stop {
        let mut wish = Stop::None;
        for signal in self.signals.take() {
            wish = wish.max(match signal {
                Signal::Int | Signal::Quit => Stop::Now,
                Signal::Term => Stop::Graceful,
                Signal::ParentDeath => {
                    self.orphaned.store(true, Ordering::Relaxed);
                    Stop::Graceful
                }
                Signal::Usr1 => {
                    self.reopen_log();
                    Stop::None
                }
                Signal::Urg => {
                    self.moves.fetch_add(1, Ordering::Relaxed);
                    Stop::None
                }
                Signal::Hup
                | Signal::Chld
                | Signal::Usr2
                | Signal::Ttin
                | Signal::Ttou
                | Signal::Winch
                | Signal::Cont => Stop::None,
            });
        }
        self.begin_stop(wish)
    }

    /// Begins a graceful stop of the worker's own accord: the master hires a successor, and holds
    /// it to the limit of a drain as if it had asked.
    pub fn retire(&self) {
        self.begin_stop(Stop::Graceful);
    }

    fn begin_stop(&self, wish: Stop) -> Stop {
        let before = self.stopping();
        if wish > before {
            if before == Stop::None {
                self.stopped_at.store(clock::now().as_nanos(), Ordering::Relaxed);
            }
            self.stop.fetch_max(wish as u8, Ordering::AcqRel);
            // It is empty, so it has room; and a beat wakes whoever misses it.
            let _ = file::wake_pipe(&self.stop_sign.1);
            if !signal::is_aborting() {
                self.tell(WorkerStatus::Draining); // else it does not leave, it dies
            }
        }
        wish.max(before)
    }

    /// What [`stop`](Self::stop) last said, without looking for signals: for any thread, for the
    /// price of a load.
    pub fn stopping(&self) -> Stop {
        match self.stop.load(Ordering::Acquire) {
            0 => Stop::None,
            1 => Stop::Graceful,
            _ => Stop::Now,
        }
    }

    /// For how long the worker has been stopping; zero if it is not.
    pub fn stopping_for(&self) -> Duration {
        self.stopping_since().map_or(Duration::ZERO, |since| clock::now().duration_since(since))
    }

    /// Since when the worker has been stopping; `None` if it is not.
    pub fn stopping_since(&self) -> Option<MonotonicTime> {
        match self.stopped_at.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(MonotonicTime::from_nanos(nanos)),
        }
    }

    /// Whether the master has died. The worker is the last of its house then.
    pub fn is_orphaned(&self) -> bool {
        self.orphaned.load(Ordering::Relaxed)
    }

    /// How often the master has changed whose the queues are, as far as [`stop`](Self::stop) has
    /// seen.
    pub(super) fn moves(&self) -> u64 {
        self.moves.load(Ordering::Relaxed)
    }

    /// Readable when [`stop`](Self::stop) may have something new to say.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        signal::mark_polled();
        self.signals.as_fd()
    }

    /// As [`wake_fd`](Self::wake_fd), for who serves on behalf of a class.
    pub(super) fn signal_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }

    /// Readable for good once the worker is stopping: for threads that wait, when another may have
    /// taken the signal.
    pub fn stop_fd(&self) -> BorrowedFd<'_> {
        self.stop_sign.0.as_fd()
    }

    /// Begins a unit of work on the first seat. Its start and its label are on the scoreboard
    /// until the guard is dropped: a unit longer than `timeout` means that the worker hangs, in
    /// this. Labels are cut to 64 bytes.
    pub fn begin(&self, label: &str) -> Work<'_> {
        self.begin_at(0, label)
    }

    /// Begins a unit of work on this seat.
    pub(super) fn begin_at(&self, seat: usize, label: &str) -> Work<'_> {
        Work::begin(self.board_row().thread(seat), self, label)
    }

    /// The desk of the thread with this number, 0 to [`WorkerClass::seats`] - 1, for driving
    /// clients.
    ///
    /// # Panics
    /// If there is no such seat.
    ///
    /// [`WorkerClass::seats`]: super::WorkerClass::seats
    pub fn desk(&self, seat: usize) -> Desk<'_> {
        Desk::new(self.board_row().thread(seat), self)
    }

    /// Says how many clients are connected, and tells how many that would be if all workers had as
    /// many.
    pub(super) fn fair_share(&self, clients: usize) -> usize {
        self.board_row().set_clients(clients);
        self.board.fair_client_share()
    }

    /// Ends the worker at once, with code 0 and without waiting for its other threads. For a class
    /// that was told [`Stop::Now`] and whose threads may be stuck.
    pub fn leave(&self) -> ! {
        process::exit_immediately(0)
    }

    /// Leaves a word for the master's record of this worker's end: why it hung, crashed or could not
    /// boot. Cut to 192 bytes; the last word counts.
    pub fn note(&self, why: &str) {
        self.board_row().set_exit_note(why);
    }

    /// How many records of this process the log has dropped, since it never waits.
    pub fn records_dropped(&self) -> u64 {
        self.log.dropped()
    }

    /// Counts a unit of work, and asks for a successor after the last one.
    pub(super) fn unit_done(&self) {
        if self.units_max == 0 {
            return;
        }
        let units = self.units.fetch_add(1, Ordering::Relaxed) + 1;
        if units == self.units_max && self.stopping() == Stop::None {
            self.tell(WorkerStatus::ReplacementRequested);
        }
    }

    fn reopen_log(&self) {
        if let Err(error) = self.log.reopen() {
            warn!(self.log.logger(), "log cannot be reopened"; "error" => error_chain(&error));
        }
    }

    fn board_row(&self) -> Row<'_> {
        self.board.row(self.row)
    }

    /// Puts a stage on the board and rings the master's bell.
    fn tell(&self, stage: WorkerStatus) {
        self.board_row().set_status(stage);
        // A full pipe is as good: the master has not looked yet. A broken one: there is no master.
        let _: Result<usize, io::Error> = file::wake_pipe(&self.doorbell);
    }
}

impl AsFd for Lifecycle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake_fd()
    }
}
