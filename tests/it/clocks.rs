//! Each timeout has the same meaning in every class: its effect comes when the time is over, and
//! not before. In each row, only the tested timeout is short.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use crate::client::Client;
use crate::clients::{expect_no_harm, slow_reader};
use crate::connection::{Remote, remote};
use crate::launch::Launch;
use crate::proc::wait_until;
use crate::support::Exit;

on_every_class_and_tokio!(
    timeout_limits_one_unit_of_work,
    timeout_limits_heartbeat_age,
    boot_timeout_limits_fork_to_ready,
    graceful_timeout_limits_master_stop,
    graceful_timeout_limits_one_worker_drain,
    graceful_timeout_limits_orphan_lifetime,
    abort_timeout_limits_quick_stop,
    header_timeout_limits_time_to_complete_head,
    body_timeout_limits_silence_within_body,
    write_timeout_limits_time_without_reads,
    ; except tokio:
    idle_time_between_calls_is_limited,
    ; tokio alone:
    body_timeout_limits_trickled_body,
);

on_every_class_slowly!(body_timeout_limits_trickled_body,);

on_concurrent_classes!(keepalive_limits_idle_time_between_requests);

const CLOCKS: [&str; 9] = [
    "--timeout",
    "--boot-timeout",
    "--graceful-timeout",
    "--abort-timeout",
    "--keep-alive",
    "--rpc-idle-timeout",
    "--header-timeout",
    "--body-timeout",
    "--write-timeout",
];

/// The duration of the short timeout.
const SHORT: Duration = Duration::from_secs(1);
/// Kernel ticks are up to 10 ms long, so an event may come that much early.
const TICK: Duration = Duration::from_millis(10);

/// Prepares a server with one timeout of 1 s. All others are longer than any test.
fn launch(class: &str, short: &str) -> Launch {
    let launch = Launch::new(&["-k", class]);
    CLOCKS.iter().fold(launch, |launch, clock| {
        launch.arg(clock).arg(if *clock == short { "1s" } else { "120s" })
    })
}

/// Asserts that the event just seen came no earlier than the timeout. That it came at all is the
/// other half of each test.
#[track_caller]
fn expect_not_early(begun: Instant) {
    expect_time(begun.elapsed());
}

#[track_caller]
fn expect_time(after: Duration) {
    assert!(after + TICK >= SHORT, "after {after:?}");
}

fn timeout_limits_one_unit_of_work(class: &str) {
    let server = launch(class, "--timeout").start();
    let worker = server.wait_workers(1)[0];
    let begun = Instant::now();
    let mut client = server.begin("/hang");
    let hung = server.wait_for("its hang", |record| record.is("worker hung", worker.pid));
    expect_time(hung.seen - begun);
    assert_eq!(hung.text("error"), Some("request_timeout"), "{hung:?}");
    assert_eq!(hung.text("work"), Some("GET /hang"));
    client.expect_end();
    server.wait_replaced(worker);
    server.finish();
}

fn timeout_limits_heartbeat_age(class: &str) {
    let server = launch(class, "--timeout").start();
    let worker = server.wait_workers(1)[0];
    kill(worker.pid, Signal::SIGSTOP).unwrap();
    let hung = server.wait_for("its hang", |record| record.is("worker hung", worker.pid));
    assert_eq!(hung.text("error"), Some("no_heartbeat"), "{hung:?}");
    // Measured from the last heartbeat, which only the master knows.
    expect_time(Duration::from_millis(hung.number("duration_ms").unwrap().try_into().unwrap()));
    server.wait_replaced(worker);
    server.finish();
}

fn boot_timeout_limits_fork_to_ready(class: &str) {
    let launch = launch(class, "--boot-timeout").arg("--boot-retries").arg("0");
    let begun = Instant::now();
    let server = launch.env("DEMO_BOOT_SLEEP_MS", "120000").spawn();
    let exited = server.wait_for("an end", |record| record.message() == "worker exited");
    expect_time(exited.seen - begun);
    assert_eq!(exited.text("reason"), Some("boot_failed"), "{exited:?}");
    assert!(matches!(exited.text("signal"), Some("SIGABRT" | "SIGKILL")), "{exited:?}");
    assert_eq!(server.wait_exit(), Exit::Code(3));
    server.wait_no_survivors();
}

fn graceful_timeout_limits_master_stop(class: &str) {
    let mut server = launch(class, "--graceful-timeout").start();
    let mut client = server.begin("/hang");
    let begun = Instant::now();
    server.signal(Signal::SIGTERM);
    client.expect_end();
    expect_not_early(begun);
    server.expect_clean_exit();
}

