//! A service manager's fd store over a graceful stop: the next master serves, whatever the manager
//! has kept.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::sys::signal::Signal;

use crate::client::is_refused;
use crate::launch::{Launch, free_address};
use crate::load::Target;
use crate::proc::wait_until;
use crate::support::Server;
use crate::systemd::{FakeManager, Notification, kill_all, launch_with_sockets};

on_every_class!(
    gracefully_stopped_service_restarts,
    stored_socket_that_is_not_configured_any_more_is_dropped,
);

on_every_class_slowly!(manager_that_keeps_sockets_over_a_stop_does_no_harm,);

/// A request that outlasts the time after which a stopping master shuts its listeners down.
const LONG: &str = "/sleep?ms=1800";

/// Where a server listens: flags, and where its clients connect.
type Listen = fn(&Launch) -> (Vec<String>, Target);

const ALL: [Listen; 3] = [tcp, reuse_port, unix_path];

fn tcp(launch: &Launch) -> (Vec<String>, Target) {
    let address = SocketAddr::from(([127, 0, 0, 1], launch.port()));
    (vec![format!("--bind={address}")], Target::Tcp(address))
}

fn reuse_port(launch: &Launch) -> (Vec<String>, Target) {
    let (mut flags, target) = tcp(launch);
    flags.push("--reuse-port".to_owned());
    (flags, target)
}

fn unix_path(launch: &Launch) -> (Vec<String>, Target) {
    let path = launch.dir().join("sock");
    (vec![format!("--bind=unix:{}", path.display())], Target::Path(path))
}

type Stored = Vec<(String, Arc<OwnedFd>)>;

/// Returns what a manager keeps after these notifications.
fn stored(words: &[Notification]) -> Stored {
    let mut kept = Stored::new();
    for word in words {
        let name = word.value("FDNAME").unwrap_or_default();
        if word.has("FDSTOREREMOVE=1") {
            kept.retain(|(stored, _)| stored != name);
        }
        if word.has("FDSTORE=1") {
            kept.extend(word.fds.iter().map(|fd| (name.to_owned(), Arc::clone(fd))));
        }
    }
    kept
}

/// Returns what a manager keeps that ignores FDSTOREREMOVE.
fn ever_stored(words: &[Notification]) -> Stored {
    let mut words = words.to_vec();
    words.retain(|word| !word.has("FDSTOREREMOVE=1"));
    stored(&words)
}

fn expect_restart(class: &str, keep: fn(&[Notification]) -> Stored) {
    for listen in ALL {
        for is_long in [false, true] {
            let manager = FakeManager::new();
            let flags = ["-k", class, "-w", "2", "--fd-store"];
            let launch = Launch::new(&flags).unbound();
            let (more, target) = listen(&launch);
            let launch = more.iter().fold(launch, Launch::arg);
            let mut server = launch.env("NOTIFY_SOCKET", &manager.name).start();
            let mut client = target.connect().unwrap();
            client.ask(if is_long { LONG } else { "/" });
            if !is_long {
                client.answer();
            }
            server.signal(Signal::SIGTERM);
            if is_long {
                assert_eq!(client.answer().status(), 200);
            }
            server.expect_clean_exit();
            // What the old master has sent may not have been read yet.
            wait_until("FDSTOREREMOVE", || stored(&manager.notifications()).is_empty());
            let kept = keep(&manager.notifications());
            manager.forget();
            let next = launch_with_sockets(&kept, &flags).unbound();
            let next = more.iter().fold(next, Launch::arg);
            let next = next.env("NOTIFY_SOCKET", &manager.name).start();
            for _ in 0..20 {
                let mut client = target.connect().unwrap();
                assert_eq!(client.get("/").text(), "Hello, world!\n");
            }
            manager.wait(0, "FDSTORE", |word| word.has("FDSTORE=1"));
            next.finish();
        }
    }
}

fn gracefully_stopped_service_restarts(class: &str) {
    expect_restart(class, |words| {
        let kept = stored(words);
        assert!(!ever_stored(words).is_empty() && kept.is_empty(), "{kept:?}");
        kept
    });
}

fn manager_that_keeps_sockets_over_a_stop_does_no_harm(class: &str) {
    expect_restart(class, ever_stored);
}

/// Otherwise its clients wait for nobody.
fn stored_socket_that_is_not_configured_any_more_is_dropped(class: &str) {
    let manager = FakeManager::new();
    let flags = ["-k", class, "--fd-store"];
    let server = Launch::new(&flags).env("NOTIFY_SOCKET", &manager.name).start();
    let old = server.address();
    manager.wait_for(0, "FDSTORE=1");
    let kept = stored(&manager.notifications());
    assert_eq!(kept.len(), 1);
    kill_all(&server);
    server.wait_no_survivors();
    let mark = manager.mark();
    let new = free_address();
    let next = launch_with_sockets(&kept, &flags).unbound().arg("--bind").arg(new.to_string());
    let next: Server = next.env("NOTIFY_SOCKET", &manager.name).start();
    let dropped = manager.wait_for(mark, "FDSTOREREMOVE=1");
    assert_eq!(dropped.value("FDNAME"), Some(kept[0].0.as_str()));
    manager.forget();
    drop(kept);
    // A child that another test forks at this moment has a copy until it executes its program.
    wait_until("the old address is free", || is_refused(old));
    next.finish();
}
