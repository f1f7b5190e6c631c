//! The state of one client: its connection, its unsent output, and its next deadline.
//!
//! Pure: it owns no socket and reads no clock. Every worker class uses it, and it alone implements
//! backpressure: while output waits, the connection is not called.

mod output;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::app::{Connection, ConnectionContext, Next, ReadTimeout, WorkReporter};
use crate::time::MonotonicTime;
pub(crate) use output::SHORT_OUTPUT;
use output::{IoProgress, Output, OutputLength};

/// Default maximum time of a lingering close.
const LINGERING_TIMEOUT: Duration = Duration::from_secs(30);
/// Default maximum number of bytes that a lingering close discards.
const LINGERING_BYTES: u64 = 1 << 30;
/// How long a lingering close waits for [`LINGERING_CLOSE_STEP`] bytes before it closes.
const LINGERING_CLOSE_IDLE_TIMEOUT: Duration = Duration::from_secs(2);
/// How many bytes must arrive in [`LINGERING_CLOSE_IDLE_TIMEOUT`]: less than any upload that a client
/// would wait for, so that a slow client does not hold the connection.
const LINGERING_CLOSE_STEP: u64 = 8 << 10;

/// What a session waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// Bytes from the peer.
    Read,
    /// Space in the send buffer for [`Session::unsent`]. If that is empty, the session is paused: call
    /// [`Session::on_sent`] with 0.
    Write,
    /// The end of the input: half-close the socket, then read as for [`Wants::Read`].
    Linger,
    /// Nothing: close the socket, unless [`Session::close_risk`] forbids it.
    Closed,
}

/// Why closing the socket might cut off output: the kernel answers unread input, and input that arrives
/// after the close, with a reset, and the peer then loses what it has not received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseRisk {
    /// No risk: close the socket.
    None,
    /// If input is unread, call [`Session::linger`] instead of closing the socket.
    Unread,
    /// If input is unread, or the peer has not acknowledged all output, call [`Session::linger`]
    /// instead of closing the socket.
    UnreadOrUnacknowledged,
}

/// The state of one client. The caller lends it a buffer, so an idle session owns none.
pub struct Session<'s> {
    connection: Box<dyn Connection + 's>,
    output: Output,
    next: Next,
    state: SessionState,
    phase: Option<Phase>,
    deadline: Option<MonotonicTime>,
    write_timeout: Duration,
    lingering_timeout: Duration,
    lingering_bytes: u64,
}

/// A phase of [`ReadTimeout::Total`], whose deadline does not move when bytes arrive.
#[derive(Clone, Copy)]
struct Phase {
    number: u32,
    deadline: Option<MonotonicTime>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SessionState {
    /// Both sides may send.
    Open,
    /// The peer has half-closed: it sends no more.
    HalfClosed,
    /// All output has been sent; input is discarded.
    LingeringClose {
        /// The number of discarded bytes.
        discarded: u64,
        /// When it ends, even if input still arrives.
        until: MonotonicTime,
    },
    /// The session has closed in order: all output has been sent.
    Ended,
    Closed,
}

impl<'s> Session<'s> {
    /// Creates the session of a client that connected at `now`. If the peer accepts less than 4 KiB of
    /// output, and not all of it, within `write_timeout`, the session closes; zero means no limit.
    pub fn new(
        connection: Box<dyn Connection + 's>,
        write_timeout: Duration,
        now: MonotonicTime,
    ) -> Self {
        let mut session = Self {
            connection,
            output: Output::default(),
            next: Next::Read,
            state: SessionState::Open,
            phase: None,
            deadline: None,
            write_timeout,
            lingering_timeout: LINGERING_TIMEOUT,
            lingering_bytes: LINGERING_BYTES,
        };
        session.rearm_deadline(now);
        session
    }

    /// Sets how long a lingering close lasts and how many bytes it discards, at most. The defaults are
    /// 30 s and 1 GiB. It ends earlier if less than 8 KiB arrive within 2 s.
    #[must_use]
    pub fn with_lingering_close(self, timeout: Duration, max_bytes: u64) -> Self {
        Self { lingering_timeout: timeout, lingering_bytes: max_bytes, ..self }
    }

    /// Returns what the session waits for.
    pub fn wants(&self) -> Wants {
        match self.state {
            SessionState::Ended | SessionState::Closed => Wants::Closed,
            _ if !self.output.is_empty() => Wants::Write,
            SessionState::LingeringClose { .. } => Wants::Linger,
            SessionState::Open | SessionState::HalfClosed => Wants::Read,
        }
    }

    /// Returns whether the connection waits for [`wake`](Self::wake): do not receive until then.
    pub(crate) fn is_waiting(&self) -> bool {
        self.next == Next::Wait && self.wants() == Wants::Read
    }

    /// Has a connection that waits look whether there is output by now. A connection that waits is not
    /// told of the end of the input: the caller notices when the peer has gone.
    pub(crate) fn wake(
        &mut self,
        spare: &mut Vec<u8>,
        reporter: &mut dyn WorkReporter,
        now: MonotonicTime,
    ) {
        if self.is_waiting() {
            self.pump(spare, reporter, now, IoProgress::Made);
        }
    }

