//! The facts that the supervisor records: what happened to the workers and to the master.

use std::time::Duration;

use super::restarts::{self, Restart, SERVED_UPTIME};
use super::slot::{STALLS_MAX, State, Worker};
use super::types::{
    Busy, Desired, DrainProgress, ExitClass, ExitObservation, ExitReason, ExitReport, ShutdownMode,
    WorkerId,
};
use super::{CORE_DUMP_TIMEOUT, ForkFailures, Phase, Supervisor};
use crate::time::MonotonicTime;

/// The back-off step after a failed fork, 0.6 to 0.8 s: the machine is short of a resource.
const FORK_RETRY_STEP: u32 = 4;

impl Supervisor {
    /// Records that the worker of a spawn action was forked at `now`.
    pub(crate) fn on_spawned(&mut self, id: WorkerId, slot: usize, now: MonotonicTime) {
        self.slot_of.insert(id, slot);
        if let Some(rolling) = &mut self.rolling {
            rolling.fork_failures = None;
        }
        let lifetime = self.next_lifetime();
        let desired = self.desired;
        let slot = &mut self.slots[slot];
        slot.spawning = false;
        slot.workers.push(Worker {
            id,
            generation: desired.generation,
            policy: desired.policy,
            started: now,
            ready_at: None,
            lifetime,
            state: State::Booting,
            drains_early: false,
            drain_progress: DrainProgress::Off,
            last_beat: now,
            busy: None,
            replacement_requested: false,
            over_limit_samples: 0,
            verdict_deferred_until: MonotonicTime::default(),
            timeout_extended_at: MonotonicTime::default(),
            discounted_stalls: 0,
            is_unresponsive: false,
        });
    }

    /// Records that the worker of a spawn action could not be forked. Returns the delay before the
    /// next attempt. If forks keep failing for `boot_timeout`, a reload in progress fails.
    pub(crate) fn on_spawn_failed(&mut self, slot: usize, now: MonotonicTime) -> Duration {
        let attempts = match &mut self.rolling {
            Some(rolling) => {
                let first = ForkFailures { count: 0, since: now, discounted_stalls: 0 };
                let failures = rolling.fork_failures.get_or_insert(first);
                failures.count += 1;
                failures.count
            }
            None => FORK_RETRY_STEP,
        };
        let delay = restarts::backoff(attempts, &mut self.rng);
        self.restarts.on_delayed(delay, now);
        let slot = &mut self.slots[slot];
        slot.spawning = false;
        slot.not_before = now.saturating_add(delay);
        delay
    }

    /// Records that the worker of a spawn action could not be started, for a reason that does not pass
    /// by itself. Until a worker of the pool has been ready, this counts as a failed boot; and a
    /// reload in progress fails. Returns the delay before the next attempt.
    pub(crate) fn on_spawn_impossible(&mut self, slot: usize, now: MonotonicTime) -> Duration {
        let delay = self.on_spawn_failed(slot, now);
        if let Some(rolling) = &mut self.rolling {
            rolling.failed = true;
        }
        if !self.ever_ready {
            self.slots[slot].failures += 1;
            self.fail_if_exhausted();
        }
        delay
    }

    /// Records that a worker is ready. Returns its uptime, or `None` if it was not booting.
    pub(crate) fn on_ready(&mut self, id: WorkerId, now: MonotonicTime) -> Option<Duration> {
        let worker = self.worker(id).filter(|worker| worker.state == State::Booting)?;
        worker.state = State::Ready;
        worker.ready_at = Some(now);
        worker.last_beat = now;
        worker.discounted_stalls = 0;
        let generation = worker.generation;
        let uptime = now.duration_since(worker.started);
        self.ever_ready = true;
        if self.phase == Phase::Failed {
            self.phase = Phase::Serving; // no worker has been killed for the failure yet
        }
        if let Some(rolling) = &mut self.rolling {
            rolling.canary_ready |= generation == self.desired.generation;
        }
        Some(uptime)
    }

    /// Records that a worker has requested its replacement.
    pub(crate) fn on_replacement_requested(&mut self, id: WorkerId) {
        if let Some(worker) = self.worker(id) {
            worker.replacement_requested = true;
        }
    }

    /// Records that a worker drains. Returns whether the master had not asked it to; the drain is
    /// then limited by `graceful_timeout` as well.
    pub(crate) fn on_draining(&mut self, id: WorkerId, now: MonotonicTime) -> bool {
        let worker = self.worker(id).filter(|worker| worker.state == State::Ready);
        let was_ready = worker.is_some();
        if let Some(worker) = worker {
            let served_at = worker.ready_at.map(|at| at.saturating_add(SERVED_UPTIME));
            worker.drains_early = served_at.is_none_or(|at| now < at);
            worker.begin_drain(ExitReason::Requested, now);
        }
        was_ready
    }

    /// Records a worker's last heartbeat and the units of work that it has in progress.
    pub(crate) fn on_liveness(&mut self, id: WorkerId, beat: MonotonicTime, busy: Option<Busy>) {
        if let Some(worker) = self.worker(id) {
            let earlier = worker.last_progress();
            worker.last_beat = beat;
            worker.busy = busy;
            if worker.state == State::Ready && worker.last_progress() > earlier {
                worker.discounted_stalls = 0;
            }
        }
    }

