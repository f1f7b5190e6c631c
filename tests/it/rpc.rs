//! MessagePack-RPC by the app `rpc`: callers that pipeline, send malformed data, or read nothing,
//! and workers that drain meanwhile.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use serde::Serialize;
use serde_json::{Value, json};

use crate::connection::{Remote, remote};
use crate::launch::Launch;
use crate::proc::{status_number, wait_until};
use crate::support::{DEADLINE, Server};

on_concurrent_classes!(idle_caller_keeps_its_connection);

on_every_class!(
    calls_are_answered_over_one_connection,
    pipelined_calls_are_answered_in_order,
    finished_call_is_answered_before_the_next_one,
    failed_call_is_an_error_answer,
    malformed_message_closes_only_its_connection,
    message_byte_by_byte_is_answered,
    half_closed_caller_is_answered,
    idle_caller_is_disconnected,
    caller_that_reads_nothing_costs_no_memory,
    slow_caller_holds_no_worker,
    partial_messages_share_limit_bodies,
    many_slow_calls_at_once_are_no_hang,
    hung_call_is_logged_with_method,
    drain_answers_received_calls,
    drain_answers_calls_that_came_during_another,
    drain_answers_calls_behind_long_answers,
    reload_under_load_loses_no_call,
    python_client_is_understood,
);

fn start(class: &str, flags: &[&str]) -> Server {
    Launch::new(&[&["-k", class], flags].concat()).arg("rpc").start()
}

fn request(id: u32, method: &str, params: impl Serialize) -> Vec<u8> {
    rmp_serde::to_vec(&(0, id, method, params)).unwrap()
}

/// A connection to the app.
struct Caller {
    stream: TcpStream,
    input: Vec<u8>,
}

/// What comes from the server.
#[derive(Debug, PartialEq)]
enum Reply {
    /// An answer: its number, its error, its result.
    Answer(u32, Value, Value),
    /// The end of the connection.
    End,
}

impl Caller {
    fn to(server: &Server) -> Self {
        Self::try_to(server.address()).unwrap()
    }

    fn try_to(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, DEADLINE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        Ok(Self { stream, input: Vec::new() })
    }

    /// Sends these calls again and again, until a write fails: all buffers are full. Returns the number of
    /// bytes. A write may end within a call.
    fn fill(&mut self, calls: &[u8]) -> usize {
        let mut sent = 0;
        while let Ok(size) = self.stream.write(&calls[sent % calls.len()..]) {
            sent += size;
            assert!(sent < 1 << 30, "the server reads without limit");
        }
        sent
    }

