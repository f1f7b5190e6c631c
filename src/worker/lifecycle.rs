//! A worker's lifecycle as its class sees it: heartbeats, readiness, stop requests, units of work.

mod beats;
mod requests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use slog::warn;

use super::access::WorkerAccess;
use super::entry_owners::EntryOwners;
use crate::app::{RequestId, Unit};
use crate::heartbeat::{Heartbeat, SILENT_AFTER};
use crate::log::access::UnitRecord;
use crate::log::{Log, error_chain};
use crate::os::signal::{self, Signal, SignalPipe};
use crate::os::{clock, file, process};
use crate::scoreboard::{ClientShare, Row, Scoreboard, UnitTimeout, WorkerStatus};
use crate::time::MonotonicTime;
use beats::Beats;
use requests::MasterRequests;

/// Whether, and how, a worker has been asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StopRequest {
    /// Keep serving.
    None,
    /// Drain: finish what has begun, then return.
    Graceful,
    /// Return now; clients see a closed connection.
    Immediate,
}

/// A worker's lifecycle. The worker's threads share it.
#[derive(Debug)]
pub struct Lifecycle {
    beats: Beats,
    signals: SignalPipe,
    stop: Stop,
    requests: MasterRequests,
    board: Arc<Scoreboard>,
    row: usize,
    entry_owners: EntryOwners,
    master_wakeup: OwnedFd,
    units: AtomicU64,
    max_units: u64,
    log: Log,
    access: WorkerAccess,
}

/// What is known of the stop.
#[derive(Debug)]
struct Stop {
    request: AtomicU8,
    /// A pipe into which a byte is put when the stop begins, and never taken out.
    pipe: (OwnedFd, OwnedFd),
    orphaned: AtomicBool,
    /// When it began, in nanoseconds; 0 before.
    since: AtomicU64,
}

/// The parts of a lifecycle.
pub(crate) struct LifecycleParts {
    /// The heartbeat file.
    pub(crate) heartbeat: Heartbeat,
    /// The longest silence and the longest unit of work; zero is no limit.
    pub(crate) timeout: Duration,
    /// Whether the number of workers follows the load: then a worker that is silent for a second counts as
    /// busy.
    pub(crate) is_scaled: bool,
    /// The caught signals.
    pub(crate) signals: SignalPipe,
    /// The pool's scoreboard.
    pub(crate) board: Arc<Scoreboard>,
    /// The worker's row on it.
    pub(crate) row: usize,
    /// A pipe: a byte in it makes the master read the scoreboard.
    pub(crate) master_wakeup: OwnedFd,
    /// After how many units of work the worker asks to be replaced; zero is never.
    pub(crate) max_units: u64,
    /// The log, which SIGUSR1 reopens.
    pub(crate) log: Log,
    /// The ids of requests, and the access log.
    pub(crate) access: WorkerAccess,
}

impl Lifecycle {
    /// Creates the lifecycle of this process.
    ///
    /// # Errors
    /// There are no descriptors for a pipe.
    pub(crate) fn new(parts: LifecycleParts) -> io::Result<Self> {
        let LifecycleParts { heartbeat, timeout, .. } = parts;
        let interval =
            if parts.is_scaled { (timeout / 3).min(SILENT_AFTER / 4) } else { timeout / 3 };
        let due = AtomicU64::new(if timeout.is_zero() { u64::MAX } else { 0 });
        let unit_timeout = UnitTimeout::new(timeout);
        let dropped_before = parts.log.dropped();
        let min_gap = (timeout / 10).min(Duration::from_millis(100));
        Ok(Self {
            beats: Beats {
                heartbeat,
                timeout,
                interval,
                unit_timeout,
                min_gap,
                due,
                dropped_before,
            },
            signals: parts.signals,
            stop: Stop {
                request: AtomicU8::new(0),
                pipe: file::pipe()?,
                orphaned: AtomicBool::new(false),
                since: AtomicU64::new(0),
            },
            requests: MasterRequests::default(),
            entry_owners: EntryOwners::new(parts.board.threads_per_row()),
            board: parts.board,
            row: parts.row,
            master_wakeup: parts.master_wakeup,
            units: AtomicU64::new(0),
            max_units: parts.max_units,
            log: parts.log,
            access: parts.access,
        })
    }

    /// Reports that the worker can serve. Call it once the class can accept clients.
    pub fn ready(&self) {
        self.notify();
        self.set_status(WorkerStatus::Ready);
    }

    /// Sends a heartbeat if one is due. Call it on every turn of the class's loop: it costs a system
    /// call at most once in a tenth of `timeout`, or in 100 ms if that is less, and a comparison
    /// otherwise. While a unit of work is in progress, `timeout` counts from its start, and heartbeats
    /// prove nothing.
    pub fn notify(&self) {
        if !self.beats.timeout.is_zero() {
            self.notify_at(clock::now_coarse());
        }
    }

