//! The class `tokio`: what only it has. The tables of behaviours have the rest.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::client::Client;
use crate::control::Controlled;
use crate::example::example;
use crate::launch::Launch;
use crate::support::{Exit, Server};

/// Starts the demo of the class with these flags, or the app `echo` of bare streams. Returns `None` if
/// it was not built.
pub fn start(flags: &[&str]) -> Option<Server> {
    launch(flags).map(Launch::start)
}

pub fn launch(flags: &[&str]) -> Option<Launch> {
    example("tokio_demo").map(|program| launch_program(&program, flags))
}

fn launch_program(program: &Path, flags: &[&str]) -> Launch {
    Launch::by(&[program.to_str().unwrap()], flags)
}

/// Waits for a hang, and returns the label of its unit of work.
#[track_caller]
fn hung_label(server: &Server) -> String {
    let hung = server.wait_for("a hang", |record| record.message() == "worker hung");
    hung.text("work").unwrap_or_default().to_owned()
}

#[test]
fn tokio_program_serves_its_app_without_flags() {
    let Some(server) = start(&[]) else { return };
    let info = server.get("/info").json();
    assert_eq!(info["class"], "tokio");
    assert!(server.records_of("serving the built-in demo app").is_empty());
    server.finish();
}

#[test]
fn tokio_client_that_ends_its_output_is_answered_unless_the_request_awaits() {
    let Some(server) = start(&[]) else { return };
    for _ in 0..20 {
        assert_eq!(server.connect().get_and_finish_sending("/").status(), 200);
    }
    // A response in pieces that are all there.
    let answer = server.connect().get_and_finish_sending("/sized?pieces=100&says=100000");
    assert_eq!(answer.body.len(), 100_000);
    // Before the request is polled, and while it awaits.
    for waits in [false, true] {
        let mut client = server.connect();
        client.ask("/await");
        if waits {
            server.wait_taken(&client);
        }
        client.finish_sending();
        client.expect_end();
    }
    server.finish();
}

#[test]
fn tokio_boot_error_is_a_failed_boot() {
    let Some(program) = example("tokio_axum") else { return };
    let flags = ["--boot-retries", "0", "shop", "stock=many"];
    let server = launch_program(&program, &flags).spawn();
    assert_eq!(server.wait_exit(), Exit::Code(3));
    server.wait_silence();
    for message in ["worker failed to boot", "giving up: no worker became ready"] {
        let records = server.records_of(message);
        let reason = records.first().and_then(|record| record.text("error")).unwrap_or_default();
        assert!(reason.contains("invalid digit"), "{message}: {:#?}", server.lines());
    }
}

#[test]
fn tokio_boot_is_ended_by_sigterm() {
    let Some(launch) = launch(&[]) else { return };
    let server = launch.env("DEMO_BOOT_SLEEP_MS", "60000").spawn();
    server.wait_for("the start", |record| record.message() == "listening");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), Exit::Code(0));
}

