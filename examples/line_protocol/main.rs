//! A protocol written by hand: each line that a client sends comes back in capitals.
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

use ostler::app::{App, BootError, Connection, Exchange, Limits, Next, Patience};
use ostler::app::{Peer, Place, Service};

const LINE_BYTES_MAX: usize = 1024;

struct Shout;

impl App for Shout {
    fn name(&self) -> &str {
        "shout"
    }

    fn boot(&self, place: &Place) -> Result<Box<dyn Service>, BootError> {
        Ok(Box::new(Hall(place.limits)))
    }
}

struct Hall(Limits);

impl Service for Hall {
    fn connect(&self, peer: &Peer) -> Box<dyn Connection + '_> {
        Box::new(Client { limits: self.0, peer: *peer, heard: Vec::new(), lines: 0, last: false })
    }
}

struct Client {
    limits: Limits,
    peer: Peer,
    /// What has come and is not answered yet.
    heard: Vec<u8>,
    lines: u32,
    /// Whether the worker is leaving.
    last: bool,
}

impl Connection for Client {
    fn receive(&mut self, input: &[u8], exchange: &mut Exchange<'_>) -> Next {
        self.heard.extend_from_slice(input);
        if input.is_empty() { Next::Close } else { self.proceed(exchange) }
    }

    /// Answers one line, and asks to be called again once the answer has been sent: so a client
    /// that does not read its answers makes no more of them.
    fn proceed(&mut self, exchange: &mut Exchange<'_>) -> Next {
        match self.heard.iter().position(|byte| *byte == b'\n') {
            Some(end) if end <= LINE_BYTES_MAX => {
                exchange.begin(b"shout");
                exchange.out.extend(self.heard.drain(..=end).map(|byte| byte.to_ascii_uppercase()));
                exchange.end();
                self.lines = self.lines.wrapping_add(1);
                if self.peer.reusable { Next::Proceed } else { Next::Close }
            }
            None if self.heard.len() <= LINE_BYTES_MAX => Next::Read,
            _ => refuse(b"TOO LONG\n", exchange),
        }
    }

    fn expire(&mut self, exchange: &mut Exchange<'_>) -> Next {
        if self.heard.is_empty() { Next::Close } else { refuse(b"TOO SLOW\n", exchange) }
    }

    /// Lines that are on their way are still answered: see `patience`.
    fn drain(&mut self, _: &mut Exchange<'_>) -> Next {
        self.last = true;
        Next::Read
    }

    fn patience(&self) -> Patience {
        match (self.last, self.heard.is_empty()) {
            (true, _) => Patience::Phase(u32::MAX, self.limits.linger),
            (false, true) => Patience::Silence(self.limits.keepalive),
            // However few bytes at a time: a line must be whole in this time.
            (false, false) => Patience::Phase(self.lines, self.limits.header_timeout),
        }
    }
}

fn refuse(words: &[u8], exchange: &mut Exchange<'_>) -> Next {
    exchange.out.extend_from_slice(words);
    Next::Refuse
}

fn main() -> ExitCode {
    ostler::main(Shout)
}
