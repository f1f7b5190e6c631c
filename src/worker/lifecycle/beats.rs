//! When heartbeats are due.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::heartbeat::Heartbeat;
use crate::scoreboard::UnitTimeout;
use crate::time::MonotonicTime;

/// When heartbeats are due.
#[derive(Debug)]
pub(super) struct Beats {
    pub(super) heartbeat: Heartbeat,
    pub(super) timeout: Duration,
    /// How long a class may sleep.
    pub(super) interval: Duration,
    pub(super) unit_timeout: UnitTimeout,
    pub(super) min_gap: Duration,
    /// When the next one is due, in nanoseconds; the end of time if `timeout` is 0.
    pub(super) due: AtomicU64,
    /// How many log records the master had dropped when it forked this process.
    pub(super) dropped_before: u64,
}

impl Beats {
    /// Sends a heartbeat.
    #[cold] // as seen from a loop that turns a million times a second
    pub(super) fn send(&self, now: MonotonicTime) {
        self.due.store(now.saturating_add(self.min_gap).as_nanos(), Ordering::Relaxed);
        // It fails only if the class has given the file away: then it must count as silent.
        let _ = self.heartbeat.beat(now);
    }
}
