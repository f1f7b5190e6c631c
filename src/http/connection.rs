//! The connection of one client: splits the input into requests, and answers them in order. It uses no
//! socket, clock or thread: the caller reports time by `on_timeout`, and the drain by `drain`.

mod logging;
mod responding;
mod state;

use std::mem;

use crate::app::{Connection, ConnectionContext, Next, ReadTimeout};

use super::chunked::{Decoded, Decoder};
use super::error::RequestError;
use super::handler::Handler;
use super::head::{self, Expects, Framing, Head, Reusable};
use super::scan::Scan;
use super::sending::PIECE;

use state::{ChunkedBody, Input, Pause, ReadState, State, Step};

pub(super) use state::HttpConnection;

impl<H: Handler> Connection for HttpConnection<'_, H> {
    fn receive(&mut self, input: &[u8], ctx: &mut ConnectionContext<'_>) -> Next {
        if input.is_empty() {
            self.input = Input::Ended;
        }
        self.process(input, ctx)
    }

    fn resume(&mut self, ctx: &mut ConnectionContext<'_>) -> Next {
        self.process(&[], ctx)
    }

    fn on_timeout(&mut self, ctx: &mut ConnectionContext<'_>) -> Next {
        match &self.state {
            State::Closed(next) => return *next,
            State::Responding(..) => return self.keep_alive(ctx),
            State::Deferred(_) => return Next::Wait,
            State::Head(_) if self.buffer.is_empty() => self.close(Next::Close),
            State::Head(_) | State::Sized { .. } | State::Chunked(_) => {
                let partial = mem::take(self.partial_bytes());
                self.reject(RequestError::TIMEOUT, &partial, ctx);
            }
        }
        self.next_action(Pause::NeedsInput)
    }

    fn drain(&mut self, _ctx: &mut ConnectionContext<'_>) -> Next {
        self.reusable = Reusable::No;
        match &self.state {
            State::Closed(next) => *next,
            State::Responding(..) | State::Deferred(_) => Next::Continue,
            State::Head(_)
                if self.buffer.is_empty() && self.limits().drain_idle_timeout.is_zero() =>
            {
                self.close(Next::Close);
                Next::Close
            }
            State::Head(_) if self.buffer.is_empty() => {
                self.set_read_state(ReadState::DrainIdle);
                Next::Read
            }
            // Pipelined requests that wait until earlier output is sent.
            State::Head(_) if self.read_state == ReadState::KeepAlive => Next::Continue,
            State::Head(_) | State::Sized { .. } | State::Chunked(_) => Next::Read,
        }
    }

    fn timeout(&self) -> ReadTimeout {
        let limits = self.limits();
        match (&self.state, self.read_state) {
            // No input is expected. The session limits how slowly the client reads.
            (State::Responding(sending, _), _) => match sending.idle_limit() {
                Some(limit) => ReadTimeout::Total { phase: self.phase, limit },
                None => ReadTimeout::None,
            },
            (State::Deferred(_), _) => ReadTimeout::None,
            (State::Sized { .. } | State::Chunked(_), _) => {
                ReadTimeout::Total { phase: self.phase, limit: limits.body_timeout }
            }
            (State::Head(_), ReadState::First | ReadState::Partial) => {
                ReadTimeout::Total { phase: self.phase, limit: limits.header_timeout }
            }
            (State::Head(_), ReadState::KeepAlive) => {
                ReadTimeout::Total { phase: self.phase, limit: limits.keepalive }
            }
            (State::Head(_), ReadState::DrainIdle) | (State::Closed(_), _) => {
                ReadTimeout::Total { phase: self.phase, limit: limits.drain_idle_timeout }
            }
        }
    }
}

impl<'s, H: Handler> HttpConnection<'s, H> {
    /// Processes the buffer and `input`, and stores the rest.
    fn process(&mut self, input: &[u8], ctx: &mut ConnectionContext<'_>) -> Next {
        if self.buffer.is_empty() {
            let (used, pause) = self.process_bytes(input, ctx);
            if used < input.len() {
                self.store(&input[used..]);
            }
            return self.finish(pause, ctx);
        }
        self.store(input);
        let mut bytes = mem::take(&mut self.buffer);
        let (used, pause) = self.process_bytes(&bytes, ctx);
        if used < bytes.len() {
            bytes.drain(..used);
            if bytes.capacity() - bytes.len() > PIECE && used > 0 {
                bytes.shrink_to_fit();
            }
            self.buffer = bytes;
        }
        self.finish(pause, ctx)
    }

