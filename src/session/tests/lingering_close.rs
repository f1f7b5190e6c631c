//! A lingering close discards input for a limited time.

use super::*;

fn lingering_client() -> Client {
    let mut client = Client::with_replies(&[("no", Next::LingeringClose)]);
    client.receive("x");
    assert_eq!(client.wants(), Wants::Write, "the output is sent first");
    client.send(2);
    assert_eq!(client.wants(), Wants::Linger);
    client
}

#[test]
fn lingering_close_discards_input() {
    let mut client = lingering_client();
    client.receive("more");
    client.drain();
    assert_eq!(client.calls(), ["receive x"]);
    assert_eq!(client.wants(), Wants::Linger);
    client.half_close();
    assert_eq!(client.wants(), Wants::Closed);
}

#[test]
fn lingering_close_ends_at_byte_limit() {
    let mut client = lingering_client();
    let half = "x".repeat(LINGERING_CLOSE_BYTES_MAX / 2);
    client.receive(&half);
    client.receive(&half);
    assert_eq!(client.wants(), Wants::Linger);
    client.receive("x");
    assert_eq!(client.wants(), Wants::Closed);
}

#[test]
fn lingering_close_ends_at_timeout() {
    let mut client = lingering_client();
    assert_eq!(client.time_left(), Some(LINGERING_CLOSE_TIMEOUT));
    client.advance_clock(SECOND);
    client.receive("more");
    assert_eq!(client.time_left(), Some(LINGERING_CLOSE_TIMEOUT - SECOND));
    client.advance_clock(LINGERING_CLOSE_TIMEOUT - SECOND);
    client.time_out();
    assert_eq!(client.wants(), Wants::Closed);
    assert_eq!(client.calls(), ["receive x"]);
}

#[test]
fn lingering_close_without_output_starts_at_once() {
    let mut client = Client::with_replies(&[("", Next::LingeringClose)]);
    client.receive("x");
    assert_eq!(client.wants(), Wants::Linger);
    assert_eq!(client.time_left(), Some(LINGERING_CLOSE_TIMEOUT));
}

#[test]
fn lingering_close_unread_output_times_out() {
    let mut client = Client::with_replies(&[("no", Next::LingeringClose)]);
    client.receive("x");
    assert_eq!(client.time_left(), Some(WRITE_TIMEOUT));
    client.time_out();
    assert_eq!(client.wants(), Wants::Closed);
}

#[test]
fn closed_lingering_client_has_no_deadline() {
    let mut client = lingering_client();
    client.half_close();
    assert_eq!((client.wants(), client.time_left()), (Wants::Closed, None));
    let mut client = lingering_client();
    client.receive(&"x".repeat(LINGERING_CLOSE_BYTES_MAX + 1));
    assert_eq!((client.wants(), client.time_left()), (Wants::Closed, None));
}
