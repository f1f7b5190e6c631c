//! Which descriptors a worker has: those of its own pool and its own, none of the master's, and none
//! that the master has inherited.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{Shutdown, UnixAddr, getpeername, shutdown};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{Pid, write};

use crate::launch::Launch;
use crate::os::copies_of_descriptors;
use crate::pools::PoolsConfig;
use crate::proc::{children, descriptors, wait_until};
use crate::support::DEADLINE;

on_every_class_and_tokio!(
    worker_cannot_make_the_master_wait_for_the_log,
    worker_cannot_write_to_the_flight_recorder,
    ; except tokio:
    worker_shares_only_its_own_descriptors_with_the_master,
    worker_cannot_end_the_masters_stream_to_the_journal,
);

/// The files that a process has open beyond its standard streams, and how often.
fn open_files(pid: Pid) -> BTreeMap<String, usize> {
    let target = |fd: u64| fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok();
    let name = |fd: u64| Some(target(fd)?.to_string_lossy().into_owned());
    let standard: Vec<_> = (0..3).filter_map(name).collect();
    let mut files = BTreeMap::new();
    for file in descriptors(pid).into_iter().filter_map(name) {
        if !standard.contains(&file) {
            *files.entry(file).or_insert(0) += 1;
        }
    }
    files
}

fn worker_shares_only_its_own_descriptors_with_the_master(class: &str) {
    let (launch, mut config) = PoolsConfig::launch();
    let [pidfile, log, inherited] = ["pid", "log", "inherited"].map(|name| launch.path(name));
    config.top("pidfile", &pidfile).top("log_file", &log).top("worker_class", class);
    let ports: Vec<TcpListener> =
        (0..2).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).collect();
    let addresses: Vec<_> = ports.iter().map(|port| port.local_addr().unwrap()).collect();
    drop(ports);
    config.bind("one", addresses[0]).bind("two", addresses[1]);
    config.set("one", "workers", 3).set("two", "workers", 3);
    config.write();
    let file = File::create(&inherited).unwrap();
    let server = launch.keep(file.as_raw_fd()).spawn();
    crate::proc::wait_until("all workers are ready", || {
        fs::read_to_string(&log).is_ok_and(|log| log.contains("all workers ready"))
    });
    let (master, own) = (open_files(server.pid), open_files(Pid::this()));
    assert!(master.contains_key(&inherited) && master.contains_key(&pidfile));
    let workers = crate::proc::children(server.pid);
    assert_eq!(workers.len(), 6);
    let mut sockets = BTreeMap::new();
    for worker in workers {
        let files = open_files(worker.pid);
        // What this test has open is not the master's own.
        let expected = |file: &&String| master.contains_key(*file) && !own.contains_key(*file);
        let shared: Vec<&str> = files.keys().filter(expected).map(String::as_str).collect();
        let count = |kind: &str| shared.iter().filter(|file| file.starts_with(kind)).count();
        // Each heartbeat file is unlinked; all have the same name but for what follows it.
        let deleted = shared.iter().filter(|file| file.ends_with("(deleted)")).count();
        assert_eq!((count("socket:"), count("pipe:")), (1, 1), "listener, wakeup: {shared:?}");
        assert!(shared.contains(&log.as_str()));
        assert!(!files.contains_key(&pidfile) && !files.contains_key(&inherited), "{files:?}");
        assert_eq!(shared.len() - deleted, 3, "{shared:?}");
        let heartbeats: usize =
            files.iter().filter(|(file, _)| file.ends_with("(deleted)")).map(|(_, n)| n).sum();
        assert_eq!(heartbeats, 1, "its own heartbeat only: {files:?}");
        let listener = shared.into_iter().find(|file| file.starts_with("socket:")).unwrap();
        *sockets.entry(listener.to_owned()).or_insert(0) += 1;
    }
    assert_eq!(sockets.into_values().collect::<Vec<_>>(), [3, 3], "each pool has its listener");
    server.finish();
}

