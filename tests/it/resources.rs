//! What a server uses, and what it does if there is no more: descriptors, processes, CPU time.

use std::fs;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::launch::Launch;
use crate::os::limit_descriptors;
use crate::proc::{
    children, descriptors, descriptors_to, next_descriptor, stat, voluntary_switches, wait_until,
};
use crate::support::Server;

on_every_class_and_tokio!(
    fifty_replacements_leak_nothing,
    accept_pauses_without_descriptors,
    idle_server_sleeps,
    disconnected_client_leaks_no_descriptor,
    master_without_descriptors_recovers,
);

on_concurrent_classes!(
    accept_resumes_when_clients_disconnect,
    worker_connections_limits_accepted_clients,
);

/// Waits until a worker watches its listener: `sync` makes the descriptor for it as it first sleeps.
fn wait_watching(worker: Pid) {
    let has_epoll = || !descriptors_to(worker, "eventpoll").is_empty();
    wait_until("the worker watches its listener", has_epoll);
}

fn fifty_replacements_leak_nothing(class: &str) {
    let server = Server::start(&["-k", class, "-w", "2"]);
    let mut workers = server.wait_workers(2);
    let count = |pid: Pid| descriptors(pid).len();
    // The first of each makes the descriptors that are made only once.
    let (mut of_master, mut of_worker) = (0, 0);
    for round in 0..52 {
        let victim = workers[round % 2];
        kill(victim.pid, Signal::SIGKILL).unwrap();
        workers[round % 2] = server.wait_replaced(victim);
        assert_eq!(stat(server.pid).unwrap().threads, 1);
        if round == 1 {
            wait_watching(workers[1].pid);
            (of_master, of_worker) = (count(server.pid), count(workers[1].pid));
        }
    }
    wait_until("the last is reaped", || children(server.pid).len() == 2);
    assert!(children(server.pid).iter().all(|child| child.state != 'Z'));
    wait_until("the master holds no more than before", || count(server.pid) <= of_master);
    wait_until("nor does a worker", || count(workers[1].pid) <= of_worker);
    assert_eq!(server.workers(), workers);
    server.finish();
}

/// Returns the CPU use of a process, in percent of a CPU, measured over a second.
fn cpu_percent(pid: Pid) -> u64 {
    let before = stat(pid).unwrap().ticks;
    thread::sleep(Duration::from_secs(1));
    stat(pid).unwrap().ticks - before // a tick is a hundredth of a second
}

fn accept_pauses_without_descriptors(class: &str) {
    let server = Server::start(&["-k", class]);
    let worker = server.workers()[0];
    wait_watching(worker.pid);
    let before = descriptors(worker.pid);
    server.get("/");
    wait_until("the client is forgotten", || descriptors(worker.pid) == before);
    limit_descriptors(worker.pid, next_descriptor(worker.pid));
    let mut client = server.connect();
    client.ask("/");
    let load = cpu_percent(worker.pid);
    assert!(load < 30, "a worker that cannot accept uses {load} % of a processor");
    limit_descriptors(worker.pid, 1024);
    assert_eq!(client.answer().text(), "Hello, world!\n");
    assert_eq!(server.answering_pid(), worker.pid);
    server.finish();
}

fn accept_resumes_when_clients_disconnect(class: &str) {
    let server = Server::start(&["-k", class, "--header-timeout", "120s"]);
    let worker = server.workers()[0];
    limit_descriptors(worker.pid, next_descriptor(worker.pid) + 8);
    let clients: Vec<_> = (0..40).map(|_| server.connect()).collect();
    let load = cpu_percent(worker.pid);
    assert!(load < 30, "a worker that cannot accept uses {load} % of a processor");
    drop(clients);
    assert_eq!(server.answering_pid(), worker.pid);
    server.finish();
}

fn worker_connections_limits_accepted_clients(class: &str) {
    let flags = ["-k", class, "--worker-connections", "5", "--header-timeout", "120s"];
    let server = Server::start(&flags);
    let worker = server.workers()[0];
    let mut clients: Vec<_> = (0..5).map(|_| server.connect()).collect();
    for client in &clients {
        server.wait_taken(client);
    }
    let mut waiting: Vec<_> = (0..3).map(|_| server.connect()).collect();
    for client in &mut waiting {
        client.ask("/");
    }
    let load = cpu_percent(worker.pid);
    assert!(load < 30, "a worker that does not accept uses {load} % of a processor");
    // Each client that disconnects makes room for another.
    for client in waiting {
        clients.pop();
        let mut client = client;
        assert_eq!(client.answer().text(), "Hello, world!\n");
        clients.push(client);
    }
    drop(clients);
    server.finish();
}

