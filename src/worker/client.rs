//! A client: its socket and its session, and how far one turn drives them.

mod completion;
mod waiting;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::context::WorkerContext;
use super::lifecycle::{Lifecycle, StopRequest};
use super::no_service::ClosedConnection;
use super::tracker::WorkTracker;
use crate::app::ClientInfo;
use crate::listen::Stream;
use crate::log::access::{ClientOutput, UnsentRecords};
use crate::os::clock;
use crate::os::poll::{self, Interest};
use crate::session::{CloseRisk, Session, Wants};
use crate::settings::Settings;
use crate::time::MonotonicTime;
pub use completion::CompletionClient;

/// How many bytes are received in one piece.
const INPUT_BYTES: usize = 64 << 10;
/// How many steps one client may take before others have their turn. After a long unit of work, they have
/// it at once.
const ROUNDS_MAX: usize = 16;

/// One connected client.
pub struct Client<'s> {
    stream: Stream,
    session: Session<'s>,
    drained: bool,
    /// Whether the socket's sending side was shut down, for a lingering close.
    write_shut: bool,
    /// Records of the access log that wait until the output has been sent.
    records: Option<Box<UnsentRecords>>,
}

/// Where [`Client::drive`] stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriveStatus {
    /// The client waits for bytes.
    WantRead,
    /// The client waits for room for output.
    WantWrite,
    /// The client could continue at once, but others must have their turn.
    Yield,
    /// The connection is closed.
    Closed,
}

/// How much of the input that has arrived a turn must read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadMode {
    /// Until `EAGAIN`. For an edge-triggered event that reports the end of the stream, which is not
    /// reported twice.
    UntilWouldBlock,
    /// Until a read does not fill the buffer: later input causes another event.
    UntilShortRead,
}

/// The buffers that the clients of one thread share.
pub struct Buffers {
    input: Box<[u8]>,
    spare: Vec<u8>,
    /// More buffers like `spare`, for clients whose output is sent in one submission.
    kept: Vec<Vec<u8>>,
}

impl Default for Buffers {
    fn default() -> Self {
        let input = vec![0; INPUT_BYTES].into_boxed_slice();
        Self { input, spare: Vec::new(), kept: Vec::new() }
    }
}

impl<'a> WorkerContext<'a> {
    /// Opens a session of the service for a client that has just been accepted. `allow_keepalive`
    /// tells the service whether the class can serve several units of work over one connection.
    pub fn new_client(
        &self,
        stream: Stream,
        address: Option<SocketAddr>,
        allow_keepalive: bool,
    ) -> Client<'a> {
        let service = self.service();
        let client = ClientInfo { address, allow_keepalive };
        // A panic costs this client its connection, and no other anything.
        let accepted = catch_unwind(AssertUnwindSafe(|| service.accept(&client)));
        let connection = accepted.unwrap_or_else(|_| {
            self.lifecycle.count_refused_client();
            Box::new(ClosedConnection)
        });
        let settings = self.settings;
        let session = Session::new(connection, settings.write_timeout, clock::now())
            .with_lingering_close(settings.lingering_timeout, settings.lingering_bytes);
        Client::new(stream, session)
    }
}

impl<'s> Client<'s> {
    pub(super) fn new(stream: Stream, session: Session<'s>) -> Self {
        Self { stream, session, drained: false, write_shut: false, records: None }
    }

    /// Creates a client whose connection is closed without cutting off what was sent.
    pub(super) fn lingering(stream: Stream, settings: &Settings) -> Self {
        let now = clock::now();
        let mut session = Session::new(Box::new(ClosedConnection), Duration::ZERO, now)
            .with_lingering_close(settings.lingering_timeout, settings.lingering_bytes);
        session.linger(now);
        Self::new(stream, session)
    }

    /// Returns when [`expire`](Self::expire) is due, if nothing happens before.
    pub fn deadline(&self) -> Option<MonotonicTime> {
        self.session.deadline()
    }

    /// Receives, calls the service and sends, as far as possible without waiting.
    pub fn drive(
        &mut self,
        mode: ReadMode,
        buffers: &mut Buffers,
        tracker: &mut WorkTracker<'_>,
    ) -> DriveStatus {
        self.restore_records(tracker);
        let status = self.advance(mode, buffers, tracker);
        self.settle_records(tracker);
        status
    }

    /// Makes the records that wait those of the thread that drives the client now.
    #[inline]
    fn restore_records(&mut self, tracker: &mut WorkTracker<'_>) {
        if let Some(records) = self.records.take()
            && let Some(log) = tracker.unit_log()
        {
            log.restore(*records);
        }
    }

