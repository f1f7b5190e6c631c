//! The state of one client: its connection, its unsent output, and its next deadline.
//!
//! Pure: it owns no socket and reads no clock. Every worker class uses it, and it alone implements
//! backpressure: while output waits, the connection is not called.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::app::{Connection, ConnectionContext, Next, ReadTimeout, WorkReporter};
use crate::time::MonotonicTime;

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
    /// Space in the send buffer for [`Session::unsent`].
    Write,
    /// The end of the input: half-close the socket, then read as for [`Wants::Read`].
    Linger,
    /// Nothing: close the socket.
    Closed,
}

/// The state of one client. The caller lends it a buffer, so an idle session owns none.
pub struct Session<'s> {
    connection: Box<dyn Connection + 's>,
    out: Vec<u8>,
    sent: usize,
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
    Closed,
}

impl<'s> Session<'s> {
    /// Creates the session of a client that connected at `now`. If the peer accepts no output for
    /// `write_timeout`, the session closes; zero means no limit.
    pub fn new(
        connection: Box<dyn Connection + 's>,
        write_timeout: Duration,
        now: MonotonicTime,
    ) -> Self {
        let mut session = Self {
            connection,
            out: Vec::new(),
            sent: 0,
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
            SessionState::Closed => Wants::Closed,
            _ if self.sent < self.out.len() => Wants::Write,
            SessionState::LingeringClose { .. } => Wants::Linger,
            SessionState::Open | SessionState::HalfClosed => Wants::Read,
        }
    }

    /// Returns the output that is not sent yet.
    pub fn unsent(&self) -> &[u8] {
        &self.out[self.sent..]
    }

    /// Returns whether the session may still read: it does not close after its unsent output.
    pub fn is_open(&self) -> bool {
        self.state != SessionState::Closed && self.next != Next::Close
    }

    /// Returns when to call [`on_timeout`](Self::on_timeout), unless another call comes first.
    pub fn deadline(&self) -> Option<MonotonicTime> {
        self.deadline
    }

    /// Processes received bytes; an empty `input` is the end of the stream. Do not call it while output
    /// waits. `spare` is an empty buffer that the session may keep while it has output.
    pub fn on_received(
        &mut self,
        input: &[u8],
        spare: &mut Vec<u8>,
        reporter: &mut dyn WorkReporter,
        now: MonotonicTime,
    ) {
        debug_assert!(self.wants() != Wants::Write, "backpressure: send the output first");
        match self.state {
            SessionState::Closed => return,
            SessionState::LingeringClose { discarded, until } => {
                return self.discard(input, discarded, until, now);
            }
            SessionState::Open if input.is_empty() => self.state = SessionState::HalfClosed,
            SessionState::Open | SessionState::HalfClosed => (),
        }
        self.call_connection(spare, reporter, |connection, ctx| connection.receive(input, ctx));
        self.pump(spare, reporter, now, IoProgress::Made);
    }

    /// Discards input in a lingering close.
    fn discard(&mut self, input: &[u8], before: u64, until: MonotonicTime, now: MonotonicTime) {
        let discarded = before + input.len() as u64;
        if input.is_empty() || discarded > self.lingering_bytes || until <= now {
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
        self.sent = (self.sent + n).min(self.out.len());
        self.pump(spare, reporter, now, if n > 0 { IoProgress::Made } else { IoProgress::None });
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
        } else if self.state != SessionState::Closed {
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
        let waiting = self.wants() == Wants::Write;
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
        self.out.clear();
        self.sent = 0;
    }

    /// Calls the connection, whose output goes to the session's buffer.
    fn call_connection(
        &mut self,
        spare: &mut Vec<u8>,
        reporter: &mut dyn WorkReporter,
        operation: impl FnOnce(&mut (dyn Connection + 's), &mut ConnectionContext<'_>) -> Next,
    ) {
        if self.out.capacity() == 0 {
            std::mem::swap(&mut self.out, spare);
        }
        let waiting = self.out.len();
        reporter.set_busy();
        let connection = self.connection.as_mut();
        let mut context = ConnectionContext::new(&mut self.out, reporter);
        // A panic closes this connection and affects no other: the half-changed state is dropped
        // with the connection.
        let result = catch_unwind(AssertUnwindSafe(|| operation(connection, &mut context)));
        reporter.set_idle();
        match result {
            Ok(next) => self.next = next,
            Err(_) => {
                self.out.truncate(waiting); // earlier output is complete and still sent
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
        while self.state != SessionState::Closed && self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
            match self.next {
                Next::Continue => {
                    self.call_connection(spare, reporter, |connection, ctx| connection.resume(ctx));
                }
                Next::Read if self.state == SessionState::HalfClosed => {
                    self.state = SessionState::Closed
                }
                Next::Close => self.state = SessionState::Closed,
                Next::LingeringClose if self.state == SessionState::HalfClosed => {
                    self.state = SessionState::Closed
                }
                Next::LingeringClose => {
                    let until = now.saturating_add(self.lingering_timeout);
                    self.state = SessionState::LingeringClose { discarded: 0, until };
                    self.deadline =
                        Some(until.min(now.saturating_add(LINGERING_CLOSE_IDLE_TIMEOUT)));
                    break;
                }
                Next::Read => break,
            }
        }
        if self.state == SessionState::Closed {
            self.abort();
        }
        if self.out.is_empty() && self.out.capacity() > 0 {
            self.return_buffer(spare);
        }
        match (self.state, self.wants()) {
            (_, Wants::Write) => {
                let has_limit = self.write_timeout > Duration::ZERO;
                if progress == IoProgress::Made {
                    self.deadline = has_limit.then(|| now.saturating_add(self.write_timeout));
                }
            }
            (SessionState::Open | SessionState::HalfClosed, _) => self.rearm_deadline(now),
            (SessionState::LingeringClose { .. } | SessionState::Closed, _) => (),
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

    /// Returns the empty buffer to the caller, or frees it if the caller has one already.
    fn return_buffer(&mut self, spare: &mut Vec<u8>) {
        let buffer = std::mem::take(&mut self.out);
        if spare.capacity() == 0 {
            *spare = buffer;
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum IoProgress {
    /// Bytes moved.
    Made,
    /// No bytes moved: the write deadline stays.
    None,
}

#[cfg(test)]
mod tests;