    /// Returns the output that is not sent yet.
    pub fn unsent(&self) -> &[u8] {
        self.output.unsent()
    }

    /// Returns whether the session may still read: it does not close after its unsent output.
    pub fn is_open(&self) -> bool {
        !matches!(self.state, SessionState::Ended | SessionState::Closed)
            && self.next != Next::Close
    }

    /// Returns what to ask the socket before it is closed because of [`Wants::Closed`].
    pub fn close_risk(&self) -> CloseRisk {
        match (self.state, self.output.longest()) {
            (SessionState::Ended, OutputLength::Short) => CloseRisk::Unread,
            (SessionState::Ended, OutputLength::Long) => CloseRisk::UnreadOrUnacknowledged,
            _ => CloseRisk::None,
        }
    }

    /// Begins a lingering close instead of the close that [`wants`](Self::wants) demands.
    pub fn linger(&mut self, now: MonotonicTime) {
        let until = now.saturating_add(self.lingering_timeout);
        self.next = Next::LingeringClose;
        self.state = SessionState::LingeringClose { discarded: 0, until };
        self.deadline = Some(until.min(now.saturating_add(LINGERING_CLOSE_IDLE_TIMEOUT)));
    }

    /// Returns when to call [`on_timeout`](Self::on_timeout), unless another call comes first.
    pub fn deadline(&self) -> Option<MonotonicTime> {
        self.deadline
    }

    /// Processes received bytes; an empty `input` is the end of the stream. `now` is an exact time, since
    /// units of work are timed from it. Do not call it while output waits. `spare` is an empty buffer that
    /// the session may keep while it has output.
    pub fn on_received(
        &mut self,
        input: &[u8],
        spare: &mut Vec<u8>,
        reporter: &mut dyn WorkReporter,
        now: MonotonicTime,
    ) {
        debug_assert!(self.wants() != Wants::Write, "backpressure: send the output first");
        match self.state {
            SessionState::Ended | SessionState::Closed => return,
            SessionState::LingeringClose { .. } => return self.on_discarded(input.len(), now),
            SessionState::Open if input.is_empty() => self.state = SessionState::HalfClosed,
            SessionState::Open | SessionState::HalfClosed => (),
        }
        self.call_connection_at(Some(now), spare, reporter, |connection, ctx| {
            connection.receive(input, ctx)
        });
        self.pump(spare, reporter, now, IoProgress::Made);
    }

    /// Records that `length` received bytes were discarded in a lingering close; 0 is the end of the
    /// stream.
    pub fn on_discarded(&mut self, length: usize, now: MonotonicTime) {
        let SessionState::LingeringClose { discarded: before, until } = self.state else { return };
        let discarded = before + length as u64;
        if length == 0 || discarded > self.lingering_bytes || until <= now {
            return self.abort();
        }
        self.state = SessionState::LingeringClose { discarded, until };
        if discarded / LINGERING_CLOSE_STEP > before / LINGERING_CLOSE_STEP {
            self.deadline = Some(until.min(now.saturating_add(LINGERING_CLOSE_IDLE_TIMEOUT)));
        } else if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.abort();
        }
    }

    /// Records that the first `n` unsent bytes were sent.
    pub fn on_sent(
        &mut self,
        n: usize,
        spare: &mut Vec<u8>,
        reporter: &mut dyn WorkReporter,
        now: MonotonicTime,
    ) {
        let progress = self.output.count_sent(n);
        self.pump(spare, reporter, now, progress);
    }

    /// If `n` bytes are all that is unsent, and the connection would continue, records that they were
    /// sent, and pauses, so that others have their turn: see [`Wants::Write`]. Returns whether it has;
    /// if not, call [`on_sent`](Self::on_sent).
    pub(crate) fn pause_after(&mut self, n: usize) -> bool {
        let pauses = self.next == Next::Continue && n >= self.unsent().len();
        if pauses {
            self.output.count_sent(n);
            self.deadline = None; // the peer is not waited for
        }
        pauses
    }

    /// Returns whether the session waits for a call of [`on_sent`](Self::on_sent) only.
    pub(crate) fn is_paused(&self) -> bool {
        self.output.is_paused()
    }

