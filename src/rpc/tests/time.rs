//! Timeouts and drains.

use super::*;

#[test]
fn timeout_follows_the_call_state() {
    let rpc = rpc();
    let limits = Limits::default();
    let mut client = Client::new(&rpc);
    let message = request(1, "add", (1, 2));
    assert_eq!(
        client.connection.timeout(),
        ReadTimeout::Total { phase: 0, limit: limits.first_call_timeout }
    );
    client.send(&message[..3]);
    assert_eq!(client.connection.timeout(), ReadTimeout::Idle(limits.read_timeout));
    client.send(&message[3..]);
    assert_eq!(
        client.connection.timeout(),
        ReadTimeout::Total { phase: 1, limit: limits.keepalive }
    );
    client.send(&message);
    assert_eq!(
        client.connection.timeout(),
        ReadTimeout::Total { phase: 2, limit: limits.keepalive }
    );
    client.send(&message[..1]);
    assert_eq!(client.connection.timeout(), ReadTimeout::Idle(limits.read_timeout));
    client.output.clear();
    assert_eq!(client.time_out(), Next::Close);
    assert!(client.output.is_empty());
    assert_eq!(Client::new(&rpc).time_out(), Next::Close);
}

#[test]
fn zero_keepalive_closes_after_first_response() {
    let rpc = rpc().with_limits(Limits { keepalive: Duration::ZERO, ..Limits::default() });
    let mut client = Client::new(&rpc);
    assert_eq!(client.send(notification("add", (1, 2))), Next::Read);
    assert_eq!(client.send(request(1, "add", (1, 2)).repeat(2)), Next::Close);
    client.expect(1, 3);
    assert!(client.output.is_empty());
    assert_eq!(client.recorder.units.len(), 2);
}

#[test]
fn idle_client_has_its_own_timeout_if_it_holds_no_worker() {
    let rpc = rpc().with_limits(Limits { keepalive: Duration::ZERO, ..Limits::default() });
    let mut client = Client::of_class(&rpc, true);
    assert_eq!(client.send(request(1, "add", (1, 2))), Next::Read);
    let limit = Duration::from_secs(3600);
    assert_eq!(client.connection.timeout(), ReadTimeout::Total { phase: 1, limit });
}

#[test]
fn drain_waits_drain_idle_timeout_for_idle_client() {
    let rpc = rpc();
    let message = request(1, "add", (1, 2));
    for before in [&[][..], &message, &message[..4], &[&message[..], &message[..4]].concat()] {
        let mut client = Client::new(&rpc);
        if !before.is_empty() {
            client.send(before);
        }
        assert_eq!(client.drain(), Next::Read);
        let ReadTimeout::Total { phase, limit } = client.connection.timeout() else { panic!() };
        assert_eq!(limit, Limits::default().drain_idle_timeout);
        // A part of a message does not extend the timeout.
        client.send(if before.len() % 2 == 0 { &message[..1] } else { &message[4..5] });
        assert_eq!(client.connection.timeout(), ReadTimeout::Total { phase, limit });
        assert_eq!(client.time_out(), Next::Close);
    }
    let without_wait =
        rpc.with_limits(Limits { drain_idle_timeout: Duration::ZERO, ..Limits::default() });
    assert_eq!(Client::new(&without_wait).drain(), Next::Close);
}

#[test]
fn drain_answers_complete_messages() {
    let rpc = rpc();
    let message = request(1, "add", (1, 2));
    let mut client = Client::new(&rpc);
    client.send(&message[..4]);
    client.drain();
    let rest = [&message[4..], &message, &message[..4]].concat();
    assert_eq!(client.send(rest), Next::LingeringClose);
    client.expect(1, 3);
    client.expect(1, 3);
    assert!(client.output.is_empty());
    assert_eq!(client.send(&message), Next::LingeringClose, "the connection has closed");
    assert!(client.output.is_empty());
}

#[test]
fn drain_answers_yielded_calls() {
    let rpc = rpc();
    let message = request(1, "add", (1, 2));
    for rest in [0, 4] {
        for drain_idle_timeout in [Duration::ZERO, Duration::from_secs(1)] {
            let rpc = super::rpc().with_limits(Limits { drain_idle_timeout, ..rpc.limits });
            for calls in [64, 65, 128, 200] {
                let mut client = Client::new(&rpc);
                let input = [message.repeat(calls), message[..rest].to_vec()].concat();
                client.call_once(|connection, ctx| connection.receive(&input, ctx));
                let yielded = client.next == Next::Continue;
                assert_eq!(yielded, calls > 64 || rest > 0);
                let next = client.drain();
                let expected = match (yielded, drain_idle_timeout.is_zero()) {
                    (true, _) => Next::LingeringClose,
                    (false, true) => Next::Close,
                    (false, false) => Next::Read,
                };
                assert_eq!(
                    next, expected,
                    "{calls} calls and {rest} bytes, {drain_idle_timeout:?}"
                );
                (0..calls).for_each(|_| client.expect(1, 3));
                assert!(client.output.is_empty());
            }
        }
    }
}

#[test]
fn half_closed_client_gets_all_responses() {
    let rpc = rpc();
    let mut client = Client::new(&rpc);
    let input = request(1, "add", (1, 2)).repeat(100);
    client.call_once(|connection, ctx| connection.receive(&input, ctx));
    assert_eq!(client.next, Next::Continue);
    assert_eq!(client.connection.timeout(), ReadTimeout::None);
    assert_eq!(client.finish(), Next::Close);
    (0..100).for_each(|_| client.expect(1, 3));
}
