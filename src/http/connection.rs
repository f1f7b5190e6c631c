//! One client's connection: requests are cut out of the bytes, handed over, and answered in order.
//! It must never know a socket, a clock or a thread; time comes as `expire`, the end as `drain`.

mod answering;

use std::mem;
use std::net::SocketAddr;

use crate::app::{Connection, ConnectionContext, Limits, Next, ReadTimeout, ClientInfo};

use super::chunked::{Decoded, Decoder};
use super::fault::Fault;
use super::head::{self, Expects, Framing, Head, Reuse};
use super::scan::{Scan, Scanner};
use super::sending::{PIECE, Sending};
use super::{Handler, Http};

/// A connection over a handler. Idle, it owns no memory but its own.
pub(super) struct HttpConnection<'s, H> {
    service: &'s Http<H>,
    client: Option<SocketAddr>,
    /// Input that could not be used yet: a part of a request, or requests whose turn comes later.
    buffer: Vec<u8>,
    state: State,
    reuse: Reuse,
    input: Input,
    waits: Waits,
    phase: u32,
}

/// What the next byte of input belongs to, or why it does not matter.
enum State {
    /// A head, or nothing yet.
    Head(Scanner),
    /// A body whose length is known; head and body are buffered together.
    Sized { head: usize, whole: usize },
    /// A chunked body; head and decoded body are gathered apart from the input.
    Chunked(Box<Gathered>),
    /// A later request: an answer is on its way.
    Answering(Sending, Reuse),
    /// Nothing: all has been said.
    Over(Next),
}

/// A request with a chunked body, while it arrives.
struct Gathered {
    bytes: Vec<u8>,
    head: usize,
    decoder: Decoder,
}

/// Whether the peer may send more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    Open,
    Ended,
}

/// What a connection that reads is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    /// The first byte of the first request.
    First,
    /// The first byte of another request.
    Another,
    /// The same, though no more than a moment: the worker is leaving.
    Lingering,
    /// The rest of a request.
    Rest,
}

/// Why the work has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// It cannot go on without more input.
    Starved,
    /// There is enough output for now.
    Full,
}

/// What one step has come to.
enum Step {
    /// So many bytes of the input are done with.
    Used(usize),
    /// So many too, and the rest is too little to go on.
    Starved(usize),
}

impl<H: Handler> Connection for HttpConnection<'_, H> {
    fn receive(&mut self, input: &[u8], ctx: &mut ConnectionContext<'_>) -> Next {
        if input.is_empty() {
            self.input = Input::Ended;
        }
        self.work(input, ctx)
    }

    fn resume(&mut self, ctx: &mut ConnectionContext<'_>) -> Next {
        self.work(&[], ctx)
    }

    fn on_timeout(&mut self, ctx: &mut ConnectionContext<'_>) -> Next {
        match &self.state {
            State::Over(next) => return *next,
            State::Answering(..) => self.end(Next::Close),
            State::Head(_) if self.buffer.is_empty() => self.end(Next::Close),
            State::Head(_) | State::Sized { .. } | State::Chunked(_) => {
                let begun = mem::take(self.begun());
                self.refuse(Fault::TIMEOUT, &begun, ctx);
            }
        }
        self.settle(Stop::Starved)
    }

    fn drain(&mut self, _exchange: &mut ConnectionContext<'_>) -> Next {
        self.reuse = Reuse::Last;
        match &self.state {
            State::Over(next) => *next,
            State::Answering(..) => Next::Continue,
            State::Head(_) if self.buffer.is_empty() && self.limits().drain_idle_timeout.is_zero() => {
                self.end(Next::Close);
                Next::Close
            }
            State::Head(_) if self.buffer.is_empty() => {
                self.wait_for(Waits::Lingering);
                Next::Read
            }
            // Requests that wait for their turn while earlier output is sent.
            State::Head(_) if self.waits == Waits::Another => Next::Continue,
            State::Head(_) | State::Sized { .. } | State::Chunked(_) => Next::Read,
        }
    }

    fn timeout(&self) -> ReadTimeout {
        let limits = self.limits();
        match (&self.state, self.waits) {
            // Now the peer is not waited for: how fast it reads is the caller's concern.
            (State::Answering(..), _) => ReadTimeout::None,
            (State::Sized { .. } | State::Chunked(_), _) => ReadTimeout::Idle(limits.body_timeout),
            (State::Head(_), Waits::First | Waits::Rest) => {
                ReadTimeout::Total(self.phase, limits.header_timeout)
            }
            (State::Head(_), Waits::Another) => ReadTimeout::Total(self.phase, limits.keepalive),
            (State::Head(_), Waits::Lingering) | (State::Over(_), _) => {
                ReadTimeout::Total(self.phase, limits.drain_idle_timeout)
            }
        }
    }
}

