//! `reload: true` in the foreground: a replaced program leads to an upgrade, over which the process that was
//! started stays.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::launch::Launch;
use crate::load::Load;
use crate::log_capture::Record;
use crate::proc::{children, is_gone, title, wait_until};
use crate::support::{Exit, Server};

on_every_class!(replaced_program_takes_over);

const PROGRAM: &str = env!("CARGO_BIN_EXE_ostler");

/// A server whose program can be replaced.
struct Watching {
    server: Server,
    build: TempDir,
}

impl Watching {
    #[track_caller]
    fn start(class: &str) -> Self {
        let build = tempfile::tempdir().unwrap();
        let program = build.path().join("program");
        copy_program(&program);
        let flags = ["--reload", "-k", class, "-w", "2"];
        let server = Launch::by(&[program.to_str().unwrap()], &flags).start();
        wait_watched(master(&server));
        Self { server, build }
    }

    /// Replaces the program as a compiler does.
    fn replace(&self, write: impl FnOnce(&Path)) {
        let next = self.build.path().join("next");
        write(&next);
        fs::rename(next, self.build.path().join("program")).unwrap();
    }

    fn replace_by_text(&self, text: &str) {
        self.replace(|next| {
            fs::write(next, text).unwrap();
            fs::set_permissions(next, fs::Permissions::from_mode(0o755)).unwrap();
        });
    }

    /// Replaces the program by a working one, and returns the new master once it is the only one.
    #[track_caller]
    fn rebuild(&self) -> Pid {
        let (mark, old) = (self.server.mark(), master(&self.server));
        self.replace(copy_program);
        let is_end = |it: &Record| it.message() == "upgrade complete";
        let new = self.server.wait_for_new_record(mark, "the upgrade", is_end).pid().unwrap();
        assert_ne!(new, old);
        wait_until("the old master exits", || is_gone(old));
        new
    }

    #[track_caller]
    fn expect_end(&self, signal: Signal) {
        self.server.signal(signal);
        assert_eq!(self.server.wait_exit(), Exit::Code(0));
        self.server.wait_no_survivors();
    }
}

/// Copies the program by another process: no child of this one has the file open for writing, so that it can
/// be executed.
fn copy_program(to: &Path) {
    assert!(Command::new("cp").arg(PROGRAM).arg(to).status().unwrap().success());
}

/// Returns the master that has become ready last.
fn master(server: &Server) -> Pid {
    let ready = server.records_of("all workers ready");
    ready.last().and_then(Record::pid).unwrap()
}

#[track_caller]
fn wait_watched(master: Pid) {
    wait_until("the files are watched", || {
        children(master).into_iter().any(|child| {
            title(child.pid).starts_with("ostler: file watcher") && has_inotify(child.pid)
        })
    });
}

fn has_inotify(pid: Pid) -> bool {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    fds.filter_map(|fd| fs::read_link(fd.path()).ok())
        .any(|target| target.to_string_lossy().contains("inotify"))
}

fn replaced_program_takes_over(class: &str) {
    let watching = Watching::start(class);
    let server = &watching.server;
    let load = Load::on(server.address());
    for _ in 0..2 {
        let new = watching.rebuild();
        wait_watched(new);
        load.wait_answers(20);
        wait_until("the old master has ended", || {
            children(server.pid).into_iter().map(|it| it.pid).eq([new])
        });
    }
    load.finish();
    assert_eq!(server.exit(), None);
    let changes = server.records_of("files changed");
    assert_eq!(changes.len(), 2);
    assert_eq!(changes[0].text("follows"), Some("upgrade"));
    watching.expect_end(Signal::SIGTERM);
}

#[test]
fn broken_program_leaves_the_old_one_serving() {
    let watching = Watching::start("mio");
    let server = &watching.server;
    let old = master(server);
    let failure = |text: &str| {
        let mark = server.mark();
        watching.replace_by_text(text);
        let is_failure = |it: &Record| it.message().starts_with("upgrade failed");
        server.wait_for_new_record(mark, "the upgrade fails", is_failure);
        wait_watched(old);
        assert_eq!(server.get("/").text(), "Hello, world!\n");
    };
    failure("no program");
    failure("#!/bin/sh\nexit 1\n");
    // What cannot be executed is not tried.
    watching.replace_by_text("");
    watching.rebuild();
    assert_eq!(server.records_of("upgrade started").len(), 3);
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    watching.expect_end(Signal::SIGTERM);
}

/// A signal reaches the master that serves now, also one that has replaced another.
#[test]
fn signals_to_the_parent_reach_the_master() {
    let watching = Watching::start("mio");
    let server = &watching.server;
    watching.rebuild();
    for (signal, message) in [
        (Signal::SIGHUP, "reload complete"),
        (Signal::SIGTTIN, "worker count changed"),
        (Signal::SIGTTOU, "worker count changed"),
        (Signal::SIGUSR1, "logs reopened"),
    ] {
        let mark = server.mark();
        server.signal(signal);
        server.wait_for_new_record(mark, message, |it| it.message() == message);
    }
    watching.expect_end(Signal::SIGINT);
}

#[test]
fn parent_exits_as_the_last_master_does() {
    let watching = Watching::start("mio");
    let server = &watching.server;
    let new = watching.rebuild();
    kill(new, Signal::SIGKILL).unwrap();
    assert_eq!(server.wait_exit(), Exit::Code(128 + 9));
    server.wait_no_survivors();
    let outcome = Launch::new(&["--reload", "-b", "unix:/nonexistent/sock"]).run();
    assert_eq!(outcome.exit, Exit::Code(1), "{outcome:?}");
}

/// Under a service manager, the master is the process that was started.
#[test]
fn managed_master_has_no_parent() {
    let server = Launch::new(&["--reload", "-k", "mio"]).env("LISTEN_FDS", "0").start();
    assert_eq!(master(&server), server.pid);
    server.finish();
}
