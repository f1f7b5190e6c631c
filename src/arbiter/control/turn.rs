//! How long one turn of the master's loop serves clients, and when the next one does. Reads the clock.

use std::cell::Cell;
use std::time::Duration;

use crate::os::clock;
use crate::time::MonotonicTime;

/// After how long a turn begins nothing more. It lasts longer by one step: what a client is sent at once,
/// or one snapshot, or one answer that is rendered.
const TURN_MAX: Duration = Duration::from_millis(2);
/// CPU time spent on clients is paid off in this many times as long: a flood of requests takes at most a
/// tenth of a core, and a master that others keep from running pays for what it did alone.
const PAY_FACTOR: u32 = 10;
/// How much time may be unpaid before clients wait. So a client that asks once in a while never waits, and
/// wakes no master at the end of a pause: that costs a turn of the loop.
const UNPAID_MAX: Duration = Duration::from_millis(50);
/// The longest pause, whatever a turn has cost.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Until when what clients have cost is paid off, and so when they wait.
#[derive(Debug, Default)]
pub(super) struct Budget {
    paid_at: MonotonicTime,
    /// Whether the last turn has left something to do.
    has_more: bool,
}

impl Budget {
    /// Returns until when clients wait.
    pub(super) fn pause_end(&self) -> MonotonicTime {
        self.paid_at.saturating_sub(UNPAID_MAX)
    }

    /// Returns whether the last turn has left something to do.
    pub(super) fn has_more(&self) -> bool {
        self.has_more
    }

    /// Records a turn that ends now and has cost CPU time.
    pub(super) fn spend(&mut self, turn: &Turn, cost: Duration, now: MonotonicTime) {
        self.has_more = turn.is_cut.get();
        if turn.has_worked || self.has_more {
            let paid_at = self.paid_at.max(now).saturating_add(cost.saturating_mul(PAY_FACTOR));
            self.paid_at = paid_at.min(now.saturating_add(UNPAID_MAX + PAUSE_MAX));
        }
    }
}

/// The time that all clients share in one turn of the loop.
#[derive(Debug)]
pub(super) struct Turn {
    begin: MonotonicTime,
    limit: Duration,
    has_worked: bool,
    /// Whether something was left to the next turn.
    is_cut: Cell<bool>,
}

impl Turn {
    pub(super) fn begin(now: MonotonicTime) -> Self {
        Self { begin: now, limit: TURN_MAX, has_worked: false, is_cut: Cell::new(false) }
    }

    /// Begins the last turn of a master, after which no client is served.
    pub(super) fn last(now: MonotonicTime) -> Self {
        Self { limit: PAUSE_MAX, ..Self::begin(now) }
    }

    /// Records that a client was served: a pause follows.
    pub(super) fn has_worked(&mut self) {
        self.has_worked = true;
    }

    /// Returns whether the rest is left to the next turn.
    pub(super) fn is_over(&self) -> bool {
        let is_over = clock::now().duration_since(self.begin) >= self.limit;
        self.is_cut.set(self.is_cut.get() || is_over);
        is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flood_takes_a_tenth_and_a_single_client_never_waits() {
        let at = |millis: u64| MonotonicTime::from_nanos(1_000_000_000 + millis * 1_000_000);
        let turn = Turn { has_worked: true, ..Turn::begin(at(0)) };
        let mut budget = Budget::default();
        assert!(budget.pause_end() <= at(0));
        // Turns of 2 ms, as early as possible.
        let (mut now, mut turns) = (0, 0);
        while now < 10_000 {
            now += 2;
            turns += 1;
            budget.spend(&turn, Duration::from_millis(2), at(now));
            while budget.pause_end() > at(now) {
                now += 1;
            }
        }
        assert!((500..510).contains(&turns), "{turns} turns of 2 ms in 10 s");
        let mut budget = Budget::default();
        for second in 0..10 {
            budget.spend(&turn, Duration::from_millis(4), at(second * 1000 + 4));
            assert!(budget.pause_end() <= at(second * 1000 + 4));
        }
    }

    #[test]
    fn turn_without_work_costs_nothing_and_a_pause_has_an_end() {
        let cost = Duration::from_secs(100);
        let end = MonotonicTime::from_nanos(101_000_000_000);
        let spend = |has_worked, is_cut| {
            let mut budget = Budget::default();
            let turn = Turn { has_worked, is_cut: Cell::new(is_cut), ..Turn::begin(end) };
            budget.spend(&turn, cost, end);
            (budget.pause_end().duration_since(end), budget.has_more())
        };
        assert_eq!(spend(false, false), (Duration::ZERO, false));
        assert_eq!(spend(true, false), (PAUSE_MAX, false));
        assert_eq!(spend(false, true), (PAUSE_MAX, true));
    }
}
