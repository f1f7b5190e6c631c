//! The class `uring`: where the kernel permits no ring, and what concerns receives in progress.

use std::fs;
use std::io::{ErrorKind, Write};
use std::process::Command;

use nix::sys::signal::{Signal, kill};

use crate::client::Client;
use crate::example::example;
use crate::launch::{Launch, uring_runs};
use crate::support::{Exit, Server};

#[test]
fn missing_io_uring_is_refused_with_its_reason() {
    let launch = Launch::new(&["-k", "uring"]).without_call(libc::SYS_io_uring_setup);
    let outcome = launch.plain().run();
    assert_eq!(outcome.exit, Exit::Code(1), "{outcome:?}");
    for words in ["io_uring cannot be used here: the kernel (", "choose the class \"mio\""] {
        assert!(outcome.stderr.contains(words), "{outcome:?}");
    }
    assert!(!outcome.stderr.contains("listening"), "{outcome:?}");
}

/// A ring of the master would cost memory, and each worker would inherit its descriptor.
#[test]
fn probe_leaves_no_ring_in_the_master() {
    if !uring_runs() {
        return;
    }
    let server = Server::start(&["-k", "uring", "-w", "2"]);
    let rings = |pid: nix::unistd::Pid| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let targets = files.filter_map(|file| fs::read_link(file.path()).ok());
        targets.filter(|target| target.to_string_lossy().contains("io_uring")).count()
    };
    assert_eq!(rings(server.pid), 0);
    for worker in server.workers() {
        assert_eq!(rings(worker.pid), 1);
    }
    server.finish();
}

/// The deadline of an answer begins when its request was received: a handler that takes longer than
/// `write_timeout` leaves an answer whose deadline has passed.
#[test]
#[ignore = "slow"]
fn answer_of_a_slow_handler_is_sent() {
    if !uring_runs() {
        return;
    }
    let server = Server::start(&["-k", "uring", "-w", "1", "--write-timeout", "1s"]);
    let worker = server.wait_workers(1)[0];
    assert_eq!(server.get("/sleep?ms=1500").text(), "slept 1500 ms\n");
    assert_eq!(server.get("/").status(), 200);
    assert_eq!(server.workers()[0].pid, worker.pid);
    server.finish();
}

/// `kernel.io_uring_disabled` = 1 forbids rings to workers that have neither CAP_SYS_ADMIN nor the group
/// of `kernel.io_uring_group`. The files are replaced in a mount namespace of the server alone.
#[test]
fn restricted_io_uring_is_for_root_and_the_group() {
    let script = "mount --bind \"$1\" /proc/sys/kernel/io_uring_disabled && \
                  mount --bind \"$2\" /proc/sys/kernel/io_uring_group && shift 2 && exec \"$@\"";
    let dir = tempfile::tempdir().unwrap();
    let files = ["1", "4321"].map(|text| dir.path().join(text));
    files
        .iter()
        .for_each(|file| fs::write(file, file.file_name().unwrap().as_encoded_bytes()).unwrap());
    let [disabled, group] = files.each_ref().map(|file| file.to_str().unwrap());
    let words = ["unshare", "--mount", "sh", "-c", script, "sh", disabled, group];
    let can_run = Command::new(words[0]).args(&words[1..]).arg("true").output();
    if !can_run.is_ok_and(|output| output.status.success()) || !uring_runs() {
        eprintln!("skipped: sysctls cannot be replaced");
        return;
    }
    let words = [&words[..], &[env!("CARGO_BIN_EXE_ostler")]].concat();
    let check = |flags: &[&str]| {
        let flags = [&["-k", "uring", "--check-config"], flags].concat();
        Launch::by(&words, &flags).plain().run()
    };
    for flags in [
        &[][..],
        &["--user", "root"],
        &["--user", "12345", "--group", "4321"],
        &["--group", "nogroup"],
    ] {
        let outcome = check(flags);
        assert_eq!(outcome.exit, Exit::Code(0), "{flags:?}: {outcome:?}");
    }
    let outcome = check(&["--user", "12345", "--group", "4320"]);
    assert_eq!(outcome.exit, Exit::Code(1), "{outcome:?}");
    assert!(outcome.stderr.contains("not in the group of kernel.io_uring_group"), "{outcome:?}");
}

/// The second request is in the socket when the first is received, which fills a buffer of 4 KiB: its
/// receive is queued, and not submitted, when the drain begins.
#[test]
#[ignore = "slow"]
fn drain_without_idle_time_answers_what_has_arrived() {
    let Some(program) = example("zero_drain").filter(|_| uring_runs()) else { return };
    let flags = ["-k", "uring", "-w", "1"];
    let server = Launch::by(&[program.to_str().unwrap()], &flags).start();
    let worker = server.wait_workers(1)[0];
    let mut client = server.connect();
    // A loop that is busy looks for signals in each fourth turn. Each of these takes one turn.
    let mut busy = [(); 4].map(|()| server.connect());
    for other in &mut busy {
        assert_eq!(other.get("/").status(), 200);
    }
    for other in &mut busy {
        other.ask("/sleep");
        server.wait_taken(other);
    }
    let first = b"GET / HTTP/1.1\r\nHost: a\r\nX-Padding: ";
    let padding = "x".repeat(4096 - first.len() - 4);
    client.send([first, padding.as_bytes(), b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"].concat());
    kill(worker.pid, Signal::SIGTERM).unwrap();
    for _ in 0..2 {
        assert_eq!(client.answer().text(), "answered\n");
    }
    client.expect_end();
    server.wait_exited(worker.pid);
    server.finish();
}

/// Clients that send much and read nothing fill what a worker keeps of received input. Then they are
/// closed, and not a client with a few KiB.
#[test]
#[ignore = "slow"]
fn client_with_most_waiting_input_is_closed_first() {
    const GREEDY: usize = 700;
    const LARGE: usize = 2_000_000;
    if !uring_runs() {
        return;
    }
    let launch = Launch::new(&["-k", "uring", "-w", "1", "--bind", "unix:socket"]).unbound();
    let path = launch.path("socket");
    let server = launch.start();
    let worker = server.wait_workers(1)[0];
    let open = || {
        let mut client = Client::unix(path.as_ref()).unwrap();
        assert_eq!(client.get("/").status(), 200); // from now on the kernel receives all
        client
    };
    // Its answer is larger than the buffers of a socket.
    let large = format!("GET /bytes?n={LARGE} HTTP/1.1\r\nHost: a\r\n\r\n");
    let flood = large.clone() + &"x".repeat(1 << 20);
    let greedy: Vec<_> = (0..GREEDY)
        .map(|_| {
            let client = open();
            client.stream.set_nonblocking(true).unwrap();
            let mut rest = flood.as_bytes();
            while let Ok(length @ 1..) = (&client.stream).write(rest) {
                rest = &rest[length..];
            }
            client
        })
        .collect();
    let small = "GET /pid HTTP/1.1\r\nHost: a\r\n\r\n".repeat(300);
    let mut others = [(); 32].map(|()| open());
    for client in &mut others {
        client.send(large.clone() + &small);
    }
    let is_closed = |client: &&Client| {
        let written = (&client.stream).write(b"x");
        written.is_err_and(|error| error.kind() != ErrorKind::WouldBlock)
    };
    for client in &mut others {
        assert_eq!(client.answer().body.len(), LARGE);
        for _ in 0..300 {
            assert_eq!(client.answer().text(), format!("{}\n", worker.pid));
        }
    }
    assert!(greedy.iter().any(|client| is_closed(&client)), "the limit is reached");
    drop(greedy);
    server.finish();
}
