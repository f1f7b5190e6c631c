//! Classes without contract code: a function behind `FnClass`, and a class that never polls for a
//! stop. They stop, hang and are recycled like any other class.

use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use crate::client::Client;
use crate::example::example;
use crate::launch::{Launch, unlisten};
use crate::proc::{becomes_true, wait_until};
use crate::recycling::{expect_never_fewer_than, serve_until_recycled};
use crate::stopping::expect_queue_answered;
use crate::support::{Exit, Server};

macro_rules! on_fn_classes {
    ($($behaviour:ident),+ $(,)?) => {
        on_class!(plain: $($behaviour),+);
        on_slow_class!(unaware: $($behaviour),+);
    };
}

on_fn_classes!(
    killed_master_idle_workers_exit_and_next_can_start,
    killed_master_busy_worker_finishes,
    killed_master_stuck_worker_exits_in_the_end,
    term_finishes_slow_request,
    term_answers_queued_clients,
    term_answers_queued_clients_of_abstract_name,
    term_ends_at_graceful_timeout,
    int_is_quick,
    stuck_worker_is_replaced,
    idle_worker_is_left_alone,
    recycling_by_age_loses_nothing,
    recycling_by_memory_loses_nothing,
    worker_sigterm_finishes_request_and_is_replaced,
    reload_loses_nothing,
);

#[test]
fn client_of_a_function_has_a_record() {
    let flags = ["--access-logfile", "access", "--access-logformat", "json"];
    let Some(server) = start("plain", &flags) else { return };
    assert_eq!(server.get("/").status(), 200);
    let text = || fs::read_to_string(server.path("access")).unwrap_or_default();
    wait_until("its record", || text().ends_with('\n'));
    let record: serde_json::Value = serde_json::from_str(&text()).unwrap();
    assert_eq!((&record["kind"], &record["method"]), (&"other".into(), &"WORK".into()));
    assert_eq!((&record["client"], &record["status"]), (&"127.0.0.1".into(), &200.into()));
    assert!(record["path"].as_str().unwrap().starts_with("client 127.0.0.1:"), "{record}");
    server.finish();
}

#[test]
fn stop_taken_by_another_thread_is_heard_at_once() {
    let stop_time = || {
        let mut server = start("helped", &["--timeout", "120s"])?;
        let begun = Instant::now();
        server.signal(Signal::SIGTERM);
        server.expect_clean_exit();
        Some(begun.elapsed())
    };
    // One try may be slow for other reasons. A thread that is not woken looks again after a second.
    let Some(fastest) = (0..5).map(|_| stop_time()).min().flatten() else { return };
    assert!(fastest < Duration::from_millis(700), "{fastest:?}");
}

/// Starts the example, or returns `None` if it was not built.
#[track_caller]
fn start(class: &str, flags: &[&str]) -> Option<Server> {
    Some(launch(class, flags)?.start())
}

fn launch(class: &str, flags: &[&str]) -> Option<Launch> {
    let program = example("naive_class")?;
    let flags = [&["-k", class][..], flags].concat();
    Some(Launch::by(&[program.to_str().unwrap()], &flags))
}

fn killed_master_idle_workers_exit_and_next_can_start(class: &str) {
    let Some(server) = start(class, &["-w", "4"]) else { return };
    server.wait_workers(4);
    server.get("/");
    server.signal(Signal::SIGKILL);
    assert_eq!(server.wait_exit(), Exit::Signal(9));
    // Far below the 30 s of `graceful_timeout`.
    let gone = becomes_true(Duration::from_secs(5), || server.survivors().is_empty());
    assert!(gone, "{:?}", server.survivors());
    unlisten(TcpListener::bind(server.address()).unwrap());
    let address = server.address().to_string();
    let second = launch(class, &["-b", &address]).unwrap().unbound().start();
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    second.finish();
}

fn killed_master_busy_worker_finishes(class: &str) {
    let Some(server) = start(class, &["-w", "2"]) else { return };
    let mut client = server.begin("/sleep?ms=700");
    server.signal(Signal::SIGKILL);
    assert_eq!(client.answer().status(), 200);
    assert!(becomes_true(Duration::from_secs(10), || server.survivors().is_empty()));
}

fn killed_master_stuck_worker_exits_in_the_end(class: &str) {
    let Some(server) = start(class, &["-t", "0", "--graceful-timeout", "1s"]) else { return };
    let mut client = server.begin("/sleep?ms=120000");
    let killed = Instant::now();
    server.signal(Signal::SIGKILL);
    client.expect_end();
    assert!(killed.elapsed() >= Duration::from_secs(1), "after {:?}", killed.elapsed());
    server.wait_no_survivors();
}

fn term_finishes_slow_request(class: &str) {
    let Some(mut server) = start(class, &["-w", "2"]) else { return };
    let mut client = server.begin("/sleep?ms=1000");
    server.signal(Signal::SIGTERM);
    assert_eq!(client.answer().status(), 200);
    server.expect_clean_exit();
    for exited in server.records_of("worker exited") {
        assert_eq!(exited.text("reason"), Some("requested"), "{exited:?}");
        assert_eq!(exited.number("code"), Some(0), "{exited:?}");
    }
}

fn term_answers_queued_clients(class: &str) {
    let Some(server) = start(class, &[]) else { return };
    expect_queue_answered(server);
}

