//! `echo`: sends back whatever comes.

use crate::app::{App, BootError, Connection, Exchange, Next, Patience, Peer, Place, Service};
use std::time::Duration;

/// The app `echo`: each connection gets its own bytes back, until it ends its side.
pub struct Echo;

struct Echoes {
    linger: Duration,
}

struct Client {
    linger: Duration,
    draining: bool,
}

impl App for Echo {
    fn name(&self) -> &str {
        "echo"
    }

    fn boot(&self, place: &Place) -> Result<Box<dyn Service>, BootError> {
        Ok(Box::new(Echoes { linger: place.limits.linger }))
    }
}

impl Service for Echoes {
    fn connect(&self, _: &Peer) -> Box<dyn Connection + '_> {
        Box::new(Client { linger: self.linger, draining: false })
    }
}

impl Connection for Client {
    fn receive(&mut self, input: &[u8], exchange: &mut Exchange<'_>) -> Next {
        if input.is_empty() {
            return Next::Close;
        }
        exchange.begin(b"echo");
        exchange.out.extend_from_slice(input);
        exchange.end();
        Next::Read
    }

    fn proceed(&mut self, _: &mut Exchange<'_>) -> Next {
        Next::Read
    }

    fn expire(&mut self, _: &mut Exchange<'_>) -> Next {
        Next::Close
    }

    fn drain(&mut self, _: &mut Exchange<'_>) -> Next {
        self.draining = true;
        Next::Read
    }

    fn patience(&self) -> Patience {
        // Bytes that were on their way when the worker was told to leave are still answered.
        if self.draining { Patience::Silence(self.linger) } else { Patience::Endless }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::Desk;

    struct NoDesk;

    impl Desk for NoDesk {
        fn begin(&mut self, _: &[u8]) {}
        fn end(&mut self) {}
        fn date(&mut self) -> [u8; 29] {
            [0; 29]
        }
    }

    #[test]
    fn bytes_come_back_and_the_end_ends() {
        let mut client = Client { linger: Duration::ZERO, draining: false };
        let (mut out, mut desk) = (Vec::new(), NoDesk);
        let mut exchange = Exchange::new(&mut out, &mut desk);
        assert_eq!(client.receive(b"ab", &mut exchange), Next::Read);
        assert_eq!(client.receive(b"c", &mut exchange), Next::Read);
        assert_eq!(client.receive(b"", &mut exchange), Next::Close);
        assert_eq!(out, b"abc");
    }
}
