//! How the workers of a pool have ended, and what they had done.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use super::supervisor::{ExitReason, ExitReport};
use crate::arbiter::snapshot::{ExitSnapshot, PoolTotals};
use crate::os::process::{Exit, Pid};
use crate::scoreboard::WorkTotals;
use crate::time::MonotonicTime;

/// The exits of a pool's workers: how many for each reason, and the last of each slot.
#[derive(Debug, Default)]
pub(super) struct ExitHistory {
    counts: [u64; ExitReason::ALL.len()],
    started: u64,
    boots: u64,
    boot_time: Duration,
    /// What all workers that have exited had counted.
    work: WorkTotals,
    /// The largest totals that were shown: a worker that writes nonsense cannot make one go back.
    work_shown: RefCell<WorkTotals>,
    last: BTreeMap<usize, LastExit>,
    /// What of all that the workers of other masters had done.
    earlier: PoolTotals,
}

#[derive(Debug)]
struct LastExit {
    pid: Pid,
    report: ExitReport,
    exit: String,
    note: String,
    at: MonotonicTime,
}

impl ExitHistory {
    pub(super) fn on_started(&mut self) {
        self.started += 1;
    }

    pub(super) fn on_ready(&mut self, uptime: Duration) {
        self.boots += 1;
        self.boot_time = self.boot_time.saturating_add(uptime);
    }

    /// Adds what the workers of another master had done.
    pub(super) fn add_earlier(&mut self, earlier: &PoolTotals) {
        self.earlier.add(earlier);
        self.work.add(&earlier.work);
        self.started = self.started.saturating_add(earlier.workers_started);
        self.boots = self.boots.saturating_add(earlier.boots);
        self.boot_time = self.boot_time.saturating_add(earlier.boot_time);
        for (reason, count) in ExitReason::ALL.iter().zip(&mut self.counts) {
            let known = earlier.exits.iter().find(|(name, _)| *name == reason.as_str());
            *count = count.saturating_add(known.map_or(0, |(_, earlier)| *earlier));
        }
    }

    pub(super) fn on_exit(
        &mut self,
        (pid, exit): (Pid, Exit),
        report: &ExitReport,
        (note, work): (&str, &WorkTotals),
        at: MonotonicTime,
    ) {
        self.counts[report.reason as usize] += 1;
        self.work.add(work);
        let last =
            LastExit { pid, report: *report, exit: exit.to_string(), note: note.to_owned(), at };
        self.last.insert(report.slot, last);
    }

    /// Returns what has been counted, if the workers that are present have counted `work`.
    pub(super) fn totals(&self, mut work: WorkTotals) -> PoolTotals {
        work.add(&self.work);
        let mut shown = self.work_shown.borrow_mut();
        shown.raise_to(&work);
        let counts = ExitReason::ALL.iter().zip(self.counts);
        PoolTotals {
            work: shown.clone(),
            workers_started: self.started,
            boots: self.boots,
            boot_time: self.boot_time,
            exits: counts.map(|(reason, count)| (reason.as_str(), count)).collect(),
        }
    }

    /// Returns what of the totals the workers of other masters had done.
    pub(super) fn earlier(&self) -> &PoolTotals {
        &self.earlier
    }

    /// Returns the last exit of each slot.
    pub(super) fn last_exits(&self, now: MonotonicTime) -> Vec<ExitSnapshot> {
        self.last.iter().map(|(slot, exit)| exit.snapshot(*slot, now)).collect()
    }
}

impl LastExit {
    fn snapshot(&self, slot: usize, now: MonotonicTime) -> ExitSnapshot {
        ExitSnapshot {
            pid: self.pid.as_raw(),
            slot,
            reason: self.report.reason.as_str(),
            exit: self.exit.clone(),
            note: self.note.clone(),
            uptime: self.report.uptime,
            age: now.duration_since(self.at),
        }
    }
}
