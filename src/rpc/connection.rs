//! One client's connection: messages are cut out of the bytes, worked on, and answered in order.
//! It must never know a socket, a clock or a thread; time comes as `expire`, the end as `drain`.

use std::mem;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rmp::encode::write_uint;

use super::error::{Error, NIL};
use super::message::Message;
use super::scan::{Fault, Scan, Scanner};
use super::{Answer, Call, Limits, Rpc};
use crate::app::{Connection, ConnectionContext, Next, ReadTimeout, ClientInfo};

/// The beginning of an answer: an array of four, of which the first is the type.
const ANSWER: [u8; 2] = [0x94, 0x01];

/// How much memory a connection may have beyond what it keeps.
const SPARE_MAX: usize = 128 << 10;

/// A connection over a service. Idle, it owns no memory but its own.
pub(super) struct RpcConnection<'s> {
    rpc: &'s Rpc,
    peer: Option<SocketAddr>,
    /// Input that could not be used yet, behind some that has been used: a part of a message, or
    /// messages whose turn comes later.
    buffer: Vec<u8>,
    used: usize,
    scanner: Scanner,
    /// The place of the method that was called last.
    last_method: usize,
    course: Course,
    input: Input,
    waits: Waits,
    phase: u32,
}

/// How far the connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    Serving,
    /// The worker leaves: what is there is answered, and no more.
    Leaving,
    /// All has been said.
    Over(Next),
}

/// Whether the peer may send more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    Open,
    Ended,
}

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    /// The first byte of the first call.
    First,
    /// The first byte of another call.
    Another,
    /// A call that may be on its way to a worker that leaves.
    Lingering,
    /// The rest of a message.
    Rest,
    /// Nothing: calls are there, and their turn comes once the output has been sent.
    Turn,
}

/// Why the work has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// It cannot go on without more input. So many calls have been worked on.
    Starved(usize),
    /// There are answers enough for now.
    Full,
}

impl Connection for RpcConnection<'_> {
    fn receive(&mut self, input: &[u8], ctx: &mut ConnectionContext<'_>) -> Next {
        if input.is_empty() {
            self.input = Input::Ended;
        }
        self.work(input, ctx)
    }

    fn resume(&mut self, ctx: &mut ConnectionContext<'_>) -> Next {
        self.work(&[], ctx)
    }

    fn on_timeout(&mut self, _exchange: &mut ConnectionContext<'_>) -> Next {
        match self.course {
            Course::Over(next) => next,
            Course::Serving | Course::Leaving => self.end(Next::Close),
        }
    }

    fn drain(&mut self, _exchange: &mut ConnectionContext<'_>) -> Next {
        match (self.course, self.waits) {
            (Course::Over(next), _) => next,
            (_, Waits::Turn) => {
                self.course = Course::Leaving;
                Next::Continue
            }
            _ if self.limits().linger.is_zero() => self.end(Next::Close),
            _ => {
                self.course = Course::Leaving;
                self.wait_for(Waits::Lingering);
                Next::Read
            }
        }
    }

    fn timeout(&self) -> ReadTimeout {
        let limits = self.limits();
        match self.waits {
            Waits::First => ReadTimeout::Total(self.phase, limits.first_call),
            Waits::Another => ReadTimeout::Total(self.phase, limits.keepalive),
            Waits::Lingering => ReadTimeout::Total(self.phase, limits.linger),
            Waits::Rest => ReadTimeout::Idle(limits.silence),
            // Now the peer is not waited for: how fast it reads is the caller's concern.
            Waits::Turn => ReadTimeout::None,
        }
    }
}

impl<'s> RpcConnection<'s> {
    /// A connection that has not made a call yet.
    pub(super) fn new(rpc: &'s Rpc, peer: &ClientInfo) -> Self {
        Self {
            rpc,
            peer: peer.address,
            buffer: Vec::new(),
            used: 0,
            scanner: Scanner::default(),
            last_method: 0,
            course: Course::Serving,
            input: Input::Open,
            waits: Waits::First,
            phase: 0,
        }
    }

