//! Scaling with load: how many workers a pool should have, by how busy they are and how many clients
//! wait. Pure: the master takes the samples, and its clock is an argument.

mod load_policy;

use std::time::Duration;

pub use load_policy::LoadPolicy;

use crate::time::MonotonicTime;

/// How often the master samples the load of a pool whose number of workers is a range.
pub const SAMPLE_INTERVAL: Duration = Duration::from_millis(250);

/// What a policy decides by: the settings of a pool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScalingLimits {
    /// The smallest number of workers, at least 1.
    pub min: usize,
    /// The largest number of workers, at least `min`.
    pub max: usize,
    /// The setting `scale_up_busy`, as a share from 0 to 1.
    pub scale_up_busy: f64,
    /// The setting `scale_down_after`.
    pub scale_down_after: Duration,
}

/// The load of a pool since the last sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadSample {
    /// When it was taken.
    pub at: MonotonicTime,
    /// How many workers the pool should have.
    pub target: usize,
    /// How many are ready and do not drain.
    pub ready: usize,
    /// The shares of time in which the ready workers were busy, summed over them: 0 to `ready`. A worker
    /// that hangs is busy. `None` if that is unknown: the workers run a program.
    pub busy: Option<f64>,
    /// How many clients wait in the accept queues.
    pub queue: u64,
}

/// Why the target changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScalingReason {
    /// The workers are busy.
    Busy,
    /// Clients wait in the accept queues.
    Queue,
    /// Fewer workers have sufficed for some time.
    Quiet,
}

impl ScalingReason {
    /// Returns the reason as the log and the control interface write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Queue => "queue",
            Self::Quiet => "quiet",
        }
    }
}

/// What a policy decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScalingDecision {
    /// How many workers the pool should have.
    pub target: usize,
    /// Why.
    pub reason: ScalingReason,
}

/// Decides how many workers a pool should have. There is one for each pool.
///
/// The master asks it every [`SAMPLE_INTERVAL`] while the pool serves, except during a reload, an upgrade
/// or a stop. It keeps every decision within the range.
pub trait ScalingPolicy {
    /// Returns another target than that of the sample, or `None`.
    fn decide(&mut self, sample: &LoadSample, limits: &ScalingLimits) -> Option<ScalingDecision>;

    /// Forgets the samples: some were not taken, or the target was changed by a command.
    fn restart(&mut self);
}

/// Makes a policy.
pub type PolicyFactory = dyn Fn() -> Box<dyn ScalingPolicy>;

#[cfg(test)]
mod tests;
