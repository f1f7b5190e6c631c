//! Tests with a fake clock and fake workers, by file:
//!
//! * `boots`: before a worker is ready
//! * `serving`: a ready worker
//! * `memory`: samples against `max_memory`
//! * `exits`: how an exit is classified
//! * `restarts`: when an exited worker is restarted
//! * `draining_hung`: a worker with one hung thread
//! * `diagnosed`: an overdue worker that is diagnosed first
//! * `drain_mode`: a ready worker that accepts no clients
//! * `shutdown`: stopping, scaling, suspending
//! * `reloads`: replacing a generation
//! * `random`: random choices for simulations
//! * `simulation`: properties of random schedules

mod boots;
mod diagnosed;
mod drain_mode;
mod draining_hung;
mod exits;
mod memory;
pub(in crate::arbiter) mod random;
mod reloads;
mod restarts;
mod serving;
mod shutdown;
mod simulation;

use std::collections::{BTreeMap, BTreeSet};

use super::restarts::BACKOFF_MAX;
use super::types::ExitClass;
use super::*;

const NANO: Duration = Duration::from_nanos(1);
const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

pub(in crate::arbiter) const POLICY: Policy = Policy {
    timeout: Duration::from_secs(30),
    boot_timeout: Duration::from_secs(20),
    graceful_timeout: Duration::from_secs(10),
    abort_timeout: SECOND,
    max_lifetime: Duration::ZERO,
    max_lifetime_jitter: Duration::ZERO,
    max_requests: 0,
    max_requests_jitter: 0,
    max_memory: 0,
    max_surge: 1,
    max_unavailable: 0,
    boot_retries: 5,
    restart_limit: 4,
    restart_interval: MINUTE,
};

/// How a reload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReloadEnd {
    Commit,
    RollBack,
}

/// A pool that reloads alone.
impl Supervisor {
    /// Returns the actions due at `now`.
    fn actions_due(&mut self, now: MonotonicTime) -> Vec<Action> {
        let mut actions = self.enforce_limits(now);
        actions.extend(self.reconcile_alone(now).0);
        actions
    }

    /// Reconciles at `now`. Returns the actions, and how the reload ended if it did.
    fn reconcile_alone(&mut self, now: MonotonicTime) -> (Vec<Action>, Option<ReloadEnd>) {
        let was_reloading = self.is_reloading();
        let generation = self.generation();
        let actions = self.reconcile(now, self.reload_phase(now));
        let is_committed = self.generation() == generation;
        let end = if is_committed { ReloadEnd::Commit } else { ReloadEnd::RollBack };
        (actions, (was_reloading && !self.is_reloading()).then_some(end))
    }

    /// Begins a reload to the next unused generation. Returns its number.
    fn reload(&mut self, policy: Policy, target: usize) -> u32 {
        self.begin_reload(policy, target, self.newest_generation + 1);
        self.generation()
    }
}

/// Returns what the process table observes of an exit of this class.
fn observation(exit_class: ExitClass) -> ExitObservation {
    let exit = match exit_class {
        ExitClass::Requested => ProcessExit::Code(0),
        ExitClass::KilledExternally | ExitClass::OomKilled => ProcessExit::TerminationSignal,
        ExitClass::Crashed => ProcessExit::FaultSignal,
    };
    ExitObservation {
        exit,
        was_draining: exit_class == ExitClass::Requested,
        killed_by_master: false,
        oom_kill: exit_class == ExitClass::OomKilled,
        has_worked: false,
    }
}

/// One unit of work in progress.
fn single_unit(since: MonotonicTime) -> Busy {
    Busy { oldest: since, newest: since }
}

/// A supervisor whose forks always succeed and whose workers send heartbeats, except silent ones.
struct Pool {
    supervisor: Supervisor,
    now: MonotonicTime,
    silent: BTreeSet<WorkerId>,
    /// The units of work in progress of workers that are not silent.
    busy: BTreeMap<WorkerId, Busy>,
    /// How many reloads were committed.
    commits: usize,
}

impl Pool {
    /// Creates a pool that has not had its first turn.
    fn new(policy: Policy, target: usize) -> Self {
        let now = MonotonicTime::default().saturating_add(YEAR);
        let supervisor = Supervisor::new(policy, target, 7);
        Self { supervisor, now, silent: BTreeSet::new(), busy: BTreeMap::new(), commits: 0 }
    }

    /// Creates a pool whose first workers, 1 to `target`, are ready.
    fn serving(policy: Policy, target: usize) -> Self {
        let mut pool = Self::new(policy, target);
        pool.step();
        pool.all_become_ready();
        assert_eq!(pool.step(), []);
        assert_eq!(pool.supervisor.ready_count(), pool.supervisor.target());
        pool
    }

