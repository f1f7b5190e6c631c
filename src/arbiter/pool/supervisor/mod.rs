//! Who is to be forked, asked, aborted and killed, and when. Pure: it is told facts and moments,
//! it owns no process, reads no clock, and every rule can be tested with an invented one.
//!
//! A worker is a number here; the arbiter knows which process that is. A *slot* is a stable place
//! that outlives the workers that sit in it. Each action is handed out once: handing it out moves
//! the worker on. This file takes facts and answers questions; `rules` decides.

mod decide;
pub(super) mod rng;
mod slot;
mod types;

use std::collections::HashMap;
use std::time::Duration;

pub(crate) use types::{
    Action, Busy, ExitClass, ExitReason, ExitReport, Generation, Hang, Policy, ReloadPhase,
    RunOutcome, ShutdownMode, WorkerId,
};

use crate::time::MonotonicTime;
use rng::Rng;
use slot::{Slot, State, Worker};

/// The shortest and the longest wait before a slot is filled again.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// How often a worker is looked at of whose threads one hangs, while the others finish.
const HUNG_DRAIN_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// How long a core may take to be dumped.
const CORE_DUMP_TIMEOUT: Duration = Duration::from_secs(30);

/// The most workers that a roster keeps.
pub(crate) const WORKERS_MAX: usize = 4096;

/// The roster of a pool.
#[derive(Debug)]
pub(crate) struct Supervisor {
    policy: Policy,
    target: usize,
    slots: Vec<Slot>,
    /// Where each worker sits.
    slot_of: HashMap<WorkerId, usize>,
    last_worker_id: u64,
    phase: Phase,
    /// The generation that is wished for.
    generation: u32,
    /// The youngest generation that there has been.
    newest_generation: u32,
    rolling: Option<RollingReload>,
    /// The workers are gone, or going, and nobody follows them for now.
    is_suspended: bool,
    ever_ready: bool,
    /// Nobody is blamed for silence before: the master itself did not run.
    timeout_floor: MonotonicTime,
    rng: Rng,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    Stopping(ShutdownMode),
    Failed,
}

/// A reload that is under way.
#[derive(Clone, Copy, Debug)]
struct RollingReload {
    /// What to return to.
    previous_policy: Policy,
    previous_target: usize,
    previous_generation: u32,
    /// Whether one worker of the new generation has been ready; only then do others follow.
    canary_ready: bool,
    failed: bool,
    /// How far all pools have come that reload together.
    overall_phase: ReloadPhase,
    /// How many forks in a row have failed, and since when.
    fork_failures: Option<(u32, MonotonicTime)>,
}

/// The facts.
impl Supervisor {
    /// A roster that wishes for `target` workers, 1 to [`WORKERS_MAX`]. `seed` makes its jitter.
    pub(crate) fn new(policy: Policy, target: usize, seed: u64) -> Self {
        let mut supervisor = Self::empty(policy, 1, seed);
        supervisor.scale_to(target);
        supervisor
    }

    /// A roster that wishes for nobody, until a reload from this generation to the next.
    pub(crate) fn empty(policy: Policy, generation: u32, seed: u64) -> Self {
        Self {
            policy,
            target: 0,
            slots: Vec::new(),
            slot_of: HashMap::new(),
            last_worker_id: 0,
            phase: Phase::Serving,
            generation,
            newest_generation: generation,
            rolling: None,
            is_suspended: false,
            ever_ready: false,
            timeout_floor: MonotonicTime::default(),
            rng: Rng::new(seed),
        }
    }

    /// The worker for which a spawn was handed out was forked at `now`.
    pub(crate) fn on_spawned(&mut self, id: WorkerId, slot: usize, now: MonotonicTime) {
        self.slot_of.insert(id, slot);
        if let Some(rolling) = &mut self.rolling {
            rolling.fork_failures = None;
        }
        let (generation, lifetime) = (self.generation, self.lifetime());
        let slot = &mut self.slots[slot];
        slot.spawning = false;
        slot.workers.push(Worker {
            id,
            generation,
            policy: self.policy,
            started: now,
            ready_at: None,
            lifetime,
            state: State::Booting,
            last_beat: now,
            busy: None,
            replacement_requested: false,
            verdict_deferred_until: MonotonicTime::default(),
            timeout_extended_at: MonotonicTime::default(),
            is_unresponsive: false,
        });
    }

