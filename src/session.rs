//! One client's course: its connection, the output that waits, and the next deadline.
//!
//! Pure: it owns no socket and reads no clock. It drives every worker class alike, and it is the
//! one place where backpressure is decided: while output waits, the connection is not asked.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::app::{Connection, ConnectionContext, Next, ReadTimeout, WorkReporter};
use crate::time::MonotonicTime;

/// How long a refused client may go on sending before it is cut off.
const LINGERING_CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How many bytes of a refused client are thrown away before it is cut off.
const LINGERING_CLOSE_BYTES_MAX: usize = 1 << 20;

/// What a session waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// Bytes from the peer.
    Read,
    /// Room for [`Session::unsent`].
    Write,
    /// The end of the peer's bytes: end the output, then read as for [`Wants::Read`].
    Linger,
    /// Nothing: it is over; close the socket.
    Closed,
}

/// One client's course. Its buffers are lent by the caller, so an idle session owns none.
pub struct Session<'s> {
    connection: Box<dyn Connection + 's>,
    out: Vec<u8>,
    sent: usize,
    next: Next,
    state: SessionState,
    phase: Option<Phase>,
    deadline: Option<MonotonicTime>,
    write_timeout: Duration,
}

/// A stretch of time that arriving bytes do not lengthen.
#[derive(Clone, Copy)]
struct Phase {
    number: u32,
    deadline: Option<MonotonicTime>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SessionState {
    /// Both sides may talk.
    Open,
    /// The peer has ended its side.
    HalfClosed,
    /// The last word has been said; the peer's bytes are thrown away, so many until now.
    LingeringClose(usize),
    Closed,
}

impl<'s> Session<'s> {
    /// A session for a client that came at `now`. A peer that takes no output for `write_timeout`
    /// is given up; zero is for ever.
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
        };
        session.rearm_deadline(now);
        session
    }

    /// What it waits for now.
    pub fn wants(&self) -> Wants {
        match self.state {
            SessionState::Closed => Wants::Closed,
            _ if self.sent < self.out.len() => Wants::Write,
            SessionState::LingeringClose(_) => Wants::Linger,
            SessionState::Open | SessionState::HalfClosed => Wants::Read,
        }
    }

    /// The output that waits to be sent.
    pub fn unsent(&self) -> &[u8] {
        &self.out[self.sent..]
    }

    /// Whether it may still want bytes, then or later: it does not end with the output that waits.
    pub fn is_open(&self) -> bool {
        self.state != SessionState::Closed && self.next != Next::Close
    }

    /// When [`expired`](Self::expired) is due, if nothing happens before.
    pub fn deadline(&self) -> Option<MonotonicTime> {
        self.deadline
    }

    /// Bytes came, or, if `input` is empty, the end of the stream. Not to be called while output
    /// waits. `spare` is an empty buffer that the session may keep while it has output.
    pub fn on_received(
        &mut self,
        input: &[u8],
        spare: &mut Vec<u8>,
        reporter: &mut dyn WorkReporter,
        now: MonotonicTime,
    ) {
        debug_assert!(self.wants() != Wants::Write, "backpressure: the output goes first");
        match self.state {
            SessionState::Closed => return,
            SessionState::LingeringClose(so_far) => {
                let total = so_far + input.len();
                let enough = input.is_empty() || total > LINGERING_CLOSE_BYTES_MAX;
                self.state = SessionState::LingeringClose(total);
                if enough {
                    self.abort();
                }
                return;
            }
            SessionState::Open if input.is_empty() => self.state = SessionState::HalfClosed,
            SessionState::Open | SessionState::HalfClosed => (),
        }
        self.call_connection(spare, reporter, |connection, exchange| {
            connection.receive(input, exchange)
        });
        self.pump(spare, reporter, now, IoProgress::Made);
    }

    /// The first `n` unsent bytes have been sent.
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

    /// The deadline has passed. A peer that takes no output, or has been refused, is given up.
    pub fn on_timeout(
        &mut self,
        spare: &mut Vec<u8>,
        reporter: &mut dyn WorkReporter,
        now: MonotonicTime,
    ) {
        if matches!(self.state, SessionState::LingeringClose(_)) || self.wants() == Wants::Write {
            self.state = SessionState::Closed;
        } else if self.state != SessionState::Closed {
            self.call_connection(spare, reporter, |connection, exchange| {
                connection.on_timeout(exchange)
            });
        }
        self.pump(spare, reporter, now, IoProgress::Made);
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.abort(); // it asks for time that has passed: there is no end to that
        }
    }

    /// The worker is leaving: what is begun is finished, nothing new is begun.
    pub fn drain(
        &mut self,
        spare: &mut Vec<u8>,
        reporter: &mut dyn WorkReporter,
        now: MonotonicTime,
    ) {
        if !matches!(self.state, SessionState::Open | SessionState::HalfClosed) {
            return;
        }
        let (decided, waiting) = (self.next, self.wants() == Wants::Write);
        self.call_connection(spare, reporter, |connection, exchange| connection.drain(exchange));
        let ending = matches!(decided, Next::Close | Next::LingeringClose);
        if ending || (decided == Next::Continue && self.next == Next::Read) {
            self.next = decided; // what was to follow the waiting output still follows it
        }
        self.pump(spare, reporter, now, if waiting { IoProgress::None } else { IoProgress::Made });
    }

    /// The connection is broken: nothing can be sent or received any more.
    pub fn abort(&mut self) {
        self.state = SessionState::Closed;
        self.deadline = None;
        self.out.clear();
        self.sent = 0;
    }

    /// Asks the connection, with its output going to the session's buffer.
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
        // A panic costs this client its connection, and nobody else anything: what it left half
        // done is dropped with the connection.
        let result = catch_unwind(AssertUnwindSafe(|| operation(connection, &mut context)));
        reporter.set_idle();
        match result {
            Ok(next) => self.next = next,
            Err(_) => {
                self.out.truncate(waiting); // what was complete may still go
                self.next = Next::Close;
            }
        }
    }

    /// Goes on as far as it can without the peer, and sets the deadline.
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
                    self.call_connection(spare, reporter, |connection, exchange| {
                        connection.resume(exchange)
                    });
                }
                Next::Read if self.state == SessionState::HalfClosed => {
                    self.state = SessionState::Closed
                }
                Next::Close => self.state = SessionState::Closed,
                Next::LingeringClose if self.state == SessionState::HalfClosed => {
                    self.state = SessionState::Closed
                }
                Next::LingeringClose => {
                    self.state = SessionState::LingeringClose(0);
                    self.deadline = Some(now.saturating_add(LINGERING_CLOSE_TIMEOUT));
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
                let waits = self.write_timeout > Duration::ZERO;
                if progress == IoProgress::Made {
                    self.deadline = waits.then(|| now.saturating_add(self.write_timeout));
                }
            }
            (SessionState::Open | SessionState::HalfClosed, _) => self.rearm_deadline(now),
            (SessionState::LingeringClose(_) | SessionState::Closed, _) => (),
        }
    }

    /// Sets the deadline from the connection's patience; a limit of zero is no limit.
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
    /// Nothing moved: a peer that is slow stays on its clock.
    None,
}

#[cfg(test)]
mod tests;
