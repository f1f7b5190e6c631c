//! Requests that two servers could parse differently are rejected once, and the connection closes.

use std::thread;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, prop_oneof};
use proptest::test_runner::{Config, TestRunner};

use crate::client::Client;
use crate::support::Server;

on_concurrent_classes!(answers_do_not_depend_on_segmentation);

on_every_class!(
    ambiguous_request_is_rejected,
    oversized_request_is_rejected,
    request_with_optional_syntax_is_accepted,
    rejections_delay_no_client,
    rejected_upload_gets_its_response,
);

on_every_class_slowly!(rejected_upload_ends_at_its_limits,);

/// The answers allowed for a malformed request.
const BAD: &[u16] = &[400];
/// The answers to an unknown transfer coding before a last one that is `chunked`.
const UNKNOWN: &[u16] = &[501];
/// The answers to an unknown version.
const VERSION: &[u16] = &[505];

/// Sends a request with another behind it that must never be handled, and reads the only answer.
#[track_caller]
fn expect_rejection(server: &Server, request: &str, expected: &[u16]) -> Client {
    let shown = request.escape_debug();
    let shown: String = shown.take(200).collect();
    let mut client = server.connect();
    // The server may close before it has read everything.
    let _ = client.try_send(request);
    let _ = client.try_send("GET /pid HTTP/1.1\r\nHost: smuggled\r\n\r\n");
    let answer = client.try_answer().unwrap_or_else(|error| panic!("{shown}: {error}"));
    assert!(expected.contains(&answer.status()), "{} for {shown}", answer.status());
    assert!(answer.head.closes(), "{shown}");
    client
}

/// Does as `expect_rejection`, and then closes the client's side.
#[track_caller]
fn expect_rejection_and_close(server: &Server, request: &str, expected: &[u16]) {
    let mut client = expect_rejection(server, request, expected);
    client.finish_sending();
    client.expect_end();
}

