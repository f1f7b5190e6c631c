//! Deadlines of reading and writing.

use super::*;
use crate::session::output::WRITE_STEP;

#[test]
fn no_timeout_has_no_deadline() {
    let mut client = Client::with_timeout(ReadTimeout::None);
    assert_eq!(client.time_left(), None);
    client.receive("x");
    assert_eq!(client.time_left(), None);
}

#[test]
fn idle_timeout_restarts_on_input() {
    let mut client = Client::with_timeout(ReadTimeout::Idle(SECOND));
    assert_eq!(client.time_left(), Some(SECOND));
    client.advance_clock(SECOND - NANO);
    assert_eq!(client.time_left(), Some(NANO));
    client.receive("x");
    assert_eq!(client.time_left(), Some(SECOND));
}

#[test]
fn total_timeout_ignores_input() {
    let mut client = Client::with_timeout(ReadTimeout::Total { phase: 1, limit: SECOND });
    client.advance_clock(SECOND / 4);
    client.receive("x");
    client.advance_clock(SECOND / 4);
    client.receive("x");
    assert_eq!(client.time_left(), Some(SECOND / 2));
}

#[test]
fn new_phase_restarts_total_timeout() {
    let mut client = Client::with_timeout(ReadTimeout::Total { phase: 1, limit: SECOND });
    client.advance_clock(SECOND / 4);
    client.set_timeout(ReadTimeout::Total { phase: 2, limit: SECOND });
    client.receive("x");
    assert_eq!(client.time_left(), Some(SECOND));
}

#[test]
fn total_timeout_continues_during_output() {
    let mut client = Client::with_timeout(ReadTimeout::Total { phase: 1, limit: 5 * SECOND });
    client.add_replies(&[("abc", Next::Read)]);
    client.receive("x");
    assert_eq!(client.time_left(), Some(WRITE_TIMEOUT));
    client.advance_clock(SECOND);
    client.send(3);
    assert_eq!(client.time_left(), Some(4 * SECOND));
}

#[test]
fn zero_limit_has_no_deadline() {
    for timeout in
        [ReadTimeout::Idle(Duration::ZERO), ReadTimeout::Total { phase: 1, limit: Duration::ZERO }]
    {
        let mut client = Client::new(timeout, Duration::ZERO);
        assert_eq!(client.time_left(), None);
        client.add_replies(&[("abc", Next::Read)]);
        client.receive("x");
        assert_eq!((client.wants(), client.time_left()), (Wants::Write, None));
        client.send(3);
        assert_eq!((client.wants(), client.time_left()), (Wants::Read, None));
    }
}

#[test]
fn write_deadline_moves_on_progress_only() {
    let mut client = Client::with_timeout(ReadTimeout::Idle(SECOND));
    client.add_replies(&[("abc", Next::Read), ("d", Next::Read)]);
    client.receive("x");
    client.advance_clock(SECOND);
    assert_eq!(client.time_left(), Some(WRITE_TIMEOUT - SECOND));
    client.drain();
    assert_eq!(client.unsent(), "abcd");
    assert_eq!(client.time_left(), Some(WRITE_TIMEOUT - SECOND), "a drain is no progress");
    client.send(1);
    assert_eq!(client.time_left(), Some(WRITE_TIMEOUT - SECOND), "a byte is too little");
    client.send(3);
    assert_eq!(client.time_left(), Some(SECOND));
}

#[test]
fn write_deadline_moves_with_each_4_kib() {
    let long: &'static str = "x".repeat(3 * WRITE_STEP).leak();
    let mut client = Client::with_replies(&[(long, Next::Read)]);
    client.receive("x");
    client.advance_clock(SECOND);
    client.send(WRITE_STEP - 1);
    assert_eq!(client.time_left(), Some(WRITE_TIMEOUT - SECOND));
    client.send(1);
    assert_eq!(client.time_left(), Some(WRITE_TIMEOUT));
    client.advance_clock(SECOND);
    client.send(WRITE_STEP - 1);
    assert_eq!(client.time_left(), Some(WRITE_TIMEOUT - SECOND));
}

#[test]
fn write_timeout_closes_without_a_call() {
    let mut client = Client::with_replies(&[("abc", Next::Read)]);
    client.receive("x");
    client.advance_clock(WRITE_TIMEOUT);
    assert_eq!(client.time_left(), Some(Duration::ZERO));
    client.time_out();
    assert_eq!(client.wants(), Wants::Closed);
    assert_eq!(client.calls(), ["receive x"]);
}

#[test]
fn idle_timeout_may_send_a_reply() {
    let mut client = Client::with_timeout(ReadTimeout::Idle(SECOND));
    client.add_replies(&[("too late", Next::Close)]);
    client.advance_clock(SECOND);
    client.time_out();
    assert_eq!((client.wants(), client.unsent()), (Wants::Write, "too late"));
    assert_eq!(client.time_left(), Some(WRITE_TIMEOUT));
    client.send(8);
    assert_eq!(client.wants(), Wants::Closed);
    assert_eq!(client.calls(), ["on_timeout"]);
}

#[test]
fn idle_timeout_may_be_extended() {
    let mut client = Client::with_timeout(ReadTimeout::Idle(SECOND));
    client.advance_clock(SECOND);
    client.time_out();
    assert_eq!((client.wants(), client.time_left()), (Wants::Read, Some(SECOND)));
}

#[test]
fn on_sent_zero_keeps_write_deadline() {
    let mut client = Client::with_replies(&[("abc", Next::Read)]);
    client.receive("x");
    client.advance_clock(SECOND);
    client.send(0);
    assert_eq!(client.time_left(), Some(WRITE_TIMEOUT - SECOND));
}

#[test]
fn closed_session_has_no_deadline() {
    let mut client = Client::with_timeout(ReadTimeout::Idle(SECOND));
    client.add_replies(&[("", Next::Close)]);
    client.receive("x");
    assert_eq!((client.wants(), client.time_left()), (Wants::Closed, None));
    let mut client = Client::with_timeout(ReadTimeout::Idle(SECOND));
    client.session.abort();
    assert_eq!((client.wants(), client.time_left()), (Wants::Closed, None));
}

#[test]
fn expired_phase_without_change_closes() {
    let mut client = Client::with_timeout(ReadTimeout::Total { phase: 1, limit: SECOND });
    client.advance_clock(SECOND);
    client.time_out();
    assert_eq!((client.wants(), client.time_left()), (Wants::Closed, None));
    assert_eq!(client.calls(), ["on_timeout"]);
}

#[test]
fn expired_phase_followed_by_another_stays_open() {
    let mut client = Client::with_timeout(ReadTimeout::Total { phase: 1, limit: SECOND });
    client.set_timeout(ReadTimeout::Total { phase: 2, limit: SECOND });
    client.advance_clock(SECOND);
    client.time_out();
    assert_eq!((client.wants(), client.time_left()), (Wants::Read, Some(SECOND)));
}

#[test]
fn phase_after_other_timeout_restarts() {
    for between in [ReadTimeout::None, ReadTimeout::Idle(MINUTE)] {
        let mut client = Client::with_timeout(ReadTimeout::Total { phase: 1, limit: SECOND });
        client.set_timeout(between);
        client.receive("x");
        client.advance_clock(10 * SECOND);
        client.set_timeout(ReadTimeout::Total { phase: 1, limit: SECOND });
        client.receive("x");
        assert_eq!(client.time_left(), Some(SECOND));
    }
}
