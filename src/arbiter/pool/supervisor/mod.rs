//! Supervises one pool: decides which workers to fork, drain, abort and kill, and when. Pure: it
//! receives facts and times, owns no process and reads no clock, so tests use a fake clock.
//!
//! A worker is a number here; the process table maps it to a pid. A *slot* is a stable position
//! that outlives its workers. Each action is returned once: returning it changes the worker's state.
//!
//! This file has the state, the commands and the queries. `facts` records what happened, `deadlines`
//! says which workers need attention and when, `decide` returns the actions, `last_serving` says which
//! worker keeps serving meanwhile, `restarts` when a slot is refilled.

mod deadlines;
mod decide;
mod drain_mode;
mod facts;
mod last_serving;
mod restarts;
mod slot;
mod types;

use std::collections::HashMap;
use std::time::Duration;

pub(crate) use types::{
    Action, Busy, DrainModeError, DrainProgress, ExitObservation, ExitReason, ExitReport,
    Generation, Hang, Policy, ProcessExit, ReloadPhase, RunOutcome, ShutdownMode, WorkerId,
};

use crate::rng::Rng;
use crate::time::MonotonicTime;
use restarts::Restarts;
use slot::{Slot, State, Worker};
use types::Desired;

/// How often a worker in `DrainingHung` is checked: no event tells that its other threads are idle.
const HUNG_DRAIN_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// How long a core dump may take before the process is killed.
const CORE_DUMP_TIMEOUT: Duration = Duration::from_secs(30);

/// The largest number of workers in a pool.
pub(crate) const WORKERS_MAX: usize = 4096;

/// The supervisor of one pool.
#[derive(Debug)]
pub(crate) struct Supervisor {
    desired: Desired,
    slots: Vec<Slot>,
    slot_of: HashMap<WorkerId, usize>,
    last_worker_id: u64,
    phase: Phase,
    /// The highest generation number used, including rolled-back generations.
    newest_generation: u32,
    rolling: Option<RollingReload>,
    /// All workers drain, and none is started until [`resume`](Self::resume).
    is_suspended: bool,
    standby: Option<Standby>,
    ever_ready: bool,
    restarts: Restarts,
    rng: Rng,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    Stopping(ShutdownMode),
    /// No worker was ever ready, and `boot_retries` is exhausted in every slot.
    Failed,
}

/// How a pool comes to have no workers while its master does not lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standby {
    /// The term may end soon: the workers drain.
    Drain,
    /// The term is over: the workers are killed.
    Kill,
}

/// A reload in progress.
#[derive(Clone, Copy, Debug)]
struct RollingReload {
    /// What a roll-back restores.
    previous_desired: Desired,
    /// A worker of the new generation has been ready; only then are others started.
    canary_ready: bool,
    failed: bool,
    /// The smallest phase of all pools that reload together.
    overall_phase: ReloadPhase,
    /// The forks in a row that have failed.
    fork_failures: Option<ForkFailures>,
}

#[derive(Clone, Copy, Debug)]
struct ForkFailures {
    count: u32,
    /// The time of the first failure, or of the last stall that was discounted.
    since: MonotonicTime,
    discounted_stalls: u8,
}

/// Commands.
impl Supervisor {
    /// Creates the supervisor of a pool with `target` workers, 1 to [`WORKERS_MAX`]. `seed`
    /// determines the jitter.
    pub(crate) fn new(policy: Policy, target: usize, seed: u64) -> Self {
        let mut supervisor = Self::empty(policy, 1, seed);
        supervisor.scale_to(target);
        supervisor
    }

    /// Creates the supervisor of a pool without workers, to be filled by a reload from `generation`
    /// to the next.
    pub(crate) fn empty(policy: Policy, generation: u32, seed: u64) -> Self {
        Self {
            desired: Desired { policy, target: 0, generation },
            slots: Vec::new(),
            slot_of: HashMap::new(),
            last_worker_id: 0,
            phase: Phase::Serving,
            newest_generation: generation,
            rolling: None,
            is_suspended: false,
            standby: None,
            ever_ready: false,
            restarts: Restarts::default(),
            rng: Rng::new(seed),
        }
    }

