//! When memory that idle clients no longer need goes back to the kernel. Pure: time is an argument.

use std::time::Duration;

use ostler::time::MonotonicTime;

/// So many clients have given up 4 MiB of buffers.
pub(super) const CLIENTS_MIN: usize = 256;
/// How long to wait for others that come at the same time.
const PAUSE: Duration = Duration::from_millis(250);
/// More clients within a pause take the memory again.
const FEW_CLIENTS: usize = 16;
/// How long after a release the next one is, at least: clients choose when they become idle.
const INTERVAL: Duration = Duration::from_secs(10);
/// The inverse of the largest share of time that releases take.
const INTERVAL_FACTOR: u32 = 100;

/// Decides, from how many clients have become idle so far, counted with overflow.
#[derive(Debug, Default)]
pub(super) struct MemoryRelease {
    /// How many there were at the last release.
    released: usize,
    /// How many there were at the begin of the pause.
    seen: usize,
    /// When the pause is over.
    look_at: Option<MonotonicTime>,
    not_before: MonotonicTime,
}

impl MemoryRelease {
    /// Returns whether memory is released now.
    pub(super) fn is_due(&mut self, became_idle: usize, now: MonotonicTime) -> bool {
        match self.look_at {
            None if became_idle.wrapping_sub(self.released) < CLIENTS_MIN => return false,
            Some(at) if now < at => return false,
            Some(_) if became_idle.wrapping_sub(self.seen) < FEW_CLIENTS => {
                self.released = became_idle;
                self.look_at = None;
                return true;
            }
            None | Some(_) => (),
        }
        self.seen = became_idle;
        self.look_at = Some(now.saturating_add(PAUSE).max(self.not_before));
        false
    }

    /// Takes in that a release has ended at `now`, and how long it took.
    pub(super) fn on_released(&mut self, now: MonotonicTime, took: Duration) {
        self.not_before = now.saturating_add(INTERVAL.max(took * INTERVAL_FACTOR));
    }

    /// Returns when to ask next, if not for another client.
    pub(super) fn next_look(&self) -> Option<MonotonicTime> {
        self.look_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> MonotonicTime {
        MonotonicTime::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn burst_is_released_once_it_is_over() {
        let mut release = MemoryRelease::default();
        assert!(!release.is_due(CLIENTS_MIN - 1, at(0)));
        assert_eq!(release.next_look(), None);
        assert!(!release.is_due(CLIENTS_MIN, at(100)));
        assert_eq!(release.next_look(), Some(at(350)));
        assert!(!release.is_due(1000, at(349)), "it is not over");
        assert!(!release.is_due(1000, at(350)), "many have come");
        assert!(!release.is_due(1010, at(599)));
        assert!(release.is_due(1010, at(600)));
        assert_eq!(release.next_look(), None);
        assert!(!release.is_due(1010 + CLIENTS_MIN - 1, at(9000)));
    }

    #[test]
    fn releases_take_a_small_share_of_the_time() {
        for (took, next) in [(1, 10_600), (200, 20_600)] {
            let mut release = MemoryRelease::default();
            assert!(!release.is_due(CLIENTS_MIN, at(0)));
            assert!(release.is_due(CLIENTS_MIN, at(600)));
            release.on_released(at(600), Duration::from_millis(took));
            assert!(!release.is_due(2 * CLIENTS_MIN, at(700)));
            assert_eq!(release.next_look(), Some(at(next)));
            assert!(release.is_due(2 * CLIENTS_MIN, at(next)));
        }
    }

    #[test]
    fn count_may_overflow() {
        let mut release = MemoryRelease::default();
        assert!(!release.is_due(usize::MAX, at(0)));
        assert!(release.is_due(10, at(1000)));
        assert!(!release.is_due(20, at(2000)));
    }
}
