//! Workers after the death of their master.

use std::time::Duration;

use crate::testkit::deadline::DEADLINE;
use crate::testkit::server::{CheckResult, TestServer};
use crate::testkit::target::TestTarget;
use crate::testkit::workload::Task;

pub(super) fn idle(target: &TestTarget) -> CheckResult {
    let mut server = TestServer::start(target, &["--workers", "3"])?;
    server.wait_workers(3)?;
    server.work(3)?;
    server.kill_master()?;
    server.expect_no_survivors(Duration::from_secs(5))
}

pub(super) fn busy(target: &TestTarget) -> CheckResult {
    let mut server = TestServer::start(target, &[])?;
    server.wait_workers(2)?;
    let slow = server.begin(Task::Slow(Duration::from_millis(700)))?;
    server.kill_master()?;
    server.finish(slow, "work that began before the death of the master completes")?;
    server.expect_no_survivors(Duration::from_secs(12))
}

pub(super) fn hung(target: &TestTarget) -> CheckResult {
    let mut server = TestServer::start(target, &["--timeout", "0", "--graceful-timeout", "1s"])?;
    let hanging = server.begin(Task::Hang)?;
    server.kill_master()?;
    server.expect_no_survivors(DEADLINE)?;
    drop(hanging);
    Ok(())
}
