//! Where a server listens: ports, paths, abstract names and inherited descriptors.

use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{Shutdown, shutdown};

use crate::client::{Client, is_refused};
use crate::launch::{Launch, free_address};
use crate::os::listener_of;
use crate::proc::wait_until;
use crate::support::{Exit, Server};

on_every_class_and_tokio!(
    path_serves_and_is_removed,
    abstract_name_serves,
    two_addresses_serve,
    ipv6_serves,
    inherited_descriptor_serves,
    listener_that_was_shut_down_listens_again,
    path_that_was_shut_down_is_bound_by_a_reload,
    ; except tokio:
    every_address_of_a_name_is_bound,
    path_serves_without_proc,
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

/// Waits until each of these workers has answered.
#[track_caller]
fn wait_all_serve(server: &Server, address: SocketAddr) {
    let mut pids: Vec<i32> = server.workers().iter().map(|worker| worker.pid.as_raw()).collect();
    wait_until("each worker serves", || {
        let mut client = Client::tcp(address).unwrap();
        let pid: i32 = client.get("/pid").text().trim().parse().unwrap();
        pids.retain(|other| *other != pid);
        pids.is_empty()
    });
}

/// Any process that shares a socket can shut it down.
fn listener_that_was_shut_down_listens_again(class: &str) {
    // A port that the kernel has chosen would not be kept.
    let listener = TcpListener::bind(free_address()).unwrap();
    let (fd, address) = (listener.as_raw_fd(), listener.local_addr().unwrap());
    let bind = format!("fd://{fd}");
    let flags = ["-k", class, "-w", "2", "-b", &bind];
    let server = Launch::new(&flags).unbound().keep(fd).start();
    for _ in 0..3 {
        let victim = server.wait_workers(2)[0];
        shutdown(fd, Shutdown::Read).unwrap();
        assert!(is_refused(address));
        let mark = server.mark();
        kill(victim.pid, Signal::SIGKILL).unwrap();
        let record = server.wait_for_new_record(mark, "the new listen", |record| {
            record.message() == "listener was shut down, listening again"
        });
        assert_eq!((record.pid(), record.number("slot")), (Some(victim.pid), Some(victim.slot)));
        server.wait_replaced(victim);
        wait_all_serve(&server, address);
    }
    server.finish();
}

/// The kernel has no way to have a unix socket listen again.
fn path_that_was_shut_down_is_bound_by_a_reload(class: &str) {
    let server = at_a_path(&["-k", class, "-w", "2"]).start();
    let victim = server.wait_workers(2)[0];
    let path = server.path("sock");
    let Ok(listener) = listener_of(victim.pid) else {
        eprintln!("skipped: this user may not copy descriptors of its processes");
        return;
    };
    shutdown(listener.as_raw_fd(), Shutdown::Read).unwrap();
    assert!(Client::unix(&path).is_err());
    kill(victim.pid, Signal::SIGKILL).unwrap();
    let record = server.wait_for("the error", |record| {
        record.message() == "listener was shut down, no client can connect"
    });
    assert!(record.text("error").unwrap().contains("SIGHUP"), "{record:?}");
    server.signal(Signal::SIGHUP);
    server.wait_for("the reload", |record| record.message() == "reload complete");
    for _ in 0..20 {
        expect_hello(&path);
    }
    server.finish();
    assert!(!path.exists());
}

/// Prepares a server in a mount namespace of its own, where `script` has changed something; `None`
/// if that is not allowed here.
fn in_mount_namespace(script: &str) -> Option<Launch> {
    let allowed = Command::new("unshare").args(["-m", "true"]).output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: this user may not create a mount namespace");
        return None;
    }
    let script = format!("{script} && exec \"$0\" \"$@\"");
    Some(Launch::by(&["unshare", "-m", "sh", "-c", &script, env!("CARGO_BIN_EXE_ostler")], &[]))
}

