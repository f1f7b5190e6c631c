//! A small kernel with processes of bad manners drives the roster through random schedules, and
//! every answer is held against what the processes really did.
//!
//! A failure prints `seed` and `length`; `Story::play(seed, length)` tells the same story again.

mod checks;
mod mischief;

use std::cell::Cell;
use std::collections::BTreeMap;

use proptest::prelude::{ProptestConfig, Strategy, any};
use proptest::test_runner::TestRunner;

use super::*;

/// How much is played, at the least.
const STEPS_MIN: u64 = 1_000_000;
const CONDEMNED_MIN: u64 = 300;
const STORIES: u32 = 2200;
/// How processes end whom nobody has asked to.
const ENDS: [ExitClass; 3] = [ExitClass::Crashed, ExitClass::KilledExternally, ExitClass::OomKilled];
/// How long a process that was killed is still there.
const DYING: Duration = Duration::from_millis(20);

/// What a process has been asked, the hardest last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Asked {
    Nothing,
    Drain,
    Condemn,
    Quit,
    Abort,
    Kill,
}

#[derive(Clone, Debug)]
struct Process {
    slot: usize,
    generation: u32,
    /// The rules by which it is judged, for good.
    policy: Policy,
    since: MonotonicTime,
    is_ready: bool,
    asked: Asked,
    /// Before, no rule allows to kill it.
    kill_from: MonotonicTime,
    /// Before, no rule allows to abort it if it is condemned and has unharmed work.
    abort_from: MonotonicTime,
    ready_at: Option<MonotonicTime>,
    ends: Option<(MonotonicTime, ExitClass)>,
    silent_since: Option<MonotonicTime>,
    /// What its two threads work on.
    units: [Option<MonotonicTime>; 2],
}

impl Process {
    fn serves(&self) -> bool {
        self.is_ready && self.asked == Asked::Nothing
    }

    fn beat(&self, now: MonotonicTime) -> MonotonicTime {
        self.silent_since.unwrap_or(now)
    }

    fn busy(&self) -> Option<Busy> {
        let units = self.units.iter().flatten();
        let (oldest, newest) = (*units.clone().min()?, *units.max()?);
        Some(Busy { oldest, newest })
    }

    fn end_by(&mut self, at: MonotonicTime, how: ExitClass) {
        if self.ends.is_none_or(|(earlier, _)| at < earlier) {
            self.ends = Some((at, how));
        }
    }

    /// When it does something of its own accord.
    fn next_event(&self) -> Option<MonotonicTime> {
        let events = [self.ready_at.filter(|_| !self.is_ready), self.ends.map(|(at, _)| at)];
        events.into_iter().flatten().min()
    }
}

/// What the world does to the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Wild,
    Calm,
}

/// What held before a reload.
#[derive(Clone, Copy, Debug)]
struct Previous {
    policy: Policy,
    generation: u32,
    /// How many workers are wished for, if it fails.
    target: usize,
}

