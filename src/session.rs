//! One client's course: its connection, the output that waits, and the next deadline.
//!
//! Pure: it owns no socket and reads no clock. It drives every worker class alike, and it is the
//! one place where backpressure is decided: while output waits, the connection is not asked.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::app::{Connection, Desk, Exchange, Next, Patience};
use crate::time::MonotonicTime;

/// How long a refused client may go on sending before it is cut off.
const REFUSAL_LINGER: Duration = Duration::from_secs(2);
/// How many bytes of a refused client are thrown away before it is cut off.
const REFUSAL_BYTES_MAX: usize = 1 << 20;

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
    Gone,
}

/// One client's course. Its buffers are lent by the caller, so an idle session owns none.
pub struct Session<'s> {
    connection: Box<dyn Connection + 's>,
    out: Vec<u8>,
    sent: usize,
    next: Next,
    course: Course,
    phase: Option<Phase>,
    deadline: Option<MonotonicTime>,
    write_timeout: Duration,
}

/// A stretch of time that arriving bytes do not lengthen.
#[derive(Clone, Copy)]
struct Phase {
    number: u32,
    end: Option<MonotonicTime>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    /// Both sides may talk.
    Open,
    /// The peer has ended its side.
    HalfClosed,
    /// The last word has been said; the peer's bytes are thrown away, so many until now.
    Refusing(usize),
    Gone,
}

impl<'s> Session<'s> {
    /// A session for a client that came at `now`. A peer that takes no output for `write_timeout`
    /// is given up; zero is for ever.
    pub fn new(connection: Box<dyn Connection + 's>, write_timeout: Duration, now: MonotonicTime) -> Self {
        let mut session = Self {
            connection,
            out: Vec::new(),
            sent: 0,
            next: Next::Read,
            course: Course::Open,
            phase: None,
            deadline: None,
            write_timeout,
        };
        session.arm(now);
        session
    }

    /// What it waits for now.
    pub fn wants(&self) -> Wants {
        match self.course {
            Course::Gone => Wants::Gone,
            _ if self.sent < self.out.len() => Wants::Write,
            Course::Refusing(_) => Wants::Linger,
            Course::Open | Course::HalfClosed => Wants::Read,
        }
    }

    /// The output that waits to be sent.
    pub fn unsent(&self) -> &[u8] {
        &self.out[self.sent..]
    }

    /// Whether it may still want bytes, then or later: it does not end with the output that waits.
    pub fn is_open(&self) -> bool {
        self.course != Course::Gone && self.next != Next::Close
    }

    /// When [`expired`](Self::expired) is due, if nothing happens before.
    pub fn deadline(&self) -> Option<MonotonicTime> {
        self.deadline
    }

    /// Bytes came, or, if `input` is empty, the end of the stream. Not to be called while output
    /// waits. `spare` is an empty buffer that the session may keep while it has output.
    pub fn received(&mut self, input: &[u8], spare: &mut Vec<u8>, desk: &mut dyn Desk, now: MonotonicTime) {
        debug_assert!(self.wants() != Wants::Write, "backpressure: the output goes first");
        match self.course {
            Course::Gone => return,
            Course::Refusing(so_far) => {
                let total = so_far + input.len();
                let enough = input.is_empty() || total > REFUSAL_BYTES_MAX;
                self.course = Course::Refusing(total);
                if enough {
                    self.broken();
                }
                return;
            }
            Course::Open if input.is_empty() => self.course = Course::HalfClosed,
            Course::Open | Course::HalfClosed => (),
        }
        self.call(spare, desk, |connection, exchange| connection.receive(input, exchange));
        self.advance(spare, desk, now, Progress::Made);
    }

    /// The first `n` unsent bytes have been sent.
    pub fn sent(&mut self, n: usize, spare: &mut Vec<u8>, desk: &mut dyn Desk, now: MonotonicTime) {
        self.sent = (self.sent + n).min(self.out.len());
        self.advance(spare, desk, now, if n > 0 { Progress::Made } else { Progress::None });
    }