    #[track_caller]
    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// Reads the next reply. A reset counts as an end.
    #[track_caller]
    fn read_reply(&mut self) -> Reply {
        loop {
            let mut rest = self.input.as_slice();
            let decoded: Result<(u8, u32, Value, Value), _> = rmp_serde::from_read(&mut rest);
            if let Ok((kind, id, error, result)) = decoded {
                assert_eq!(kind, 1);
                let used = self.input.len() - rest.len();
                self.input.drain(..used);
                return Reply::Answer(id, error, result);
            }
            let mut piece = [0; 16 << 10];
            match self.stream.read(&mut piece) {
                Ok(0) => break,
                Ok(size) => self.input.extend_from_slice(&piece[..size]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                Err(error) => panic!("no reply: {error}"),
            }
        }
        assert!(self.input.is_empty(), "half an answer: {:?}", self.input.escape_ascii());
        Reply::End
    }

    #[track_caller]
    fn expect(&mut self, id: u32, result: impl Into<Value>) {
        assert_eq!(self.read_reply(), Reply::Answer(id, Value::Null, result.into()));
    }

    #[track_caller]
    fn expect_error(&mut self, id: u32, words: &str) {
        let reply = self.read_reply();
        let Reply::Answer(found, Value::String(error), Value::Null) = &reply else {
            panic!("no error: {reply:?}");
        };
        assert!(*found == id && error.contains(words), "{reply:?}");
    }

    #[track_caller]
    fn call(&mut self, method: &str, params: impl Serialize) -> Value {
        self.send(request(1, method, params));
        match self.read_reply() {
            Reply::Answer(1, Value::Null, result) => result,
            other => panic!("{method}: {other:?}"),
        }
    }

    /// Waits until the server has read all that was sent.
    fn wait_taken(&self, server: &Server) {
        let port = self.stream.local_addr().unwrap().port();
        let far = server.address().port();
        wait_until("a worker reads the call", || remote(far, port) != Remote::Waiting);
    }
}

/// Asserts that others are served, that no worker has exited, and that the server stops cleanly.
#[track_caller]
fn expect_no_harm(server: Server) {
    assert_eq!(Caller::to(&server).call("add", (1, 2)), 3);
    for disturbance in ["worker hung", "worker exited"] {
        let records = server.records_of(disturbance);
        assert!(records.is_empty(), "{records:#?}");
    }
    server.finish();
}

fn calls_are_answered_over_one_connection(class: &str) {
    let server = start(class, &[]);
    let worker = server.wait_workers(1)[0].pid;
    let mut caller = Caller::to(&server);
    for round in 0..10 {
        assert_eq!(caller.call("add", (round, -20)), round - 20);
        assert_eq!(caller.call("pid", [0; 0]), worker.as_raw());
        assert_eq!(caller.call("sleep", (1,)), Value::Null);
        let value = json!([{"a": [1.5, null, true]}, "text", -1]);
        assert_eq!(caller.call("echo", (&value,)), value);
    }
    drop(caller);
    expect_no_harm(server);
}

fn pipelined_calls_are_answered_in_order(class: &str) {
    let server = start(class, &[]);
    let mut caller = Caller::to(&server);
    let calls: Vec<u8> = (0..5000).flat_map(|id| request(id, "add", (id, 1))).collect();
    let mut output = caller.stream.try_clone().unwrap();
    let sending = thread::spawn(move || output.write_all(&calls).unwrap());
    (0..5000).for_each(|id| caller.expect(id, id + 1));
    sending.join().unwrap();
    drop(caller);
    expect_no_harm(server);
}

fn finished_call_is_answered_before_the_next_one(class: &str) {
    let server = start(class, &["--timeout", "3s"]);
    let worker = server.workers()[0];
    let mut caller = Caller::to(&server);
    let calls = [request(1, "sleep", (20,)), request(2, "sleep", (3_600_000,))];
    caller.send(calls.concat());
    // It would be lost with the worker.
    caller.expect(1, Value::Null);
    server.wait_replaced(worker);
}

fn failed_call_is_an_error_answer(class: &str) {
    let server = start(class, &[]);
    let mut caller = Caller::to(&server);
    let long = "x".repeat(100_000);
    caller.send(request(1, "nobody", (1,)));
    caller.send(request(2, &long, (1,)));
    caller.send(request(3, "add", (1, "2")));
    caller.send(request(4, "add", (1, 2, 3)));
    caller.send(request(5, "add", 7));
    caller.send(request(6, "add", (i64::MAX, 1)));
    caller.send(request(7, "echo", (1, 2)));
    caller.send(rmp_serde::to_vec(&(2, "nobody", (1,))).unwrap());
    caller.send(request(8, "add", (1, 2)));
    caller.expect_error(1, "unknown method \"nobody\"");
    caller.expect_error(2, "unknown method \"xxx");
    (3..6).for_each(|id| caller.expect_error(id, "bad arguments: "));
    caller.expect_error(6, "the sum is too large");
    caller.expect_error(7, "bad arguments: ");
    caller.expect(8, 3);
    drop(caller);
    expect_no_harm(server);
}

fn malformed_message_closes_only_its_connection(class: &str) {
    let server = start(class, &["--limit-request-body", "1M"]);
    let deep = [b"\x94\0\x02\xa4echo\x91".to_vec(), vec![0x91; 100_000]].concat();
    let inputs: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\nHost: test\r\n\r\n",
        b"\xc1",
        b"\x94\x01\x02\xc0\xc0",
        b"\xdd\xff\xff\xff\xff",
        b"\x94\0\x02\xa4echo\x91\xc6\x7f\xff\xff\xff",
        &deep,
    ];
    for input in inputs {
        let mut caller = Caller::to(&server);
        caller.send(request(1, "add", (1, 2)));
        // The server may close before it has read everything.
        let _ = caller.stream.write_all(input);
        caller.expect(1, 3);
        assert_eq!(
            caller.read_reply(),
            Reply::End,
            "{}",
            input[..10.min(input.len())].escape_ascii()
        );
    }
    // An incomplete message at the end is ignored.
    let mut caller = Caller::to(&server);
    caller.send(&request(1, "add", (1, 2))[..5]);
    caller.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(caller.read_reply(), Reply::End);
    expect_no_harm(server);
}

