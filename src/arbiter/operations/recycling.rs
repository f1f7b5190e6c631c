//! When the replacement of workers has come true. Pure.

use std::time::Duration;

use serde_json::{Value, json};

use super::present::{MARGIN, Present, Progress, Verdict};
use crate::arbiter::pool::supervisor::WorkerId;
use crate::time::MonotonicTime;

/// Workers that are replaced.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::arbiter) struct Recycling {
    workers: Vec<Recycled>,
    /// How long one step may take: a boot, a drain and a kill.
    step_time: Duration,
    /// How many steps have been made, and by when the next must be.
    steps: usize,
    deadline: MonotonicTime,
}

/// A worker that is replaced.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::arbiter) struct Recycled {
    pub(in crate::arbiter) pool: String,
    pub(in crate::arbiter) slot: usize,
    pub(in crate::arbiter) id: WorkerId,
    pub(in crate::arbiter) pid: i32,
    /// The failures of the slot before.
    pub(in crate::arbiter) failures: u32,
    pub(in crate::arbiter) new_pid: Option<i32>,
    pub(in crate::arbiter) has_exited: bool,
}

impl Recycling {
    /// Begins at `now`. `step_time` is the longest time in which a worker boots, drains and is killed.
    pub(in crate::arbiter) fn new(
        workers: Vec<Recycled>,
        step_time: Duration,
        now: MonotonicTime,
    ) -> Self {
        let step_time = step_time.saturating_add(MARGIN);
        Self { workers, step_time, steps: 0, deadline: now.saturating_add(step_time) }
    }

    pub(super) fn deadline(&self) -> MonotonicTime {
        self.deadline
    }

    pub(super) fn look(&mut self, present: &Present<'_>, now: MonotonicTime) -> Verdict {
        for worker in self.workers.iter_mut().filter(|it| !it.is_replaced()) {
            if let Err(reason) = worker.look(present) {
                return Verdict::Failed(reason);
            }
        }
        let (total, replaced) = (self.workers.len(), |it: &&Recycled| it.is_replaced());
        let done = self.workers.iter().filter(replaced).count();
        if done == total {
            let replaced = self.workers.iter().map(Recycled::to_json);
            return Verdict::Done(json!({ "replaced": replaced.collect::<Vec<_>>() }));
        }
        let steps = self.workers.iter().map(Recycled::steps).sum();
        if steps > self.steps {
            self.steps = steps;
            self.deadline = now.saturating_add(self.step_time);
        }
        if self.deadline <= now {
            return Verdict::Failed(format!("{done} of {total} workers are replaced"));
        }
        let phase = if self.workers.iter().any(|it| it.new_pid.is_some() && !it.has_exited) {
            "draining"
        } else {
            "booting"
        };
        Verdict::Running(Progress { done, total, phase })
    }
}

impl Recycled {
    fn is_replaced(&self) -> bool {
        self.has_exited && self.new_pid.is_some()
    }

    fn steps(&self) -> usize {
        usize::from(self.has_exited) + usize::from(self.new_pid.is_some())
    }

    fn look(&mut self, present: &Present<'_>) -> Result<(), String> {
        let Self { pool, slot, .. } = self;
        let Some(view) = (present.pool)(pool) else {
            return Err(format!("pool {pool:?} was removed"));
        };
        let supervisor = view.supervisor;
        if *slot >= supervisor.target() {
            return Err(format!("slot {slot} of pool {pool:?} was removed"));
        }
        self.has_exited |= !supervisor.has_worker(self.id);
        if self.new_pid.is_none() {
            let newer = supervisor.newest_ready(*slot).filter(|newest| *newest > self.id);
            self.new_pid = newer.and_then(&view.pid_of);
        }
        if self.new_pid.is_none() && supervisor.slot_failures(*slot) > self.failures {
            return Err(format!(
                "the new worker of slot {slot} of pool {pool:?} does not become ready: {}",
                view.failure_reason
            ));
        }
        Ok(())
    }

    fn to_json(&self) -> Value {
        json!({
            "pool": self.pool,
            "slot": self.slot,
            "old_pid": self.pid,
            "new_pid": self.new_pid,
        })
    }
}