    /// Changes the number of workers. Returns the new target, clamped to 1..=[`WORKERS_MAX`].
    pub(crate) fn scale_to(&mut self, target: usize) -> usize {
        let target = target.clamp(1, WORKERS_MAX);
        self.desired.target = target;
        if self.slots.len() < target {
            self.slots.resize(target, Slot::default());
        }
        if let Some(mut rolling) = self.rolling.filter(|it| it.previous_desired.target > 0) {
            // A roll-back keeps the new number, but also the old workers in drain mode.
            let lowest = slot::least_target(&self.slots, rolling.previous_desired);
            rolling.previous_desired.target = target.max(lowest);
            self.rolling = Some(rolling);
        }
        self.fail_if_exhausted();
        target
    }

    /// Begins a reload: workers of `generation` replace the old ones, once its canary has been
    /// ready.
    ///
    /// # Panics
    /// If a reload is in progress, or `generation` has been used before.
    pub(crate) fn begin_reload(&mut self, policy: Policy, target: usize, generation: u32) {
        assert!(self.rolling.is_none(), "one reload at a time");
        assert!(self.newest_generation < generation, "a generation is numbered once");
        let previous_desired = self.desired;
        self.newest_generation = generation;
        self.desired = Desired { policy, target: previous_desired.target, generation };
        self.slots.iter_mut().for_each(Slot::reset_backoff);
        self.scale_to(target);
        self.rolling = Some(RollingReload {
            previous_desired,
            canary_ready: false,
            failed: false,
            overall_phase: ReloadPhase::Canary,
            fork_failures: None,
        });
    }

    /// Drains all workers for good: the pool is being removed.
    pub(crate) fn scale_to_zero(&mut self) {
        self.desired.target = 0;
    }

    /// Drains all workers, and starts none until [`resume`](Self::resume). A reload in progress
    /// fails, because its canary cannot become ready.
    pub(crate) fn suspend(&mut self) {
        self.is_suspended = true;
        if let Some(rolling) = &mut self.rolling {
            rolling.failed = true;
        }
    }

    /// Ends all workers and starts none while the pool is on standby. A reload in progress needs none.
    pub(crate) fn set_standby(&mut self, standby: Option<Standby>) {
        self.standby = standby;
    }

    /// Returns whether the pool is on standby.
    pub(crate) fn is_standby(&self) -> bool {
        self.standby.is_some()
    }

    /// Returns whether the pool is suspended, or on standby.
    pub(crate) fn is_suspended(&self) -> bool {
        self.is_suspended || self.is_standby()
    }

    /// Starts workers again. Returns whether the pool was suspended.
    pub(crate) fn resume(&mut self) -> bool {
        std::mem::take(&mut self.is_suspended)
    }

    /// Requests the replacement of the ready worker of a slot, or of every slot. Returns these workers,
    /// each with its slot. `max_surge` and `max_unavailable` apply as for `max_requests`.
    pub(crate) fn recycle(&mut self, slot: Option<usize>) -> Vec<(WorkerId, usize)> {
        let slots = 0..self.desired.target;
        let chosen = slots.filter(|index| slot.is_none_or(|slot| slot == *index));
        let kept = |index: usize| self.slots[index].kept_worker(self.desired.generation);
        let ready = chosen.filter_map(|index| Some((kept(index)?.id, index)));
        let ready: Vec<_> = ready.collect();
        for (id, _) in &ready {
            if let Some(worker) = self.worker(*id) {
                worker.replacement_requested = true;
            }
        }
        ready
    }

    /// Stops the pool. A later call can only make the mode harder.
    pub(crate) fn stop(&mut self, mode: ShutdownMode) {
        self.phase = match self.phase {
            Phase::Serving => Phase::Stopping(mode),
            Phase::Stopping(earlier) => Phase::Stopping(earlier.max(mode)),
            Phase::Failed => Phase::Failed,
        };
        self.rolling = None;
    }

    /// Starts workers again after a graceful stop. Workers that drain already still exit.
    pub(crate) fn cancel_stop(&mut self) {
        if self.phase == Phase::Stopping(ShutdownMode::Graceful) {
            self.phase = Phase::Serving;
        }
    }
}

/// Queries.
impl Supervisor {
    /// Returns the target number of workers.
    pub(crate) fn target(&self) -> usize {
        self.desired.target
    }

