//! The class `uring` where the kernel permits no ring.

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
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let targets = files.filter_map(|file| std::fs::read_link(file.path()).ok());
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
