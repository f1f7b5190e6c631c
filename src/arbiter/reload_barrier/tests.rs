//! Two or three supervisors, a fake clock and faulty processes in random schedules: what the pools do
//! together is checked against what the processes really did.
//!
//! A failure prints `seed`; `Simulation::run(seed)` repeats it.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::{any, proptest};

use super::super::pool::supervisor::tests::{self as supervisor_tests, random::Random};
use super::super::pool::supervisor::{
    ExitObservation, ExitReason, Policy, ProcessExit, ShutdownMode, WorkerId,
};
use super::*;

const SECOND: Duration = Duration::from_secs(1);

const POLICY: Policy = Policy {
    timeout: Duration::ZERO,
    boot_timeout: Duration::from_secs(5),
    graceful_timeout: SECOND,
    ..supervisor_tests::POLICY
};

const REQUESTED: ExitObservation = ExitObservation {
    exit: ProcessExit::Code(0),
    was_draining: true,
    killed_by_master: false,
    oom_kill: false,
    has_worked: false,
};

const CRASHED: ExitObservation = ExitObservation {
    exit: ProcessExit::FaultSignal,
    was_draining: false,
    killed_by_master: false,
    oom_kill: false,
    has_worked: false,
};

const KILLED_EXTERNALLY: ExitObservation =
    ExitObservation { exit: ProcessExit::TerminationSignal, ..CRASHED };

#[derive(Clone, Copy, Debug)]
struct Process {
    slot: usize,
    generation: u32,
    is_ready: bool,
    is_draining: bool,
    ready_at: Option<MonotonicTime>,
    exits_at: Option<(MonotonicTime, ExitObservation)>,
}

impl Process {
    fn serves(&self) -> bool {
        self.is_ready && !self.is_draining
    }
}

struct TestPool {
    supervisor: Supervisor,
    is_removing: bool,
    processes: BTreeMap<WorkerId, Process>,
    /// The target that a roll-back restores.
    previous_target: usize,
    /// A worker of the new generation has been ready.
    canary_ready: bool,
}

impl TestPool {
    fn empty(generation: u32) -> Self {
        Self {
            supervisor: Supervisor::empty(POLICY, generation, 7),
            is_removing: false,
            processes: BTreeMap::new(),
            previous_target: 0,
            canary_ready: false,
        }
    }

    fn serving_slots(&self, generation: u32) -> usize {
        let serves = |slot| {
            let mut all = self.processes.values();
            all.any(|p| p.slot == slot && p.serves() && p.generation == generation)
        };
        (0..self.supervisor.target()).filter(|slot| serves(*slot)).count()
    }
}

