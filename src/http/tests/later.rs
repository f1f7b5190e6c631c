//! Responses that are not known yet, and bodies that are produced whenever there is something to say.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::*;
use crate::http::LiveSource;
use crate::session::{Session, Wants};
use crate::time::MonotonicTime;

const SECOND: Duration = Duration::from_secs(1);

/// What the responses wait for.
#[derive(Clone, Default)]
struct Facts {
    answer: Arc<Mutex<Option<Response>>>,
    /// The pieces of the live body; an empty one is its end.
    pieces: Arc<Mutex<Vec<&'static str>>>,
    is_broken: Arc<AtomicBool>,
}

impl Handler for Facts {
    fn handle(&self, request: &Request<'_>) -> Response {
        let facts = self.clone();
        match request.path() {
            "/later" => Response::later(move || {
                assert!(!facts.is_broken.load(Ordering::Relaxed));
                facts.answer.lock().unwrap().take()
            })
            .header("X-Outer", "1"),
            "/live" => Response::new(200, Body::live(facts)),
            path => Response::text(path.to_owned()),
        }
    }
}

impl LiveSource for Facts {
    fn fill(&mut self, out: &mut Vec<u8>, _max_len: usize) -> Option<More> {
        let mut pieces = self.pieces.lock().unwrap();
        if pieces.is_empty() {
            return None;
        }
        let piece = pieces.remove(0);
        out.extend_from_slice(piece.as_bytes());
        Some(if piece.is_empty() { More::No } else { More::Yes })
    }

    fn keep_alive(&self) -> &'static [u8] {
        b":\n"
    }
}

/// A client whose session is driven as the control interface does it.
struct Driven<'s> {
    session: Session<'s>,
    now: MonotonicTime,
    spare: Vec<u8>,
    recorder: Recorder,
}

impl<'s> Driven<'s> {
    fn new(service: &'s Http<Facts>) -> Self {
        let info = ClientInfo { address: None, allow_keepalive: true };
        let now = MonotonicTime::default();
        let session = Session::new(service.accept(&info), 7 * SECOND, now);
        Self { session, now, spare: Vec::new(), recorder: Recorder::default() }
    }

    fn send(&mut self, text: impl AsRef<[u8]>) {
        assert!(!self.session.is_waiting());
        self.session.on_received(text.as_ref(), &mut self.spare, &mut self.recorder, self.now);
    }

    fn get(&mut self, path: &str) {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
    }

    fn wake(&mut self) {
        self.session.wake(&mut self.spare, &mut self.recorder, self.now);
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.saturating_add(time);
        if self.session.deadline().is_some_and(|at| at <= self.now) {
            self.session.on_timeout(&mut self.spare, &mut self.recorder, self.now);
        }
    }

    /// Reads all output.
    fn read(&mut self) -> String {
        let mut text = Vec::new();
        while self.session.wants() == Wants::Write {
            text.extend_from_slice(self.session.unsent());
            let length = self.session.unsent().len();
            self.session.on_sent(length, &mut self.spare, &mut self.recorder, self.now);
        }
        String::from_utf8(text).unwrap()
    }
}

#[test]
fn later_response_is_sent_once_it_is_known() {
    let facts = Facts::default();
    let service = Http::new(facts.clone(), Limits::default());
    let mut client = Driven::new(&service);
    client.send("GET /later HTTP/1.1\r\nHost: x\r\n\r\nGET /next HTTP/1.1\r\nHost: x\r\n\r\n");
    for _ in 0..3 {
        client.wake();
        client.pass(3600 * SECOND);
        assert!(client.session.is_waiting(), "no limit of time closes it");
        assert_eq!((client.read(), client.session.deadline()), (String::new(), None));
    }
    *facts.answer.lock().unwrap() = Some(Response::json("{}").with_status(422).header("X-In", "2"));
    client.wake();
    let text = client.read();
    assert!(text.starts_with("HTTP/1.1 422 "), "{text}");
    assert!(text.contains("\r\nX-In: 2\r\nX-Outer: 1\r\n\r\n{}HTTP/1.1 200 OK"), "{text}");
    assert!(text.ends_with("\r\n\r\n/next"), "{text}");
    assert!(!client.session.is_waiting() && client.session.is_open());
    client.pass(3600 * SECOND);
    assert_eq!(client.session.wants(), Wants::Closed, "keepalive holds again");
}

