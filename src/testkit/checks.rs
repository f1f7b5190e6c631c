//! How each rule is tried.

mod heartbeat;
mod leaks;
mod orphans;
mod recycling;
mod stops;

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use super::proc::stat;
use super::rule::Rule;
use super::server::{CheckResult, TestServer, violation};
use super::workload::Task;
use super::{ContractTest, DEADLINE};
use crate::os::signal::Signal;

/// Tries a rule.
pub(super) fn check(rule: Rule, test: &ContractTest) -> CheckResult {
    match rule {
        Rule::Ready => ready(test),
        Rule::Work => work(test),
        Rule::IdleHeartbeat => heartbeat::idle(test),
        Rule::BusyHeartbeat => heartbeat::busy(test),
        Rule::Quiet => heartbeat::quiet(test),
        Rule::Hang => heartbeat::hang(test),
        Rule::Stopped => heartbeat::stopped(test),
        Rule::Killed => leaks::killed(test),
        Rule::Drain => stops::drain(test),
        Rule::Queue => stops::queue(test),
        Rule::IdleClients => stops::idle_clients(test),
        Rule::DrainLimit => stops::drain_limit(test),
        Rule::DrainSingleWorker => stops::drain_single_worker(test),
        Rule::QuickStop => stops::quick_stop(test),
        Rule::RecycleByUnits => recycling::by_units(test),
        Rule::RecycleByAge => recycling::by_age(test),
        Rule::Reload => recycling::reload(test),
        Rule::OrphanIdle => orphans::idle(test),
        Rule::OrphanBusy => orphans::busy(test),
        Rule::OrphanHung => orphans::hung(test),
        Rule::Descriptors => leaks::descriptors(test),
        Rule::Replacements => leaks::replacements(test),
    }
}

fn ready(test: &ContractTest) -> CheckResult {
    let mut server = TestServer::start(test, &["--boot-timeout", "10s"])?;
    let workers = server.wait_workers(2)?;
    let threads = stat(server.pid).map_or(0, |stat| stat.threads);
    if threads != 1 {
        return Err(violation("the master has one thread", format!("it has {threads}")));
    }
    if workers[0].slot == workers[1].slot {
        return Err(violation("two workers have two slots", format!("{workers:?}")));
    }
    server.signal(Signal::Term)?;
    server.expect_clean_exit(DEADLINE)
}

/// Work is done; and where it tells by whom, not always by the same.
fn work(test: &ContractTest) -> CheckResult {
    let server = TestServer::start(test, &[])?;
    let workers = server.wait_workers(2)?;
    server.work(10)?;
    let (mut seen, end) = (BTreeSet::new(), Instant::now() + DEADLINE);
    while Instant::now() < end && seen.len() < workers.len() {
        // Several at once: a worker that is busy leaves work to the others.
        let pending = (0..4).map(|_| server.begin(Task::Quick));
        for work in pending.collect::<Result<Vec<_>, _>>()? {
            match work.wait(DEADLINE) {
                Ok(done) => match done.worker {
                    Some(worker) => drop(seen.insert(worker)),
                    None => return Ok(()), // nobody can tell
                },
                Err(error) => return Err(server.violation("work that is brought is done", error)),
            }
        }
        // So that a worker that has just served is not the one that is awake.
        thread::sleep(Duration::from_millis(5));
    }
    let is_theirs = |pid: &u32| workers.iter().any(|w| u32::try_from(w.pid.as_raw()) == Ok(*pid));
    if seen.len() < workers.len() || !seen.iter().all(is_theirs) {
        return Err(server.violation("each worker does some of the work", format!("{seen:?} do")));
    }
    Ok(())
}
