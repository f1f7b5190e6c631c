//! How a server stops: gracefully, quickly, early, or after its master was killed.

use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use crate::example::example;
use crate::launch::Launch;
use crate::proc::becomes_true;
use crate::support::{Exit, Server};

on_every_class_and_tokio!(
    term_finishes_slow_request,
    term_answers_queued_clients,
    term_is_not_delayed_by_idle_connections,
    term_waits_for_partial_head_until_its_timeout,
    second_term_changes_nothing,
    term_to_process_group_drains,
    int_ends_a_drain,
    int_and_quit_are_quick,
    stop_leaves_nothing_behind,
    signal_right_after_start_is_not_lost,
    killed_master_idle_workers_exit,
    killed_master_busy_worker_finishes,
    ; except tokio:
    drain_without_idle_time_answers_what_has_arrived_before,
);

fn term_finishes_slow_request(class: &str) {
    let mut server = Server::start(&["-k", class, "-w", "2"]);
    let begun = Instant::now();
    let mut client = server.begin("/sleep?ms=1500");
    server.signal(Signal::SIGTERM);
    assert_eq!(client.answer().status(), 200);
    assert!(begun.elapsed() >= Duration::from_millis(1500));
    client.expect_end();
    server.expect_clean_exit();
    assert_eq!(server.records_of("stopping").len(), 1);
    assert_eq!(server.records_of("stopped").len(), 1);
    for exited in server.records_of("worker exited") {
        assert_eq!(exited.text("reason"), Some("requested"), "{exited:?}");
        assert_eq!(exited.number("code"), Some(0), "{exited:?}");
    }
}

fn term_answers_queued_clients(class: &str) {
    expect_queue_answered(Server::start(&["-k", class, "--threads", "1"]));
}

/// Asserts that clients queued behind a slow request are answered when the server stops.
pub fn expect_queue_answered(mut server: Server) {
    let mut busy = server.begin("/sleep?ms=1000");
    let mut queued: Vec<_> = (0..8).map(|_| server.connect()).collect();
    for client in &mut queued {
        client.ask("/");
    }
    server.signal(Signal::SIGTERM);
    assert_eq!(busy.answer().status(), 200);
    for client in &mut queued {
        assert_eq!(client.answer().text(), "Hello, world!\n");
    }
    server.expect_clean_exit();
}

fn term_is_not_delayed_by_idle_connections(class: &str) {
    let flags = ["-k", class, "--keep-alive", "60s", "--header-timeout", "60s"];
    let mut server = Server::start(&flags);
    // One client was answered, the other has sent nothing.
    let mut answered = server.connect();
    answered.get("/");
    let mut silent = server.connect();
    server.signal(Signal::SIGTERM);
    // Far below the 30 s of `graceful_timeout`.
    assert_eq!(server.wait_exit_within(Duration::from_secs(15)), Some(Exit::Code(0)));
    answered.rest();
    silent.rest();
    server.expect_clean_exit();
}

fn drain_without_idle_time_answers_what_has_arrived_before(class: &str) {
    let Some(program) = example("zero_drain") else { return };
    let flags = ["-k", class, "-w", "1", "--threads", "1"];
    let server = Launch::by(&[program.to_str().unwrap()], &flags).start();
    let worker = server.wait_workers(1)[0];
    let mut client = server.connect();
    server.wait_taken(&client);
    let mut busy = (class == "mio").then(|| server.connect());
    if let Some(busy) = &busy {
        server.wait_taken(busy);
    }
    // The worker finds the signal and a request at once.
    kill(worker.pid, Signal::SIGSTOP).unwrap();
    match &mut busy {
        Some(busy) => busy.ask("/long_sleep"),
        None => client.ask("/"),
    }
    kill(worker.pid, Signal::SIGTERM).unwrap();
    kill(worker.pid, Signal::SIGCONT).unwrap();
    if let Some(mut busy) = busy {
        server.wait_taken(&busy);
        client.ask("/"); // while it sleeps
        assert_eq!(busy.answer().text(), "answered\n");
    }
    assert_eq!(client.answer().text(), "answered\n");
    client.expect_end();
    server.wait_exited(worker.pid);
    server.finish();
}

fn term_waits_for_partial_head_until_its_timeout(class: &str) {
    let mut server = Server::start(&["-k", class, "--header-timeout", "1s"]);
    let mut half = server.connect();
    half.send("GET / HTTP/1.1\r\nHos");
    server.wait_taken(&half);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit_within(Duration::from_secs(15)), Some(Exit::Code(0)));
    half.rest();
    server.expect_clean_exit();
}