    /// The worker for which a spawn was handed out could not be forked. Returns when it is tried
    /// again; a reload does so for as long as a worker may take to boot, and then it has failed.
    pub(crate) fn on_spawn_failed(&mut self, slot: usize, now: MonotonicTime) -> Duration {
        let attempts = match &mut self.rolling {
            Some(rolling) => {
                let (earlier, since) = rolling.fork_failures.unwrap_or((0, now));
                rolling.fork_failures = Some((earlier + 1, since));
                earlier + 1
            }
            None => 4, // the machine is short of something: give it a moment
        };
        let delay = self.backoff(attempts);
        let slot = &mut self.slots[slot];
        slot.spawning = false;
        slot.not_before = now.saturating_add(delay);
        delay
    }

    /// A worker has said that it is ready. Returns its age, or `None` if that is no news.
    pub(crate) fn on_ready(&mut self, id: WorkerId, now: MonotonicTime) -> Option<Duration> {
        let worker = self.worker(id).filter(|worker| worker.state == State::Booting)?;
        worker.state = State::Ready;
        worker.ready_at = Some(now);
        worker.last_beat = now;
        let (generation, uptime) = (worker.generation, now.duration_since(worker.started));
        self.ever_ready = true;
        if self.phase == Phase::Failed {
            self.phase = Phase::Serving; // nobody has been killed for it yet: there is hope
        }
        if let Some(rolling) = &mut self.rolling {
            rolling.canary_ready |= generation == self.generation;
        }
        Some(uptime)
    }

    /// A worker has asked for a successor.
    pub(crate) fn on_replacement_requested(&mut self, id: WorkerId) {
        if let Some(worker) = self.worker(id) {
            worker.replacement_requested = true;
        }
    }

    /// A worker has begun to drain. Returns whether that is news: somebody else than the master
    /// asked it to, and the master holds it to the limit of a drain all the same.
    pub(crate) fn on_draining(&mut self, id: WorkerId, now: MonotonicTime) -> bool {
        let worker = self.worker(id).filter(|worker| worker.state == State::Ready);
        let is_news = worker.is_some();
        if let Some(worker) = worker {
            worker.begin_drain(ExitReason::Requested, now);
        }
        is_news
    }

    /// What a worker's heartbeat and scoreboard say.
    pub(crate) fn on_liveness(&mut self, id: WorkerId, beat: MonotonicTime, busy: Option<Busy>) {
        if let Some(worker) = self.worker(id) {
            (worker.last_beat, worker.busy) = (beat, busy);
        }
    }

    /// The master did not run, at some time between `since` and `now`: nobody is to blame for
    /// silence before, and whoever leaves has so much more time to.
    pub(crate) fn discount_stall(&mut self, since: MonotonicTime, now: MonotonicTime) {
        self.timeout_floor = now;
        let lost = now.duration_since(since);
        for worker in self.slots.iter_mut().flat_map(|slot| &mut slot.workers) {
            match &mut worker.state {
                State::Stopping { kill_at, .. }
                | State::DrainingHung { kill_at }
                | State::Aborting { kill_at, .. } => *kill_at = kill_at.saturating_add(lost),
                State::Booting | State::Ready | State::Killed { .. } => (),
            }
        }
    }

    /// A worker that is overdue is being looked at, and not judged before then.
    pub(crate) fn defer_verdict(&mut self, id: WorkerId, until: MonotonicTime) {
        if let Some(worker) = self.worker(id) {
            worker.verdict_deferred_until = until;
        }
    }

    /// How long a worker may take for what it is at: to get ready, or a unit of work; zero is for ever.
    pub(crate) fn current_timeout(&self, id: WorkerId) -> Duration {
        self.workers().find(|worker| worker.id == id).map_or(Duration::ZERO, |worker| {
            let policy = worker.policy;
            if worker.state == State::Booting { policy.boot_timeout } else { policy.timeout }
        })
    }

