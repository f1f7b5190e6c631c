//! A lingering close discards input for a limited time.

use super::*;

const TOTAL: Duration = Duration::from_secs(5);
const BYTES: u64 = 100_000;

fn lingering_client() -> Client {
    let mut client = Client::with_replies(&[("no", Next::LingeringClose)]);
    client.limit_lingering_close(TOTAL, BYTES);
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
    let half = "x".repeat(50_000);
    client.receive(&half);
    client.receive(&half);
    assert_eq!(client.wants(), Wants::Linger);
    client.receive("x");
    assert_eq!(client.wants(), Wants::Closed);
}

#[test]
fn lingering_close_ends_without_input() {
    let mut client = lingering_client();
    assert_eq!(client.time_left(), Some(LINGERING_CLOSE_IDLE_TIMEOUT));
    client.advance_clock(SECOND);
    client.receive("more");
    assert_eq!(client.time_left(), Some(SECOND), "this is too slow to be an upload");
    client.advance_clock(SECOND);
    client.time_out();
    assert_eq!(client.wants(), Wants::Closed);
    assert_eq!(client.calls(), ["receive x"]);
}

#[test]
fn lingering_close_lasts_while_input_arrives() {
    let mut client = lingering_client();
    let half = "x".repeat(LINGERING_CLOSE_STEP as usize / 2);
    for second in 0..4 {
        client.receive(&half);
        client.receive(&half);
        let left = LINGERING_CLOSE_IDLE_TIMEOUT.min(TOTAL - second * SECOND);
        assert_eq!(client.time_left(), Some(left));
        client.advance_clock(SECOND);
    }
    client.receive(&half);
    client.receive(&half);
    assert_eq!(client.time_left(), Some(SECOND), "the total time is limited");
    client.advance_clock(SECOND);
    client.receive("x");
    assert_eq!(client.wants(), Wants::Closed, "even if the class does not look at the deadline");
}

#[test]
fn lingering_close_without_output_starts_at_once() {
    let mut client = Client::with_replies(&[("", Next::LingeringClose)]);
    client.receive("x");
    assert_eq!(client.wants(), Wants::Linger);
    assert_eq!(client.time_left(), Some(LINGERING_CLOSE_IDLE_TIMEOUT));
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
    client.receive(&"x".repeat(BYTES as usize + 1));
    assert_eq!((client.wants(), client.time_left()), (Wants::Closed, None));
}

#[test]
fn ordered_close_asks_the_socket_after_output() {
    let closes = |output: &'static str| {
        let mut client = Client::with_replies(&[(output, Next::Close)]);
        client.receive("a");
        client
    };
    let silent = closes("");
    assert_eq!((silent.wants(), silent.session.close_risk()), (Wants::Closed, CloseRisk::None));
    let mut short = closes("bye");
    assert_eq!(short.session.close_risk(), CloseRisk::None, "before all is sent");
    short.send(3);
    assert_eq!((short.wants(), short.session.close_risk()), (Wants::Closed, CloseRisk::Unread));
    assert_eq!(short.time_left(), None);
    let mut partial = closes("bye");
    partial.send(1);
    partial.send(2);
    assert_eq!(partial.session.close_risk(), CloseRisk::UnreadOrUnacknowledged);
    partial.session.abort();
    assert_eq!(partial.session.close_risk(), CloseRisk::None);
}

#[test]
fn linger_after_ordered_close_discards_input() {
    let mut client = Client::with_replies(&[("bye", Next::Close)]);
    client.receive("a");
    client.send(3);
    let now = client.now;
    client.session.linger(now);
    assert_eq!((client.wants(), client.session.is_open()), (Wants::Linger, true));
    assert_eq!(client.time_left(), Some(LINGERING_CLOSE_IDLE_TIMEOUT));
    client.receive("x");
    assert_eq!(client.wants(), Wants::Linger);
    client.half_close();
    assert_eq!((client.wants(), client.session.close_risk()), (Wants::Closed, CloseRisk::None));
}

#[test]
fn half_closed_client_has_no_close_risk() {
    let mut client = Client::with_replies(&[("", Next::Read), ("bye", Next::Close)]);
    client.receive("a");
    client.half_close();
    client.send(3);
    assert_eq!((client.wants(), client.session.close_risk()), (Wants::Closed, CloseRisk::None));
}
