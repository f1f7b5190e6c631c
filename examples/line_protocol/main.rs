//! A protocol written by hand: each line comes back in capitals.
//!
//! ```text
//! cargo run --example line_protocol -- --worker-class mio
//! printf 'hello\nostler\n' | nc -q1 127.0.0.1 8000      # HELLO, OSTLER
//! ```
//!
//! Under `sync`, which takes a new connection for each unit of work, a client gets one answer.

#[cfg(test)]
mod tests;

use std::process::ExitCode;

use ostler::app::{App, BootError, Connection, ConnectionContext, Limits, Next, ReadTimeout};
use ostler::app::{ClientInfo, Service, WorkerInfo};

const LINE_BYTES_MAX: usize = 1024;

struct Shout;

impl App for Shout {
    fn name(&self) -> &str {
        "shout"
    }

    fn boot(&self, worker: &WorkerInfo) -> Result<Box<dyn Service>, BootError> {
        Ok(Box::new(ShoutService(worker.limits)))
    }
}

struct ShoutService(Limits);

impl Service for ShoutService {
    fn accept(&self, client: &ClientInfo) -> Box<dyn Connection + '_> {
        Box::new(ShoutConnection {
            limits: self.0,
            client: *client,
            input: Vec::new(),
            lines: 0,
            last: false,
        })
    }
}

struct ShoutConnection {
    limits: Limits,
    client: ClientInfo,
    /// Input that is not answered yet.
    input: Vec<u8>,
    lines: u32,
    /// Whether the worker is draining.
    last: bool,
}

impl Connection for ShoutConnection {
    fn receive(&mut self, input: &[u8], ctx: &mut ConnectionContext<'_>) -> Next {
        self.input.extend_from_slice(input);
        if input.is_empty() { Next::Close } else { self.resume(ctx) }
    }

    /// Answers one line, and asks to be called again after the answer has been sent. So a client
    /// that does not read its answers causes no more of them.
    fn resume(&mut self, ctx: &mut ConnectionContext<'_>) -> Next {
        match self.input.iter().position(|byte| *byte == b'\n') {
            Some(end) if end <= LINE_BYTES_MAX => {
                ctx.begin_work(b"shout");
                ctx.out.extend(self.input.drain(..=end).map(|byte| byte.to_ascii_uppercase()));
                ctx.end_work();
                self.lines = self.lines.wrapping_add(1);
                if self.client.allow_keepalive { Next::Continue } else { Next::Close }
            }
            None if self.input.len() <= LINE_BYTES_MAX => Next::Read,
            _ => reject(b"TOO LONG\n", ctx),
        }
    }

    fn on_timeout(&mut self, ctx: &mut ConnectionContext<'_>) -> Next {
        if self.input.is_empty() { Next::Close } else { reject(b"TOO SLOW\n", ctx) }
    }

    /// Lines that are on their way are still answered: see `timeout`.
    fn drain(&mut self, _: &mut ConnectionContext<'_>) -> Next {
        self.last = true;
        Next::Read
    }

    fn timeout(&self) -> ReadTimeout {
        match (self.last, self.input.is_empty()) {
            (true, _) => ReadTimeout::Total(u32::MAX, self.limits.drain_idle_timeout),
            (false, true) => ReadTimeout::Idle(self.limits.keepalive),
            // However few bytes at a time: a line must be whole in this time.
            (false, false) => ReadTimeout::Total(self.lines, self.limits.header_timeout),
        }
    }
}

fn reject(reason: &[u8], ctx: &mut ConnectionContext<'_>) -> Next {
    ctx.out.extend_from_slice(reason);
    Next::LingeringClose
}

fn main() -> ExitCode {
    ostler::main(Shout)
}
