//! `/v1/events`: the master's records by their numbers, stored or as they happen.

use std::io::ErrorKind;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::DEADLINE;
use crate::client::Client;
use crate::control::{Controlled, pid_of};
use crate::launch::Launch;
use crate::proc::wait_until;

/// One event.
#[derive(Clone, Debug)]
struct Event {
    id: u64,
    kind: String,
    data: Value,
}

impl Event {
    fn parse(text: &str) -> Self {
        let field = |name: &str| {
            let prefix = format!("{name}: ");
            text.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap_or_default().to_owned()
        };
        let data = serde_json::from_str(&field("data"))
            .unwrap_or_else(|error| panic!("{error} in {text:?}"));
        Self { id: field("id").parse().unwrap(), kind: field("event"), data }
    }

    fn message(&self) -> &str {
        self.data["message"].as_str().unwrap_or_default()
    }
}

impl Controlled {
    /// Returns the stored events.
    fn events(&self, query: &str, fields: &[(&str, &str)]) -> Vec<Event> {
        let answer = self.ask_metrics(&format!("/v1/events?follow=0{query}"), fields);
        assert_eq!(answer.head.get("content-type"), Some("text/event-stream"));
        let text = answer.text();
        text.split("\n\n").filter(|it| !it.is_empty()).map(Event::parse).collect()
    }

    /// Begins to follow events.
    fn follow(&self, query: &str) -> Follower {
        let mut client = self.connect();
        // In HTTP/1.0, the body has no chunks.
        client.send(format!("GET /v1/events?{query} HTTP/1.0\r\n\r\n"));
        let mut follower = Follower(client);
        let head = follower.until("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        follower
    }
}

/// A client that reads events as they happen.
struct Follower(Client);

impl Follower {
    /// Returns what comes before this mark, or none at the end of the stream.
    fn until(&mut self, mark: &str) -> Option<String> {
        loop {
            let text = String::from_utf8_lossy(&self.0.input).into_owned();
            if let Some(at) = text.find(mark) {
                self.0.input.drain(..at + mark.len());
                return Some(text[..at].to_owned());
            }
            if let Err(error) = self.0.fill() {
                let kind = error.kind();
                assert!(
                    matches!(kind, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset),
                    "nothing comes: {error}"
                );
                return None;
            }
        }
    }

    /// Returns the next event, or none at the end of the stream.
    fn next(&mut self) -> Option<Event> {
        loop {
            let text = self.until("\n\n")?;
            if !text.starts_with(": ") {
                return Some(Event::parse(&text));
            }
        }
    }

    /// Returns the events up to one with this message.
    fn until_message(&mut self, message: &str) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let event = self.next().unwrap();
            events.push(event.clone());
            if event.message() == message {
                return events;
            }
        }
    }
}

fn assert_gapless(events: &[Event]) {
    for pair in events.windows(2) {
        assert_eq!(pair[1].id, pair[0].id + 1, "{pair:?}");
    }
    for event in events {
        assert_eq!((event.kind.as_str(), &event.data["seq"]), ("record", &event.id.into()));
    }
}

#[test]
fn stored_events_begin_after_the_cursor() {
    let it = Controlled::start(&["-w", "2"]);
    let all = it.events("", &[]);
    assert_gapless(&all);
    let ready = all.iter().find(|event| event.message() == "worker ready").unwrap();
    assert!(ready.data["pid"].is_i64() && ready.data["slot"].is_i64(), "{ready:?}");
    assert_eq!(ready.data["level"], "INFO");
    assert!(ready.data["time"].as_str().unwrap().ends_with('Z'), "{ready:?}");
    let last = all.last().unwrap().id;
    assert_eq!(it.status()["last_event"], last);
    let ids = |events: Vec<Event>| events.iter().map(|event| event.id).collect::<Vec<_>>();
    assert_eq!(ids(it.events("&last=2", &[])), [last - 1, last]);
    assert_eq!(ids(it.events(&format!("&after={}", last - 1), &[])), [last]);
    assert!(it.events(&format!("&after={last}"), &[]).is_empty());
    // A browser that connects again repeats its query.
    let seen = (last - 1).to_string();
    assert_eq!(ids(it.events("&after=1", &[("Last-Event-ID", &seen)])), [last]);
    let foreign = it.events("&after=7", &[]);
    assert_eq!((foreign[0].kind.as_str(), foreign[0].id), ("gap", all[0].id - 1));
    assert_eq!(foreign[0].data["reason"], "other_master");
    assert_eq!(foreign[0].data["from"], 8);
    assert_eq!(ids(foreign[1..].to_vec()), ids(all));
    it.server.finish();
}