fn message_byte_by_byte_is_answered(class: &str) {
    let server = start(class, &[]);
    let mut caller = Caller::to(&server);
    for byte in request(70_000, "echo", ("ä",)) {
        caller.send([byte]);
        caller.wait_taken(&server);
    }
    caller.expect(70_000, "ä");
    drop(caller);
    expect_no_harm(server);
}

fn half_closed_caller_is_answered(class: &str) {
    let server = start(class, &[]);
    let mut caller = Caller::to(&server);
    caller.send([request(1, "sleep", (200,)), request(2, "add", (1, 2))].concat());
    caller.stream.shutdown(Shutdown::Write).unwrap();
    caller.expect(1, Value::Null);
    caller.expect(2, 3);
    assert_eq!(caller.read_reply(), Reply::End);
    expect_no_harm(server);
}

fn idle_caller_is_disconnected(class: &str) {
    let idle = ["--keep-alive", "100ms", "--rpc-idle-timeout", "100ms"];
    let begun = ["--header-timeout", "200ms", "--body-timeout", "100ms"];
    let server = start(class, &[idle, begun].concat());
    for (begun, answers) in [(0, 0), (0, 1), (4, 0), (4, 1)] {
        let call = request(1, "add", (1, 2));
        let mut caller = Caller::to(&server);
        caller.send([&call.repeat(answers)[..], &call[..begun]].concat());
        (0..answers).for_each(|_| caller.expect(1, 3));
        assert_eq!(caller.read_reply(), Reply::End);
    }
    expect_no_harm(server);
}

fn idle_caller_keeps_its_connection(class: &str) {
    let server = start(class, &["--keep-alive", "50ms"]);
    let mut caller = Caller::to(&server);
    assert_eq!(caller.call("add", (1, 2)), json!(3));
    thread::sleep(Duration::from_millis(500)); // ten times the time that is allowed over HTTP
    assert_eq!(caller.call("add", (1, 2)), json!(3));
    server.finish();
}

fn caller_that_reads_nothing_costs_no_memory(class: &str) {
    let server = start(class, &["--write-timeout", "2s"]);
    let worker = server.wait_workers(1)[0].pid;
    Caller::to(&server).call("add", (1, 2));
    let before = status_number(worker, "VmRSS");
    let mut caller = Caller::to(&server);
    caller.stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let calls = request(1, "echo", ("x".repeat(1000),)).repeat(1000);
    // Sends for as long as the server reads: until all buffers are full.
    let sent = caller.fill(&calls);
    let after = status_number(worker, "VmRSS");
    assert!(after < before + 4096, "{before} KiB have become {after} KiB for {sent} bytes");
    // Until the write timeout closes the connection, the caller can read its answers.
    assert!(matches!(caller.read_reply(), Reply::Answer(1, Value::Null, _)));
    drop(caller);
    expect_no_harm(server);
}

