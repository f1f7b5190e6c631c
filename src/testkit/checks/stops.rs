//! Drains and quick stops.

use std::time::{Duration, Instant};

use crate::os::signal::Signal;
use crate::os::testing;
use crate::testkit::deadline::DEADLINE;
use crate::testkit::log_capture::Record;
use crate::testkit::server::{CheckResult, TestServer, describe_exit, since};
use crate::testkit::target::TestTarget;
use crate::testkit::workload::Task;

/// Far below `graceful_timeout`, which is 30 s, and enough on a busy machine.
const SOON_AFTER_TERM: Duration = Duration::from_secs(12);

pub(super) fn drain(target: &TestTarget) -> CheckResult {
    let mut server = TestServer::start(target, &[])?;
    server.wait_workers(2)?;
    let slow = server.begin(Task::Slow(Duration::from_millis(1200)))?;
    server.signal(Signal::Term)?;
    server.finish(slow, "work that began before SIGTERM completes")?;
    server.expect_clean_exit(SOON_AFTER_TERM)?;
    expect_clean_exits(&server, "requested")
}

/// Expects that every exited worker has this reason and code 0.
fn expect_clean_exits(server: &TestServer<'_>, reason: &str) -> CheckResult {
    for exited in server.records().iter().filter(|record| record.message() == "worker exited") {
        if exited.text("reason") != Some(reason) || exited.number("code") != Some(0) {
            let expected = "a worker that is told to stop exits with code 0";
            return Err(server.violation(expected, describe_exit(exited)));
        }
    }
    Ok(())
}

pub(super) fn queue(target: &TestTarget) -> CheckResult {
    let mut server = TestServer::start(target, &["--workers", "1", "--threads", "1"])?;
    let slow = server.begin(Task::Slow(Duration::from_millis(800)))?;
    let queued = (0..8).map(|_| server.begin(Task::Quick)).collect::<Result<Vec<_>, _>>()?;
    server.signal(Signal::Term)?;
    server.finish(slow, "work that began before SIGTERM completes")?;
    for work in queued {
        server.finish(work, "work that waits in an accept queue before SIGTERM completes")?;
    }
    server.expect_clean_exit(SOON_AFTER_TERM)
}

pub(super) fn idle_clients(target: &TestTarget) -> CheckResult {
    let flags = ["--keep-alive", "120s", "--header-timeout", "120s"];
    let mut server = TestServer::start(target, &flags)?;
    let silent = server.idle_client()?;
    let mut repeat_client = server.repeat_client();
    if let Some(run_unit) = &mut repeat_client {
        run_unit().map_err(|error| server.violation("a persistent client is served", error))?;
    }
    let begun = Instant::now();
    server.signal(Signal::Term)?;
    server.expect_clean_exit(SOON_AFTER_TERM).map_err(|mut violation| {
        let expected = "with idle clients connected, the program exits soon after SIGTERM";
        violation.expected = format!("{expected} ({})", violation.expected);
        violation.seen = format!("{} ({})", violation.seen, since(begun));
        violation
    })?;
    drop((silent, repeat_client));
    Ok(())
}

pub(super) fn drain_limit(target: &TestTarget) -> CheckResult {
    let mut server = TestServer::start(target, &["--timeout", "0", "--graceful-timeout", "1s"])?;
    let hanging = server.begin(Task::Hang)?;
    server.signal(Signal::Term)?;
    server.expect_clean_exit(SOON_AFTER_TERM)?;
    drop(hanging);
    Ok(())
}

pub(super) fn drain_single_worker(target: &TestTarget) -> CheckResult {
    let server = TestServer::start(target, &[])?;
    let workers = server.wait_workers(2)?;
    let slow = server.begin(Task::Slow(Duration::from_millis(700)))?;
    // The worker that has the work is one of them.
    for worker in &workers {
        testing::send_signal(worker.pid, Signal::Term);
    }
    server.finish(slow, "work that began before its worker got SIGTERM completes")?;
    for worker in workers {
        let exited = server.wait_exited(worker.pid)?;
        if exited.number("code") != Some(0) {
            return Err(server.violation(
                "a worker that gets SIGTERM exits with code 0",
                describe_exit(&exited),
            ));
        }
        server.wait_replaced(worker)?;
    }
    server.work(3)
}

/// Stops a worker of which one thread is stuck. If that is its only thread, the runtime has to kill it.
pub(super) fn quick_stop_hung(target: &TestTarget) -> CheckResult {
    const TASK_TIME: Duration = Duration::from_secs(2);
    let flags = ["--workers", "1", "--timeout", "0", "--abort-timeout", "60s"];
    let mut server = TestServer::start(target, &flags)?;
    let worker = server.wait_workers(1)?[0];
    let hanging = server.begin(Task::Hang)?;
    if server.begin(Task::Quick)?.wait(TASK_TIME).is_err() {
        return Ok(());
    }
    server.signal(Signal::Int)?;
    let is_exit = |record: &Record| record.is("worker exited", worker.pid);
    let expected = "a worker with other threads exits at once, although one is stuck";
    let exited = server.wait_for(0, expected, is_exit)?;
    if exited.number("code") != Some(0) {
        return Err(server.violation(expected, describe_exit(&exited)));
    }
    drop(hanging);
    Ok(())
}

pub(super) fn quick_stop(target: &TestTarget) -> CheckResult {
    let mut server = TestServer::start(target, &["--abort-timeout", "20s"])?;
    server.wait_workers(2)?;
    let slow = server.begin(Task::Slow(Duration::from_secs(3600)))?;
    drop(server.idle_client()?);
    server.signal(Signal::Int)?;
    let is_clean_exit =
        |record: &Record| record.message() == "worker exited" && record.number("code") == Some(0);
    // The worker with the slow unit may be blocked in it; the idle one must exit at once.
    server.wait_for(0, "an idle worker exits with code 0 at once", is_clean_exit)?;
    drop(slow);
    drop(server);
    let mut server = TestServer::start(target, &["--abort-timeout", "1s"])?;
    let slow = server.begin(Task::Slow(Duration::from_secs(3600)))?;
    server.signal(Signal::Int)?;
    server.expect_clean_exit(DEADLINE.min(SOON_AFTER_TERM))?;
    drop(slow);
    Ok(())
}
