//! Clients of the control interface that do nothing, or never read: the next client is served, and the
//! memory of the master is bounded.

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use crate::client::Client;
use crate::control::Controlled;
use crate::proc::{descriptors_to, status_number, wait_until};

on_slow_class!(mio: thousand_idle_clients_take_no_place, clients_that_never_read_hold_bounded_memory);

/// How many clients of one address there are at most, with those that wait.
const CLIENTS_MAX: usize = 32;

/// What the master may grow by, in KiB: the answers of an earlier time that are kept for slow clients.
const GROWTH_MAX: u64 = 32 << 10;

fn memory(it: &Controlled) -> u64 {
    status_number(it.server.pid, "VmRSS")
}

/// Clients of both addresses are answered, and so are those of the service.
fn expect_service(it: &Controlled) {
    for _ in 0..10 {
        assert_eq!(it.ask_metrics("/readyz", &[]).status(), 200);
        assert!(it.metrics().ends_with('\n'));
        assert_eq!(it.status()["ready"], true);
        assert_eq!(it.server.get("/").status(), 200);
    }
}

fn thousand_idle_clients_take_no_place(class: &str) {
    let it = Controlled::start(&["-k", class]);
    expect_service(&it);
    let before = memory(&it);
    let idle: Vec<_> =
        (0..1000).map(|_| TcpStream::connect(it.metrics_address()).unwrap()).collect();
    let idle_unix: Vec<_> = (0..200).map(|_| UnixStream::connect(it.socket()).unwrap()).collect();
    expect_service(&it);
    let is_bounded = || descriptors_to(it.server.pid, "socket:").len() < 2 * CLIENTS_MAX + 20;
    wait_until("the idle ones are closed", is_bounded);
    assert!(memory(&it) < before + GROWTH_MAX, "{before} to {} KiB", memory(&it));
    drop((idle, idle_unix));
    expect_service(&it);
    it.server.finish();
}

fn clients_that_never_read_hold_bounded_memory(class: &str) {
    let it = Controlled::start(&["-k", class, "-w", "20"]);
    expect_service(&it);
    let before = memory(&it);
    let mut deaf = Vec::new();
    for path in ["/metrics", "/v1/status", "/", "/v1/events?after=0", "/v1/openapi.json"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").repeat(100);
        for _ in 0..20 {
            let mut client = TcpStream::connect(it.metrics_address()).unwrap();
            client.set_nonblocking(true).unwrap();
            let _ = client.write(request.as_bytes());
            deaf.push(client);
        }
        expect_service(&it);
        assert!(memory(&it) < before + GROWTH_MAX, "{path}: {before} to {} KiB", memory(&it));
    }
    drop(deaf);
    expect_service(&it);
    it.server.finish();
}

/// Requests that are sent at once are answered in order, and each by a view of its own time.
#[test]
fn pipelined_requests_are_answered_in_order() {
    let it = Controlled::start(&["-w", "2"]);
    let mut client = Client::tcp(it.metrics_address()).unwrap();
    let paths = ["/healthz", "/readyz", "/metrics", "/v1/status", "/healthz", "/v1/status"];
    let requests = paths.map(|path| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    client.send(requests.concat());
    let answers = paths.map(|_| client.answer());
    assert!(answers.iter().all(|it| it.status() == 200));
    assert_eq!(answers[0].text(), "ok\n");
    assert_eq!(answers[1].text(), "ready\n");
    assert!(answers[2].text().contains("\nostler_ready 1\n"));
    assert_eq!(answers[4].text(), "ok\n");
    for number in [3, 5] {
        assert_eq!(answers[number].json()["pools"][0]["ready"], 2);
    }
    client.send("HEAD /v1/status HTTP/1.0\r\nHost: localhost\r\n\r\n");
    let head = String::from_utf8(client.rest()).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
    assert!(length.parse::<usize>().unwrap() > 1000 && head.ends_with("\r\n\r\n"), "{head}");
    it.server.finish();
}