    /// Accounts for a partial body after processing has stopped, and returns the next action. A body
    /// for which the worker has no memory is rejected.
    fn finish(&mut self, pause: Pause, ctx: &mut ConnectionContext<'_>) -> Next {
        let has_body = matches!(self.state, State::Sized { .. } | State::Chunked(_));
        if has_body || !self.body_share.is_empty() {
            let limits = self.limits();
            let bytes = if has_body { self.partial_bytes().len() } else { 0 };
            // One body alone is limited by its own size.
            let limit = match limits.max_bodies_bytes {
                0 => 0,
                limit => limit.max(limits.max_body_bytes.saturating_add(limits.max_head_bytes)),
            };
            if !self.body_share.resize(bytes, limit) {
                let partial = mem::take(self.partial_bytes());
                self.reject(RequestError::MEMORY, &partial, ctx);
                self.body_share.resize(0, limit);
            }
        }
        self.next_action(pause)
    }

    /// Takes as many steps as the input and the limit of the output allow.
    fn process_bytes(&mut self, input: &[u8], ctx: &mut ConnectionContext<'_>) -> (usize, Pause) {
        let mut used = 0;
        loop {
            let rest = &input[used..];
            let step = match self.state {
                State::Closed(_) => return (input.len(), Pause::NeedsInput),
                _ if ctx.out.len() >= PIECE => return (used, Pause::OutputFull),
                State::Head(_) if !rest.is_empty() && ctx.should_send() => {
                    return (used, Pause::OutputFull);
                }
                State::Head(_) => self.read_head(rest, ctx),
                State::Sized { head, whole } if whole <= rest.len() => {
                    self.respond_to(&rest[..whole], head, ctx);
                    Step::Consumed(whole)
                }
                State::Sized { .. } => Step::NeedsInput(0),
                State::Chunked(_) => self.read_chunks(rest, ctx),
                State::Responding(..) => self.continue_response(ctx),
                State::Deferred(_) => self.look_for_response(ctx),
            };
            match step {
                Step::Wait => return (used, Pause::Waits),
                Step::Consumed(length) => used += length,
                Step::NeedsInput(length) => return (used + length, Pause::NeedsInput),
            }
        }
    }

    /// Returns the next action after processing has stopped.
    fn next_action(&mut self, pause: Pause) -> Next {
        match (&self.state, pause, self.read_state) {
            (State::Closed(_), _, _) => (),
            (_, Pause::OutputFull, _) => return Next::Continue,
            (_, Pause::Waits, _) => return Next::Wait,
            (_, Pause::NeedsInput, _) if self.input == Input::Ended => self.close(Next::Close),
            (State::Sized { .. } | State::Chunked(_), Pause::NeedsInput, _) => {
                self.mark_body_progress();
            }
            (State::Head(_), Pause::NeedsInput, ReadState::Partial) => (),
            (State::Head(_), Pause::NeedsInput, _) if !self.buffer.is_empty() => {
                self.set_read_state(ReadState::Partial);
            }
            // The drain began while the last response was being sent.
            (State::Head(_), Pause::NeedsInput, ReadState::KeepAlive)
                if self.reusable == Reusable::No =>
            {
                self.close(Next::Close);
            }
            _ => (),
        }
        if let State::Closed(next) = self.state { next } else { Next::Read }
    }

    /// Reads a head. If its body has arrived as well, answers at once.
    fn read_head(&mut self, input: &[u8], ctx: &mut ConnectionContext<'_>) -> Step {
        let State::Head(scanner) = &mut self.state else {
            return Step::Consumed(0);
        };
        let blank = match scanner.skip_blank_lines(input) {
            Ok(blank) => blank,
            Err(error) => {
                self.reject(error, b"", ctx);
                return Step::Consumed(input.len());
            }
        };
        let bytes = &input[blank..];
        if let [] | [b'\r'] = bytes {
            return Step::NeedsInput(blank);
        }
        let limits = &self.service.limits;
        let (head_max, fields) = (limits.max_head_bytes, limits.max_header_fields);
        if scanner.is_new() {
            // Nearly every head arrives in one piece.
            let seen = &bytes[..bytes.len().min(head_max)];
            let act = |head: Head<'_>, length| self.take_head(&head, bytes, length, ctx);
            if let Some(used) = head::with_first_head(seen, fields, act) {
                return Step::Consumed(blank + used);
            }
        }
        let State::Head(scanner) = &mut self.state else { return Step::Consumed(0) };
        match scanner.scan(bytes, head_max) {
            Ok(Scan::Partial) => Step::NeedsInput(blank),
            Ok(Scan::Whole(length)) => {
                let used = head::with_head(&bytes[..length], fields, |head| match head {
                    Ok(head) => self.take_head(&head, bytes, length, ctx),
                    Err(error) => {
                        self.reject(error, &bytes[..length], ctx);
                        bytes.len()
                    }
                });
                Step::Consumed(blank + used)
            }
            Err(error) => {
                self.reject(error, bytes, ctx);
                Step::Consumed(input.len())
            }
        }
    }