struct Simulation {
    pools: Vec<TestPool>,
    now: MonotonicTime,
    random: Random,
    generation_count: u32,
    /// The generation that a roll-back restores, during a reload.
    previous_generation: Option<u32>,
    current_generation: u32,
    /// No faults are injected any more.
    is_calm: bool,
    commits: u32,
    failures: u32,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut simulation = Self {
            pools: Vec::new(),
            now: MonotonicTime::default().saturating_add(1000 * SECOND),
            random: Random::new(seed),
            generation_count: 1,
            previous_generation: None,
            current_generation: 1,
            is_calm: false,
            commits: 0,
            failures: 0,
        };
        for _ in 0..2 + simulation.random.below(2) {
            let target = 1 + simulation.random.below(3) as usize;
            simulation.pools.push(TestPool {
                supervisor: Supervisor::new(POLICY, target, seed),
                ..TestPool::empty(1)
            });
        }
        simulation
    }

    /// Begins a reload that changes some pools, removes some and adds some.
    fn reload(&mut self) {
        if self.previous_generation.is_some() {
            return;
        }
        self.previous_generation = Some(self.current_generation);
        self.generation_count += 1;
        let kept = self.random.below(self.pools.len() as u64) as usize;
        for index in 0..self.pools.len() {
            let (is_removing, target) =
                (self.random.below(4) == 0 && index != kept, 1 + self.random.below(3) as usize);
            let pool = &mut self.pools[index];
            (pool.previous_target, pool.canary_ready) = (pool.supervisor.target(), false);
            // A removed pool may be added again.
            pool.is_removing = is_removing && pool.previous_target > 0;
            if !is_removing {
                pool.supervisor.begin_reload(POLICY, target, self.generation_count);
            }
        }
        if self.pools.len() < 4 && self.random.below(2) == 0 {
            let mut pool = TestPool::empty(self.current_generation);
            pool.supervisor.begin_reload(
                POLICY,
                1 + self.random.below(3) as usize,
                self.generation_count,
            );
            self.pools.push(pool);
        }
        self.current_generation = self.generation_count;
    }

    fn inject_faults(&mut self) {
        if self.random.below(12) == 0 {
            self.reload();
        }
        if self.random.below(6) > 0 {
            return;
        }
        let (index, now) = (self.random.below(self.pools.len() as u64) as usize, self.now);
        let (nth, killed_externally) = (self.random.below(4) as usize, self.random.below(2) == 0);
        let observation = if killed_externally { KILLED_EXTERNALLY } else { CRASHED };
        if let Some(process) = self.pools[index].processes.values_mut().nth(nth) {
            process.exits_at = Some((now, observation));
        }
    }

    /// Reports to the supervisors what has happened by now.
    fn deliver(&mut self) {
        let now = self.now;
        for pool in &mut self.pools {
            let current = pool.supervisor.generation();
            for (id, process) in &mut pool.processes {
                if !process.is_ready && process.ready_at.is_some_and(|at| at <= now) {
                    process.is_ready = true;
                    let is_news = pool.supervisor.on_ready(*id, now).is_some();
                    pool.canary_ready |= is_news && process.generation == current;
                }
            }
            let has_ended = |p: &Process| {
                p.exits_at.filter(|(at, _)| *at <= now).map(|(_, observation)| observation)
            };
            let processes = pool.processes.iter();
            let ended: Vec<_> =
                processes.filter_map(|(id, p)| Some((*id, has_ended(p)?))).collect();
            for (id, observation) in ended {
                pool.processes.remove(&id);
                pool.supervisor.on_exit(id, observation, now).expect("it was forked");
            }
        }
    }

    fn step(&mut self) {
        let events = self.pools.iter().flat_map(|pool| pool.processes.values());
        let events = events.flat_map(|p| {
            [p.ready_at.filter(|_| !p.is_ready), p.exits_at.map(|(at, _)| at)].into_iter().flatten()
        });
        let now = self.now;
        let deadlines = self.pools.iter().filter_map(|pool| pool.supervisor.next_deadline(now));
        let next =
            events.chain(deadlines).chain([now.saturating_add(SECOND)]).min().expect("never empty");
        self.now = now.max(next);
        if !self.is_calm {
            self.inject_faults();
        }
        self.deliver();
        for index in 0..self.pools.len() {
            let actions = self.pools[index].supervisor.enforce_limits(self.now);
            self.apply(index, &actions);
        }
        self.decide();
        let again = reconcile_all(participants(&mut self.pools), self.now);
        assert!(again.result.is_none(), "{again:?}");
        assert!(again.actions.iter().all(Vec::is_empty), "{again:?}");
        for pool in &self.pools {
            let next = pool.supervisor.next_deadline(self.now);
            assert!(next.is_none_or(|at| self.now < at), "the master would spin");
        }
    }

    fn decide(&mut self) {
        let now = self.now;
        let was_reloading: Vec<bool> =
            self.pools.iter().map(|pool| pool.supervisor.is_reloading()).collect();
        assert_eq!(was_reloading.contains(&true), self.previous_generation.is_some());
        let all_canaries_ready =
            self.pools.iter().zip(&was_reloading).all(|(pool, was)| !was || pool.canary_ready);
        let outcome = reconcile_all(participants(&mut self.pools), now);
        for (pool, was_reloading) in self.pools.iter().zip(&was_reloading) {
            let has_ended = *was_reloading && !pool.supervisor.is_reloading();
            assert_eq!(has_ended, *was_reloading && outcome.result.is_some(), "all pools or none");
        }
        match outcome.result {
            Some(ReloadResult::Commit) => self.check_commit(&was_reloading),
            Some(ReloadResult::RollBack { failed_pool }) => {
                assert!(was_reloading[failed_pool]);
                self.check_rolled_back();
            }
            None if !all_canaries_ready => self.check_before_canaries_ready(&outcome),
            None => (),
        }
        let reloads = self.pools.iter().any(|pool| pool.supervisor.is_reloading());
        assert_eq!(
            reloads,
            self.previous_generation.is_some(),
            "a reload ends in all pools or in none"
        );
        for (index, actions) in outcome.actions.iter().enumerate() {
            self.apply(index, actions);
        }
    }

    fn check_commit(&mut self, was_reloading: &[bool]) {
        for (pool, reloads) in self.pools.iter_mut().zip(was_reloading) {
            let target = pool.supervisor.target();
            if *reloads {
                assert!(target > 0);
                assert_eq!(pool.serving_slots(self.current_generation), target, "not complete");
            } else {
                assert_eq!(target, 0, "a removed pool has no target");
            }
            pool.is_removing = false;
        }
        self.previous_generation = None;
        self.commits += 1;
    }

    fn check_rolled_back(&mut self) {
        self.current_generation =
            self.previous_generation.take().expect("a reload was in progress");
        for pool in &mut self.pools {
            assert_eq!(pool.supervisor.target(), pool.previous_target, "the target is restored");
            assert!(pool.supervisor.generation() <= self.current_generation);
            pool.is_removing = false;
        }
        self.failures += 1;
    }

    /// Checks that before every canary is ready no old worker drains and no pool grows.
    fn check_before_canaries_ready(&self, outcome: &ReconcileOutcome) {
        for (pool, actions) in self.pools.iter().zip(&outcome.actions) {
            for action in actions {
                match action {
                    Action::Drain(id, reason) => {
                        let process = &pool.processes[id];
                        let is_new = process.generation == self.current_generation;
                        // These may drain: workers of a removed pool, workers that boot for a
                        // rolled-back generation, the older of two old ones in a slot, and in a
                        // pool that is to be removed one that an earlier scale-down has kept.
                        let is_double = pool.processes.iter().any(|(other, p)| {
                            let is_old = other != id && p.generation < self.current_generation;
                            is_old && p.slot == process.slot && p.serves()
                        });
                        let is_kept_longer =
                            pool.is_removing && pool.supervisor.target() <= process.slot;
                        let is_surplus = pool.supervisor.target() == 0
                            || !process.is_ready
                            || is_double
                            || is_kept_longer;
                        assert!(is_surplus && !is_new, "{reason:?} too early: {process:?}");
                    }
                    Action::Spawn { slot, .. } if pool.canary_ready && !pool.is_removing => {
                        assert!(*slot < pool.previous_target, "the pool grows too early");
                        let serves = |p: &Process| p.slot == *slot && p.serves();
                        assert!(
                            !pool.processes.values().any(serves),
                            "a replacement is started too early"
                        );
                    }
                    _ => (),
                }
            }
        }
    }

    fn apply(&mut self, index: usize, actions: &[Action]) {
        for action in actions {
            let now = self.now;
            match *action {
                Action::Spawn { id, slot, .. } => {
                    let (at, failure) =
                        (now.saturating_add(self.random.within(SECOND)), self.random.below(16));
                    let later = now.saturating_add(self.random.within(3 * SECOND));
                    let pool = &mut self.pools[index];
                    pool.supervisor.on_spawned(id, slot, now);
                    let mut process = Process {
                        slot,
                        generation: pool.supervisor.generation(),
                        is_ready: false,
                        is_draining: false,
                        ready_at: Some(at),
                        exits_at: None,
                    };
                    match failure {
                        0 if !self.is_calm => process.exits_at = Some((later, CRASHED)),
                        1 if !self.is_calm => process.ready_at = None,
                        _ => (),
                    }
                    pool.processes.insert(id, process);
                }
                Action::Drain(id, _)
                | Action::QuickStop(id)
                | Action::Abort(id, _)
                | Action::Kill(id, _) => {
                    let at = now.saturating_add(self.random.within(SECOND));
                    let process =
                        self.pools[index].processes.get_mut(&id).expect("a process of the pool");
                    process.is_draining = true;
                    let observation = if matches!(action, Action::Drain(..) | Action::QuickStop(_))
                    {
                        REQUESTED
                    } else {
                        CRASHED
                    };
                    process.exits_at.get_or_insert((at, observation));
                }
                Action::DrainHung(..) | Action::KillHung(..) => {
                    panic!("no process hangs here: {action:?}")
                }
            }
        }
    }

    /// Returns whether every pool has exactly its target of workers, all of the current generation.
    fn has_converged(&self) -> bool {
        self.previous_generation.is_none()
            && self.pools.iter().all(|pool| {
                let target = pool.supervisor.target();
                let fits = |p: &&Process| p.serves() && p.generation == self.current_generation;
                pool.processes.len() == target
                    && pool.processes.values().filter(fits).count() == target
            })
    }

    fn run(seed: u64) -> (u32, u32) {
        let mut simulation = Self::new(seed);
        for _ in 0..200 {
            simulation.step();
            if simulation.pools.iter().any(|pool| pool.supervisor.has_failed()) {
                return (simulation.commits, simulation.failures); // no worker was ever ready
            }
        }
        simulation.is_calm = true;
        let limit = simulation.now.saturating_add(300 * SECOND);
        while !simulation.has_converged() {
            assert!(simulation.now < limit, "the pools do not converge");
            simulation.step();
        }
        simulation.pools.iter_mut().for_each(|pool| pool.supervisor.stop(ShutdownMode::Graceful));
        while simulation.pools.iter().any(|pool| pool.supervisor.outcome().is_none()) {
            assert!(simulation.now < limit.saturating_add(60 * SECOND), "the pools do not stop");
            simulation.step();
        }
        (simulation.commits, simulation.failures)
    }
}