/// The kernel, the clock, and what is known of the past.
struct World {
    roster: Supervisor,
    now: MonotonicTime,
    chance: u64,
    mood: Mood,
    processes: BTreeMap<WorkerId, Process>,
    policy: Policy,
    /// To what a failed reload returns.
    previous: Option<Previous>,
    /// The largest surge that was allowed since there was none.
    surge: usize,
    /// The most workers that were allowed to be missing since none was.
    unavailable: usize,
    /// The generation whose workers mostly fail.
    bad: Option<u32>,
    amnesty: MonotonicTime,
    ever_ready: bool,
    /// Something has happened that excuses a missing worker, since all were there.
    disturbed: bool,
    /// The reload that is under way began with all workers there, and none has been missing.
    smooth: bool,
    /// A worker of the new generation has been ready.
    proven: bool,
    /// The longest drain and grace that any worker may have been promised.
    longest: (Duration, Duration),
    steps: u64,
    condemned: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            roster: Supervisor::new(POLICY, 1, 1),
            now: MonotonicTime::default().saturating_add(YEAR),
            chance: seed,
            mood: Mood::Wild,
            processes: BTreeMap::new(),
            policy: POLICY,
            previous: None,
            surge: 0,
            unavailable: 0,
            bad: None,
            amnesty: MonotonicTime::default(),
            ever_ready: false,
            disturbed: true,
            smooth: false,
            proven: false,
            longest: (Duration::ZERO, Duration::ZERO),
            steps: 0,
            condemned: 0,
        };
        world.policy = world.any_policy();
        let target = world.below(6) as usize;
        world.roster = Supervisor::new(world.policy, target, seed);
        world.bad = (world.below(8) == 0).then_some(1);
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

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    fn any_policy(&mut self) -> Policy {
        let zero = Duration::ZERO;
        let policy = Policy {
            timeout: self.pick(&[zero, 3 * SECOND, 30 * SECOND]),
            boot_timeout: self.pick(&[zero, 2 * SECOND, 20 * SECOND]),
            graceful_timeout: self.pick(&[MILLI, SECOND, 10 * SECOND]),
            abort_timeout: self.pick(&[MILLI, SECOND]),
            max_lifetime: self.pick(&[zero, zero, 20 * SECOND, MINUTE]),
            max_lifetime_jitter: self.pick(&[zero, 10 * SECOND]),
            max_surge: self.pick(&[0, 1, 1, 2, 3]),
            max_unavailable: self.pick(&[0, 0, 1, 2, 6]),
            boot_retries: self.pick(&[0, 1, 5]),
        };
        let is_stuck = policy.max_surge == 0 && policy.max_unavailable == 0;
        let policy = Policy { max_surge: policy.max_surge.max(usize::from(is_stuck)), ..policy };
        let (graceful, grace) = self.longest;
        self.longest = (graceful.max(policy.graceful_timeout), grace.max(policy.abort_timeout));
        policy
    }

    /// One turn of the master, at the next moment at which something happens.
    fn turn(&mut self) {
        let (before, deadline) = (self.now, self.roster.next_deadline(self.now));
        let event = self.processes.values().filter_map(Process::next_event).min();
        let idle = self.now.saturating_add(10 * SECOND);
        let mut next = [deadline, event, Some(idle)].into_iter().flatten().min().unwrap_or(idle);
        if self.mood == Mood::Wild && self.below(3) == 0 {
            next = next.min(self.now.saturating_add(self.within(SECOND)));
        }
        self.now = self.now.max(next);
        if self.mood == Mood::Wild {
            if self.roster.stopping().is_none() && self.below(64) == 0 {
                self.oversleep(before, deadline);
            }
            self.mischief();
        } else {
            self.end_endless_boots();
        }
        self.deliver();
        self.decide();
    }

    /// Without a limit, only the process itself can end its boot.
    fn end_endless_boots(&mut self) {
        let at = self.now.saturating_add(SECOND);
        let is_endless = |p: &&mut Process| !p.is_ready && p.policy.boot_timeout.is_zero();
        for process in self.processes.values_mut().filter(is_endless) {
            process.ready_at.get_or_insert(at);
        }
    }

    fn disturb(&mut self) {
        self.disturbed = true;
        self.smooth = false;
    }

    /// The master learns what has happened by now.
    fn deliver(&mut self) {
        let now = self.now;
        for (id, process) in &mut self.processes {
            if !process.is_ready && process.ready_at.is_some_and(|at| at <= now) {
                process.is_ready = true;
                let age = self.roster.on_ready(*id, now);
                let expected = now.duration_since(process.since);
                assert_eq!(age, (process.asked == Asked::Nothing).then_some(expected));
                assert_eq!(self.roster.on_ready(*id, now), None);
                self.ever_ready |= age.is_some();
                self.proven |= age.is_some() && process.generation == self.roster.generation();
            }
        }
        let has_ended = |p: &Process| p.ends.filter(|(at, _)| *at <= now).map(|(_, how)| how);
        let ended: Vec<_> =
            self.processes.iter().filter_map(|(id, p)| Some((*id, has_ended(p)?))).collect();
        for (id, how) in ended {
            let process = self.processes.remove(&id).expect("it is one of these");
            let farewell = self.roster.on_exit(id, how, now).expect("it was forked");
            assert_eq!(self.roster.on_exit(id, how, now), None);
            self.check_farewell(&process, &farewell);
            if process.asked == Asked::Nothing {
                self.disturb();
            }
        }
    }

    fn decide(&mut self) {
        for id in self.roster.liveness_check_due(self.now) {
            let process = &self.processes[&id];
            self.roster.on_liveness(id, process.beat(self.now), process.busy());
        }
        self.pardon();
        let before = self.roster.target();
        let actions = self.roster.due(self.now);
        self.disturbed |= before < self.roster.target(); // a reload that would have shrunk failed
        let mut failed_forks = 0;
        for action in &actions {
            self.check_before(*action);
            match *action {
                Action::Spawn { id, slot } => failed_forks += usize::from(!self.fork(id, slot)),
                Action::Drain(id, _) => self.ask(id, Asked::Drain),
                Action::QuickStop(id) => self.ask(id, Asked::Quit),
                Action::DrainHung(id, _) => {
                    self.ask(id, Asked::Condemn);
                    self.disturb();
                    self.condemned += 1;
                }
                Action::Abort(id, _) => {
                    self.ask(id, Asked::Abort);
                    self.disturb();
                }
                Action::KillOverdue(id, _) | Action::KillHung(id, _) => self.ask(id, Asked::Kill),
                Action::Commit => self.previous = None,
                Action::RollBack => {
                    self.policy = self.previous.take().expect("a reload is under way").policy;
                }
            }
        }
        self.check_after(&actions, failed_forks);
        self.steps += 1;
    }

    /// Who is condemned and does not hang any more leaves like any other.
    fn pardon(&mut self) {
        let is_pardoned = |p: &Process| p.asked == Asked::Condemn && !self.hangs(p);
        let pardoned = self.processes.iter().filter(|(_, process)| is_pardoned(process));
        for id in pardoned.map(|(id, _)| *id).collect::<Vec<_>>() {
            let process = self.processes.get_mut(&id).expect("it is one of these");
            (process.asked, process.kill_from) = (Asked::Drain, process.abort_from);
        }
    }

    /// Whether the kernel had room.
    fn fork(&mut self, id: WorkerId, slot: usize) -> bool {
        if self.mood == Mood::Wild && self.below(20) == 0 {
            let delay = self.roster.on_spawn_failed(slot, self.now);
            assert!(Duration::ZERO < delay && delay <= BACKOFF_MAX);
            return false;
        }
        self.roster.on_spawned(id, slot, self.now);
        let mut process = Process {
            slot,
            generation: self.roster.generation(),
            policy: self.policy,
            since: self.now,
            is_ready: false,
            asked: Asked::Nothing,
            kill_from: MonotonicTime::from_nanos(u64::MAX),
            abort_from: self.now,
            ready_at: Some(self.now.saturating_add(self.within(SECOND))),
            ends: None,
            silent_since: None,
            units: [None; 2],
        };
        if self.mood == Mood::Wild {
            let is_bad = self.bad == Some(process.generation);
            let at = self.now.saturating_add(self.within(3 * SECOND));
            match self.below(if is_bad { 5 } else { 30 }) {
                0 | 1 => process.ends = Some((at, self.pick(&ENDS))),
                2 => process.ready_at = None,
                3 => process.ready_at = Some(self.now),
                _ => (),
            }
        }
        self.processes.insert(id, process);
        true
    }

    /// A process is sent a signal, and obeys or does not.
    fn ask(&mut self, id: WorkerId, asked: Asked) {
        let manners = self.below(4);
        let Policy { graceful_timeout: graceful, abort_timeout: grace, .. } = self.processes[&id].policy;
        let (limit, how) = match asked {
            Asked::Drain | Asked::Condemn => (graceful, ExitClass::Requested),
            Asked::Quit => (grace, ExitClass::Requested),
            Asked::Abort => (grace, ExitClass::Crashed),
            Asked::Kill | Asked::Nothing => (DYING, ExitClass::KilledExternally),
        };
        let ends = self.now.saturating_add(self.within(limit));
        let process = self.processes.get_mut(&id).expect("checked before");
        if process.asked == Asked::Condemn && asked == Asked::Quit {
            process.kill_from = process.abort_from; // a stop never gives more time
        }
        process.asked = asked;
        if asked == Asked::Condemn {
            process.abort_from = self.now.saturating_add(limit);
            return; // the thread that hangs does not let it end
        }
        if manners > 0 || asked == Asked::Kill {
            process.end_by(ends, how);
        }
        let kill_from = self.now.saturating_add(limit);
        process.kill_from = process.kill_from.min(kill_from);
    }

    /// Time passes in peace: within minutes every slot has its worker, and nothing else is there.
    fn calm_down(&mut self) {
        self.mood = Mood::Calm;
        self.roster.resume();
        let limit = self.now.saturating_add(5 * MINUTE);
        while !self.is_whole() {
            assert!(self.now < limit, "no convergence: {:?} {:?}", self.roster, self.processes);
            self.turn();
            if self.roster.outcome().is_some() {
                return;
            }
        }
    }

    /// The master is told to stop, perhaps more than once, and does so in time.
    fn stop(&mut self) {
        let mut stop = self.pick(&[ShutdownMode::Graceful, ShutdownMode::Graceful, ShutdownMode::Quick, ShutdownMode::Kill]);
        self.roster.stop(stop);
        self.previous = None;
        self.decide();
        let (graceful, grace) = self.longest;
        let mut limit = self.now.saturating_add(graceful + grace + 2 * DYING);
        while self.roster.outcome().is_none() {
            assert!(self.now <= limit, "no end: {:?} {:?}", self.roster, self.processes);
            self.turn();
            if self.below(8) == 0 && stop < ShutdownMode::Kill {
                stop = if stop == ShutdownMode::Graceful { ShutdownMode::Quick } else { ShutdownMode::Kill };
                self.roster.stop(stop);
                self.decide();
                let wait = if stop == ShutdownMode::Kill { DYING } else { grace + 2 * DYING };
                limit = limit.min(self.now.saturating_add(wait));
            }
        }
        let hopeless = self.roster.phase == Phase::Failed;
        let outcome = if hopeless { RunOutcome::NeverReady } else { RunOutcome::Stopped };
        assert_eq!(self.roster.outcome(), Some(outcome));
        assert!(self.processes.is_empty());
    }
}

