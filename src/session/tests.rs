//! A connection with scripted replies, and a client with a simulated clock. `property` tests any
//! connection with any client.

mod buffers;
mod deadlines;
mod draining;
mod lingering_close;
mod panics;
mod pauses;
mod property;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::*;

const NANO: Duration = Duration::from_nanos(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const WRITE_TIMEOUT: Duration = Duration::from_secs(7);

/// The reply of a scripted connection to one call.
#[derive(Clone, Debug)]
enum ScriptedReply {
    Output(&'static str, Next),
    Panic(&'static str),
}

/// The calls of a connection so far, its future replies, and its timeout.
struct Script {
    calls: Vec<String>,
    replies: VecDeque<ScriptedReply>,
    timeout: ReadTimeout,
}

struct ScriptedConnection(Arc<Mutex<Script>>);

impl ScriptedConnection {
    fn reply(&self, call: String, context: &mut ConnectionContext<'_>) -> Next {
        let mut script = self.0.lock().unwrap();
        context.begin_work(call.as_bytes());
        script.calls.push(call);
        let reply = script.replies.pop_front();
        drop(script);
        match reply.unwrap_or(ScriptedReply::Output("", Next::Read)) {
            ScriptedReply::Output(text, next) => {
                context.out.extend_from_slice(text.as_bytes());
                context.end_work();
                next
            }
            ScriptedReply::Panic(text) => {
                context.out.extend_from_slice(text.as_bytes());
                panic!("requested");
            }
        }
    }
}

impl Connection for ScriptedConnection {
    fn receive(&mut self, input: &[u8], ctx: &mut ConnectionContext<'_>) -> Next {
        assert!(ctx.out.is_empty(), "output waits");
        self.reply(format!("receive {}", input.escape_ascii()), ctx)
    }

    fn resume(&mut self, ctx: &mut ConnectionContext<'_>) -> Next {
        assert!(ctx.out.is_empty(), "output waits");
        self.reply("resume".to_owned(), ctx)
    }

    fn on_timeout(&mut self, ctx: &mut ConnectionContext<'_>) -> Next {
        self.reply("on_timeout".to_owned(), ctx)
    }

    fn drain(&mut self, ctx: &mut ConnectionContext<'_>) -> Next {
        self.reply("drain".to_owned(), ctx)
    }

    fn timeout(&self) -> ReadTimeout {
        self.0.lock().unwrap().timeout
    }
}

/// Records its calls, and asserts that connections run one at a time.
#[derive(Default)]
struct RecordingReporter {
    recorded: Vec<String>,
    depth: usize,
}

impl WorkReporter for RecordingReporter {
    fn begin_work(&mut self, label: &[u8]) {
        assert_eq!(self.depth, 1);
        self.recorded.push(label.escape_ascii().to_string());
    }

    fn end_work(&mut self) {
        assert_eq!(self.depth, 1);
        self.recorded.push("end".to_owned());
    }

    fn http_date(&mut self) -> [u8; 29] {
        *b"Mon, 23 Nov 2026 05:54:10 GMT"
    }

    fn set_busy(&mut self) {
        self.depth += 1;
    }

    fn set_idle(&mut self) {
        self.depth -= 1;
    }
}

struct Client {
    session: Session<'static>,
    script: Arc<Mutex<Script>>,
    spare: Vec<u8>,
    reporter: RecordingReporter,
    now: MonotonicTime,
}

impl Client {
    fn with_timeout(timeout: ReadTimeout) -> Self {
        Self::new(timeout, WRITE_TIMEOUT)
    }

    fn new(timeout: ReadTimeout, write_timeout: Duration) -> Self {
        let script = Script { calls: Vec::new(), replies: VecDeque::new(), timeout };
        let script = Arc::new(Mutex::new(script));
        let now = MonotonicTime::from_nanos(1_000_000_000_000);
        let session =
            Session::new(Box::new(ScriptedConnection(Arc::clone(&script))), write_timeout, now);
        Self { session, script, spare: Vec::new(), reporter: RecordingReporter::default(), now }
    }

    fn with_replies(replies: &[(&'static str, Next)]) -> Self {
        let client = Self::with_timeout(ReadTimeout::None);
        client.add_replies(replies);
        client
    }

    fn add_replies(&self, replies: &[(&'static str, Next)]) {
        let replies = replies.iter().map(|(text, next)| ScriptedReply::Output(text, *next));
        self.script.lock().unwrap().replies.extend(replies);
    }

    fn limit_lingering_close(&mut self, timeout: Duration, max_bytes: u64) {
        self.session.lingering_timeout = timeout;
        self.session.lingering_bytes = max_bytes;
    }

    fn add_panic(&self, after: &'static str) {
        self.script.lock().unwrap().replies.push_back(ScriptedReply::Panic(after));
    }

    fn set_timeout(&self, timeout: ReadTimeout) {
        self.script.lock().unwrap().timeout = timeout;
    }

    fn receive(&mut self, input: &str) {
        self.session.on_received(input.as_bytes(), &mut self.spare, &mut self.reporter, self.now);
        self.check_invariants();
    }

    fn half_close(&mut self) {
        self.receive("");
    }

    fn send(&mut self, n: usize) {
        self.session.on_sent(n, &mut self.spare, &mut self.reporter, self.now);
        self.check_invariants();
    }

    fn time_out(&mut self) {
        self.session.on_timeout(&mut self.spare, &mut self.reporter, self.now);
        self.check_invariants();
    }

    fn drain(&mut self) {
        self.session.drain(&mut self.spare, &mut self.reporter, self.now);
        self.check_invariants();
    }

    /// Asserts what holds between two calls.
    fn check_invariants(&self) {
        assert_eq!(self.reporter.depth, 0);
        assert!(self.spare.is_empty());
        let owns_nothing = self.session.output.capacity() == 0;
        assert!(owns_nothing || self.wants() != Wants::Read, "an idle session keeps a buffer");
    }

    fn advance_clock(&mut self, time: Duration) {
        self.now = self.now.saturating_add(time);
    }

    fn wants(&self) -> Wants {
        self.session.wants()
    }

    fn unsent(&self) -> &str {
        std::str::from_utf8(self.session.unsent()).unwrap()
    }

    fn calls(&self) -> Vec<String> {
        self.script.lock().unwrap().calls.clone()
    }

    /// Returns the time until the deadline.
    fn time_left(&self) -> Option<Duration> {
        self.session.deadline().map(|deadline| deadline.duration_since(self.now))
    }
}

#[test]
fn new_session_wants_read_and_calls_nothing() {
    let client = Client::with_replies(&[]);
    assert_eq!(client.wants(), Wants::Read);
    assert_eq!(client.unsent(), "");
    assert!(client.calls().is_empty());
}

#[test]
fn output_is_sent_before_the_next_call() {
    let mut client = Client::with_replies(&[("hello", Next::Continue)]);
    client.receive("hi");
    assert_eq!((client.wants(), client.unsent()), (Wants::Write, "hello"));
    client.send(2);
    assert_eq!((client.wants(), client.unsent()), (Wants::Write, "llo"));
    assert_eq!(client.calls(), ["receive hi"]);
    client.send(3);
    assert_eq!(client.calls(), ["receive hi", "resume"]);
    assert_eq!((client.wants(), client.unsent()), (Wants::Read, ""));
}

#[test]
fn continue_repeats_until_output_or_read() {
    let more =
        [("", Next::Continue), ("", Next::Continue), ("a", Next::Continue), ("", Next::Read)];
    let mut client = Client::with_replies(&more);
    client.receive("x");
    assert_eq!(client.calls(), ["receive x", "resume", "resume"]);
    assert_eq!(client.unsent(), "a");
    client.send(1);
    assert_eq!(client.calls().len(), 4);
    assert_eq!(client.wants(), Wants::Read);
}

#[test]
#[should_panic(expected = "backpressure")]
#[cfg(debug_assertions)]
fn on_received_while_output_waits_panics() {
    let mut client = Client::with_replies(&[("hello", Next::Read)]);
    client.receive("hi");
    client.receive("more");
}

#[test]
fn on_sent_beyond_unsent_is_clamped() {
    let mut client = Client::with_replies(&[("abc", Next::Read)]);
    client.receive("x");
    client.send(99);
    assert_eq!((client.wants(), client.unsent()), (Wants::Read, ""));
}

#[test]
fn close_with_output_waits_for_it() {
    let mut client = Client::with_replies(&[("bye", Next::Close)]);
    client.receive("x");
    assert_eq!(client.wants(), Wants::Write);
    client.send(3);
    assert_eq!(client.wants(), Wants::Closed);
}

#[test]
fn close_without_output_is_immediate() {
    let mut client = Client::with_replies(&[("", Next::Close)]);
    client.receive("x");
    assert_eq!(client.wants(), Wants::Closed);
}

#[test]
fn session_closing_after_output_is_not_open() {
    let mut client = Client::with_replies(&[("a", Next::Read), ("b", Next::Close)]);
    client.receive("x");
    assert!(client.session.is_open());
    client.send(1);
    client.receive("y");
    assert!(!client.session.is_open());
    client.send(1);
    assert!(!client.session.is_open());
}

#[test]
fn half_closed_client_receives_all_output() {
    let mut client = Client::with_replies(&[("a", Next::Continue), ("b", Next::Read)]);
    client.half_close();
    assert_eq!(client.unsent(), "a");
    client.send(1);
    assert_eq!(client.unsent(), "b");
    client.send(1);
    assert_eq!(client.wants(), Wants::Closed);
    assert_eq!(client.calls(), ["receive ", "resume"]);
}

#[test]
fn half_closed_client_without_output_is_closed() {
    let mut client = Client::with_replies(&[]);
    client.half_close();
    assert_eq!(client.wants(), Wants::Closed);
}

#[test]
fn half_closed_client_gets_no_lingering_close() {
    let mut client = Client::with_replies(&[("no", Next::LingeringClose)]);
    client.half_close();
    client.send(2);
    assert_eq!(client.wants(), Wants::Closed);
}

#[test]
fn closed_session_makes_no_calls() {
    let mut client = Client::with_replies(&[("", Next::Close)]);
    client.receive("x");
    client.receive("y");
    client.half_close();
    client.send(1);
    client.time_out();
    client.drain();
    assert_eq!(client.calls(), ["receive x"]);
    assert_eq!(client.wants(), Wants::Closed);
}

#[test]
fn abort_with_unsent_output_closes() {
    let mut client = Client::with_replies(&[("abc", Next::Read)]);
    client.receive("x");
    client.session.abort();
    assert_eq!(client.wants(), Wants::Closed);
}

#[test]
fn reporter_receives_each_work_unit() {
    let mut client = Client::with_replies(&[("a", Next::Read)]);
    client.receive("x");
    assert_eq!(client.reporter.recorded, ["receive x", "end"]);
}