    /// Returns the generation of new workers.
    pub(crate) fn generation(&self) -> u32 {
        self.desired.generation
    }

    /// Returns a generation by its number, with whether it is committed.
    pub(crate) fn describe_generation(&self, number: u32) -> Generation {
        Generation { number, is_uncommitted: self.committed().generation < number }
    }

    /// Returns what the pool is to become, as of the last committed reload.
    fn committed(&self) -> Desired {
        self.rolling.map_or(self.desired, |rolling| rolling.previous_desired)
    }

    /// Returns how many workers are ready, not draining and not in drain mode.
    pub(crate) fn ready_count(&self) -> usize {
        self.workers().filter(|worker| worker.is_serving()).count()
    }

    /// Returns the workers that are ready, not draining and not in drain mode.
    pub(crate) fn ready_workers(&self) -> impl Iterator<Item = WorkerId> {
        self.workers().filter(|worker| worker.is_serving()).map(|worker| worker.id)
    }

    /// Returns the workers that boot or are ready: a reload replaces them.
    pub(crate) fn active_workers(&self) -> impl Iterator<Item = WorkerId> {
        let is_active = |worker: &&Worker| matches!(worker.state, State::Booting | State::Ready);
        self.workers().filter(is_active).map(|worker| worker.id)
    }

    /// Returns the phase of the reload in progress at `now`.
    pub(crate) fn reload_phase(&self, now: MonotonicTime) -> Option<ReloadPhase> {
        let rolling = self.rolling?;
        let fork_timed_out = self.fork_deadline().is_some_and(|at| at <= now);
        let mut slots = self.slots.iter().take(self.desired.target);
        Some(if rolling.failed || fork_timed_out {
            ReloadPhase::Failed
        } else if self.is_standby() || slots.all(|it| it.is_served_by(self.desired.generation)) {
            ReloadPhase::AllReady
        } else if rolling.canary_ready {
            ReloadPhase::Rolling
        } else {
            ReloadPhase::Canary
        })
    }

    /// Returns how many slots have a ready worker, and how many workers beyond the target have not
    /// exited.
    pub(crate) fn count_slots(&self) -> (usize, usize) {
        let target = self.desired.target;
        let served = self.slots.iter().take(target).filter(|slot| slot.is_served()).count();
        (served, self.slots.iter().skip(target).map(|slot| slot.workers.len()).sum())
    }

    /// Returns how many slots have a ready worker of the pool's generation.
    pub(crate) fn current_count(&self) -> usize {
        let slots = self.slots.iter().take(self.desired.target);
        slots.filter(|slot| slot.is_served_by(self.desired.generation)).count()
    }

    /// Returns the newest ready worker of a slot.
    pub(crate) fn newest_ready(&self, slot: usize) -> Option<WorkerId> {
        self.slots.get(slot)?.newest_ready()
    }

    /// Returns how many workers of a slot have failed in a row before they had served.
    pub(crate) fn slot_failures(&self, slot: usize) -> u32 {
        self.slots.get(slot).map_or(0, |slot| slot.failures)
    }

    /// Returns whether a worker has not exited.
    pub(crate) fn has_worker(&self, id: WorkerId) -> bool {
        self.slot_of.contains_key(&id)
    }

    /// Returns how many workers have not exited.
    pub(crate) fn worker_count(&self) -> usize {
        self.slot_of.len()
    }

    /// Returns whether a reload is in progress.
    pub(crate) fn is_reloading(&self) -> bool {
        self.rolling.is_some()
    }

    /// Returns whether this pool reloads and its canary has not been ready.
    fn awaits_own_canary(&self) -> bool {
        self.rolling.is_some_and(|rolling| !rolling.canary_ready)
    }

    /// Returns whether this pool reloads and the canary of some pool has not been ready.
    fn awaits_any_canary(&self) -> bool {
        self.rolling.is_some_and(|rolling| rolling.overall_phase < ReloadPhase::Rolling)
    }

    /// Returns whether only the canary of another pool is awaited.
    fn awaits_other_canary(&self) -> bool {
        self.awaits_any_canary() && !self.awaits_own_canary()
    }

