//! A worker that cannot be looked at: reading its files in /proc blocks. The master must go on.

use nix::sys::signal::Signal;

use crate::launch::Launch;
use crate::proc::wait_until;
use crate::stuck_flush::StuckFlush;
use crate::support::{Exit, Server};

/// Executes another program while a file is open that cannot be closed.
const BLOCKED_EXEC: &str = "open(FILE, '<', shift) or die; exec 'sleep', '1000'";

/// Starts a program that blocks in execve(2), with locks that some of its files in /proc need.
fn start(stuck: &StuckFlush, flags: &[&str]) -> Server {
    let file = stuck.file();
    let common = ["-k", "exec", "--bind", "none", "--ready-after", "100ms"];
    let launch = Launch::new(&[&common[..], flags].concat()).unbound();
    let server = launch.program(&["perl", "-e", BLOCKED_EXEC, file.to_str().unwrap()]).start();
    stuck.wait_flush();
    server
}

/// Asserts that the master hears a signal.
#[track_caller]
fn expect_turn(server: &Server) {
    let mark = server.mark();
    server.signal(Signal::SIGTTIN);
    server.wait_for_new_record(mark, "a turn", |it| it.message() == "worker count changed");
}

/// Meanwhile, the other tests cannot look at processes either.
#[test]
#[ignore = "slow"]
fn memory_that_cannot_be_read_holds_no_master() {
    let Some(stuck) = StuckFlush::new() else { return };
    let flags = ["--max-memory", "100K", "--graceful-timeout", "1s", "-w", "1"];
    let server = start(&stuck, &flags);
    // The RSS counts where the PSS cannot be read, so that the limit holds.
    server.wait_for("its memory", |record| record.message() == "worker exceeds max_memory");
    expect_turn(&server);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), Exit::Code(0));
    drop(stuck);
    wait_until("all processes exit", || server.survivors().is_empty());
}
