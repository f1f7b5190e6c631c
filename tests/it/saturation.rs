//! Which workers serve while others are busy in a handler.

use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use nix::sys::signal::Signal;

use crate::proc::{voluntary_switches, wait_until};
use crate::support::{Exit, Server};

on_class!(sync: busy_worker_leaves_new_clients_to_another, client_wakes_one_of_the_idle_workers);
on_class!(threads: busy_worker_leaves_new_clients_to_another, client_wakes_one_of_the_idle_workers);
on_class!(mio: client_wakes_one_of_the_idle_workers);
on_concurrent_classes!(
    new_clients_are_served_beside_greedy_clients,
    new_clients_are_served_between_long_requests,
);

/// A worker whose only thread is in a handler must not accept a client, which would wait for it.
/// Otherwise each client would wake all eight.
fn client_wakes_one_of_the_idle_workers(class: &str) {
    const CLIENTS: u64 = 200;
    let server = Server::start(&["-k", class, "-w", "8"]);
    let workers = server.wait_workers(8);
    let wakeups = || workers.iter().map(|worker| voluntary_switches(worker.pid)).sum::<u64>();
    server.get("/");
    let before = wakeups();
    for _ in 0..CLIENTS {
        server.get("/");
    }
    let used = wakeups() - before;
    assert!(used < 4 * CLIENTS, "{used} wake-ups for {CLIENTS} clients");
    server.finish();
}

fn busy_worker_leaves_new_clients_to_another(class: &str) {
    let server = Server::start(&["-k", class, "-w", "2", "--threads", "1"]);
    server.wait_workers(2);
    let _busy = server.begin("/sleep?ms=60000");
    for _ in 0..50 {
        assert_eq!(server.get("/").text(), "Hello, world!\n");
    }
    stop_saturated(&server);
}

/// Stops a server with SIGINT, without waiting for running handlers.
#[track_caller]
fn stop_saturated(server: &Server) {
    server.signal(Signal::SIGINT);
    assert_eq!(server.wait_exit(), Exit::Code(0));
}

#[test]
fn free_thread_serves_while_others_are_blocked() {
    let server = Server::start(&["-k", "threads", "--threads", "4"]);
    let _blocked: Vec<_> = (0..3).map(|_| server.begin("/sleep?ms=60000")).collect();
    let mut kept = server.connect();
    for _ in 0..50 {
        assert_eq!(kept.get("/").text(), "Hello, world!\n");
        assert_eq!(server.get("/").text(), "Hello, world!\n");
    }
    stop_saturated(&server);
}

#[test]
fn new_clients_are_served_while_all_threads_are_busy() {
    let server = Server::start(&["-k", "threads", "--threads", "2"]);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for mut client in (0..8).map(|_| server.connect()).collect::<Vec<_>>() {
            let over = &over;
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    assert_eq!(client.get("/sleep?ms=2").status(), 200);
                }
            });
        }
        let answered = (0..30).filter(|_| server.try_get("/").is_ok()).count();
        over.store(true, Ordering::Relaxed);
        assert_eq!(answered, 30);
    });
    server.finish();
}

/// Each of these clients has requests for twenty seconds of a thread. Others have their turn after each,
/// whether its answer is short or long.
fn new_clients_are_served_between_long_requests(class: &str) {
    let server = Server::start(&["-k", class, "--threads", "2"]);
    let answers = AtomicUsize::new(0);
    let mut greedy = [(); 4].map(|()| server.connect());
    for client in &mut greedy {
        let both = "GET /sleep?ms=20 HTTP/1.1\r\nHost: test\r\n\r\n\
                    GET /bytes?n=20000 HTTP/1.1\r\nHost: test\r\n\r\n";
        client.send(both.repeat(1000));
        assert_eq!(client.answer().status(), 200);
    }
    thread::scope(|scope| {
        for client in &mut greedy {
            scope.spawn(|| {
                while client.try_answer().is_ok() {
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let waits = [(); 3].map(|()| {
            let before = answers.load(Ordering::Relaxed);
            assert_eq!(server.get("/").status(), 200);
            answers.load(Ordering::Relaxed) - before
        });
        let before = answers.load(Ordering::Relaxed);
        wait_until("the others are served too", || answers.load(Ordering::Relaxed) > before);
        stop_saturated(&server);
        assert!(waits.iter().any(|waited_for| *waited_for <= 48), "{waits:?} answers were first");
    });
}

/// Greedy clients pipeline without end, and send requests before they have read the answers.
fn new_clients_are_served_beside_greedy_clients(class: &str) {
    let server = Server::start(&["-k", class, "--threads", "2"]);
    let requests = "GET / HTTP/1.1\r\nHost: test\r\n\r\n".repeat(500);
    let greedy: Vec<_> =
        (0..4).map(|_| TcpStream::connect(server.address()).expect("it listens")).collect();
    thread::scope(|scope| {
        for stream in &greedy {
            scope.spawn(|| while (&*stream).write_all(requests.as_bytes()).is_ok() {});
            scope.spawn(|| io::copy(&mut &*stream, &mut io::sink()));
        }
        let failures: Vec<_> = (0..30).filter_map(|_| server.try_get("/").err()).collect();
        for stream in &greedy {
            stream.shutdown(Shutdown::Both).expect("it is connected");
        }
        assert!(failures.is_empty(), "{failures:?}");
    });
    server.finish();
}
