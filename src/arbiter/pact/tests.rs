//! Two or three rosters, an invented clock, and processes of bad manners in random schedules: what
//! the pools do together is held against what the processes really did.
//!
//! A failure prints `seed`; `World::play(seed)` tells the same story again.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::{any, proptest};

use super::super::roster::{ExitClass, Policy, ExitReason, ShutdownMode, WorkerId};
use super::*;

const SECOND: Duration = Duration::from_secs(1);

const POLICY: Policy = Policy {
    timeout: Duration::ZERO,
    boot_timeout: Duration::from_secs(5),
    graceful_timeout: SECOND,
    abort_timeout: SECOND,
    max_lifetime: Duration::ZERO,
    max_lifetime_jitter: Duration::ZERO,
    max_surge: 1,
    max_unavailable: 0,
    boot_retries: 5,
};

#[derive(Clone, Copy, Debug)]
struct Process {
    slot: usize,
    generation: u32,
    is_ready: bool,
    /// It was asked to leave.
    leaves: bool,
    ready_at: Option<MonotonicTime>,
    ends: Option<(MonotonicTime, ExitClass)>,
}

impl Process {
    fn serves(&self) -> bool {
        self.is_ready && !self.leaves
    }
}

struct House {
    roster: Supervisor,
    goes: bool,
    processes: BTreeMap<WorkerId, Process>,
    /// How many workers there are to be if the reload that is under way fails.
    before: usize,
    /// Whether somebody of the generation that is under way has been ready.
    proven: bool,
}

impl House {
    fn absent(generation: u32) -> Self {
        Self {
            roster: Supervisor::empty(POLICY, generation, 7),
            goes: false,
            processes: BTreeMap::new(),
            before: 0,
            proven: false,
        }
    }

    fn serving_slots(&self, generation: u32) -> usize {
        let serves = |slot| {
            let mut all = self.processes.values();
            all.any(|p| p.slot == slot && p.serves() && p.generation == generation)
        };
        (0..self.roster.target()).filter(|slot| serves(*slot)).count()
    }
}

