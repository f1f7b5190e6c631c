//! The class `tokio`: what only it has. The tables of behaviours have the rest.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::client::Client;
use crate::example::example;
use crate::launch::Launch;
use crate::support::{Exit, Server};

/// Starts the demo of the class with these flags, or the app `echo` of bare streams. Returns `None` if
/// it was not built.
fn start(flags: &[&str]) -> Option<Server> {
    launch(flags).map(Launch::start)
}

fn launch(flags: &[&str]) -> Option<Launch> {
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
fn near_miss_is_logged_with_its_label() {
    let Some(server) = start(&["-t", "2s"]) else { return };
    server.get("/block?ms=1300").text();
    let message = "thread blocked for more than half of timeout";
    let record = server.wait_for("the near miss", |record| record.message() == message);
    assert_eq!(record.text("label"), Some("GET /block"));
    server.finish();
}

#[test]
fn request_timeout_answers_504_and_cancels() {
    let Some(server) = start(&["--request-timeout", "300ms"]) else { return };
    let begun = Instant::now();
    assert_eq!(server.get("/await").head.status, 504);
    assert!(begun.elapsed() >= Duration::from_millis(300));
    let late = server.wait_for("it", |record| record.message() == "request timed out");
    assert_eq!(late.text("label"), Some("GET /await"));
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

/// An HTTP/2 client that speaks in frames.
struct Http2(Client);

#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

impl Http2 {
    fn connect(server: &Server) -> Self {
        let mut client = server.connect();
        client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let mut client = Self(client);
        client.send(SETTINGS, 0, 0, &[]).unwrap();
        client
    }

    fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        self.0.try_send(frame(kind, flags, stream, payload))
    }

    /// Reads the next frame, and acknowledges what must be.
    fn next(&mut self) -> io::Result<Frame> {
        let mut head = [0; 9];
        self.0.try_read_exactly(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.0.try_read_exactly(&mut payload)?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let frame = Frame { kind: head[3], flags: head[4], stream, payload };
        if [SETTINGS, PING].contains(&frame.kind) && frame.flags & ACK == 0 {
            let echo = if frame.kind == PING { &frame.payload[..] } else { &[] };
            let _ = self.send(frame.kind, ACK, 0, echo);
        }
        Ok(frame)
    }

    /// Reads frames until the server ends the connection. Returns the code of its GOAWAY.
    fn goaway_code(&mut self) -> Option<u32> {
        let mut code = None;
        while let Ok(frame) = self.next() {
            if frame.kind == GOAWAY {
                code = frame.payload[4..8].try_into().ok().map(u32::from_be_bytes);
            }
        }
        code
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Encodes the head of a GET: indexed method and scheme, and a literal path and authority.
fn get_head(path: &str) -> Vec<u8> {
    let mut head = vec![0x82, 0x86, 0x04, path.len() as u8];
    head.extend(path.as_bytes());
    head.extend([0x01, 1, b'x']);
    head
}

#[test]
fn http2_drain_answers_and_says_goaway() {
    let Some(mut server) = start(&[]) else { return };
    let mut client = Http2::connect(&server);
    for (stream, path) in [(1, "/pid"), (3, "/sleep?ms=700")] {
        client.send(HEADERS, END_STREAM | END_HEADERS, stream, &get_head(path)).unwrap();
    }
    while client.next().unwrap().kind != DATA {} // the first answer
    server.signal(Signal::SIGTERM);
    let (mut body, mut goaways) = (Vec::new(), 0);
    while let Ok(frame) = client.next() {
        match frame.kind {
            DATA if frame.stream == 3 => body.extend(frame.payload),
            GOAWAY => {
                goaways += 1;
                assert_eq!(frame.payload[4..8], [0; 4], "no error: {frame:?}");
            }
            _ => (),
        }
    }
    assert_eq!(String::from_utf8_lossy(&body), "slept 700 ms\n");
    assert!(goaways > 0);
    server.expect_clean_exit();
}

#[test]
fn http2_request_body_is_limited() {
    let Some(server) = start(&["--limit-request-body", "1K"]) else { return };
    let mut client = Http2::connect(&server);
    let mut head = get_head("/echo");
    head[0] = 0x83; // POST
    client.send(HEADERS, END_HEADERS, 1, &head).unwrap();
    client.send(DATA, END_STREAM, 1, &[b'x'; 2000]).unwrap();
    loop {
        let frame = client.next().unwrap();
        if frame.kind == HEADERS {
            // `:status` as a literal of the static table's name 8, three digits.
            assert!(
                frame.payload.windows(3).any(|digits| digits == b"413") || frame.payload[0] == 0x48
            );
            break;
        }
    }
    server.finish();
}

/// Floods a worker over one connection until the server ends it, or all is sent. The worker goes on.
fn expect_flood_costs_its_connection(flood: impl Fn(&mut Http2) -> io::Result<()>) -> Option<u32> {
    let server = start(&["--threads", "1"])?;
    let worker = server.wait_workers(1)[0];
    let mut client = Http2::connect(&server);
    let _ = flood(&mut client);
    let code = client.goaway_code();
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    assert_eq!(server.answering_pid(), worker.pid);
    server.finish();
    code
}

#[test]
fn http2_rapid_reset_costs_its_connection() {
    let Some(_) = example("tokio_demo") else { return };
    let code = expect_flood_costs_its_connection(|client| {
        for stream in (1..40_000).step_by(2) {
            client.send(HEADERS, END_STREAM | END_HEADERS, stream, &get_head("/await"))?;
            client.send(RST_STREAM, 0, stream, &[0, 0, 0, 8])?;
        }
        Ok(())
    });
    assert_eq!(code, Some(11), "ENHANCE_YOUR_CALM");
}

#[test]
fn http2_continuation_flood_costs_its_connection() {
    let Some(_) = example("tokio_demo") else { return };
    let code = expect_flood_costs_its_connection(|client| {
        client.send(HEADERS, END_STREAM, 1, &get_head("/"))?;
        // A field without indexing, whose name is one byte and whose value 100 bytes long.
        let mut field = vec![0x00, 1, b'a', 100];
        field.extend([b'b'; 100]);
        let fields = field.repeat(100);
        for _ in 0..2000 {
            client.send(CONTINUATION, 0, 1, &fields)?;
        }
        Ok(())
    });
    assert!(code.is_some_and(|code| code != 0), "{code:?}");
}

#[test]
fn http2_streams_beyond_the_limit_are_refused() {
    let Some(server) = start(&[]) else { return };
    let mut client = Http2::connect(&server);
    for stream in (1..600).step_by(2) {
        client.send(HEADERS, END_STREAM | END_HEADERS, stream, &get_head("/await")).unwrap();
    }
    let refused = loop {
        let frame = client.next().unwrap();
        if frame.kind == RST_STREAM {
            break frame;
        }
    };
    assert_eq!(refused.payload, [0, 0, 0, 7], "REFUSED_STREAM: {refused:?}");
    assert!(refused.stream > 400, "{refused:?}");
    drop(client);
    server.finish();
}
