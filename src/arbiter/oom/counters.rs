//! Which deaths the kernel has caused for lack of memory: each control group counts how often it
//! did that, and each time accounts for one worker that was killed by nobody we know of. Pure.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::time::MonotonicTime;

/// Who dies later than this after the counter has moved died of something else.
const ATTRIBUTION_WINDOW: Duration = Duration::from_secs(1);

/// The counters, by the file that shows them.
#[derive(Debug, Default)]
pub(super) struct OomCounters {
    counters: HashMap<PathBuf, OomCounter>,
}

#[derive(Debug)]
struct OomCounter {
    /// What the counter said when it was read last.
    last_count: u64,
    /// Deaths that it accounts for and that nobody has claimed yet.
    unattributed_kills: u64,
    /// When it was seen to have moved.
    increased_at: MonotonicTime,
    /// How many workers have it.
    workers: usize,
}

impl OomCounters {
    /// Another worker has this counter, which stands so now: before any death of it that may be
    /// claimed.
    pub(super) fn register(&mut self, counter: &Path, kills: u64, now: MonotonicTime) {
        self.update(counter, kills, now);
        let fresh = OomCounter {
            last_count: kills,
            unattributed_kills: 0,
            increased_at: MonotonicTime::default(),
            workers: 0,
        };
        self.counters.entry(counter.to_owned()).or_insert(fresh).workers += 1;
    }

    /// A worker that had this counter has ended, and has claimed what it may claim. The last one
    /// closes the account.
    pub(super) fn unregister(&mut self, counter: &Path) {
        if let Some(entry) = self.counters.get_mut(counter) {
            entry.workers -= 1;
            if entry.workers == 0 {
                self.counters.remove(counter);
            }
        }
    }

    /// The counter stands so now. To be told as often as there is an occasion: what it counted before
    /// one accounts for no death after it.
    pub(super) fn update(&mut self, counter: &Path, kills: u64, now: MonotonicTime) {
        let Some(entry) = self.counters.get_mut(counter) else { return };
        if now.duration_since(entry.increased_at) > ATTRIBUTION_WINDOW {
            entry.unattributed_kills = 0;
        }
        let increase = kills.saturating_sub(entry.last_count);
        if increase > 0 {
            entry.unattributed_kills = entry.unattributed_kills.saturating_add(increase);
            entry.increased_at = now;
        }
        entry.last_count = kills;
    }

    /// A worker was killed by nobody we know of, and its counter has just been observed. Returns
    /// whether it accounts for that.
    pub(super) fn attribute_kill(&mut self, counter: &Path) -> bool {
        let Some(entry) = self.counters.get_mut(counter) else { return false };
        let is_oom_kill = entry.unattributed_kills > 0;
        entry.unattributed_kills = entry.unattributed_kills.saturating_sub(1);
        is_oom_kill
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTER: &str = "/group/memory.events";

    fn at(millis: u64) -> MonotonicTime {
        MonotonicTime::from_nanos(1_000_000_000_000).saturating_add(Duration::from_millis(millis))
    }

    /// A ledger whose counter stood at 5.
    fn registered_counters() -> OomCounters {
        let mut counters = OomCounters::default();
        counters.register(Path::new(COUNTER), 5, at(0));
        counters
    }

    fn attribute_kill_at(counters: &mut OomCounters, kills: u64, millis: u64) -> bool {
        update_at(counters, kills, millis);
        counters.attribute_kill(Path::new(COUNTER))
    }

    fn update_at(counters: &mut OomCounters, kills: u64, millis: u64) {
        counters.update(Path::new(COUNTER), kills, at(millis));
    }

    #[test]
    fn attribute_kill_counter_unchanged_is_false() {
        assert!(!attribute_kill_at(&mut registered_counters(), 5, 0));
    }

    #[test]
    fn attribute_kill_each_increase_explains_one_kill() {
        let mut counters = registered_counters();
        assert!(attribute_kill_at(&mut counters, 6, 0));
        assert!(!attribute_kill_at(&mut counters, 6, 1));
        assert!(attribute_kill_at(&mut counters, 8, 2));
        assert!(attribute_kill_at(&mut counters, 8, 3), "two at once");
        assert!(!attribute_kill_at(&mut counters, 8, 4));
    }

    #[test]
    fn attribute_kill_after_the_window_is_false() {
        let mut counters = registered_counters();
        assert!(attribute_kill_at(&mut counters, 9, 0)); // three of them are no workers of ours
        assert!(!attribute_kill_at(&mut counters, 9, 1001));
    }

    #[test]
    fn attribute_kill_increase_seen_before_is_false() {
        let mut counters = registered_counters();
        counters.register(Path::new(COUNTER), 6, at(0)); // a stranger died, and then a worker was born
        assert!(!attribute_kill_at(&mut counters, 6, 1001));
        update_at(&mut counters, 7, 2000);
        assert!(
            attribute_kill_at(&mut counters, 7, 2001),
            "killed with another, which was buried first"
        );
    }

    #[test]
    fn unregister_last_worker_drops_the_counter() {
        let mut counters = registered_counters();
        counters.register(Path::new(COUNTER), 5, at(0));
        counters.unregister(Path::new(COUNTER));
        assert!(attribute_kill_at(&mut counters, 6, 1), "the other has it still");
        counters.unregister(Path::new(COUNTER));
        assert!(!attribute_kill_at(&mut counters, 7, 2));
        counters.register(Path::new(COUNTER), 8, at(3));
        assert!(!attribute_kill_at(&mut counters, 8, 3), "it counts from where it was read");
    }

    #[test]
    fn update_counter_restarts_counts_from_zero() {
        let mut counters = registered_counters();
        assert!(!attribute_kill_at(&mut counters, 0, 0));
        assert!(attribute_kill_at(&mut counters, 1, 1));
    }
}
