//! The state of a connection that its stream, its requests and its task share.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ostler::app::ClientInfo;
use ostler::time::MonotonicTime;
use ostler::worker::Lifecycle;
use tokio::net::TcpStream;

use super::deadline::Phase;
use super::linger::CloseRisk;
use super::output::{Outputs, WRITE_STEP};
use super::record::LateRecords;
use super::worker::{ClientGuard, Worker};

/// Instead of the number of a body whose end is not seen.
const LOST_BODY: u32 = u32::MAX;

/// A client's socket without its protocol.
pub(super) struct ClosedStream {
    pub(super) stream: TcpStream,
    /// What was received and not read.
    pub(super) unread: Vec<u8>,
}

/// What stays of the state of a connection while it has no protocol.
pub(super) struct IdleState {
    client: ClientGuard,
    info: ClientInfo,
    has_unread_body: bool,
    requests: u32,
    sent_bytes: u64,
    idle_since: MonotonicTime,
}

impl IdleState {
    /// Returns when the last response was complete.
    pub(super) fn idle_since(&self) -> MonotonicTime {
        self.idle_since
    }

    /// Takes in that the time between two requests begins anew.
    pub(super) fn restart(&mut self, now: MonotonicTime) {
        self.idle_since = now;
    }

    /// Returns what may be lost when the connection is closed.
    pub(super) fn close_risk(&self) -> CloseRisk {
        CloseRisk::new(self.has_unread_body, self.sent_bytes)
    }
}

/// The state of one connection. The client counts until this is dropped, also if the connection has
/// been upgraded and the app has its stream.
// Fields: each is an atomic or has a lock of its own, since its stream, requests and task share it.
pub(super) struct ConnectionState {
    client: ClientGuard,
    info: ClientInfo,
    is_http2: AtomicBool,
    /// Whether bytes were received since the last request.
    has_input: AtomicBool,
    /// Whether the client has ended its output.
    is_half_closed: AtomicBool,
    /// Whether the body of a request was not read to its end.
    has_unread_body: AtomicBool,
    /// Whether the request over HTTP/1.1 awaits: its answer, or the next piece of its response.
    is_awaiting: AtomicBool,
    /// Over HTTP/1.1: the number of the last request if it has a body that the app has not read to its end,
    /// [`LOST_BODY`] if that is not seen, or 0.
    open_body: AtomicU32,
    /// Whether the client sends too many control frames.
    is_flooding: AtomicBool,
    /// How many requests there were.
    requests: AtomicU32,
    /// How many requests have no complete response.
    in_flight: AtomicU32,
    sent_bytes: AtomicU64,
    is_write_blocked: AtomicBool,
    /// When the last response was complete, in nanoseconds.
    idle_since: AtomicU64,
    /// What clients have not taken, over HTTP/2 or for the access log.
    outputs: Mutex<Outputs>,
    /// The records of requests whose response may wait in the buffer of the protocol.
    late_records: LateRecords,
    /// The stream, once the protocol has closed it.
    closed_stream: Mutex<Option<ClosedStream>>,
}

impl ConnectionState {
    pub(super) fn new(client: ClientGuard, info: ClientInfo) -> Self {
        Self {
            client,
            info,
            is_http2: AtomicBool::new(false),
            has_input: AtomicBool::new(false),
            is_half_closed: AtomicBool::new(false),
            has_unread_body: AtomicBool::new(false),
            is_awaiting: AtomicBool::new(false),
            open_body: AtomicU32::new(0),
            is_flooding: AtomicBool::new(false),
            requests: AtomicU32::new(0),
            in_flight: AtomicU32::new(0),
            sent_bytes: AtomicU64::new(0),
            is_write_blocked: AtomicBool::new(false),
            idle_since: AtomicU64::new(0),
            outputs: Mutex::default(),
            late_records: LateRecords::default(),
            closed_stream: Mutex::new(None),
        }
    }

    /// Returns what stays while the connection is idle.
    pub(super) fn into_idle(self) -> IdleState {
        IdleState {
            has_unread_body: self.has_unread_body.into_inner(),
            requests: self.requests.into_inner(),
            sent_bytes: self.sent_bytes.into_inner(),
            idle_since: MonotonicTime::from_nanos(self.idle_since.into_inner()),
            client: self.client,
            info: self.info,
        }
    }

    /// Creates the state of a connection that was idle.
    pub(super) fn from_idle(idle: IdleState) -> Self {
        Self {
            has_unread_body: AtomicBool::new(idle.has_unread_body),
            requests: AtomicU32::new(idle.requests),
            sent_bytes: AtomicU64::new(idle.sent_bytes),
            idle_since: AtomicU64::new(idle.idle_since.as_nanos()),
            ..Self::new(idle.client, idle.info)
        }
    }

    pub(super) fn worker(&self) -> Worker {
        self.client.worker()
    }

    pub(super) fn info(&self) -> ClientInfo {
        self.info
    }

    /// Returns what the connection waits for.
    pub(super) fn phase(&self) -> Phase {
        if self.is_write_blocked.load(Ordering::Relaxed) {
            return Phase::Writing(self.sent_bytes.load(Ordering::Relaxed) / WRITE_STEP);
        }
        if self.in_flight.load(Ordering::Acquire) > 0 {
            return Phase::Busy;
        }
        let open_body = self.open_body.load(Ordering::Acquire);
        if ![0, LOST_BODY].contains(&open_body) && !self.is_http2() {
            return Phase::Body;
        }
        let requests = self.requests.load(Ordering::Relaxed);
        match (self.has_input.load(Ordering::Relaxed), requests) {
            // Frames are no part of a head.
            (true, _) if !self.is_http2() => Phase::Head(requests),
            (_, 0) => Phase::Connected,
            (_, _) => Phase::Idle(requests),
        }
    }

