//! Tests of the built-in policy: by hand, over load curves, and with random loads.

mod curves;
mod random;
mod simulation;

use std::time::Duration;

use super::*;

const LIMITS: ScalingLimits = ScalingLimits {
    min: 1,
    max: 16,
    scale_up_busy: 0.75,
    scale_down_after: Duration::from_secs(30),
};

/// A policy and the pool that it decides on, in which workers are ready at once.
struct Pool {
    policy: LoadPolicy,
    limits: ScalingLimits,
    target: usize,
    samples: u32,
}

impl Pool {
    fn new(target: usize) -> Self {
        Self { policy: LoadPolicy::new(), limits: LIMITS, target, samples: 0 }
    }

    fn sample(&self) -> LoadSample {
        let at = MonotonicTime::from_nanos(0) + SAMPLE_INTERVAL * self.samples;
        LoadSample { at, target: self.target, ready: self.target, busy: Some(0.0), queue: 0 }
    }

    fn decide(&mut self, sample: LoadSample) -> Option<ScalingReason> {
        self.samples += 1;
        let decision = self.policy.decide(&sample, &self.limits)?;
        self.target = decision.target;
        Some(decision.reason)
    }

    /// Runs until the target changes, at most for `time`. Returns when and why it has.
    fn run(&mut self, time: Duration, busy: f64, queue: u64) -> Option<(Duration, ScalingReason)> {
        let begin = self.sample().at;
        while self.sample().at.duration_since(begin) < time {
            let sample = LoadSample { busy: Some(busy), queue, ..self.sample() };
            if let Some(reason) = self.decide(sample) {
                return Some((sample.at.duration_since(begin), reason));
            }
        }
        None
    }
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[test]
fn busy_pool_doubles_each_second_up_to_the_maximum() {
    let mut pool = Pool::new(1);
    for target in [2, 4, 8, 16] {
        let changed = pool.run(secs(10), pool.target as f64, 0);
        assert_eq!(changed, Some((Duration::from_millis(750), ScalingReason::Busy)));
        assert_eq!(pool.target, target);
    }
    assert_eq!(pool.run(secs(600), 16.0, 1000), None, "the maximum");
}

#[test]
fn busy_pool_grows_by_what_it_requires() {
    let mut pool = Pool::new(8);
    assert_eq!(pool.run(secs(600), 5.9, 0), None, "74 % of the time");
    assert_eq!(pool.run(secs(10), 6.0, 0).unwrap().1, ScalingReason::Busy);
    assert_eq!(pool.target, 10, "60 % busy");
    assert_eq!(pool.run(secs(600), 6.0, 0), None);
}

#[test]
fn short_peak_changes_nothing() {
    let mut pool = Pool::new(2);
    for _ in 0..100 {
        assert_eq!(pool.run(SAMPLE_INTERVAL * 2, 2.0, 9), None);
        assert_eq!(pool.run(SAMPLE_INTERVAL * 2, 0.0, 0), None);
    }
}

#[test]
fn waiting_clients_are_a_reason_whatever_the_workers_do() {
    for busy in [Some(0.0), None] {
        let mut pool = Pool::new(2);
        for (queue, reason) in [(7, None), (1, None), (3, Some(ScalingReason::Queue))] {
            let sample = LoadSample { busy, queue, ..pool.sample() };
            assert_eq!(pool.decide(sample), reason);
        }
        assert_eq!(pool.target, 3, "one client has waited in all samples");
    }
}

#[test]
fn missing_worker_holds_the_target() {
    let mut pool = Pool::new(4);
    for _ in 0..1000 {
        let load = LoadSample { busy: Some(3.0), queue: 9, ..pool.sample() };
        assert_eq!(pool.decide(LoadSample { ready: 3, ..load }), None);
    }
    assert_eq!(pool.run(SAMPLE_INTERVAL * 2, 4.0, 9), None, "the samples before do not count");
    assert_eq!(pool.run(SAMPLE_INTERVAL, 4.0, 9).unwrap().1, ScalingReason::Queue);
}

#[test]
fn quiet_pool_shrinks_one_by_one_to_the_minimum() {
    let mut pool = Pool::new(4);
    for target in [3, 2, 1] {
        // After a change, the window must fill again.
        let changed = pool.run(secs(60), 0.0, 0);
        assert_eq!(changed, Some((Duration::from_millis(30_750), ScalingReason::Quiet)));
        assert_eq!(pool.target, target);
    }
    assert_eq!(pool.run(secs(3600), 0.0, 0), None, "the minimum");
}

#[test]
fn load_within_the_quiet_time_starts_it_anew() {
    let mut pool = Pool::new(4);
    for _ in 0..20 {
        assert_eq!(pool.run(secs(29), 0.0, 0), None);
        assert_eq!(pool.run(secs(1), 2.0, 0), None, "on three workers, 2 are 67 %");
    }
    for _ in 0..20 {
        assert_eq!(pool.run(secs(29), 0.0, 0), None);
        assert_eq!(pool.run(secs(1), 0.0, 1).map(|(_, reason)| reason), Some(ScalingReason::Queue));
        pool.target = 4;
        pool.policy = LoadPolicy::new();
    }
}

#[test]
fn restart_forgets_the_samples() {
    let mut pool = Pool::new(2);
    assert_eq!(pool.run(SAMPLE_INTERVAL * 3, 1.9, 0), None);
    pool.policy.restart();
    assert_eq!(pool.run(SAMPLE_INTERVAL * 3, 1.9, 0), None);
    assert_eq!(pool.run(secs(29), 0.0, 0), None);
    pool.policy.restart();
    assert_eq!(pool.run(secs(29), 0.0, 0), None);
    assert_eq!(pool.run(secs(2), 0.0, 0).unwrap().1, ScalingReason::Quiet);
}

#[test]
fn premature_scale_down_doubles_the_quiet_time_until_it_has_held() {
    let mut pool = Pool::new(2);
    let mut quiet_times = Vec::new();
    for _ in 0..6 {
        let (quiet, reason) = pool.run(secs(3600), 0.0, 0).unwrap();
        assert_eq!((reason, pool.target), (ScalingReason::Quiet, 1));
        quiet_times.push(quiet.as_secs());
        assert_eq!(pool.run(secs(10), 1.0, 0).unwrap().1, ScalingReason::Busy);
    }
    assert_eq!(quiet_times, [30, 60, 120, 240, 480, 480]);
    // It halves after 16 quiet times without a relapse.
    assert_eq!(pool.run(secs(16 * 480), 1.1, 0), None);
    assert_eq!(pool.run(secs(3600), 0.0, 0).unwrap().0.as_secs(), 240);
}

#[test]
fn late_scale_up_teaches_nothing() {
    let mut pool = Pool::new(2);
    for _ in 0..6 {
        assert_eq!(pool.run(secs(3600), 0.0, 0).unwrap().0.as_secs(), 30);
        assert_eq!(pool.run(secs(121), 0.0, 0), None);
        assert_eq!(pool.run(secs(10), 1.0, 0).unwrap().1, ScalingReason::Busy);
    }
}

#[test]
fn absurd_samples_stay_within_the_range() {
    let mut pool = Pool::new(3);
    for busy in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
        for queue in [0, u64::MAX] {
            pool.run(secs(100), busy, queue);
            assert!((1..=16).contains(&pool.target));
        }
    }
}