fn participants(pools: &mut [TestPool]) -> Vec<ReloadParticipant<'_>> {
    let pools = pools.iter_mut();
    pools
        .map(|pool| ReloadParticipant {
            is_removing: pool.is_removing,
            supervisor: &mut pool.supervisor,
        })
        .collect()
}

proptest! {
    #[test]
    fn random_schedules_every_reload_is_atomic(seed in any::<u64>()) {
        Simulation::run(seed);
    }
}

#[test]
fn random_schedules_reach_commit_and_roll_back() {
    let runs = (0..100).map(Simulation::run);
    let (commits, failures) = runs.fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
    assert!(commits > 100 && failures > 100, "{commits} commits, {failures} failures");
}

/// Begins a reload of two serving pools with these targets.
fn two_reloading(counts: [usize; 2]) -> (Vec<Supervisor>, MonotonicTime) {
    let now = MonotonicTime::default().saturating_add(1000 * SECOND);
    let supervisors = counts.map(|count| {
        let mut supervisor = Supervisor::new(POLICY, count, 7);
        for action in supervisor.reconcile(now, None) {
            let Action::Spawn { id, slot, .. } = action else { panic!("{action:?}") };
            supervisor.on_spawned(id, slot, now);
            supervisor.on_ready(id, now);
        }
        supervisor.begin_reload(POLICY, count, 2);
        supervisor
    });
    (supervisors.into(), now)
}

