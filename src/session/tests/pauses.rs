//! A session that pauses after its output was sent, so that others have their turn.

use super::*;

impl Client {
    fn send_and_pause(&mut self, n: usize) {
        if !self.session.pause_after(n) {
            self.send(n);
        }
        self.check_invariants();
    }
}

#[test]
fn paused_session_continues_when_it_is_told() {
    let mut client = Client::new(ReadTimeout::None, SECOND);
    client.add_replies(&[("abc", Next::Continue), ("def", Next::Read)]);
    client.receive("x");
    client.send_and_pause(2);
    assert!(!client.session.is_paused(), "there is more to send");
    client.send_and_pause(1);
    assert!(client.session.is_paused());
    assert_eq!((client.wants(), client.unsent()), (Wants::Write, ""));
    assert_eq!(client.time_left(), None, "the peer is not waited for");
    assert_eq!(client.calls(), ["receive x"]);
    client.send(0);
    assert_eq!((client.unsent(), client.time_left()), ("def", Some(SECOND)));
    assert!(!client.session.is_paused());
    client.send(3);
    assert_eq!((client.wants(), client.calls().len()), (Wants::Read, 2));
}

#[test]
fn only_a_connection_that_continues_pauses() {
    for (next, wants) in [(Next::Read, Wants::Read), (Next::Close, Wants::Closed)] {
        let mut client = Client::with_replies(&[("abc", next)]);
        client.receive("x");
        client.send_and_pause(3);
        assert_eq!((client.wants(), client.session.is_paused()), (wants, false));
    }
}

#[test]
fn drain_ends_a_pause() {
    for replies in [
        vec![("abc", Next::Continue), ("", Next::Continue), ("def", Next::Close)],
        vec![("abc", Next::Continue), ("def", Next::Close)],
    ] {
        assert_drain_ends_a_pause(&replies);
    }
}

fn assert_drain_ends_a_pause(replies: &[(&'static str, Next)]) {
    let mut client = Client::new(ReadTimeout::None, SECOND);
    client.add_replies(replies);
    client.receive("x");
    client.send_and_pause(3);
    client.drain();
    assert_eq!((client.unsent(), client.session.is_paused()), ("def", false));
    assert_eq!(client.time_left(), Some(SECOND));
    client.send(3);
    assert_eq!((client.wants(), client.session.lost_bytes()), (Wants::Closed, 0));
}