    /// The deadline has passed. A peer that takes no output, or has been refused, is given up.
    pub fn expired(&mut self, spare: &mut Vec<u8>, desk: &mut dyn Desk, now: MonotonicTime) {
        if matches!(self.course, Course::Refusing(_)) || self.wants() == Wants::Write {
            self.course = Course::Gone;
        } else if self.course != Course::Gone {
            self.call(spare, desk, |connection, exchange| connection.expire(exchange));
        }
        self.advance(spare, desk, now, Progress::Made);
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.broken(); // it asks for time that has passed: there is no end to that
        }
    }

    /// The worker is leaving: what is begun is finished, nothing new is begun.
    pub fn drain(&mut self, spare: &mut Vec<u8>, desk: &mut dyn Desk, now: MonotonicTime) {
        if !matches!(self.course, Course::Open | Course::HalfClosed) {
            return;
        }
        let (decided, waiting) = (self.next, self.wants() == Wants::Write);
        self.call(spare, desk, |connection, exchange| connection.drain(exchange));
        let ending = matches!(decided, Next::Close | Next::Refuse);
        if ending || (decided == Next::Proceed && self.next == Next::Read) {
            self.next = decided; // what was to follow the waiting output still follows it
        }
        self.advance(spare, desk, now, if waiting { Progress::None } else { Progress::Made });
    }

    /// The connection is broken: nothing can be sent or received any more.
    pub fn broken(&mut self) {
        self.course = Course::Gone;
        self.deadline = None;
        self.out.clear();
        self.sent = 0;
    }

    /// Asks the connection, with its output going to the session's buffer.
    fn call(
        &mut self,
        spare: &mut Vec<u8>,
        desk: &mut dyn Desk,
        ask: impl FnOnce(&mut (dyn Connection + 's), &mut Exchange<'_>) -> Next,
    ) {
        if self.out.capacity() == 0 {
            std::mem::swap(&mut self.out, spare);
        }
        let waiting = self.out.len();
        desk.enter();
        let connection = self.connection.as_mut();
        let mut exchange = Exchange::new(&mut self.out, desk);
        // A panic costs this client its connection, and nobody else anything: what it left half
        // done is dropped with the connection.
        let answer = catch_unwind(AssertUnwindSafe(|| ask(connection, &mut exchange)));
        desk.leave();
        match answer {
            Ok(next) => self.next = next,
            Err(_) => {
                self.out.truncate(waiting); // what was complete may still go
                self.next = Next::Close;
            }
        }
    }

    /// Goes on as far as it can without the peer, and sets the deadline.
    fn advance(
        &mut self,
        spare: &mut Vec<u8>,
        desk: &mut dyn Desk,
        now: MonotonicTime,
        progress: Progress,
    ) {
        while self.course != Course::Gone && self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
            match self.next {
                Next::Proceed => {
                    self.call(spare, desk, |connection, exchange| connection.proceed(exchange));
                }
                Next::Read if self.course == Course::HalfClosed => self.course = Course::Gone,
                Next::Close => self.course = Course::Gone,
                Next::Refuse if self.course == Course::HalfClosed => self.course = Course::Gone,
                Next::Refuse => {
                    self.course = Course::Refusing(0);
                    self.deadline = Some(now.saturating_add(REFUSAL_LINGER));
                    break;
                }
                Next::Read => break,
            }
        }
        if self.course == Course::Gone {
            self.broken();
        }
        if self.out.is_empty() && self.out.capacity() > 0 {
            self.give_back(spare);
        }
        match (self.course, self.wants()) {
            (_, Wants::Write) => {
                let waits = self.write_timeout > Duration::ZERO;
                if progress == Progress::Made {
                    self.deadline = waits.then(|| now.saturating_add(self.write_timeout));
                }
            }
            (Course::Open | Course::HalfClosed, _) => self.arm(now),
            (Course::Refusing(_) | Course::Gone, _) => (),
        }
    }

    /// Sets the deadline from the connection's patience; a limit of zero is no limit.
    fn arm(&mut self, now: MonotonicTime) {
        let from_now = |limit: Duration| (limit > Duration::ZERO).then(|| now.saturating_add(limit));
        let connection = self.connection.as_ref();
        let Ok(patience) = catch_unwind(AssertUnwindSafe(|| connection.patience())) else {
            return self.broken();
        };
        if !matches!(patience, Patience::Phase(..)) {
            self.phase = None;
        }
        self.deadline = match patience {
            Patience::Endless => None,
            Patience::Silence(limit) => from_now(limit),
            Patience::Phase(number, limit) => {
                let same = self.phase.filter(|phase| phase.number == number);
                let phase = same.unwrap_or_else(|| Phase { number, end: from_now(limit) });
                self.phase = Some(phase);
                phase.end
            }
        };
    }

    /// Returns the empty buffer to the caller, or frees it if the caller has one already.
    fn give_back(&mut self, spare: &mut Vec<u8>) {
        let buffer = std::mem::take(&mut self.out);
        if spare.capacity() == 0 {
            *spare = buffer;
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Bytes moved.
    Made,
    /// Nothing moved: a peer that is slow stays on its clock.
    None,
}

#[cfg(test)]
mod tests;
