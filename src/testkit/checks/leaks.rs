//! What workers, their clients and their replacements leave behind.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::os::signal::Signal;
use crate::os::testing;
use crate::testkit::proc::{becomes_true, children};
use crate::testkit::server::{CheckResult, TestServer};
use crate::testkit::workload::Task;
use crate::testkit::{ContractTest, DEADLINE, Pid};

pub(super) fn killed(test: &ContractTest) -> CheckResult {
    let server = TestServer::start(test, &[])?;
    for victim in server.wait_workers(2)? {
        testing::send_sigkill(victim.pid);
        server.wait_exited(victim.pid)?;
        server.work(2)?;
        server.wait_replaced(victim)?;
        server.work(2)?;
    }
    Ok(())
}

pub(super) fn descriptors(test: &ContractTest) -> CheckResult {
    const UNITS: usize = 60;
    let server = TestServer::start(test, &["--workers", "1"])?;
    let worker = server.wait_workers(1)?[0];
    // Whatever is made once has been made after a few.
    server.work(5)?;
    let mut before = count(worker.pid);
    becomes_true(DEADLINE / 20, || {
        before = before.min(count(worker.pid));
        false
    });
    for _ in 0..UNITS / 3 {
        server.work(2)?;
        drop(server.idle_client()?);
        drop(server.begin(Task::Quick)?); // and does not wait for it
    }
    if becomes_true(DEADLINE, || count(worker.pid) <= before) {
        return Ok(());
    }
    let after = count(worker.pid);
    let expected = format!("a worker has no more descriptors after {UNITS} units of work");
    Err(server.violation(expected, format!("it had {before}, and has {after}")))
}

fn count(pid: Pid) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// The files without a name that a process has open, such as a heartbeat.
fn anonymous_files(pid: Pid) -> BTreeSet<(u64, u64)> {
    let Ok(folder) = fs::read_dir(format!("/proc/{pid}/fd")) else { return BTreeSet::new() };
    let files = folder.filter_map(|entry| fs::metadata(entry.ok()?.path()).ok());
    let files = files.filter(|file| file.is_file() && file.nlink() == 0);
    files.map(|file| (file.dev(), file.ino())).collect()
}

pub(super) fn replacements(test: &ContractTest) -> CheckResult {
    const ROUNDS: usize = 10;
    let mut server = TestServer::start(test, &[])?;
    let mut workers = server.wait_workers(2)?;
    let mut before = (0, 0);
    for round in 0..ROUNDS {
        let victim = workers[round % 2];
        testing::send_sigkill(victim.pid);
        workers[round % 2] = server.wait_replaced(victim)?;
        if round == 1 {
            // Whatever is made once has been made after one of each.
            before = (count(server.pid), count(workers[1].pid));
        }
    }
    let (master, worker) = (server.pid, workers[1].pid);
    if !becomes_true(DEADLINE, || count(master) <= before.0 && count(worker) <= before.1) {
        let now = (count(master), count(worker));
        let expected = format!("after {ROUNDS} replacements there are no more descriptors");
        let seen = format!("master and worker had {before:?}, and have {now:?}");
        return Err(server.violation(expected, seen));
    }
    let shared: Vec<_> =
        anonymous_files(workers[0].pid).intersection(&anonymous_files(worker)).copied().collect();
    if !shared.is_empty() {
        let seen = format!("they share (device, inode) {shared:?}");
        return Err(
            server.violation("two workers share no nameless file, such as a heartbeat", seen)
        );
    }
    if !becomes_true(DEADLINE, || children(master).len() == 2) {
        let seen = format!("{:?}", children(master));
        return Err(server.violation("the master has two children, and no zombie", seen));
    }
    server.signal(Signal::Term)?;
    server.expect_clean_exit(DEADLINE)
}
