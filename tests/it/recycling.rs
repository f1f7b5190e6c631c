//! Recycled workers are replaced, and no client notices.

use std::thread;
use std::time::{Duration, Instant};

use crate::log_capture::Record;
use crate::support::{DEADLINE, Server};

on_every_class_and_tokio!(
    recycling_by_requests_loses_nothing,
    recycling_by_age_loses_nothing,
    ; tokio alone:
    recycling_by_memory_loses_nothing,
);

on_every_class_slowly!(recycling_by_memory_loses_nothing,);

/// Sends requests from two clients until `count` workers have been recycled. Each must be answered.
#[track_caller]
pub fn serve_until_recycled(server: &Server, count: usize) -> Vec<Record> {
    let end = Instant::now() + DEADLINE;
    let recycled = || server.records_of("worker exited");
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while recycled().len() < count {
                    assert!(Instant::now() < end, "{} workers recycled", recycled().len());
                    assert_eq!(server.get("/").text(), "Hello, world!\n");
                }
            });
        }
    });
    for record in recycled() {
        assert_eq!(record.text("reason"), Some("recycled"), "{record:?}");
        assert_eq!(record.number("code"), Some(0), "{record:?}");
    }
    recycled()
}

fn recycling_by_requests_loses_nothing(class: &str) {
    let flags = ["-k", class, "-w", "2", "--max-requests", "20", "--max-requests-jitter", "10"];
    let server = Server::start(&flags);
    serve_until_recycled(&server, 8);
    server.wait_workers(2);
    server.finish();
}

fn recycling_by_age_loses_nothing(class: &str) {
    let begun = Instant::now();
    let server = Server::start(&["-k", class, "-w", "2", "--max-lifetime", "1s"]);
    for exited in serve_until_recycled(&server, 3) {
        assert!(exited.seen - begun >= Duration::from_secs(1));
    }
    server.finish();
}

fn recycling_by_memory_loses_nothing(class: &str) {
    let server = Server::start(&["-k", class, "-w", "2", "--max-memory", "100M"]);
    let before = server.wait_workers(2);
    assert_eq!(server.get("/leak?mb=150").status(), 200);
    for exited in serve_until_recycled(&server, 1) {
        let large =
            server.wait_for("the memory warning", |r| r.message() == "worker exceeds max_memory");
        assert_eq!(large.pid(), exited.pid());
        assert!(large.number("memory_bytes") > Some(100 << 20), "{large:?}");
        let victim = before.iter().find(|worker| Some(worker.pid) == exited.pid());
        server.wait_replaced(*victim.expect("an initial worker"));
    }
    server.wait_workers(2);
    assert_eq!(server.records_of("worker exceeds max_memory").len(), 1);
    expect_never_fewer_than(&server, 2);
    server.finish();
}

/// Asserts that, since the first `count` were ready, at least so many workers were always ready and
/// not draining.
#[track_caller]
pub fn expect_never_fewer_than(server: &Server, count: usize) {
    let mut serving = Vec::new();
    let mut complete = false;
    for record in server.records() {
        match (record.message(), record.pid()) {
            ("worker ready", Some(pid)) => serving.push(pid),
            ("worker draining" | "worker exited", Some(pid)) => {
                serving.retain(|other| *other != pid);
            }
            _ => continue,
        }
        complete |= serving.len() == count;
        assert!(!complete || serving.len() >= count, "too few after {record:?}");
    }
}