impl<'s, H: Handler> HttpConnection<'s, H> {
    /// A connection that has not sent a byte yet.
    pub(super) fn new(service: &'s Http<H>, peer: &ClientInfo) -> Self {
        let reusable = peer.allow_keepalive && !service.limits.keepalive.is_zero();
        Self {
            service,
            client: peer.address,
            buffer: Vec::new(),
            state: State::Head(Scanner::default()),
            reuse: if reusable { Reuse::Allowed } else { Reuse::Last },
            input: Input::Open,
            waits: Waits::First,
            phase: 0,
        }
    }

    fn limits(&self) -> &'s Limits {
        &self.service.limits
    }

    /// Goes on with what is buffered and `input`, and keeps what cannot be used yet.
    fn work(&mut self, input: &[u8], ctx: &mut ConnectionContext<'_>) -> Next {
        if self.buffer.is_empty() {
            let (used, stop) = self.run(input, ctx);
            if used < input.len() {
                self.store(&input[used..]);
            }
            return self.settle(stop);
        }
        self.store(input);
        let mut bytes = mem::take(&mut self.buffer);
        let (used, stop) = self.run(&bytes, ctx);
        if used < bytes.len() {
            bytes.drain(..used);
            if bytes.capacity() - bytes.len() > PIECE && used > 0 {
                bytes.shrink_to_fit();
            }
            self.buffer = bytes;
        }
        self.settle(stop)
    }

    /// Takes as many steps as the input and the room for output allow.
    fn run(&mut self, input: &[u8], ctx: &mut ConnectionContext<'_>) -> (usize, Stop) {
        let mut used = 0;
        loop {
            let rest = &input[used..];
            let step = match self.state {
                State::Over(_) => return (input.len(), Stop::Starved),
                _ if ctx.out.len() >= PIECE => return (used, Stop::Full),
                State::Head(_) => self.read_head(rest, ctx),
                State::Sized { head, whole } if whole <= rest.len() => {
                    self.replay(&rest[..whole], head, ctx);
                    Step::Used(whole)
                }
                State::Sized { .. } => Step::Starved(0),
                State::Chunked(_) => self.read_chunks(rest, ctx),
                State::Answering(..) => self.go_on_answering(ctx),
            };
            match step {
                Step::Used(length) => used += length,
                Step::Starved(length) => return (used + length, Stop::Starved),
            }
        }
    }

    /// Says what comes next, now that the work has stopped.
    fn settle(&mut self, stop: Stop) -> Next {
        match (&self.state, stop, self.waits) {
            (State::Over(_), _, _) => (),
            (_, Stop::Full, _) => return Next::Continue,
            (_, Stop::Starved, _) if self.input == Input::Ended => self.end(Next::Close),
            (State::Head(_), Stop::Starved, Waits::Rest) => (),
            (State::Head(_), Stop::Starved, _) if !self.buffer.is_empty() => {
                self.wait_for(Waits::Rest);
            }
            // The drain came while the last answer was on its way.
            (State::Head(_), Stop::Starved, Waits::Another) if self.reuse == Reuse::Last => {
                self.end(Next::Close);
            }
            _ => (),
        }
        if let State::Over(next) = self.state { next } else { Next::Read }
    }

    /// Looks for a head and, if its body is there as well, answers at once.
    fn read_head(&mut self, input: &[u8], ctx: &mut ConnectionContext<'_>) -> Step {
        let State::Head(scanner) = &mut self.state else {
            return Step::Used(0);
        };
        let blank = match scanner.skip_blank_lines(input) {
            Ok(blank) => blank,
            Err(fault) => {
                self.refuse(fault, b"", ctx);
                return Step::Used(input.len());
            }
        };
        let bytes = &input[blank..];
        if let [] | [b'\r'] = bytes {
            return Step::Starved(blank);
        }
        match scanner.scan(bytes, self.service.limits.max_head_bytes) {
            Ok(Scan::Partial) => Step::Starved(blank),
            Ok(Scan::Whole(length)) => Step::Used(blank + self.take_head(bytes, length, ctx)),
            Err(fault) => {
                self.refuse(fault, bytes, ctx);
                Step::Used(input.len())
            }
        }
    }

    /// Judges the head in the first `length` bytes of `input`, and says how many bytes are used.
    fn take_head(&mut self, input: &[u8], length: usize, ctx: &mut ConnectionContext<'_>) -> usize {
        let (bytes, rest) = input.split_at(length);
        let limits = self.limits();
        head::judge(bytes, limits.max_header_fields, |head| {
            let head = match head {
                Ok(head) => head,
                Err(fault) => {
                    self.refuse(fault, bytes, ctx);
                    return input.len();
                }
            };
            match head.framing {
                Framing::Length(body) if body > limits.max_body_bytes as u64 => {
                    self.refuse(Fault::BODY, bytes, ctx);
                    input.len()
                }
                // The cast is lossless: a body fits `limits.body`, which is a usize.
                Framing::Length(body) if body <= rest.len() as u64 => {
                    self.answer(&head, bytes, &rest[..body as usize], ctx);
                    length + body as usize
                }
                Framing::Length(body) => {
                    invite(&head, rest, ctx);
                    self.state = State::Sized { head: length, whole: length + body as usize };
                    0
                }
                Framing::Chunked => {
                    invite(&head, rest, ctx);
                    let bytes = bytes.to_vec();
                    let decoder = Decoder::default();
                    self.state =
                        State::Chunked(Box::new(Gathered { bytes, head: length, decoder }));
                    length
                }
            }
        })
    }

    fn read_chunks(&mut self, input: &[u8], ctx: &mut ConnectionContext<'_>) -> Step {
        let State::Chunked(gathered) = &mut self.state else {
            return Step::Used(0);
        };
        let Gathered { bytes, head, decoder } = gathered.as_mut();
        let limits = &self.service.limits;
        make_room(bytes, input.len(), *head + limits.max_body_bytes);
        match decoder.decode(input, bytes, limits) {
            Ok(Decoded::Partial) => Step::Starved(input.len()),
            Ok(Decoded::Whole(length)) => {
                let (bytes, head) = (mem::take(bytes), *head);
                self.replay(&bytes, head, ctx);
                Step::Used(length)
            }
            Err(fault) => {
                let bytes = mem::take(bytes);
                self.refuse(fault, &bytes, ctx);
                Step::Used(input.len())
            }
        }
    }

    /// Answers a request whose head was judged before its body had arrived.
    fn replay(&mut self, request: &[u8], head: usize, ctx: &mut ConnectionContext<'_>) {
        let (bytes, body) = request.split_at(head);
        head::judge(bytes, self.limits().max_header_fields, |head| match head {
            Ok(head) => self.answer(&head, bytes, body, ctx),
            Err(fault) => self.refuse(fault, bytes, ctx),
        });
    }

    fn end(&mut self, next: Next) {
        self.state = State::Over(next);
        self.buffer = Vec::new();
    }

    fn wait_for(&mut self, what: Waits) {
        // The first request has one phase, from the connect to the end of its head.
        if (self.waits, what) != (Waits::First, Waits::Rest) {
            self.phase = self.phase.wrapping_add(1);
        }
        self.waits = what;
    }

    /// The bytes of the request that has begun to arrive.
    fn begun(&mut self) -> &mut Vec<u8> {
        match &mut self.state {
            State::Chunked(gathered) => &mut gathered.bytes,
            _ => &mut self.buffer,
        }
    }

    /// Bytes of memory owned besides its own.
    #[cfg(test)]
    pub(super) fn footprint(&mut self) -> usize {
        self.begun().capacity()
    }

    fn store(&mut self, input: &[u8]) {
        let bound = match self.state {
            State::Sized { whole, .. } => whole,
            _ => self.limits().max_head_bytes,
        };
        make_room(&mut self.buffer, input.len(), bound);
        self.buffer.extend_from_slice(input);
    }
}

/// Tells a client that waits for it to send the body, unless some of it is there already (RFC
/// 9110, section 10.1.1).
fn invite(head: &Head<'_>, rest: &[u8], ctx: &mut ConnectionContext<'_>) {
    if head.expects == Expects::Continue && rest.is_empty() {
        ctx.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
    }
}

/// Grows a vector as usual, by doubling, yet not beyond `bound` bytes if that is enough.
fn make_room(bytes: &mut Vec<u8>, more: usize, bound: usize) {
    let needed = bytes.len() + more;
    if needed > bytes.capacity() {
        let wanted = needed.max((bytes.capacity() * 2).min(bound));
        bytes.reserve_exact(wanted - bytes.len());
    }
}
