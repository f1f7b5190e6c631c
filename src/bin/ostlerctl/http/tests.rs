use std::io::{Read, Write};
use std::os::unix::net::UnixListener;

use tempfile::TempDir;

use super::*;

/// Serves one client with these bytes, then closes, unless `stays`.
fn server(bytes: &'static [u8], stays: bool) -> (TempDir, Client) {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).expect("bound");
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut request = [0; 4096];
        let _ = stream.read(&mut request);
        let _ = stream.write_all(bytes);
        while stays && stream.read(&mut request).is_ok_and(|count| count > 0) {}
    });
    let client = Client {
        socket,
        owner: None,
        timeout: Duration::from_secs(20),
        interrupt: Interrupt::default(),
    };
    (dir, client)
}

fn get(bytes: &'static [u8]) -> Result<Answer, HttpError> {
    server(bytes, false).1.get("/v1/status")
}

#[test]
fn answer_ends_by_its_length_or_with_the_connection() {
    let (_dir, client) =
        server(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{\"a\": 1}\nmore", true);
    let answer = client.get("/v1/status").expect("an answer");
    assert_eq!((answer.status, answer.text().expect("text")), (200, "{\"a\": 1}\n"));
    assert_eq!(answer.json().expect("an object")["a"], 1);
    let answer = get(b"HTTP/1.0 404 x\r\n\r\n{\"error\": \"no such pool\"}").expect("an answer");
    assert_eq!((answer.status, answer.refusal()), (404, "no such pool".to_owned()));
    let answer = get(b"HTTP/1.0 405 x\r\n\r\nmethod not allowed\n").expect("an answer");
    assert_eq!(answer.refusal(), "method not allowed");
}

#[test]
fn broken_answers_are_errors() {
    let shown =
        |bytes| get(bytes).and_then(|answer| answer.json()).expect_err("no answer").to_string();
    for (bytes, expected) in [
        (&b""[..], "closed the connection without an answer"),
        (b"SSH-2.0-x\r\n", "it is not HTTP"),
        (b"\xff\xfe\xfd", "it is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-L", "its head has no end"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{\"a\"", "closed before the end"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "its length is no number"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n", "too large"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "no transfer encoding"),
        (b"HTTP/1.1 200 OK\r\n\r\n[]", "not a JSON object"),
        (b"HTTP/1.1 200 OK\r\n\r\n{\"a\": 1", "not a JSON object"),
    ] {
        assert!(shown(bytes).contains(expected), "{} lacks {expected}", shown(bytes));
    }
    static ENDLESS_HEAD: [u8; 100_000] = [b'x'; 100_000];
    assert!(shown(&ENDLESS_HEAD).contains("it is not HTTP"));
}

#[test]
fn silent_server_is_given_up() {
    for bytes in [&b""[..], b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n{"] {
        let (_dir, mut client) = server(bytes, true);
        client.timeout = Duration::from_millis(50);
        let error = client.get("/").expect_err("no answer");
        assert!(matches!(error, HttpError::Timeout(limit) if limit == client.timeout), "{error:?}");
    }
}

#[test]
fn interrupt_ends_a_wait() {
    let (_dir, client) = server(b"HTTP/1.1 200 OK\r\n\r\n", true);
    let mut stream = client.open("POST", "/v1/reload", "text/event-stream").expect("a head");
    assert!(!stream.is_event_stream());
    client.interrupt.0.store(true, Ordering::Relaxed);
    assert!(matches!(stream.next_bytes(None), Err(HttpError::Interrupted)));
}
