//! A graceful stop while clients connect, of a server without privileges: each client that could
//! connect is answered, and new clients are refused at once.

use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use nix::sys::signal::{Signal, kill};

use crate::launch::Launch;
use crate::load::{Load, Target, is_refusal};
use crate::proc::wait_until;
use crate::support::{DEADLINE, Server};

on_every_class_and_tokio!(
    stops_on_ipv4_lose_nothing,
    stops_on_ipv6_lose_nothing,
    stops_on_unix_path_lose_nothing,
    stops_on_abstract_name_lose_nothing,
    stops_with_reuse_port_lose_nothing,
    stopping_server_refuses_new_clients_at_once,
    busy_worker_stops_beside_new_clients,
);

/// How often a server is stopped. Each stop is a chance to lose a client.
const STOPS: usize = 4;

fn stops_on_ipv4_lose_nothing(class: &str) {
    expect_nothing_lost(class, ipv4);
}

fn stops_on_ipv6_lose_nothing(class: &str) {
    expect_nothing_lost(class, ipv6);
}

fn stops_on_unix_path_lose_nothing(class: &str) {
    expect_nothing_lost(class, unix_path);
}

fn stops_on_abstract_name_lose_nothing(class: &str) {
    expect_nothing_lost(class, abstract_name);
}

fn stops_with_reuse_port_lose_nothing(class: &str) {
    expect_nothing_lost(class, reuse_port);
    expect_nothing_lost(class, |launch| ipv6(launch.arg("--reuse-port")));
}

type Listen = fn(Launch) -> (Launch, Target);

fn ipv4(launch: Launch) -> (Launch, Target) {
    let address = SocketAddr::from(([127, 0, 0, 1], launch.port()));
    (launch, Target::Tcp(address))
}

fn ipv6(launch: Launch) -> (Launch, Target) {
    let address = SocketAddr::from((Ipv6Addr::LOCALHOST, launch.port()));
    (launch.unbound().arg("--bind").arg(address.to_string()), Target::Tcp(address))
}

fn unix_path(launch: Launch) -> (Launch, Target) {
    let path = launch.dir().join("sock");
    (launch.unbound().arg("--bind").arg(format!("unix:{}", path.display())), Target::Path(path))
}

fn abstract_name(launch: Launch) -> (Launch, Target) {
    let name = format!("ostler-test-{}-{}", std::process::id(), launch.port());
    (launch.unbound().arg("--bind").arg(format!("unix:@{name}")), Target::Abstract(name))
}

fn reuse_port(launch: Launch) -> (Launch, Target) {
    ipv4(launch.arg("--reuse-port"))
}

/// Returns the ways to listen that this machine has.
fn usable(ways: &[Listen]) -> Vec<Listen> {
    let has_ipv6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    let is_ipv6 =
        |way: &Listen| matches!(way(Launch::new(&[])).1, Target::Tcp(address) if address.is_ipv6());
    ways.iter().filter(|way| has_ipv6 || !is_ipv6(way)).copied().collect()
}

fn start(class: &str, listen: Listen) -> (Server, Target) {
    let (launch, target) = listen(Launch::new(&["-k", class, "-w", "3"]).unprivileged());
    (launch.start(), target)
}

fn expect_nothing_lost(class: &str, listen: Listen) {
    let ways = usable(&[listen]);
    for listen in ways.repeat(STOPS) {
        let (mut server, target) = start(class, listen);
        let load = Load::crowd_until_refused(target);
        load.wait_answers(100);
        server.signal(Signal::SIGTERM);
        load.wait_refused();
        server.expect_clean_exit();
        assert_eq!(server.records_of("failed to stop listening").len(), 0);
    }
}

fn stopping_server_refuses_new_clients_at_once(class: &str) {
    thread::scope(|scope| {
        for listen in usable(&[ipv4, ipv6, unix_path, abstract_name, reuse_port]) {
            scope.spawn(move || expect_refusal(class, listen));
        }
    });
}

#[track_caller]
fn expect_refusal(class: &str, listen: Listen) {
    let (mut server, target) = start(class, listen);
    let mut busy = target.connect().unwrap();
    busy.ask("/sleep?ms=2000");
    let mut probe = target.connect().unwrap();
    probe.get("/"); // the request before it has been read, or is in a queue
    server.signal(Signal::SIGTERM);
    server.wait_for("the stop", |record| record.message() == "stopping");
    // Whatever the master does later, it has done already.
    server.signal(Signal::SIGSTOP);
    for _ in 0..20 {
        let refused = target.connect().is_err_and(|error| is_refusal(&error));
        assert!(refused, "{target:?}");
    }
    server.signal(Signal::SIGCONT);
    assert_eq!(busy.answer().status(), 200);
    server.expect_clean_exit();
}

/// There is always another client, so the worker never sleeps.
fn busy_worker_stops_beside_new_clients(class: &str) {
    const CLIENTS: usize = 100;
    let server = Server::start(&["-k", class, "--threads", "1", "--graceful-timeout", "600"]);
    let path = if class == "tokio" { "/block?ms=5" } else { "/sleep?ms=5" };
    let (answers, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let worker = server.workers()[0];
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let is_answered = server.try_get(path).is_ok();
                    answers.fetch_add(usize::from(is_answered), Ordering::Relaxed);
                }
            });
        }
        wait_until("answers", || answers.load(Ordering::Relaxed) > CLIENTS);
        kill(worker.pid, Signal::SIGTERM).unwrap();
        let exits = server.sees_record(DEADLINE, |record| record.is("worker exited", worker.pid));
        is_over.store(true, Ordering::Relaxed);
        assert!(exits, "it never exits");
    });
    assert_eq!(server.records_of("worker exited")[0].number("code"), Some(0));
    server.finish();
}
