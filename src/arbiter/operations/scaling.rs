//! When the change of a worker count has come true. Pure.

use std::time::Duration;

use serde_json::json;

use super::present::{MARGIN, PoolView, Present, Progress, Verdict};
use crate::arbiter::pool::supervisor::Supervisor;
use crate::time::MonotonicTime;

/// A change of a pool's worker count.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::arbiter) struct Scaling {
    from: usize,
    to: usize,
    /// The failures of the new slots before.
    failures: u32,
    /// How long one step may take: a boot, a drain and a kill.
    step_time: Duration,
    /// What has been reached, and by when the next step must be.
    reached: usize,
    deadline: MonotonicTime,
}

impl Scaling {
    /// Begins at `now`. `step_time` is the longest time in which a worker boots, drains and is killed.
    pub(in crate::arbiter) fn new(
        from: usize,
        to: usize,
        supervisor: &Supervisor,
        step_time: Duration,
        now: MonotonicTime,
    ) -> Self {
        let step_time = step_time.saturating_add(MARGIN);
        let deadline = now.saturating_add(step_time);
        let failures = failures(from, to, supervisor);
        Self { from, to, failures, step_time, reached: 0, deadline }
    }

    pub(super) fn deadline(&self) -> MonotonicTime {
        self.deadline
    }

    pub(super) fn look(
        &mut self,
        pool: Option<&str>,
        present: &Present<'_>,
        now: MonotonicTime,
    ) -> Verdict {
        let Some(view) = pool.and_then(present.pool) else {
            return Verdict::Failed("the pool was removed".to_owned());
        };
        let target = view.supervisor.target();
        if target != self.to {
            return Verdict::Failed(format!("superseded: the pool is to have {target} workers"));
        }
        let (served, surplus) = view.supervisor.count_slots();
        if served == self.to && surplus == 0 {
            return Verdict::Done(json!({ "from": self.from, "to": self.to }));
        }
        if let Some(reason) = self.boot_failure(&view) {
            return Verdict::Failed(reason);
        }
        let progress = if self.to < self.from {
            let total = self.from - self.to;
            Progress { done: total.saturating_sub(surplus), total, phase: "draining" }
        } else {
            Progress { done: served, total: self.to, phase: "booting" }
        };
        if progress.done > self.reached {
            self.reached = progress.done;
            self.deadline = now.saturating_add(self.step_time);
        }
        if self.deadline <= now {
            return Verdict::Failed(format!(
                "{served} of {} workers are ready, and {surplus} others have not exited",
                self.to
            ));
        }
        Verdict::Running(progress)
    }

    /// Returns why a worker of a new slot has failed to boot, if one has.
    fn boot_failure(&self, view: &PoolView<'_>) -> Option<String> {
        let has_failed = failures(self.from, self.to, view.supervisor) > self.failures;
        has_failed.then(|| format!("a new worker does not become ready: {}", view.failure_reason))
    }
}

/// Returns how many workers have failed before they had served, in the slots that are added.
fn failures(from: usize, to: usize, supervisor: &Supervisor) -> u32 {
    (from..to).map(|slot| supervisor.slot_failures(slot)).sum()
}