fn term_answers_queued_clients_of_abstract_name(class: &str) {
    let name = format!("ostler-test-{}-{class}-queue", std::process::id());
    let Some(launch) = launch(class, &["-b", &format!("unix:@{name}")]) else { return };
    let mut server = launch.unbound().start();
    let ask = |path: &str| {
        let mut client = Client::abstract_unix(&name).unwrap();
        client.ask(path);
        client
    };
    let mut clients = vec![ask("/sleep?ms=1200")];
    clients.extend((0..8).map(|_| ask("/")));
    server.signal(Signal::SIGTERM);
    for client in &mut clients {
        assert_eq!(client.answer().status(), 200);
    }
    // Far below the 30 s of `graceful_timeout`.
    assert_eq!(server.wait_exit_within(Duration::from_secs(15)), Some(Exit::Code(0)));
    server.expect_clean_exit();
}

fn term_ends_at_graceful_timeout(class: &str) {
    let Some(mut server) = start(class, &["-t", "0", "--graceful-timeout", "1s"]) else { return };
    let mut client = server.begin("/sleep?ms=120000");
    let asked = Instant::now();
    server.signal(Signal::SIGTERM);
    server.expect_clean_exit();
    assert!(asked.elapsed() >= Duration::from_secs(1), "gave up after {:?}", asked.elapsed());
    client.expect_end();
}

fn int_is_quick(class: &str) {
    let Some(mut server) = start(class, &["-w", "2", "--abort-timeout", "60s"]) else { return };
    let mut client = server.begin("/sleep?ms=120000");
    server.signal(Signal::SIGINT);
    server.expect_clean_exit();
    client.expect_end();
}

fn stuck_worker_is_replaced(class: &str) {
    let flags = ["-w", "2", "-t", "1s", "--abort-timeout", "500ms"];
    let Some(server) = start(class, &flags) else { return };
    let workers = server.wait_workers(2);
    let begun = Instant::now();
    let mut client = server.begin("/sleep?ms=120000");
    let hung = server.serve_until("the hang", |record| record.message() == "worker hung");
    // A class that marks no clients has a last heartbeat as old as its loop takes.
    assert!(hung.seen - begun >= Duration::from_millis(750), "after {:?}", hung.seen - begun);
    assert_eq!(hung.text("cause"), Some("blocked"), "{hung:?}");
    if class == "plain" {
        let work = hung.text("work").unwrap_or_default().to_owned();
        assert!(work.ends_with(&format!(":{}", client.port())), "{hung:?}");
    }
    let victim = *workers.iter().find(|worker| Some(worker.pid) == hung.pid()).unwrap();
    let exited = server.wait_exited(victim.pid);
    assert_eq!(exited.text("reason"), Some("hung"));
    assert!(matches!(exited.text("signal"), Some("SIGABRT" | "SIGKILL")), "{exited:?}");
    server.wait_replaced(victim);
    client.expect_end();
    assert_eq!(server.records_of("worker hung").len(), 1);
    server.finish();
}

fn idle_worker_is_left_alone(class: &str) {
    let Some(server) = start(class, &["-w", "2", "-t", "1s"]) else { return };
    server.sees_record(Duration::from_secs(3), |record| record.message() == "worker hung");
    assert!(server.records_of("worker hung").is_empty());
    assert!(server.records_of("worker exited").is_empty());
    server.finish();
}

fn recycling_by_age_loses_nothing(class: &str) {
    let Some(server) = start(class, &["-w", "2", "--max-lifetime", "1s"]) else { return };
    serve_until_recycled(&server, 3);
    server.wait_workers(2);
    expect_never_fewer_than(&server, 2);
    server.finish();
}

fn recycling_by_memory_loses_nothing(class: &str) {
    let Some(server) = start(class, &["-w", "2", "--max-memory", "100M"]) else { return };
    let before = server.wait_workers(2);
    assert_eq!(server.get("/leak?mb=150").status(), 200);
    let exited = serve_until_recycled(&server, 1).swap_remove(0);
    let victim = before.iter().find(|worker| Some(worker.pid) == exited.pid());
    server.wait_replaced(*victim.expect("an initial worker"));
    server.wait_workers(2);
    expect_never_fewer_than(&server, 2);
    server.finish();
}

fn worker_sigterm_finishes_request_and_is_replaced(class: &str) {
    let Some(server) = start(class, &["-w", "2"]) else { return };
    let workers = server.wait_workers(2);
    let mut client = server.begin("/sleep?ms=1000");
    for worker in &workers {
        kill(worker.pid, Signal::SIGTERM).unwrap();
    }
    for worker in workers {
        let exited = server.serve_until("its end", |r| r.is("worker exited", worker.pid));
        assert_eq!(exited.number("code"), Some(0), "{exited:?}");
        assert_eq!(exited.text("reason"), Some("requested"), "{exited:?}");
        server.wait_replaced(worker);
    }
    // The busy worker has finished its request.
    assert_eq!(client.answer().status(), 200);
    server.finish();
}

fn reload_loses_nothing(class: &str) {
    let Some(server) = start(class, &["-w", "2"]) else { return };
    server.wait_workers(2);
    server.signal(Signal::SIGHUP);
    server.serve_until("the reload", |record| record.message() == "reload complete");
    for exited in server.records_of("worker exited") {
        assert_eq!(exited.text("reason"), Some("reload"), "{exited:?}");
    }
    server.finish();
}

#[test]
fn fn_class_counts_its_clients() {
    let flags = ["-w", "2", "--max-requests", "20", "--max-requests-jitter", "10"];
    let Some(server) = start("plain", &flags) else { return };
    serve_until_recycled(&server, 6);
    server.wait_workers(2);
    server.finish();
}