struct World {
    houses: Vec<House>,
    now: MonotonicTime,
    chance: u64,
    generations: u32,
    /// The generation before, while a reload is under way.
    earlier: Option<u32>,
    present: u32,
    /// No mischief any more.
    calm: bool,
    commits: u32,
    failures: u32,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            houses: Vec::new(),
            now: MonotonicTime::default().saturating_add(1000 * SECOND),
            chance: seed,
            generations: 1,
            earlier: None,
            present: 1,
            calm: false,
            commits: 0,
            failures: 0,
        };
        for _ in 0..2 + world.below(2) {
            let target = 1 + world.below(3) as usize;
            world
                .houses
                .push(House { roster: Supervisor::new(POLICY, target, seed), ..House::absent(1) });
        }
        world
    }

    /// A number below `n` (splitmix64).
    fn below(&mut self, n: u64) -> u64 {
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.chance ^ (self.chance >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % n
    }

    fn within(&mut self, most: Duration) -> Duration {
        Duration::from_nanos(self.below(most.as_nanos() as u64 + 1))
    }

    /// Some pools change, some go, some come.
    fn reload(&mut self) {
        if self.earlier.is_some() {
            return;
        }
        self.earlier = Some(self.present);
        self.generations += 1;
        let kept = self.below(self.houses.len() as u64) as usize;
        for index in 0..self.houses.len() {
            let (goes, target) = (self.below(4) == 0 && index != kept, 1 + self.below(3) as usize);
            let house = &mut self.houses[index];
            (house.before, house.proven) = (house.roster.target(), false);
            // One that has gone may come again.
            house.goes = goes && house.before > 0;
            if !goes {
                house.roster.begin_reload(POLICY, target, self.generations);
            }
        }
        if self.houses.len() < 4 && self.below(2) == 0 {
            let mut house = House::absent(self.present);
            house.roster.begin_reload(POLICY, 1 + self.below(3) as usize, self.generations);
            self.houses.push(house);
        }
        self.present = self.generations;
    }

    fn mischief(&mut self) {
        if self.below(12) == 0 {
            self.reload();
        }
        if self.below(6) > 0 {
            return;
        }
        let (index, now) = (self.below(self.houses.len() as u64) as usize, self.now);
        let (nth, murdered) = (self.below(4) as usize, self.below(2) == 0);
        let how = if murdered { ExitClass::KilledExternally } else { ExitClass::Crashed };
        if let Some(process) = self.houses[index].processes.values_mut().nth(nth) {
            process.ends = Some((now, how));
        }
    }

    /// What has happened by now.
    fn deliver(&mut self) {
        let now = self.now;
        for house in &mut self.houses {
            let wished = house.roster.generation();
            for (id, process) in &mut house.processes {
                if !process.is_ready && process.ready_at.is_some_and(|at| at <= now) {
                    process.is_ready = true;
                    let is_news = house.roster.on_ready(*id, now).is_some();
                    house.proven |= is_news && process.generation == wished;
                }
            }
            let has_ended = |p: &Process| p.ends.filter(|(at, _)| *at <= now).map(|(_, how)| how);
            let processes = house.processes.iter();
            let ended: Vec<_> =
                processes.filter_map(|(id, p)| Some((*id, has_ended(p)?))).collect();
            for (id, how) in ended {
                house.processes.remove(&id);
                house.roster.on_exit(id, how, now).expect("it was forked");
            }
        }
    }

    fn turn(&mut self) {
        let events = self.houses.iter().flat_map(|house| house.processes.values());
        let events = events.flat_map(|p| {
            [p.ready_at.filter(|_| !p.is_ready), p.ends.map(|(at, _)| at)].into_iter().flatten()
        });
        let now = self.now;
        let deadlines = self.houses.iter().filter_map(|house| house.roster.next_deadline(now));
        let next = events.chain(deadlines).chain([now.saturating_add(SECOND)]).min().expect("a second");
        self.now = now.max(next);
        if !self.calm {
            self.mischief();
        }
        self.deliver();
        for index in 0..self.houses.len() {
            let actions = self.houses[index].roster.enforce_limits(self.now);
            self.obey(index, &actions);
        }
        self.decide();
        let again = reconcile_all(signatories(&mut self.houses), self.now);
        assert!(again.result.is_none(), "{again:?}");
        assert!(again.actions.iter().all(Vec::is_empty), "{again:?}");
        for house in &self.houses {
            let next = house.roster.next_deadline(self.now);
            assert!(next.is_none_or(|at| self.now < at), "it would spin");
        }
    }

    fn decide(&mut self) {
        let now = self.now;
        let was_reloading: Vec<bool> =
            self.houses.iter().map(|house| house.roster.is_reloading()).collect();
        assert_eq!(was_reloading.contains(&true), self.earlier.is_some());
        let all_proven = self.houses.iter().zip(&was_reloading).all(|(h, is)| !is || h.proven);
        let turn = reconcile_all(signatories(&mut self.houses), now);
        for (index, actions) in turn.actions.iter().enumerate() {
            let count = |wanted| actions.iter().filter(|action| **action == wanted).count();
            let (commits, rolls) = (count(Action::Commit), count(Action::RollBack));
            let expected = match turn.result {
                Some(ReloadResult::Commit) => (usize::from(was_reloading[index]), 0),
                Some(ReloadResult::RollBack { .. }) => (0, usize::from(was_reloading[index])),
                None => (0, 0),
            };
            assert_eq!((commits, rolls), expected, "one for all: {:?}", turn.result);
        }
        match turn.result {
            Some(ReloadResult::Commit) => self.check_commit(&was_reloading),
            Some(ReloadResult::RollBack { failed_pool: culprit }) => {
                assert!(was_reloading[culprit]);
                self.check_roll_back();
            }
            None if !all_proven => self.check_trial(&turn),
            None => (),
        }
        let reloads = self.houses.iter().any(|house| house.roster.is_reloading());
        assert_eq!(reloads, self.earlier.is_some(), "it ends for all or for none");
        for (index, actions) in turn.actions.iter().enumerate() {
            self.obey(index, actions);
        }
    }

    fn check_commit(&mut self, was_reloading: &[bool]) {
        for (house, reloads) in self.houses.iter_mut().zip(was_reloading) {
            let target = house.roster.target();
            if *reloads {
                assert!(target > 0);
                assert_eq!(house.serving_slots(self.present), target, "it is not complete");
            } else {
                assert_eq!(target, 0, "it goes, or has gone");
            }
            house.goes = false;
        }
        self.earlier = None;
        self.commits += 1;
    }

    fn check_roll_back(&mut self) {
        self.present = self.earlier.take().expect("a reload was under way");
        for house in &mut self.houses {
            assert_eq!(house.roster.target(), house.before, "back to what was");
            assert!(house.roster.generation() <= self.present);
            house.goes = false;
        }
        self.failures += 1;
    }

    /// Not all pools have tried out the new generation: nobody old goes, and nobody is added.
    fn check_trial(&self, turn: &ReconcileOutcome) {
        for (house, actions) in self.houses.iter().zip(&turn.actions) {
            for action in actions {
                match action {
                    Action::Drain(id, reason) => {
                        let process = &house.processes[id];
                        let is_trial = process.generation == self.present;
                        // Those go whose pool has gone before, or who booted for nothing, or
                        // beside whom another old one serves.
                        let is_double = house.processes.iter().any(|(other, p)| {
                            let is_old = other != id && p.generation < self.present;
                            is_old && p.slot == process.slot && p.serves()
                        });
                        let is_over = house.roster.target() == 0 || !process.is_ready || is_double;
                        assert!(is_over && !is_trial, "{reason:?} too early: {process:?}");
                    }
                    Action::Spawn { slot, .. } if house.proven && !house.goes => {
                        assert!(*slot < house.before, "nobody is added yet");
                        let serves = |p: &Process| p.slot == *slot && p.serves();
                        assert!(!house.processes.values().any(serves), "it rolls too early");
                    }
                    _ => (),
                }
            }
        }
    }

    fn obey(&mut self, index: usize, actions: &[Action]) {
        for action in actions {
            let now = self.now;
            match *action {
                Action::Spawn { id, slot } => {
                    let (at, fate) = (now.saturating_add(self.within(SECOND)), self.below(16));
                    let later = now.saturating_add(self.within(3 * SECOND));
                    let house = &mut self.houses[index];
                    house.roster.on_spawned(id, slot, now);
                    let mut process = Process {
                        slot,
                        generation: house.roster.generation(),
                        is_ready: false,
                        leaves: false,
                        ready_at: Some(at),
                        ends: None,
                    };
                    match fate {
                        0 if !self.calm => process.ends = Some((later, ExitClass::Crashed)),
                        1 if !self.calm => process.ready_at = None,
                        _ => (),
                    }
                    house.processes.insert(id, process);
                }
                Action::Drain(id, _)
                | Action::QuickStop(id)
                | Action::Abort(id, _)
                | Action::KillOverdue(id, _) => {
                    let at = now.saturating_add(self.within(SECOND));
                    let process = self.houses[index].processes.get_mut(&id).expect("it lives");
                    process.leaves = true;
                    let how = if matches!(action, Action::Drain(..) | Action::QuickStop(_)) {
                        ExitClass::Requested
                    } else {
                        ExitClass::Crashed
                    };
                    process.ends.get_or_insert((at, how));
                }
                Action::Commit | Action::RollBack => (),
                Action::DrainHung(..) | Action::KillHung(..) => panic!("nobody hangs here: {action:?}"),
            }
        }
    }

    /// Whether every pool has its workers, of the one generation that is wished for, and nobody else
    /// is there.
    fn is_whole(&self) -> bool {
        self.earlier.is_none()
            && self.houses.iter().all(|house| {
                let target = house.roster.target();
                let fits = |p: &&Process| p.serves() && p.generation == self.present;
                house.processes.len() == target
                    && house.processes.values().filter(fits).count() == target
            })
    }

    fn play(seed: u64) -> (u32, u32) {
        let mut world = Self::new(seed);
        for _ in 0..200 {
            world.turn();
            if world.houses.iter().any(|house| house.roster.has_failed()) {
                return (world.commits, world.failures); // a bad start: no story
            }
        }
        world.calm = true;
        let limit = world.now.saturating_add(300 * SECOND);
        while !world.is_whole() {
            assert!(world.now < limit, "the pools never become whole");
            world.turn();
        }
        world.houses.iter_mut().for_each(|house| house.roster.stop(ShutdownMode::Graceful));
        while world.houses.iter().any(|house| house.roster.outcome().is_none()) {
            assert!(world.now < limit.saturating_add(60 * SECOND), "the pools never end");
            world.turn();
        }
        (world.commits, world.failures)
    }
}

