//! Which workers need a reading before the rules are applied, and when the next rule applies.

use std::time::Duration;

use super::slot::{State, Worker};
use super::types::{ShutdownMode, WorkerId};
use super::{HUNG_DRAIN_CHECK_INTERVAL, Phase, Supervisor};
use crate::time::MonotonicTime;

impl Supervisor {
    /// Returns whether any worker may need a reading, a diagnosis or a kill at `now`. Otherwise the
    /// three lists below are empty.
    pub(crate) fn any_deadline_passed(&self, now: MonotonicTime) -> bool {
        self.workers().any(|worker| match worker.state {
            State::Ready => worker.hang_deadline().is_some_and(|at| at <= now),
            State::Booting => worker.boot_deadline().is_some_and(|at| at <= now),
            State::DrainingHung { .. } => true,
            State::Stopping { kill_at, .. } | State::Aborting { kill_at, .. } => kill_at <= now,
            State::Killed { .. } => false,
        })
    }

    /// Returns the workers whose heartbeat and scoreboard must be read before
    /// [`enforce_limits`](Self::enforce_limits).
    pub(crate) fn liveness_check_due(&self, now: MonotonicTime) -> Vec<WorkerId> {
        self.ids_where(|worker| match worker.state {
            State::Ready => worker.hang_deadline().is_some_and(|at| at <= now),
            State::DrainingHung { .. } => true,
            State::Booting
            | State::Stopping { .. }
            | State::Aborting { .. }
            | State::Killed { .. } => false,
        })
    }

    /// Returns the workers that [`enforce_limits`](Self::enforce_limits) would find overdue at
    /// `now`. Call after the readings of [`liveness_check_due`](Self::liveness_check_due).
    pub(crate) fn overdue(&self, now: MonotonicTime) -> Vec<WorkerId> {
        self.ids_where(|worker| {
            let deadline = match worker.state {
                State::Ready => worker.hang_deadline(),
                State::Booting => worker.boot_deadline(),
                State::DrainingHung { .. }
                | State::Stopping { .. }
                | State::Aborting { .. }
                | State::Killed { .. } => None,
            };
            deadline.is_some_and(|at| at <= now)
        })
    }

    /// Returns the aborted workers, and while the pool serves also the draining ones, that are to
    /// be killed at `now`.
    pub(crate) fn kill_candidates(&self, now: MonotonicTime) -> Vec<WorkerId> {
        let is_serving = self.phase == Phase::Serving;
        self.ids_where(|worker| match worker.state {
            State::Aborting { kill_at, .. } => kill_at <= now,
            State::Stopping { kill_at, mode: ShutdownMode::Graceful, .. } => {
                is_serving && kill_at <= now
            }
            State::Booting
            | State::Ready
            | State::Stopping { .. }
            | State::DrainingHung { .. }
            | State::Killed { .. } => false,
        })
    }

    /// Returns how long a worker may take for what it does now: `boot_timeout` while it boots, else
    /// `timeout`. Zero is unlimited.
    pub(crate) fn current_timeout(&self, id: WorkerId) -> Duration {
        self.workers().find(|worker| worker.id == id).map_or(Duration::ZERO, |worker| {
            let policy = worker.policy;
            if worker.state == State::Booting { policy.boot_timeout } else { policy.timeout }
        })
    }

    /// Returns the workers whose memory must be sampled, each with its `max_memory` in bytes.
    pub(crate) fn memory_checks(&self) -> Vec<(WorkerId, u64)> {
        let checked = self.workers().filter(|worker| worker.needs_memory_sample());
        checked.map(|worker| (worker.id, worker.policy.max_memory)).collect()
    }

    /// Returns whether any worker has a `max_memory`.
    pub(crate) fn any_memory_limited(&self) -> bool {
        self.workers().any(|worker| worker.policy.max_memory > 0)
    }

    /// Returns when an action may become due if no fact arrives before. Call after
    /// [`reconcile`](Self::reconcile), with the same `now`.
    pub(crate) fn next_deadline(&self, now: MonotonicTime) -> Option<MonotonicTime> {
        let workers = self.workers().flat_map(|worker| match worker.state {
            State::Booting => [worker.boot_deadline(), None],
            State::Ready => [
                worker.hang_deadline(),
                // After it has passed, the worker waits for `max_surge`, not for a time.
                worker.recycle_deadline().filter(|at| now < *at),
            ],
            // No event tells that the other threads are idle: poll.
            State::DrainingHung { kill_at } => {
                [Some(kill_at), Some(now.saturating_add(HUNG_DRAIN_CHECK_INTERVAL))]
            }
            State::Stopping { kill_at, .. } | State::Aborting { kill_at, .. } => {
                [Some(kill_at), None]
            }
            State::Killed { .. } => [None, None],
        });
        let slot_times = self.slots.iter().map(|slot| slot.not_before);
        let outage_retry = self.outage_retry().map(|(_, at)| at);
        let restart_times = slot_times.chain(outage_retry).filter(|at| now < *at);
        workers.flatten().chain(restart_times).chain(self.fork_deadline()).min()
    }

    fn ids_where(&self, predicate: impl Fn(&Worker) -> bool) -> Vec<WorkerId> {
        self.workers().filter(|worker| predicate(worker)).map(|worker| worker.id).collect()
    }
}
