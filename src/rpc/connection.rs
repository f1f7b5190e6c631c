//! The connection of one client: splits the input into messages, and answers them in order. It uses no
//! socket, clock or thread: the caller reports time by `on_timeout`, and the drain by `drain`.

use std::mem;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rmp::encode::write_uint;

use super::call::{Call, ResultWriter};
use super::error::{Error, NIL};
use super::limits::Limits;
use super::logging;
use super::message::Message;
use super::scan::{Scan, ScanError, Scanner};
use super::service::Rpc;
use crate::app::{BodyShare, ClientInfo, Connection, ConnectionContext, Next, ReadTimeout};

/// The start of a response: an array of four values, of which the first is the type.
const RESPONSE: [u8; 2] = [0x94, 0x01];

/// Maximum unused capacity of a connection's buffer, in bytes.
const SPARE_MAX: usize = 128 << 10;

/// How many bytes of a message must arrive within `read_timeout`, unless it ends.
const MESSAGE_STEP: usize = 4 << 10;

/// The RPC connection of one client. An idle connection owns no heap memory.
pub(super) struct RpcConnection<'s> {
    rpc: &'s Rpc,
    peer: Option<SocketAddr>,
    /// Input that is not processed yet, after `used` processed bytes: a part of a message, or pipelined
    /// messages.
    buffer: Vec<u8>,
    used: usize,
    scanner: Scanner,
    /// The index of the method that was called last.
    last_method: usize,
    state: ConnectionState,
    input: Input,
    read_state: ReadState,
    phase: u32,
    /// Whether the class can serve others while this client is idle.
    allow_keepalive: bool,
    /// The memory of a partial message.
    share: BodyShare<'s>,
}

/// The state of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnectionState {
    Serving,
    /// The worker drains: messages that have arrived are answered, and no others.
    Draining,
    /// The connection is about to close.
    Closed(Next),
}

/// Whether the client may send more.
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
    /// A call that may be in transit to a draining worker.
    DrainIdle,
    /// The rest of a message, of which so many steps have arrived.
    Partial(usize),
    /// Nothing: calls have arrived, and are processed after the output has been sent.
    Yielded,
}

/// Why processing has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    /// It needs more input; with the number of processed calls.
    NeedsInput(usize),
    /// The output or the number of calls has reached its limit, or the output should not wait.
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

    fn on_timeout(&mut self, _ctx: &mut ConnectionContext<'_>) -> Next {
        match self.state {
            ConnectionState::Closed(next) => next,
            ConnectionState::Serving | ConnectionState::Draining => self.close(Next::Close),
        }
    }

    fn drain(&mut self, _ctx: &mut ConnectionContext<'_>) -> Next {
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
                let limit =
                    if self.allow_keepalive { limits.idle_timeout } else { limits.keepalive };
                ReadTimeout::Total { phase: self.phase, limit }
            }
            ReadState::DrainIdle => {
                ReadTimeout::Total { phase: self.phase, limit: limits.drain_idle_timeout }
            }
            ReadState::Partial(_) => {
                ReadTimeout::Total { phase: self.phase, limit: limits.read_timeout }
            }
            // No input is expected. The session limits how slowly the client reads.
            ReadState::Yielded => ReadTimeout::None,
        }
    }
}

