//! Timeouts and drains.

use super::*;

#[test]
fn timeout_sends_408_only_after_partial_request() {
    let service = service();
    for partial in ["G", "GET / HTTP/1.1\r\nHost: x\r\n", POST_HEAD, "HEAD / "] {
        let mut client = Client::new(&service);
        assert_eq!(client.send(partial), Next::Read);
        assert_eq!(client.time_out(), Next::LingeringClose, "{partial:?}");
        let (status, head, body) = client.response();
        assert!(status == 408 && head.contains("\r\nConnection: close"));
        assert_eq!(body.is_empty(), partial == "HEAD / ");
        assert_eq!((client.send("x"), client.read().as_str()), (Next::LingeringClose, ""));
    }
    for idle in
        ["", "\r\n", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\n\r\n\r\n"]
    {
        let mut client = Client::new(&service);
        if !idle.is_empty() {
            client.send(idle);
        }
        client.read();
        assert_eq!(client.time_out(), Next::Close, "{idle:?}");
        assert_eq!(client.read(), "");
    }
}

const POST_HEAD: &str = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n";

#[test]
fn timeout_follows_the_request_state() {
    let service = service();
    let limits = Limits::default();
    let mut client = Client::new(&service);
    let head = |phase| ReadTimeout::Total { phase, limit: limits.header_timeout };
    assert_eq!(client.connection.timeout(), head(0));
    client.send("GET");
    assert_eq!(client.connection.timeout(), head(0), "the phase began at the connect");
    client.send(" / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(
        client.connection.timeout(),
        ReadTimeout::Total { phase: 1, limit: limits.keepalive }
    );
    client.send("\r\n");
    assert_eq!(
        client.connection.timeout(),
        ReadTimeout::Total { phase: 1, limit: limits.keepalive }
    );
    client.send("P");
    assert_eq!(client.connection.timeout(), head(2));
    client.send(&POST_HEAD[1..20]);
    assert_eq!(client.connection.timeout(), head(2), "more bytes do not restart the phase");
    client.send(&POST_HEAD[20..]);
    let body = client.connection.timeout();
    assert_eq!(body, ReadTimeout::Total { phase: 3, limit: limits.body_timeout });
    client.send("o");
    assert_eq!(client.connection.timeout(), body, "a byte does not extend the timeout");
    client.send("k");
    let after = client.connection.timeout();
    assert_eq!(after, ReadTimeout::Total { phase: 4, limit: limits.keepalive });
}

#[test]
fn body_timeout_starts_anew_with_each_4_kib() {
    let service = service();
    let limit = Limits::default().body_timeout;
    for (framing, begin) in
        [("Content-Length: 20000", ""), ("Transfer-Encoding: chunked", "4e20\r\n")]
    {
        let mut client = Client::new(&service);
        client.send(format!("POST / HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n{begin}"));
        let mut phases = Vec::new();
        for _ in 0..9 {
            assert_eq!(client.send("x".repeat(2000)), Next::Read);
            let ReadTimeout::Total { phase, limit: is } = client.connection.timeout() else {
                panic!()
            };
            assert_eq!(is, limit);
            phases.push(phase);
        }
        phases.dedup();
        assert_eq!(phases.len(), 5, "{framing}: {phases:?}");
    }
}

#[test]
fn drain_waits_drain_idle_timeout_for_idle_client() {
    let service = service();
    let limits = Limits::default();
    let mut fresh = Client::new(&service);
    let mut used = Client::new(&service);
    used.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    used.read();
    for client in [&mut fresh, &mut used] {
        let before = client.connection.timeout();
        assert_eq!(client.drain(), Next::Read);
        let after = client.connection.timeout();
        assert!(
            matches!(after, ReadTimeout::Total { limit, .. } if limit == limits.drain_idle_timeout)
        );
        assert_ne!(before, after);
    }
    assert_eq!(fresh.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), Next::Close);
    assert!(fresh.response().1.contains("\r\nConnection: close"));
    assert_eq!(used.time_out(), Next::Close);
    assert_eq!(used.read(), "");
    let without_wait =
        Http::new(Probe::default(), Limits { drain_idle_timeout: Duration::ZERO, ..limits });
    assert_eq!(Client::new(&without_wait).drain(), Next::Close);
}

#[test]
fn drain_finishes_partial_request() {
    let service = service();
    let mut client = Client::new(&service);
    client.send(POST_HEAD);
    assert_eq!(client.drain(), Next::Read);
    assert_eq!(client.send("okGET / HTTP/1.1\r\nHost: x\r\n\r\n"), Next::Close);
    let (_, head, body) = client.response();
    assert!(head.contains("\r\nConnection: close"));
    assert_eq!(body, "POST / ok");

    let mut client = Client::new(&service);
    let input = "GET /counted?n=300000 HTTP/1.1\r\nHost: x\r\n\r\n";
    client.call_once(|connection, ctx| connection.receive(input.as_bytes(), ctx));
    assert_eq!(client.drain(), Next::Close);
    assert_eq!(client.response().2.len(), 300_000);
}
