//! A test client that feeds a connection as the runtime does, and tests of one connection. `framing`
//! has tables of valid and invalid requests, `time` tests timeouts and drains, `cuts` tests that the
//! responses do not depend on how the input is split, `later` tests responses that are not known yet.

mod cuts;
mod framing;
mod later;
mod time;

use std::io;
use std::sync::Mutex;
use std::time::Duration;

use super::sending::PIECE;
use super::*;
use crate::app::{ConnectionContext, Limits, Next, ReadTimeout, WorkReporter};

const DATE: &[u8; 29] = b"Mon, 23 Nov 2026 05:54:10 GMT";

/// Counts units of work and stores their labels.
#[derive(Debug, Default, PartialEq, Eq)]
struct Recorder {
    units: Vec<String>,
    ended: usize,
}

impl WorkReporter for Recorder {
    fn begin_work(&mut self, label: &[u8]) {
        assert_eq!(self.ended, self.units.len(), "one unit at a time");
        self.units.push(String::from_utf8(label.to_vec()).unwrap());
    }

    fn end_work(&mut self) {
        self.ended += 1;
        assert_eq!(self.ended, self.units.len());
    }

    fn http_date(&mut self) -> [u8; 29] {
        *DATE
    }
}

/// A handler that records the requests, and whose response depends on the path.
#[derive(Default)]
struct Probe {
    seen: Mutex<Vec<String>>,
}

impl Handler for Probe {
    fn handle(&self, request: &Request<'_>) -> Response {
        let body = request.body().escape_ascii();
        let line = format!("{} {} {body}", request.method(), request.target());
        self.seen.lock().unwrap().push(line.clone());
        let n = request.query_value("n").map_or(0, |n| n.parse().unwrap());
        match request.path() {
            "/panic" => panic!("requested"),
            "/close" => Response::text("bye").closing(),
            "/bad" => Response::text("x").header("a", "b\r\nc: d"),
            "/204" => Response::new(204, "never sent"),
            "/large" => Response::new(200, vec![b'l'; n]),
            "/static" => Response::new(200, LARGE),
            "/counted" => Response::new(200, Body::stream(Letters::new(n), Some(n as u64))),
            "/chunked" => Response::new(200, Body::stream(Letters::new(n), None)),
            "/short" => Response::new(200, Body::stream(Letters::new(n), Some(n as u64 + 1))),
            "/long" => Response::new(200, Body::stream(OverlongSource, Some(3))),
            "/broken" => Response::new(200, Body::stream(FailingSource, None)),
            "/silent" => Response::new(200, Body::stream(SilentSource, None)),
            _ => Response::text(line),
        }
    }
}

static LARGE: &[u8] = &[b's'; 200_000];

/// A source of `left` letters, in the largest pieces allowed.
struct Letters {
    left: usize,
}

impl Letters {
    fn new(left: usize) -> Self {
        Self { left }
    }
}

impl Source for Letters {
    fn fill(&mut self, out: &mut Vec<u8>, max_len: usize) -> io::Result<More> {
        let piece = self.left.min(max_len.max(1));
        out.resize(out.len() + piece, b'z');
        self.left -= piece;
        Ok(if self.left == 0 { More::No } else { More::Yes })
    }
}

/// A source that produces more than the declared length.
struct OverlongSource;

impl Source for OverlongSource {
    fn fill(&mut self, out: &mut Vec<u8>, _room: usize) -> io::Result<More> {
        out.extend_from_slice(b"not limited");
        Ok(More::No)
    }
}

/// A source that never produces anything, and never ends.
struct SilentSource;

impl Source for SilentSource {
    fn fill(&mut self, _: &mut Vec<u8>, _: usize) -> io::Result<More> {
        Ok(More::Yes)
    }
}

struct FailingSource;

impl Source for FailingSource {
    fn fill(&mut self, out: &mut Vec<u8>, _room: usize) -> io::Result<More> {
        out.extend_from_slice(b"half of a");
        Err(io::Error::other("no more"))
    }
}

/// A client of one connection. It reads all output at once, as a fast client does.
struct Client<'s> {
    connection: Box<dyn Connection + 's>,
    recorder: Recorder,
    output: Vec<u8>,
    largest: usize,
    next: Next,
}

impl<'s> Client<'s> {
    fn new(service: &'s Http<Probe>) -> Self {
        Self::with_keepalive(service, true)
    }