/// The worker makes the pipe of the log a blocking one, as far as its own descriptors go, and nothing
/// reads the pipe any more.
fn worker_cannot_make_the_master_wait_for_the_log(class: &str) {
    let (reader, writer) = std::io::pipe().unwrap();
    let flags = ["-k", class, "-w", "2", "-t", "0"];
    let server = Launch::new(&flags).plain().stderr_to(writer.try_clone().unwrap()).spawn();
    wait_until("two workers", || children(server.pid).len() == 2);
    let worker = children(server.pid)[0].pid;
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let pipe = fs::read_link(&path).unwrap();
    let Ok(copies) = copies_of_descriptors(worker) else {
        eprintln!("skipped: the descriptors of a child cannot be copied");
        return;
    };
    let of_log = |fd: &&std::os::fd::OwnedFd| {
        fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).is_ok_and(|it| it == pipe)
    };
    let copies: Vec<_> = copies.iter().filter(of_log).collect();
    assert!(!copies.is_empty(), "the worker has a log");
    for copy in copies {
        let flags = OFlag::from_bits_truncate(fcntl(copy, FcntlArg::F_GETFL).unwrap());
        fcntl(copy, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK)).unwrap();
    }
    let own = open(path.as_str(), OFlag::O_WRONLY | OFlag::O_NONBLOCK, Mode::empty()).unwrap();
    while write(&own, &[b'x'; 4096]).is_ok() {}
    while write(&own, b"x").is_ok() {}
    kill(worker, Signal::SIGKILL).unwrap();
    wait_until("a new worker", || {
        let workers = children(server.pid);
        workers.len() == 2 && workers.iter().all(|it| it.pid != worker && it.state != 'Z')
    });
    server.signal(Signal::SIGTERM);
    server.wait_exit();
    drop(reader);
}

fn worker_cannot_write_to_the_flight_recorder(class: &str) {
    let launch = Launch::new(&["-k", class]);
    let path = launch.path("events");
    let server = launch.arg("--flight-recorder-file").arg(&path).start();
    let leads_there = |pid: Pid| {
        let target = |fd: u64| fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok();
        descriptors(pid).into_iter().filter_map(target).any(|it| it.ends_with("events"))
    };
    assert!(leads_there(server.pid));
    assert!(!leads_there(server.workers()[0].pid));
    server.finish();
}

/// Under systemd, the outputs are a socket that master and workers would share.
fn worker_cannot_end_the_masters_stream_to_the_journal(class: &str) {
    let launch = Launch::new(&["-k", class, "--log-level", "debug", "-n", "shop"]).plain();
    let path = launch.path("journal");
    let journal = UnixListener::bind(&path).unwrap();
    let stream = UnixStream::connect(&path).unwrap();
    let (mut of_master, _) = journal.accept().unwrap();
    let status = fstat(&stream).unwrap();
    let name = format!("{}:{}", status.st_dev, status.st_ino);
    let server = launch.env("JOURNAL_STREAM", name).stderr_to(OwnedFd::from(stream)).spawn();
    let (mut of_worker, _) = journal.accept().unwrap();
    for stream in [&of_master, &of_worker] {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
    }
    let mut header = [0; 16];
    of_worker.read_exact(&mut header).unwrap();
    assert_eq!(&header, b"shop\n\n6\n1\n0\n0\n0\n", "{}", header.escape_ascii());
    expect_words(&mut of_worker, b"app booted"); // the worker says it itself
    let worker = children(server.pid)[0].pid;
    let Ok(copies) = copies_of_descriptors(worker) else {
        eprintln!("skipped: the descriptors of a child cannot be copied");
        return;
    };
    for copy in copies {
        if getpeername::<UnixAddr>(copy.as_raw_fd()).is_ok() {
            shutdown(copy.as_raw_fd(), Shutdown::Both).unwrap();
        }
    }
    kill(worker, Signal::SIGKILL).unwrap();
    expect_words(&mut of_master, b"worker exited");
    journal.accept().unwrap();
    server.signal(Signal::SIGTERM);
    server.wait_exit();
    expect_words(&mut of_master, b"stopped");
}

/// Reads until these words have come.
#[track_caller]
fn expect_words(stream: &mut UnixStream, words: &[u8]) {
    let (mut text, mut piece) = (Vec::new(), [0; 4096]);
    while !text.windows(words.len()).any(|part| part == words) {
        let length = stream.read(&mut piece).unwrap();
        assert!(length > 0, "the end after {}", text.escape_ascii());
        text.extend_from_slice(&piece[..length]);
    }
}
