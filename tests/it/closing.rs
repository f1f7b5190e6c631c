//! A closed connection cuts off no answer, also if the client has sent bytes that were not read.

use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};

use crate::client::Client;
use crate::connection::{Remote, remote};
use crate::example::example;
use crate::launch::Launch;
use crate::proc::wait_until;
use crate::support::{Exit, Server};

on_every_class_and_tokio!(
    unread_byte_cuts_off_no_long_answer,
    unread_byte_resets_no_connection,
    ; except tokio:
    lingering_clients_delay_no_other,
    ; tokio alone:
    unread_byte_resets_no_unix_connection,
    late_byte_cuts_off_no_long_answer,
    pipelined_requests_cut_off_no_answer,
    unread_byte_cuts_off_nothing_in_a_drain,
    unread_byte_cuts_off_nothing_in_a_recycling,
);

on_every_class_slowly!(
    unread_byte_cuts_off_no_answer_to_http_1_0,
    unread_byte_resets_no_unix_connection,
    late_byte_cuts_off_no_long_answer,
    pipelined_requests_cut_off_no_answer,
    unread_byte_cuts_off_nothing_in_a_recycling,
    unread_byte_cuts_off_nothing_in_a_drain,
);

/// How long the answer is: more than the socket buffers hold, so that most is on its way at the close.
const BYTES: usize = 3_000_000;

const LONG: &str = "/bytes?n=3000000";

impl Client {
    /// Sends bytes that belong to no request: the server need not read them, and may have closed.
    fn send_stray(&mut self) {
        let _ = self.try_send("x");
    }

    #[track_caller]
    fn expect_long_answer(&mut self) {
        let answer = self.try_answer().unwrap_or_else(|error| panic!("cut off: {error}"));
        assert_eq!(answer.body.len(), BYTES);
    }

    /// Waits for an end of the stream that is no reset.
    #[track_caller]
    fn expect_end_without_reset(&mut self) {
        let end = self.fill().map_err(|error| error.kind());
        assert_eq!(end, Err(ErrorKind::UnexpectedEof));
    }
}

/// Begins a long answer, and has a stray byte wait at the server meanwhile.
#[track_caller]
fn begin_long_answer(server: &Server, request: &str) -> Client {
    let mut client = server.connect();
    client.send(request);
    server.wait_taken(&client);
    client.send_stray();
    client
}

fn closing(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
}

fn unread_byte_cuts_off_no_long_answer(class: &str) {
    expect_whole_answer(Server::start(&["-k", class]));
}

#[track_caller]
fn expect_whole_answer(server: Server) {
    let mut client = begin_long_answer(&server, &closing(LONG));
    client.expect_long_answer();
    client.expect_end_without_reset();
    server.finish();
}

fn unread_byte_cuts_off_no_answer_to_http_1_0(class: &str) {
    let server = Server::start(&["-k", class]);
    let mut client = begin_long_answer(&server, &format!("GET {LONG} HTTP/1.0\r\n\r\n"));
    client.expect_long_answer();
    client.expect_end_without_reset();
    server.finish();
}

fn unread_byte_resets_no_connection(class: &str) {
    expect_end_without_reset(Server::start(&["-k", class]));
}

#[track_caller]
fn expect_end_without_reset(server: Server) {
    let mut client = server.connect();
    client.send(closing("/sleep?ms=700"));
    server.wait_taken(&client);
    client.send_stray();
    assert_eq!(client.answer().status(), 200);
    client.expect_end_without_reset();
    server.finish();
}

fn unread_byte_resets_no_unix_connection(class: &str) {
    let launch = Launch::new(&["-k", class, "-b", "unix:socket"]);
    let path = launch.path("socket");
    let server = launch.start();
    let mut client = Client::unix(Path::new(&path)).unwrap();
    client.send(closing(LONG));
    let head = client.try_head().unwrap(); // so the request has been read
    client.send_stray();
    let mut received = 0;
    client.try_body(&head, |piece| received += piece.len()).unwrap();
    assert_eq!(received, BYTES);
    client.expect_end_without_reset();
    server.finish();
}

fn late_byte_cuts_off_no_long_answer(class: &str) {
    let server = Server::start(&["-k", class]);
    let mut client = server.connect();
    // The server's socket takes all of the answer, of which the client's takes a part.
    setsockopt(&client.stream, sockopt::RcvBuf, &4096).unwrap();
    client.send(closing("/bytes?n=300000"));
    let port = client.port();
    wait_until("the server ends", || remote(server.port, port) == Remote::Closed);
    client.send_stray();
    let answer = client.try_answer().unwrap_or_else(|error| panic!("cut off: {error}"));
    assert_eq!(answer.body.len(), 300_000);
    server.finish();
}

fn pipelined_requests_cut_off_no_answer(class: &str) {
    let server = Server::start(&["-k", class]);
    let mut client = server.connect();
    client.send(closing(LONG).repeat(3000)); // more than one read takes
    client.expect_long_answer();
    client.expect_end_without_reset();
    server.finish();
}

fn unread_byte_cuts_off_nothing_in_a_drain(class: &str) {
    let mut server = Server::start(&["-k", class]);
    let mut client = begin_long_answer(&server, &closing(LONG));
    server.signal(Signal::SIGTERM);
    server.wait_for("the stop", |record| record.message() == "stopping");
    client.expect_long_answer();
    client.expect_end_without_reset();
    server.expect_clean_exit();
}

fn unread_byte_cuts_off_nothing_in_a_recycling(class: &str) {
    let server = Server::start(&["-k", class, "--max-requests", "1"]);
    let mut client = begin_long_answer(&server, &closing(LONG));
    client.expect_long_answer();
    client.expect_end_without_reset();
    server.wait_for("worker exited", |record| record.message() == "worker exited");
    server.finish();
}

fn lingering_clients_delay_no_other(class: &str) {
    let server = Server::start(&["-k", class]);
    // They keep their connections, so that each could hold a worker for seconds.
    let lingering: Vec<_> = (0..8)
        .map(|_| {
            let mut client = begin_long_answer(&server, &closing(LONG));
            client.expect_long_answer();
            client
        })
        .collect();
    let begun = Instant::now();
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    // Each client could hold the worker for 2 s.
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    drop(lingering);
    server.finish();
}

#[test]
#[ignore = "slow"]
fn unread_byte_cuts_off_nothing_of_the_example_classes() {
    let demos = [("custom_class", "batch")];
    let others = [("tokio_axum", "tokio"), ("naive_class", "plain")];
    for (name, class) in demos.into_iter().chain(others) {
        let Some(program) = example(name) else { continue };
        let launch = |flags: &[&str]| {
            Launch::by(&[program.to_str().unwrap()], &[&["-k", class], flags].concat())
        };
        if launch(&["--check-config"]).run().exit != Exit::Code(0) {
            eprintln!("skipped: {name} cannot run here");
            continue;
        }
        let start = || launch(&[]).start();
        expect_end_without_reset(start());
        if demos.contains(&(name, class)) {
            expect_whole_answer(start());
        }
    }
}
