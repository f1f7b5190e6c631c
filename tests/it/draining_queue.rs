//! A drain under every class that keeps a queue: each client that waits is answered, however long
//! that takes within `graceful_timeout`.

use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsRawFd;

use nix::sys::signal::Signal;

use crate::client::Client;
use crate::launch::Launch;
use crate::support::Server;

on_every_class_and_tokio!(
    long_queue_behind_busy_worker_is_answered,
    long_queues_of_reuse_port_are_answered,
    client_that_comes_while_unbounded_queue_drains_is_answered,
    ; tokio alone:
    long_queue_of_unbounded_listener_is_answered,
);

on_every_class_slowly!(long_queue_of_unbounded_listener_is_answered,);

const QUEUED: usize = 40;

fn long_queue_behind_busy_worker_is_answered(class: &str) {
    expect_long_queue_answered(Server::start(&["-k", class, "--threads", "1"]));
}

/// An inherited listener stays open while the worker drains, so its queue has no end.
fn long_queue_of_unbounded_listener_is_answered(class: &str) {
    let (_listener, server) = start_on_inherited_listener(class);
    expect_long_queue_answered(server);
}

fn long_queues_of_reuse_port_are_answered(class: &str) {
    let flags = ["-k", class, "-w", "2", "--threads", "1", "--reuse-port"];
    expect_long_queue_answered(Server::start(&flags));
}

fn client_that_comes_while_unbounded_queue_drains_is_answered(class: &str) {
    let (_listener, mut server) = start_on_inherited_listener(class);
    let mut busy = server.begin("/sleep?ms=800");
    server.signal(Signal::SIGTERM);
    server.wait_for("the stop", |record| record.message() == "stopping");
    let mut late = ask_all(&server, 1);
    assert_eq!(busy.answer().status(), 200);
    assert_eq!(late[0].answer().status(), 200);
    server.expect_clean_exit();
}

fn start_on_inherited_listener(class: &str) -> (TcpListener, Server) {
    let launch = Launch::new(&["-k", class, "--threads", "1"]).unbound();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, launch.port())).unwrap();
    let fd = listener.as_raw_fd();
    let server = launch.arg("--bind").arg(format!("fd://{fd}")).keep(fd).start();
    (listener, server)
}

/// A worker is busy for 0.8 s, and the queue behind it needs 2.4 s more.
fn expect_long_queue_answered(mut server: Server) {
    let mut busy = server.begin("/sleep?ms=800");
    let mut queued = ask_all(&server, QUEUED);
    server.signal(Signal::SIGTERM);
    assert_eq!(busy.answer().status(), 200);
    let answered = queued.iter_mut().filter_map(|client| client.try_answer().ok());
    let answered = answered.filter(|answer| answer.status() == 200).count();
    assert_eq!(answered, QUEUED);
    server.expect_clean_exit();
}

fn ask_all(server: &Server, count: usize) -> Vec<Client> {
    let ask = |_| {
        let mut client = server.connect();
        client.ask("/sleep?ms=60");
        client
    };
    (0..count).map(ask).collect()
}
