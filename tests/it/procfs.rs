//! What the master reads of its workers in /proc, where names and numbers are unusual.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::process::Command;

use crate::launch::Launch;
use crate::log_capture::Record;
use crate::support::Server;

on_every_class!(
    name_that_is_not_utf8_hides_no_worker,
    proc_of_another_pid_namespace_is_not_believed,
);

const PROGRAM: &str = env!("CARGO_BIN_EXE_ostler");

/// Lets the only worker hang, and returns the record of it.
#[track_caller]
fn hang_record(server: &Server) -> Record {
    let mut client = server.connect();
    client.ask("/spin");
    server.wait_for("the hang", |record| record.message() == "worker hung")
}

fn name_that_is_not_utf8_hides_no_worker(class: &str) {
    // The kernel names a process after the file of its program.
    let script = "exec \"./$(printf 'a\\377b')\" \"$@\"";
    let launch = Launch::by(&["sh", "-c", script, "sh"], &["-k", class, "-t", "1s"]);
    symlink(PROGRAM, launch.dir().join(OsStr::from_bytes(b"a\xffb"))).unwrap();
    let server = launch.start();
    let hung = hang_record(&server);
    assert_eq!((hung.text("cause"), hung.text("state")), (Some("busy"), Some("R")), "{hung:?}");
    server.finish();

    let launch = Launch::by(&["sh", "-c", script, "sh"], &["-k", class, "--max-memory", "100K"]);
    symlink(PROGRAM, launch.dir().join(OsStr::from_bytes(b"a\xffb"))).unwrap();
    let server = launch.start();
    server.wait_for("its memory", |record| record.message() == "worker exceeds max_memory");
    server.finish();
}

fn proc_of_another_pid_namespace_is_not_believed(class: &str) {
    let words = ["unshare", "--pid", "--fork", "--kill-child"];
    let may = Command::new(words[0]).args(&words[1..]).arg("true").output();
    if !may.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no PID namespace of our own");
        return;
    }
    // The worker has the number 2 here, like some process outside.
    let words = [&words[..], &[PROGRAM]].concat();
    let server = Launch::by(&words, &["-k", class, "-t", "1s"]).start();
    let is_it = |record: &Record| {
        record.message() == "startup warning"
            && record.text("error").is_some_and(|error| error.contains("PID namespace"))
    };
    server.wait_for("a warning", is_it);
    let hung = hang_record(&server);
    assert_eq!((hung.text("cause"), hung.text("state")), (Some("unknown"), None), "{hung:?}");
    assert_eq!(hung.text("action"), Some("aborted"), "{hung:?}");
}
