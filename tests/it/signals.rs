//! Signals that change the number of workers, and signals that change nothing.

use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use crate::launch::Launch;
use crate::os::Signals;
use crate::proc::children;
use crate::support::Server;

on_every_class_and_tokio!(
    workers_ignore_master_signals,
    workers_killed_by_real_time_signals_are_reaped
);

fn workers_ignore_master_signals(class: &str) {
    let server = Server::start(&["-k", class]);
    let worker = server.workers()[0];
    for signal in [
        Signal::SIGHUP,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
        Signal::SIGWINCH,
        Signal::SIGPIPE,
        Signal::SIGCHLD,
    ] {
        kill(worker.pid, signal).unwrap();
        assert_eq!(server.answering_pid(), worker.pid, "{signal}");
    }
    assert!(server.records_of("worker exited").is_empty());
    server.finish();
}

/// Many tools know no name of such a signal. All workers at once: a child that is not reaped would hide
/// behind the others.
fn workers_killed_by_real_time_signals_are_reaped(class: &str) {
    let number = libc::SIGRTMIN() + 1;
    let server = Server::start(&["-k", class, "-w", "3"]);
    let workers = server.wait_workers(3);
    let pids: Vec<_> = workers.iter().map(|worker| worker.pid.to_string()).collect();
    let kill = format!("kill -{number} {}", pids.join(" "));
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    for worker in workers {
        server.wait_replaced(worker);
    }
    let exits = server.records_of("worker exited");
    let name = format!("signal {number}");
    assert_eq!(exits.len(), 3);
    assert!(exits.iter().all(|exit| exit.text("signal") == Some(&name)), "{exits:?}");
    assert_eq!(children(server.pid).len(), 3);
    server.finish();
}

#[test]
fn ttin_and_ttou_change_the_worker_count() {
    let server = Server::start(&["-k", "mio"]);
    for count in [2, 3] {
        server.signal(Signal::SIGTTIN);
        let workers = server.wait_workers(count);
        assert!(workers.iter().map(|worker| worker.slot).eq(0..count as i64));
    }
    for count in [2, 1] {
        server.signal(Signal::SIGTTOU);
        server.wait_workers(count);
    }
    for exited in server.records_of("worker exited") {
        assert_eq!(exited.text("reason"), Some("scaled_down"));
        assert_eq!(exited.number("code"), Some(0));
    }
    assert_eq!(children(server.pid).len(), 1);
    server.serve_for(Duration::from_millis(50));
    server.finish();
}

#[test]
fn ttou_keeps_the_last_worker() {
    let server = Server::start(&["-k", "mio"]);
    let only = server.workers()[0];
    for _ in 0..3 {
        server.signal(Signal::SIGTTOU);
        assert!(
            !server.sees_record(Duration::from_millis(300), |r| r.message() == "worker exited")
        );
    }
    assert_eq!(server.answering_pid(), only.pid);
    // Signals at the minimum are not remembered: the next TTIN adds a worker.
    server.signal(Signal::SIGTTIN);
    server.wait_workers(2);
    server.finish();
}

#[test]
fn scaled_down_worker_finishes_its_request() {
    let server = Server::start(&["-k", "sync", "-w", "2"]);
    server.wait_workers(2);
    let mut one = server.begin("/sleep?ms=800");
    let mut other = server.begin("/sleep?ms=800");
    server.signal(Signal::SIGTTOU);
    assert_eq!(one.answer().status(), 200);
    assert_eq!(other.answer().status(), 200);
    server.wait_workers(1);
    server.finish();
}

#[test]
fn killed_worker_above_initial_count_is_replaced() {
    let server = Server::start(&["-k", "mio"]);
    server.signal(Signal::SIGTTIN);
    let second = server.wait_workers(2)[1];
    kill(second.pid, Signal::SIGKILL).unwrap();
    server.wait_replaced(second);
    server.finish();
}

#[test]
fn master_ignores_meaningless_signals() {
    let server = Server::start(&["-k", "mio"]);
    for signal in [Signal::SIGUSR1, Signal::SIGWINCH, Signal::SIGPIPE, Signal::SIGCHLD] {
        server.signal(signal);
        assert_eq!(server.get("/").status(), 200, "{signal}");
    }
    // One more exchange with the master shows that it runs.
    server.signal(Signal::SIGTTIN);
    server.wait_workers(2);
    server.finish();
}

#[test]
fn inherited_signal_state_is_reset() {
    let server = Launch::new(&["-k", "mio", "-w", "2"]).signals(Signals::Careless).start();
    let victim = server.wait_workers(2)[0];
    kill(victim.pid, Signal::SIGKILL).unwrap();
    server.wait_replaced(victim);
    server.finish();
}
