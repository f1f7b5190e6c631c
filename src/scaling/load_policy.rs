//! The built-in policy: grows at once, shrinks slowly, and learns from a scale-down that was too early.

use std::collections::VecDeque;
use std::time::Duration;

use super::{LoadSample, ScalingDecision, ScalingLimits, ScalingPolicy, ScalingReason};
use crate::time::MonotonicTime;

/// Over how many samples the busy share is averaged.
const BUSY_SAMPLES: usize = 4;

/// In how many samples in a row clients must wait: a client that has just connected waits a moment.
const QUEUE_SAMPLES: usize = 3;

/// The busy share to which a scale-down may lead, relative to `scale_up_busy`. The gap between the two
/// is what keeps a constant load from moving the target.
const DOWN_RATIO: f64 = 2.0 / 3.0;

/// From this busy share on, the workers may lack any amount of time.
const SATURATED: f64 = 0.95;

/// The largest factor by which the quiet time is extended.
const CAUTION_MAX: u32 = 16;

/// A scale-up within so many quiet times of a scale-down shows that that was too early.
const RELAPSE_TIMES: u32 = 4;

/// After so many quiet times without a relapse, the caution halves.
const DECAY_TIMES: u32 = 16;

/// Scales by busy share and accept queue.
///
/// Up: if the workers are busy for `scale_up_busy` of the last second, or clients have waited for half a
/// second. The target grows to what the demand requires, at most to twice as many.
///
/// Down: by one, if one fewer would have been busy for less than two thirds of `scale_up_busy` for all of
/// the quiet time, and no client has waited. The quiet time is `scale_down_after`. It doubles if a
/// scale-up follows a scale-down soon, and returns by halves.
///
/// While a worker is missing, the target stays: one that boots will help, and one that cannot would not.
#[derive(Clone, Debug, Default)]
pub struct LoadPolicy {
    /// The last samples of the present target, while no worker was missing.
    window: VecDeque<Load>,
    /// Since when one fewer worker suffices.
    quiet_since: Option<MonotonicTime>,
    last_down: Option<MonotonicTime>,
    /// The factor of the quiet time; 0 counts as 1.
    caution: u32,
    /// When the caution last changed.
    caution_since: MonotonicTime,
}

/// What is kept of a sample.
#[derive(Clone, Copy, Debug)]
struct Load {
    /// How many workers were busy.
    busy: f64,
    queue: u64,
}

impl ScalingPolicy for LoadPolicy {
    fn decide(&mut self, sample: &LoadSample, limits: &ScalingLimits) -> Option<ScalingDecision> {
        self.decay(sample.at, limits);
        if sample.ready < sample.target {
            self.restart();
            return None;
        }
        self.record(sample);
        let decision = self.up(sample, limits).or_else(|| self.down(sample, limits))?;
        self.on_change(sample, decision, limits);
        Some(decision)
    }

    fn restart(&mut self) {
        self.window.clear();
        self.quiet_since = None;
    }
}

impl LoadPolicy {
    /// Creates a policy without samples.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns how long a smaller target must have sufficed before a scale-down.
    fn quiet_time(&self, limits: &ScalingLimits) -> Duration {
        limits.scale_down_after.saturating_mul(self.caution.max(1))
    }

    fn record(&mut self, sample: &LoadSample) {
        let busy = sample.busy.unwrap_or(0.0).clamp(0.0, sample.ready as f64);
        if self.window.len() == BUSY_SAMPLES {
            self.window.pop_front();
        }
        self.window.push_back(Load { busy, queue: sample.queue });
    }

    /// Returns how many workers were busy on average; `None` before there are enough samples.
    fn busy(&self) -> Option<f64> {
        let sum: f64 = self.window.iter().map(|load| load.busy).sum();
        (self.window.len() == BUSY_SAMPLES).then(|| sum / BUSY_SAMPLES as f64)
    }

    /// Returns how many clients have waited in each of the last samples.
    fn queue(&self) -> u64 {
        let last = self.window.iter().rev().take(QUEUE_SAMPLES);
        if last.len() < QUEUE_SAMPLES { 0 } else { last.map(|load| load.queue).min().unwrap_or(0) }
    }

    fn up(&self, sample: &LoadSample, limits: &ScalingLimits) -> Option<ScalingDecision> {
        let target = sample.target;
        if target >= limits.max {
            return None;
        }
        let queue = usize::try_from(self.queue()).unwrap_or(usize::MAX);
        let busy = self.busy().unwrap_or(0.0);
        let is_busy = busy >= limits.scale_up_busy * target as f64;
        let reason = match (is_busy, queue) {
            (true, _) => ScalingReason::Busy,
            (false, 0) => return None,
            (false, _) => ScalingReason::Queue,
        };
        // In the middle between the share that leads up and the one that leads down.
        let aim = limits.scale_up_busy * (1.0 + DOWN_RATIO) / 2.0;
        let for_busy = match is_busy {
            true if busy >= SATURATED * target as f64 => usize::MAX,
            true => (busy / aim).ceil() as usize,
            false => 0,
        };
        let for_queue = target.saturating_add(queue);
        let wanted = for_busy.max(for_queue).clamp(target + 1, target * 2);
        Some(ScalingDecision { target: wanted.min(limits.max), reason })
    }

    fn down(&mut self, sample: &LoadSample, limits: &ScalingLimits) -> Option<ScalingDecision> {
        let fewer = sample.target.saturating_sub(1);
        let down_busy = limits.scale_up_busy * DOWN_RATIO;
        let suffices = |busy: f64| busy < down_busy * fewer as f64;
        let is_quiet = fewer >= limits.min.max(1) && self.queue() == 0;
        if !(is_quiet && self.busy().is_some_and(suffices)) {
            self.quiet_since = None;
            return None;
        }
        let since = *self.quiet_since.get_or_insert(sample.at);
        let is_due = sample.at.duration_since(since) >= self.quiet_time(limits);
        is_due.then_some(ScalingDecision { target: fewer, reason: ScalingReason::Quiet })
    }

    fn on_change(
        &mut self,
        sample: &LoadSample,
        decision: ScalingDecision,
        limits: &ScalingLimits,
    ) {
        if decision.target < sample.target {
            self.last_down = Some(sample.at);
        } else if let Some(last_down) = self.last_down.take() {
            let relapse = self.quiet_time(limits).saturating_mul(RELAPSE_TIMES);
            if sample.at.duration_since(last_down) <= relapse {
                self.caution = (self.caution.max(1) * 2).min(CAUTION_MAX);
                self.caution_since = sample.at;
            }
        }
        self.restart();
    }

    /// Halves the caution after a long time without a relapse.
    fn decay(&mut self, now: MonotonicTime, limits: &ScalingLimits) {
        let after = self.quiet_time(limits).saturating_mul(DECAY_TIMES);
        if self.caution > 1 && now.duration_since(self.caution_since) >= after {
            self.caution /= 2;
            self.caution_since = now;
        }
    }
}
