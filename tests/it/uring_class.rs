//! The class `uring`: where the kernel permits no ring.

use std::fs;
use std::process::Command;

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