    /// Returns how the pool is being stopped, if it is.
    pub(crate) fn stopping(&self) -> Option<ShutdownMode> {
        match self.phase {
            Phase::Stopping(mode) => Some(mode),
            Phase::Serving | Phase::Failed => None,
        }
    }

    /// Returns whether no worker was ever ready and `boot_retries` is exhausted in every slot.
    pub(crate) fn has_failed(&self) -> bool {
        self.phase == Phase::Failed
    }

    /// Returns how the run ended, once the pool has stopped or failed and all workers have exited.
    pub(crate) fn outcome(&self) -> Option<RunOutcome> {
        match self.phase {
            Phase::Stopping(_) if self.slot_of.is_empty() => Some(RunOutcome::Stopped),
            Phase::Failed if self.slot_of.is_empty() => Some(RunOutcome::NeverReady),
            Phase::Serving | Phase::Stopping(_) | Phase::Failed => None,
        }
    }

    /// Returns when a reload fails because no worker could be forked for `boot_timeout`.
    fn fork_deadline(&self) -> Option<MonotonicTime> {
        let failures = self.rolling?.fork_failures?;
        let limit = self.desired.policy.boot_timeout;
        (!limit.is_zero()).then(|| failures.since.saturating_add(limit))
    }

    /// Returns whether a slot has used up `boot_retries`. False once a worker of the pool was ready.
    fn is_exhausted(&self, slot: usize) -> bool {
        !self.ever_ready && self.slots[slot].failures > self.desired.policy.boot_retries
    }

    /// Fails the pool if all its slots are exhausted, except during a reload.
    fn fail_if_exhausted(&mut self) {
        let target = self.desired.target;
        let all_exhausted = target > 0 && (0..target).all(|slot| self.is_exhausted(slot));
        if self.phase == Phase::Serving && self.rolling.is_none() && all_exhausted {
            self.phase = Phase::Failed;
        }
    }

    /// Returns the number, the slot, the state and the start of every worker, by slot.
    pub(crate) fn worker_states(
        &self,
    ) -> impl Iterator<Item = (WorkerId, usize, &'static str, MonotonicTime)> {
        let slots = self.slots.iter().enumerate();
        slots.flat_map(|(index, slot)| {
            slot.workers.iter().map(move |it| (it.id, index, it.shown_state(), it.started))
        })
    }

    /// Returns the empty slots that wait before their next worker is started, and until when.
    pub(crate) fn waiting_slots(
        &self,
        now: MonotonicTime,
    ) -> impl Iterator<Item = (usize, MonotonicTime)> {
        let slots = self.slots.iter().take(self.desired.target).enumerate();
        slots
            .filter(move |(_, slot)| slot.is_vacant() && now < slot.not_before)
            .map(|(index, slot)| (index, slot.not_before))
    }

    fn workers(&self) -> impl Iterator<Item = &Worker> {
        self.slots.iter().flat_map(|slot| &slot.workers)
    }

    fn worker(&mut self, id: WorkerId) -> Option<&mut Worker> {
        let slot_index = *self.slot_of.get(&id)?;
        self.slots[slot_index].workers.iter_mut().find(|worker| worker.id == id)
    }
}

/// Random spreading, all from one [`Rng`], so that workers do not act in step.
impl Supervisor {
    /// Returns the lifetime of the next worker; zero is unlimited.
    fn next_lifetime(&mut self) -> Duration {
        let Policy { max_lifetime, max_lifetime_jitter: jitter, .. } = self.desired.policy;
        if max_lifetime.is_zero() || jitter.is_zero() {
            return max_lifetime;
        }
        let bound = u64::try_from(jitter.as_nanos()).unwrap_or(u64::MAX).saturating_add(1);
        max_lifetime.saturating_add(Duration::from_nanos(self.rng.below(bound)))
    }

    /// Returns after how many units of work the next worker requests its replacement; zero is never.
    fn next_max_units(&mut self) -> u64 {
        let Policy { max_requests, max_requests_jitter: jitter, .. } = self.desired.policy;
        if max_requests == 0 || jitter == 0 {
            return max_requests;
        }
        max_requests.saturating_add(self.rng.below(jitter.saturating_add(1)))
    }
}

#[cfg(test)]
pub(in crate::arbiter) mod tests;
