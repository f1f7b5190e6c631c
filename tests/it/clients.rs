//! Slow, malformed, silent and disconnecting clients affect no other client.

use std::io::Read;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;

use crate::client::Client;
use crate::connection::{Remote, remote};
use crate::launch::Launch;
use crate::proc::status_number;
use crate::support::{DEADLINE, Exit, Server};

on_every_class_and_tokio!(
    head_byte_by_byte_is_answered,
    silent_client_is_disconnected,
    client_resets_are_harmless,
    garbage_closes_only_its_connection,
    slow_reader_costs_no_memory,
    slow_reader_is_no_hang,
    client_disconnect_mid_request_is_harmless,
    ; except tokio:
    half_closed_client_is_answered,
    trickling_reader_holds_no_worker,
    ; tokio alone:
    slow_sender_is_no_hang,
    client_that_pauses_is_served_as_before,
    many_clients_that_pause_are_served_at_once,
    clients_that_pause_end_in_their_order_and_make_room,
);

on_every_class_slowly!(slow_sender_is_no_hang,);

on_concurrent_classes!(
    thousand_idle_connections_block_no_client,
    slow_reader_blocks_no_client,
    half_heads_block_no_client,
    client_that_pauses_is_served_as_before,
    many_clients_that_pause_are_served_at_once,
    clients_that_pause_end_in_their_order_and_make_room,
);

/// How long a client pauses: until then, a class may have given up what it keeps for an active client.
const PAUSE: Duration = Duration::from_millis(500);

/// Asserts that other clients are served and that no worker has exited.
#[track_caller]
pub fn expect_no_harm(server: Server) {
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    for disturbance in ["worker hung", "worker exited"] {
        let records = server.records_of(disturbance);
        assert!(records.is_empty(), "{records:#?}");
    }
    server.finish();
}

fn head_byte_by_byte_is_answered(class: &str) {
    let server = Server::start(&["-k", class]);
    let mut client = server.connect();
    for byte in b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n" {
        client.send([*byte]);
        server.wait_taken(&client);
    }
    assert_eq!(client.answer().text(), "Hello, world!\n");
    client.expect_end();
    expect_no_harm(server);
}

fn half_closed_client_is_answered(class: &str) {
    let server = Server::start(&["-k", class]);
    for path in ["/", "/sleep?ms=300"] {
        assert_eq!(server.connect().get_and_finish_sending(path).status(), 200);
    }
    // An incomplete request may be answered with an error.
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\nHos");
    client.finish_sending();
    let rest = client.rest();
    assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 400 "));
    expect_no_harm(server);
}

fn silent_client_is_disconnected(class: &str) {
    let server = Server::start(&["-k", class]);
    for _ in 0..100 {
        server.connect();
    }
    expect_no_harm(server);
}

fn client_resets_are_harmless(class: &str) {
    let server = Server::start(&["-k", class, "-w", "2"]);
    for round in 0..300 {
        let mut client = server.connect();
        match round % 4 {
            0 => (),
            1 => client.send("GET / HT"),
            2 => client.ask("/"),
            _ => client.ask("/bytes?n=1000000"),
        }
        client.reset();
    }
    expect_no_harm(server);
}