    /// A worker has been aborted at `now`, which may be later than that was decided: it has its time
    /// to die from then on.
    pub(crate) fn on_aborted(&mut self, id: WorkerId, now: MonotonicTime) {
        if let Some(worker) = self.worker(id)
            && let State::Aborting { reason, .. } = worker.state
        {
            worker.state = State::Aborting {
                reason,
                kill_at: now.saturating_add(worker.policy.abort_timeout),
            };
        }
    }

    /// A worker that is overdue could not run until now: its time begins anew.
    pub(crate) fn extend_timeout(&mut self, id: WorkerId, now: MonotonicTime) {
        if let Some(worker) = self.worker(id) {
            worker.timeout_extended_at = now;
        }
    }

    /// A worker that is overdue hears no signal but KILL.
    pub(crate) fn mark_unresponsive(&mut self, id: WorkerId) {
        if let Some(worker) = self.worker(id) {
            worker.is_unresponsive = true;
        }
    }

    /// A worker that is overdue, or has been told to go, is dead already, but for a core that is being
    /// dumped: it gets time for that, once, and its slot a successor. Returns whether it does.
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

    /// A worker has ended. `None` if it was none of ours.
    pub(crate) fn on_exit(
        &mut self,
        id: WorkerId,
        exit_class: ExitClass,
        now: MonotonicTime,
    ) -> Option<ExitReport> {
        let slot_index = self.slot_of.remove(&id)?;
        let slot = &mut self.slots[slot_index];
        let index = slot.workers.iter().position(|worker| worker.id == id)?;
        let worker = slot.workers.remove(index);
        let reason = worker.exit_reason(exit_class);
        // What an earlier generation does says nothing about this one, and its own chances.
        let is_current = worker.generation == self.generation;
        let failures =
            if is_current { slot.record_failure(&worker, reason, exit_class, now) } else { 0 };
        let delay = if failures == 0 { Duration::ZERO } else { self.backoff(failures) };
        let slot = &mut self.slots[slot_index];
        slot.not_before = slot.not_before.max(now.saturating_add(delay));
        let is_failure = match reason {
            ExitReason::BootFailed | ExitReason::Hung | ExitReason::OomKilled => true,
            ExitReason::Crashed => exit_class == ExitClass::Crashed,
            ExitReason::Requested
            | ExitReason::ScaledDown
            | ExitReason::Recycled
            | ExitReason::Reload => false,
        };
        if let Some(rolling) = &mut self.rolling {
            rolling.failed |= is_failure && is_current;
        }
        self.fail_if_exhausted();
        let slot = &self.slots[slot_index];
        let refilled = slot.is_vacant() && !self.is_suspended && self.needs_worker(slot_index);
        Some(ExitReport {
            slot: slot_index,
            generation: worker.generation,
            reason,
            uptime: now.duration_since(worker.started),
            restart_in: refilled.then(|| slot.not_before.duration_since(now)),
        })
    }

    /// Somebody wishes for another number of workers. Returns the number that it became.
    pub(crate) fn scale_to(&mut self, target: usize) -> usize {
        self.target = target.clamp(1, WORKERS_MAX);
        if self.slots.len() < self.target {
            self.slots.resize(self.target, Slot::default());
        }
        if let Some(rolling) = self.rolling.as_mut().filter(|rolling| rolling.previous_target > 0) {
            rolling.previous_target = self.target; // a wish that outlives a reload that fails
        }
        self.fail_if_exhausted();
        self.target
    }

    /// New rules are to hold: a new generation replaces the old one, worker by worker, once one of
    /// it has been ready. No number may have been used before.
    ///
    /// # Panics
    /// If another reload is under way, or the number is not new.
    pub(crate) fn begin_reload(&mut self, policy: Policy, target: usize, generation: u32) {
        assert!(self.rolling.is_none(), "one reload at a time");
        assert!(self.newest_generation < generation, "a generation is numbered once");
        let rolling = RollingReload {
            previous_policy: self.policy,
            previous_target: self.target,
            previous_generation: self.generation,
            canary_ready: false,
            failed: false,
            overall_phase: ReloadPhase::Canary,
            fork_failures: None,
        };
        (self.generation, self.newest_generation) = (generation, generation);
        self.policy = policy;
        self.slots.iter_mut().for_each(Slot::reset_backoff);
        self.scale_to(target);
        self.rolling = Some(rolling);
    }