fn reconcile_and_spawn(supervisors: &mut [Supervisor], now: MonotonicTime) -> ReconcileOutcome {
    let pools = supervisors
        .iter_mut()
        .map(|supervisor| ReloadParticipant { supervisor, is_removing: false });
    let outcome = reconcile_all(pools.collect(), now);
    for (supervisor, actions) in supervisors.iter_mut().zip(&outcome.actions) {
        for action in actions {
            if let Action::Spawn { id, slot, .. } = *action {
                supervisor.on_spawned(id, slot, now);
            }
        }
    }
    outcome
}

fn spawned(outcome: &ReconcileOutcome, pool: usize) -> Vec<WorkerId> {
    let ids = outcome.actions[pool].iter().filter_map(|action| match action {
        Action::Spawn { id, .. } => Some(*id),
        _ => None,
    });
    ids.collect()
}

#[test]
fn reconcile_all_before_every_canary_ready_waits() {
    let (mut supervisors, now) = two_reloading([2, 3]);
    let canaries = reconcile_and_spawn(&mut supervisors, now);
    let (first_canary, second_canary) = (spawned(&canaries, 0), spawned(&canaries, 1));
    assert_eq!((first_canary.len(), second_canary.len()), (1, 1));
    supervisors[0].on_ready(first_canary[0], now);
    let waiting = reconcile_and_spawn(&mut supervisors, now);
    assert_eq!((waiting.result, waiting.actions), (None, vec![vec![], vec![]]));
    supervisors[1].on_ready(second_canary[0], now);
    let rolling = reconcile_and_spawn(&mut supervisors, now);
    for actions in &rolling.actions {
        assert!(matches!(actions[0], Action::Drain(_, ExitReason::Reload)), "{actions:?}");
        assert!(matches!(actions[1], Action::Spawn { slot: 1, .. }), "{actions:?}");
    }
}

