//! Limits how often the workers of a pool can wake the master. Pure.
//!
//! A worker writes to the wakeup pipe when its status changes, which is a few times in its life. If
//! more bytes come, some worker misuses the pipe: then the master does not wait for it, but reads it
//! at intervals. The scoreboard is read in every turn, so that no status is missed.

use std::time::Duration;

use crate::time::MonotonicTime;

/// How many wakeups each worker is allowed: ready, replacement requested and draining, and one more.
const WAKEUPS_PER_WORKER: u64 = 4;

/// How long the pipe is not waited for, if there were more wakeups than allowed.
const CLOSED_FOR: Duration = Duration::from_millis(50);

/// Counts the wakeups of a pool.
#[derive(Debug, Default)]
pub(super) struct WakeupLimit {
    allowed: u64,
    closed_until: Option<MonotonicTime>,
}

impl WakeupLimit {
    /// Allows the wakeups of one worker more.
    pub(super) fn on_spawned(&mut self) {
        self.allowed = self.allowed.saturating_add(WAKEUPS_PER_WORKER);
    }

    /// Allows the wakeup of a worker that is drained.
    pub(super) fn on_drain_mode(&mut self) {
        self.allowed = self.allowed.saturating_add(1);
    }

    /// Opens the pipe if it is due. Returns whether it is open.
    pub(super) fn try_open(&mut self, now: MonotonicTime) -> bool {
        self.closed_until = self.closed_until.filter(|at| now < *at);
        self.is_open()
    }

    /// Returns whether the master waits for the pipe.
    pub(super) fn is_open(&self) -> bool {
        self.closed_until.is_none()
    }

    /// Returns when the pipe is opened again.
    pub(super) fn next_deadline(&self) -> Option<MonotonicTime> {
        self.closed_until
    }

    /// Records that there were bytes in the pipe, and closes it if that was too often.
    pub(super) fn on_wakeup(&mut self, now: MonotonicTime) {
        match self.allowed.checked_sub(1) {
            Some(left) => self.allowed = left,
            None => self.closed_until = Some(now.saturating_add(CLOSED_FOR)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wakeups_of_each_worker_never_close_the_pipe() {
        let now = MonotonicTime::from_nanos(1);
        let mut limit = WakeupLimit::default();
        for _ in 0..100 {
            limit.on_spawned();
            for _ in 0..WAKEUPS_PER_WORKER {
                limit.on_wakeup(now);
                assert!(limit.is_open());
            }
        }
    }

    #[test]
    fn flood_opens_the_pipe_at_intervals_only() {
        let mut now = MonotonicTime::from_nanos(1);
        let mut limit = WakeupLimit::default();
        limit.on_spawned();
        let end = now.saturating_add(Duration::from_secs(1));
        let mut reads = 0;
        while now < end {
            if limit.try_open(now) {
                reads += 1;
                limit.on_wakeup(now);
            }
            now = now.saturating_add(Duration::from_micros(10));
        }
        assert!((20..=25).contains(&reads), "{reads} reads in 1 s");
        assert!(limit.next_deadline().is_some());
        limit.on_spawned();
        assert!(limit.try_open(now.saturating_add(CLOSED_FOR)));
        limit.on_wakeup(now);
        assert_eq!(limit.next_deadline(), None, "a new worker may report");
    }
}
