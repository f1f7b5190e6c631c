//! Bodies of requests that the class `tokio` serves, and what they mean for their connection.

use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::tokio_class::start;

/// The connection of an idle client is taken apart, but not while a body belongs to it.
#[test]
fn body_that_the_app_reads_later_is_no_request() {
    let Some(server) = start(&["--keep-alive", "60s"]) else { return };
    let body = "GET /bytes?n=7 HTTP/1.1\r\nHost: x\r\n\r\n";
    let head = format!("POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    for (first, later) in [(format!("{head}{body}"), ""), (head, body)] {
        let mut client = server.connect();
        client.send(first);
        assert_eq!(client.answer().status(), 202);
        thread::sleep(Duration::from_millis(500)); // it looks idle
        client.send(later);
        assert_eq!(client.get("/").text(), "Hello, world!\n");
    }
    server.finish();
}

/// Nothing but `body_timeout` limits it. Then the connection is idle.
#[test]
fn body_may_arrive_long_after_its_response() {
    let limits = ["--header-timeout", "1s", "--keep-alive", "1s"];
    let Some(server) = start(&limits) else { return };
    let mut client = server.connect();
    client.send("POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 25000\r\n\r\n");
    assert_eq!(client.answer().status(), 202);
    for _ in 0..5 {
        thread::sleep(Duration::from_millis(500));
        client.send("x".repeat(5000));
    }
    assert_eq!(client.get("/").text(), "Hello, world!\n");
    client.expect_end();
    server.finish();
}

#[test]
fn body_that_stalls_after_its_response_costs_its_connection() {
    let Some(server) = start(&["--body-timeout", "1s"]) else { return };
    let mut client = server.connect();
    client.send("POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 25000\r\n\r\nx");
    assert_eq!(client.answer().status(), 202);
    client.expect_end();
    server.finish();
}

/// hyper reads it, or closes the connection, which is then as idle as any.
#[test]
fn connection_is_idle_after_a_body_that_the_app_has_not_read() {
    let Some(mut server) = start(&["--keep-alive", "1s", "--body-timeout", "60s"]) else { return };
    let request = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello";
    let mut client = server.connect();
    client.send(request);
    assert_eq!(client.answer().status(), 200);
    assert_eq!(client.get("/").text(), "Hello, world!\n");
    client.send(request);
    assert_eq!(client.answer().status(), 200);
    client.expect_end();
    let mut drained = server.connect();
    drained.send(request);
    assert_eq!(drained.answer().status(), 200);
    server.signal(Signal::SIGTERM);
    drained.expect_end();
    server.expect_clean_exit();
}