fn ambiguous_request_is_rejected(class: &str) {
    let server = Server::start(&["-k", class]);
    for (fields, body, expected) in [
        // Two lengths.
        ("Content-Length: 5\r\nContent-Length: 6\r\n", "hello", BAD),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", "hello", BAD),
        ("Content-Length: 5, 5\r\n", "hello", BAD),
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n", BAD),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n", BAD),
        ("content-length: 5\r\ntransfer-encoding: identity\r\n", "hello", BAD),
        // Lengths that are no numbers.
        ("Content-Length: +5\r\n", "hello", BAD),
        ("Content-Length: -5\r\n", "hello", BAD),
        ("Content-Length: 0x5\r\n", "hello", BAD),
        ("Content-Length: 5 5\r\n", "hello", BAD),
        ("Content-Length: five\r\n", "hello", BAD),
        ("Content-Length: \r\n", "", BAD),
        ("Content-Length: 99999999999999999999999\r\n", "hello", &[400, 413]),
        // Transfer codings.
        ("Transfer-Encoding: gzip\r\n", "", BAD),
        ("Transfer-Encoding: identity\r\n", "", BAD),
        ("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n", BAD),
        ("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n", UNKNOWN),
        ("Transfer-Encoding: chunked, gzip\r\n", "0\r\n\r\n", BAD),
        ("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n", BAD),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n", BAD),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "0\r\n\r\n", BAD),
        ("Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n", BAD),
        ("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n", BAD),
        ("Transfer-Encoding: \r\n", "0\r\n\r\n", BAD),
        // Malformed fields.
        ("Transfer-Encoding : chunked\r\n", "0\r\n\r\n", BAD),
        ("Content-Length : 5\r\n", "hello", BAD),
        ("X: a\r\n b\r\n", "", BAD),
        ("X: a\r\n\tb\r\n", "", BAD),
        ("X: a\nTransfer-Encoding: chunked\r\n", "", BAD),
        ("X: a\rTransfer-Encoding: chunked\r\n", "", BAD),
        ("X: a\0b\r\n", "", BAD),
        ("X: a\x7fb\r\n", "", BAD),
        ("X\0: a\r\n", "", BAD),
        ("X Y: a\r\n", "", BAD),
        ("X(Y): a\r\n", "", BAD),
        ("No colon\r\n", "", BAD),
        (": no name\r\n", "", BAD),
        ("Host: other\r\n", "", BAD),
        // Malformed chunks.
        ("Transfer-Encoding: chunked\r\n", "zz\r\nhello\r\n0\r\n\r\n", BAD),
        ("Transfer-Encoding: chunked\r\n", "\r\n\r\n0\r\n\r\n", BAD),
        ("Transfer-Encoding: chunked\r\n", "-5\r\nhello\r\n0\r\n\r\n", BAD),
        ("Transfer-Encoding: chunked\r\n", "+5\r\nhello\r\n0\r\n\r\n", BAD),
        ("Transfer-Encoding: chunked\r\n", "0x5\r\nhello\r\n0\r\n\r\n", BAD),
        ("Transfer-Encoding: chunked\r\n", " 5\r\nhello\r\n0\r\n\r\n", BAD),
        ("Transfer-Encoding: chunked\r\n", "5_\r\nhello\r\n0\r\n\r\n", BAD),
        ("Transfer-Encoding: chunked\r\n", "5\nhello\r\n0\r\n\r\n", BAD),
        ("Transfer-Encoding: chunked\r\n", "5\rhello\r\n0\r\n\r\n", BAD),
        ("Transfer-Encoding: chunked\r\n", "5;a\nb\r\nhello\r\n0\r\n\r\n", BAD),
        ("Transfer-Encoding: chunked\r\n", "5;\0\r\nhello\r\n0\r\n\r\n", BAD),
        ("Transfer-Encoding: chunked\r\n", "5;a=\"\r\nhello\r\n0\r\n\r\n", BAD),
        ("Transfer-Encoding: chunked\r\n", "5\r\nhelloo\r\n0\r\n\r\n", BAD),
        ("Transfer-Encoding: chunked\r\n", "5\r\nhello\n0\r\n\r\n", BAD),
        ("Transfer-Encoding: chunked\r\n", "5\r\nhello0\r\n\r\n", BAD),
        ("Transfer-Encoding: chunked\r\n", "10000000000000005\r\nhello\r\n0\r\n\r\n", &[400, 413]),
        ("Transfer-Encoding: chunked\r\n", "0\r\nBad trailer\r\n\r\n", BAD),
    ] {
        let request = format!("POST /echo HTTP/1.1\r\nHost: test\r\n{fields}\r\n{body}");
        expect_rejection_and_close(&server, &request, expected);
    }
    for (request, expected) in [
        ("POST /echo HTTP/1.0\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", BAD),
        ("GET / HTTP/1.1\r\nHost: [foo]\r\n\r\n", BAD),
        ("GET / HTTP/1.1\r\nHost: :80\r\n\r\n", BAD),
        ("GET http://:80/ HTTP/1.1\r\nHost: test\r\n\r\n", BAD),
        ("GET http://[foo]/ HTTP/1.1\r\nHost: test\r\n\r\n", BAD),
        ("GET /<a> HTTP/1.1\r\nHost: test\r\n\r\n", BAD),
        ("GET /?\"a\" HTTP/1.1\r\nHost: test\r\n\r\n", BAD),
        ("GET /?{|}^`\\ HTTP/1.1\r\nHost: test\r\n\r\n", BAD),
        ("GET / HTTP/1.1\r\n\r\n", BAD),
        ("GET / HTTP/1.1\r\n Host: test\r\n\r\n", BAD),
        ("GET / HTTP/1.1\nHost: test\n\n", BAD),
        ("GET / HTTP/1.1\r\nHost: test\n\r\n", BAD),
        ("GET / HTTP/1.1\r\nHost: test\r\n\n", BAD),
        ("GET / HTTP/1.1\rHost: test\r\r", BAD),
        ("GET  / HTTP/1.1\r\nHost: test\r\n\r\n", BAD),
        ("GET /  HTTP/1.1\r\nHost: test\r\n\r\n", BAD),
        ("GET / HTTP/1.1 \r\nHost: test\r\n\r\n", BAD),
        (" GET / HTTP/1.1\r\nHost: test\r\n\r\n", BAD),
        ("GET\t/\tHTTP/1.1\r\nHost: test\r\n\r\n", BAD),
        ("GET /a b HTTP/1.1\r\nHost: test\r\n\r\n", BAD),
        ("GET /\x01 HTTP/1.1\r\nHost: test\r\n\r\n", BAD),
        ("G@T / HTTP/1.1\r\nHost: test\r\n\r\n", BAD),
        ("GET /\r\n\r\n", BAD),
        ("GET\r\n\r\n", BAD),
        ("GET / HTTP/2.0\r\nHost: test\r\n\r\n", VERSION),
        ("GET / HTTP/11\r\nHost: test\r\n\r\n", &[400, 505]),
        ("GET / http/1.1\r\nHost: test\r\n\r\n", &[400, 505]),
        ("GET / HTTP/1.1x\r\nHost: test\r\n\r\n", &[400, 505]),
        ("GET / ICAP/1.0\r\nHost: test\r\n\r\n", &[400, 505]),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", VERSION),
    ] {
        expect_rejection_and_close(&server, request, expected);
    }
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    assert!(server.records_of("worker exited").is_empty());
    server.finish();
}