/// One byte at a time, of a message or of a response, is no progress.
fn slow_caller_holds_no_worker(class: &str) {
    let server = start(class, &["--body-timeout", "500ms", "--write-timeout", "500ms"]);
    let text = "x".repeat(4000);
    let mut trickling = Caller::to(&server);
    trickling.send(request(1, "add", (1, 2)));
    trickling.expect(1, 3);
    let message = request(1, "echo", (&text,));
    let begun = Instant::now();
    let mut bytes = message.iter();
    while let Some(byte) = bytes.next()
        && trickling.stream.write_all(&[*byte]).is_ok()
    {
        assert!(begun.elapsed() < DEADLINE, "a message may take for ever");
        thread::sleep(Duration::from_millis(50));
    }
    assert!(begun.elapsed() >= Duration::from_millis(490), "{:?}", begun.elapsed());
    assert_eq!(Caller::to(&server).call("add", (1, 2)), 3);

    let mut reading = Caller::to(&server);
    let calls = message.repeat(100);
    reading.stream.set_nonblocking(true).unwrap();
    reading.fill(&calls);
    reading.stream.set_nonblocking(false).unwrap();
    let port = reading.stream.local_addr().unwrap().port();
    let begun = Instant::now();
    while remote(server.address().port(), port) != Remote::Closed {
        assert!(begun.elapsed() < DEADLINE, "a response may take for ever");
        let _ = reading.stream.read(&mut [0]);
        thread::sleep(Duration::from_millis(50));
    }
    drop(reading);
    expect_no_harm(server);
}

fn partial_messages_share_limit_bodies(class: &str) {
    // Under `sync` there is one client at a time.
    let threads = if class == "sync" { "1" } else { "4" };
    let flags = ["--threads", threads, "--limit-request-body", "1M", "--limit-bodies", "1M"];
    let server = start(class, &flags);
    let message = request(1, "echo", ("x".repeat(900_000),));
    let mut first = Caller::to(&server);
    first.send(&message[..800_000]);
    first.wait_taken(&server);
    if class != "sync" {
        let mut second = Caller::to(&server);
        let _ = second.stream.write_all(&message[..800_000]);
        assert_eq!(second.read_reply(), Reply::End);
    }
    first.send(&message[800_000..]);
    assert!(matches!(first.read_reply(), Reply::Answer(1, Value::Null, _)));
    drop(first);
    expect_no_harm(server);
}

fn many_slow_calls_at_once_are_no_hang(class: &str) {
    let server = start(class, &["--timeout", "1s"]);
    let mut caller = Caller::to(&server);
    caller.send(request(1, "sleep", (50,)).repeat(60));
    (0..60).for_each(|_| caller.expect(1, Value::Null));
    drop(caller);
    expect_no_harm(server);
}

fn hung_call_is_logged_with_method(class: &str) {
    let server = start(class, &["--timeout", "500ms", "--threads", "1"]);
    let worker = server.wait_workers(1)[0];
    let mut caller = Caller::to(&server);
    caller.send(request(1, "sleep", (60_000,)));
    let hung = server.wait_for("worker hung", |record| record.message() == "worker hung");
    assert_eq!(hung.text("work"), Some("sleep"));
    server.wait_replaced(worker);
    assert_eq!(caller.read_reply(), Reply::End);
    assert_eq!(Caller::to(&server).call("add", (1, 2)), 3);
    server.finish();
}

/// The server has answered all calls of its only caller, and ends.
#[track_caller]
fn expect_drained(mut caller: Caller, mut server: Server) {
    assert_eq!(caller.read_reply(), Reply::End);
    drop(caller);
    server.expect_clean_exit();
}

fn drain_answers_received_calls(class: &str) {
    let server = start(class, &[]);
    let mut caller = Caller::to(&server);
    let calls = [request(1, "sleep", (300,)), request(2, "add", (1, 2)).repeat(200)].concat();
    caller.send(calls);
    caller.wait_taken(&server);
    server.signal(Signal::SIGTERM);
    caller.expect(1, Value::Null);
    (0..200).for_each(|_| caller.expect(2, 3));
    expect_drained(caller, server);
}

fn drain_answers_calls_that_came_during_another(class: &str) {
    let server = start(class, &[]);
    let mut caller = Caller::to(&server);
    caller.send([request(1, "sleep", (500,)), request(2, "add", (1, 2))].concat());
    caller.wait_taken(&server);
    caller.send(request(3, "add", (3, 4)));
    server.signal(Signal::SIGTERM);
    caller.expect(1, Value::Null);
    caller.expect(2, 3);
    caller.expect(3, 7);
    expect_drained(caller, server);
}

