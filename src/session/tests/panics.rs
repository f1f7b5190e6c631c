//! A connection that panics ends its own session.

use super::*;

#[test]
fn a_panic_ends_its_own_session_and_tells_the_desk() {
    let mut client = Client::answering(&[]);
    client.will_panic("half an ans");
    client.receives("x");
    assert_eq!(client.wants(), Wants::Gone);
    assert_eq!(client.desk.inside, 0);
    client.receives("y");
    assert_eq!(client.asked(), ["receive x"]);
}

#[test]
fn a_panic_may_come_in_any_call() {
    for how in [Client::drains, Client::expires, Client::ends_its_side] {
        let mut client = Client::answering(&[]);
        client.will_panic("");
        how(&mut client);
        assert_eq!(client.wants(), Wants::Gone);
    }
    let mut client = Client::answering(&[("a", Next::Proceed)]);
    client.will_panic("");
    client.receives("x");
    client.sends(1);
    assert_eq!(client.wants(), Wants::Gone);
    assert_eq!(client.asked(), ["receive x", "proceed"]);
}

#[test]
fn after_a_panic_nothing_is_left_to_send_and_the_buffer_is_given_back() {
    let mut client = Client::answering(&[]);
    client.spare = Vec::with_capacity(4096);
    client.will_panic("half");
    client.receives("x");
    assert_eq!(client.unsent(), "");
    assert_eq!(client.left(), None);
    assert_eq!(client.spare.capacity(), 4096);
}

#[test]
fn a_panic_in_a_drain_keeps_the_output_that_was_complete() {
    let mut client = Client::answering(&[("abc", Next::Read)]);
    client.will_panic("half");
    client.receives("x");
    client.drains();
    assert_eq!((client.wants(), client.unsent()), (Wants::Write, "abc"));
    client.sends(3);
    assert_eq!(client.wants(), Wants::Gone);
}

/// Panics whenever it is asked how patient it is.
struct Nervous;

impl Connection for Nervous {
    fn receive(&mut self, _: &[u8], _: &mut Exchange<'_>) -> Next {
        Next::Read
    }

    fn proceed(&mut self, _: &mut Exchange<'_>) -> Next {
        Next::Read
    }

    fn expire(&mut self, _: &mut Exchange<'_>) -> Next {
        Next::Read
    }

    fn drain(&mut self, _: &mut Exchange<'_>) -> Next {
        Next::Close
    }

    fn patience(&self) -> Patience {
        panic!("asked for");
    }
}

#[test]
fn a_panic_about_its_patience_ends_its_own_session() {
    let session = Session::new(Box::new(Nervous), SECOND, MonotonicTime::default());
    assert_eq!((session.wants(), session.deadline()), (Wants::Gone, None));
}