    pub(super) fn is_http2(&self) -> bool {
        self.is_http2.load(Ordering::Relaxed)
    }

    pub(super) fn set_http2(&self) {
        self.is_http2.store(true, Ordering::Relaxed);
    }

    pub(super) fn set_flooding(&self) {
        self.is_flooding.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_flooding(&self) -> bool {
        self.is_flooding.load(Ordering::Relaxed)
    }

    pub(super) fn is_half_closed(&self) -> bool {
        self.is_half_closed.load(Ordering::Relaxed)
    }

    pub(super) fn set_unread_body(&self) {
        self.has_unread_body.store(true, Ordering::Relaxed);
    }

    /// Takes in whether the request awaits, after a poll of it. Over HTTP/2 there is more than one.
    pub(super) fn set_awaiting(&self, is_awaiting: bool) {
        if !self.is_http2() {
            self.is_awaiting.store(is_awaiting, Ordering::Relaxed);
        }
    }

    pub(super) fn is_awaiting(&self) -> bool {
        self.is_awaiting.load(Ordering::Relaxed)
    }

    /// Takes in that the request that has begun last has a body. Returns the body's number, which matters
    /// over HTTP/1.1 only.
    pub(super) fn begin_body(&self) -> u32 {
        let number = self.requests.load(Ordering::Relaxed).max(1); // it may have wrapped
        self.open_body.store(number, Ordering::Release);
        number
    }

    /// Takes in that the app has read or dropped a body. It may be late: another may have begun. If its
    /// response is complete, the connection is idle from now on.
    pub(super) fn end_body(&self, number: u32) {
        if self.open_body.load(Ordering::Acquire) == number && self.in_flight() == 0 {
            self.has_input.store(false, Ordering::Relaxed); // it was a part of the body
            self.idle_since.store(self.worker().lifecycle().now().as_nanos(), Ordering::Relaxed);
        }
        let _ = self.open_body.compare_exchange(number, 0, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Takes in that the app reads a body in a way that does not show its end.
    pub(super) fn lose_body(&self, number: u32) {
        let (lost, order) = (LOST_BODY, Ordering::AcqRel);
        let _ = self.open_body.compare_exchange(number, lost, order, Ordering::Relaxed);
    }

    /// Returns whether what is received may belong to a body, though the response is complete.
    pub(super) fn has_open_body(&self) -> bool {
        self.open_body.load(Ordering::Acquire) != 0
    }

    /// Returns what may be lost when the connection is closed.
    pub(super) fn close_risk(&self) -> CloseRisk {
        CloseRisk::new(
            self.has_unread_body.load(Ordering::Relaxed),
            self.sent_bytes.load(Ordering::Relaxed),
        )
    }

    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn on_received(&self, length: usize) {
        if length == 0 {
            self.is_half_closed.store(true, Ordering::Relaxed);
        } else {
            self.has_input.store(true, Ordering::Relaxed);
        }
    }

    /// Takes in a write, of which `None` could not be done now.
    pub(super) fn on_written(&self, length: Option<usize>) {
        if let Some(length) = length {
            let sent = self.sent_bytes.load(Ordering::Relaxed).wrapping_add(length as u64);
            self.sent_bytes.store(sent, Ordering::Relaxed); // one task writes at a time
        }
        self.is_write_blocked.store(length.is_none(), Ordering::Relaxed);
    }

    pub(super) fn on_request(&self) {
        self.has_input.store(false, Ordering::Relaxed);
        self.open_body.store(0, Ordering::Release);
        let requests = self.requests.load(Ordering::Relaxed).wrapping_add(1);
        self.requests.store(requests, Ordering::Relaxed); // the task of the connection alone calls this
        self.in_flight.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn on_response_end(&self) {
        self.has_input.store(false, Ordering::Relaxed); // what there was belongs to the request
        let mut count = self.in_flight.load(Ordering::Relaxed);
        loop {
            if count == 1 {
                // Before others see that the connection is idle.
                let now =
                    self.worker().lifecycle().now_coarse().saturating_add(Lifecycle::COARSE_LAG);
                self.idle_since.store(now.as_nanos(), Ordering::Relaxed);
            }
            let (old, new) = (Ordering::AcqRel, Ordering::Relaxed);
            match self.in_flight.compare_exchange_weak(count, count.wrapping_sub(1), old, new) {
                Ok(_) => return,
                Err(changed) => count = changed,
            }
        }
    }

    /// Returns how many requests have no complete response.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire) as usize
    }

    /// Returns when the last response was complete.
    pub(super) fn idle_since(&self) -> MonotonicTime {
        MonotonicTime::from_nanos(self.idle_since.load(Ordering::Relaxed))
    }

    pub(super) fn outputs(&self) -> MutexGuard<'_, Outputs> {
        self.outputs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn late_records(&self) -> &LateRecords {
        &self.late_records
    }

    pub(super) fn put_closed_stream(&self, stream: ClosedStream) {
        *self.closed_stream.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
    }

    /// Takes the stream, if the protocol has closed it and no app has it.
    pub(super) fn take_closed_stream(&self) -> Option<ClosedStream> {
        self.closed_stream.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
