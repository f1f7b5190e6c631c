//! Attributes SIGKILLs of unknown origin to the OOM killer. Pure. Each control group counts its OOM
//! kills, and each increase explains one worker that was killed from outside.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::time::MonotonicTime;

/// An exit later than this after the counter has increased has another cause.
const ATTRIBUTION_WINDOW: Duration = Duration::from_secs(1);

/// The counters, by their `memory.events` file.
#[derive(Debug, Default)]
pub(super) struct OomCounters {
    counters: HashMap<PathBuf, OomCounter>,
}

#[derive(Debug)]
struct OomCounter {
    /// The count at the last reading.
    last_count: u64,
    /// Kills that have not been attributed to a worker.
    unattributed_kills: u64,
    /// When an increase was last read.
    increased_at: MonotonicTime,
    /// How many registered workers are in the group.
    workers: usize,
}

impl OomCounters {
    /// Registers a worker whose group has counted `kills` so far: none of them is its own.
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

    /// Unregisters a worker that has exited, after its kill was attributed. The last one drops the
    /// counter.
    pub(super) fn unregister(&mut self, counter: &Path) {
        if let Some(entry) = self.counters.get_mut(counter) {
            entry.workers -= 1;
            if entry.workers == 0 {
                self.counters.remove(counter);
            }
        }
    }

    /// Records a reading. Call it as often as there is an occasion: kills read before an exit do not
    /// explain an exit later than the window.
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

    /// Returns whether the counter explains a SIGKILL of unknown origin. Call [`update`](Self::update)
    /// before.
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

    /// Returns counters with one worker, whose group had counted 5 kills.
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
        assert!(attribute_kill_at(&mut counters, 9, 0)); // three of them were not workers
        assert!(!attribute_kill_at(&mut counters, 9, 1001));
    }

    #[test]
    fn attribute_kill_increase_seen_before_is_false() {
        let mut counters = registered_counters();
        counters.register(Path::new(COUNTER), 6, at(0)); // another process was killed before the worker started
        assert!(!attribute_kill_at(&mut counters, 6, 1001));
        update_at(&mut counters, 7, 2000);
        assert!(
            attribute_kill_at(&mut counters, 7, 2001),
            "killed with another worker, which was reaped first"
        );
    }

    #[test]
    fn unregister_last_worker_drops_the_counter() {
        let mut counters = registered_counters();
        counters.register(Path::new(COUNTER), 5, at(0));
        counters.unregister(Path::new(COUNTER));
        assert!(attribute_kill_at(&mut counters, 6, 1), "another worker still has it");
        counters.unregister(Path::new(COUNTER));
        assert!(!attribute_kill_at(&mut counters, 7, 2));
        counters.register(Path::new(COUNTER), 8, at(3));
        assert!(!attribute_kill_at(&mut counters, 8, 3), "it counts from the last reading");
    }

    #[test]
    fn update_counter_restarts_counts_from_zero() {
        let mut counters = registered_counters();
        assert!(!attribute_kill_at(&mut counters, 0, 0));
        assert!(attribute_kill_at(&mut counters, 1, 1));
    }
}