    /// Sends a heartbeat if one is due at `now`.
    #[inline]
    pub(super) fn notify_at(&self, now: MonotonicTime) {
        if now >= MonotonicTime::from_nanos(self.beats.due.load(Ordering::Relaxed)) {
            self.beats.send(now);
            let dropped = self.log.dropped().saturating_sub(self.beats.dropped_before);
            self.board_row().worker_counters().set_records_dropped(dropped);
        }
    }

    /// Returns until when a class may sleep before it must call [`notify`](Self::notify) again: one
    /// [`heartbeat_interval`](Self::heartbeat_interval) from now; `None` if `timeout` is 0.
    pub fn next_heartbeat(&self) -> Option<MonotonicTime> {
        self.heartbeat_interval().map(|interval| clock::now().saturating_add(interval))
    }

    /// Returns how long a class may sleep before it must call [`notify`](Self::notify) again: a third
    /// of `timeout`, and at most 250 ms if the number of workers follows the load; `None` if `timeout` is 0.
    pub fn heartbeat_interval(&self) -> Option<Duration> {
        (!self.beats.timeout.is_zero()).then_some(self.beats.interval)
    }

    /// Returns the present time.
    pub fn now(&self) -> MonotonicTime {
        clock::now()
    }

    /// The longest lag of [`now_coarse`](Self::now_coarse).
    pub const COARSE_LAG: Duration = clock::COARSE_LAG;

    /// Returns a time that is at most [`COARSE_LAG`](Self::COARSE_LAG) ago, usually 4 ms, at a fraction of the
    /// cost of [`now`](Self::now).
    pub fn now_coarse(&self) -> MonotonicTime {
        clock::now_coarse()
    }

    /// Processes the signals that have arrived, and returns whether the worker must stop. Call it when
    /// [`wake_fd`](Self::wake_fd) is readable, or on each turn. The answer never softens.
    ///
    /// Processing means: it empties the signal pipe, reopens the log on SIGUSR1, and when a stop begins
    /// it writes *draining* to the scoreboard and wakes the master. The first call also declares that
    /// this class polls for a stop: from then on the runtime does not drain the worker by force.
    pub fn poll_stop(&self) -> StopRequest {
        signal::mark_polled();
        self.process_signals()
    }