    /// Nobody is wished for any more: all drain, and nobody follows them.
    pub(crate) fn scale_to_zero(&mut self) {
        self.target = 0;
    }

    /// The workers are to leave, and nobody is to follow them until [`resume`](Self::resume).
    pub(crate) fn suspend(&mut self) {
        self.is_suspended = true;
        if let Some(rolling) = &mut self.rolling {
            rolling.failed = true; // it cannot prove itself now
        }
    }

    /// The workers are to come back. Returns whether that is news.
    pub(crate) fn resume(&mut self) -> bool {
        std::mem::take(&mut self.is_suspended)
    }

    /// The whole is to stop. A stop can only become harder.
    pub(crate) fn stop(&mut self, stop: ShutdownMode) {
        self.phase = match self.phase {
            Phase::Serving => Phase::Stopping(stop),
            Phase::Stopping(earlier) => Phase::Stopping(earlier.max(stop)),
            Phase::Failed => Phase::Failed,
        };
        self.rolling = None;
    }
}

/// The questions.
impl Supervisor {
    /// How many workers are wished for.
    pub(crate) fn target(&self) -> usize {
        self.target
    }

    /// The generation that is wished for.
    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    /// A generation, by its number, and what is thought of it.
    pub(crate) fn describe_generation(&self, number: u32) -> Generation {
        let committed = self.rolling.map_or(self.generation, |rolling| rolling.previous_generation);
        Generation { number, is_canary: committed < number }
    }

    /// How many workers are ready and not leaving.
    pub(crate) fn ready_count(&self) -> usize {
        self.workers().filter(|worker| worker.state == State::Ready).count()
    }

    /// How far a reload has come at `now`, if one is under way.
    pub(crate) fn reload_phase(&self, now: MonotonicTime) -> Option<ReloadPhase> {
        let rolling = self.rolling?;
        let fork_timed_out = self.fork_deadline().is_some_and(|at| at <= now);
        let mut slots = self.slots.iter().take(self.target);
        Some(if rolling.failed || fork_timed_out {
            ReloadPhase::Failed
        } else if slots.all(|slot| slot.is_served_by(self.generation)) {
            ReloadPhase::Complete
        } else if rolling.canary_ready {
            ReloadPhase::Rolling
        } else {
            ReloadPhase::Canary
        })
    }

    /// Whether a reload is under way.
    pub(crate) fn is_reloading(&self) -> bool {
        self.rolling.is_some()
    }

    /// Whether the whole is stopping.
    pub(crate) fn stopping(&self) -> Option<ShutdownMode> {
        match self.phase {
            Phase::Stopping(stop) => Some(stop),
            Phase::Serving | Phase::Failed => None,
        }
    }

    /// Whether nothing was ever ready, and the retries are used up.
    pub(crate) fn has_failed(&self) -> bool {
        self.phase == Phase::Failed
    }

    /// The end, once it has come.
    pub(crate) fn outcome(&self) -> Option<RunOutcome> {
        match self.phase {
            Phase::Stopping(_) if self.slot_of.is_empty() => Some(RunOutcome::Stopped),
            Phase::Failed if self.slot_of.is_empty() => Some(RunOutcome::NeverReady),
            Phase::Serving | Phase::Stopping(_) | Phase::Failed => None,
        }
    }

    /// The workers whose signs of life must be looked at before [`judge`](Self::judge) does.
    pub(crate) fn liveness_check_due(&self, now: MonotonicTime) -> Vec<WorkerId> {
        let suspects = self.workers().filter(|worker| match worker.state {
            State::Ready => worker.hang_deadline(self.timeout_floor).is_some_and(|at| at <= now),
            State::DrainingHung { .. } => true,
            State::Booting
            | State::Stopping { .. }
            | State::Aborting { .. }
            | State::Killed { .. } => false,
        });
        suspects.map(|worker| worker.id).collect()
    }

