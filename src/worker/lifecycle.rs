//! A worker's life as its class sees it: beat, ready, stop, units of work.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use slog::warn;

use super::tracker::{WorkGuard, WorkTracker};
use crate::heartbeat::Heartbeat;
use crate::log::{Log, error_chain};
use crate::os::signal::{self, Signal, SignalPipe};
use crate::os::{clock, file, process};
use crate::scoreboard::{Row, Scoreboard, WorkerStatus};
use crate::time::MonotonicTime;

/// Whether, and how, a worker is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StopRequest {
    /// Go on.
    None,
    /// Finish what is begun, then leave.
    Graceful,
    /// Leave now; clients see a closed connection.
    Immediate,
}

/// A worker's life. Shared by the worker's threads.
#[derive(Debug)]
pub struct Lifecycle {
    heartbeat: Heartbeat,
    timeout: Duration,
    beat_interval: Duration,
    /// When the next beat is due, in nanoseconds; the end of time if nobody listens.
    beat_due: AtomicU64,
    signals: SignalPipe,
    stop_request: AtomicU8,
    /// A pipe into which a byte is put when the worker begins to stop, and never taken out.
    stop_pipe: (OwnedFd, OwnedFd),
    orphaned: AtomicBool,
    /// How often the master has changed whose the queues are.
    reuseport_changes: AtomicU64,
    /// When the worker was told to stop, in nanoseconds; 0 before.
    stopped_at: AtomicU64,
    board: Arc<Scoreboard>,
    row: usize,
    master_wakeup: OwnedFd,
    units: AtomicU64,
    max_units: u64,
    log: Log,
}

/// What a worker is made with.
pub(crate) struct LifecycleParts {
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
    pub(crate) master_wakeup: OwnedFd,
    /// After so many units of work it asks to be replaced; zero is never.
    pub(crate) max_units: u64,
    /// Its log, to be reopened on demand.
    pub(crate) log: Log,
}

impl Lifecycle {
    /// A life.
    ///
    /// # Errors
    /// No descriptors for a pipe.
    pub(crate) fn new(parts: LifecycleParts) -> io::Result<Self> {
        let beat_interval = (parts.timeout / 10).min(Duration::from_millis(100));
        Ok(Self {
            heartbeat: parts.heartbeat,
            timeout: parts.timeout,
            beat_interval,
            beat_due: AtomicU64::new(if parts.timeout.is_zero() { u64::MAX } else { 0 }),
            signals: parts.signals,
            stop_request: AtomicU8::new(0),
            stop_pipe: file::pipe()?,
            orphaned: AtomicBool::new(false),
            reuseport_changes: AtomicU64::new(0),
            stopped_at: AtomicU64::new(0),
            board: parts.board,
            row: parts.row,
            master_wakeup: parts.master_wakeup,
            units: AtomicU64::new(0),
            max_units: parts.max_units,
            log: parts.log,
        })
    }

    /// Says that the worker can serve. To be called once the class can take clients.
    pub fn ready(&self) {
        self.notify();
        self.set_status(WorkerStatus::Ready);
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
        self.beat_due.store(now.saturating_add(self.beat_interval).as_nanos(), Ordering::Relaxed);
        // It can fail only if the file was given away, which would show as silence: as it should.
        let _ = self.heartbeat.beat(now);
    }

    /// The moment up to which a class may sleep before the next [`notify`](Self::notify): a third
    /// of `timeout` from now; `None` if nobody listens for a beat.
    pub fn next_heartbeat(&self) -> Option<MonotonicTime> {
        self.heartbeat_interval().map(|pulse| clock::now().saturating_add(pulse))
    }

    /// How long a class may sleep before the next [`notify`](Self::notify): a third of `timeout`;
    /// `None` if nobody listens for a beat.
    pub fn heartbeat_interval(&self) -> Option<Duration> {
        (!self.timeout.is_zero()).then(|| self.timeout / 3)
    }

    /// The present moment.
    pub fn now(&self) -> MonotonicTime {
        clock::now()
    }

    /// Whether the worker is to stop, as of this moment. It reads the signals, so call it when
    /// [`wake_fd`](Self::wake_fd) is readable, or now and then. The answer never softens.
    pub fn poll_stop(&self) -> StopRequest {
        signal::mark_polled();
        self.read_signals()
    }

