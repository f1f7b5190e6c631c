//! A simulated kernel with faulty processes drives the supervisor through random schedules. Every
//! action is checked against what the processes really did.
//!
//! A failure prints `seed` and `length`; `Scenario::run(seed, length)` repeats it.

mod checks;
mod faults;

use std::cell::Cell;
use std::collections::BTreeMap;

use proptest::prelude::{ProptestConfig, Strategy, any};
use proptest::test_runner::TestRunner;

use super::random::Random;
use super::*;

/// How many scenarios there are for each case of `PROPTEST_CASES`.
const SCENARIOS_PER_CASE: u32 = 9;

/// The fewest steps of 1,000 scenarios together.
const STEPS_MIN: u64 = 450_000;

/// The fewest workers in 1,000 scenarios that drain because one thread hangs.
const HUNG_DRAINS_MIN: u64 = 100;

/// The fewest workers in 1,000 scenarios that are recycled for their memory.
const OVER_LIMIT_MIN: u64 = 100;

/// The fewest drain modes that begin in 1,000 scenarios.
const DRAIN_MODES_MIN: u64 = 500;

/// The `max_memory` of the policies that limit memory.
const MAX_MEMORY: u64 = 1 << 20;

/// How a process exits on its own.
const EXIT_CLASSES: [ExitClass; 3] =
    [ExitClass::Crashed, ExitClass::KilledExternally, ExitClass::OomKilled];
/// The longest time from SIGKILL to the exit.
const DYING: Duration = Duration::from_millis(20);

/// What the master has requested of a process, from the gentlest to the hardest.
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
    /// The policy of the process's generation.
    policy: Policy,
    since: MonotonicTime,
    /// Timeouts start here at the earliest: the end of the last stall that was discounted.
    timeout_floor: MonotonicTime,
    is_ready: bool,
    /// It is in drain mode, which has a meaning while nothing else is requested of it.
    is_in_drain_mode: bool,
    request: Request,
    /// No rule allows SIGKILL before this time.
    kill_from: MonotonicTime,
    /// No rule allows SIGABRT before this time while it drains as hung and has work in time.
    abort_from: MonotonicTime,
    ready_at: Option<MonotonicTime>,
    exits_at: Option<(MonotonicTime, ExitClass)>,
    silent_since: Option<MonotonicTime>,
    /// When the units of work of its two threads began.
    units: [Option<MonotonicTime>; 2],
    /// Whether its memory is above [`MAX_MEMORY`].
    is_large: bool,
    /// How many memory samples in a row exceeded `max_memory`.
    large_samples: u32,
}

impl Process {
    /// Returns whether it is ready, and perhaps in drain mode.
    fn is_active(&self) -> bool {
        self.is_ready && self.request == Request::Nothing
    }

    fn serves(&self) -> bool {
        self.is_active() && !self.is_in_drain_mode
    }

    fn is_held(&self) -> bool {
        self.is_active() && self.is_in_drain_mode
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

    /// Returns when the process next changes on its own.
    fn next_event(&self) -> Option<MonotonicTime> {
        let events = [self.ready_at.filter(|_| !self.is_ready), self.exits_at.map(|(at, _)| at)];
        events.into_iter().flatten().min()
    }
}

/// Whether faults are injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FaultMode {
    Injecting,
    Quiet,
}

/// What held before the reload in progress.
#[derive(Clone, Copy, Debug)]
struct Previous {
    policy: Policy,
    generation: u32,
    /// The target that a roll-back restores.
    target: usize,
    range: WorkersRange,
}

/// The fewest and the most workers that the settings permit.
type WorkersRange = (usize, usize);

