//! `reuse_port`, a socket for each worker: no queue is ever lost.

use std::fs;
use std::net::SocketAddr;

use nix::sys::signal::{Signal, kill};

use crate::client::Client;
use crate::launch::Launch;
use crate::load::Load;
use crate::log_capture::Record;
use crate::proc::{threads_stand_still, wait_until};
use crate::support::{Exit, Server};

on_every_class_and_tokio!(
    each_worker_has_a_socket,
    queue_of_killed_worker_is_served,
    fewer_workers_serve_all_queues,
    added_worker_serves_too,
    reload_under_load_loses_nothing,
    upgrade_under_load_loses_nothing,
    stop_answers_all_queues,
);

/// Returns how many sockets listen at an address. The kernel leaves a socket out of a reading now and
/// then if others close meanwhile, so the longest of three readings counts.
pub fn sockets_at(address: SocketAddr) -> usize {
    let port = format!(":{:04X} ", address.port());
    let listens = |line: &&str| line.contains(&port) && line.contains(" 00000000:0000 0A ");
    let count = |table: String| table.lines().filter(listens).count();
    let readings = (0..3).map(|_| fs::read_to_string("/proc/net/tcp").unwrap());
    readings.map(count).max().unwrap()
}

#[track_caller]
fn wait_sockets(server: &Server, count: usize) {
    wait_until("sockets", || sockets_at(server.address()) == count);
}

#[track_caller]
fn ask_all(server: &Server, count: usize) -> Vec<Client> {
    let ask = |_| {
        let mut client = server.connect();
        client.ask("/");
        client
    };
    (0..count).map(ask).collect()
}

#[track_caller]
fn expect_answers(clients: Vec<Client>) {
    for mut client in clients {
        assert_eq!(client.answer().text(), "Hello, world!\n");
    }
}

fn each_worker_has_a_socket(class: &str) {
    let server = Server::start(&["-k", class, "-w", "3", "--reuse-port"]);
    wait_sockets(&server, 3);
    let mut pids: Vec<i32> = server.wait_workers(3).iter().map(|w| w.pid.as_raw()).collect();
    wait_until("each worker serves", || {
        let served: i32 = server.get("/pid").text().trim().parse().unwrap();
        pids.retain(|pid| *pid != served);
        pids.is_empty()
    });
    server.finish();
}

fn queue_of_killed_worker_is_served(class: &str) {
    let server = Server::start(&["-k", class, "-w", "2", "--reuse-port"]);
    wait_sockets(&server, 2);
    for victim in server.wait_workers(2) {
        kill(victim.pid, Signal::SIGSTOP).unwrap();
        // SIGSTOP stops one thread after the other; a running one could still accept.
        wait_until("all its threads stop", || threads_stand_still(victim.pid));
        // The kernel queues about half of them at the stopped worker.
        let clients = ask_all(&server, 30);
        kill(victim.pid, Signal::SIGKILL).unwrap();
        expect_answers(clients);
        server.wait_replaced(victim);
    }
    server.finish();
}

fn fewer_workers_serve_all_queues(class: &str) {
    let server = Server::start(&["-k", class, "-w", "4", "--reuse-port"]);
    wait_sockets(&server, 4);
    let load = Load::on(server.address());
    // Pending signals of one number merge, so wait for each.
    let signal = |signal| {
        let mark = server.mark();
        server.signal(signal);
        let is_change = |record: &Record| record.message() == "worker count changed";
        server.wait_for_new_record(mark, "the new worker count", is_change);
        load.wait_answers(20);
    };
    (0..3).for_each(|_| signal(Signal::SIGTTOU));
    server.wait_workers(1);
    expect_answers(ask_all(&server, 40));
    (0..3).for_each(|_| signal(Signal::SIGTTIN));
    server.wait_workers(4);
    load.finish();
    wait_sockets(&server, 4);
    server.finish();
}

fn added_worker_serves_too(class: &str) {
    let server = Server::start(&["-k", class, "-w", "2", "--reuse-port"]);
    server.signal(Signal::SIGTTIN);
    let mut pids: Vec<i32> = server.wait_workers(3).iter().map(|w| w.pid.as_raw()).collect();
    wait_until("each worker serves", || {
        let clients = ask_all(&server, 1);
        expect_answers(clients);
        let served: i32 = server.get("/pid").text().trim().parse().unwrap();
        pids.retain(|pid| *pid != served);
        pids.len() <= 1 // two workers share a queue: one of them may win every race for it
    });
    server.finish();
}

fn reload_under_load_loses_nothing(class: &str) {
    let launch = Launch::new(&["-k", class]);
    let path = launch.path("settings.yaml");
    let write = |workers: usize, reuse_port: bool| {
        fs::write(&path, format!("workers: {workers}\nreuse_port: {reuse_port}\n")).unwrap();
    };
    write(2, false);
    let server = launch.arg("--config").arg(&path).start();
    wait_sockets(&server, 1);
    let load = Load::on(server.address());
    let most = [(2, true), (4, true), (1, true), (3, false), (2, true)];
    for ((workers, reuse_port), sockets) in most.into_iter().zip([2, 4, 4, 4, 4]) {
        write(workers, reuse_port);
        server.signal(Signal::SIGHUP);
        server.wait_for("the reload", |record| record.message() == "reload complete");
        wait_sockets(&server, sockets);
        load.wait_answers(50);
    }
    load.finish();
    server.finish();
}

fn upgrade_under_load_loses_nothing(class: &str) {
    let server = Server::start(&["-k", class, "-w", "3", "--reuse-port"]);
    wait_sockets(&server, 3);
    let load = Load::on(server.address());
    server.signal(Signal::SIGUSR2);
    server.wait_for("the successor", |record| record.message() == "new master ready");
    load.wait_answers(50);
    wait_sockets(&server, 3);
    server.signal(Signal::SIGTERM);
    server.wait_for("the promotion", |record| record.message() == "upgrade complete");
    load.wait_answers(50);
    load.finish();
    assert_eq!(sockets_at(server.address()), 3);
}

fn stop_answers_all_queues(class: &str) {
    let server = Server::start(&["-k", class, "-w", "3", "--reuse-port"]);
    wait_sockets(&server, 3);
    let workers = server.wait_workers(3);
    workers.iter().for_each(|worker| kill(worker.pid, Signal::SIGSTOP).unwrap());
    let clients = ask_all(&server, 30);
    server.signal(Signal::SIGTERM);
    server.wait_for("the stop", |record| record.message() == "stopping");
    workers.iter().for_each(|worker| kill(worker.pid, Signal::SIGCONT).unwrap());
    expect_answers(clients);
}

#[test]
fn second_master_is_rejected() {
    let server = Server::start(&["-k", "mio", "--reuse-port"]);
    let bind = server.address().to_string();
    let other = Launch::new(&["-k", "mio", "-w", "2", "--reuse-port", "-b", &bind]).unbound();
    let other = other.spawn();
    assert_eq!(other.wait_exit(), Exit::Code(1));
    server.finish();
}