#[test]
fn reconcile_all_before_all_complete_does_not_commit() {
    let (mut supervisors, now) = two_reloading([1, 2]);
    let canaries = reconcile_and_spawn(&mut supervisors, now);
    supervisors[0].on_ready(spawned(&canaries, 0)[0], now);
    supervisors[1].on_ready(spawned(&canaries, 1)[0], now);
    let rolling = reconcile_and_spawn(&mut supervisors, now);
    assert_eq!((rolling.result, &rolling.actions[0]), (None, &vec![]), "the complete pool waits");
    supervisors[1].on_ready(spawned(&rolling, 1)[0], now);
    let done = reconcile_and_spawn(&mut supervisors, now);
    assert_eq!(done.result, Some(ReloadResult::Commit));
    for (supervisor, actions) in supervisors.iter().zip(&done.actions) {
        assert_eq!((supervisor.is_reloading(), supervisor.generation()), (false, 2));
        assert!(matches!(actions[..], [Action::Drain(_, ExitReason::Reload)]), "{actions:?}");
    }
}

#[test]
fn reconcile_all_one_pool_fails_rolls_back_complete_pool() {
    let (mut supervisors, now) = two_reloading([1, 2]);
    let canaries = reconcile_and_spawn(&mut supervisors, now);
    supervisors[0].on_ready(spawned(&canaries, 0)[0], now);
    reconcile_and_spawn(&mut supervisors, now);
    supervisors[1].on_exit(spawned(&canaries, 1)[0], CRASHED, now);
    let back = reconcile_and_spawn(&mut supervisors, now);
    assert_eq!(back.result, Some(ReloadResult::RollBack { failed_pool: 1 }));
    assert!(
        supervisors
            .iter()
            .all(|supervisor| supervisor.generation() == 1 && !supervisor.is_reloading())
    );
}

#[test]
fn reconcile_all_removed_pool_drains_only_at_commit() {
    let (mut supervisors, now) = two_reloading([1, 1]);
    let mut removed = Supervisor::new(POLICY, 2, 7);
    for action in removed.reconcile(now, None) {
        let Action::Spawn { id, slot, .. } = action else { panic!("{action:?}") };
        removed.on_spawned(id, slot, now);
        removed.on_ready(id, now);
    }
    let reconcile_three = |supervisors: &mut [Supervisor], removed: &mut Supervisor| {
        let pools = supervisors
            .iter_mut()
            .map(|supervisor| ReloadParticipant { supervisor, is_removing: false });
        let pools = pools.chain([ReloadParticipant { supervisor: removed, is_removing: true }]);
        reconcile_all(pools.collect(), now)
    };
    let canaries = reconcile_three(&mut supervisors, &mut removed);
    for (index, supervisor) in supervisors.iter_mut().enumerate() {
        let id = spawned(&canaries, index)[0];
        supervisor.on_spawned(id, 0, now);
        assert_eq!(removed.target(), 2);
        supervisor.on_ready(id, now);
    }
    let done = reconcile_three(&mut supervisors, &mut removed);
    assert_eq!(done.result, Some(ReloadResult::Commit));
    let drains = |action: &Action| matches!(action, Action::Drain(_, ExitReason::Reload));
    assert!(done.actions[2].len() == 2 && done.actions[2].iter().all(drains), "{done:?}");
}