    /// Processes the signals as [`poll_stop`](Self::poll_stop) does, on behalf of a class that may
    /// never poll for a stop itself.
    pub(super) fn process_signals(&self) -> StopRequest {
        let mut request = StopRequest::None;
        for signal in self.signals.take() {
            request = request.max(match signal {
                Signal::Int | Signal::Quit => StopRequest::Immediate,
                Signal::Term => StopRequest::Graceful,
                Signal::ParentDeath => {
                    self.stop.orphaned.store(true, Ordering::Relaxed);
                    StopRequest::Graceful
                }
                Signal::Usr1 => {
                    self.reopen_log();
                    StopRequest::None
                }
                Signal::Urg => {
                    self.requests.on_sigurg(self.board.drain_mode(self.row));
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

    /// Returns the id of the request with this number: 32 hexadecimal digits, different for each number
    /// and each worker.
    pub fn request_id(&self, number: u64) -> RequestId {
        self.access.id_of(number)
    }

    /// Returns whether units of work are logged.
    pub fn logs_units(&self) -> bool {
        self.access.log().is_some()
    }

    /// Begins the record of a unit of work whose response has begun. For a class whose threads work on
    /// several units in turn: the record is written when it is ended or dropped. Returns `None` if the
    /// unit is not logged.
    pub fn begin_record(&self, unit: &Unit<'_>, started_at: MonotonicTime) -> Option<UnitRecord> {
        self.access.begin_record(unit, started_at)
    }

    /// Returns a number that no other request of the worker has. A thread with a tracker calls
    /// [`WorkTracker::new_request_number`](super::WorkTracker::new_request_number): threads do not wait
    /// for each other there.
    pub fn new_request_number(&self) -> u64 {
        self.access.new_numbers()
    }

    /// Begins a graceful stop of the worker's own accord. The master starts a replacement, and bounds
    /// the drain by `graceful_timeout` as if it had sent SIGTERM.
    pub fn begin_graceful_stop(&self) {
        self.begin_stop(StopRequest::Graceful);
    }

    fn begin_stop(&self, request: StopRequest) -> StopRequest {
        let before = self.stop_request();
        if request > before {
            if before == StopRequest::None {
                self.stop.since.store(clock::now().as_nanos(), Ordering::Relaxed);
            }
            self.stop.request.fetch_max(request as u8, Ordering::AcqRel);
            // It has room, since it is empty; and a thread that misses the byte wakes for a heartbeat.
            let _ = file::wake_pipe(&self.stop.pipe.1);
            if !signal::is_aborting() {
                self.set_status(WorkerStatus::Draining); // an aborted worker dies, it does not drain
            }
        }
        request.max(before)
    }

    /// Returns what [`poll_stop`](Self::poll_stop) returned last, without processing signals: for any
    /// thread, at the cost of a load.
    pub fn stop_request(&self) -> StopRequest {
        match self.stop.request.load(Ordering::Acquire) {
            0 => StopRequest::None,
            1 => StopRequest::Graceful,
            _ => StopRequest::Immediate,
        }
    }

    /// Returns how long the worker has been stopping; zero if it is not.
    pub fn stopping_for(&self) -> Duration {
        self.stopping_since().map_or(Duration::ZERO, |since| clock::now().duration_since(since))
    }

    /// Returns since when the worker has been stopping; `None` if it is not.
    pub fn stopping_since(&self) -> Option<MonotonicTime> {
        match self.stop.since.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(MonotonicTime::from_nanos(nanos)),
        }
    }

    /// Returns whether the master has died. Then no other worker serves after this one.
    pub fn is_orphaned(&self) -> bool {
        self.stop.orphaned.load(Ordering::Relaxed)
    }

    /// Returns whether the worker is in drain mode: it accepts no clients, finishes those that it has, and
    /// stays. The acceptors see to the first. By the signals that were processed, for any thread, at the
    /// cost of a load.
    pub fn is_in_drain_mode(&self) -> bool {
        self.requests.drain_mode().is_on()
    }

    /// Returns whether the worker finishes the clients that it has: it stops gracefully, or is in drain
    /// mode. Call [`Client::drain`](super::Client::drain) for each client then.
    pub fn drains_clients(&self) -> bool {
        self.stop_request() == StopRequest::Graceful || self.is_in_drain_mode()
    }

    /// Reports whether the worker is drained: it is in drain mode, and has no clients.
    pub(super) fn report_drained(&self, is_drained: bool) {
        if let Some(mode) = self.requests.set_drained(is_drained) {
            self.board_row().set_drained_for(mode);
            self.wake_master();
        }
    }

    /// Returns how often the master has changed which queues are assigned to which workers, by the
    /// signals that were processed.
    pub(super) fn rechecks_requested(&self) -> u64 {
        self.requests.rechecks()
    }

    /// Returns the descriptor that is readable when [`poll_stop`](Self::poll_stop) has signals to
    /// process. It has no effect: a class counts as polling from its first `poll_stop` on. So call that
    /// once before the first sleep, and act on it as you do when this is readable.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }

    /// Returns the descriptor that is readable, for good, once the worker is stopping: for threads
    /// that wait while another processes the signals.
    pub fn stop_fd(&self) -> BorrowedFd<'_> {
        self.stop.pipe.0.as_fd()
    }

    /// Publishes how many clients the worker has, for a class that does not call
    /// [`Acceptor::poll`](super::Acceptor::poll) when one ends.
    pub fn set_client_count(&self, count: usize) {
        self.board_row().set_clients(count);
    }

    /// Publishes how many clients the worker has, and returns its share of all of them.
    pub(super) fn publish_clients(&self, count: usize) -> ClientShare {
        self.board_row().set_clients(count);
        self.board.fair_client_share()
    }

    /// Exits at once with code 0, without waiting for the other threads. For a class that was asked to
    /// stop by [`StopRequest::Immediate`] and whose threads may be stuck.
    pub fn exit_now(&self) -> ! {
        process::exit_immediately(0)
    }

    /// Sets the note that the master logs when this worker exits: why it hung, crashed or failed to
    /// boot. It is cut to 192 bytes; the last note counts.
    pub fn set_exit_note(&self, why: &str) {
        self.board_row().set_exit_note(why);
    }

    /// Sets what the worker is doing, in words, for the record of its hang. It is cut to 192 bytes; the
    /// last text counts.
    pub fn set_status_text(&self, text: &str) {
        self.board_row().set_status_text(text);
    }

    /// Returns how many log records of this process were dropped, since the log never waits.
    pub fn records_dropped(&self) -> u64 {
        self.log.dropped()
    }

    /// Counts a client that was accepted and is closed without being served, since the class has no
    /// resources for it.
    pub fn count_refused_client(&self) {
        self.board_row().worker_counters().add_refused();
    }

    /// Returns how long a unit of work may take.
    pub(super) fn unit_timeout(&self) -> UnitTimeout {
        self.beats.unit_timeout
    }

    /// Counts a unit of work, and asks for a replacement after the last one.
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
        if let Some(Err(error)) = self.access.log().map(|log| log.reopen()) {
            warn!(self.log.logger(), "failed to reopen access log"; "error" => error_chain(&error));
        }
    }

    /// Returns the ids of requests, and the access log.
    pub(super) fn access(&self) -> &WorkerAccess {
        &self.access
    }

    pub(super) fn board_row(&self) -> Row<'_> {
        self.board.row(self.row)
    }

    pub(super) fn entry_owners(&self) -> &EntryOwners {
        &self.entry_owners
    }

    /// Writes a status to the scoreboard, and wakes the master to read it.
    fn set_status(&self, status: WorkerStatus) {
        self.board_row().set_status(status);
        self.wake_master();
    }

    /// Has the master read the scoreboard.
    fn wake_master(&self) {
        // A full pipe wakes the master too, and a broken one has no master.
        let _ = file::wake_pipe(&self.master_wakeup);
    }
}

impl AsFd for Lifecycle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake_fd()
    }
}
