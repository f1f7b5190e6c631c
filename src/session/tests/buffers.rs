//! Ownership of the output buffer: an idle session has none.

use super::*;

#[test]
fn idle_session_owns_no_buffer() {
    let mut client = Client::with_replies(&[("abc", Next::Read)]);
    assert_eq!(client.session.output.capacity(), 0);
    client.receive("x");
    client.send(3);
    assert_eq!(client.session.output.capacity(), 0);
    assert_ne!(client.spare.capacity(), 0, "it becomes the spare buffer");
}

#[test]
fn spare_buffer_is_used_and_returned() {
    let mut client = Client::with_replies(&[("abc", Next::Read)]);
    client.spare = Vec::with_capacity(4096);
    let lent = client.spare.as_ptr();
    client.receive("x");
    assert_eq!(client.session.unsent().as_ptr(), lent);
    assert_eq!(client.spare.capacity(), 0);
    client.send(3);
    assert_eq!(client.spare.as_ptr(), lent);
    assert_eq!(client.spare.capacity(), 4096);
}

#[test]
fn spare_buffer_without_output_stays() {
    let mut client = Client::with_replies(&[]);
    client.spare = Vec::with_capacity(4096);
    let lent = client.spare.as_ptr();
    client.receive("x");
    assert_eq!(client.spare.as_ptr(), lent);
}

#[test]
fn second_buffer_is_freed() {
    let mut client = Client::with_replies(&[("abc", Next::Read)]);
    client.receive("x");
    client.spare = Vec::with_capacity(4096);
    let other = client.spare.as_ptr();
    client.send(3);
    assert_eq!(client.spare.as_ptr(), other);
    assert_eq!(client.session.output.capacity(), 0);
}

#[test]
fn lingering_close_owns_no_buffer() {
    let mut client = Client::with_replies(&[("no", Next::LingeringClose)]);
    client.receive("x");
    client.send(2);
    assert_eq!((client.wants(), client.session.output.capacity()), (Wants::Linger, 0));
}

#[test]
fn aborted_session_has_nothing_to_send() {
    let mut client = Client::with_replies(&[("abc", Next::Read)]);
    client.receive("x");
    client.session.abort();
    assert_eq!((client.wants(), client.unsent()), (Wants::Closed, ""));
}