/// One course of the world, from the start of the master to its end.
struct Story;

impl Story {
    /// Returns how many steps the roster has made, and how many workers it has condemned.
    fn play(seed: u64, length: u64) -> (u64, u64) {
        let mut world = World::new(seed);
        while world.steps < length && world.roster.outcome().is_none() {
            world.turn();
        }
        if world.below(4) > 0 && world.roster.outcome().is_none() {
            world.calm_down();
        }
        match world.roster.outcome() {
            Some(outcome) => {
                assert_eq!(outcome, RunOutcome::NeverReady);
                assert!(!world.ever_ready);
            }
            None => world.stop(),
        }
        (world.steps, world.condemned)
    }
}

#[test]
fn whatever_happens_every_worker_is_treated_by_the_rules_and_the_pool_becomes_whole() {
    let config =
        ProptestConfig { cases: STORIES, failure_persistence: None, ..ProptestConfig::default() };
    let (steps, condemned) = (Cell::new(0), Cell::new(0));
    let story = (any::<u64>().no_shrink(), 1..1000_u64);
    TestRunner::new(config)
        .run(&story, |(seed, length)| {
            let (more_steps, more_condemned) = Story::play(seed, length);
            steps.set(steps.get() + more_steps);
            condemned.set(condemned.get() + more_condemned);
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("(seed, length): {failure}"));
    println!("the roster made {} steps, and condemned {}", steps.get(), condemned.get());
    assert!(STEPS_MIN <= steps.get(), "{} steps only", steps.get());
    assert!(CONDEMNED_MIN <= condemned.get(), "{} condemned only", condemned.get());
}