fn request_with_optional_syntax_is_accepted(class: &str) {
    let server = Server::start(&["-k", class]);
    let chunks = "5;name=value;\tquoted=\"a; \\\"b\"\r\nhello\r\n0;last\r\n\r\n";
    for (version, host, fields, body) in [
        ("1.1", "test", "Transfer-Encoding: chunked\r\n", chunks),
        ("1.1", "test", "Transfer-Encoding: ,chunked, ,\r\n", chunks),
        ("1.1", "test", "Transfer-Encoding:\r\nTransfer-Encoding: chunked\r\n", chunks),
        ("1.1", "test", "Content-Length: 5\r\nExpect: ,100-continue,\r\n", "hello"),
        ("1.1", "test", "Content-Length: 5\r\nExpect:\r\n", "hello"),
        ("1.1", "test", "Content-Length: 5\r\nConnection: ,, ,\r\n", "hello"),
        ("1.1", "[::1]:80", "Content-Length: 5\r\n", "hello"),
        ("1.2", "test", "Content-Length: 5\r\n", "hello"),
        ("1.9", "test", "Transfer-Encoding: chunked\r\n", chunks),
    ] {
        let mut client = server.connect();
        let head = format!("POST /echo?[] HTTP/{version}\r\nHost: {host}\r\n{fields}\r\n");
        client.send(head + body);
        let answer = client.answer();
        assert_eq!((answer.status(), answer.text().as_str()), (200, "hello"), "{fields}");
    }
    server.finish();
}