    fn limits(&self) -> &'s Limits {
        &self.rpc.limits
    }

    /// Goes on with what is buffered and `input`, and keeps what cannot be used yet.
    fn work(&mut self, input: &[u8], ctx: &mut ConnectionContext<'_>) -> Next {
        let stop = if self.buffer.is_empty() {
            let (used, stop) = self.run(input, ctx);
            self.store(&input[used..]);
            stop
        } else {
            self.store(input);
            let (bytes, start) = (mem::take(&mut self.buffer), mem::take(&mut self.used));
            let (used, stop) = self.run(&bytes[start..], ctx);
            self.keep(bytes, start + used);
            stop
        };
        self.settle(stop)
    }

    /// Works on as many messages as the input and the room for output allow. Returns how many
    /// bytes are done with.
    fn run(&mut self, input: &[u8], ctx: &mut ConnectionContext<'_>) -> (usize, Stop) {
        let limits = self.limits();
        let (mut used, mut calls) = (0, 0);
        loop {
            if let Course::Over(_) = self.course {
                return (input.len(), Stop::Starved(calls));
            }
            let rest = &input[used..];
            if !rest.is_empty() && (calls == limits.calls || ctx.out.len() >= limits.output) {
                return (used, Stop::Full);
            }
            let (message, length) = match self.next_message(rest) {
                Ok(Some(found)) => found,
                Ok(None) => return (used, Stop::Starved(calls)),
                Err(_) => {
                    self.end(Next::LingeringClose); // nothing that follows could be told from it
                    continue;
                }
            };
            used += length;
            self.take(&message, ctx);
            calls += 1;
        }
    }

    /// The message that `input` begins with, and its length; none if its end is not there yet.
    #[inline(always)] // or each message would go through memory, which costs as much as the rest
    fn next_message<'i>(&mut self, input: &'i [u8]) -> Result<Option<(Message<'i>, usize)>, Fault> {
        let limits = self.limits();
        if self.scanner.is_at_rest()
            && let Some(found) = Message::at_once(input, limits)
        {
            return Ok(Some(found));
        }
        match self.scanner.scan(input, limits)? {
            Scan::Partial => Ok(None),
            Scan::Whole(length) => Ok(Some((Message::parse(&input[..length])?, length))),
        }
    }

    /// Says what comes next, now that the work has stopped.
    fn settle(&mut self, stop: Stop) -> Next {
        let calls = match (self.course, stop) {
            (Course::Over(next), _) => return next,
            (_, Stop::Full) => {
                self.waits = Waits::Turn;
                return Next::Continue;
            }
            (_, Stop::Starved(calls)) => calls,
        };
        if self.input == Input::Ended {
            return self.end(Next::Close);
        }
        match (self.course, calls, self.waits) {
            // What is on its way is not begun but thrown away, so that the client reads the rest.
            (Course::Leaving, 1.., _) | (Course::Leaving, _, Waits::Turn) => {
                return self.end(Next::LingeringClose);
            }
            (Course::Leaving, ..) => (),
            _ if !self.buffer.is_empty() => self.waits = Waits::Rest,
            (_, 1.., _) => self.wait_for(Waits::Another),
            _ => (),
        }
        if self.buffer.is_empty() {
            self.scanner.rest();
        }
        Next::Read
    }

    /// Works on a call, as one unit of work.
    fn take(&mut self, message: &Message<'_>, ctx: &mut ConnectionContext<'_>) {
        ctx.begin_work(message.method);
        let begin = ctx.out.len();
        if let Some(id) = message.id {
            begin_result(ctx.out, id);
        }
        let result = self.call(message, ctx);
        match (message.id, result) {
            (Some(_), Ok(())) => (),
            (Some(id), Err(error)) => {
                ctx.out.truncate(begin);
                begin_answer(ctx.out, id);
                error.write(ctx.out);
                ctx.out.push(NIL);
            }
            // Nobody waits to be told, not even of an error.
            (None, _) => ctx.out.truncate(begin),
        }
        if message.id.is_some() && self.limits().keepalive.is_zero() {
            self.end(Next::Close);
        }
        ctx.end_work();
    }

    /// Calls the method, which appends its result.
    fn call(&mut self, message: &Message<'_>, ctx: &mut ConnectionContext<'_>) -> Result<(), Error> {
        let Rpc { service, place: worker, .. } = self.rpc;
        let Some((found, method)) = service.find(message.method, self.last_method) else {
            return Err(Error::unknown(message.method));
        };
        self.last_method = found;
        let (out, allowance) = ctx.split();
        let call = Call { params: message.params, peer: &self.peer, place: worker, allowance: &allowance };
        // The method is shared by all clients anyway: what a panic leaves behind in it is seen by
        // other threads whether it is caught here or not.
        catch_unwind(AssertUnwindSafe(|| method(&call, &mut Answer { out })))
            .unwrap_or_else(|_| Err(Error::panicked()))
    }

    fn end(&mut self, next: Next) -> Next {
        self.course = Course::Over(next);
        self.buffer = Vec::new();
        self.used = 0;
        self.scanner.rest();
        next
    }

    fn wait_for(&mut self, what: Waits) {
        self.phase = self.phase.wrapping_add(1);
        self.waits = what;
    }

    /// Adds input to what is kept.
    fn store(&mut self, input: &[u8]) {
        if input.is_empty() {
            return;
        }
        self.buffer.drain(..mem::take(&mut self.used));
        let (length, room) = (self.buffer.len() + input.len(), self.buffer.capacity());
        if length > room {
            // By doubling, yet not beyond the largest message if that is enough.
            let wanted = length.max((room * 2).min(self.limits().message));
            self.buffer.reserve_exact(wanted - self.buffer.len());
        }
        self.buffer.extend_from_slice(input);
    }

    /// Keeps the bytes behind the first `used`, in memory of their size.
    fn keep(&mut self, bytes: Vec<u8>, used: usize) {
        let rest = bytes.len() - used;
        if rest > 0 && bytes.capacity() > rest + SPARE_MAX {
            self.buffer = bytes[used..].to_vec();
        } else if rest > 0 {
            (self.buffer, self.used) = (bytes, used);
        }
    }

    /// Bytes of memory owned besides its own.
    #[cfg(test)]
    pub(super) fn footprint(&self) -> usize {
        self.buffer.capacity() + self.scanner.footprint()
    }
}

/// Begins the answer to a call that has not failed: its result is what comes next.
#[inline]
fn begin_result(out: &mut Vec<u8>, id: u32) {
    match u8::try_from(id) {
        Ok(short @ ..=0x7f) => out.extend_from_slice(&[ANSWER[0], ANSWER[1], short, NIL]),
        _ => {
            begin_answer(out, id);
            out.push(NIL);
        }
    }
}

#[inline(never)]
fn begin_answer(out: &mut Vec<u8>, id: u32) {
    out.extend_from_slice(&ANSWER);
    // Memory takes any number.
    let _ = write_uint(out, id.into());
}
