//! A drain finishes what has begun.

use super::*;

#[test]
fn drain_of_idle_client_may_close() {
    let mut client = Client::with_replies(&[("", Next::Close)]);
    client.drain();
    assert_eq!(client.wants(), Wants::Closed);
    assert_eq!(client.calls(), ["drain"]);
}

#[test]
fn drain_of_busy_client_may_continue() {
    let mut client =
        Client::with_replies(&[("", Next::Read), ("", Next::Read), ("b", Next::Close)]);
    client.receive("x");
    client.drain();
    assert_eq!(client.wants(), Wants::Read);
    client.receive("y");
    client.send(1);
    assert_eq!(client.wants(), Wants::Closed);
}

#[test]
fn drain_may_change_timeout() {
    let mut client = Client::with_timeout(ReadTimeout::Idle(5 * SECOND));
    client.set_timeout(ReadTimeout::Idle(SECOND));
    client.drain();
    assert_eq!(client.time_left(), Some(SECOND));
}

#[test]
fn drain_sends_output_before_close() {
    let mut client = Client::with_replies(&[("abc", Next::Read), ("", Next::Close)]);
    client.receive("x");
    client.send(1);
    client.drain();
    assert_eq!((client.wants(), client.unsent()), (Wants::Write, "bc"));
    client.send(2);
    assert_eq!(client.wants(), Wants::Closed);
}

#[test]
fn drain_keeps_decided_continue() {
    let replies = [("abc", Next::Continue), ("", Next::Read), ("def", Next::Close)];
    let mut client = Client::with_replies(&replies);
    client.receive("x");
    client.drain();
    client.send(3);
    assert_eq!(client.unsent(), "def");
    assert_eq!(client.calls(), ["receive x", "drain", "resume"]);
}

#[test]
fn drain_keeps_decided_close() {
    for (decided, end) in [(Next::Close, Wants::Closed), (Next::LingeringClose, Wants::Linger)] {
        for drained in [Next::Read, Next::Continue, Next::Close, Next::LingeringClose] {
            let mut client = Client::with_replies(&[("abc", decided), ("", drained)]);
            client.receive("x");
            client.drain();
            client.send(3);
            assert_eq!(client.wants(), end, "{decided:?}, {drained:?}");
        }
    }
}

#[test]
fn drain_of_half_closed_client_sends_output() {
    let mut client = Client::with_replies(&[("abc", Next::Read)]);
    client.half_close();
    client.drain();
    assert_eq!(client.unsent(), "abc");
    client.send(3);
    assert_eq!(client.wants(), Wants::Closed);
}

#[test]
fn drain_reply_has_write_deadline() {
    let mut client = Client::with_timeout(ReadTimeout::Idle(SECOND));
    client.add_replies(&[("bye", Next::Close)]);
    client.drain();
    assert_eq!((client.unsent(), client.time_left()), ("bye", Some(WRITE_TIMEOUT)));
}

#[test]
fn drain_output_follows_waiting_output() {
    let replies = [("abc", Next::Read), ("", Next::Continue), ("d", Next::Close)];
    let mut client = Client::with_replies(&replies);
    client.receive("x");
    client.drain();
    client.send(3);
    assert_eq!(client.unsent(), "d");
}

#[test]
fn drain_may_linger_after_output() {
    let mut client = Client::with_replies(&[("abc", Next::Read), ("", Next::LingeringClose)]);
    client.receive("x");
    client.drain();
    client.send(3);
    assert_eq!(client.wants(), Wants::Linger);
}
