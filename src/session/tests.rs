//! A connection that answers from a script, and a client made of an invented clock. `property` has
//! what holds for any connection and any client.

mod buffers;
mod deadlines;
mod drains;
mod panics;
mod property;
mod refusals;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::*;

const NANO: Duration = Duration::from_nanos(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const WRITE_TIMEOUT: Duration = Duration::from_secs(7);

/// What a connection does when it is asked.
#[derive(Clone, Debug)]
enum Answer {
    Say(&'static str, Next),
    Panic(&'static str),
}

/// What a connection has been asked, what it will answer, and how patient it is.
struct Script {
    asked: Vec<String>,
    answers: VecDeque<Answer>,
    patience: Patience,
}

struct Actor(Arc<Mutex<Script>>);

impl Actor {
    fn act(&self, question: String, exchange: &mut Exchange<'_>) -> Next {
        let mut script = self.0.lock().unwrap();
        exchange.begin(question.as_bytes());
        script.asked.push(question);
        let answer = script.answers.pop_front();
        drop(script);
        match answer.unwrap_or(Answer::Say("", Next::Read)) {
            Answer::Say(text, next) => {
                exchange.out.extend_from_slice(text.as_bytes());
                exchange.end();
                next
            }
            Answer::Panic(text) => {
                exchange.out.extend_from_slice(text.as_bytes());
                panic!("asked for");
            }
        }
    }
}

impl Connection for Actor {
    fn receive(&mut self, input: &[u8], exchange: &mut Exchange<'_>) -> Next {
        assert!(exchange.out.is_empty(), "output waits");
        self.act(format!("receive {}", input.escape_ascii()), exchange)
    }

    fn proceed(&mut self, exchange: &mut Exchange<'_>) -> Next {
        assert!(exchange.out.is_empty(), "output waits");
        self.act("proceed".to_owned(), exchange)
    }

    fn expire(&mut self, exchange: &mut Exchange<'_>) -> Next {
        self.act("expire".to_owned(), exchange)
    }

    fn drain(&mut self, exchange: &mut Exchange<'_>) -> Next {
        self.act("drain".to_owned(), exchange)
    }

    fn patience(&self) -> Patience {
        self.0.lock().unwrap().patience
    }
}

/// Keeps what it is told, and insists that connections run one at a time.
#[derive(Default)]
struct Recorder {
    told: Vec<String>,
    inside: usize,
}

impl Desk for Recorder {
    fn begin(&mut self, label: &[u8]) {
        assert_eq!(self.inside, 1);
        self.told.push(label.escape_ascii().to_string());
    }

    fn end(&mut self) {
        assert_eq!(self.inside, 1);
        self.told.push("end".to_owned());
    }

    fn date(&mut self) -> [u8; 29] {
        *b"Mon, 23 Nov 2026 05:54:10 GMT"
    }

    fn enter(&mut self) {
        self.inside += 1;
    }

    fn leave(&mut self) {
        self.inside -= 1;
    }
}

struct Client {
    session: Session<'static>,
    script: Arc<Mutex<Script>>,
    spare: Vec<u8>,
    desk: Recorder,
    now: MonotonicTime,
}

impl Client {
    fn patient(patience: Patience) -> Self {
        Self::new(patience, WRITE_TIMEOUT)
    }

    fn new(patience: Patience, write_timeout: Duration) -> Self {
        let script = Script { asked: Vec::new(), answers: VecDeque::new(), patience };
        let script = Arc::new(Mutex::new(script));
        let now = MonotonicTime::from_nanos(1_000_000_000_000);
        let session = Session::new(Box::new(Actor(Arc::clone(&script))), write_timeout, now);
        Self { session, script, spare: Vec::new(), desk: Recorder::default(), now }
    }

    fn answering(answers: &[(&'static str, Next)]) -> Self {
        let client = Self::patient(Patience::Endless);
        client.will_answer(answers);
        client
    }

    fn will_answer(&self, answers: &[(&'static str, Next)]) {
        let answers = answers.iter().map(|(text, next)| Answer::Say(text, *next));
        self.script.lock().unwrap().answers.extend(answers);
    }

    fn will_panic(&self, after: &'static str) {
        self.script.lock().unwrap().answers.push_back(Answer::Panic(after));
    }

    fn will_be(&self, patience: Patience) {
        self.script.lock().unwrap().patience = patience;
    }

    fn receives(&mut self, input: &str) {
        self.session.received(input.as_bytes(), &mut self.spare, &mut self.desk, self.now);
        self.rests();
    }

    fn ends_its_side(&mut self) {
        self.receives("");
    }

    fn sends(&mut self, n: usize) {
        self.session.sent(n, &mut self.spare, &mut self.desk, self.now);
        self.rests();
    }

    fn expires(&mut self) {
        self.session.expired(&mut self.spare, &mut self.desk, self.now);
        self.rests();
    }

    fn drains(&mut self) {
        self.session.drain(&mut self.spare, &mut self.desk, self.now);
        self.rests();
    }

    /// What holds between two calls.
    fn rests(&self) {
        assert_eq!(self.desk.inside, 0);
        assert!(self.spare.is_empty());
        let owns_nothing = self.session.out.capacity() == 0;
        assert!(owns_nothing || self.wants() != Wants::Read, "an idle session keeps a buffer");
    }

    fn passes(&mut self, time: Duration) {
        self.now = self.now.saturating_add(time);
    }

    fn wants(&self) -> Wants {
        self.session.wants()
    }

    fn unsent(&self) -> &str {
        std::str::from_utf8(self.session.unsent()).unwrap()
    }

    fn asked(&self) -> Vec<String> {
        self.script.lock().unwrap().asked.clone()
    }

    /// How long until the deadline.
    fn left(&self) -> Option<Duration> {
        self.session.deadline().map(|deadline| deadline.duration_since(self.now))
    }
}

#[test]
fn a_new_session_waits_for_bytes_and_has_asked_nothing() {
    let client = Client::answering(&[]);
    assert_eq!(client.wants(), Wants::Read);
    assert_eq!(client.unsent(), "");
    assert!(client.asked().is_empty());
}

#[test]
fn an_answer_is_sent_in_pieces_before_anything_else_is_asked() {
    let mut client = Client::answering(&[("hello", Next::Proceed)]);
    client.receives("hi");
    assert_eq!((client.wants(), client.unsent()), (Wants::Write, "hello"));
    client.sends(2);
    assert_eq!((client.wants(), client.unsent()), (Wants::Write, "llo"));
    assert_eq!(client.asked(), ["receive hi"]);
    client.sends(3);
    assert_eq!(client.asked(), ["receive hi", "proceed"]);
    assert_eq!((client.wants(), client.unsent()), (Wants::Read, ""));
}

#[test]
fn it_proceeds_until_there_is_output_or_nothing_to_do() {
    let more = [("", Next::Proceed), ("", Next::Proceed), ("a", Next::Proceed), ("", Next::Read)];
    let mut client = Client::answering(&more);
    client.receives("x");
    assert_eq!(client.asked(), ["receive x", "proceed", "proceed"]);
    assert_eq!(client.unsent(), "a");
    client.sends(1);
    assert_eq!(client.asked().len(), 4);
    assert_eq!(client.wants(), Wants::Read);
}

#[test]
#[should_panic(expected = "backpressure")]
#[cfg(debug_assertions)]
fn bytes_while_output_waits_are_a_bug_of_the_caller() {
    let mut client = Client::answering(&[("hello", Next::Read)]);
    client.receives("hi");
    client.receives("more");
}

#[test]
fn more_than_waited_cannot_be_sent() {
    let mut client = Client::answering(&[("abc", Next::Read)]);
    client.receives("x");
    client.sends(99);
    assert_eq!((client.wants(), client.unsent()), (Wants::Read, ""));
}

#[test]
fn a_close_waits_for_the_output() {
    let mut client = Client::answering(&[("bye", Next::Close)]);
    client.receives("x");
    assert_eq!(client.wants(), Wants::Write);
    client.sends(3);
    assert_eq!(client.wants(), Wants::Gone);
}

#[test]
fn a_close_without_output_is_immediate() {
    let mut client = Client::answering(&[("", Next::Close)]);
    client.receives("x");
    assert_eq!(client.wants(), Wants::Gone);
}

#[test]
fn a_session_that_ends_with_its_output_wants_no_more_bytes() {
    let mut client = Client::answering(&[("a", Next::Read), ("b", Next::Close)]);
    client.receives("x");
    assert!(client.session.is_open());
    client.sends(1);
    client.receives("y");
    assert!(!client.session.is_open());
    client.sends(1);
    assert!(!client.session.is_open());
}

#[test]
fn a_half_closed_client_is_answered_in_full() {
    let mut client = Client::answering(&[("a", Next::Proceed), ("b", Next::Read)]);
    client.ends_its_side();
    assert_eq!(client.unsent(), "a");
    client.sends(1);
    assert_eq!(client.unsent(), "b");
    client.sends(1);
    assert_eq!(client.wants(), Wants::Gone);
    assert_eq!(client.asked(), ["receive ", "proceed"]);
}

#[test]
fn a_half_closed_client_with_nothing_to_come_is_gone() {
    let mut client = Client::answering(&[]);
    client.ends_its_side();
    assert_eq!(client.wants(), Wants::Gone);
}

#[test]
fn nobody_lingers_for_a_client_that_has_ended_its_side() {
    let mut client = Client::answering(&[("no", Next::Refuse)]);
    client.ends_its_side();
    client.sends(2);
    assert_eq!(client.wants(), Wants::Gone);
}

#[test]
fn what_is_gone_is_asked_nothing_more() {
    let mut client = Client::answering(&[("", Next::Close)]);
    client.receives("x");
    client.receives("y");
    client.ends_its_side();
    client.sends(1);
    client.expires();
    client.drains();
    assert_eq!(client.asked(), ["receive x"]);
    assert_eq!(client.wants(), Wants::Gone);
}

#[test]
fn a_broken_connection_is_gone_though_output_waits() {
    let mut client = Client::answering(&[("abc", Next::Read)]);
    client.receives("x");
    client.session.broken();
    assert_eq!(client.wants(), Wants::Gone);
}

#[test]
fn the_desk_is_told_of_each_unit() {
    let mut client = Client::answering(&[("a", Next::Read)]);
    client.receives("x");
    assert_eq!(client.desk.told, ["receive x", "end"]);
}
