//! New before old, and nothing is lost.

use std::time::Instant;

use crate::os::signal::Signal;
use crate::testkit::log_capture::Record;
use crate::testkit::server::{CheckResult, TestServer, describe_exit, under_load, violation};
use crate::testkit::{ContractTest, DEADLINE};

pub(super) fn by_units(test: &ContractTest) -> CheckResult {
    let flags = ["--max-requests", "20", "--max-requests-jitter", "10"];
    recycle(test, &flags, 4)
}

pub(super) fn by_age(test: &ContractTest) -> CheckResult {
    recycle(test, &["--max-lifetime", "1s"], 3)
}

/// Waits under load until so many workers have been recycled.
fn recycle(test: &ContractTest, flags: &[&str], count: usize) -> CheckResult {
    let mut server = TestServer::start(test, flags)?;
    server.wait_workers(2)?;
    under_load(&mut server, |scene| {
        let mut mark = 0;
        let end = Instant::now() + DEADLINE;
        for number in 1..=count {
            let expected = format!("{count} workers are recycled; this is number {number}");
            let is_end = |record: &Record| record.message() == "worker exited";
            let exited = scene.wait_for(mark, &expected, is_end)?;
            let is_it = |record: &Record| record.pid() == exited.pid() && is_end(record);
            mark = scene.records().iter().position(is_it).map_or(mark, |at| at + 1);
            if exited.text("reason") != Some("recycled") || exited.number("code") != Some(0) {
                let expected = "a worker is recycled, and leaves with 0";
                return Err(scene.violation(expected, describe_exit(&exited)));
            }
            if Instant::now() > end {
                return Err(scene.violation(expected, "it takes too long"));
            }
        }
        Ok(())
    })?;
    expect_never_fewer_than(&server, 2)
}

/// Since all were ready, so many have been ready at any time who had not been asked to leave.
fn expect_never_fewer_than(server: &TestServer<'_>, count: usize) -> CheckResult {
    let (mut serving, mut complete) = (Vec::new(), false);
    for record in server.records() {
        match (record.message(), record.pid()) {
            ("worker ready", Some(pid)) => serving.push(pid),
            ("worker draining" | "worker exited", Some(pid)) => {
                serving.retain(|other| *other != pid);
            }
            _ => continue,
        }
        complete |= serving.len() == count;
        if complete && serving.len() < count {
            let seen = format!("{} are left when the log says {record:?}", serving.len());
            return Err(violation("a worker is asked to leave when its successor is ready", seen));
        }
    }
    Ok(())
}

pub(super) fn reload(test: &ContractTest) -> CheckResult {
    let mut server = TestServer::start(test, &[])?;
    let old = server.wait_workers(2)?;
    under_load(&mut server, |scene| {
        scene.work(5)?;
        scene.signal(Signal::Hup)?;
        let expected = "a reload comes to its end";
        scene.wait_for(0, expected, |record| record.message() == "reload complete")?;
        for worker in &old {
            let exited = scene.wait_exited(worker.pid)?;
            if exited.number("code") != Some(0) {
                return Err(scene.violation("an old worker leaves with 0", describe_exit(&exited)));
            }
        }
        scene.work(5)
    })?;
    expect_never_fewer_than(&server, 2)?;
    server.signal(Signal::Term)?;
    server.expect_clean_exit(DEADLINE)
}
