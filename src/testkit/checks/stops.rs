//! Drains, and quick ends.

use std::time::{Duration, Instant};

use crate::os::signal::Signal;
use crate::os::testing;
use crate::testkit::server::{CheckResult, TestServer, describe_exit, since};
use crate::testkit::workload::Task;
use crate::testkit::{ContractTest, DEADLINE};

/// Far from `graceful_timeout`, which is 30 seconds, and generous on a busy machine.
const SOON_AFTER_TERM: Duration = Duration::from_secs(12);

pub(super) fn drain(test: &ContractTest) -> CheckResult {
    let mut server = TestServer::start(test, &[])?;
    server.wait_workers(2)?;
    let slow = server.begin(Task::Slow(Duration::from_millis(1200)))?;
    server.signal(Signal::Term)?;
    server.finish(slow, "work that was begun before a TERM is done")?;
    server.expect_clean_exit(SOON_AFTER_TERM)?;
    expect_clean_exits(&server, "requested")
}

/// Every worker that has ended was asked to, and left with 0.
fn expect_clean_exits(server: &TestServer<'_>, reason: &str) -> CheckResult {
    for exited in server.records().iter().filter(|record| record.message() == "worker exited") {
        if exited.text("reason") != Some(reason) || exited.number("code") != Some(0) {
            let expected = "a worker that is asked to leave ends with 0";
            return Err(server.violation(expected, describe_exit(exited)));
        }
    }
    Ok(())
}

pub(super) fn queue(test: &ContractTest) -> CheckResult {
    let mut server = TestServer::start(test, &["--workers", "1", "--threads", "1"])?;
    let slow = server.begin(Task::Slow(Duration::from_millis(800)))?;
    let queued = (0..8).map(|_| server.begin(Task::Quick)).collect::<Result<Vec<_>, _>>()?;
    server.signal(Signal::Term)?;
    server.finish(slow, "work that was begun before a TERM is done")?;
    for work in queued {
        server.finish(work, "work that waits in a queue before a TERM is done")?;
    }
    server.expect_clean_exit(SOON_AFTER_TERM)
}

pub(super) fn idle_clients(test: &ContractTest) -> CheckResult {
    let flags = ["--keep-alive", "120s", "--header-timeout", "120s"];
    let mut server = TestServer::start(test, &flags)?;
    let silent = server.idle_client()?;
    let mut repeat_client = server.repeat_client();
    if let Some(regular) = &mut repeat_client {
        regular().map_err(|error| server.violation("a client who stays is served", error))?;
    }
    let begun = Instant::now();
    server.signal(Signal::Term)?;
    server.expect_clean_exit(SOON_AFTER_TERM).map_err(|mut breach| {
        let idle = "with idle clients connected, the program ends soon after a TERM";
        breach.expected = format!("{idle} ({})", breach.expected);
        breach.seen = format!("{} ({})", breach.seen, since(begun));
        breach
    })?;
    drop((silent, repeat_client));
    Ok(())
}

pub(super) fn drain_limit(test: &ContractTest) -> CheckResult {
    let mut server = TestServer::start(test, &["--timeout", "0", "--graceful-timeout", "1s"])?;
    let hanging = server.begin(Task::Hang)?;
    server.signal(Signal::Term)?;
    server.expect_clean_exit(SOON_AFTER_TERM)?;
    drop(hanging);
    Ok(())
}

pub(super) fn drain_single_worker(test: &ContractTest) -> CheckResult {
    let server = TestServer::start(test, &[])?;
    let workers = server.wait_workers(2)?;
    let slow = server.begin(Task::Slow(Duration::from_millis(700)))?;
    // Whoever has the work is among them.
    for worker in &workers {
        testing::send_signal(worker.pid, Signal::Term);
    }
    server.finish(slow, "work that was begun before its worker got a TERM is done")?;
    for worker in workers {
        let exited = server.wait_exited(worker.pid)?;
        if exited.number("code") != Some(0) {
            return Err(
                server.violation("a worker that gets a TERM ends with 0", describe_exit(&exited))
            );
        }
        server.wait_replaced(worker)?;
    }
    server.work(3)
}

pub(super) fn quick_stop(test: &ContractTest) -> CheckResult {
    let mut server = TestServer::start(test, &["--abort-timeout", "20s"])?;
    server.wait_workers(2)?;
    let slow = server.begin(Task::Slow(Duration::from_secs(3600)))?;
    drop(server.idle_client()?);
    server.signal(Signal::Int)?;
    let idle = |record: &crate::testkit::log_capture::Record| {
        record.message() == "worker exited" && record.number("code") == Some(0)
    };
    // The one with the work may be stuck in it; the other one has no excuse.
    server.wait_for(0, "an idle worker leaves with 0 at once", idle)?;
    drop(slow);
    drop(server);
    let mut server = TestServer::start(test, &["--abort-timeout", "1s"])?;
    let slow = server.begin(Task::Slow(Duration::from_secs(3600)))?;
    server.signal(Signal::Int)?;
    server.expect_clean_exit(DEADLINE.min(SOON_AFTER_TERM))?;
    drop(slow);
    Ok(())
}
