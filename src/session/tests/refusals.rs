//! A client that is refused: its bytes are thrown away for a moment.

use super::*;

fn refused() -> Client {
    let mut client = Client::answering(&[("no", Next::Refuse)]);
    client.receives("x");
    assert_eq!(client.wants(), Wants::Write, "the answer goes first");
    client.sends(2);
    assert_eq!(client.wants(), Wants::Linger);
    client
}

#[test]
fn a_refused_client_is_not_listened_to() {
    let mut client = refused();
    client.receives("more");
    client.drains();
    assert_eq!(client.asked(), ["receive x"]);
    assert_eq!(client.wants(), Wants::Linger);
    client.ends_its_side();
    assert_eq!(client.wants(), Wants::Gone);
}

#[test]
fn a_refused_client_may_send_so_much_and_no_more() {
    let mut client = refused();
    let half = "x".repeat(REFUSAL_BYTES_MAX / 2);
    client.receives(&half);
    client.receives(&half);
    assert_eq!(client.wants(), Wants::Linger);
    client.receives("x");
    assert_eq!(client.wants(), Wants::Gone);
}

#[test]
fn a_refused_client_has_so_long_however_much_it_sends() {
    let mut client = refused();
    assert_eq!(client.left(), Some(REFUSAL_LINGER));
    client.passes(SECOND);
    client.receives("more");
    assert_eq!(client.left(), Some(REFUSAL_LINGER - SECOND));
    client.passes(REFUSAL_LINGER - SECOND);
    client.expires();
    assert_eq!(client.wants(), Wants::Gone);
    assert_eq!(client.asked(), ["receive x"]);
}

#[test]
fn a_refusal_without_output_lingers_at_once() {
    let mut client = Client::answering(&[("", Next::Refuse)]);
    client.receives("x");
    assert_eq!(client.wants(), Wants::Linger);
    assert_eq!(client.left(), Some(REFUSAL_LINGER));
}

#[test]
fn a_refused_client_that_reads_nothing_is_given_up() {
    let mut client = Client::answering(&[("no", Next::Refuse)]);
    client.receives("x");
    assert_eq!(client.left(), Some(WRITE_TIMEOUT));
    client.expires();
    assert_eq!(client.wants(), Wants::Gone);
}

#[test]
fn a_refused_client_that_is_gone_has_no_deadline() {
    let mut client = refused();
    client.ends_its_side();
    assert_eq!((client.wants(), client.left()), (Wants::Gone, None));
    let mut client = refused();
    client.receives(&"x".repeat(REFUSAL_BYTES_MAX + 1));
    assert_eq!((client.wants(), client.left()), (Wants::Gone, None));
}