    /// Writes the records of units whose output has been sent, and keeps the others.
    #[inline]
    fn settle_records(&mut self, tracker: &mut WorkTracker<'_>) {
        if tracker.has_records()
            && let Some(log) = tracker.unit_log()
        {
            let output = match (self.session.wants(), self.session.unsent().len()) {
                (Wants::Closed, _) => ClientOutput::Closed(self.session.lost_bytes() as u64),
                (_, 0) => ClientOutput::Sent,
                (_, unsent) => ClientOutput::Waiting(unsent as u64),
            };
            self.records = log.settle(output).map(Box::new);
        }
    }

    fn advance(
        &mut self,
        mode: ReadMode,
        buffers: &mut Buffers,
        tracker: &mut WorkTracker<'_>,
    ) -> DriveStatus {
        let Buffers { input, spare, .. } = buffers;
        let mut drained_input = false;
        tracker.begin_turn();
        for _ in 0..ROUNDS_MAX {
            let moved = match self.session.wants() {
                Wants::Closed if self.may_close() => return DriveStatus::Closed,
                Wants::Closed => Ok(()),
                Wants::Write => self
                    .stream
                    .send(self.session.unsent())
                    .map(|n| self.report_sent(n, spare, tracker)),
                Wants::Read if drained_input => return DriveStatus::WantRead,
                Wants::Read if tracker.must_yield() => return DriveStatus::Yield,
                wants @ (Wants::Read | Wants::Linger) => {
                    if wants == Wants::Linger {
                        self.shut_write();
                    }
                    self.stream.receive(input).map(|n| {
                        drained_input =
                            mode == ReadMode::UntilShortRead && 0 < n && n < input.len();
                        if wants == Wants::Read {
                            tracker.count_received(n);
                        }
                        self.session.on_received(&input[..n], spare, tracker, clock::now());
                    })
                }
            };
            match moved {
                Ok(()) if self.session.is_paused() => return DriveStatus::Yield,
                Ok(()) => (),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return match self.session.wants() {
                        Wants::Write => DriveStatus::WantWrite,
                        Wants::Read | Wants::Linger => DriveStatus::WantRead,
                        Wants::Closed => DriveStatus::Closed,
                    };
                }
                Err(_) => self.session.abort(),
            }
        }
        match self.session.wants() {
            Wants::Closed if self.may_close() => DriveStatus::Closed,
            _ => DriveStatus::Yield,
        }
    }

    /// Tells the session what was sent. If others must have their turn now, it pauses after its output.
    #[inline]
    fn report_sent(&mut self, count: usize, spare: &mut Vec<u8>, tracker: &mut WorkTracker<'_>) {
        tracker.count_sent(count);
        if !(tracker.must_yield() && self.session.pause_after(count)) {
            self.session.on_sent(count, spare, tracker, clock::now_coarse());
        }
    }

    /// Returns whether the socket may be closed now that the session has ended. If that could cut off
    /// output, the session lingers instead.
    fn may_close(&mut self) -> bool {
        let lingers = match self.session.close_risk() {
            CloseRisk::None => false,
            CloseRisk::Unread => self.stream.has_unread(),
            CloseRisk::UnreadOrUnacknowledged => {
                self.stream.has_unread() || self.stream.has_unacknowledged()
            }
        };
        if lingers {
            self.session.linger(clock::now());
        }
        !lingers
    }

    /// Shuts down the socket's sending side, once.
    fn shut_write(&mut self) {
        if !std::mem::replace(&mut self.write_shut, true) {
            self.stream.shutdown_write();
        }
    }

    /// Returns whether all output has been sent, and the input is only discarded.
    pub(super) fn is_lingering(&self) -> bool {
        self.session.wants() == Wants::Linger
    }

    /// Discards the input of a lingering client. Returns whether its socket can be closed.
    pub(super) fn discard_input(&mut self, buffer: &mut [u8], now: MonotonicTime) -> bool {
        self.shut_write();
        for _ in 0..ROUNDS_MAX {
            match self.stream.receive(buffer) {
                Ok(length) => self.session.on_discarded(length, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.is_due(now) {
                        self.session.abort();
                    }
                    break;
                }
                Err(_) => self.session.abort(),
            }
            if !self.is_lingering() {
                break;
            }
        }
        !self.is_lingering()
    }

    /// Tells the session that its deadline has passed, and returns whether it has. If so, call
    /// [`drive`](Self::drive) next. Bytes and room for output that are there by now count as in time,
    /// since the worker may be late.
    pub fn expire(
        &mut self,
        now: MonotonicTime,
        buffers: &mut Buffers,
        tracker: &mut WorkTracker<'_>,
    ) -> bool {
        if !self.is_due(now) {
            return false;
        }
        self.restore_records(tracker);
        let Buffers { input, spare, .. } = buffers;
        let moved = match self.session.wants() {
            wants @ (Wants::Read | Wants::Linger) => self.stream.receive(input).map(|n| {
                if wants == Wants::Read {
                    tracker.count_received(n);
                }
                self.session.on_received(&input[..n], spare, tracker, clock::now());
            }),
            Wants::Write => self.stream.send(self.session.unsent()).map(|n| {
                tracker.count_sent(n);
                self.session.on_sent(n, spare, tracker, now);
            }),
            Wants::Closed => Ok(()),
        };
        if moved.is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock) {
            self.session.abort();
        }
        if self.is_due(now) {
            self.session.on_timeout(&mut buffers.spare, tracker, now);
        }
        self.settle_records(tracker);
        true
    }

    fn is_due(&self, now: MonotonicTime) -> bool {
        self.session.deadline().is_some_and(|deadline| deadline <= now)
    }

    /// Tells the session, once, that the worker drains. Call [`drive`](Self::drive) next.
    pub fn drain(&mut self, buffers: &mut Buffers, tracker: &mut WorkTracker<'_>) {
        if !self.drained {
            self.drained = true;
            self.restore_records(tracker);
            self.session.drain(&mut buffers.spare, tracker, clock::now());
            self.settle_records(tracker);
        }
    }

    /// Returns whether the session has been told that the worker drains.
    pub fn is_drained(&self) -> bool {
        self.drained
    }

    /// Serves the client until its connection is closed, and sends heartbeats meanwhile. A graceful stop
    /// and the drain mode drain the client; an immediate stop closes it.
    pub fn serve(&mut self, ctx: &WorkerContext<'_>) {
        let (lifecycle, mut tracker) =
            (ctx.lifecycle(), ctx.lifecycle().tracker().with_heartbeat());
        self.serve_with(lifecycle, &mut Buffers::default(), &mut tracker);
    }

    /// Serves the client as [`serve`](Self::serve) does, with buffers and a work tracker that are kept
    /// between clients.
    pub fn serve_with(
        &mut self,
        lifecycle: &Lifecycle,
        buffers: &mut Buffers,
        tracker: &mut WorkTracker<'_>,
    ) {
        while self.serve_until_lingering(lifecycle, buffers, tracker) == DriveStatus::WantRead
            && self.wait(Interest::Readable, lifecycle, buffers, tracker) != StopRequest::Immediate
        {
        }
    }

    /// Serves the client until its connection is closed, or until it only lingers. Returns
    /// [`DriveStatus::WantRead`] if it lingers.
    pub(super) fn serve_until_lingering(
        &mut self,
        lifecycle: &Lifecycle,
        buffers: &mut Buffers,
        tracker: &mut WorkTracker<'_>,
    ) -> DriveStatus {
        loop {
            let status = self.drive(ReadMode::UntilShortRead, buffers, tracker);
            let interest = match status {
                DriveStatus::Closed => return DriveStatus::Closed,
                _ if self.is_lingering() => return DriveStatus::WantRead,
                DriveStatus::Yield => {
                    lifecycle.notify();
                    if lifecycle.process_signals() == StopRequest::Immediate {
                        return DriveStatus::Closed;
                    }
                    if lifecycle.drains_clients() && !self.drained {
                        self.drive(ReadMode::UntilWouldBlock, buffers, tracker); // what has arrived
                        self.drain(buffers, tracker);
                    }
                    continue;
                }
                DriveStatus::WantRead => Interest::Readable,
                DriveStatus::WantWrite => Interest::Writable,
            };
            if self.wait(interest, lifecycle, buffers, tracker) == StopRequest::Immediate {
                return DriveStatus::Closed;
            }
        }
    }

    /// Sleeps until the socket is ready, the deadline has passed, or a stop is requested.
    fn wait(
        &mut self,
        interest: Interest,
        lifecycle: &Lifecycle,
        buffers: &mut Buffers,
        tracker: &mut WorkTracker<'_>,
    ) -> StopRequest {
        loop {
            lifecycle.notify();
            let deadline =
                [lifecycle.next_heartbeat(), self.deadline()].into_iter().flatten().min();
            // A client that drains waits for an immediate stop only.
            let stop_fd = if self.drained { lifecycle.wake_fd() } else { lifecycle.stop_fd() };
            let fds = [
                (self.stream.as_fd(), interest),
                (lifecycle.wake_fd(), Interest::Readable),
                (stop_fd, Interest::Readable),
            ];
            let Ok([ready, woken, _]) = poll::wait(fds, deadline) else {
                self.session.abort(); // no memory for ppoll(2): close this client
                return lifecycle.stop_request();
            };
            let stop = if woken { lifecycle.process_signals() } else { lifecycle.stop_request() };
            let drains =
                stop != StopRequest::Immediate && lifecycle.drains_clients() && !self.drained;
            if drains {
                if ready {
                    self.drive(ReadMode::UntilWouldBlock, buffers, tracker); // what has arrived
                }
                self.drain(buffers, tracker);
            }
            let expired = self.expire(clock::now(), buffers, tracker);
            if ready || expired || drains || stop == StopRequest::Immediate {
                return stop;
            }
        }
    }
}

impl AsFd for Client<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl AsRawFd for Client<'_> {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}