fn graceful_timeout_limits_one_worker_drain(class: &str) {
    let server = launch(class, "--graceful-timeout").start();
    let worker = server.wait_workers(1)[0];
    let mut client = server.begin("/hang");
    let begun = Instant::now();
    server.signal(Signal::SIGHUP);
    client.expect_end();
    expect_not_early(begun);
    let exited = server.wait_exited(worker.pid);
    assert_eq!(exited.text("reason"), Some("reload"), "{exited:?}");
    server.wait_replaced(worker);
    server.finish();
}

fn graceful_timeout_limits_orphan_lifetime(class: &str) {
    let server = launch(class, "--graceful-timeout").start();
    let mut client = server.begin("/hang");
    let begun = Instant::now();
    server.signal(Signal::SIGKILL);
    client.expect_end();
    expect_not_early(begun);
    server.wait_no_survivors();
}

fn abort_timeout_limits_quick_stop(class: &str) {
    let mut server = launch(class, "--abort-timeout").start();
    // A stopped worker does not receive the request to stop.
    kill(server.wait_workers(1)[0].pid, Signal::SIGSTOP).unwrap();
    let begun = Instant::now();
    server.signal(Signal::SIGINT);
    assert_eq!(server.wait_exit(), Exit::Code(0));
    expect_not_early(begun);
    server.expect_clean_exit();
}

/// Uses `rpc`, a protocol for which every class keeps the connection open.
fn idle_time_between_calls_is_limited(class: &str) {
    let clock = if class == "sync" { "--keep-alive" } else { "--rpc-idle-timeout" };
    let server = launch(class, clock).arg("rpc").start();
    let mut caller = server.connect();
    let begun = Instant::now();
    caller.send(b"\x94\x00\x01\xa3pid\x90");
    let answer = caller.rest();
    expect_not_early(begun);
    assert!(answer.starts_with(b"\x94\x01\x01\xc0"), "{}", answer.escape_ascii());
    server.finish();
}

fn keepalive_limits_idle_time_between_requests(class: &str) {
    let server = launch(class, "--keep-alive").start();
    let mut client = server.connect();
    let begun = Instant::now();
    client.get("/");
    client.expect_end();
    expect_not_early(begun);
    expect_no_harm(server);
}

/// Asserts that the client was timed out: by an error answer, or by a plain close.
#[track_caller]
fn expect_timeout(mut client: Client, begun: Instant) {
    let rest = client.rest();
    expect_not_early(begun);
    assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408 "), "{:?}", rest.escape_ascii());
}

fn header_timeout_limits_time_to_complete_head(class: &str) {
    let server = launch(class, "--header-timeout").start();
    let begun = Instant::now();
    expect_timeout(server.connect(), begun);
    let begun = Instant::now();
    let mut half = server.connect();
    half.send("GET / HTTP/1.1\r\nHost: te");
    expect_timeout(half, begun);
    let begun = Instant::now();
    let mut trickling = server.connect();
    trickling.send("GET / HTTP/1.1\r\nX: ");
    // Each byte comes well within a second of the last.
    while trickling.try_send("x").is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(15), "a head may take for ever");
        thread::sleep(Duration::from_millis(50));
    }
    expect_not_early(begun);
    expect_no_harm(server);
}

fn body_timeout_limits_silence_within_body(class: &str) {
    let server = launch(class, "--body-timeout").start();
    let begun = Instant::now();
    let mut client = server.connect();
    client.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhello");
    expect_timeout(client, begun);
    expect_no_harm(server);
}

fn body_timeout_limits_trickled_body(class: &str) {
    let server = launch(class, "--body-timeout").start();
    for (fields, piece) in
        [("Content-Length: 4000", "x"), ("Transfer-Encoding: chunked", "1\r\nx\r\n")]
    {
        let begun = Instant::now();
        let mut client = server.connect();
        client.send(format!("POST /echo HTTP/1.1\r\nHost: test\r\n{fields}\r\n\r\n"));
        while client.try_send(piece).is_ok() {
            assert!(begun.elapsed() < Duration::from_secs(15), "a body may take for ever");
            thread::sleep(Duration::from_millis(50));
        }
        expect_not_early(begun);
    }
    expect_no_harm(server);
}

fn write_timeout_limits_time_without_reads(class: &str) {
    let server = launch(class, "--write-timeout").start();
    let begun = Instant::now();
    let client = slow_reader(&server);
    server.wait_taken(&client);
    // Under `sync`, no other client is served before that.
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    let end = || remote(server.address().port(), client.port());
    wait_until("the client is cut off", || end() == Remote::Closed);
    expect_not_early(begun);
    drop(client);
    expect_no_harm(server);
}