fn every_address_of_a_name_is_bound(class: &str) {
    let hosts = tempfile::NamedTempFile::new().unwrap();
    let lines = "127.0.0.1 both.test\n127.0.0.2 both.test\n192.0.2.1 both.test\n::1 both.test\n";
    fs::write(hosts.path(), lines).unwrap();
    let script = format!("mount --bind {} /etc/hosts", hosts.path().display());
    for more in [&[][..], &["--reuse-port"]] {
        let Some(launch) = in_mount_namespace(&script) else { return };
        let launch = launch.unbound().arg("-k").arg(class).arg("--workers=2");
        let port = launch.port();
        let launch = more.iter().fold(launch, Launch::arg);
        let server = launch.arg("--bind").arg(format!("both.test:{port}")).start();
        // A machine without IPv6 binds the others.
        let all = ["127.0.0.1", "127.0.0.2", "::1"].map(|ip| ip.parse::<IpAddr>().unwrap());
        let mine = all.into_iter().filter(|ip| TcpListener::bind((*ip, 0)).is_ok());
        let addresses: Vec<_> = mine.map(|ip| SocketAddr::new(ip, port)).collect();
        for &address in &addresses {
            for _ in 0..20 {
                let mut client = Client::tcp(address).unwrap();
                assert_eq!(client.get("/").text(), "Hello, world!\n", "{address}");
            }
        }
        assert_eq!(server.records_of("listening").len(), addresses.len());
        let mark = server.mark();
        server.signal(Signal::SIGHUP);
        server.wait_for_new_record(mark, "the reload", |record| {
            record.message() == "reload complete"
        });
        for &address in &addresses {
            assert_eq!(Client::tcp(address).unwrap().get("/").text(), "Hello, world!\n");
        }
        server.finish();
    }
}

/// As in a chroot(8).
fn path_serves_without_proc(class: &str) {
    for mode in ["600", "666"] {
        let Some(launch) = in_mount_namespace("mount -t tmpfs none /proc") else { return };
        let bind = format!("unix:{}", launch.path("sock"));
        let launch = launch.unbound().arg("-k").arg(class).arg("--bind").arg(bind);
        let server = launch.arg("--socket-mode").arg(mode).start();
        let path = server.path("sock");
        let found = fs::metadata(&path).unwrap().mode() & 0o777;
        assert_eq!(found, u32::from_str_radix(mode, 8).unwrap());
        expect_hello(&path);
        server.finish();
    }
}

#[test]
fn backlog_of_any_size_serves() {
    for backlog in ["1", "4097", "1000000"] {
        let server = Launch::new(&["--backlog", backlog]).start();
        assert_eq!(server.get("/").text(), "Hello, world!\n");
        server.finish();
    }
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

/// Returns a link-local address of this machine with its interface, if there is one.
fn link_local() -> Option<String> {
    let text = fs::read_to_string("/proc/net/if_inet6").ok()?;
    let line = text.lines().find(|line| line.starts_with("fe80"))?;
    let (digits, interface) = (line.get(..32)?, line.split_whitespace().last()?);
    let groups: Vec<&str> = (0..8).map(|at| &digits[4 * at..4 * at + 4]).collect();
    Some(format!("{}%{interface}", groups.join(":")))
}

#[test]
fn link_local_address_is_served_at_its_interface() {
    let Some(host) = link_local() else { return };
    let port = Launch::new(&[]).port();
    let bind = format!("[{host}]:{port}");
    let server = Launch::new(&["-k", "mio", "--bind", &bind]).unbound().start();
    let address = (host.as_str(), port).to_socket_addrs().unwrap().next().unwrap();
    assert_eq!(Client::tcp(address).unwrap().get("/").status(), 200);
    server.signal(Signal::SIGHUP);
    server.wait_for("the reload", |record| record.message() == "reload complete");
    assert_eq!(Client::tcp(address).unwrap().get("/").status(), 200);
    // Workers have exited, which is no reason to take the socket from its interface.
    for message in ["listener was shut down, listening again", "listener options restored"] {
        assert_eq!(server.records_of(message).len(), 0, "{message}");
    }
    server.finish();
}
