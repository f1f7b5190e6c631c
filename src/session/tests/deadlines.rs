//! How long a peer may stay silent, and how long it may take no output.

use super::*;

#[test]
fn endless_patience_has_no_deadline() {
    let mut client = Client::patient(Patience::Endless);
    assert_eq!(client.left(), None);
    client.receives("x");
    assert_eq!(client.left(), None);
}

#[test]
fn silence_is_counted_anew_from_each_arrival() {
    let mut client = Client::patient(Patience::Silence(SECOND));
    assert_eq!(client.left(), Some(SECOND));
    client.passes(SECOND - NANO);
    assert_eq!(client.left(), Some(NANO));
    client.receives("x");
    assert_eq!(client.left(), Some(SECOND));
}

#[test]
fn a_phase_is_not_lengthened_by_bytes() {
    let mut client = Client::patient(Patience::Phase(1, SECOND));
    client.passes(SECOND / 4);
    client.receives("x");
    client.passes(SECOND / 4);
    client.receives("x");
    assert_eq!(client.left(), Some(SECOND / 2));
}

#[test]
fn a_new_number_begins_a_new_phase() {
    let mut client = Client::patient(Patience::Phase(1, SECOND));
    client.passes(SECOND / 4);
    client.will_be(Patience::Phase(2, SECOND));
    client.receives("x");
    assert_eq!(client.left(), Some(SECOND));
}

#[test]
fn a_phase_goes_on_behind_the_output() {
    let mut client = Client::patient(Patience::Phase(1, 5 * SECOND));
    client.will_answer(&[("abc", Next::Read)]);
    client.receives("x");
    assert_eq!(client.left(), Some(WRITE_TIMEOUT));
    client.passes(SECOND);
    client.sends(3);
    assert_eq!(client.left(), Some(4 * SECOND));
}

#[test]
fn a_limit_of_zero_is_no_limit() {
    for patience in [Patience::Silence(Duration::ZERO), Patience::Phase(1, Duration::ZERO)] {
        let mut client = Client::new(patience, Duration::ZERO);
        assert_eq!(client.left(), None);
        client.will_answer(&[("abc", Next::Read)]);
        client.receives("x");
        assert_eq!((client.wants(), client.left()), (Wants::Write, None));
        client.sends(3);
        assert_eq!((client.wants(), client.left()), (Wants::Read, None));
    }
}

#[test]
fn the_write_deadline_moves_with_progress_alone() {
    let mut client = Client::patient(Patience::Silence(SECOND));
    client.will_answer(&[("abc", Next::Read), ("d", Next::Read)]);
    client.receives("x");
    client.passes(SECOND);
    assert_eq!(client.left(), Some(WRITE_TIMEOUT - SECOND));
    client.drains();
    assert_eq!(client.unsent(), "abcd");
    assert_eq!(client.left(), Some(WRITE_TIMEOUT - SECOND), "a drain is no progress");
    client.sends(1);
    assert_eq!(client.left(), Some(WRITE_TIMEOUT));
    client.sends(3);
    assert_eq!(client.left(), Some(SECOND));
}

#[test]
fn a_client_that_takes_no_output_is_given_up_without_a_word() {
    let mut client = Client::answering(&[("abc", Next::Read)]);
    client.receives("x");
    client.passes(WRITE_TIMEOUT);
    assert_eq!(client.left(), Some(Duration::ZERO));
    client.expires();
    assert_eq!(client.wants(), Wants::Gone);
    assert_eq!(client.asked(), ["receive x"]);
}

#[test]
fn a_silent_client_may_be_told_so() {
    let mut client = Client::patient(Patience::Silence(SECOND));
    client.will_answer(&[("too late", Next::Close)]);
    client.passes(SECOND);
    client.expires();
    assert_eq!((client.wants(), client.unsent()), (Wants::Write, "too late"));
    assert_eq!(client.left(), Some(WRITE_TIMEOUT));
    client.sends(8);
    assert_eq!(client.wants(), Wants::Gone);
    assert_eq!(client.asked(), ["expire"]);
}

#[test]
fn a_silent_client_may_be_given_more_time() {
    let mut client = Client::patient(Patience::Silence(SECOND));
    client.passes(SECOND);
    client.expires();
    assert_eq!((client.wants(), client.left()), (Wants::Read, Some(SECOND)));
}

#[test]
fn no_bytes_sent_are_no_progress() {
    let mut client = Client::answering(&[("abc", Next::Read)]);
    client.receives("x");
    client.passes(SECOND);
    client.sends(0);
    assert_eq!(client.left(), Some(WRITE_TIMEOUT - SECOND));
}

#[test]
fn what_is_gone_has_no_deadline() {
    let mut client = Client::patient(Patience::Silence(SECOND));
    client.will_answer(&[("", Next::Close)]);
    client.receives("x");
    assert_eq!((client.wants(), client.left()), (Wants::Gone, None));
    let mut client = Client::patient(Patience::Silence(SECOND));
    client.session.broken();
    assert_eq!((client.wants(), client.left()), (Wants::Gone, None));
}

#[test]
fn a_phase_that_has_ended_and_is_not_left_ends_the_session() {
    let mut client = Client::patient(Patience::Phase(1, SECOND));
    client.passes(SECOND);
    client.expires();
    assert_eq!((client.wants(), client.left()), (Wants::Gone, None));
    assert_eq!(client.asked(), ["expire"]);
}

#[test]
fn a_phase_that_has_ended_may_be_followed_by_another() {
    let mut client = Client::patient(Patience::Phase(1, SECOND));
    client.will_be(Patience::Phase(2, SECOND));
    client.passes(SECOND);
    client.expires();
    assert_eq!((client.wants(), client.left()), (Wants::Read, Some(SECOND)));
}

#[test]
fn a_number_that_comes_back_after_another_patience_begins_a_new_phase() {
    for between in [Patience::Endless, Patience::Silence(MINUTE)] {
        let mut client = Client::patient(Patience::Phase(1, SECOND));
        client.will_be(between);
        client.receives("x");
        client.passes(10 * SECOND);
        client.will_be(Patience::Phase(1, SECOND));
        client.receives("x");
        assert_eq!(client.left(), Some(SECOND));
    }
}