/// The answers are too long to be sent together with others.
fn drain_answers_calls_behind_long_answers(class: &str) {
    let server = start(class, &[]);
    let mut caller = Caller::to(&server);
    let long = "x".repeat(20_000);
    let both = |id| [request(id, "echo", (&long,)), request(id, "sleep", (200,))].concat();
    caller.send((1..=3).flat_map(both).collect::<Vec<_>>());
    caller.expect(1, long.as_str());
    caller.expect(1, Value::Null);
    caller.send(request(4, "add", (3, 4)));
    server.signal(Signal::SIGTERM);
    for id in 2..=3 {
        caller.expect(id, long.as_str());
        caller.expect(id, Value::Null);
    }
    caller.expect(4, 7);
    expect_drained(caller, server);
}

/// Callers repeat a call on a new connection if the old one ended without an answer.
fn reload_under_load_loses_no_call(class: &str) {
    let server = start(class, &["--workers", "2"]);
    let (address, stop, answered) = (server.address(), AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for pipeline in [1, 20] {
            let (stop, answered) = (&stop, &answered);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let Ok(caller) = Caller::try_to(address) else {
                        panic!("the connection is refused")
                    };
                    keep_calling(caller, pipeline, stop, answered);
                }
            });
        }
        let wait = |more: usize| {
            let goal = answered.load(Ordering::Relaxed) + more;
            wait_until("callers are answered", || answered.load(Ordering::Relaxed) >= goal);
        };
        wait(100);
        for _ in 0..2 {
            let mark = server.mark();
            server.signal(Signal::SIGHUP);
            server.wait_for_new_record(mark, "the reload", |record| {
                record.message() == "reload complete"
            });
            wait(100);
        }
        let worker = server.wait_workers(2)[0];
        kill(worker.pid, Signal::SIGTERM).unwrap();
        server.wait_replaced(worker);
        wait(100);
        stop.store(true, Ordering::Relaxed);
    });
    server.finish();
}

/// Calls until the connection ends. It may end between whole answers only.
fn keep_calling(mut caller: Caller, pipeline: u32, stop: &AtomicBool, answered: &AtomicUsize) {
    let calls: Vec<u8> = (0..pipeline).flat_map(|id| request(id, "add", (id, 1))).collect();
    while !stop.load(Ordering::Relaxed) {
        if caller.stream.write_all(&calls).is_err() {
            return;
        }
        for id in 0..pipeline {
            match caller.read_reply() {
                Reply::Answer(found, Value::Null, sum) => {
                    assert_eq!((found, sum), (id, Value::from(id + 1)));
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                Reply::End => return,
                other => panic!("{other:?}"),
            }
        }
    }
}

/// Python's msgpack is an independent implementation.
fn python_client_is_understood(class: &str) {
    const SCRIPT: &str = r#"
import socket, sys, msgpack
stream = socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=20)
packer, unpacker = msgpack.Packer(), msgpack.Unpacker(raw=False, strict_map_key=False)
def hear():
    for answer in unpacker:
        return answer
    while True:
        unpacker.feed(stream.recv(65536))
        for answer in unpacker:
            return answer
values = [None, True, -1, 2**63, 1.5, "text", b"bytes", [1, [2]], {"a": {1: b"x"}}, "x" * 70000,
          msgpack.ExtType(5, b"abc"), msgpack.Timestamp(1, 2)]
stream.sendall(b"".join(packer.pack([0, n, "echo", [v]]) for n, v in enumerate(values)))
for n, value in enumerate(values):
    assert hear() == [1, n, None, value], value
stream.sendall(packer.pack([2, "add", [1, 2]]) + packer.pack([0, 2**32 - 1, "add", [1, 2]]))
assert hear() == [1, 2**32 - 1, None, 3]
stream.sendall(packer.pack([0, 5, "nobody", []]))
assert hear() == [1, 5, 'unknown method "nobody"', None]
print("understood")
"#;
    let installed = Command::new("python3").args(["-c", "import msgpack"]).output();
    if !installed.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: python3 with msgpack is not installed");
        return;
    }
    let server = start(class, &[]);
    let port = server.address().port().to_string();
    let output = Command::new("python3").args(["-c", SCRIPT, &port]).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && output.stdout == b"understood\n", "{words}");
    expect_no_harm(server);
}
