//! How each rule is tried.

mod beats;
mod ends;
mod orphans;
mod recycling;
mod traces;

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use super::feed::Task;
use super::proc::stat;
use super::rule::Rule;
use super::scene::{Scene, Verdict, breach};
use super::{DEADLINE, Kit};
use crate::os::signal::Signal;

/// Tries a rule.
pub(super) fn check(rule: Rule, kit: &Kit) -> Verdict {
    match rule {
        Rule::Ready => ready(kit),
        Rule::Work => work(kit),
        Rule::IdleBeat => beats::idle(kit),
        Rule::BusyBeat => beats::busy(kit),
        Rule::Quiet => beats::quiet(kit),
        Rule::Hang => beats::hang(kit),
        Rule::Stopped => beats::stopped(kit),
        Rule::Killed => traces::killed(kit),
        Rule::Drain => ends::drain(kit),
        Rule::Queue => ends::queue(kit),
        Rule::IdleClients => ends::idle_clients(kit),
        Rule::DrainLimit => ends::drain_limit(kit),
        Rule::LeaveAlone => ends::leave_alone(kit),
        Rule::QuickEnd => ends::quick_end(kit),
        Rule::RecycleByUnits => recycling::by_units(kit),
        Rule::RecycleByAge => recycling::by_age(kit),
        Rule::Reload => recycling::reload(kit),
        Rule::OrphanIdle => orphans::idle(kit),
        Rule::OrphanBusy => orphans::busy(kit),
        Rule::OrphanHung => orphans::hung(kit),
        Rule::Descriptors => traces::descriptors(kit),
        Rule::Replacements => traces::replacements(kit),
    }
}

fn ready(kit: &Kit) -> Verdict {
    let mut scene = Scene::start(kit, &["--boot-timeout", "10s"])?;
    let workers = scene.wait_workers(2)?;
    let threads = stat(scene.pid).map_or(0, |stat| stat.threads);
    if threads != 1 {
        return Err(breach("the master has one thread", format!("it has {threads}")));
    }
    if workers[0].slot == workers[1].slot {
        return Err(breach("two workers have two slots", format!("{workers:?}")));
    }
    scene.tell(Signal::Term)?;
    scene.expect_clean_end(DEADLINE)
}

/// Work is done; and where it tells by whom, not always by the same.
fn work(kit: &Kit) -> Verdict {
    let scene = Scene::start(kit, &[])?;
    let workers = scene.wait_workers(2)?;
    scene.work(10)?;
    let (mut seen, end) = (BTreeSet::new(), Instant::now() + DEADLINE);
    while Instant::now() < end && seen.len() < workers.len() {
        // Several at once: a worker that is busy leaves work to the others.
        let errands = (0..4).map(|_| scene.begin(Task::Quick));
        for errand in errands.collect::<Result<Vec<_>, _>>()? {
            match errand.wait(DEADLINE) {
                Ok(done) => match done.worker {
                    Some(worker) => drop(seen.insert(worker)),
                    None => return Ok(()), // nobody can tell
                },
                Err(error) => return Err(scene.breach("work that is brought is done", error)),
            }
        }
        // So that a worker that has just served is not the one that is awake.
        thread::sleep(Duration::from_millis(5));
    }
    let is_theirs = |pid: &u32| workers.iter().any(|w| u32::try_from(w.pid.as_raw()) == Ok(*pid));
    if seen.len() < workers.len() || !seen.iter().all(is_theirs) {
        return Err(scene.breach("each worker does some of the work", format!("{seen:?} do")));
    }
    Ok(())
}
