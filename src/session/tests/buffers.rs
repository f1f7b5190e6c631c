//! Whose the output buffer is: an idle session has none.

use super::*;

#[test]
fn an_idle_session_owns_none() {
    let mut client = Client::answering(&[("abc", Next::Read)]);
    assert_eq!(client.session.out.capacity(), 0);
    client.receives("x");
    client.sends(3);
    assert_eq!(client.session.out.capacity(), 0);
    assert_ne!(client.spare.capacity(), 0, "it becomes the spare one");
}

#[test]
fn the_spare_one_is_used_and_returned() {
    let mut client = Client::answering(&[("abc", Next::Read)]);
    client.spare = Vec::with_capacity(4096);
    let lent = client.spare.as_ptr();
    client.receives("x");
    assert_eq!(client.session.unsent().as_ptr(), lent);
    assert_eq!(client.spare.capacity(), 0);
    client.sends(3);
    assert_eq!(client.spare.as_ptr(), lent);
    assert_eq!(client.spare.capacity(), 4096);
}

#[test]
fn without_output_the_spare_one_stays() {
    let mut client = Client::answering(&[]);
    client.spare = Vec::with_capacity(4096);
    let lent = client.spare.as_ptr();
    client.receives("x");
    assert_eq!(client.spare.as_ptr(), lent);
}

#[test]
fn a_second_one_is_freed() {
    let mut client = Client::answering(&[("abc", Next::Read)]);
    client.receives("x");
    client.spare = Vec::with_capacity(4096);
    let other = client.spare.as_ptr();
    client.sends(3);
    assert_eq!(client.spare.as_ptr(), other);
    assert_eq!(client.session.out.capacity(), 0);
}

#[test]
fn a_refused_client_owns_none() {
    let mut client = Client::answering(&[("no", Next::Refuse)]);
    client.receives("x");
    client.sends(2);
    assert_eq!((client.wants(), client.session.out.capacity()), (Wants::Linger, 0));
}

#[test]
fn what_is_broken_has_nothing_to_send() {
    let mut client = Client::answering(&[("abc", Next::Read)]);
    client.receives("x");
    client.session.broken();
    assert_eq!((client.wants(), client.unsent()), (Wants::Gone, ""));
}