fn rejections_delay_no_client(class: &str) {
    let server = Server::start(&["-k", class]);
    let begun = Instant::now();
    for _ in 0..10 {
        // Waits for the server to close first, as most clients do.
        expect_rejection(&server, "GET / HTTP/1.1\r\n\r\n", BAD).expect_end();
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    server.finish();
}

fn oversized_request_is_rejected(class: &str) {
    let server = Server::start(&["-k", class]);
    let long = "x".repeat(100_000);
    expect_rejection_and_close(
        &server,
        &format!("GET /{long} HTTP/1.1\r\nHost: test\r\n\r\n"),
        &[414, 431],
    );
    expect_rejection_and_close(
        &server,
        &format!("GET / HTTP/1.1\r\nHost: test\r\nX: {long}\r\n\r\n"),
        &[431],
    );
    let many = "X: y\r\n".repeat(2000);
    expect_rejection_and_close(
        &server,
        &format!("GET / HTTP/1.1\r\nHost: test\r\n{many}\r\n"),
        &[431],
    );
    let post = "POST /echo HTTP/1.1\r\nHost: test\r\n";
    expect_rejection_and_close(
        &server,
        &format!("{post}Content-Length: 1073741824\r\n\r\n"),
        &[413],
    );
    expect_rejection_and_close(
        &server,
        &format!("{post}Transfer-Encoding: chunked\r\n\r\n40000000\r\n{long}"),
        &[413],
    );
    // A client that sends `Expect: 100-continue` gets the rejection before it sends the body.
    let expect = "Expect: 100-continue\r\n";
    expect_rejection_and_close(
        &server,
        &format!("{post}{expect}Content-Length: 1073741824\r\n\r\n"),
        &[413],
    );
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    server.finish();
}

/// The heads of requests that are rejected before their bodies, which follow.
const REJECTED_UPLOADS: [(&str, &[u16]); 4] = [
    ("Content-Length: 99999999999\r\n", &[413]),
    ("Transfer-Encoding: chunked\r\n\r\n7fffffff\r\n", &[413]),
    ("Content-Length: 5000000\r\nExpect: other\r\n", &[417]),
    ("Content-Length: 5000000\r\nTransfer-Encoding: chunked\r\n", BAD),
];

fn rejected_upload_gets_its_response(class: &str) {
    let server = Server::start(&["-k", class, "--limit-request-fields", "20"]);
    let many = "X: y\r\n".repeat(20) + "Content-Length: 5000000\r\n";
    for (fields, expected) in REJECTED_UPLOADS.into_iter().chain([(many.as_str(), &[431_u16][..])])
    {
        let mut client = server.connect();
        client.send(format!("POST /echo HTTP/1.1\r\nHost: test\r\n{fields}\r\n"));
        // It reads nothing before it has sent everything, as many clients do.
        let piece = vec![b'x'; 1 << 20];
        for sent in 0..32 {
            client.try_send(&piece).unwrap_or_else(|error| panic!("{fields}, {sent} MiB: {error}"));
        }
        let answer = client.answer();
        assert!(expected.contains(&answer.status()), "{} for {fields}", answer.status());
        client.expect_end();
    }
    server.finish();
}

fn rejected_upload_ends_at_its_limits(class: &str) {
    let flags = ["-k", class, "--lingering-timeout", "3s", "--lingering-bytes", "20M"];
    let server = Server::start(&flags);
    let upload = |piece: usize, pause: u64| {
        let mut client = server.connect();
        client.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 99999999999\r\n\r\n");
        let begun = Instant::now();
        let mut sent = 0;
        while client.try_send(vec![b'x'; piece]).is_ok() {
            assert!(begun.elapsed() < Duration::from_secs(10), "after {sent} bytes");
            sent += piece;
            thread::sleep(Duration::from_millis(pause));
        }
        (sent, begun.elapsed())
    };
    let (sent, _) = upload(1 << 20, 0);
    assert!(sent >= 20 << 20, "{sent} bytes");
    let (_, elapsed) = upload(32 << 10, 50);
    assert!(elapsed >= Duration::from_millis(2900), "by the time: {elapsed:?}");
    let (sent, elapsed) = upload(1, 50);
    assert!(elapsed >= Duration::from_millis(1900), "by the rate: {elapsed:?}");
    assert!(sent < 55, "by the rate: {sent} bytes");
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    server.finish();
}

/// Generates a request with the body of its answer.
fn any_request() -> impl Strategy<Value = (String, String)> {
    prop_oneof![
        Just(("GET / HTTP/1.1\r\nHost: test\r\n\r\n".into(), "Hello, world!\n".into())),
        "[a-z]{0,40}".prop_map(|body| {
            let length = body.len();
            let head = format!("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: {length}");
            (format!("{head}\r\n\r\n{body}"), body)
        }),
        vec("[a-z]{1,20}", 0..4).prop_map(|pieces| {
            let mut text = "POST /echo HTTP/1.1\r\nHost: test\r\n".to_owned();
            text += "Transfer-Encoding: chunked\r\n\r\n";
            for piece in &pieces {
                text += &format!("{:x}\r\n{piece}\r\n", piece.len());
            }
            (text + "0\r\n\r\n", pieces.concat())
        }),
    ]
}

fn answers_do_not_depend_on_segmentation(class: &str) {
    let server = Server::start(&["-k", class]);
    let config = Config { cases: 40, failure_persistence: None, ..Config::default() };
    let requests = (vec(any_request(), 1..5), vec(1_usize..80, 0..8));
    let outcome = TestRunner::new(config).run(&requests, |(requests, cuts)| {
        let text: String = requests.iter().map(|(request, _)| request.as_str()).collect();
        let mut client = server.connect();
        let mut rest = text.as_bytes();
        for cut in cuts {
            let (piece, more) = rest.split_at(cut.min(rest.len()));
            client.send(piece);
            server.wait_taken(&client);
            rest = more;
        }
        client.send(rest);
        for (_, body) in requests {
            assert_eq!(client.answer().text(), body);
        }
        Ok(())
    });
    outcome.unwrap();
    server.finish();
}