fn disconnected_client_leaks_no_descriptor(class: &str) {
    let server = Server::start(&["-k", class]);
    let worker = server.workers()[0];
    wait_watching(worker.pid);
    let before = descriptors(worker.pid).len();
    for round in 0..200 {
        match round % 4 {
            0 => drop(server.get("/")),
            1 => drop(server.connect()),
            2 => server.connect().reset(),
            _ => server.connect().send("GET / HTTP/1.1\r\n"),
        }
    }
    assert_eq!(server.get("/").status(), 200);
    wait_until("all are forgotten", || descriptors(worker.pid).len() <= before);
    server.finish();
}

fn idle_server_sleeps(class: &str) {
    let server = Server::start(&["-k", class, "-w", "2"]);
    let workers = server.wait_workers(2);
    let wakes = voluntary_switches;
    server.get("/");
    // In the first half second, start-up work may still run.
    thread::sleep(Duration::from_millis(500));
    let before: Vec<u64> = workers.iter().map(|worker| wakes(worker.pid)).collect();
    let of_master = wakes(server.pid);
    thread::sleep(Duration::from_secs(2));
    let woke = wakes(server.pid) - of_master;
    assert!(woke <= 5, "the master woke {woke} times in two idle seconds");
    for (worker, before) in workers.iter().zip(before) {
        let woke = wakes(worker.pid) - before;
        // At most one heartbeat a 100 ms is written.
        assert!(woke <= 45, "{worker:?} woke {woke} times in two idle seconds");
    }
    server.finish();
}

fn master_without_descriptors_recovers(class: &str) {
    let server = Server::start(&["-k", class, "-w", "2"]);
    let victim = server.wait_workers(2)[0];
    limit_descriptors(server.pid, next_descriptor(server.pid));
    kill(victim.pid, Signal::SIGKILL).unwrap();
    server.serve_until("its end", |record| record.is("worker exited", victim.pid));
    server.serve_for(Duration::from_millis(300));
    limit_descriptors(server.pid, 1024);
    server.wait_replaced(victim);
    server.finish();
}

#[test]
fn heartbeat_leaves_no_file_and_waits_for_its_dir() {
    let launch = Launch::new(&["-k", "mio", "-w", "2"]);
    let dir = launch.path("beats");
    fs::create_dir(&dir).unwrap();
    let server = launch.arg("--worker-tmp-dir").arg(&dir).start();
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    fs::remove_dir(&dir).unwrap();
    let victim = server.wait_workers(2)[0];
    kill(victim.pid, Signal::SIGKILL).unwrap();
    server.serve_until("its end", |record| record.is("worker exited", victim.pid));
    server.serve_for(Duration::from_millis(300));
    fs::create_dir(&dir).unwrap();
    server.wait_replaced(victim);
    server.finish();
}

#[test]
fn unread_log_blocks_no_worker() {
    let (reader, writer) = std::io::pipe().unwrap();
    let launch = Launch::new(&["-k", "mio", "-w", "2"]).stderr_to(writer);
    let server = launch.spawn();
    wait_until("it serves", || server.try_get("/").is_ok());
    drop(reader);
    let workers = || {
        let mut pids: Vec<_> = children(server.pid)
            .into_iter()
            .filter(|child| child.state != 'Z')
            .map(|child| child.pid)
            .collect();
        pids.sort();
        pids
    };
    wait_until("both are there", || workers().len() == 2);
    let victims = workers();
    for victim in &victims {
        kill(*victim, Signal::SIGKILL).unwrap();
    }
    // Each exit and each start is a record that cannot be written.
    wait_until("others take their places", || {
        let now = workers();
        now.len() == 2 && now.iter().all(|pid| !victims.contains(pid))
    });
    assert_eq!(server.get("/panic").status(), 500);
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), crate::support::Exit::Code(0));
}