#[test]
fn follower_gets_each_record_over_a_reload() {
    let it = Controlled::start(&["-w", "2"]);
    let stored = it.events("", &[]);
    let mut follower = it.follow("");
    let mut resumed = it.follow(&format!("after={}", stored[0].id));
    it.server.signal(Signal::SIGHUP);
    let events = follower.until_message("reload complete");
    assert_eq!(events[0].id, stored.last().unwrap().id + 1, "only what is new");
    assert_gapless(&events);
    assert!(events.iter().any(|event| event.message() == "worker ready"), "{events:?}");
    let resumed = resumed.until_message("reload complete");
    assert_eq!(resumed[0].id, stored[1].id);
    assert_gapless(&resumed);
    let pool = it.wait_status("the old workers have exited", |pool| {
        pool["workers"].as_array().unwrap().len() == 2
    });
    // The log may not have been read as far yet.
    let victim = pid_of(&pool["workers"][0]);
    kill(victim, Signal::SIGKILL).unwrap();
    // An old worker's exit may come after the end of the reload.
    let mut more = Vec::new();
    while more.last().is_none_or(|event: &Event| event.data["pid"] != victim.as_raw()) {
        more.extend(follower.until_message("worker exited"));
    }
    assert_gapless(&[&events[..], &more].concat());
    it.server.finish();
}

#[test]
fn follower_of_old_master_goes_on_at_the_new_one() {
    let it = Controlled::start(&["-w", "2"]);
    let mut follower = it.follow("last=1");
    it.server.signal(Signal::SIGUSR2);
    let mut events = follower.until_message("new master ready");
    let mark = it.server.mark();
    it.server.signal(Signal::SIGTERM);
    while let Some(event) = follower.next() {
        events.push(event);
    }
    assert_gapless(&events);
    let seen = events.last().unwrap().id;
    it.server.wait_for_new_record(mark, "the new master listens", |record| {
        record.message() == "control interface listening"
    });
    let mut follower = it.follow(&format!("after={seen}"));
    let gap = follower.next().unwrap();
    assert_eq!((gap.kind.as_str(), &gap.data["reason"]), ("gap", &"other_master".into()));
    assert_eq!(gap.data["from"], seen + 1);
    let events = follower.until_message("upgrade complete");
    assert_eq!(events[0].id, gap.id + 1);
    assert_gapless(&events);
    assert!(events.iter().any(|event| event.message() == "all workers ready"), "{events:?}");
    let new = pid_of(&it.status());
    kill(new, Signal::SIGTERM).unwrap();
    it.server.wait_no_survivors();
}

#[test]
#[ignore = "slow"]
fn overwritten_events_are_a_gap() {
    let it = Controlled::start(&[]);
    let first = it.events("", &[])[0].id;
    wait_until("the ring is full", || {
        for _ in 0..16 {
            it.server.signal(Signal::SIGUSR1);
            // The master handles the signal first, so that the next one is not merged with it.
            assert_eq!(it.connect().get("/healthz").status(), 200);
        }
        it.status()["last_event"].as_u64().unwrap() > first + 1100
    });
    let events = it.events(&format!("&after={first}"), &[]);
    assert_eq!(events[0].kind, "gap");
    assert_eq!(events[0].data["reason"], "overwritten");
    assert_eq!(events[0].data["from"], first + 1);
    assert_eq!(events[0].data["to"], events[0].id);
    assert_eq!(events[1].id, events[0].id + 1);
    assert_eq!(events.len(), 1025);
    assert_gapless(&events[1..]);
    it.server.finish();
}