    /// Plays one turn of the master: reads liveness, decides, forks. Checks that no action is
    /// returned twice and that the next deadline is in the future, so that the master does not spin.
    fn turn(&mut self) -> (Vec<Action>, Option<ReloadEnd>) {
        for id in self.supervisor.liveness_check_due(self.now) {
            if !self.silent.contains(&id) {
                self.supervisor.on_liveness(id, self.now, self.busy.get(&id).copied());
            }
        }
        let mut actions = self.supervisor.enforce_limits(self.now);
        let (more, end) = self.supervisor.reconcile_alone(self.now);
        actions.extend(more);
        self.commits += usize::from(end == Some(ReloadEnd::Commit));
        for action in &actions {
            if let Action::Spawn { id, slot, .. } = *action {
                self.supervisor.on_spawned(id, slot, self.now);
            }
        }
        let next = self.supervisor.next_deadline(self.now);
        assert!(next.is_none_or(|at| self.now < at), "{next:?} has passed: {actions:?}");
        assert_eq!(self.supervisor.actions_due(self.now), [], "again, after {actions:?}");
        (actions, end)
    }

    /// Plays a turn in which no reload ends.
    fn step(&mut self) -> Vec<Action> {
        let (actions, end) = self.turn();
        assert_eq!(end, None, "with {actions:?}");
        actions
    }

    /// Plays a turn in which the reload commits.
    fn step_to_commit(&mut self) -> Vec<Action> {
        let (actions, end) = self.turn();
        assert_eq!(end, Some(ReloadEnd::Commit), "with {actions:?}");
        actions
    }

    /// Plays a turn in which the reload rolls back.
    fn step_to_roll_back(&mut self) -> Vec<Action> {
        let (actions, end) = self.turn();
        assert_eq!(end, Some(ReloadEnd::RollBack), "with {actions:?}");
        actions
    }

    /// Advances the clock, then plays a turn in which no reload ends.
    fn pass(&mut self, time: Duration) -> Vec<Action> {
        self.advance(time);
        self.step()
    }

    /// Advances the clock.
    fn advance(&mut self, time: Duration) {
        self.now = self.now.saturating_add(time);
    }

    /// Advances the clock while the master does not run.
    fn stall(&mut self, time: Duration) {
        let since = self.now;
        self.advance(time);
        self.supervisor.discount_stall(since, self.now);
    }

    /// Plays all turns of a time span, one at each deadline.
    fn run(&mut self, time: Duration) -> Vec<Action> {
        let end = self.now.saturating_add(time);
        let mut actions = self.turn().0;
        while let Some(at) = self.supervisor.next_deadline(self.now).filter(|at| *at < end) {
            self.now = at;
            actions.extend(self.turn().0);
        }
        self.now = end;
        actions.extend(self.turn().0);
        actions
    }

    fn booting(&self) -> Vec<WorkerId> {
        let booting = self.supervisor.workers().filter(|worker| worker.state == State::Booting);
        booting.map(|worker| worker.id).collect()
    }

    /// Returns the ready workers, by slot.
    fn serving_ids(&self) -> Vec<u64> {
        let ready = self.supervisor.workers().filter(|worker| worker.state == State::Ready);
        ready.map(|worker| worker.id.0).collect()
    }

    fn become_ready(&mut self, id: u64) {
        let uptime = self.supervisor.on_ready(WorkerId(id), self.now);
        assert!(uptime.is_some(), "worker {id} was not booting");
    }

    fn all_become_ready(&mut self) {
        self.booting().into_iter().for_each(|id| self.become_ready(id.0));
    }

    fn exits(&mut self, id: u64, exit_class: ExitClass) -> ExitReport {
        self.exits_as(id, observation(exit_class))
    }

    fn exits_as(&mut self, id: u64, observation: ExitObservation) -> ExitReport {
        self.supervisor.on_exit(WorkerId(id), observation, self.now).expect("a worker of the pool")
    }

    /// Plays turns until no action is left: booting workers become ready, stopped workers exit.
    fn run_until_idle(&mut self) -> Vec<Action> {
        let mut all = Vec::new();
        loop {
            self.all_become_ready();
            let actions = self.turn().0;
            for action in &actions {
                if let Action::Drain(id, _) | Action::QuickStop(id) = *action {
                    self.exits(id.0, ExitClass::Requested);
                }
            }
            if actions.is_empty() && self.booting().is_empty() {
                return all;
            }
            all.extend(actions);
        }
    }
}

fn spawn(id: u64, slot: usize) -> Action {
    Action::Spawn { id: WorkerId(id), slot, max_units: 0 }
}

fn drain(id: u64, reason: ExitReason) -> Action {
    Action::Drain(WorkerId(id), reason)
}

fn kill(id: u64, reason: ExitReason) -> Action {
    Action::Kill(WorkerId(id), reason)
}

fn abort(id: u64, hang: Hang) -> Action {
    Action::Abort(WorkerId(id), hang)
}

fn drain_hung(id: u64, hang: Hang) -> Action {
    Action::DrainHung(WorkerId(id), hang)
}

fn is_spawn(action: &Action) -> bool {
    matches!(action, Action::Spawn { .. })
}
