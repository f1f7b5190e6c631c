//! Stalls of the master: time in which it did not run, since it was stopped, frozen or starved of
//! CPU. Pure.
//!
//! SIGCONT alone shows no stall, since any process of the master's session may send it. A sleep
//! without a stop is one voluntary context switch; to be stopped in it is another one.

use std::time::Duration;

use crate::time::MonotonicTime;

/// If the master wakes later than this after its deadline, it was itself stopped or starved.
pub(super) const STALL_THRESHOLD: Duration = Duration::from_millis(500);

/// After a SIGCONT, the next one is not handled for this long: any process of the session can send
/// many.
const SIGCONT_INTERVAL: Duration = Duration::from_millis(50);

/// The voluntary context switches of a sleep that no stop interrupts.
const SWITCHES_OF_A_SLEEP: i64 = 1;

/// Detects stalls from the times at which the master sleeps and wakes.
pub(super) struct StallDetector {
    woke_at: MonotonicTime,
    /// When the turn before began, or the last stall ended.
    prev_wake_at: MonotonicTime,
    /// The master's voluntary context switches before it slept last.
    switches_before_sleep: i64,
    /// Until when SIGCONT is blocked.
    sigcont_deferred_until: Option<MonotonicTime>,
}

/// A time span in which the master may not have run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stall {
    pub(super) since: MonotonicTime,
    /// How much later than its deadline the master woke.
    pub(super) late: Duration,
}

impl StallDetector {
    pub(super) fn new(now: MonotonicTime) -> Self {
        Self {
            woke_at: now,
            prev_wake_at: now,
            switches_before_sleep: 0,
            sigcont_deferred_until: None,
        }
    }

    /// Records that the signals of this turn have been handled.
    pub(super) fn begin_turn(&mut self) {
        self.prev_wake_at = self.woke_at;
    }

    /// Records that the master sleeps now. `switches` is its number of voluntary context switches.
    pub(super) fn on_sleep(&mut self, switches: i64) {
        self.switches_before_sleep = switches;
    }

    /// Records that the master wakes. Returns a stall if its deadline has passed long before.
    pub(super) fn on_wake(
        &mut self,
        deadline: Option<MonotonicTime>,
        now: MonotonicTime,
    ) -> Option<Stall> {
        self.woke_at = now;
        self.sigcont_deferred_until = self.sigcont_deferred_until.filter(|at| now < *at);
        let late = deadline.map_or(Duration::ZERO, |deadline| now.duration_since(deadline));
        (late > STALL_THRESHOLD).then(|| self.take(late, now))
    }

    /// Records a SIGCONT. Returns a stall if the master was stopped in its last sleep; it need not
    /// have slept beyond its deadline.
    pub(super) fn on_sigcont(&mut self, switches: i64, now: MonotonicTime) -> Option<Stall> {
        self.sigcont_deferred_until = Some(now.saturating_add(SIGCONT_INTERVAL));
        let was_stopped = switches - self.switches_before_sleep > SWITCHES_OF_A_SLEEP;
        let is_long = now.duration_since(self.prev_wake_at) > STALL_THRESHOLD;
        (was_stopped && is_long).then(|| self.take(Duration::ZERO, now))
    }

    /// Returns until when SIGCONT must be blocked.
    pub(super) fn next_deadline(&self) -> Option<MonotonicTime> {
        self.sigcont_deferred_until
    }

    fn take(&mut self, late: Duration, now: MonotonicTime) -> Stall {
        let since = std::mem::replace(&mut self.prev_wake_at, now);
        Stall { since, late }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: u64) -> MonotonicTime {
        MonotonicTime::from_nanos(seconds * 1_000_000_000)
    }

    /// Returns a detector that has slept from 1 s on, for 10 s.
    fn woken(deadline: u64) -> (StallDetector, Option<Stall>) {
        let mut detector = StallDetector::new(at(1));
        detector.begin_turn();
        detector.on_sleep(100);
        let stall = detector.on_wake(Some(at(deadline)), at(11));
        (detector, stall)
    }

    #[test]
    fn late_wake_is_a_stall_once() {
        let (mut detector, stall) = woken(9);
        assert_eq!(stall, Some(Stall { since: at(1), late: 2 * SECOND }));
        assert_eq!(detector.on_sigcont(102, at(11)), None);
        assert_eq!(woken(11).1, None);
        assert_eq!(woken(60).1, None);
    }

    #[test]
    fn sigcont_without_a_stop_is_no_stall() {
        let (mut detector, _) = woken(60);
        assert_eq!(detector.on_sigcont(101, at(11)), None);
        assert_eq!(detector.on_sigcont(100, at(11)), None);
    }

    #[test]
    fn sigcont_defers_the_next_one() {
        let (mut detector, _) = woken(60);
        assert_eq!(detector.next_deadline(), None);
        detector.on_sigcont(101, at(11));
        let until = at(11).saturating_add(SIGCONT_INTERVAL);
        assert_eq!(detector.next_deadline(), Some(until));
        detector.on_wake(Some(until), at(11));
        assert_eq!(detector.next_deadline(), Some(until), "another event has woken the master");
        detector.on_wake(Some(until), until);
        assert_eq!(detector.next_deadline(), None);
    }

    #[test]
    fn sigcont_after_a_stop_is_a_stall_once() {
        let (mut detector, _) = woken(60);
        let stall = Stall { since: at(1), late: Duration::ZERO };
        assert_eq!(detector.on_sigcont(102, at(11)), Some(stall));
        assert_eq!(detector.on_sigcont(102, at(11)), None);
    }
}