#[test]
#[ignore = "slow"]
fn follower_that_reads_nothing_is_cut_off() {
    let it = Controlled::start(&[]);
    let silent: Vec<_> = (0..16).map(|_| it.follow("")).collect();
    // Their sockets' buffers are full after some hundred records, and 10 s later they are closed.
    let deadline = Instant::now() + 3 * DEADLINE;
    loop {
        it.server.signal(Signal::SIGUSR1);
        let mut client = it.connect();
        client.send("GET /v1/events HTTP/1.0\r\n\r\n");
        if Follower(client).until("\r\n\r\n").is_some_and(|head| head.contains(" 200 ")) {
            break;
        }
        assert!(Instant::now() < deadline, "none is closed");
    }
    let last = it.status()["last_event"].as_u64().unwrap();
    let read = |mut follower: Follower| {
        let mut events = Vec::new();
        while events.last().is_none_or(|event: &Event| event.id < last) {
            let Some(event) = follower.next() else { return Some(events) };
            events.push(event);
        }
        None
    };
    let cut: Vec<_> = silent.into_iter().filter_map(read).collect();
    assert!(!cut.is_empty());
    for events in cut {
        assert_gapless(&events);
        assert!(events.len() > 10, "{events:?}");
    }
    it.server.finish();
}

#[test]
fn follower_that_finds_no_place_is_refused() {
    let it = Controlled::start(&[]);
    let mut followers: Vec<_> = (0..16).map(|_| it.follow("")).collect();
    let answer = it.connect().get("/v1/events");
    assert_eq!(answer.status(), 503);
    assert_eq!(it.events("&last=1", &[]).len(), 1, "stored events need no place");
    assert_eq!(it.status()["ready"], true);
    followers.pop();
    wait_until("the place is free", || {
        let mut client = it.connect();
        client.send("GET /v1/events HTTP/1.0\r\n\r\n");
        Follower(client).until("\r\n\r\n").is_some_and(|head| head.contains(" 200 "))
    });
    it.server.signal(Signal::SIGUSR1);
    for follower in &mut followers {
        assert_eq!(follower.next().unwrap().message(), "logs reopened");
    }
    it.server.finish();
}

/// Any client of `metrics_bind` may read the events; the log is the operator's own.
#[test]
fn events_have_no_arguments_of_programs() {
    let launch = Launch::new(&["-k", "exec"]).program(&["sh", "-c", "sleep 1000", "secret-word"]);
    let it = Controlled::of(launch);
    let events = it.events("", &[]);
    let started = events.iter().find(|event| event.message() == "master started").unwrap();
    assert_eq!(started.data["command"], "sh …");
    for path in ["/v1/events?follow=0", "/", "/v1/status"] {
        assert!(!it.ask_metrics(path, &[]).text().contains("secret-word"), "{path}");
    }
    assert!(it.server.lines().iter().any(|line| line.contains("secret-word")));
    it.server.finish();
}

#[test]
fn invalid_requests_for_events_are_refused() {
    let it = Controlled::start(&[]);
    for query in ["after=x", "last=-1", "follow=2", "after=1&last=1"] {
        let answer = it.ask_metrics(&format!("/v1/events?{query}"), &[]);
        assert_eq!(answer.status(), 400, "{query}");
    }
    let status = |fields: &[(&str, &str)]| it.ask_metrics("/v1/events?follow=0", fields).status();
    assert_eq!(status(&[("Last-Event-ID", "x")]), 400);
    assert_eq!(status(&[("Host", "evil.example")]), 403);
    assert_eq!(status(&[("Origin", "http://evil.example")]), 403);
    it.server.finish();
}