impl<'s> RpcConnection<'s> {
    /// Creates the connection of a new client.
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
            allow_keepalive: client.allow_keepalive,
            share: rpc.partial_messages.share(),
        }
    }

    fn limits(&self) -> &'s Limits {
        &self.rpc.limits
    }

    /// Processes the buffer and `input`, and stores the rest.
    fn process(&mut self, input: &[u8], ctx: &mut ConnectionContext<'_>) -> Next {
        let pause = if self.buffer.is_empty() {
            let (used, pause) = self.process_bytes(input, ctx);
            self.store(&input[used..]);
            pause
        } else {
            self.store(input);
            let bytes = mem::take(&mut self.buffer);
            let start = mem::take(&mut self.used);
            let (used, pause) = self.process_bytes(&bytes[start..], ctx);
            self.keep_unread(bytes, start + used);
            pause
        };
        self.account();
        self.next_action(pause)
    }

    /// Accounts for a partial message after processing has stopped. If the worker has no memory for it,
    /// the connection closes.
    fn account(&mut self) {
        let bytes = self.buffer.len() - self.used;
        if bytes == 0 && self.share.is_empty() {
            return;
        }
        let limits = self.limits();
        let limit = match limits.partial_messages {
            0 => 0,
            limit => limit.max(limits.message), // one message alone is limited by its own size
        };
        if !self.share.resize(bytes, limit) {
            self.close(Next::LingeringClose);
        }
    }

    /// Processes as many messages as the input and the limits of the output allow. Returns the number
    /// of processed bytes.
    fn process_bytes(&mut self, input: &[u8], ctx: &mut ConnectionContext<'_>) -> (usize, Pause) {
        let limits = self.limits();
        let (mut used, mut calls) = (0, 0);
        loop {
            if let ConnectionState::Closed(_) = self.state {
                return (input.len(), Pause::NeedsInput(calls));
            }
            let rest = &input[used..];
            if !rest.is_empty()
                && (calls == limits.max_pipelined
                    || ctx.out.len() >= limits.max_pending_output
                    || ctx.should_send())
            {
                return (used, Pause::OutputFull);
            }
            let (message, length) = match self.next_message(rest) {
                Ok(Some(found)) => found,
                Ok(None) => return (used, Pause::NeedsInput(calls)),
                Err(_) => {
                    self.close(Next::LingeringClose); // the start of the next message is unknown
                    continue;
                }
            };
            used += length;
            self.handle_message(&message, ctx);
            calls += 1;
        }
    }

    /// Returns the message at the start of `input`, and its length; none if it is incomplete.
    #[inline(always)] // otherwise each message is copied through memory, which costs as much as the rest
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

    /// Returns the next action after processing has stopped.
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
            // Calls in transit are not begun but discarded, so that the client can read its responses.
            (ConnectionState::Draining, 1.., _)
            | (ConnectionState::Draining, _, ReadState::Yielded) => {
                return self.close(Next::LingeringClose);
            }
            (ConnectionState::Draining, ..) => (),
            (_, calls, before) if !self.buffer.is_empty() => {
                let step = ReadState::Partial((self.buffer.len() - self.used) / MESSAGE_STEP);
                if calls > 0 || before != step {
                    self.set_read_state(step);
                }
            }
            (_, 1.., _) => self.set_read_state(ReadState::KeepAlive),
            _ => (),
        }
        if self.buffer.is_empty() {
            self.scanner.reset();
        }
        Next::Read
    }

    /// Processes a call as one unit of work.
    fn handle_message(&mut self, message: &Message<'_>, ctx: &mut ConnectionContext<'_>) {
        ctx.begin_work(message.method);
        let start = ctx.out.len();
        if let Some(id) = message.id {
            begin_result(ctx.out, id);
        }
        let result = self.call(message, ctx);
        let is_ok = result.is_ok();
        match (message.id, result) {
            (Some(_), Ok(())) => (),
            (Some(id), Err(error)) => {
                ctx.out.truncate(start);
                begin_response(ctx.out, id);
                error.write(ctx.out);
                ctx.out.push(NIL);
            }
            // A notification has no response, not even an error.
            (None, _) => ctx.out.truncate(start),
        }
        let holds_worker = !self.allow_keepalive;
        if message.id.is_some() && holds_worker && self.limits().keepalive.is_zero() {
            self.close(Next::Close);
        }
        if ctx.logs_units() {
            let result_bytes = ctx.out.len() - start;
            ctx.log_unit(&logging::unit_of(message, self.peer, is_ok, result_bytes));
        }
        ctx.end_work();
    }

    /// Runs the method, which appends its result.
    fn call(
        &mut self,
        message: &Message<'_>,
        ctx: &mut ConnectionContext<'_>,
    ) -> Result<(), Error> {
        let Rpc { methods, worker, .. } = self.rpc;
        let Some((index, method)) = methods.find(message.method, self.last_method) else {
            return Err(Error::unknown(message.method));
        };
        self.last_method = index;
        let (out, unit) = ctx.split();
        let call = Call { params: message.params, peer: &self.peer, worker, unit: &unit };
        // All clients share the method: other threads see what a panic leaves behind in it, whether
        // the panic is caught here or not.
        catch_unwind(AssertUnwindSafe(|| method(&call, &mut ResultWriter { out })))
            .unwrap_or_else(|_| Err(Error::panicked()))
    }

    fn close(&mut self, next: Next) -> Next {
        self.state = ConnectionState::Closed(next);
        self.buffer = Vec::new();
        self.used = 0;
        self.share.resize(0, 0);
        self.scanner.reset();
        next
    }

    fn set_read_state(&mut self, state: ReadState) {
        self.phase = self.phase.wrapping_add(1);
        self.read_state = state;
    }

    /// Appends input to the buffer.
    fn store(&mut self, input: &[u8]) {
        if input.is_empty() {
            return;
        }
        self.buffer.drain(..mem::take(&mut self.used));
        let length = self.buffer.len() + input.len();
        let capacity = self.buffer.capacity();
        if length > capacity {
            // Doubles, but not beyond the maximum message size if that is enough.
            let wanted = length.max((capacity * 2).min(self.limits().message));
            self.buffer.reserve_exact(wanted - self.buffer.len());
        }
        self.buffer.extend_from_slice(input);
    }

    /// Stores the bytes after the first `used`, and frees an oversized buffer.
    fn keep_unread(&mut self, bytes: Vec<u8>, used: usize) {
        let rest = bytes.len() - used;
        if rest > 0 && bytes.capacity() > rest + SPARE_MAX {
            self.buffer = bytes[used..].to_vec();
        } else if rest > 0 {
            (self.buffer, self.used) = (bytes, used);
        }
    }

    /// Returns the number of heap bytes it owns.
    #[cfg(test)]
    pub(super) fn footprint(&self) -> usize {
        self.buffer.capacity() + self.scanner.footprint()
    }
}

/// Begins the response to a successful call. The result follows.
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
    // A write to a Vec cannot fail.
    let _ = write_uint(out, id.into());
}
