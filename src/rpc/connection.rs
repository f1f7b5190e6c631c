//! One client's connection: messages are cut out of the bytes, worked on, and answered in order.
//! It must never know a socket, a clock or a thread; time comes as `expire`, the end as `drain`.

use std::mem;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rmp::encode::write_uint;

use super::call::{Call, ResultWriter};
use super::error::{Error, NIL};
use super::limits::Limits;
use super::message::Message;
use super::scan::{Scan, ScanError, Scanner};
use super::service::Rpc;
use crate::app::{ClientInfo, Connection, ConnectionContext, Next, ReadTimeout};

/// The beginning of an answer: an array of four, of which the first is the type.
const RESPONSE: [u8; 2] = [0x94, 0x01];

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
    state: ConnectionState,
    input: Input,
    read_state: ReadState,
    phase: u32,
}

/// How far the connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnectionState {
    Serving,
    /// The worker leaves: what is there is answered, and no more.
    Draining,
    /// All has been said.
    Closed(Next),
}

/// Whether the peer may send more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    Open,
    Ended,
}

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReadState {
    /// The first byte of the first call.
    First,
    /// The first byte of another call.
    KeepAlive,
    /// A call that may be on its way to a worker that leaves.
    DrainIdle,
    /// The rest of a message.
    Partial,
    /// Nothing: calls are there, and their turn comes once the output has been sent.
    Yielded,
}

/// Why the work has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    /// It cannot go on without more input. So many calls have been worked on.
    NeedsInput(usize),
    /// There are answers enough for now.
    OutputFull,
}

impl Connection for RpcConnection<'_> {
    fn receive(&mut self, input: &[u8], ctx: &mut ConnectionContext<'_>) -> Next {
        if input.is_empty() {
            self.input = Input::Ended;
        }
        self.process(input, ctx)
    }

    fn resume(&mut self, ctx: &mut ConnectionContext<'_>) -> Next {
        self.process(&[], ctx)
    }

    fn on_timeout(&mut self, _exchange: &mut ConnectionContext<'_>) -> Next {
        match self.state {
            ConnectionState::Closed(next) => next,
            ConnectionState::Serving | ConnectionState::Draining => self.close(Next::Close),
        }
    }

    fn drain(&mut self, _exchange: &mut ConnectionContext<'_>) -> Next {
        match (self.state, self.read_state) {
            (ConnectionState::Closed(next), _) => next,
            (_, ReadState::Yielded) => {
                self.state = ConnectionState::Draining;
                Next::Continue
            }
            _ if self.limits().drain_idle_timeout.is_zero() => self.close(Next::Close),
            _ => {
                self.state = ConnectionState::Draining;
                self.set_read_state(ReadState::DrainIdle);
                Next::Read
            }
        }
    }

    fn timeout(&self) -> ReadTimeout {
        let limits = self.limits();
        match self.read_state {
            ReadState::First => {
                ReadTimeout::Total { phase: self.phase, limit: limits.first_call_timeout }
            }
            ReadState::KeepAlive => {
                ReadTimeout::Total { phase: self.phase, limit: limits.keepalive }
            }
            ReadState::DrainIdle => {
                ReadTimeout::Total { phase: self.phase, limit: limits.drain_idle_timeout }
            }
            ReadState::Partial => ReadTimeout::Idle(limits.read_timeout),
            // Now the peer is not waited for: how fast it reads is the caller's concern.
            ReadState::Yielded => ReadTimeout::None,
        }
    }
}

impl<'s> RpcConnection<'s> {
    /// A connection that has not made a call yet.
    pub(super) fn new(rpc: &'s Rpc, client: &ClientInfo) -> Self {
        Self {
            rpc,
            peer: client.address,
            buffer: Vec::new(),
            used: 0,
            scanner: Scanner::default(),
            last_method: 0,
            state: ConnectionState::Serving,
            input: Input::Open,
            read_state: ReadState::First,
            phase: 0,
        }
    }

