//! An invented clock and a pool of invented workers. `boots` has what happens before a worker is
//! ready, `lives` what happens to one that serves, `condemned` to one that half hangs, `examined`
//! to one that is looked at before it is judged, `ends` how
//! the whole stops and changes its size, `reloads` how a new generation comes, `world` the
//! properties of it all.

mod boots;
mod diagnosed;
mod draining_hung;
mod reloads;
mod serving;
mod shutdown;
mod simulation;

use std::collections::{BTreeMap, BTreeSet};

use super::*;

const NANO: Duration = Duration::from_nanos(1);
const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

const POLICY: Policy = Policy {
    timeout: Duration::from_secs(30),
    boot_timeout: Duration::from_secs(20),
    graceful_timeout: Duration::from_secs(10),
    abort_timeout: SECOND,
    max_lifetime: Duration::ZERO,
    max_lifetime_jitter: Duration::ZERO,
    max_surge: 1,
    max_unavailable: 0,
    boot_retries: 5,
};

/// A pool alone.
impl Supervisor {
    /// What is to be done at `now`.
    fn actions_due(&mut self, now: MonotonicTime) -> Vec<Action> {
        let mut actions = self.enforce_limits(now);
        let all = self.reload_phase(now);
        actions.extend(self.reconcile(now, all));
        actions
    }

    /// A reload to the next generation, of which this is the number.
    fn reload(&mut self, policy: Policy, target: usize) -> u32 {
        self.begin_reload(policy, target, self.newest_generation + 1);
        self.generation
    }
}

/// One unit of work, and no other thread at work.
fn single_unit(since: MonotonicTime) -> Busy {
    Busy { oldest: since, newest: since }
}

/// A roster whose forks always succeed and whose workers beat, but for those that are mute.
struct Pool {
    supervisor: Supervisor,
    now: MonotonicTime,
    silent: BTreeSet<WorkerId>,
    /// What those work on that beat, if anything.
    busy: BTreeMap<WorkerId, Busy>,
}

impl Pool {
    /// A pool at the moment of its start: nothing has been asked of the roster.
    fn new(policy: Policy, target: usize) -> Self {
        let now = MonotonicTime::default().saturating_add(YEAR);
        let supervisor = Supervisor::new(policy, target, 7);
        Self { supervisor, now, silent: BTreeSet::new(), busy: BTreeMap::new() }
    }

    /// A pool whose first workers, 1 to `target`, are ready.
    fn serving(policy: Policy, target: usize) -> Self {
        let mut pool = Self::new(policy, target);
        pool.step();
        pool.all_become_ready();
        assert_eq!(pool.step(), []);
        assert_eq!(pool.supervisor.ready_count(), pool.supervisor.target());
        pool
    }

    /// One turn of the master: measures, decides, forks. What is decided is decided once, and the
    /// next turn lies in the future, or the master would spin.
    fn step(&mut self) -> Vec<Action> {
        for id in self.supervisor.liveness_check_due(self.now) {
            if !self.silent.contains(&id) {
                self.supervisor.on_liveness(id, self.now, self.busy.get(&id).copied());
            }
        }
        let actions = self.supervisor.actions_due(self.now);
        for action in &actions {
            if let Action::Spawn { id, slot } = *action {
                self.supervisor.on_spawned(id, slot, self.now);
            }
        }
        let next = self.supervisor.next_deadline(self.now);
        assert!(next.is_none_or(|at| self.now < at), "{next:?} has come: {actions:?}");
        assert_eq!(self.supervisor.actions_due(self.now), [], "again, after {actions:?}");
        actions
    }

    /// Time passes, and then the master wakes.
    fn pass(&mut self, time: Duration) -> Vec<Action> {
        self.now = self.now.saturating_add(time);
        self.step()
    }

    /// Time passes in which the master does not run.
    fn stall(&mut self, time: Duration) {
        let since = self.now;
        self.now = since.saturating_add(time);
        self.supervisor.discount_stall(since, self.now);
    }

    /// The master sleeps from deadline to deadline until so much time has passed.
    fn run(&mut self, time: Duration) -> Vec<Action> {
        let end = self.now.saturating_add(time);
        let mut actions = self.step();
        while let Some(at) = self.supervisor.next_deadline(self.now).filter(|at| *at < end) {
            self.now = at;
            actions.extend(self.step());
        }
        self.now = end;
        actions.extend(self.step());
        actions
    }

    fn booting(&self) -> Vec<WorkerId> {
        let booting = self.supervisor.workers().filter(|worker| worker.state == State::Booting);
        booting.map(|worker| worker.id).collect()
    }

    /// The workers that serve, by slot.
    fn serving_ids(&self) -> Vec<u64> {
        let ready = self.supervisor.workers().filter(|worker| worker.state == State::Ready);
        ready.map(|worker| worker.id.0).collect()
    }

    fn become_ready(&mut self, id: u64) {
        assert!(
            self.supervisor.on_ready(WorkerId(id), self.now).is_some(),
            "worker {id} was not booting"
        );
    }

    /// Whoever boots becomes ready.
    fn all_become_ready(&mut self) {
        self.booting().into_iter().for_each(|id| self.become_ready(id.0));
    }

    fn exits(&mut self, id: u64, exit_class: ExitClass) -> ExitReport {
        self.supervisor.on_exit(WorkerId(id), exit_class, self.now).expect("one of ours")
    }

    /// Goes on until the master is idle: who boots becomes ready, who is asked to leave leaves.
    fn run_until_idle(&mut self) -> Vec<Action> {
        let mut all = Vec::new();
        loop {
            self.all_become_ready();
            let actions = self.step();
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
    Action::Spawn { id: WorkerId(id), slot }
}

fn drain(id: u64, reason: ExitReason) -> Action {
    Action::Drain(WorkerId(id), reason)
}

fn kill(id: u64, reason: ExitReason) -> Action {
    Action::KillOverdue(WorkerId(id), reason)
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
