//! A small kernel with processes of bad manners drives the roster through random schedules, and
//! every answer is held against what the processes really did.
//!
//! A failure prints `seed` and `length`; `Story::play(seed, length)` tells the same story again.

mod checks;
mod faults;

use std::cell::Cell;
use std::collections::BTreeMap;

use proptest::prelude::{ProptestConfig, Strategy, any};
use proptest::test_runner::TestRunner;

use super::*;

/// How much is played, at the least.
const STEPS_MIN: u64 = 1_000_000;
const HUNG_DRAINS_MIN: u64 = 300;
const SCENARIOS: u32 = 2200;
/// How processes end whom nobody has asked to.
const EXIT_CLASSES: [ExitClass; 3] =
    [ExitClass::Crashed, ExitClass::KilledExternally, ExitClass::OomKilled];
/// How long a process that was killed is still there.
const DYING: Duration = Duration::from_millis(20);

/// What a process has been asked, the hardest last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Request {
    Nothing,
    Drain,
    DrainHung,
    QuickStop,
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
    request: Request,
    /// Before, no rule allows to kill it.
    kill_from: MonotonicTime,
    /// Before, no rule allows to abort it if it is condemned and has unharmed work.
    abort_from: MonotonicTime,
    ready_at: Option<MonotonicTime>,
    exits_at: Option<(MonotonicTime, ExitClass)>,
    silent_since: Option<MonotonicTime>,
    /// What its two threads work on.
    units: [Option<MonotonicTime>; 2],
}

impl Process {
    fn serves(&self) -> bool {
        self.is_ready && self.request == Request::Nothing
    }

    fn beat(&self, now: MonotonicTime) -> MonotonicTime {
        self.silent_since.unwrap_or(now)
    }

    fn busy(&self) -> Option<Busy> {
        let units = self.units.iter().flatten();
        let (oldest, newest) = (*units.clone().min()?, *units.max()?);
        Some(Busy { oldest, newest })
    }

    fn exit_no_later_than(&mut self, at: MonotonicTime, exit_class: ExitClass) {
        if self.exits_at.is_none_or(|(earlier, _)| at < earlier) {
            self.exits_at = Some((at, exit_class));
        }
    }

    /// When it does something of its own accord.
    fn next_event(&self) -> Option<MonotonicTime> {
        let events = [self.ready_at.filter(|_| !self.is_ready), self.exits_at.map(|(at, _)| at)];
        events.into_iter().flatten().min()
    }
}

