//! When an exited worker is restarted. A slot whose workers fail before they have served backs off. A
//! worker that has served is restarted at once, within the pool's budget.

use std::time::Duration;

use super::slot::{Slot, Worker};
use super::types::{ExitClass, ExitReason, Policy};
use crate::rng::Rng;
use crate::time::MonotonicTime;

/// The first delay of the back-off, before jitter shortens it by up to a quarter.
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// The longest delay of the back-off, and of a restart beyond the budget.
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// A worker that was ready for 1 s has served, even if it has done no unit of work.
pub(super) const SERVED_UPTIME: Duration = Duration::from_secs(1);

/// While the pool has no worker that is ready or starting, a slot is tried at least every second.
pub(super) const OUTAGE_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// How the slot of an exited worker is refilled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Restart {
    AtOnce,
    /// At once, while the pool's budget lasts.
    WithinBudget,
    /// After the delay of this step of the back-off, counted from 1.
    BackOff(u32),
}

impl Slot {
    /// Counts the exit if it is a failure, and returns how the slot is refilled.
    pub(super) fn record_exit(
        &mut self,
        worker: &Worker,
        reason: ExitReason,
        exit_class: ExitClass,
        has_worked: bool,
        now: MonotonicTime,
    ) -> Restart {
        let has_served =
            worker.ready_at.is_some_and(|at| has_worked || now.duration_since(at) >= SERVED_UPTIME);
        if has_served {
            self.failures = 0;
        }
        match reason {
            // A stop may have been requested as soon as it was ready. If the next ones drain as early, the
            // slot serves nobody.
            ExitReason::Requested if worker.ready_at.is_some() && !has_served => {
                self.failures += 1;
                if self.failures == 1 {
                    Restart::AtOnce
                } else {
                    Restart::BackOff(self.failures - 1)
                }
            }
            ExitReason::Requested
            | ExitReason::ScaledDown
            | ExitReason::Recycled
            | ExitReason::Reload
            | ExitReason::Hung => Restart::AtOnce,
            // An external kill says nothing about the worker.
            ExitReason::Crashed if exit_class == ExitClass::KilledExternally => Restart::AtOnce,
            // An OOM kill does: the worker used too much memory.
            ExitReason::Crashed | ExitReason::OomKilled if has_served => Restart::WithinBudget,
            ExitReason::Crashed | ExitReason::OomKilled | ExitReason::BootFailed => {
                self.failures += 1;
                Restart::BackOff(self.failures)
            }
        }
    }
}

/// The restarts of a pool.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Restarts {
    /// When the whole budget is available again.
    budget_full_at: MonotonicTime,
    /// When a slot is tried if the pool has no worker that is ready or starting.
    pub(super) outage_retry_at: MonotonicTime,
}

impl Restarts {
    /// Returns how long the slot of an exited worker stays empty, in a pool of `target` workers.
    pub(super) fn delay(
        &mut self,
        restart: Restart,
        policy: &Policy,
        target: usize,
        rng: &mut Rng,
        now: MonotonicTime,
    ) -> Duration {
        let delay = match restart {
            Restart::AtOnce => return Duration::ZERO,
            Restart::WithinBudget => {
                // However many the workers, each may be restarted once.
                let at_least = if policy.restart_limit == 0 { 0 } else { target as u32 };
                let limit = policy.restart_limit.max(at_least);
                self.take_from_budget(limit, policy.restart_interval, now)
            }
            Restart::BackOff(step) => backoff(step, rng),
        };
        if !delay.is_zero() {
            self.on_delayed(delay, now);
        }
        delay
    }

    /// Takes a restart from a budget of `limit` restarts within `interval`. Returns the delay: zero
    /// while the budget lasts, then what the rate of `limit` in `interval` requires.
    fn take_from_budget(&mut self, limit: u32, interval: Duration, now: MonotonicTime) -> Duration {
        if limit == 0 {
            return Duration::ZERO;
        }
        let longest_debt = interval.saturating_add(BACKOFF_MAX);
        let full_at = self.budget_full_at.max(now).saturating_add(interval / limit);
        self.budget_full_at = full_at.min(now.saturating_add(longest_debt));
        self.budget_full_at.duration_since(now).saturating_sub(interval)
    }

    /// Records that a slot waits for `delay`.
    pub(super) fn on_delayed(&mut self, delay: Duration, now: MonotonicTime) {
        self.outage_retry_at = now.saturating_add(delay.min(OUTAGE_RETRY_INTERVAL));
    }
}

/// Returns the delay before attempt `n`, counted from 1: doubling from 0.1 s to 30 s, shortened by a
/// jitter of up to 25 %.
pub(super) fn backoff(n: u32, rng: &mut Rng) -> Duration {
    let full = BACKOFF_MIN.saturating_mul(1 << (n - 1).min(16)).min(BACKOFF_MAX);
    full - full.mul_f64(rng.below(256) as f64 / 1024.0)
}