    /// Handles a passed deadline. If output waits, or in a lingering close, the session closes.
    pub fn on_timeout(
        &mut self,
        spare: &mut Vec<u8>,
        reporter: &mut dyn WorkReporter,
        now: MonotonicTime,
    ) {
        if matches!(self.state, SessionState::LingeringClose { .. }) || self.wants() == Wants::Write
        {
            self.state = SessionState::Closed;
        } else if self.wants() != Wants::Closed {
            self.call_connection(spare, reporter, |connection, ctx| connection.on_timeout(ctx));
        }
        self.pump(spare, reporter, now, IoProgress::Made);
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.abort(); // the new deadline has passed too: without this, the caller would spin
        }
    }

    /// Drains: the connection finishes what has begun, and begins nothing new.
    pub fn drain(
        &mut self,
        spare: &mut Vec<u8>,
        reporter: &mut dyn WorkReporter,
        now: MonotonicTime,
    ) {
        if !matches!(self.state, SessionState::Open | SessionState::HalfClosed) {
            return;
        }
        let decided = self.next;
        let waiting = !self.output.is_sent();
        self.call_connection(spare, reporter, |connection, ctx| connection.drain(ctx));
        let closes = matches!(decided, Next::Close | Next::LingeringClose);
        if closes || (decided == Next::Continue && self.next == Next::Read) {
            self.next = decided; // the step planned after the waiting output stays planned
        }
        self.pump(spare, reporter, now, if waiting { IoProgress::None } else { IoProgress::Made });
    }

    /// Closes at once and discards the output, because the socket failed.
    pub fn abort(&mut self) {
        self.state = SessionState::Closed;
        self.deadline = None;
        self.output.discard();
    }

    /// Returns how many bytes of output were never sent, because the session was aborted.
    pub(crate) fn lost_bytes(&self) -> usize {
        self.output.lost()
    }

    /// Calls the connection, whose output goes to the session's buffer.
    fn call_connection(
        &mut self,
        spare: &mut Vec<u8>,
        reporter: &mut dyn WorkReporter,
        operation: impl FnOnce(&mut (dyn Connection + 's), &mut ConnectionContext<'_>) -> Next,
    ) {
        self.call_connection_at(None, spare, reporter, operation);
    }

    /// Calls the connection at `now`, if the caller has just read the clock.
    fn call_connection_at(
        &mut self,
        now: Option<MonotonicTime>,
        spare: &mut Vec<u8>,
        reporter: &mut dyn WorkReporter,
        operation: impl FnOnce(&mut (dyn Connection + 's), &mut ConnectionContext<'_>) -> Next,
    ) {
        let output = self.output.buffer(spare);
        let waiting = output.len();
        match now {
            Some(now) => reporter.set_busy_since(now),
            None => reporter.set_busy(),
        }
        let connection = self.connection.as_mut();
        let mut context = ConnectionContext::new(output, reporter);
        // A panic closes this connection and affects no other: the half-changed state is dropped
        // with the connection.
        let result = catch_unwind(AssertUnwindSafe(|| operation(connection, &mut context)));
        reporter.set_idle();
        match result {
            Ok(next) => self.next = next,
            Err(_) => {
                output.truncate(waiting); // earlier output is complete and still sent
                self.next = Next::Close;
            }
        }
    }

    /// Advances as far as possible without the peer, and sets the deadline.
    fn pump(
        &mut self,
        spare: &mut Vec<u8>,
        reporter: &mut dyn WorkReporter,
        now: MonotonicTime,
        progress: IoProgress,
    ) {
        let mut has_looked = false;
        while self.wants() != Wants::Closed && self.output.is_sent() {
            self.output.clear();
            match self.next {
                Next::Wait if has_looked => break,
                // What it waits for may have come while its earlier output was sent.
                Next::Wait => {
                    has_looked = true;
                    self.call_connection(spare, reporter, |connection, ctx| connection.resume(ctx));
                }
                Next::Continue => {
                    self.call_connection(spare, reporter, |connection, ctx| connection.resume(ctx));
                }
                Next::Read if self.state == SessionState::Open => break,
                // A peer that has half-closed sends nothing that could be left unread.
                _ if self.state == SessionState::HalfClosed => self.state = SessionState::Closed,
                Next::Read | Next::Close => self.state = SessionState::Ended,
                Next::LingeringClose => {
                    self.linger(now);
                    break;
                }
            }
        }
        match self.state {
            SessionState::Closed => self.abort(),
            SessionState::Ended => self.deadline = None,
            _ => (),
        }
        self.output.return_buffer(spare);
        match (self.state, self.wants()) {
            (_, Wants::Write) => {
                let has_limit = self.write_timeout > Duration::ZERO;
                if progress == IoProgress::Made {
                    self.deadline = has_limit.then(|| now.saturating_add(self.write_timeout));
                }
            }
            (SessionState::Open | SessionState::HalfClosed, _) => self.rearm_deadline(now),
            (
                SessionState::LingeringClose { .. } | SessionState::Ended | SessionState::Closed,
                _,
            ) => (),
        }
    }

    /// Sets the deadline from the connection's timeout; zero means no limit.
    fn rearm_deadline(&mut self, now: MonotonicTime) {
        let from_now =
            |limit: Duration| (limit > Duration::ZERO).then(|| now.saturating_add(limit));
        let connection = self.connection.as_ref();
        let Ok(timeout) = catch_unwind(AssertUnwindSafe(|| connection.timeout())) else {
            return self.abort();
        };
        if !matches!(timeout, ReadTimeout::Total { .. }) {
            self.phase = None;
        }
        self.deadline = match timeout {
            ReadTimeout::None => None,
            ReadTimeout::Idle(limit) => from_now(limit),
            ReadTimeout::Total { phase: number, limit } => {
                let current = self.phase.filter(|phase| phase.number == number);
                let phase = current.unwrap_or_else(|| Phase { number, deadline: from_now(limit) });
                self.phase = Some(phase);
                phase.deadline
            }
        };
    }
}

#[cfg(test)]
mod tests;