/// The kernel, the clock, and what the checks know of the past. Over a dozen fields: a scenario's
/// whole state, which the checks read.
struct Simulation {
    supervisor: Supervisor,
    now: MonotonicTime,
    random: Random,
    fault_mode: FaultMode,
    processes: BTreeMap<WorkerId, Process>,
    policy: Policy,
    range: WorkersRange,
    /// What a roll-back restores.
    previous: Option<Previous>,
    /// The largest surge allowed since there was none.
    surge: usize,
    /// The most workers allowed to be missing since none was.
    unavailable: usize,
    /// Slots whose worker in drain mode was asked to exit, and that have had no ready worker since.
    given_up: BTreeSet<usize>,
    /// The generation whose workers mostly fail.
    failing_generation: Option<u32>,
    ever_ready: bool,
    /// A fault that explains a missing worker has happened since all were ready.
    has_disturbance: bool,
    /// The reload in progress began with all workers ready, and no fault has happened since.
    is_undisturbed_reload: bool,
    /// A worker of the new generation has been ready.
    canary_ready: bool,
    /// The longest `graceful_timeout` and `abort_timeout` of any policy so far.
    longest: (Duration, Duration),
    steps: u64,
    hung_drains: u64,
    over_limit: u64,
    drain_modes: u64,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut simulation = Self {
            supervisor: Supervisor::new(POLICY, 1, 1),
            now: MonotonicTime::default().saturating_add(YEAR),
            random: Random::new(seed),
            fault_mode: FaultMode::Injecting,
            processes: BTreeMap::new(),
            policy: POLICY,
            range: (1, WORKERS_MAX),
            previous: None,
            surge: 0,
            unavailable: 0,
            given_up: BTreeSet::new(),
            failing_generation: None,
            ever_ready: false,
            has_disturbance: true,
            is_undisturbed_reload: false,
            canary_ready: false,
            longest: (Duration::ZERO, Duration::ZERO),
            steps: 0,
            hung_drains: 0,
            over_limit: 0,
            drain_modes: 0,
        };
        simulation.policy = simulation.any_policy();
        let target = simulation.random.below(6) as usize;
        simulation.supervisor = Supervisor::new(simulation.policy, target, seed);
        simulation.failing_generation = (simulation.random.below(8) == 0).then_some(1);
        simulation
    }

    fn any_policy(&mut self) -> Policy {
        let zero = Duration::ZERO;
        let policy = Policy {
            timeout: self.random.pick(&[zero, 3 * SECOND, 30 * SECOND]),
            boot_timeout: self.random.pick(&[zero, 2 * SECOND, 20 * SECOND]),
            graceful_timeout: self.random.pick(&[MILLI, SECOND, 10 * SECOND]),
            abort_timeout: self.random.pick(&[MILLI, SECOND]),
            max_lifetime: self.random.pick(&[zero, zero, 20 * SECOND, MINUTE]),
            max_lifetime_jitter: self.random.pick(&[zero, 10 * SECOND]),
            max_requests: self.random.pick(&[0, 0, 100]),
            max_requests_jitter: self.random.pick(&[0, 50]),
            max_memory: self.random.pick(&[0, 0, MAX_MEMORY]),
            max_surge: self.random.pick(&[0, 1, 1, 2, 3]),
            max_unavailable: self.random.pick(&[0, 0, 1, 2, 6]),
            boot_retries: self.random.pick(&[0, 1, 5]),
            restart_limit: self.random.pick(&[0, 1, 5, 100]),
            restart_interval: self.random.pick(&[SECOND, MINUTE]),
        };
        let is_stuck = policy.max_surge == 0 && policy.max_unavailable == 0;
        let policy = Policy { max_surge: policy.max_surge.max(usize::from(is_stuck)), ..policy };
        let (graceful_timeout, abort_timeout) = self.longest;
        self.longest = (
            graceful_timeout.max(policy.graceful_timeout),
            abort_timeout.max(policy.abort_timeout),
        );
        policy
    }

    /// Plays one turn of the master, at the time of the next event.
    fn step(&mut self) {
        let (before, deadline) = (self.now, self.supervisor.next_deadline(self.now));
        let event = self.processes.values().filter_map(Process::next_event).min();
        let idle = self.now.saturating_add(10 * SECOND);
        let mut next = [deadline, event, Some(idle)].into_iter().flatten().min().unwrap_or(idle);
        if self.fault_mode == FaultMode::Injecting && self.random.below(3) == 0 {
            next = next.min(self.now.saturating_add(self.random.within(SECOND)));
        }
        self.now = self.now.max(next);
        if self.fault_mode == FaultMode::Injecting {
            if self.supervisor.stopping().is_none() && self.random.below(64) == 0 {
                self.stall(before, deadline);
            }
            self.inject_faults();
        } else {
            self.finish_endless_boots();
        }
        self.deliver();
        self.decide();
    }

    /// Makes processes ready that would boot forever without a `boot_timeout`.
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

    /// Reports to the supervisor what has happened by now.
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
            let process = self.processes.remove(&id).expect("a process of the pool");
            let has_worked = process.is_ready && self.random.below(2) == 0;
            let observation = ExitObservation { has_worked, ..observation(exit_class) };
            let report = self.supervisor.on_exit(id, observation, now).expect("it was forked");
            assert_eq!(self.supervisor.on_exit(id, observation, now), None);
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
        self.sample_memory();
        self.clear_recovered();
        let mut actions = self.supervisor.enforce_limits(self.now);
        self.apply(&actions);
        let target_before = self.supervisor.target();
        let (more, end) = self.supervisor.reconcile_alone(self.now);
        // A roll-back can restore a larger target.
        self.has_disturbance |= target_before < self.supervisor.target();
        match end {
            Some(ReloadEnd::Commit) => self.check_commit(),
            Some(ReloadEnd::RollBack) => self.check_roll_back(),
            None => (),
        }
        let mut failed_forks = self.apply(&more);
        actions.extend(more);
        if end == Some(ReloadEnd::RollBack) {
            self.scale_into_range();
            let more = self.supervisor.reconcile_alone(self.now).0;
            failed_forks += self.apply(&more);
            actions.extend(more);
        }
        self.check_after(&actions, failed_forks);
        self.steps += 1;
    }

    /// Checks and applies actions. Returns how many forks failed.
    fn apply(&mut self, actions: &[Action]) -> usize {
        let mut failed_forks = 0;
        for action in actions {
            self.check_before(*action);
            match *action {
                Action::Spawn { id, slot, .. } => {
                    failed_forks += usize::from(!self.fork(id, slot));
                }
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
                Action::Kill(id, _) | Action::KillHung(id, _) => self.send(id, Request::Kill),
            }
        }
        failed_forks
    }

    /// Samples the memory of the workers that need it, now and then.
    fn sample_memory(&mut self) {
        if self.fault_mode == FaultMode::Quiet || self.random.below(4) > 0 {
            return;
        }
        let due = self.supervisor.memory_checks();
        for (id, limit) in due {
            let is_unreadable = self.random.below(64) == 0;
            let process = self.processes.get_mut(&id).expect("a process of the pool");
            assert!(process.is_active(), "sampled without need: {process:?}");
            assert!(limit > 0 && limit == process.policy.max_memory);
            let bytes = if process.is_large { limit + 1 } else { limit };
            let sample = (!is_unreadable).then_some(bytes);
            process.large_samples =
                if process.is_large && !is_unreadable { process.large_samples + 1 } else { 0 };
            let expected = (process.large_samples == 3).then_some(bytes);
            assert_eq!(self.supervisor.on_memory_sample(id, sample), expected);
            self.over_limit += u64::from(expected.is_some());
        }
    }

    /// Treats a hung worker whose thread has recovered as an ordinary draining one.
    fn clear_recovered(&mut self) {
        let has_recovered = |p: &Process| p.request == Request::DrainHung && !self.hangs(p);
        let recovered = self.processes.iter().filter(|(_, process)| has_recovered(process));
        for id in recovered.map(|(id, _)| *id).collect::<Vec<_>>() {
            let process = self.processes.get_mut(&id).expect("a process of the pool");
            (process.request, process.kill_from) = (Request::Drain, process.abort_from);
        }
    }

    /// Forks a process. Returns whether the fork succeeded.
    fn fork(&mut self, id: WorkerId, slot: usize) -> bool {
        if self.fault_mode == FaultMode::Injecting && self.random.below(20) == 0 {
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
            timeout_floor: MonotonicTime::default(),
            is_ready: false,
            is_in_drain_mode: false,
            request: Request::Nothing,
            kill_from: MonotonicTime::from_nanos(u64::MAX),
            abort_from: self.now,
            ready_at: Some(self.now.saturating_add(self.random.within(SECOND))),
            exits_at: None,
            silent_since: None,
            units: [None; 2],
            is_large: false,
            large_samples: 0,
        };
        if self.fault_mode == FaultMode::Injecting {
            let is_bad = self.failing_generation == Some(process.generation);
            let at = self.now.saturating_add(self.random.within(3 * SECOND));
            match self.random.below(if is_bad { 5 } else { 30 }) {
                0 | 1 => process.exits_at = Some((at, self.random.pick(&EXIT_CLASSES))),
                2 => process.ready_at = None,
                3 => process.ready_at = Some(self.now),
                _ => (),
            }
        }
        self.processes.insert(id, process);
        true
    }

    /// Sends a process a signal, which it obeys or ignores.
    fn send(&mut self, id: WorkerId, request: Request) {
        let is_ignored = self.random.below(4) == 0;
        let Policy { graceful_timeout, abort_timeout, .. } = self.processes[&id].policy;
        let (limit, exit_class) = match request {
            Request::Drain | Request::DrainHung => (graceful_timeout, ExitClass::Requested),
            Request::QuickStop => (abort_timeout, ExitClass::Requested),
            Request::Abort => (abort_timeout, ExitClass::Crashed),
            Request::Kill | Request::Nothing => (DYING, ExitClass::KilledExternally),
        };
        let exits_at = self.now.saturating_add(self.random.within(limit));
        let process = self.processes.get_mut(&id).expect("checked before");
        if process.is_held() && !self.supervisor.is_suspended {
            self.given_up.insert(process.slot);
        }
        if process.request == Request::DrainHung && request == Request::QuickStop {
            process.kill_from = process.abort_from; // a stop never gives more time
        }
        process.request = request;
        if request == Request::DrainHung {
            process.abort_from = self.now.saturating_add(limit);
            return; // the hung thread keeps the process from exiting
        }
        if !is_ignored || request == Request::Kill {
            process.exit_no_later_than(exits_at, exit_class);
        }
        let kill_from = self.now.saturating_add(limit);
        process.kill_from = process.kill_from.min(kill_from);
    }

    /// Runs without faults: within 5 minutes every slot has its worker, and no other is left. Workers may
    /// stay in drain mode.
    fn run_quietly(&mut self) {
        self.fault_mode = FaultMode::Quiet;
        self.supervisor.resume();
        if self.random.below(2) == 0 {
            self.end_drain_modes();
        }
        let limit = self.now.saturating_add(5 * MINUTE);
        while !self.has_converged() {
            assert!(self.now < limit, "no convergence: {:?} {:?}", self.supervisor, self.processes);
            self.step();
            if self.supervisor.outcome().is_some() {
                return;
            }
        }
    }

    /// Stops the pool, perhaps with escalation, and checks that it takes no longer than allowed.
    fn stop(&mut self) {
        let mut mode = self.random.pick(&[
            ShutdownMode::Graceful,
            ShutdownMode::Graceful,
            ShutdownMode::Quick,
            ShutdownMode::Kill,
        ]);
        self.supervisor.stop(mode);
        self.previous = None;
        self.decide();
        let (graceful_timeout, abort_timeout) = self.longest;
        let mut limit = self.now.saturating_add(graceful_timeout + abort_timeout + 2 * DYING);
        while self.supervisor.outcome().is_none() {
            assert!(self.now <= limit, "no end: {:?} {:?}", self.supervisor, self.processes);
            self.step();
            if self.random.below(8) == 0 && mode < ShutdownMode::Kill {
                mode = if mode == ShutdownMode::Graceful {
                    ShutdownMode::Quick
                } else {
                    ShutdownMode::Kill
                };
                self.supervisor.stop(mode);
                self.decide();
                let wait =
                    if mode == ShutdownMode::Kill { DYING } else { abort_timeout + 2 * DYING };
                limit = limit.min(self.now.saturating_add(wait));
            }
        }
        let has_failed = self.supervisor.phase == Phase::Failed;
        let outcome = if has_failed { RunOutcome::NeverReady } else { RunOutcome::Stopped };
        assert_eq!(self.supervisor.outcome(), Some(outcome));
        assert!(self.processes.is_empty());
    }
}