fn second_term_changes_nothing(class: &str) {
    let mut server = Server::start(&["-k", class]);
    let mut client = server.begin("/sleep?ms=2000");
    server.signal(Signal::SIGTERM);
    server.wait_for("the stop", |record| record.message() == "stopping");
    server.signal(Signal::SIGTERM);
    assert_eq!(client.answer().status(), 200);
    server.expect_clean_exit();
}

fn term_to_process_group_drains(class: &str) {
    let mut server = Server::start(&["-k", class, "-w", "2"]);
    let mut client = server.begin("/sleep?ms=800");
    server.signal_group(Signal::SIGTERM);
    assert_eq!(client.answer().status(), 200);
    server.expect_clean_exit();
}

fn int_ends_a_drain(class: &str) {
    let mut server = Server::start(&["-k", class]);
    let mut client = server.begin("/sleep?ms=60000");
    server.signal(Signal::SIGTERM);
    server.wait_for("the stop", |record| record.message() == "stopping");
    server.signal(Signal::SIGINT);
    server.expect_clean_exit();
    client.expect_end();
}

fn int_and_quit_are_quick(class: &str) {
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        let mut server = Server::start(&["-k", class, "-w", "2"]);
        let mut client = server.begin("/sleep?ms=60000");
        server.signal(signal);
        server.expect_clean_exit();
        client.expect_end();
    }
    // A terminal sends INT to the whole process group.
    let mut server = Server::start(&["-k", class, "-w", "2"]);
    server.signal_group(Signal::SIGINT);
    server.expect_clean_exit();
}

fn stop_leaves_nothing_behind(class: &str) {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let launch = Launch::new(&["-k", class, "-w", "2"]);
        let pidfile = launch.path("pid");
        let mut server = launch.arg("--pid").arg(&pidfile).start();
        let written = std::fs::read_to_string(&pidfile).unwrap();
        assert_eq!(written.trim(), server.pid.to_string());
        // A connection that the server closes stays at its port in TIME-WAIT.
        server.connect().try_get_last("/").unwrap();
        server.signal(signal);
        assert_eq!(server.wait_exit(), Exit::Code(0));
        TcpListener::bind(server.address()).unwrap();
        assert!(!server.path("pid").exists());
        let left: Vec<_> = server.path("").read_dir().unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        server.expect_clean_exit();
    }
}

fn signal_right_after_start_is_not_lost(class: &str) {
    // With three classes that makes 69 tries.
    for attempt in (0..67).step_by(3) {
        let signal = if attempt % 4 == 3 { Signal::SIGINT } else { Signal::SIGTERM };
        let server = Launch::new(&["-k", class, "-w", "2"]).spawn();
        thread::sleep(Duration::from_micros(attempt * 1500));
        server.signal(signal);
        let exit = server.wait_exit();
        let died = Exit::Signal(signal as i32);
        assert!(exit == Exit::Code(0) || exit == died, "{exit:?} in attempt {attempt}");
        server.wait_no_survivors();
    }
}

fn killed_master_idle_workers_exit(class: &str) {
    let server = Server::start(&["-k", class, "-w", "4"]);
    server.wait_workers(4);
    server.get("/");
    server.signal(Signal::SIGKILL);
    assert_eq!(server.wait_exit(), Exit::Signal(9));
    let gone = becomes_true(Duration::from_secs(5), || server.survivors().is_empty());
    assert!(gone, "{:?}", server.survivors());
    TcpListener::bind(server.address()).unwrap();
}

fn killed_master_busy_worker_finishes(class: &str) {
    let server = Server::start(&["-k", class, "-w", "2"]);
    let mut client = server.begin("/sleep?ms=700");
    server.signal(Signal::SIGKILL);
    assert_eq!(client.answer().status(), 200);
    server.wait_no_survivors();
}

#[test]
fn stop_during_boot_does_not_wait() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let flags = ["-w", "2", "--boot-timeout", "120s", "--graceful-timeout", "1s"];
        let mut server = Launch::new(&flags).env("DEMO_BOOT_SLEEP_MS", "60000").spawn();
        server.wait_for("a start", |record| record.message() == "worker started");
        server.signal(signal);
        server.expect_clean_exit();
    }
}
