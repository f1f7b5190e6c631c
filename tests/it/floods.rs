//! Workers that keep the master busy: what it does for them in a time has a limit.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::launch::Launch;
use crate::proc::{descriptors_to, stat};
use crate::support::Server;

on_every_class_and_tokio!(
    wakeup_flood_costs_the_master_little,
    workers_are_reaped_without_wait4,
    ; tokio alone:
    sigcont_flood_costs_the_master_little,
    stopped_and_continued_worker_costs_the_master_little,
);

on_every_class_slowly!(
    sigcont_flood_costs_the_master_little,
    stopped_and_continued_worker_costs_the_master_little,
    flood_of_children_blocks_no_master,
);

/// How long the master is kept busy.
const FLOOD: Duration = Duration::from_secs(2);
/// The CPU time that it may use meanwhile, in clock ticks of 10 ms: 3 %.
const TICKS_MAX: u64 = 6;

/// Calls `attack` without a pause. Asserts that the master uses little CPU time, and that it still
/// replaces a worker.
#[track_caller]
fn expect_little_work(server: Server, mut attack: impl FnMut()) {
    let ticks = || stat(server.pid).unwrap().ticks;
    let (before, end) = (ticks(), Instant::now() + FLOOD);
    while Instant::now() < end {
        attack();
    }
    let used = ticks() - before;
    assert!(used <= TICKS_MAX, "{used} clock ticks of CPU time");
    let victim = server.workers()[0];
    kill(victim.pid, Signal::SIGKILL).unwrap();
    server.wait_replaced(victim);
    server.finish();
}

/// Opens the pipe by which a worker wakes its master: it has the write end, and the master both.
fn open_wakeup_pipe(master: Pid, worker: Pid) -> File {
    let target = |pid, fd| fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap();
    let of_master: Vec<_> =
        descriptors_to(master, "pipe:").into_iter().map(|fd| target(master, fd)).collect();
    let is_shared = |fd: &u64| {
        let pipe = target(worker, *fd);
        of_master.iter().filter(|it| **it == pipe).count() == 2 && *fd > 2
    };
    let fd = descriptors_to(worker, "pipe:").into_iter().find(is_shared).unwrap();
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(OFlag::O_NONBLOCK.bits());
    options.open(format!("/proc/{worker}/fd/{fd}")).unwrap()
}

fn wakeup_flood_costs_the_master_little(class: &str) {
    let server = Server::start(&["-k", class, "-w", "2"]);
    let mut pipe = open_wakeup_pipe(server.pid, server.wait_workers(2)[1].pid);
    expect_little_work(server, move || {
        let _ = pipe.write(&[1]);
    });
}

fn sigcont_flood_costs_the_master_little(class: &str) {
    let server = Server::start(&["-k", class, "-w", "2"]);
    let master = server.pid;
    expect_little_work(server, || kill(master, Signal::SIGCONT).unwrap());
}

fn stopped_and_continued_worker_costs_the_master_little(class: &str) {
    let server = Server::start(&["-k", class, "-w", "2"]);
    let worker = server.wait_workers(2)[1].pid;
    expect_little_work(server, || {
        kill(worker, Signal::SIGSTOP).unwrap();
        kill(worker, Signal::SIGCONT).unwrap();
    });
}

/// Has a worker make children of its master, faster than one process can reap them. Each thread waits
/// while 128 of its children have not been reaped: the machine must not run out of PIDs.
const CHILDREN_OF_THE_MASTER: &str = r#"
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static char stacks[8][16384] __attribute__((aligned(16)));

static int child(void *unused) { _exit(0); }

static void *flood(void *stack) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, 0);
    pid_t children[128] = {0};
    for (unsigned n = 0;; n++) {
        pid_t *oldest = &children[n % 128];
        while (*oldest > 0 && kill(*oldest, 0) == 0)
            sched_yield();
        *oldest = clone(child, (char *)stack + sizeof stacks[0], CLONE_PARENT | CLONE_VM | CLONE_VFORK | SIGCHLD, 0);
    }
}

int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags) {
    static int begun;
    pthread_t thread;
    int result = syscall(SYS_accept4, fd, address, length, flags);
    if (result >= 0 && !begun++)
        for (int n = 0; n < 8; n++)
            pthread_create(&thread, 0, flood, stacks[n]);
    return result;
}
"#;

fn flood_of_children_blocks_no_master(class: &str) {
    let launch = Launch::new(&["-k", class]);
    let (source, library) = (launch.path("flood.c"), launch.path("flood.so"));
    fs::write(&source, CHILDREN_OF_THE_MASTER).unwrap();
    let flags = ["-shared", "-fPIC", "-pthread", "-o", &library, &source];
    if !Command::new("cc").args(flags).status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: no C compiler");
        return;
    }
    let server = launch.env("LD_PRELOAD", &library).start();
    assert_eq!(server.get("/").status(), 200); // the flood begins
    for count in 2..4 {
        server.signal(Signal::SIGTTIN);
        server.wait_workers(count);
    }
    let victim = server.workers()[2];
    kill(victim.pid, Signal::SIGKILL).unwrap();
    server.wait_replaced(victim);
    server.finish();
}

/// A filter of system calls may not know wait4(2).
fn workers_are_reaped_without_wait4(class: &str) {
    let launch = Launch::new(&["-k", class, "-w", "2"]).without_call(libc::SYS_wait4);
    let server = launch.start();
    let victim = server.wait_workers(2)[0];
    kill(victim.pid, Signal::SIGKILL).unwrap();
    server.wait_replaced(victim);
    server.finish();
}

/// If waitid(2) is missing too, no worker is ever reaped. The master says so once, and waits.
#[test]
fn master_that_cannot_reap_does_not_spin() {
    let server = Launch::new(&["-k", "mio"]).without_call(libc::SYS_waitid).start();
    kill(server.workers()[0].pid, Signal::SIGKILL).unwrap();
    server.wait_for("the error", |record| record.message() == "failed to reap children");
    let before = stat(server.pid).unwrap().ticks;
    std::thread::sleep(FLOOD);
    let used = stat(server.pid).unwrap().ticks - before;
    assert!(used <= TICKS_MAX, "{used} clock ticks of CPU time");
    assert_eq!(server.records_of("failed to reap children").len(), 1);
}