fn garbage_closes_only_its_connection(class: &str) {
    let server = Server::start(&["-k", class]);
    let tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00\x00\r\n\r\n".as_slice();
    let zeros = [0; 4096].as_slice();
    let noise: Vec<u8> =
        (0..100_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let ssh = b"SSH-2.0-OpenSSH_9.2\r\n".as_slice();
    for garbage in [tls, zeros, &noise, ssh, b"\r\n\r\n\r\nx\r\n\r\n", b"\n\n\n\n \n"] {
        let mut client = server.connect();
        // The server may close before it has read everything.
        let _ = client.try_send(garbage);
        client.finish_sending();
        let rest = client.rest();
        assert!(
            rest.is_empty() || rest.starts_with(b"HTTP/1.1 4") || rest.starts_with(b"HTTP/1.1 5")
        );
    }
    expect_no_harm(server);
}

/// Returns a client that has requested 64 MiB, has read a part, and now stops reading.
pub fn slow_reader(server: &Server) -> Client {
    let mut client = server.connect();
    client.ask("/bytes?n=67108864");
    client
}

/// Resumes reading, to the end.
#[track_caller]
fn read_on(mut client: Client) {
    let head = client.try_head().unwrap();
    assert_eq!(head.status, 200);
    let mut length = 0;
    client.try_body(&head, |piece| length += piece.len()).unwrap();
    assert_eq!(length, 64 << 20);
}

fn slow_reader_costs_no_memory(class: &str) {
    let server = Server::start(&["-k", class]);
    server.get("/bytes?n=100000");
    let worker = server.workers()[0];
    let before = status_number(worker.pid, "VmHWM");
    let mut client = slow_reader(&server);
    let head = client.try_head().unwrap();
    let (mut length, begun) = (0, Instant::now());
    let piece = |piece: &[u8]| {
        length += piece.len();
        if begun.elapsed() < Duration::from_millis(1500) {
            thread::sleep(Duration::from_millis(10));
        }
    };
    client.try_body(&head, piece).unwrap();
    assert_eq!(length, 64 << 20);
    let growth = status_number(worker.pid, "VmHWM") - before;
    assert!(growth < 16 << 10, "the worker has grown by {growth} KiB");
    drop(client);
    expect_no_harm(server);
}

fn slow_reader_is_no_hang(class: &str) {
    let server = Server::start(&["-k", class, "-t", "1s"]);
    let client = slow_reader(&server);
    server.sees_record(Duration::from_millis(2500), |record| record.message() == "worker hung");
    read_on(client);
    expect_no_harm(server);
}

/// One byte at a time is no progress.
fn trickling_reader_holds_no_worker(class: &str) {
    let server = Server::start(&["-k", class, "--write-timeout", "500ms"]);
    let mut reader = slow_reader(&server);
    let port = reader.port();
    let begun = Instant::now();
    while remote(server.address().port(), port) != Remote::Closed {
        assert!(begun.elapsed() < DEADLINE, "a response may take for ever");
        let _ = reader.stream.read(&mut [0]);
        thread::sleep(Duration::from_millis(50));
    }
    drop(reader);
    expect_no_harm(server);
}

fn slow_sender_is_no_hang(class: &str) {
    let server = Server::start(&["-k", class, "-t", "1s"]);
    let mut client = server.connect();
    client.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhello");
    server.sees_record(Duration::from_millis(2500), |record| record.message() == "worker hung");
    client.send("hello");
    assert_eq!(client.answer().text(), "hellohello");
    drop(client);
    expect_no_harm(server);
}

fn client_disconnect_mid_request_is_harmless(class: &str) {
    let server = Server::start(&["-k", class]);
    let mut reader = slow_reader(&server);
    reader.try_head().unwrap();
    drop(reader);
    let mut sender = server.connect();
    sender.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 1000\r\n\r\nhello");
    server.wait_taken(&sender);
    drop(sender);
    let mut sender = server.connect();
    sender.send("POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe");
    server.wait_taken(&sender);
    sender.reset();
    expect_no_harm(server);
}

/// Opens `count` connections that all send `said`.
fn crowd(server: &Server, count: usize, said: &str) -> Vec<Client> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if soft < 4096 {
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(4096), hard).unwrap();
    }
    let mut clients: Vec<_> = (0..count).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send(said);
    }
    clients
}

