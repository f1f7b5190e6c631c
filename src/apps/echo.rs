//! `echo`: sends its input back.

use crate::app::{
    App, BootError, ClientInfo, Connection, ConnectionContext, Next, ReadTimeout, Service,
    WorkerInfo,
};
use std::time::Duration;

/// The app `echo`: sends each client its own bytes back, until the client half-closes.
pub struct Echo;

struct EchoService {
    drain_idle_timeout: Duration,
}

struct EchoConnection {
    drain_idle_timeout: Duration,
    draining: bool,
}

impl App for Echo {
    fn name(&self) -> &str {
        "echo"
    }

    fn boot(&self, worker: &WorkerInfo) -> Result<Box<dyn Service>, BootError> {
        Ok(Box::new(EchoService { drain_idle_timeout: worker.limits.drain_idle_timeout }))
    }
}

impl Service for EchoService {
    fn accept(&self, _: &ClientInfo) -> Box<dyn Connection + '_> {
        Box::new(EchoConnection { drain_idle_timeout: self.drain_idle_timeout, draining: false })
    }
}

impl Connection for EchoConnection {
    fn receive(&mut self, input: &[u8], ctx: &mut ConnectionContext<'_>) -> Next {
        if input.is_empty() {
            return Next::Close;
        }
        ctx.begin_work(b"echo");
        ctx.out.extend_from_slice(input);
        ctx.end_work();
        Next::Read
    }

    fn resume(&mut self, _: &mut ConnectionContext<'_>) -> Next {
        Next::Read
    }

    fn on_timeout(&mut self, _: &mut ConnectionContext<'_>) -> Next {
        Next::Close
    }

    fn drain(&mut self, _: &mut ConnectionContext<'_>) -> Next {
        self.draining = true;
        Next::Read
    }

    fn timeout(&self) -> ReadTimeout {
        // Bytes in transit at the start of the drain are still answered.
        if self.draining { ReadTimeout::Idle(self.drain_idle_timeout) } else { ReadTimeout::None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::WorkReporter;

    struct NoopReporter;

    impl WorkReporter for NoopReporter {
        fn begin_work(&mut self, _: &[u8]) {}
        fn end_work(&mut self) {}
        fn http_date(&mut self) -> [u8; 29] {
            [0; 29]
        }
    }

    #[test]
    fn echo_returns_bytes_and_closes_at_eof() {
        let mut client = EchoConnection { drain_idle_timeout: Duration::ZERO, draining: false };
        let mut out = Vec::new();
        let mut reporter = NoopReporter;
        let mut ctx = ConnectionContext::new(&mut out, &mut reporter);
        assert_eq!(client.receive(b"ab", &mut ctx), Next::Read);
        assert_eq!(client.receive(b"c", &mut ctx), Next::Read);
        assert_eq!(client.receive(b"", &mut ctx), Next::Close);
        assert_eq!(out, b"abc");
    }
}
