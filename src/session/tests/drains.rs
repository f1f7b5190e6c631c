//! The worker leaves: what is begun is finished.

use super::*;

#[test]
fn an_idle_client_is_closed_if_the_connection_says_so() {
    let mut client = Client::answering(&[("", Next::Close)]);
    client.drains();
    assert_eq!(client.wants(), Wants::Gone);
    assert_eq!(client.asked(), ["drain"]);
}

#[test]
fn a_client_in_the_middle_may_go_on() {
    let mut client = Client::answering(&[("", Next::Read), ("", Next::Read), ("b", Next::Close)]);
    client.receives("x");
    client.drains();
    assert_eq!(client.wants(), Wants::Read);
    client.receives("y");
    client.sends(1);
    assert_eq!(client.wants(), Wants::Gone);
}

#[test]
fn patience_may_change_by_a_drain() {
    let mut client = Client::patient(Patience::Silence(5 * SECOND));
    client.will_be(Patience::Silence(SECOND));
    client.drains();
    assert_eq!(client.left(), Some(SECOND));
}

#[test]
fn what_waits_is_sent_before_it_closes() {
    let mut client = Client::answering(&[("abc", Next::Read), ("", Next::Close)]);
    client.receives("x");
    client.sends(1);
    client.drains();
    assert_eq!((client.wants(), client.unsent()), (Wants::Write, "bc"));
    client.sends(2);
    assert_eq!(client.wants(), Wants::Gone);
}

#[test]
fn what_was_to_proceed_still_does() {
    let answers = [("abc", Next::Proceed), ("", Next::Read), ("def", Next::Close)];
    let mut client = Client::answering(&answers);
    client.receives("x");
    client.drains();
    client.sends(3);
    assert_eq!(client.unsent(), "def");
    assert_eq!(client.asked(), ["receive x", "drain", "proceed"]);
}

#[test]
fn what_was_to_close_still_does() {
    for (decided, end) in [(Next::Close, Wants::Gone), (Next::Refuse, Wants::Linger)] {
        for drained in [Next::Read, Next::Proceed, Next::Close, Next::Refuse] {
            let mut client = Client::answering(&[("abc", decided), ("", drained)]);
            client.receives("x");
            client.drains();
            client.sends(3);
            assert_eq!(client.wants(), end, "{decided:?}, {drained:?}");
        }
    }
}

#[test]
fn a_half_closed_client_gets_what_waits() {
    let mut client = Client::answering(&[("abc", Next::Read)]);
    client.ends_its_side();
    client.drains();
    assert_eq!(client.unsent(), "abc");
    client.sends(3);
    assert_eq!(client.wants(), Wants::Gone);
}

#[test]
fn a_last_word_without_output_waiting_has_its_own_deadline() {
    let mut client = Client::patient(Patience::Silence(SECOND));
    client.will_answer(&[("bye", Next::Close)]);
    client.drains();
    assert_eq!((client.unsent(), client.left()), ("bye", Some(WRITE_TIMEOUT)));
}

#[test]
fn what_the_drain_adds_follows_what_waits() {
    let answers = [("abc", Next::Read), ("", Next::Proceed), ("d", Next::Close)];
    let mut client = Client::answering(&answers);
    client.receives("x");
    client.drains();
    client.sends(3);
    assert_eq!(client.unsent(), "d");
}

#[test]
fn a_drain_may_refuse_behind_what_waits() {
    let mut client = Client::answering(&[("abc", Next::Read), ("", Next::Refuse)]);
    client.receives("x");
    client.drains();
    client.sends(3);
    assert_eq!(client.wants(), Wants::Linger);
}