fn signatories(houses: &mut [House]) -> Vec<ReloadParticipant<'_>> {
    let houses = houses.iter_mut();
    houses.map(|house| ReloadParticipant { is_removing: house.goes, supervisor: &mut house.roster }).collect()
}

proptest! {
    #[test]
    fn whatever_happens_a_reload_is_one_for_all(seed in any::<u64>()) {
        World::play(seed);
    }
}

#[test]
fn reloads_of_both_ends_are_played() {
    let ends = (0..100).map(World::play);
    let (commits, failures) = ends.fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
    assert!(commits > 100 && failures > 100, "{commits} commits, {failures} failures");
}

/// Two pools that serve, each with so many workers, and a reload of both.
fn two(counts: [usize; 2]) -> (Vec<Supervisor>, MonotonicTime) {
    let now = MonotonicTime::default().saturating_add(1000 * SECOND);
    let supervisors = counts.map(|count| {
        let mut supervisor = Supervisor::new(POLICY, count, 7);
        for action in supervisor.reconcile(now, None) {
            let Action::Spawn { id, slot } = action else { panic!("{action:?}") };
            supervisor.on_spawned(id, slot, now);
            supervisor.on_ready(id, now);
        }
        supervisor.begin_reload(POLICY, count, 2);
        supervisor
    });
    (supervisors.into(), now)
}

