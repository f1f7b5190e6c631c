//! Recycling and reloads: new before old, and no work is lost.

use std::time::Instant;

use crate::os::signal::Signal;
use crate::testkit::deadline::DEADLINE;
use crate::testkit::log_capture::Record;
use crate::testkit::server::{CheckResult, TestServer, describe_exit, under_load, violation};
use crate::testkit::target::TestTarget;

pub(super) fn by_units(target: &TestTarget) -> CheckResult {
    let flags = ["--max-requests", "20", "--max-requests-jitter", "10"];
    recycle(target, &flags, 4)
}

pub(super) fn by_age(target: &TestTarget) -> CheckResult {
    recycle(target, &["--max-lifetime", "1s"], 3)
}

/// Waits under load until `count` workers are recycled.
fn recycle(target: &TestTarget, flags: &[&str], count: usize) -> CheckResult {
    let mut server = TestServer::start(target, flags)?;
    server.wait_workers(2)?;
    under_load(&mut server, |server| {
        let mut mark = 0;
        let end = Instant::now() + DEADLINE;
        for number in 1..=count {
            let expected = format!("{count} workers are recycled; this is number {number}");
            let is_exit = |record: &Record| record.message() == "worker exited";
            let exited = server.wait_for(mark, &expected, is_exit)?;
            let is_same = |record: &Record| record.pid() == exited.pid() && is_exit(record);
            mark = server.records().iter().position(is_same).map_or(mark, |at| at + 1);
            if exited.text("reason") != Some("recycled") || exited.number("code") != Some(0) {
                let expected = "a worker is recycled, and exits with code 0";
                return Err(server.violation(expected, describe_exit(&exited)));
            }
            if Instant::now() > end {
                return Err(server.violation(expected, "it takes too long"));
            }
        }
        Ok(())
    })?;
    expect_never_fewer_than(&server, 2)
}

/// Expects that at least `count` workers were ready and not draining, at all times since all were ready.
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
            let seen = format!("{} serve at the log record {record:?}", serving.len());
            return Err(violation("a worker drains only after its replacement is ready", seen));
        }
    }
    Ok(())
}

pub(super) fn reload(target: &TestTarget) -> CheckResult {
    let mut server = TestServer::start(target, &[])?;
    let old = server.wait_workers(2)?;
    under_load(&mut server, |server| {
        server.work(5)?;
        server.signal(Signal::Hup)?;
        let expected = "a reload completes";
        server.wait_for(0, expected, |record| record.message() == "reload complete")?;
        for worker in &old {
            let exited = server.wait_exited(worker.pid)?;
            if exited.number("code") != Some(0) {
                return Err(
                    server.violation("an old worker exits with code 0", describe_exit(&exited))
                );
            }
        }
        server.work(5)
    })?;
    expect_never_fewer_than(&server, 2)?;
    server.signal(Signal::Term)?;
    server.expect_clean_exit(DEADLINE)
}
