//! When a worker that was put into drain mode has finished its clients. Pure.

use std::time::Duration;

use serde_json::{Value, json};

use super::present::{MARGIN, Present, Progress, Verdict};
use crate::arbiter::pool::supervisor::{DrainProgress, WorkerId};
use crate::time::MonotonicTime;

/// A worker whose drain mode was begun or ended.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::arbiter) struct WorkerDrain {
    pool: String,
    slot: usize,
    id: WorkerId,
    pid: i32,
    deadline: MonotonicTime,
}

impl WorkerDrain {
    /// Begins at `now`. `limit` is the longest time that a drain may take.
    pub(in crate::arbiter) fn new(
        pool: String,
        slot: usize,
        (id, pid): (WorkerId, i32),
        limit: Duration,
        now: MonotonicTime,
    ) -> Self {
        let deadline = now.saturating_add(limit).saturating_add(MARGIN);
        Self { pool, slot, id, pid, deadline }
    }

    /// Returns whether both are about one worker.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (&self.pool, self.id) == (&other.pool, other.id)
    }

    pub(super) fn deadline(&self) -> MonotonicTime {
        self.deadline
    }

    /// Returns the result of the operation, if the drain mode is now on or off.
    pub(in crate::arbiter) fn result(&self, is_on: bool) -> Value {
        let Self { pool, slot, pid, .. } = self;
        json!({ "drain_mode": is_on, "pool": pool, "slot": slot, "pid": pid })
    }

    pub(super) fn look(&self, present: &Present<'_>, now: MonotonicTime) -> Verdict {
        let (pool, pid) = (&self.pool, self.pid);
        let Some(view) = (present.pool)(pool) else {
            return Verdict::Failed(format!("pool {pool:?} was removed"));
        };
        match view.supervisor.drain_progress(self.id) {
            DrainProgress::Drained => Verdict::Done(self.result(true)),
            DrainProgress::Off => {
                Verdict::Failed(format!("worker {pid} stops, or its drain mode was ended"))
            }
            DrainProgress::Draining if self.deadline <= now => Verdict::Failed(format!(
                "worker {pid} is in drain mode, and has not finished its clients"
            )),
            DrainProgress::Draining => {
                Verdict::Running(Progress { done: 0, total: 1, phase: "draining" })
            }
        }
    }
}