/// One random run, from the start of the master to its exit.
struct Scenario;

impl Scenario {
    /// Plays a run. Returns the counts of steps, of drains of hung workers, of workers recycled for their
    /// memory, and of drain modes.
    fn run(seed: u64, length: u64) -> [u64; 4] {
        let mut simulation = Simulation::new(seed);
        while simulation.steps < length && simulation.supervisor.outcome().is_none() {
            simulation.step();
        }
        if simulation.random.below(4) > 0 && simulation.supervisor.outcome().is_none() {
            simulation.run_quietly();
        }
        match simulation.supervisor.outcome() {
            Some(outcome) => {
                assert_eq!(outcome, RunOutcome::NeverReady);
                assert!(!simulation.ever_ready);
            }
            None => simulation.stop(),
        }
        [simulation.steps, simulation.hung_drains, simulation.over_limit, simulation.drain_modes]
    }
}

#[test]
fn random_schedules_obey_the_rules_and_converge() {
    let scenarios = SCENARIOS_PER_CASE * ProptestConfig::default().cases;
    let config =
        ProptestConfig { cases: scenarios, failure_persistence: None, ..ProptestConfig::default() };
    let totals = Cell::new([0; 4]);
    let scenario = (any::<u64>().no_shrink(), 1..1000_u64);
    TestRunner::new(config)
        .run(&scenario, |(seed, length)| {
            let counts = Scenario::run(seed, length);
            let sums = totals.get().into_iter().zip(counts).map(|(total, count)| total + count);
            totals.set(sums.collect::<Vec<u64>>().try_into().expect("four counts"));
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("(seed, length): {failure}"));
    let [steps, hung_drains, over_limit, drain_modes] = totals.get();
    println!(
        "{steps} steps, {hung_drains} hung drains, {over_limit} over max_memory, {drain_modes} drain modes"
    );
    let least = |per_thousand: u64| per_thousand * u64::from(scenarios) / 1000;
    assert!(least(STEPS_MIN) <= steps, "only {steps} steps");
    assert!(least(HUNG_DRAINS_MIN) <= hung_drains, "only {hung_drains} hung drains");
    assert!(least(OVER_LIMIT_MIN) <= over_limit, "only {over_limit} over max_memory");
    assert!(least(DRAIN_MODES_MIN) <= drain_modes, "only {drain_modes} drain modes");
}
