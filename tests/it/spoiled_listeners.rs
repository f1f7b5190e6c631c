//! A hostile worker changes options of the listener that all share. They outlive it until the master
//! restores them.

use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use crate::client::Client;
use crate::launch::Launch;
use crate::log_capture::Worker;
use crate::os::{listener_of, option_words, set_option, without_privileges};
use crate::proc::wait_until;
use crate::support::Server;

on_every_class_and_tokio!(
    options_of_a_listener_are_restored,
    key_of_all_clients_is_removed,
    backlog_is_restored,
    ; except tokio:
    locked_filter_is_reported,
    upgrade_restores_options,
);

const RESTORED: &str = "listener options restored";
const NOT_RESTORED: &str = "listener options not restored, clients may be lost";

/// Starts two workers. Returns one of them, and its listener; `None` if the kernel does not allow that.
fn start(class: &str) -> Option<(Server, Worker, OwnedFd)> {
    let server = Launch::new(&["-k", class, "-w", "2", "--backlog", "77"]).start();
    let victim = server.wait_workers(2)[0];
    match listener_of(victim.pid) {
        Ok(listener) => Some((server, victim, listener)),
        Err(error) => {
            eprintln!("skipped: this user may not copy descriptors of its processes: {error}");
            None
        }
    }
}

/// Kills a worker, and waits until its replacement serves.
#[track_caller]
fn replace(server: &Server, victim: Worker) {
    kill(victim.pid, Signal::SIGKILL).unwrap();
    let heir = server.wait_replaced(victim);
    wait_until("the next worker serves", || {
        let mut client = Client::tcp(server.address()).unwrap();
        client.get("/pid").text().trim().parse() == Ok(heir.pid.as_raw())
    });
}

/// Sets an option to some words.
fn set(listener: &OwnedFd, level: i32, number: i32, words: &[u32]) -> io::Result<()> {
    let value: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    without_privileges(|| set_option(listener, level, number, &value))
}

fn options_of_a_listener_are_restored(class: &str) {
    const HOSTILE: [(&str, i32, i32, &[u32]); 11] = [
        ("SO_RCVLOWAT", libc::SOL_SOCKET, libc::SO_RCVLOWAT, &[1 << 16]),
        ("SO_RCVBUF", libc::SOL_SOCKET, libc::SO_RCVBUF, &[1]),
        ("SO_SNDBUF", libc::SOL_SOCKET, libc::SO_SNDBUF, &[1]),
        ("SO_DONTROUTE", libc::SOL_SOCKET, libc::SO_DONTROUTE, &[1]),
        ("SO_LINGER", libc::SOL_SOCKET, libc::SO_LINGER, &[1, 0]),
        ("SO_MAX_PACING_RATE", libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, &[1]),
        ("IP_TTL", libc::IPPROTO_IP, libc::IP_TTL, &[1]),
        ("IP_MINTTL", libc::IPPROTO_IP, libc::IP_MINTTL, &[255]),
        ("TCP_CORK", libc::IPPROTO_TCP, libc::TCP_CORK, &[1]),
        ("TCP_MAXSEG", libc::IPPROTO_TCP, libc::TCP_MAXSEG, &[88]),
        ("TCP_USER_TIMEOUT", libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, &[1]),
    ];
    let Some((server, victim, listener)) = start(class) else { return };
    let values = || HOSTILE.map(|(_, level, number, _)| option_words(&listener, level, number));
    let before = values();
    for (name, level, number, words) in HOSTILE {
        set(&listener, level, number, words).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    replace(&server, victim);
    let record = server.wait_for("the record", |record| record.message() == RESTORED);
    assert_eq!((record.pid(), record.number("slot")), (Some(victim.pid), Some(victim.slot)));
    assert!(record.text("address").unwrap().contains(&server.address().to_string()), "{record:?}");
    let text = record.text("error").unwrap();
    for ((name, ..), (is, was)) in HOSTILE.iter().zip(values().iter().zip(&before)) {
        assert!(text.contains(name), "{name}: {text}");
        assert_eq!(is, was, "{name}");
    }
    // A worker that has done nothing of the kind is not accused.
    let mark = server.mark();
    replace(&server, server.wait_workers(2)[0]);
    server.wait_workers(2);
    assert!(server.records()[mark..].iter().all(|record| record.message() != RESTORED));
    server.finish();
}

/// The `tcp_md5sig` of linux/tcp.h for all addresses: packets without a signature are dropped.
fn key_for_all() -> Vec<u8> {
    let mut key = vec![0; 216];
    key[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    key[128] = 1; // TCP_MD5SIG_FLAG_PREFIX, whose length is 0
    key[130..132].copy_from_slice(&3_u16.to_ne_bytes());
    key
}

fn key_of_all_clients_is_removed(class: &str) {
    const TCP_MD5SIG_EXT: i32 = 32;
    let Some((server, victim, listener)) = start(class) else { return };
    let set = || set_option(&listener, libc::IPPROTO_TCP, TCP_MD5SIG_EXT, &key_for_all());
    if let Err(error) = without_privileges(set) {
        eprintln!("skipped: this kernel has no keys: {error}");
        return;
    }
    let brief = Duration::from_millis(200);
    let error = TcpStream::connect_timeout(&server.address(), brief).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    replace(&server, victim);
    let record = server.wait_for("the record", |record| record.message() == RESTORED);
    assert!(record.text("error").unwrap().contains("TCP_MD5SIG_EXT"), "{record:?}");
    server.finish();
}

fn backlog_is_restored(class: &str) {
    let Some((server, victim, listener)) = start(class) else { return };
    let backlog = || option_words(&listener, libc::IPPROTO_TCP, libc::TCP_INFO)[7]; // tcpi_sacked
    assert_eq!(backlog(), 77);
    let zero = nix::sys::socket::Backlog::new(0).unwrap();
    without_privileges(|| nix::sys::socket::listen(&listener, zero)).unwrap();
    assert_eq!(backlog(), 0);
    replace(&server, victim);
    wait_until("the backlog is as it was", || backlog() == 77);
    server.finish();
}

fn locked_filter_is_reported(class: &str) {
    let Some((server, victim, listener)) = start(class) else { return };
    set(&listener, libc::SOL_SOCKET, libc::SO_LOCK_FILTER, &[1]).unwrap();
    replace(&server, victim);
    let record = server.wait_for("the record", |record| record.message() == NOT_RESTORED);
    assert!(record.text("address").unwrap().contains(&server.address().to_string()), "{record:?}");
    assert!(record.text("error").unwrap().contains("SO_LOCK_FILTER"), "{record:?}");
    server.finish();
}

/// Neither master may take over what a worker of the other one has changed.
fn upgrade_restores_options(class: &str) {
    for end in [Signal::SIGTERM, Signal::SIGKILL] {
        let Some((server, _, listener)) = start(class) else { return };
        let ttl = || option_words(&listener, libc::IPPROTO_IP, libc::IP_TTL)[0];
        let spoil = || {
            set(&listener, libc::IPPROTO_IP, libc::IP_TTL, &[1]).unwrap();
            assert_eq!(ttl(), 1);
        };
        let before = ttl();
        spoil();
        server.signal(Signal::SIGUSR2);
        let ready = server.wait_for("the new master", |it| it.message() == "new master ready");
        assert_eq!(ttl(), before);
        spoil();
        server.signal(end);
        server.wait_for("the record", |record| record.message() == RESTORED);
        assert_eq!(ttl(), before);
        kill(ready.pid().unwrap(), Signal::SIGTERM).unwrap();
        server.wait_no_survivors();
    }
}