#[test]
fn later_response_that_panics_is_500() {
    let facts = Facts::default();
    let service = Http::new(facts.clone(), Limits::default());
    let mut client = Driven::new(&service);
    client.get("/later");
    facts.is_broken.store(true, Ordering::Relaxed);
    client.wake();
    assert!(client.read().starts_with("HTTP/1.1 500 "));
    assert!(client.session.is_open());
}

#[test]
fn later_response_to_http_1_0_or_head_keeps_their_rules() {
    for (request, body, is_open) in [
        ("GET /later HTTP/1.0\r\n\r\n", "abc", false),
        ("HEAD /later HTTP/1.1\r\nHost: x\r\n\r\n", "", true),
    ] {
        let facts = Facts::default();
        let service = Http::new(facts.clone(), Limits::default());
        let mut client = Driven::new(&service);
        client.send(request);
        *facts.answer.lock().unwrap() = Some(Response::text("abc"));
        client.wake();
        let text = client.read();
        assert!(text.contains("\r\nContent-Length: 3\r\n"), "{text}");
        assert_eq!(text.split_once("\r\n\r\n").unwrap().1, body);
        assert_eq!(client.session.is_open(), is_open);
    }
}

#[test]
fn live_body_is_sent_as_it_comes() {
    let facts = Facts::default();
    let service = Http::new(facts.clone(), Limits::default());
    let mut client = Driven::new(&service);
    client.get("/live");
    let head = client.read();
    assert!(head.contains("\r\nTransfer-Encoding: chunked\r\n"), "{head}");
    assert!(head.ends_with("\r\n\r\n") && client.session.is_waiting(), "{head}");
    client.wake();
    assert_eq!(client.read(), "");
    facts.pieces.lock().unwrap().extend(["one", "two"]);
    client.wake();
    // The client has not read the first piece when the third one comes: it is not forgotten.
    facts.pieces.lock().unwrap().push("three");
    let text = client.read();
    assert_eq!(text, "00000003\r\none\r\n00000003\r\ntwo\r\n00000005\r\nthree\r\n");
    assert!(client.session.is_waiting());
    facts.pieces.lock().unwrap().push("");
    client.wake();
    assert_eq!(client.read(), "0\r\n\r\n");
    client.get("/next");
    assert!(client.read().ends_with("/next"));
}

#[test]
fn silent_live_body_is_kept_alive() {
    let facts = Facts::default();
    let service = Http::new(facts.clone(), Limits::default());
    let mut client = Driven::new(&service);
    client.get("/live");
    client.read();
    for _ in 0..3 {
        client.pass(14 * SECOND);
        client.wake(); // turns in which nothing is said do not put it off
        assert_eq!(client.read(), "");
        client.pass(SECOND);
        assert_eq!(client.read(), "00000002\r\n:\n\r\n");
    }
    client.pass(14 * SECOND);
    facts.pieces.lock().unwrap().push("x");
    client.wake();
    assert_eq!(client.read(), "00000001\r\nx\r\n");
    client.pass(14 * SECOND);
    assert_eq!(client.read(), "", "it has said something since");
}

#[test]
fn client_that_reads_no_live_body_is_closed() {
    let facts = Facts::default();
    let service = Http::new(facts.clone(), Limits::default());
    let mut client = Driven::new(&service);
    client.get("/live");
    client.read();
    facts.pieces.lock().unwrap().push("x");
    client.wake();
    client.pass(6 * SECOND);
    assert!(!client.session.is_waiting() && client.session.wants() == Wants::Write);
    client.pass(SECOND);
    assert_eq!(client.session.wants(), Wants::Closed);
}
