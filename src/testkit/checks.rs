//! The check of each rule.

mod accepting;
mod heartbeat;
mod leaks;
mod orphans;
mod recycling;
mod signals;
mod stops;

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use super::deadline::DEADLINE;
use super::proc::stat;
use super::rule::Rule;
use super::server::{CheckResult, TestServer, violation};
use super::target::TestTarget;
use super::workload::Task;

/// Runs the check of a rule.
pub(super) fn check(rule: Rule, target: &TestTarget) -> CheckResult {
    match rule {
        Rule::Ready => ready(target),
        Rule::ReadyInTime => accepting::ready_in_time(target),
        Rule::Signals => signals::signals(target),
        Rule::Work => work(target),
        Rule::WakeUps => accepting::wake_ups(target),
        Rule::ClientLimit => accepting::client_limit(target),
        Rule::IdleHeartbeat => heartbeat::idle(target),
        Rule::BusyHeartbeat => heartbeat::busy(target),
        Rule::Quiet => heartbeat::quiet(target),
        Rule::Hang => heartbeat::hang(target),
        Rule::HangAmongOthers => heartbeat::hang_among_others(target),
        Rule::Stopped => heartbeat::stopped(target),
        Rule::Killed => leaks::killed(target),
        Rule::Drain => stops::drain(target),
        Rule::Queue => stops::queue(target),
        Rule::StopsAccepting => accepting::stops_accepting(target),
        Rule::IdleClients => stops::idle_clients(target),
        Rule::DrainLimit => stops::drain_limit(target),
        Rule::DrainSingleWorker => stops::drain_single_worker(target),
        Rule::QuickStop => stops::quick_stop(target),
        Rule::QuickStopHung => stops::quick_stop_hung(target),
        Rule::RecycleByUnits => recycling::by_units(target),
        Rule::RecycleByAge => recycling::by_age(target),
        Rule::Reload => recycling::reload(target),
        Rule::OrphanIdle => orphans::idle(target),
        Rule::OrphanBusy => orphans::busy(target),
        Rule::OrphanHung => orphans::hung(target),
        Rule::Descriptors => leaks::descriptors(target),
        Rule::Replacements => leaks::replacements(target),
        Rule::Processes => leaks::processes(target),
    }
}

fn ready(target: &TestTarget) -> CheckResult {
    let server = TestServer::start(target, &["--boot-timeout", "10s"])?;
    let workers = server.wait_workers(2)?;
    let threads = stat(server.pid).map_or(0, |stat| stat.threads);
    if threads != 1 {
        return Err(violation("the master has one thread", format!("it has {threads}")));
    }
    if workers[0].slot == workers[1].slot {
        return Err(violation("two workers have different slots", format!("{workers:?}")));
    }
    Ok(())
}

/// Checks that work completes, and that each worker does some of it if work reports its process.
fn work(target: &TestTarget) -> CheckResult {
    let server = TestServer::start(target, &[])?;
    let workers = server.wait_workers(2)?;
    server.work(10)?;
    let (mut seen, end) = (BTreeSet::new(), Instant::now() + DEADLINE);
    while Instant::now() < end && seen.len() < workers.len() {
        // Several at once: a busy worker leaves work to the others.
        let pending = (0..4).map(|_| server.begin(Task::Quick));
        for work in pending.collect::<Result<Vec<_>, _>>()? {
            match work.wait(DEADLINE) {
                Ok(done) => match done.worker {
                    Some(worker) => drop(seen.insert(worker)),
                    None => return Ok(()), // work does not report its process
                },
                Err(error) => return Err(server.violation("work that has begun completes", error)),
            }
        }
        // A pause, so that the worker that served last is asleep again like the others.
        thread::sleep(Duration::from_millis(5));
    }
    let is_worker = |pid: &u32| workers.iter().any(|w| u32::try_from(w.pid.as_raw()) == Ok(*pid));
    if seen.len() < workers.len() || !seen.iter().all(is_worker) {
        return Err(server
            .violation("each worker does some of the work", format!("the processes {seen:?} do")));
    }
    Ok(())
}
