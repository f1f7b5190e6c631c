//! A pool under a load that changes with time: workers take time to boot, and work that finds no free
//! worker waits.

use std::time::Duration;

use super::super::*;

/// How much work arrives at a time: how many workers it would keep busy.
pub(super) type Curve<'c> = &'c dyn Fn(Duration) -> f64;

/// How long a unit of work takes.
const UNIT: f64 = 0.05;

/// A pool in steps of [`SAMPLE_INTERVAL`].
pub(super) struct Simulation<'c> {
    pub(super) limits: ScalingLimits,
    pub(super) boot_time: Duration,
    curve: Curve<'c>,
    policy: LoadPolicy,
    now: Duration,
    target: usize,
    /// When each worker is ready.
    workers: Vec<Duration>,
    /// The work that waits, in seconds of one worker.
    backlog: f64,
    pub(super) result: Run,
}

/// What a run was like.
#[derive(Clone, Debug, Default)]
pub(super) struct Run {
    /// Each change: when, from, to, why.
    pub(super) changes: Vec<(Duration, usize, usize, ScalingReason)>,
    /// The time of all workers together, in seconds.
    pub(super) worker_secs: f64,
    /// How long the last of the waiting clients would have waited, at worst.
    pub(super) longest_wait: f64,
    /// The work that had to wait for a second or more, and all work.
    pub(super) late_work: f64,
    pub(super) all_work: f64,
}

impl Run {
    /// Returns how often a scale-up follows a scale-down, or the other way round.
    pub(super) fn turns(&self) -> usize {
        let is_up: Vec<bool> = self.changes.iter().map(|(_, from, to, _)| from < to).collect();
        is_up.windows(2).filter(|pair| pair[0] != pair[1]).count()
    }

    /// Returns how often the target was changed after `time`.
    pub(super) fn changes_after(&self, time: Duration) -> usize {
        self.changes.iter().filter(|(at, ..)| *at > time).count()
    }
}

impl<'c> Simulation<'c> {
    pub(super) fn new(limits: ScalingLimits, curve: Curve<'c>) -> Self {
        Self {
            limits,
            boot_time: Duration::from_secs(1),
            curve,
            policy: LoadPolicy::new(),
            now: Duration::ZERO,
            target: limits.min,
            workers: vec![Duration::ZERO; limits.min],
            backlog: 0.0,
            result: Run::default(),
        }
    }

    pub(super) fn target(&self) -> usize {
        self.target
    }

    pub(super) fn run(&mut self, time: Duration) -> &Run {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
        &self.result
    }

    fn step(&mut self) {
        let step = SAMPLE_INTERVAL.as_secs_f64();
        let ready = self.workers.iter().filter(|at| **at <= self.now).count();
        let arriving = (self.curve)(self.now).max(0.0) * step;
        let work = self.backlog + arriving;
        let done = work.min(ready as f64 * step);
        self.backlog = work - done;
        let wait = self.backlog / ready.max(1) as f64;
        self.result.longest_wait = self.result.longest_wait.max(wait);
        self.result.late_work += if wait >= 1.0 { arriving } else { 0.0 };
        self.result.all_work += arriving;
        self.result.worker_secs += self.workers.len() as f64 * step;
        self.now += SAMPLE_INTERVAL;
        let sample = LoadSample {
            at: MonotonicTime::from_nanos(0) + self.now,
            target: self.target,
            ready,
            busy: Some(done / step),
            queue: (self.backlog / UNIT) as u64,
        };
        if let Some(decision) = self.policy.decide(&sample, &self.limits) {
            self.change(decision);
        }
    }

    fn change(&mut self, ScalingDecision { target, reason }: ScalingDecision) {
        assert!((self.limits.min..=self.limits.max).contains(&target), "{target}");
        assert_ne!(target, self.target, "a decision changes something");
        self.result.changes.push((self.now, self.target, target, reason));
        self.workers.resize(target, self.now + self.boot_time);
        self.target = target;
    }
}
