//! The responding half of a connection: from a checked request, or an error, to output. Independent of
//! the input.

use std::cell::OnceCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::app::{ConnectionContext, Next, UnitEnd};
use crate::http::error::RequestError;
use crate::http::handler::Handler;
use crate::http::head::{Head, Reusable, Version};
use crate::http::request::Request;
use crate::http::response::{Closing, ConnectionHeader, Length, Response};
use crate::http::scan::Scanner;
use crate::http::sending::{Sending, WriteProgress};

use super::logging::{self, Logged};
use super::state::{Deferred, HttpConnection, ReadState, RequestTraits, State, Step};

impl<H: Handler> HttpConnection<'_, H> {
    /// Runs the handler as one unit of work, and begins to send its response.
    pub(super) fn respond(
        &mut self,
        head: &Head<'_>,
        bytes: &[u8],
        body: &[u8],
        ctx: &mut ConnectionContext<'_>,
    ) {
        begin_work(head, bytes, ctx);
        let (_, unit) = ctx.split();
        let id = OnceCell::new();
        let request = Request::new(head, body, self.client, unit, &id);
        let handler = &self.service.handler;
        // All clients share the handler: other threads see what a panic leaves behind in it, whether
        // the panic is caught here or not.
        let response = catch_unwind(AssertUnwindSafe(|| handler.handle(&request)))
            .unwrap_or_else(|_| Response::status(500))
            .validated();
        let (status, head_at) = (response.code(), ctx.out.len());
        let body_at = self.send(head.into(), response, ctx);
        // A deferred response is the master's own, which has no access log.
        if ctx.logs_units() && !matches!(self.state, State::Deferred(_)) {
            let (out, unit) = ctx.split();
            let is_complete = !matches!(self.state, State::Responding(..));
            let response =
                logging::response(status, &out[head_at..], body_at - head_at, is_complete);
            Logged { client: self.client, id: id.get().copied(), response }.log(head, &unit);
        }
        ctx.end_work();
    }

    /// Appends the response, or begins to. Returns where in the output its body begins.
    fn send(
        &mut self,
        request: RequestTraits,
        mut response: Response,
        ctx: &mut ConnectionContext<'_>,
    ) -> usize {
        let mut length = response.measure();
        if length == Length::Unknown {
            self.state = State::Deferred(Box::new(Deferred { request, response }));
            return ctx.out.len();
        }
        let mut reusable = match (self.reusable, request.reusable, response.closing) {
            (Reusable::Yes, Reusable::Yes, Closing::AsRequested) => Reusable::Yes,
            _ => Reusable::No,
        };
        if length == Length::Chunked && request.version == Version::Http10 {
            (length, reusable) = (Length::Unspecified, Reusable::No);
        }
        let connection_header = match (reusable, request.version) {
            (Reusable::No, _) => ConnectionHeader::Close,
            (Reusable::Yes, Version::Http10) => ConnectionHeader::KeepAlive,
            (Reusable::Yes, Version::Http11) => ConnectionHeader::Omitted,
        };
        response.write_head(length, connection_header, &ctx.http_date(), ctx.out);
        let body_at = ctx.out.len();
        let rest = match request.is_head {
            true => None,
            false => Sending::begin(response.body, length, ctx.out),
        };
        match rest {
            Some(sending) => {
                self.state = State::Responding(sending, reusable);
                self.phase = self.phase.wrapping_add(1);
            }
            None => self.finish_response(reusable),
        }
        body_at
    }

    /// Begins to send a deferred response, if it is known by now.
    pub(super) fn look_for_response(&mut self, ctx: &mut ConnectionContext<'_>) -> Step {
        let State::Deferred(deferred) = &mut self.state else { return Step::Consumed(0) };
        let Deferred { request, response } = deferred.as_mut();
        let found = catch_unwind(AssertUnwindSafe(|| response.take_later()))
            .unwrap_or_else(|_| Some(Response::status(500)));
        let Some(found) = found else { return Step::Wait };
        let request = *request;
        self.send(request, found.validated(), ctx);
        Step::Consumed(0)
    }

    /// Tells the client of a live body that has been silent that the connection is alive.
    pub(super) fn keep_alive(&mut self, ctx: &mut ConnectionContext<'_>) -> Next {
        if let State::Responding(sending, _) = &mut self.state
            && sending.keep_alive(ctx.out)
        {
            self.phase = self.phase.wrapping_add(1);
            return Next::Wait;
        }
        self.close(Next::Close);
        Next::Close
    }

    pub(super) fn continue_response(&mut self, ctx: &mut ConnectionContext<'_>) -> Step {
        if let State::Responding(sending, reusable) = &mut self.state {
            let reusable = *reusable;
            let before = ctx.out.len();
            let progress = sending.write_next(ctx.out);
            let appended = ctx.out.len() - before;
            ctx.log_body(sending.body_bytes(appended, progress), appended as u64);
            match progress {
                WriteProgress::Waiting => return Step::Wait,
                WriteProgress::Partial => self.phase = self.phase.wrapping_add(1),
                WriteProgress::Complete => {
                    ctx.log_end(UnitEnd::Complete);
                    self.finish_response(reusable);
                }
                WriteProgress::Failed => {
                    ctx.log_end(UnitEnd::Failed);
                    self.close(Next::Close);
                }
            }
        }
        Step::Consumed(0)
    }

    fn finish_response(&mut self, reusable: Reusable) {
        match reusable {
            Reusable::No => self.close(Next::Close),
            Reusable::Yes => {
                self.state = State::Head(Scanner::default());
                self.set_read_state(ReadState::KeepAlive);
            }
        }
    }

    /// Answers an invalid request, of which `seen` has arrived, with an error. Nothing is sent after
    /// that.
    pub(super) fn reject(
        &mut self,
        error: RequestError,
        seen: &[u8],
        ctx: &mut ConnectionContext<'_>,
    ) {
        let mut response = Response::rejection(error);
        let (length, head_at) = (response.measure(), ctx.out.len());
        response.write_head(length, ConnectionHeader::Close, &ctx.http_date(), ctx.out);
        let body_at = ctx.out.len();
        if !seen.starts_with(b"HEAD ") {
            // The response is small, so nothing is left to send.
            let _ = Sending::begin(response.body, length, ctx.out);
        }
        if ctx.logs_units() {
            let (out, unit) = ctx.split();
            let head = body_at - head_at;
            let response = logging::response(error.status, &out[head_at..], head, true);
            Logged { client: self.client, id: None, response }.log_rejected(seen, &unit);
        }
        self.close(Next::LingeringClose);
    }
}

/// Begins a unit of work, labelled with the method and the path.
fn begin_work(head: &Head<'_>, bytes: &[u8], ctx: &mut ConnectionContext<'_>) {
    if head.target.starts_with(head.path) {
        // The request line begins with them, separated by one space.
        ctx.begin_work(&bytes[..head.method.len() + 1 + head.path.len()]);
    } else {
        ctx.begin_work(format!("{} {}", head.method, head.path).as_bytes());
    }
}