    /// As [`stop`](Self::stop), for who serves on behalf of a class, which may never ask itself.
    pub(super) fn read_signals(&self) -> StopRequest {
        let mut request = StopRequest::None;
        for signal in self.signals.take() {
            request = request.max(match signal {
                Signal::Int | Signal::Quit => StopRequest::Immediate,
                Signal::Term => StopRequest::Graceful,
                Signal::ParentDeath => {
                    self.orphaned.store(true, Ordering::Relaxed);
                    StopRequest::Graceful
                }
                Signal::Usr1 => {
                    self.reopen_log();
                    StopRequest::None
                }
                Signal::Urg => {
                    self.reuseport_changes.fetch_add(1, Ordering::Relaxed);
                    StopRequest::None
                }
                Signal::Hup
                | Signal::Chld
                | Signal::Usr2
                | Signal::Ttin
                | Signal::Ttou
                | Signal::Winch
                | Signal::Cont => StopRequest::None,
            });
        }
        self.begin_stop(request)
    }

    /// Begins a graceful stop of the worker's own accord: the master hires a successor, and holds
    /// it to the limit of a drain as if it had asked.
    pub fn begin_graceful_stop(&self) {
        self.begin_stop(StopRequest::Graceful);
    }

    fn begin_stop(&self, request: StopRequest) -> StopRequest {
        let before = self.stop_request();
        if request > before {
            if before == StopRequest::None {
                self.stopped_at.store(clock::now().as_nanos(), Ordering::Relaxed);
            }
            self.stop_request.fetch_max(request as u8, Ordering::AcqRel);
            // It is empty, so it has room; and a beat wakes whoever misses it.
            let _ = file::wake_pipe(&self.stop_pipe.1);
            if !signal::is_aborting() {
                self.set_status(WorkerStatus::Draining); // else it does not leave, it dies
            }
        }
        request.max(before)
    }

    /// What [`stop`](Self::stop) last said, without looking for signals: for any thread, for the
    /// price of a load.
    pub fn stop_request(&self) -> StopRequest {
        match self.stop_request.load(Ordering::Acquire) {
            0 => StopRequest::None,
            1 => StopRequest::Graceful,
            _ => StopRequest::Immediate,
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
    pub(super) fn reuseport_changes(&self) -> u64 {
        self.reuseport_changes.load(Ordering::Relaxed)
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
        self.stop_pipe.0.as_fd()
    }

    /// Begins a unit of work on the first seat. Its start and its label are on the scoreboard
    /// until the guard is dropped: a unit longer than `timeout` means that the worker hangs, in
    /// this. Labels are cut to 64 bytes.
    pub fn begin_work(&self, label: &str) -> WorkGuard<'_> {
        self.begin_work_on(0, label)
    }

    /// Begins a unit of work on this seat.
    pub(super) fn begin_work_on(&self, thread: usize, label: &str) -> WorkGuard<'_> {
        WorkGuard::begin(self.board_row().thread(thread), self, label)
    }

    /// The desk of the thread with this number, 0 to [`WorkerClass::seats`] - 1, for driving
    /// clients.
    ///
    /// # Panics
    /// If there is no such seat.
    ///
    /// [`WorkerClass::seats`]: super::WorkerClass::seats
    pub fn tracker(&self, thread: usize) -> WorkTracker<'_> {
        WorkTracker::new(self.board_row().thread(thread), self)
    }

    /// Says how many clients are connected, and tells how many that would be if all workers had as
    /// many.
    pub(super) fn fair_client_share(&self, clients: usize) -> usize {
        self.board_row().set_clients(clients);
        self.board.fair_client_share()
    }

    /// Ends the worker at once, with code 0 and without waiting for its other threads. For a class
    /// that was told [`Stop::Now`] and whose threads may be stuck.
    pub fn exit_now(&self) -> ! {
        process::exit_immediately(0)
    }

    /// Leaves a word for the master's record of this worker's end: why it hung, crashed or could not
    /// boot. Cut to 192 bytes; the last word counts.
    pub fn set_exit_note(&self, why: &str) {
        self.board_row().set_exit_note(why);
    }

    /// How many records of this process the log has dropped, since it never waits.
    pub fn records_dropped(&self) -> u64 {
        self.log.dropped()
    }

    /// Counts a unit of work, and asks for a successor after the last one.
    pub(super) fn on_unit_done(&self) {
        if self.max_units == 0 {
            return;
        }
        let units = self.units.fetch_add(1, Ordering::Relaxed) + 1;
        if units == self.max_units && self.stop_request() == StopRequest::None {
            self.set_status(WorkerStatus::ReplacementRequested);
        }
    }

    fn reopen_log(&self) {
        if let Err(error) = self.log.reopen() {
            warn!(self.log.logger(), "failed to reopen log"; "error" => error_chain(&error));
        }
    }

    fn board_row(&self) -> Row<'_> {
        self.board.row(self.row)
    }

    /// Puts a stage on the board and rings the master's bell.
    fn set_status(&self, status: WorkerStatus) {
        self.board_row().set_status(status);
        // A full pipe is as good: the master has not looked yet. A broken one: there is no master.
        let _: Result<usize, io::Error> = file::wake_pipe(&self.master_wakeup);
    }
}

impl AsFd for Lifecycle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake_fd()
    }
}
