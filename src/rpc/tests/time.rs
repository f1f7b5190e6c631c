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
    let partial = |phase| ReadTimeout::Total { phase, limit: limits.read_timeout };
    client.send(&message[..3]);
    assert_eq!(client.connection.timeout(), partial(1));
    client.send(&message[3..]);
    assert_eq!(
        client.connection.timeout(),
        ReadTimeout::Total { phase: 2, limit: limits.keepalive }
    );
    client.send(&message);
    assert_eq!(
        client.connection.timeout(),
        ReadTimeout::Total { phase: 3, limit: limits.keepalive }
    );
    client.send(&message[..1]);
    assert_eq!(client.connection.timeout(), partial(4));
    client.output.clear();
    assert_eq!(client.time_out(), Next::Close);
    assert!(client.output.is_empty());
    assert_eq!(Client::new(&rpc).time_out(), Next::Close);
}

#[test]
fn message_is_limited_by_time_for_each_step() {
    let rpc = rpc();
    let mut client = Client::new(&rpc);
    let mut last = client.connection.timeout();
    let mut changes = |client: &Client<'_>| {
        let before = std::mem::replace(&mut last, client.connection.timeout());
        before != last
    };
    let call = request(1, "add", (1, 2));
    let long = request(1, "echo", ("x".repeat(10_000),));
    for (piece, expected) in [
        (&long[..1], true),
        (&long[1..100], false),
        (&long[100..4095], false),
        (&long[4095..4096], true),
        (&long[4096..8000], false),
        (&[&long[8000..], &call[..1]].concat(), true),
        (&call[1..2], false),
        (&[&call[2..], &call[..2]].concat(), true),
    ] {
        client.send(piece);
        assert_eq!(changes(&client), expected, "{} bytes", piece.len());
    }
}

#[test]
fn partial_messages_of_all_clients_share_a_budget() {
    let limits = Limits { message: 1000, partial_messages: 1500, ..Limits::default() };
    let rpc = rpc().with_limits(limits);
    let message = request(1, "echo", ("x".repeat(900),));
    let (mut first, mut second) = (Client::new(&rpc), Client::new(&rpc));
    assert_eq!(first.send(&message[..800]), Next::Read);
    assert_eq!(second.send(&message[..700]), Next::Read);
    assert_eq!(second.send(&message[700..701]), Next::LingeringClose);
    assert_eq!(first.send(&message[800..900]), Next::Read, "its share is free again");
    let mut third = Client::new(&rpc);
    assert_eq!(third.send(&message[..700]), Next::LingeringClose);
    assert_eq!(first.send(&message[900..]), Next::Read);
    assert_eq!(Client::new(&rpc).send(&message[..900]), Next::Read);
    drop(first);
    assert_eq!(
        Client::new(&rpc).send(&message[..900]),
        Next::Read,
        "and so is that of a closed one"
    );
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