#[test]
fn wrong_class_or_app_is_refused_before_any_fork() {
    let Some(launch) = launch(&["-k", "mio"]) else { return };
    let outcome = launch.plain().run();
    assert_eq!(outcome.exit, Exit::Code(1));
    let text = outcome.stderr;
    assert!(text.contains(r#"app "demo" runs under worker class tokio only, not mio"#), "{text}");
    let flags = ["-k", "tokio", "demo"];
    let outcome = Launch::by(&[env!("CARGO_BIN_EXE_ostler")], &flags).plain().run();
    assert_eq!(outcome.exit, Exit::Code(1));
    let text = outcome.stderr;
    assert!(text.contains("serves only apps that are made for it"), "{text}");
}

#[test]
fn blocked_thread_is_named_and_other_requests_finish() {
    let Some(server) = start(&["-t", "1s", "--threads", "2"]) else { return };
    let mut other = server.begin("/sleep?ms=1500");
    let hanging = server.begin("/hang");
    assert_eq!(hung_label(&server), "GET /hang");
    assert_eq!(other.answer().text(), "slept 1500 ms\n");
    drop(hanging);
    server.finish();
}

#[test]
fn blocked_only_thread_is_named() {
    let Some(server) = start(&["-t", "1s", "--threads", "1"]) else { return };
    let hanging = server.begin("/hang");
    assert_eq!(hung_label(&server), "GET /hang");
    drop(hanging);
    server.finish();
}

#[test]
fn blocked_body_and_blocked_task_are_named() {
    for (path, label) in [("/stream_hang", "GET /stream_hang"), ("/task_hang", "sweeper")] {
        let Some(server) = start(&["-t", "1s"]) else { return };
        let hanging = server.begin(path);
        assert_eq!(hung_label(&server), label);
        drop(hanging);
        server.finish();
    }
}

#[test]
fn runtime_with_all_threads_stuck_in_unknown_tasks_is_replaced() {
    let Some(server) = start(&["-t", "1s", "--threads", "2"]) else { return };
    let old = server.wait_workers(1)[0];
    let _ = server.begin("/all_hang");
    server.wait_for("a hang", |record| record.is("worker hung", old.pid));
    server.wait_replaced(old);
    server.finish();
}

#[test]
#[ignore = "slow"]
fn request_that_came_in_time_is_answered_though_nobody_could_look() {
    const KEEPALIVE: Duration = Duration::from_secs(2);
    let Some(server) = start(&["-w", "1", "--threads", "1", "--keep-alive", "2s"]) else { return };
    for _ in 0..5 {
        let asked = Instant::now();
        let mut idle = server.connect();
        idle.get("/pid");
        thread::sleep(Duration::from_millis(500)); // it has no task then
        let mut blocking = server.begin("/block?ms=2500");
        thread::sleep(Duration::from_millis(100));
        idle.send("GET /pid HTTP/1.1\r\nHost: test\r\n\r\n");
        if asked.elapsed() > KEEPALIVE - Duration::from_millis(200) {
            continue; // the machine stood still
        }
        assert_eq!(idle.answer().status(), 200);
        blocking.answer();
        return server.finish();
    }
    panic!("the machine is too slow");
}

#[test]
fn unknown_task_that_blocks_one_thread_holds_up_no_client() {
    let Some(server) = start(&["-w", "1", "-t", "5s", "--threads", "2"]) else { return };
    let old = server.wait_workers(1)[0];
    // The thread that waits for sockets and timers, also those of the class itself, serves a client that is
    // connected already.
    let mut client = server.connect();
    client.get("/pid");
    thread::sleep(Duration::from_millis(100)); // the others sleep by then
    assert_eq!(client.get("/one_hangs").status(), 200);
    for _ in 0..3 {
        assert_eq!(server.get("/pid").text().trim(), old.pid.to_string());
        assert_eq!(server.get("/sleep?ms=2000").text(), "slept 2000 ms\n");
    }
    assert_eq!(server.workers(), [old]);
    server.finish();
}

#[test]
fn near_miss_is_logged_with_its_label() {
    let Some(server) = start(&["-t", "2s"]) else { return };
    server.get("/block?ms=1300").text();
    let message = "thread blocked for more than half of timeout";
    let record = server.wait_for("the near miss", |record| record.message() == message);
    assert_eq!(record.text("label"), Some("GET /block"));
    server.finish();
}

#[test]
#[ignore = "slow"]
fn awaiting_is_no_near_miss_and_blocking_is_one() {
    let Some(launch) = launch(&["-t", "6s"]) else { return };
    let it = Controlled::of(launch);
    it.server.get("/sleep?ms=3200").text();
    let pool = it.wait_status("the request is counted", |pool| pool["units_total"] == 1);
    assert_eq!(pool["near_misses_total"], 0);
    it.server.get("/block?ms=3200").text();
    let pool = it.wait_status("the request is counted", |pool| pool["units_total"] == 2);
    assert_eq!(pool["near_misses_total"], 1);
    it.server.finish();
}

#[test]
fn task_and_stream_are_timed_from_begin_to_end() {
    let Some(task) = launch(&[]) else { return };
    let it = Controlled::of(task);
    it.server.get("/task_sleep?ms=600").text();
    let pool = it.wait_status("both are counted", |pool| pool["units_total"] == 2);
    let busy = pool["busy_seconds_total"].as_f64().unwrap();
    assert!(busy >= 0.6, "{pool}");
    it.server.finish();
    let Some(stream) = launch(&["echo"]) else { return };
    let it = Controlled::of(stream);
    let mut client = it.server.connect();
    client.send("x");
    client.read_exactly(&mut [0]); // the unit has begun
    let begun = Instant::now();
    for _ in 0..3 {
        client.send("x");
        client.read_exactly(&mut [0]);
        thread::sleep(Duration::from_millis(200));
    }
    let lasted = begun.elapsed().as_secs_f64();
    client.finish_sending();
    client.expect_end();
    let pool = it.wait_status("it is counted", |pool| pool["units_total"] == 1);
    let busy = pool["busy_seconds_total"].as_f64().unwrap();
    assert!(busy >= lasted, "{busy} of {lasted}");
    it.server.finish();
}

#[test]
fn units_are_shown_and_counted_after_block_in_place() {
    let Some(launch) = launch(&["-t", "2s", "--threads", "2"]) else { return };
    let it = Controlled::of(launch);
    let server = &it.server;
    // Each gives its thread's place to another thread of the pool.
    let mut blocked: Vec<_> = (0..30).map(|_| server.begin("/block_in_place?ms=200")).collect();
    blocked.iter_mut().for_each(|client| _ = client.answer());
    drop(blocked);
    let before = it.pool()["units_total"].as_u64().unwrap();
    let mut client = server.connect();
    (0..50).for_each(|_| _ = client.get("/").text());
    it.wait_status("all are counted", |pool| pool["units_total"] == before + 50);
    let hanging = server.begin("/hang");
    assert_eq!(hung_label(server), "GET /hang");
    drop(hanging);
    it.server.finish();
}

#[test]
fn request_timeout_answers_504_and_cancels() {
    let Some(server) = start(&["--request-timeout", "300ms"]) else { return };
    for path in ["/await", "/spend"] {
        let begun = Instant::now();
        assert_eq!(server.get(path).head.status, 504);
        assert!(begun.elapsed() >= Duration::from_millis(300));
    }
    let late = server.wait_for("it", |record| record.message() == "request timed out");
    assert_eq!(late.text("label"), Some("GET /await"));
    let worker = server.wait_workers(1)[0];
    assert_eq!((late.pid(), late.number("slot")), (Some(worker.pid), Some(0)));
    server.finish();
}

#[test]
fn tracing_events_are_in_the_log_with_their_request() {
    let Some(server) = start(&[]) else { return };
    server.get("/event?secret");
    let booted = server.wait_for("it", |record| record.message() == "app booted");
    assert_eq!((booted.text("pool"), booted.text("request")), (Some("default"), None));
    let event = server.wait_for("it", |record| record.message() == "stock low");
    for (key, value) in [("request", "GET /event"), ("item", "oats"), ("stock", "7")] {
        assert_eq!(event.text(key), Some(value), "{key}");
    }
    assert!(event.text("target").is_some_and(|target| target.starts_with("tokio_demo")));
    assert!(server.records_of("not logged").is_empty());
    server.finish();
}

#[test]
fn long_poll_and_task_are_told_of_the_stop() {
    let Some(mut server) = start(&[]) else { return };
    let mut poll = server.begin("/wait_for_stop");
    assert_eq!(server.get("/task").text(), "spawned\n");
    server.signal(Signal::SIGTERM);
    assert_eq!(poll.answer().text(), "the worker stops\n");
    // The task runs on for 500 ms, and the worker waits for it.
    server.wait_for("its end", |record| record.message() == "task ended");
    server.expect_clean_exit();
}

/// Upgrades a connection to a WebSocket.
fn upgrade(server: &Server) -> Client {
    let mut client = server.connect();
    client.send(
        "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    );
    assert_eq!(client.try_head().unwrap().status, 101);
    client
}

#[test]
fn websocket_is_told_of_the_stop() {
    let Some(program) = example("tokio_chat") else { return };
    let mut server = launch_program(&program, &[]).start();
    let mut client = upgrade(&server);
    // "hi", masked with zeros, comes back to all clients.
    client.send([0x81, 0x82, 0, 0, 0, 0, b'h', b'i']);
    let mut echo = [0; 4];
    client.read_exactly(&mut echo);
    assert_eq!(&echo, b"\x81\x02hi");
    server.signal(Signal::SIGTERM);
    let rest = client.rest();
    assert!(rest.starts_with(&[0x88, 9, 0x03, 0xf4]), "a close frame with code 1012: {rest:?}");
    server.expect_clean_exit();
}

#[test]
fn upgraded_connection_counts_until_graceful_timeout() {
    let Some(server) = start(&["--graceful-timeout", "1s"]) else { return };
    let mut client = server.connect();
    client.send("GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n");
    assert_eq!(client.try_head().unwrap().status, 101);
    let begun = Instant::now();
    server.signal(Signal::SIGTERM);
    client.rest(); // the app never closes it
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
    server.wait_exit();
}

#[test]
fn bare_streams_are_served_over_tcp_and_unix() {
    let Some(launch) = launch(&["-b", "unix:socket", "echo"]) else { return };
    let server = launch.start();
    for mut client in [server.connect(), Client::unix(&server.path("socket")).unwrap()] {
        client.send("first\n");
        let mut echo = [0; 6];
        client.read_exactly(&mut echo);
        assert_eq!(&echo, b"first\n");
        client.finish_sending();
        client.expect_end();
    }
    server.finish();
}

#[test]
fn proxy_example_forwards_both_bodies() {
    let Some(program) = example("tokio_proxy") else { return };
    let Some(upstream) = start(&[]) else { return };
    let to = format!("to={}", upstream.address());
    let proxy = launch_program(&program, &["proxy", &to]).start();
    assert_eq!(proxy.get("/bytes?n=1000000").text().len(), 1_000_000);
    let mut client = proxy.connect();
    client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(client.answer().text(), "hello");
    upstream.finish();
    assert_eq!(proxy.get("/").head.status, 502);
    proxy.finish();
}

#[test]
fn slow_or_large_request_body_gets_408_or_413() {
    let flags = ["--body-timeout", "500ms", "--limit-request-body", "1K"];
    let Some(server) = start(&flags) else { return };
    let head = "POST /echo HTTP/1.1\r\nHost: x\r\n";
    for (rest, status) in [
        ("Content-Length: 2000\r\n\r\n".to_owned(), 413),
        (format!("Transfer-Encoding: chunked\r\n\r\n7d0\r\n{:2000}\r\n0\r\n\r\n", ""), 413),
        ("Content-Length: 100\r\n\r\nbegin".to_owned(), 408),
    ] {
        let mut client = server.connect();
        client.send(format!("{head}{rest}"));
        assert_eq!(client.answer().head.status, status, "{rest}");
    }
    server.finish();
}

/// A body that takes several reads, and line ends after a request, are no begin of the next one.
#[test]
fn idle_client_is_closed_in_silence_whatever_it_has_sent() {
    let Some(server) = start(&["--keep-alive", "2s", "--header-timeout", "1s"]) else { return };
    let head = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n";
    let large = head.to_owned() + &"x".repeat(300_000);
    for request in [large, "GET /text?n=300000 HTTP/1.1\r\nHost: x\r\n\r\n\r\n".to_owned()] {
        let mut client = server.connect();
        client.send(request);
        assert_eq!(client.answer().body.len(), 300_000);
        client.expect_end();
    }
    server.finish();
}