    fn limits(&self) -> &'s Limits {
        &self.rpc.limits
    }

    /// Goes on with what is buffered and `input`, and keeps what cannot be used yet.
    fn process(&mut self, input: &[u8], ctx: &mut ConnectionContext<'_>) -> Next {
        let pause = if self.buffer.is_empty() {
            let (used, pause) = self.process_bytes(input, ctx);
            self.store(&input[used..]);
            pause
        } else {
            self.store(input);
            let (bytes, start) = (mem::take(&mut self.buffer), mem::take(&mut self.used));
            let (used, pause) = self.process_bytes(&bytes[start..], ctx);
            self.keep_unread(bytes, start + used);
            pause
        };
        self.next_action(pause)
    }

    /// Works on as many messages as the input and the room for output allow. Returns how many
    /// bytes are done with.
    fn process_bytes(&mut self, input: &[u8], ctx: &mut ConnectionContext<'_>) -> (usize, Pause) {
        let limits = self.limits();
        let (mut used, mut calls) = (0, 0);
        loop {
            if let ConnectionState::Closed(_) = self.state {
                return (input.len(), Pause::NeedsInput(calls));
            }
            let rest = &input[used..];
            if !rest.is_empty()
                && (calls == limits.max_pipelined || ctx.out.len() >= limits.max_pending_output)
            {
                return (used, Pause::OutputFull);
            }
            let (message, length) = match self.next_message(rest) {
                Ok(Some(found)) => found,
                Ok(None) => return (used, Pause::NeedsInput(calls)),
                Err(_) => {
                    self.close(Next::LingeringClose); // nothing that follows could be told from it
                    continue;
                }
            };
            used += length;
            self.handle_message(&message, ctx);
            calls += 1;
        }
    }

    /// The message that `input` begins with, and its length; none if its end is not there yet.
    #[inline(always)] // or each message would go through memory, which costs as much as the rest
    fn next_message<'i>(
        &mut self,
        input: &'i [u8],
    ) -> Result<Option<(Message<'i>, usize)>, ScanError> {
        let limits = self.limits();
        if self.scanner.is_idle()
            && let Some(found) = Message::parse_flat(input, limits)
        {
            return Ok(Some(found));
        }
        match self.scanner.scan(input, limits)? {
            Scan::Partial => Ok(None),
            Scan::Whole(length) => Ok(Some((Message::parse(&input[..length])?, length))),
        }
    }

    /// Says what comes next, now that the work has stopped.
    fn next_action(&mut self, pause: Pause) -> Next {
        let calls = match (self.state, pause) {
            (ConnectionState::Closed(next), _) => return next,
            (_, Pause::OutputFull) => {
                self.read_state = ReadState::Yielded;
                return Next::Continue;
            }
            (_, Pause::NeedsInput(calls)) => calls,
        };
        if self.input == Input::Ended {
            return self.close(Next::Close);
        }
        match (self.state, calls, self.read_state) {
            // What is on its way is not begun but thrown away, so that the client reads the rest.
            (ConnectionState::Draining, 1.., _)
            | (ConnectionState::Draining, _, ReadState::Yielded) => {
                return self.close(Next::LingeringClose);
            }
            (ConnectionState::Draining, ..) => (),
            _ if !self.buffer.is_empty() => self.read_state = ReadState::Partial,
            (_, 1.., _) => self.set_read_state(ReadState::KeepAlive),
            _ => (),
        }
        if self.buffer.is_empty() {
            self.scanner.reset();
        }
        Next::Read
    }

    /// Works on a call, as one unit of work.
    fn handle_message(&mut self, message: &Message<'_>, ctx: &mut ConnectionContext<'_>) {
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
                begin_response(ctx.out, id);
                error.write(ctx.out);
                ctx.out.push(NIL);
            }
            // Nobody waits to be told, not even of an error.
            (None, _) => ctx.out.truncate(begin),
        }
        if message.id.is_some() && self.limits().keepalive.is_zero() {
            self.close(Next::Close);
        }
        ctx.end_work();
    }

    /// Calls the method, which appends its result.
    fn call(
        &mut self,
        message: &Message<'_>,
        ctx: &mut ConnectionContext<'_>,
    ) -> Result<(), Error> {
        let Rpc { methods: service, worker, .. } = self.rpc;
        let Some((found, method)) = service.find(message.method, self.last_method) else {
            return Err(Error::unknown(message.method));
        };
        self.last_method = found;
        let (out, extender) = ctx.split();
        let call = Call { params: message.params, peer: &self.peer, worker, extender: &extender };
        // The method is shared by all clients anyway: what a panic leaves behind in it is seen by
        // other threads whether it is caught here or not.
        catch_unwind(AssertUnwindSafe(|| method(&call, &mut ResultWriter { out })))
            .unwrap_or_else(|_| Err(Error::panicked()))
    }

    fn close(&mut self, next: Next) -> Next {
        self.state = ConnectionState::Closed(next);
        self.buffer = Vec::new();
        self.used = 0;
        self.scanner.reset();
        next
    }

    fn set_read_state(&mut self, state: ReadState) {
        self.phase = self.phase.wrapping_add(1);
        self.read_state = state;
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
    fn keep_unread(&mut self, bytes: Vec<u8>, used: usize) {
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
        Ok(short @ ..=0x7f) => out.extend_from_slice(&[RESPONSE[0], RESPONSE[1], short, NIL]),
        _ => {
            begin_response(out, id);
            out.push(NIL);
        }
    }
}

#[inline(never)]
fn begin_response(out: &mut Vec<u8>, id: u32) {
    out.extend_from_slice(&RESPONSE);
    // Memory takes any number.
    let _ = write_uint(out, id.into());
}