    fn with_keepalive(service: &'s Http<Probe>, allow_keepalive: bool) -> Self {
        Self {
            connection: service.accept(&ClientInfo { address: None, allow_keepalive }),
            recorder: Recorder::default(),
            output: Vec::new(),
            largest: 0,
            next: Next::Read,
        }
    }

    /// Makes a call, and then calls `resume` as often as requested.
    fn call(
        &mut self,
        act: impl FnOnce(&mut dyn Connection, &mut ConnectionContext<'_>) -> Next,
    ) -> Next {
        self.call_once(act);
        while self.next == Next::Continue {
            self.call_once(|connection, ctx| connection.resume(ctx));
        }
        self.next
    }

    fn call_once(
        &mut self,
        act: impl FnOnce(&mut dyn Connection, &mut ConnectionContext<'_>) -> Next,
    ) {
        let mut out = Vec::new();
        let mut ctx = ConnectionContext::new(&mut out, &mut self.recorder);
        self.next = act(self.connection.as_mut(), &mut ctx);
        self.largest = self.largest.max(out.len());
        self.output.append(&mut out);
    }

    fn send(&mut self, input: impl AsRef<[u8]>) -> Next {
        self.call(|connection, ctx| connection.receive(input.as_ref(), ctx))
    }

    fn finish(&mut self) -> Next {
        self.send("")
    }

    fn time_out(&mut self) -> Next {
        self.call(|connection, ctx| connection.on_timeout(ctx))
    }

    fn drain(&mut self) -> Next {
        self.call(|connection, ctx| connection.drain(ctx))
    }

    /// Takes the output since the last call.
    fn read(&mut self) -> String {
        String::from_utf8(std::mem::take(&mut self.output)).unwrap()
    }

    /// Takes the output as status, head and body of one response.
    #[track_caller]
    fn response(&mut self) -> (u16, String, String) {
        let text = self.read();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).unwrap();
        (status.parse().unwrap(), head.to_owned(), body.to_owned())
    }
}

fn service() -> Http<Probe> {
    Http::new(Probe::default(), Limits::default())
}

#[test]
fn connection_struct_is_at_most_200_bytes() {
    assert!(size_of::<HttpConnection<'_, Probe>>() <= 200);
}

#[test]
fn idle_connection_has_no_buffer_and_body_stays_in_limit() {
    let limits = Limits { max_body_bytes: 1_000_000, ..Limits::default() };
    let service = Http::new(Probe::default(), limits);
    let peer = ClientInfo { address: None, allow_keepalive: true };
    let mut connection = HttpConnection::new(&service, &peer);
    let (mut out, mut recorder) = (Vec::new(), Recorder::default());
    for coding in ["Content-Length: 1000000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\nF4240\r\n"]
    {
        let head = format!("POST /204 HTTP/1.1\r\nHost: x\r\n{coding}");
        let mut ctx = ConnectionContext::new(&mut out, &mut recorder);
        let (first, rest) = head.as_bytes().split_at(20);
        assert_eq!(connection.receive(first, &mut ctx), Next::Read);
        assert_eq!(connection.receive(rest, &mut ctx), Next::Read);
        for _ in 0..1000 {
            assert!(connection.footprint() <= head.len() + 1_000_000);
            assert_eq!(connection.receive(&[b'x'; 1000], &mut ctx), Next::Read);
        }
        if coding.contains("chunked") {
            connection.receive(b"\r\n0\r\n\r\n", &mut ctx);
        }
        assert_eq!(connection.footprint(), 0);
    }
    assert_eq!(recorder.ended, 2);
}

#[test]
fn bodies_beyond_the_memory_of_the_worker_get_503() {
    let limits = Limits {
        max_head_bytes: 100,
        max_body_bytes: 1000,
        max_bodies_bytes: 1,
        ..Limits::default()
    };
    let service = Http::new(Probe::default(), limits);
    for coding in ["Content-Length: 900\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n384\r\n"] {
        let head = format!("POST /204 HTTP/1.1\r\nHost: x\r\n{coding}");
        let (mut first, mut second) = (Client::new(&service), Client::new(&service));
        first.send(&head);
        first.send("x".repeat(800));
        second.send(&head);
        assert_eq!(second.send("x".repeat(800)), Next::LingeringClose);
        assert!(second.read().starts_with("HTTP/1.1 503 "));
        // Its memory is free again, and so is that of a body that has arrived or was given up.
        let mut third = Client::new(&service);
        third.send(&head);
        third.send("x".repeat(100));
        drop(third);
        first.send(
            &("x".repeat(100) + if coding.contains("chunked") { "\r\n0\r\n\r\n" } else { "" }),
        );
        assert!(first.read().starts_with("HTTP/1.1 204 "));
        let mut fourth = Client::new(&service);
        fourth.send(&head);
        assert_eq!(fourth.send("x".repeat(800)), Next::Read);
    }
}

#[test]
fn consecutive_requests_are_answered() {
    let service = service();
    let mut client = Client::new(&service);
    for _ in 0..2 {
        assert_eq!(client.send("GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n"), Next::Read);
        let expected = "HTTP/1.1 200 OK\r\nDate: Mon, 23 Nov 2026 05:54:10 GMT\r\n\
            Content-Type: text/plain; charset=utf-8\r\nContent-Length: 11\r\n\r\nGET /a?b=c ";
        assert_eq!(client.read(), expected);
    }
    assert_eq!(client.recorder.units, ["GET /a", "GET /a"]);
    assert_eq!(client.finish(), Next::Close);
    assert_eq!(client.read(), "");
}

#[test]
fn pipelined_requests_in_order_with_bounded_output() {
    let service = service();
    let mut client = Client::new(&service);
    let input: String =
        (0..5000).map(|n| format!("GET /p{n} HTTP/1.1\r\nHost: x\r\n\r\n")).collect();
    assert_eq!(client.send(&input), Next::Read);
    let output = client.read();
    let responses: Vec<_> = output.split("GET /p").skip(1).collect();
    assert_eq!(responses.len(), 5000);
    for (n, response) in responses.iter().enumerate() {
        assert!(response.starts_with(&format!("{n} ")), "{n}: {response:?}");
    }
    assert!(client.largest < PIECE + 300, "{}", client.largest);
}

#[test]
fn absolute_target_is_labelled_with_its_path() {
    let service = service();
    let mut client = Client::new(&service);
    client.send("GET http://x/a/b?c HTTP/1.1\r\nHost: x\r\n\r\n");
    client.send("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n");
    client.send("CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(client.recorder.units, ["GET /a/b", "OPTIONS *", "CONNECT x:443"]);
    assert_eq!(client.next, Next::Close);
}

#[test]
fn head_request_gets_the_head_of_get_without_body() {
    for path in ["/x", "/chunked?n=9", "/counted?n=9", "/large?n=99999", "/204", "/panic"] {
        for version in ["1.0", "1.1"] {
            let service = service();
            let [get, head] = ["GET", "HEAD"].map(|method| {
                let mut client = Client::new(&service);
                client.send(format!("{method} {path} HTTP/{version}\r\nHost: x\r\n\r\n"));
                (client.response(), client.next)
            });
            // The text contains the method, so its length differs by one.
            let get_head = get.0.1.replace("Content-Length: 7", "Content-Length: 8");
            assert_eq!((get_head, get.1), (head.0.1, head.1), "{path} {version}");
            assert_eq!(head.0.2, "", "{path} {version}");
        }
    }
}

#[test]
fn http_1_0_closes_without_keep_alive() {
    let service = service();
    let mut client = Client::new(&service);
    assert_eq!(client.send("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"), Next::Read);
    assert!(client.response().1.contains("\r\nConnection: keep-alive"));
    assert_eq!(client.send("GET / HTTP/1.0\r\n\r\n"), Next::Close);
    assert!(client.response().1.contains("\r\nConnection: close"));
    let mut client = Client::new(&service);
    let input = "GET /chunked?n=3 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
    assert_eq!(client.send(input), Next::Close, "only a close can end this body");
    let (_, head, body) = client.response();
    assert!(!head.contains("Transfer-Encoding") && head.contains("\r\nConnection: close"));
    assert_eq!(body, "zzz");
}

#[test]
fn last_response_says_connection_close() {
    let service = service();
    let no_keepalive =
        Http::new(Probe::default(), Limits { keepalive: Duration::ZERO, ..Limits::default() });
    let get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    for (mut client, input) in [
        (Client::with_keepalive(&service, false), get),
        (Client::with_keepalive(&no_keepalive, true), get),
        (Client::new(&service), "GET /close HTTP/1.1\r\nHost: x\r\n\r\n"),
        (Client::new(&service), "GET / HTTP/1.1\r\nHost: x\r\nConnection: a, CLOSE\r\n\r\n"),
    ] {
        assert_eq!(client.send(input.repeat(2)), Next::Close);
        assert!(client.response().1.contains("\r\nConnection: close"));
        assert_eq!(client.send(get), Next::Close);
        assert_eq!(client.read(), "");
        assert_eq!(client.recorder.units.len(), 1);
    }
}

#[test]
fn continue_is_sent_only_while_body_is_missing() {
    let service = service();
    let mut client = Client::new(&service);
    let head = "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n";
    assert_eq!(client.send(head), Next::Read);
    assert_eq!(client.read(), "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("o");
    assert_eq!(client.read(), "");
    client.send("k");
    assert_eq!(client.response().2, "POST / ok");
    client.send(format!("{head}ok"));
    assert_eq!(client.response().2, "POST / ok");
    let chunked = head.replace("Content-Length: 2", "Transfer-Encoding: chunked");
    client.send(&chunked);
    assert_eq!(client.read(), "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("2\r\nok\r\n0\r\n\r\n");
    assert_eq!(client.response().2, "POST / ok");
    client.send(head.replace(": 2", ": 0"));
    assert_eq!(client.response().2, "POST / ", "there is no body to wait for");
    assert_eq!(client.send(head.replace(": 2", ": 99999999")), Next::LingeringClose);
    assert_eq!(client.response().0, 413);
}

#[test]
fn panic_in_handler_fails_only_its_request() {
    let service = service();
    let mut client = Client::new(&service);
    assert_eq!(client.send("GET /panic HTTP/1.1\r\nHost: x\r\n\r\n"), Next::Read);
    assert_eq!(client.response().0, 500);
    assert_eq!(client.recorder.ended, 1);
    assert_eq!(client.send("GET /bad HTTP/1.1\r\nHost: x\r\n\r\n"), Next::Read);
    let (status, head, _) = client.response();
    assert!(status == 500 && !head.contains("c: d"));
    assert_eq!(client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), Next::Read);
    assert_eq!(client.response().0, 200);
}

#[test]
fn large_body_is_sent_in_pieces() {
    const N: usize = 2_000_000;
    let service = service();
    for path in ["/large", "/counted", "/chunked"] {
        let mut client = Client::new(&service);
        let input = format!("GET {path}?n={N} HTTP/1.1\r\nHost: x\r\n\r\n");
        client.call_once(|connection, ctx| connection.receive(input.as_bytes(), ctx));
        assert_eq!(client.connection.timeout(), ReadTimeout::None);
        assert_eq!(
            client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
            Next::Read,
            "the request is stored"
        );
        assert!(client.largest <= PIECE + 300, "{path}: {}", client.largest);
        let output = client.read();
        assert_eq!(
            output.matches(['l', 'z']).count(),
            N + output.matches("text/plain").count(),
            "{path}"
        );
        assert!(output.ends_with("GET / "), "{path}");
    }
    let mut client = Client::new(&service);
    client.send("GET /static HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(client.response().2.as_bytes(), LARGE);
}

#[test]
fn stream_of_wrong_length_is_truncated() {
    let service = service();
    for (path, body) in [("/short?n=3", "zzz"), ("/long", "not"), ("/broken", "")] {
        let mut client = Client::new(&service);
        let input = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").repeat(2);
        assert_eq!(client.send(input), Next::Close, "{path}");
        assert_eq!(client.response().2, body, "{path}");
    }
}

#[test]
fn silent_stream_is_truncated() {
    let service = service();
    for version in ["1.0", "1.1"] {
        let mut client = Client::new(&service);
        let input = format!("GET /silent HTTP/{version}\r\nHost: x\r\n\r\n");
        assert_eq!(client.send(input), Next::Close);
        assert!(client.read().ends_with("\r\n\r\n"), "the head, and no end of the body");
    }
}

#[test]
fn half_closed_client_gets_all_responses() {
    let service = service();
    let mut client = Client::new(&service);
    let input = format!(
        "GET /chunked?n=200000 HTTP/1.1\r\nHost: x\r\n\r\n{}POST / HTTP/1.1\r\nHost: x\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(3)
    );
    client.call_once(|connection, ctx| connection.receive(input.as_bytes(), ctx));
    assert_eq!(client.next, Next::Continue);
    assert_eq!(client.finish(), Next::Close);
    assert_eq!(client.recorder.units.len(), 4);
    assert!(client.read().ends_with("GET / "));
}