    /// Records a memory sample, `None` if it could not be read. Returns the sample if it is the third
    /// in a row above `max_memory`, which recycles the worker. That happens once a worker.
    pub(crate) fn on_memory_sample(&mut self, id: WorkerId, bytes: Option<u64>) -> Option<u64> {
        let worker = self.worker(id)?;
        let is_over_limit = worker.record_memory_sample(bytes);
        worker.replacement_requested |= is_over_limit;
        bytes.filter(|_| is_over_limit)
    }

    /// Records that the master did not run at some time between `since` and `now`. That time is
    /// excluded from worker timeouts, and drain and abort deadlines are extended by it. Each deadline
    /// is extended by three stalls at most, until its worker makes progress.
    pub(crate) fn discount_stall(&mut self, since: MonotonicTime, now: MonotonicTime) {
        let lost = now.duration_since(since);
        let workers = self.slots.iter_mut().flat_map(|slot| &mut slot.workers);
        workers.for_each(|worker| worker.discount_stall(lost, now));
        let failures = self.rolling.as_mut().and_then(|it| it.fork_failures.as_mut());
        if let Some(failures) = failures.filter(|failures| failures.discounted_stalls < STALLS_MAX)
        {
            failures.discounted_stalls += 1;
            failures.since = now;
        }
    }

    /// Records that an overdue worker is being diagnosed: no timeout is enforced before `until`.
    pub(crate) fn defer_verdict(&mut self, id: WorkerId, until: MonotonicTime) {
        if let Some(worker) = self.worker(id) {
            worker.verdict_deferred_until = until;
        }
    }

    /// Records that SIGABRT was sent at `now`, which may be later than the decision:
    /// `abort_timeout` starts now.
    pub(crate) fn on_aborted(&mut self, id: WorkerId, now: MonotonicTime) {
        if let Some(worker) = self.worker(id)
            && let State::Aborting { reason, .. } = worker.state
        {
            let kill_at = now.saturating_add(worker.policy.abort_timeout);
            worker.state = State::Aborting { reason, kill_at };
        }
    }

    /// Records that an overdue worker could not run until `now`: its timeout restarts.
    pub(crate) fn extend_timeout(&mut self, id: WorkerId, now: MonotonicTime) {
        if let Some(worker) = self.worker(id) {
            worker.timeout_extended_at = now;
        }
    }

    /// Records that no signal but SIGKILL reaches an overdue worker.
    pub(crate) fn mark_unresponsive(&mut self, id: WorkerId) {
        if let Some(worker) = self.worker(id) {
            worker.is_unresponsive = true;
        }
    }

    /// Records that an overdue or stopping worker has died and is dumping core. Returns whether the
    /// dump is granted 30 s and its slot a replacement, which happens once a worker.
    pub(crate) fn on_core_dump(&mut self, id: WorkerId, now: MonotonicTime) -> bool {
        let Some(worker) = self.worker(id) else { return false };
        let reason = match worker.state {
            State::Booting => ExitReason::BootFailed,
            State::Ready => ExitReason::Crashed,
            State::Aborting { reason, .. } => reason,
            State::Stopping { reason, mode: ShutdownMode::Graceful, .. } => reason,
            State::Stopping { .. } | State::DrainingHung { .. } | State::Killed { .. } => {
                return false;
            }
        };
        let kill_at = now.saturating_add(CORE_DUMP_TIMEOUT);
        worker.state = State::Stopping { reason, kill_at, mode: ShutdownMode::Quick };
        true
    }

    /// Records that a worker has exited. Returns `None` if the pool has no such worker.
    pub(crate) fn on_exit(
        &mut self,
        id: WorkerId,
        observation: ExitObservation,
        now: MonotonicTime,
    ) -> Option<ExitReport> {
        let slot_index = self.slot_of.remove(&id)?;
        let slot = &mut self.slots[slot_index];
        let index = slot.workers.iter().position(|worker| worker.id == id)?;
        let worker = slot.workers.remove(index);
        let exit_class = ExitClass::from(observation);
        let reason = worker.exit_reason(exit_class);
        // Exits of an earlier generation do not count against the present one and its retries.
        let is_current = worker.generation == self.desired.generation;
        let restart = if is_current {
            slot.record_exit(&worker, reason, exit_class, observation.has_worked, now)
        } else {
            Restart::AtOnce
        };
        let Desired { policy, target, .. } = self.desired;
        let delay = self.restarts.delay(restart, &policy, target, &mut self.rng, now);
        let slot = &mut self.slots[slot_index];
        slot.not_before = slot.not_before.max(now.saturating_add(delay));
        if let Some(rolling) = &mut self.rolling {
            rolling.failed |= is_current && is_failure(reason, exit_class);
        }
        self.fail_if_exhausted();
        let is_refilled = self.slots[slot_index].is_vacant()
            && !self.is_suspended()
            && self.needs_worker(slot_index);
        Some(ExitReport {
            slot: slot_index,
            generation: worker.generation,
            reason,
            uptime: now.duration_since(worker.started),
            restart_in: is_refilled.then(|| self.restart_time(slot_index).duration_since(now)),
        })
    }
}

/// Returns whether an exit shows that the worker's generation cannot serve.
fn is_failure(reason: ExitReason, exit_class: ExitClass) -> bool {
    match reason {
        ExitReason::BootFailed | ExitReason::Hung | ExitReason::OomKilled => true,
        ExitReason::Crashed => exit_class == ExitClass::Crashed,
        ExitReason::Requested
        | ExitReason::ScaledDown
        | ExitReason::Recycled
        | ExitReason::Reload => false,
    }
}