fn step(supervisors: &mut [Supervisor], now: MonotonicTime) -> ReconcileOutcome {
    let pools = supervisors.iter_mut().map(|supervisor| ReloadParticipant { supervisor, is_removing: false });
    let turn = reconcile_all(pools.collect(), now);
    for (supervisor, actions) in supervisors.iter_mut().zip(&turn.actions) {
        for action in actions {
            if let Action::Spawn { id, slot } = *action {
                supervisor.on_spawned(id, slot, now);
            }
        }
    }
    turn
}

fn spawned(turn: &ReconcileOutcome, pool: usize) -> Vec<WorkerId> {
    let ids = turn.actions[pool].iter().filter_map(|action| match action {
        Action::Spawn { id, .. } => Some(*id),
        _ => None,
    });
    ids.collect()
}

#[test]
fn nobody_rolls_before_every_canary_is_ready() {
    let (mut supervisors, now) = two([2, 3]);
    let trial = step(&mut supervisors, now);
    let (first, second) = (spawned(&trial, 0), spawned(&trial, 1));
    assert_eq!((first.len(), second.len()), (1, 1));
    supervisors[0].on_ready(first[0], now);
    let waiting = step(&mut supervisors, now);
    assert_eq!((waiting.result, waiting.actions), (None, vec![vec![], vec![]]));
    supervisors[1].on_ready(second[0], now);
    let rolling = step(&mut supervisors, now);
    for actions in &rolling.actions {
        assert!(matches!(actions[0], Action::Drain(_, ExitReason::Reload)), "{actions:?}");
        assert!(matches!(actions[1], Action::Spawn { slot: 1, .. }), "{actions:?}");
    }
}

#[test]
fn nobody_commits_before_all_are_complete() {
    let (mut supervisors, now) = two([1, 2]);
    let trial = step(&mut supervisors, now);
    supervisors[0].on_ready(spawned(&trial, 0)[0], now);
    supervisors[1].on_ready(spawned(&trial, 1)[0], now);
    let rolling = step(&mut supervisors, now);
    assert_eq!((rolling.result, &rolling.actions[0]), (None, &vec![]), "it is complete, and waits");
    supervisors[1].on_ready(spawned(&rolling, 1)[0], now);
    let done = step(&mut supervisors, now);
    assert_eq!(done.result, Some(ReloadResult::Commit));
    for actions in &done.actions {
        assert!(matches!(actions[..], [Action::Commit, Action::Drain(_, ExitReason::Reload)]));
    }
}

#[test]
fn a_pool_that_is_complete_goes_back_with_one_that_fails() {
    let (mut supervisors, now) = two([1, 2]);
    let trial = step(&mut supervisors, now);
    supervisors[0].on_ready(spawned(&trial, 0)[0], now);
    step(&mut supervisors, now);
    supervisors[1].on_exit(spawned(&trial, 1)[0], ExitClass::Crashed, now);
    let back = step(&mut supervisors, now);
    assert_eq!(back.result, Some(ReloadResult::RollBack { failed_pool: 1 }));
    assert_eq!(back.actions[0][0], Action::RollBack);
    assert_eq!(back.actions[1][0], Action::RollBack);
    assert!(supervisors.iter().all(|supervisor| supervisor.generation() == 1 && !supervisor.is_reloading()));
}

#[test]
fn a_pool_that_goes_does_so_with_the_commit_and_not_before() {
    let (mut supervisors, now) = two([1, 1]);
    let mut leaving = Supervisor::new(POLICY, 2, 7);
    for action in leaving.reconcile(now, None) {
        let Action::Spawn { id, slot } = action else { panic!("{action:?}") };
        leaving.on_spawned(id, slot, now);
        leaving.on_ready(id, now);
    }
    let turn = |supervisors: &mut [Supervisor], leaving: &mut Supervisor| {
        let pools = supervisors.iter_mut().map(|supervisor| ReloadParticipant { supervisor, is_removing: false });
        let pools = pools.chain([ReloadParticipant { supervisor: leaving, is_removing: true }]);
        reconcile_all(pools.collect(), now)
    };
    let trial = turn(&mut supervisors, &mut leaving);
    for (index, supervisor) in supervisors.iter_mut().enumerate() {
        let id = spawned(&trial, index)[0];
        supervisor.on_spawned(id, 0, now);
        assert_eq!(leaving.target(), 2);
        supervisor.on_ready(id, now);
    }
    let done = turn(&mut supervisors, &mut leaving);
    assert_eq!(done.result, Some(ReloadResult::Commit));
    let drains = |action: &Action| matches!(action, Action::Drain(_, ExitReason::Reload));
    assert!(done.actions[2].len() == 2 && done.actions[2].iter().all(drains), "{done:?}");
}