/// What the world does to the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FaultMode {
    Injecting,
    Quiet,
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
struct Simulation {
    supervisor: Supervisor,
    now: MonotonicTime,
    rng_state: u64,
    fault_mode: FaultMode,
    processes: BTreeMap<WorkerId, Process>,
    policy: Policy,
    /// To what a failed reload returns.
    previous: Option<Previous>,
    /// The largest surge that was allowed since there was none.
    surge: usize,
    /// The most workers that were allowed to be missing since none was.
    unavailable: usize,
    /// The generation whose workers mostly fail.
    failing_generation: Option<u32>,
    timeout_floor: MonotonicTime,
    ever_ready: bool,
    /// Something has happened that excuses a missing worker, since all were there.
    has_disturbance: bool,
    /// The reload that is under way began with all workers there, and none has been missing.
    is_undisturbed_reload: bool,
    /// A worker of the new generation has been ready.
    canary_ready: bool,
    /// The longest drain and grace that any worker may have been promised.
    longest: (Duration, Duration),
    steps: u64,
    hung_drains: u64,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut simulation = Self {
            supervisor: Supervisor::new(POLICY, 1, 1),
            now: MonotonicTime::default().saturating_add(YEAR),
            rng_state: seed,
            fault_mode: FaultMode::Injecting,
            processes: BTreeMap::new(),
            policy: POLICY,
            previous: None,
            surge: 0,
            unavailable: 0,
            failing_generation: None,
            timeout_floor: MonotonicTime::default(),
            ever_ready: false,
            has_disturbance: true,
            is_undisturbed_reload: false,
            canary_ready: false,
            longest: (Duration::ZERO, Duration::ZERO),
            steps: 0,
            hung_drains: 0,
        };
        simulation.policy = simulation.any_policy();
        let target = simulation.below(6) as usize;
        simulation.supervisor = Supervisor::new(simulation.policy, target, seed);
        simulation.failing_generation = (simulation.below(8) == 0).then_some(1);
        simulation
    }

    /// A number below `n` (splitmix64).
    fn below(&mut self, n: u64) -> u64 {
        self.rng_state = self.rng_state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.rng_state ^ (self.rng_state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
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
    fn step(&mut self) {
        let (before, deadline) = (self.now, self.supervisor.next_deadline(self.now));
        let event = self.processes.values().filter_map(Process::next_event).min();
        let idle = self.now.saturating_add(10 * SECOND);
        let mut next = [deadline, event, Some(idle)].into_iter().flatten().min().unwrap_or(idle);
        if self.fault_mode == FaultMode::Injecting && self.below(3) == 0 {
            next = next.min(self.now.saturating_add(self.within(SECOND)));
        }
        self.now = self.now.max(next);
        if self.fault_mode == FaultMode::Injecting {
            if self.supervisor.stopping().is_none() && self.below(64) == 0 {
                self.stall(before, deadline);
            }
            self.inject_faults();
        } else {
            self.finish_endless_boots();
        }
        self.deliver();
        self.decide();
    }

    /// Without a limit, only the process itself can end its boot.
    fn finish_endless_boots(&mut self) {
        let at = self.now.saturating_add(SECOND);
        let is_endless = |p: &&mut Process| !p.is_ready && p.policy.boot_timeout.is_zero();
        for process in self.processes.values_mut().filter(is_endless) {
            process.ready_at.get_or_insert(at);
        }
    }

    fn note_disturbance(&mut self) {
        self.has_disturbance = true;
        self.is_undisturbed_reload = false;
    }

    /// The master learns what has happened by now.
    fn deliver(&mut self) {
        let now = self.now;
        for (id, process) in &mut self.processes {
            if !process.is_ready && process.ready_at.is_some_and(|at| at <= now) {
                process.is_ready = true;
                let age = self.supervisor.on_ready(*id, now);
                let expected = now.duration_since(process.since);
                assert_eq!(age, (process.request == Request::Nothing).then_some(expected));
                assert_eq!(self.supervisor.on_ready(*id, now), None);
                self.ever_ready |= age.is_some();
                self.canary_ready |=
                    age.is_some() && process.generation == self.supervisor.generation();
            }
        }
        let has_ended =
            |p: &Process| p.exits_at.filter(|(at, _)| *at <= now).map(|(_, exit_class)| exit_class);
        let ended: Vec<_> =
            self.processes.iter().filter_map(|(id, p)| Some((*id, has_ended(p)?))).collect();
        for (id, exit_class) in ended {
            let process = self.processes.remove(&id).expect("it is one of these");
            let report = self.supervisor.on_exit(id, exit_class, now).expect("it was forked");
            assert_eq!(self.supervisor.on_exit(id, exit_class, now), None);
            self.check_exit_report(&process, &report);
            if process.request == Request::Nothing {
                self.note_disturbance();
            }
        }
    }

    fn decide(&mut self) {
        for id in self.supervisor.liveness_check_due(self.now) {
            let process = &self.processes[&id];
            self.supervisor.on_liveness(id, process.beat(self.now), process.busy());
        }
        self.clear_recovered();
        let before = self.supervisor.target();
        let actions = self.supervisor.actions_due(self.now);
        self.has_disturbance |= before < self.supervisor.target(); // a reload that would have shrunk failed
        let mut failed_forks = 0;
        for action in &actions {
            self.check_before(*action);
            match *action {
                Action::Spawn { id, slot } => failed_forks += usize::from(!self.fork(id, slot)),
                Action::Drain(id, _) => self.send(id, Request::Drain),
                Action::QuickStop(id) => self.send(id, Request::QuickStop),
                Action::DrainHung(id, _) => {
                    self.send(id, Request::DrainHung);
                    self.note_disturbance();
                    self.hung_drains += 1;
                }
                Action::Abort(id, _) => {
                    self.send(id, Request::Abort);
                    self.note_disturbance();
                }
                Action::KillOverdue(id, _) | Action::KillHung(id, _) => {
                    self.send(id, Request::Kill)
                }
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
    fn clear_recovered(&mut self) {
        let has_recovered = |p: &Process| p.request == Request::DrainHung && !self.hangs(p);
        let recovered = self.processes.iter().filter(|(_, process)| has_recovered(process));
        for id in recovered.map(|(id, _)| *id).collect::<Vec<_>>() {
            let process = self.processes.get_mut(&id).expect("it is one of these");
            (process.request, process.kill_from) = (Request::Drain, process.abort_from);
        }
    }

    /// Whether the kernel had room.
    fn fork(&mut self, id: WorkerId, slot: usize) -> bool {
        if self.fault_mode == FaultMode::Injecting && self.below(20) == 0 {
            let delay = self.supervisor.on_spawn_failed(slot, self.now);
            assert!(Duration::ZERO < delay && delay <= BACKOFF_MAX);
            return false;
        }
        self.supervisor.on_spawned(id, slot, self.now);
        let mut process = Process {
            slot,
            generation: self.supervisor.generation(),
            policy: self.policy,
            since: self.now,
            is_ready: false,
            request: Request::Nothing,
            kill_from: MonotonicTime::from_nanos(u64::MAX),
            abort_from: self.now,
            ready_at: Some(self.now.saturating_add(self.within(SECOND))),
            exits_at: None,
            silent_since: None,
            units: [None; 2],
        };
        if self.fault_mode == FaultMode::Injecting {
            let is_bad = self.failing_generation == Some(process.generation);
            let at = self.now.saturating_add(self.within(3 * SECOND));
            match self.below(if is_bad { 5 } else { 30 }) {
                0 | 1 => process.exits_at = Some((at, self.pick(&EXIT_CLASSES))),
                2 => process.ready_at = None,
                3 => process.ready_at = Some(self.now),
                _ => (),
            }
        }
        self.processes.insert(id, process);
        true
    }

    /// A process is sent a signal, and obeys or does not.
    fn send(&mut self, id: WorkerId, request: Request) {
        let obedience = self.below(4);
        let Policy { graceful_timeout: graceful, abort_timeout: grace, .. } =
            self.processes[&id].policy;
        let (limit, exit_class) = match request {
            Request::Drain | Request::DrainHung => (graceful, ExitClass::Requested),
            Request::QuickStop => (grace, ExitClass::Requested),
            Request::Abort => (grace, ExitClass::Crashed),
            Request::Kill | Request::Nothing => (DYING, ExitClass::KilledExternally),
        };
        let ends = self.now.saturating_add(self.within(limit));
        let process = self.processes.get_mut(&id).expect("checked before");
        if process.request == Request::DrainHung && request == Request::QuickStop {
            process.kill_from = process.abort_from; // a stop never gives more time
        }
        process.request = request;
        if request == Request::DrainHung {
            process.abort_from = self.now.saturating_add(limit);
            return; // the thread that hangs does not let it end
        }
        if obedience > 0 || request == Request::Kill {
            process.exit_no_later_than(ends, exit_class);
        }
        let kill_from = self.now.saturating_add(limit);
        process.kill_from = process.kill_from.min(kill_from);
    }

    /// Time passes in peace: within minutes every slot has its worker, and nothing else is there.
    fn run_quietly(&mut self) {
        self.fault_mode = FaultMode::Quiet;
        self.supervisor.resume();
        let limit = self.now.saturating_add(5 * MINUTE);
        while !self.has_converged() {
            assert!(self.now < limit, "no convergence: {:?} {:?}", self.supervisor, self.processes);
            self.step();
            if self.supervisor.outcome().is_some() {
                return;
            }
        }
    }

    /// The master is told to stop, perhaps more than once, and does so in time.
    fn stop(&mut self) {
        let mut stop = self.pick(&[
            ShutdownMode::Graceful,
            ShutdownMode::Graceful,
            ShutdownMode::Quick,
            ShutdownMode::Kill,
        ]);
        self.supervisor.stop(stop);
        self.previous = None;
        self.decide();
        let (graceful, grace) = self.longest;
        let mut limit = self.now.saturating_add(graceful + grace + 2 * DYING);
        while self.supervisor.outcome().is_none() {
            assert!(self.now <= limit, "no end: {:?} {:?}", self.supervisor, self.processes);
            self.step();
            if self.below(8) == 0 && stop < ShutdownMode::Kill {
                stop = if stop == ShutdownMode::Graceful {
                    ShutdownMode::Quick
                } else {
                    ShutdownMode::Kill
                };
                self.supervisor.stop(stop);
                self.decide();
                let wait = if stop == ShutdownMode::Kill { DYING } else { grace + 2 * DYING };
                limit = limit.min(self.now.saturating_add(wait));
            }
        }
        let has_failed = self.supervisor.phase == Phase::Failed;
        let outcome = if has_failed { RunOutcome::NeverReady } else { RunOutcome::Stopped };
        assert_eq!(self.supervisor.outcome(), Some(outcome));
        assert!(self.processes.is_empty());
    }
}

/// One course of the world, from the start of the master to its end.
struct Scenario;

impl Scenario {
    /// Returns how many steps the roster has made, and how many workers it has condemned.
    fn run(seed: u64, length: u64) -> (u64, u64) {
        let mut simulation = Simulation::new(seed);
        while simulation.steps < length && simulation.supervisor.outcome().is_none() {
            simulation.step();
        }
        if simulation.below(4) > 0 && simulation.supervisor.outcome().is_none() {
            simulation.run_quietly();
        }
        match simulation.supervisor.outcome() {
            Some(outcome) => {
                assert_eq!(outcome, RunOutcome::NeverReady);
                assert!(!simulation.ever_ready);
            }
            None => simulation.stop(),
        }
        (simulation.steps, simulation.hung_drains)
    }
}

#[test]
fn random_schedules_obey_the_rules_and_converge() {
    let config =
        ProptestConfig { cases: SCENARIOS, failure_persistence: None, ..ProptestConfig::default() };
    let (steps, hung_drains) = (Cell::new(0), Cell::new(0));
    let scenario = (any::<u64>().no_shrink(), 1..1000_u64);
    TestRunner::new(config)
        .run(&scenario, |(seed, length)| {
            let (more_steps, more_hung_drains) = Scenario::run(seed, length);
            steps.set(steps.get() + more_steps);
            hung_drains.set(hung_drains.get() + more_hung_drains);
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("(seed, length): {failure}"));
    println!("the roster made {} steps, and condemned {}", steps.get(), hung_drains.get());
    assert!(STEPS_MIN <= steps.get(), "{} steps only", steps.get());
    assert!(HUNG_DRAINS_MIN <= hung_drains.get(), "{} condemned only", hung_drains.get());
}