    /// The workers that [`judge`](Self::judge) will find overdue, now that they have been measured: they
    /// may be examined before.
    pub(crate) fn overdue(&self, now: MonotonicTime) -> Vec<WorkerId> {
        let overdue = self.workers().filter(|worker| {
            let deadline = match worker.state {
                State::Ready => worker.hang_deadline(self.timeout_floor),
                State::Booting => worker.boot_deadline(self.timeout_floor),
                State::DrainingHung { .. }
                | State::Stopping { .. }
                | State::Aborting { .. }
                | State::Killed { .. } => None,
            };
            deadline.is_some_and(|at| at <= now)
        });
        overdue.map(|worker| worker.id).collect()
    }

    /// The workers that were aborted, or asked to leave while the others stay, and are to be killed
    /// now.
    pub(crate) fn kill_candidates(&self, now: MonotonicTime) -> Vec<WorkerId> {
        let serves = self.phase == Phase::Serving;
        let is_due = |worker: &&Worker| match worker.state {
            State::Aborting { kill_at, .. } => kill_at <= now,
            State::Stopping { kill_at, mode: ShutdownMode::Graceful, .. } => {
                serves && kill_at <= now
            }
            State::Booting
            | State::Ready
            | State::Stopping { .. }
            | State::DrainingHung { .. }
            | State::Killed { .. } => false,
        };
        self.workers().filter(is_due).map(|worker| worker.id).collect()
    }

    /// The next moment at which there may be something to do, if no fact comes before. To be asked
    /// after [`proceed`](Self::proceed), of the same moment.
    pub(crate) fn next_deadline(&self, now: MonotonicTime) -> Option<MonotonicTime> {
        let workers = self.workers().flat_map(|worker| match worker.state {
            State::Booting => [worker.boot_deadline(self.timeout_floor), None],
            State::Ready => [
                worker.hang_deadline(self.timeout_floor),
                // One that has passed waits for room to replace, not for time.
                worker.recycle_deadline().filter(|at| now < *at),
            ],
            // Nobody tells when the others are done: look.
            State::DrainingHung { kill_at } => {
                [Some(kill_at), Some(now.saturating_add(HUNG_DRAIN_CHECK_INTERVAL))]
            }
            State::Stopping { kill_at, .. } | State::Aborting { kill_at, .. } => {
                [Some(kill_at), None]
            }
            State::Killed { .. } => [None, None],
        });
        let restart_times = self.slots.iter().map(|slot| slot.not_before).filter(|at| now < *at);
        workers.flatten().chain(restart_times).chain(self.fork_deadline()).min()
    }

    /// When a reload fails for want of a process.
    fn fork_deadline(&self) -> Option<MonotonicTime> {
        let (_, since) = self.rolling?.fork_failures?;
        let limit = self.policy.boot_timeout;
        (!limit.is_zero()).then(|| since.max(self.timeout_floor).saturating_add(limit))
    }

    fn workers(&self) -> impl Iterator<Item = &Worker> {
        self.slots.iter().flat_map(|slot| &slot.workers)
    }

    fn worker(&mut self, id: WorkerId) -> Option<&mut Worker> {
        let slot_index = *self.slot_of.get(&id)?;
        self.slots[slot_index].workers.iter_mut().find(|worker| worker.id == id)
    }

    /// For how long the next worker serves; zero is for ever.
    fn lifetime(&mut self) -> Duration {
        let Policy { max_lifetime, max_lifetime_jitter: jitter, .. } = self.policy;
        if max_lifetime.is_zero() || jitter.is_zero() {
            return max_lifetime;
        }
        let most = u64::try_from(jitter.as_nanos()).unwrap_or(u64::MAX).saturating_add(1);
        max_lifetime.saturating_add(Duration::from_nanos(self.rng.below(most)))
    }

    /// The wait before the nth try, n from 1: doubling, bounded, and shortened by up to a quarter
    /// so that slots do not march in step.
    fn backoff(&mut self, n: u32) -> Duration {
        let full = BACKOFF_MIN.saturating_mul(1 << (n - 1).min(16)).min(BACKOFF_MAX);
        full - full.mul_f64(self.rng.below(256) as f64 / 1024.0)
    }
}

#[cfg(test)]
mod tests;
