//! Descriptors and processes that workers, clients and replacements leak.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use crate::os::process::Pid;
use crate::os::signal::Signal;
use crate::os::testing;
use crate::testkit::deadline::DEADLINE;
use crate::testkit::proc::{becomes_true, children};
use crate::testkit::server::{CheckResult, TestServer};
use crate::testkit::target::TestTarget;
use crate::testkit::workload::Task;

pub(super) fn killed(target: &TestTarget) -> CheckResult {
    let server = TestServer::start(target, &[])?;
    for victim in server.wait_workers(2)? {
        testing::send_sigkill(victim.pid);
        server.wait_exited(victim.pid)?;
        server.work(2)?;
        server.wait_replaced(victim)?;
        server.work(2)?;
    }
    Ok(())
}

pub(super) fn descriptors(target: &TestTarget) -> CheckResult {
    const UNITS: usize = 60;
    let server = TestServer::start(target, &["--workers", "1"])?;
    let worker = server.wait_workers(1)?[0];
    // A few units first, so that what is opened once is open.
    server.work(5)?;
    let mut before = count_fds(worker.pid);
    becomes_true(DEADLINE / 20, || {
        before = before.min(count_fds(worker.pid));
        false
    });
    for _ in 0..UNITS / 3 {
        server.work(2)?;
        drop(server.idle_client()?);
        drop(server.begin(Task::Quick)?); // disconnects without waiting
    }
    if becomes_true(DEADLINE, || count_fds(worker.pid) <= before) {
        return Ok(());
    }
    let after = count_fds(worker.pid);
    let expected = format!("a worker has no more descriptors after {UNITS} units of work");
    Err(server.violation(expected, format!("it had {before} before, and has {after} now")))
}

fn count_fds(pid: Pid) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Counts the descriptors of a process once it opens no more of them: a worker may open some after it
/// is ready.
fn settled_fds(pid: Pid) -> usize {
    const STEADY_LOOKS: usize = 30;
    let (mut count, mut looks) = (count_fds(pid), 0);
    becomes_true(DEADLINE, || {
        let now = count_fds(pid);
        looks = if now == count { looks + 1 } else { 0 };
        count = now;
        looks == STEADY_LOOKS
    });
    count
}

/// Returns (device, inode) of the unlinked files that a process has open, such as a heartbeat file.
fn anonymous_files(pid: Pid) -> BTreeSet<(u64, u64)> {
    let Ok(dir) = fs::read_dir(format!("/proc/{pid}/fd")) else { return BTreeSet::new() };
    let files = dir.filter_map(|entry| fs::metadata(entry.ok()?.path()).ok());
    let files = files.filter(|file| file.is_file() && file.nlink() == 0);
    files.map(|file| (file.dev(), file.ino())).collect()
}

pub(super) fn replacements(target: &TestTarget) -> CheckResult {
    const ROUNDS: usize = 10;
    let mut server = TestServer::start(target, &[])?;
    let mut workers = server.wait_workers(2)?;
    let mut before = (0, 0);
    for round in 0..ROUNDS {
        let victim = workers[round % 2];
        testing::send_sigkill(victim.pid);
        workers[round % 2] = server.wait_replaced(victim)?;
        if round == 1 {
            // One replacement in each slot first, so that what is opened once is open.
            before = (settled_fds(server.pid), settled_fds(workers[1].pid));
        }
    }
    let master = server.pid;
    let worker = workers[1].pid;
    if !becomes_true(DEADLINE, || count_fds(master) <= before.0 && count_fds(worker) <= before.1) {
        let now = (count_fds(master), count_fds(worker));
        let expected = format!("{ROUNDS} replacements leak no descriptor");
        let seen = format!("master and worker had {before:?} before, and have {now:?} now");
        return Err(server.violation(expected, seen));
    }
    let shared: Vec<_> =
        anonymous_files(workers[0].pid).intersection(&anonymous_files(worker)).copied().collect();
    if !shared.is_empty() {
        let seen = format!("they share (device, inode) {shared:?}");
        return Err(
            server.violation("two workers share no unlinked file, such as a heartbeat file", seen)
        );
    }
    if !becomes_true(DEADLINE, || children(master).len() == 2) {
        let seen = format!("{:?}", children(master));
        return Err(server.violation("the master has two children, and no zombie", seen));
    }
    server.signal(Signal::Term)?;
    server.expect_clean_exit(DEADLINE)
}

/// Finds processes that have left the session of the program, which a stop must not leave behind.
pub(super) fn processes(target: &TestTarget) -> CheckResult {
    const EXIT_TIME: Duration = Duration::from_secs(5);
    let mut server = TestServer::start(target, &[])?;
    let victim = server.wait_workers(2)?[0];
    server.work(3)?;
    testing::send_signal(victim.pid, Signal::Term);
    server.wait_replaced(victim)?;
    server.work(3)?;
    server.signal(Signal::Term)?;
    server.expect_clean_exit(DEADLINE)?;
    if becomes_true(EXIT_TIME, || server.strays().is_empty()) {
        return Ok(());
    }
    let strays =
        server.strays().iter().map(|stray| describe_command(stray.pid)).collect::<Vec<_>>();
    let expected = "after the stop, no process that a worker has started is left";
    Err(server.violation(expected, format!("these are left: {}", strays.join("; "))))
}

fn describe_command(pid: Pid) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = String::from_utf8_lossy(&words).replace('\0', " ");
    format!("{pid} {:?}", words.trim_end())
}