fn thousand_idle_connections_block_no_client(class: &str) {
    let flags = ["-k", class, "--header-timeout", "120s", "--keep-alive", "120s"];
    let launch = Launch::new(&flags);
    // The server inherits the limit, so it must be raised first.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if hard < 2500 {
        eprintln!("skipped: this machine allows {hard} descriptors only");
        return;
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let server = launch.start();
    let mut clients = crowd(&server, 1000, "");
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    // Each connection is served, and stays open.
    for client in &mut clients {
        assert_eq!(client.get("/").text(), "Hello, world!\n");
    }
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    for client in clients.iter_mut().rev() {
        assert_eq!(client.get("/").text(), "Hello, world!\n");
    }
    drop(clients);
    expect_no_harm(server);
}

fn half_heads_block_no_client(class: &str) {
    let server = Server::start(&["-k", class, "--header-timeout", "60s"]);
    let clients = crowd(&server, 100, "GET / HTTP/1.1\r\nHost: ");
    server.serve_for(Duration::from_millis(100));
    drop(clients);
    expect_no_harm(server);
}

fn slow_reader_blocks_no_client(class: &str) {
    let server = Server::start(&["-k", class, "--threads", "2"]);
    let readers: Vec<_> = (0..4).map(|_| slow_reader(&server)).collect();
    server.serve_for(Duration::from_millis(300));
    for reader in readers {
        read_on(reader);
    }
    expect_no_harm(server);
}

fn client_that_pauses_is_served_as_before(class: &str) {
    let mut server = Server::start(&["-k", class, "--keep-alive", "60s"]);
    let mut client = server.connect();
    assert_eq!(client.get("/").text(), "Hello, world!\n");
    thread::sleep(PAUSE);
    assert_eq!(client.get("/").text(), "Hello, world!\n");
    // The begin of a request that came with the one before.
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\nPOST /echo HTTP/1.1\r\nHo");
    assert_eq!(client.answer().text(), "Hello, world!\n");
    thread::sleep(PAUSE);
    client.send("st: test\r\nContent-Length: 3\r\n\r\nabc");
    assert_eq!(client.answer().text(), "abc");
    thread::sleep(PAUSE);
    client.send("no request\r\n\r\n");
    assert_eq!(client.answer().head.status, 400);
    client.expect_end();
    // A stop is noticed too.
    let mut idle = server.connect();
    idle.get("/");
    thread::sleep(PAUSE);
    server.signal(Signal::SIGTERM);
    idle.expect_end();
    assert_eq!(server.wait_exit(), Exit::Code(0));
    server.expect_clean_exit();
}

fn many_clients_that_pause_are_served_at_once(class: &str) {
    let server = Server::start(&["-k", class, "--keep-alive", "60s"]);
    // More than any class looks at in one go.
    let mut clients: Vec<Client> = (0..300).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.get("/").text(), "Hello, world!\n");
    }
    thread::sleep(PAUSE);
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    }
    for client in &mut clients {
        assert_eq!(client.answer().text(), "Hello, world!\n");
    }
    expect_no_harm(server);
}

fn clients_that_pause_end_in_their_order_and_make_room(class: &str) {
    const KEEPALIVE: Duration = Duration::from_secs(2);
    let flags = ["-k", class, "--keep-alive", "2s", "--worker-connections", "3", "--workers", "1"];
    let server = Server::start(&flags);
    let [mut first, mut second, mut gone] = [(); 3].map(|()| server.connect());
    let ask = |client: &mut Client| {
        let asked = Instant::now();
        assert_eq!(client.get("/").text(), "Hello, world!\n");
        asked
    };
    let first_asked = ask(&mut first);
    ask(&mut gone);
    thread::sleep(PAUSE);
    let second_asked = ask(&mut second);
    // There is no room for another client before one has gone.
    drop(gone);
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    // A class reads its clock before it looks for input, perhaps long before.
    first.expect_end();
    assert!(first_asked.elapsed() >= KEEPALIVE / 2);
    second.expect_end();
    assert!(second_asked.elapsed() >= KEEPALIVE / 2);
    let [mut third, mut fourth] = [(); 2].map(|()| server.connect());
    ask(&mut third);
    ask(&mut fourth);
    expect_no_harm(server);
}
