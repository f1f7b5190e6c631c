//! Where a server listens: ports, paths, abstract names and inherited descriptors.

use std::fs;
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::sys::signal::Signal;

use crate::client::Client;
use crate::launch::Launch;
use crate::support::{Exit, Server};

on_every_class!(
    path_serves_and_is_removed,
    abstract_name_serves,
    two_addresses_serve,
    ipv6_serves,
    inherited_descriptor_serves,
);

/// Prepares a server that listens at `sock` in its own directory.
fn at_a_path(flags: &[&str]) -> Launch {
    let launch = Launch::new(flags).unbound();
    let bind = format!("unix:{}", launch.path("sock"));
    launch.arg("--bind").arg(bind)
}

#[track_caller]
fn expect_hello(path: &Path) {
    let answer = Client::unix(path).unwrap().try_get_last("/").unwrap();
    assert_eq!(answer.text(), "Hello, world!\n");
}

fn path_serves_and_is_removed(class: &str) {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut server = at_a_path(&["-k", class, "-w", "2"]).start();
        let path = server.path("sock");
        assert!(fs::symlink_metadata(&path).unwrap().file_type().is_socket());
        for _ in 0..20 {
            expect_hello(&path);
        }
        server.signal(signal);
        server.expect_clean_exit();
        assert!(!path.exists());
    }
}

fn abstract_name_serves(class: &str) {
    let name = format!("ostler-test-{}-{class}", std::process::id());
    let bind = format!("unix:@{name}");
    let server = Launch::new(&["-k", class, "-b", &bind]).unbound().start();
    let answer = Client::abstract_unix(&name).unwrap().try_get_last("/").unwrap();
    assert_eq!(answer.text(), "Hello, world!\n");
    server.finish();
}

fn two_addresses_serve(class: &str) {
    // The harness adds a TCP address.
    let server = at_a_path(&["-k", class]);
    let address = SocketAddr::from(([127, 0, 0, 1], server.port()));
    let server = server.arg("--bind").arg(address.to_string()).start();
    for _ in 0..10 {
        expect_hello(&server.path("sock"));
        assert_eq!(server.get("/").text(), "Hello, world!\n");
    }
    let mut addresses: Vec<String> = server
        .records_of("listening")
        .iter()
        .map(|record| record.text("address").unwrap().to_owned())
        .collect();
    addresses.sort();
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    assert!(addresses[0].contains(&address.to_string()), "{addresses:?}");
    assert!(addresses[1].contains("sock"), "{addresses:?}");
    server.finish();
}

fn ipv6_serves(class: &str) {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        eprintln!("skipped: this machine has no IPv6");
        return;
    }
    let launch = Launch::new(&["-k", class]).unbound();
    let address = SocketAddr::from((Ipv6Addr::LOCALHOST, launch.port()));
    let server = launch.arg("--bind").arg(address.to_string()).start();
    let answer = Client::tcp(address).unwrap().try_get_last("/").unwrap();
    assert_eq!(answer.text(), "Hello, world!\n");
    server.finish();
}

fn inherited_descriptor_serves(class: &str) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (fd, address) = (listener.as_raw_fd(), listener.local_addr().unwrap());
    let bind = format!("fd://{fd}");
    let server = Launch::new(&["-k", class, "-b", &bind]).unbound().keep(fd).start();
    let answer = Client::tcp(address).unwrap().try_get_last("/").unwrap();
    assert_eq!(answer.text(), "Hello, world!\n");
    server.finish();
    // The listener is the test's, and outlives the server.
    Client::tcp(address).unwrap();
}

#[test]
fn any_address_serves() {
    let launch = Launch::new(&["-k", "mio"]).unbound();
    let bind = format!(":{}", launch.port());
    let server = launch.arg("--bind").arg(bind).start();
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    server.finish();
}

#[test]
fn path_in_use_is_rejected() {
    let first = at_a_path(&[]).start();
    let path = first.path("sock");
    let inode = fs::metadata(&path).unwrap().ino();
    let bind = format!("unix:{}", path.display());
    let second = Launch::new(&["-b", &bind]).unbound().plain().run();
    assert_eq!(second.exit, Exit::Code(1), "{second:?}");
    assert!(second.stderr.contains("sock"), "{second:?}");
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    expect_hello(&path);
    first.finish();
}

#[test]
fn stale_path_is_replaced() {
    let launch = at_a_path(&[]);
    let path = launch.dir().join("sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let server = launch.start();
    expect_hello(&path);
    server.finish();
    assert!(!path.exists());
}

#[test]
fn path_of_killed_master_is_taken_over() {
    let first = at_a_path(&["-w", "2"]).start();
    let path = first.path("sock");
    first.signal(Signal::SIGKILL);
    first.wait_exit();
    first.wait_no_survivors();
    assert!(path.exists());
    let bind = format!("unix:{}", path.display());
    let second = Launch::new(&["-b", &bind]).unbound().start();
    expect_hello(&path);
    second.finish();
    assert!(!path.exists());
}

#[test]
fn file_at_the_path_is_kept() {
    let launch = at_a_path(&[]).plain();
    let path = launch.dir().join("sock");
    fs::write(&path, "precious").unwrap();
    let bind = format!("unix:{}", path.display());
    let outcome = Launch::new(&["-b", &bind]).unbound().plain().run();
    assert_eq!(outcome.exit, Exit::Code(1), "{outcome:?}");
    assert!(outcome.stderr.contains("sock"), "{outcome:?}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn socket_of_another_process_at_the_path_is_kept() {
    let server = at_a_path(&[]).start();
    let path = server.path("sock");
    // A hard link keeps the server's inode in use, so that its number is not assigned again.
    fs::hard_link(&path, server.path("kept")).unwrap();
    fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), Exit::Code(0));
    assert!(path.exists());
    drop(other);
}

#[test]
fn vanished_path_is_tolerated_at_stop() {
    let server = at_a_path(&[]).start();
    fs::remove_file(server.path("sock")).unwrap();
    server.finish();
}

#[test]
fn port_cannot_be_bound_twice() {
    let first = Server::start(&[]);
    let bind = first.address().to_string();
    let second = Launch::new(&["-b", &bind]).unbound().plain().run();
    assert_eq!(second.exit, Exit::Code(1), "{second:?}");
    assert!(second.stderr.contains(&bind), "{second:?}");
    assert_eq!(first.get("/").text(), "Hello, world!\n");
    first.finish();
}

#[test]
fn failed_bind_creates_no_other_path() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let launch = at_a_path(&[]).plain();
    let dir = launch.dir().to_owned();
    let server = launch.arg("--bind").arg(taken.local_addr().unwrap().to_string()).spawn();
    assert_eq!(server.wait_exit(), Exit::Code(1));
    assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
}

#[test]
fn reload_recreates_a_removed_path() {
    let server = at_a_path(&["-k", "mio", "-w", "2"]).start();
    let path = server.path("sock");
    let mut begun = Client::unix(&path).unwrap();
    begun.ask("/sleep?ms=300");
    fs::remove_file(&path).unwrap();
    server.signal(Signal::SIGHUP);
    server.wait_for("the reload", |record| record.message() == "reload complete");
    expect_hello(&path);
    assert_eq!(begun.answer().status(), 200, "who was in is served");
    server.finish();
    assert!(!path.exists());
}
