//! The answering half of a connection: from a judged request, or a fault, to bytes. It must never
//! know the input.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::app::{ConnectionContext, Next};
use crate::http::Handler;
use crate::http::fault::Fault;
use crate::http::head::{Head, Reuse};
use crate::http::request::{Request, Version};
use crate::http::response::{Closing, Length, Persistence, Response};
use crate::http::scan::Scanner;
use crate::http::sending::{Poured, Sending};

use super::{HttpConnection, State, Step, Waits};

impl<H: Handler> HttpConnection<'_, H> {
    /// Runs the handler, as one unit of work, and begins to send what it says.
    pub(super) fn answer(
        &mut self,
        head: &Head<'_>,
        bytes: &[u8],
        body: &[u8],
        ctx: &mut ConnectionContext<'_>,
    ) {
        begin_unit(head, bytes, ctx);
        let (_, allowance) = ctx.split();
        let request = Request::new(head, body, self.client, allowance);
        let handler = &self.service.handler;
        // The handler is shared by all clients anyway: what a panic leaves behind in it is seen by
        // other threads whether it is caught here or not.
        let response = catch_unwind(AssertUnwindSafe(|| handler.handle(&request)))
            .unwrap_or_else(|_| Response::status(500))
            .validated();
        self.send(head, response, ctx);
        ctx.end_work();
    }

    fn send(&mut self, head: &Head<'_>, mut response: Response, ctx: &mut ConnectionContext<'_>) {
        let mut length = response.measure();
        let mut reuse = match (self.reuse, head.reuse, response.closing) {
            (Reuse::Allowed, Reuse::Allowed, Closing::AsAsked) => Reuse::Allowed,
            _ => Reuse::Last,
        };
        if length == Length::Chunked && head.version == Version::Http10 {
            (length, reuse) = (Length::Unsaid, Reuse::Last);
        }
        let persistence = match (reuse, head.version) {
            (Reuse::Last, _) => Persistence::Close,
            (Reuse::Allowed, Version::Http10) => Persistence::KeepAlive,
            (Reuse::Allowed, Version::Http11) => Persistence::Usual,
        };
        response.write_head(length, persistence, &ctx.http_date(), ctx.out);
        let rest = match head.method {
            "HEAD" => None,
            _ => Sending::begin(response.body, length, ctx.out),
        };
        match rest {
            Some(sending) => self.state = State::Answering(sending, reuse),
            None => self.finish_answer(reuse),
        }
    }

    pub(super) fn go_on_answering(&mut self, ctx: &mut ConnectionContext<'_>) -> Step {
        if let State::Answering(sending, reuse) = &mut self.state {
            let reuse = *reuse;
            match sending.pour(ctx.out) {
                Poured::Partly => (),
                Poured::Whole => self.finish_answer(reuse),
                Poured::Broken => self.end(Next::Close),
            }
        }
        Step::Used(0)
    }

    fn finish_answer(&mut self, reuse: Reuse) {
        match reuse {
            Reuse::Last => self.end(Next::Close),
            Reuse::Allowed => {
                self.state = State::Head(Scanner::default());
                self.wait_for(Waits::Another);
            }
        }
    }

    /// Answers a request that cannot be understood or is not wanted, and of which so much has been
    /// `seen`; nothing is said after that.
    pub(super) fn refuse(&mut self, fault: Fault, seen: &[u8], ctx: &mut ConnectionContext<'_>) {
        let mut response = Response::refusal(fault);
        let length = response.measure();
        response.write_head(length, Persistence::Close, &ctx.http_date(), ctx.out);
        if !seen.starts_with(b"HEAD ") {
            // A refusal is small, so that nothing is left to send.
            let _ = Sending::begin(response.body, length, ctx.out);
        }
        self.end(Next::LingeringClose);
    }
}

/// Begins a unit of work under the method and the path.
fn begin_unit(head: &Head<'_>, bytes: &[u8], ctx: &mut ConnectionContext<'_>) {
    if head.target.starts_with(head.path) {
        // As they stand in the request line, one space between them.
        ctx.begin_work(&bytes[..head.method.len() + 1 + head.path.len()]);
    } else {
        ctx.begin_work(format!("{} {}", head.method, head.path).as_bytes());
    }
}
