//! What operations are told of the pools in a turn, and what it means for them. Pure.

use std::time::Duration;

use serde_json::Value;

use crate::arbiter::pool::supervisor::{Supervisor, WorkerId};

/// How much later than its own limits allow an operation is given up.
pub(super) const MARGIN: Duration = Duration::from_secs(5);

/// How much of an operation has come true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::arbiter) struct Progress {
    pub(in crate::arbiter) done: usize,
    pub(in crate::arbiter) total: usize,
    pub(in crate::arbiter) phase: &'static str,
}

/// What the pools are like in a turn.
pub(in crate::arbiter) struct Present<'v> {
    /// How many workers have not exited.
    pub(in crate::arbiter) workers: usize,
    pub(in crate::arbiter) is_stopping: bool,
    /// Whether the stop is delayed by `pre_stop`.
    pub(in crate::arbiter) is_pre_stop: bool,
    /// How far a reload has come that is in progress.
    pub(in crate::arbiter) reload: Option<Progress>,
    /// Finds a pool by its name.
    pub(in crate::arbiter) pool: &'v dyn Fn(&str) -> Option<PoolView<'v>>,
}

/// What operations ask of a pool.
pub(in crate::arbiter) struct PoolView<'v> {
    pub(in crate::arbiter) supervisor: &'v Supervisor,
    /// Why the last worker that failed to boot did.
    pub(in crate::arbiter) failure_reason: &'v str,
    pub(in crate::arbiter) pid_of: Box<dyn Fn(WorkerId) -> Option<i32> + 'v>,
}

/// What a turn means for one operation.
pub(super) enum Verdict {
    Running(Progress),
    Done(Value),
    Failed(String),
}
