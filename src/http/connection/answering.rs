//! The answering half of a connection: from a judged request, or a fault, to bytes. It must never
//! know the input.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::app::{Exchange, Next};
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
        exchange: &mut Exchange<'_>,
    ) {
        begin_unit(head, bytes, exchange);
        let (_, allowance) = exchange.split();
        let request = Request::new(head, body, self.client, allowance);
        let handler = &self.service.handler;
        // The handler is shared by all clients anyway: what a panic leaves behind in it is seen by
        // other threads whether it is caught here or not.
        let response = catch_unwind(AssertUnwindSafe(|| handler.handle(&request)))
            .unwrap_or_else(|_| Response::status(500))
            .validated();
        self.send(head, response, exchange);
        exchange.end();
    }

    fn send(&mut self, head: &Head<'_>, mut response: Response, exchange: &mut Exchange<'_>) {
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
        response.write_head(length, persistence, &exchange.date(), exchange.out);
        let rest = match head.method {
            "HEAD" => None,
            _ => Sending::begin(response.body, length, exchange.out),
        };
        match rest {
            Some(sending) => self.state = State::Answering(sending, reuse),
            None => self.finish_answer(reuse),
        }
    }

    pub(super) fn go_on_answering(&mut self, exchange: &mut Exchange<'_>) -> Step {
        if let State::Answering(sending, reuse) = &mut self.state {
            let reuse = *reuse;
            match sending.pour(exchange.out) {
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
    pub(super) fn refuse(&mut self, fault: Fault, seen: &[u8], exchange: &mut Exchange<'_>) {
        let mut response = Response::refusal(fault);
        let length = response.measure();
        response.write_head(length, Persistence::Close, &exchange.date(), exchange.out);
        if !seen.starts_with(b"HEAD ") {
            // A refusal is small, so that nothing is left to send.
            let _ = Sending::begin(response.body, length, exchange.out);
        }
        self.end(Next::Refuse);
    }
}

/// Begins a unit of work under the method and the path.
fn begin_unit(head: &Head<'_>, bytes: &[u8], exchange: &mut Exchange<'_>) {
    if head.target.starts_with(head.path) {
        // As they stand in the request line, one space between them.
        exchange.begin(&bytes[..head.method.len() + 1 + head.path.len()]);
    } else {
        exchange.begin(format!("{} {}", head.method, head.path).as_bytes());
    }
}
