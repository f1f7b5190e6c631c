//! A panic in a connection closes its session only.

use super::*;

#[test]
fn panic_closes_session_and_resets_reporter() {
    let mut client = Client::with_replies(&[]);
    client.add_panic("half a resp");
    client.receive("x");
    assert_eq!(client.wants(), Wants::Closed);
    assert_eq!(client.reporter.depth, 0);
    client.receive("y");
    assert_eq!(client.calls(), ["receive x"]);
}

#[test]
fn panic_in_any_call_closes_session() {
    for call in [Client::drain, Client::time_out, Client::half_close] {
        let mut client = Client::with_replies(&[]);
        client.add_panic("");
        call(&mut client);
        assert_eq!(client.wants(), Wants::Closed);
    }
    let mut client = Client::with_replies(&[("a", Next::Continue)]);
    client.add_panic("");
    client.receive("x");
    client.send(1);
    assert_eq!(client.wants(), Wants::Closed);
    assert_eq!(client.calls(), ["receive x", "resume"]);
}

#[test]
fn panic_discards_output_and_returns_buffer() {
    let mut client = Client::with_replies(&[]);
    client.spare = Vec::with_capacity(4096);
    client.add_panic("half");
    client.receive("x");
    assert_eq!(client.unsent(), "");
    assert_eq!(client.time_left(), None);
    assert_eq!(client.spare.capacity(), 4096);
}

#[test]
fn panic_in_drain_keeps_complete_output() {
    let mut client = Client::with_replies(&[("abc", Next::Read)]);
    client.add_panic("half");
    client.receive("x");
    client.drain();
    assert_eq!((client.wants(), client.unsent()), (Wants::Write, "abc"));
    client.send(3);
    assert_eq!(client.wants(), Wants::Closed);
}

/// A connection whose `timeout` panics.
struct PanickingTimeout;

impl Connection for PanickingTimeout {
    fn receive(&mut self, _: &[u8], _: &mut ConnectionContext<'_>) -> Next {
        Next::Read
    }

    fn resume(&mut self, _: &mut ConnectionContext<'_>) -> Next {
        Next::Read
    }

    fn on_timeout(&mut self, _: &mut ConnectionContext<'_>) -> Next {
        Next::Read
    }

    fn drain(&mut self, _: &mut ConnectionContext<'_>) -> Next {
        Next::Close
    }

    fn timeout(&self) -> ReadTimeout {
        panic!("requested");
    }
}

#[test]
fn panic_in_timeout_closes_session() {
    let session = Session::new(Box::new(PanickingTimeout), SECOND, MonotonicTime::default());
    assert_eq!((session.wants(), session.deadline()), (Wants::Closed, None));
}