    /// Processes the head in the first `length` bytes of `input`, and returns the number of used bytes.
    fn take_head(
        &mut self,
        head: &Head<'_>,
        input: &[u8],
        length: usize,
        ctx: &mut ConnectionContext<'_>,
    ) -> usize {
        let (bytes, rest) = input.split_at(length);
        let max_body_bytes = self.limits().max_body_bytes;
        match head.framing {
            Framing::Length(body) if body > max_body_bytes as u64 => {
                self.reject(RequestError::BODY, bytes, ctx);
                input.len()
            }
            // The cast is lossless: the body fits `max_body_bytes`, which is a usize.
            Framing::Length(body) if body <= rest.len() as u64 => {
                self.respond(head, bytes, &rest[..body as usize], ctx);
                length + body as usize
            }
            Framing::Length(body) => {
                send_continue(head, rest, ctx);
                self.state = State::Sized { head: length, whole: length + body as usize };
                0
            }
            Framing::Chunked => {
                send_continue(head, rest, ctx);
                let (bytes, decoder) = (bytes.to_vec(), Decoder::default());
                self.state = State::Chunked(Box::new(ChunkedBody { bytes, head: length, decoder }));
                length
            }
        }
    }

    fn read_chunks(&mut self, input: &[u8], ctx: &mut ConnectionContext<'_>) -> Step {
        let State::Chunked(chunked) = &mut self.state else {
            return Step::Consumed(0);
        };
        let ChunkedBody { bytes, head, decoder } = chunked.as_mut();
        let limits = &self.service.limits;
        reserve_bounded(bytes, input.len(), *head + limits.max_body_bytes);
        match decoder.decode(input, bytes, limits) {
            Ok(Decoded::Partial) => Step::NeedsInput(input.len()),
            Ok(Decoded::Whole(length)) => {
                let (bytes, head) = (mem::take(bytes), *head);
                self.respond_to(&bytes, head, ctx);
                Step::Consumed(length)
            }
            Err(error) => {
                let bytes = mem::take(bytes);
                self.reject(error, &bytes, ctx);
                Step::Consumed(input.len())
            }
        }
    }

    /// Answers a request whose head was checked before its body had arrived.
    fn respond_to(&mut self, request: &[u8], head: usize, ctx: &mut ConnectionContext<'_>) {
        let (bytes, body) = request.split_at(head);
        head::with_head(bytes, self.limits().max_header_fields, |head| match head {
            Ok(head) => self.respond(&head, bytes, body, ctx),
            Err(error) => self.reject(error, bytes, ctx),
        });
    }

    /// Returns the number of heap bytes it owns.
    #[cfg(test)]
    pub(super) fn footprint(&mut self) -> usize {
        self.partial_bytes().capacity()
    }

    fn store(&mut self, input: &[u8]) {
        let bound = match self.state {
            State::Sized { whole, .. } => whole,
            _ => self.limits().max_head_bytes,
        };
        reserve_bounded(&mut self.buffer, input.len(), bound);
        self.buffer.extend_from_slice(input);
    }
}

/// Sends `100 Continue` to a client that waits for it, unless some of the body has arrived already
/// (RFC 9110, section 10.1.1).
fn send_continue(head: &Head<'_>, rest: &[u8], ctx: &mut ConnectionContext<'_>) {
    if head.expects == Expects::Continue && rest.is_empty() {
        ctx.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
    }
}

/// Grows a vector by doubling, but not beyond `bound` bytes if that is enough.
fn reserve_bounded(bytes: &mut Vec<u8>, more: usize, bound: usize) {
    let needed = bytes.len() + more;
    if needed > bytes.capacity() {
        let capacity = needed.max((bytes.capacity() * 2).min(bound));
        bytes.reserve_exact(capacity - bytes.len());
    }
}
