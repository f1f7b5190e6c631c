//! What workers do when their master is dead.

use std::time::Duration;

use crate::testkit::server::{CheckResult, TestServer};
use crate::testkit::workload::Task;
use crate::testkit::{ContractTest, DEADLINE};

pub(super) fn idle(test: &ContractTest) -> CheckResult {
    let mut server = TestServer::start(test, &["--workers", "3"])?;
    server.wait_workers(3)?;
    server.work(3)?;
    server.kill_master()?;
    server.expect_no_survivors(Duration::from_secs(5))
}

pub(super) fn busy(test: &ContractTest) -> CheckResult {
    let mut server = TestServer::start(test, &[])?;
    server.wait_workers(2)?;
    let slow = server.begin(Task::Slow(Duration::from_millis(700)))?;
    server.kill_master()?;
    server.finish(slow, "work that was begun before the master died is done")?;
    server.expect_no_survivors(Duration::from_secs(12))
}

pub(super) fn hung(test: &ContractTest) -> CheckResult {
    let mut server = TestServer::start(test, &["--timeout", "0", "--graceful-timeout", "1s"])?;
    let hanging = server.begin(Task::Hang)?;
    server.kill_master()?;
    server.expect_no_survivors(DEADLINE)?;
    drop(hanging);
    Ok(())
}
