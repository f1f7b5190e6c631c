//! Decides when a change of files has settled. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::time::MonotonicTime;

/// For how long nothing may change before a change counts: an editor or a compiler writes several times.
const QUIET_TIME: Duration = Duration::from_millis(300);

/// What identifies the state of each file. A file that does not exist has zero.
pub(super) type Stamps = BTreeMap<PathBuf, u64>;

/// The states of files over time.
#[derive(Debug)]
pub(super) struct Settling {
    baseline: Stamps,
    latest: Stamps,
    /// When `latest` was seen to change.
    changed_at: MonotonicTime,
}

impl Settling {
    /// Starts from what was reported last. A file that `baseline` lacks has not changed.
    pub(super) fn new(baseline: &Stamps, latest: Stamps, now: MonotonicTime) -> Self {
        let known = |(path, stamp): (&PathBuf, &u64)| {
            (path.clone(), baseline.get(path).copied().unwrap_or(*stamp))
        };
        Self { baseline: latest.iter().map(known).collect(), latest, changed_at: now }
    }

    /// Learns the states of the files.
    pub(super) fn observe(&mut self, stamps: Stamps, now: MonotonicTime) {
        if stamps != self.latest {
            (self.latest, self.changed_at) = (stamps, now);
        }
    }

    /// Returns when a change has settled, unless the files change before; `None` if nothing has changed.
    pub(super) fn deadline(&self) -> Option<MonotonicTime> {
        (self.latest != self.baseline).then_some(self.changed_at + QUIET_TIME)
    }

    /// Returns whether a change has settled. Call [`observe`](Self::observe) before.
    pub(super) fn has_settled(&self, now: MonotonicTime) -> bool {
        self.deadline().is_some_and(|deadline| now >= deadline)
    }

    /// Returns the files that have changed.
    pub(super) fn changed(&self) -> impl Iterator<Item = &PathBuf> {
        let differs = |path: &PathBuf, stamp: &u64| self.baseline.get(path) != Some(stamp);
        self.latest.iter().filter(move |(path, stamp)| differs(path, stamp)).map(|(path, _)| path)
    }

    /// Returns the latest states.
    pub(super) fn latest(&self) -> &Stamps {
        &self.latest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> MonotonicTime {
        MonotonicTime::from_nanos(millis * 1_000_000)
    }

    fn stamps(stamps: &[(&str, u64)]) -> Stamps {
        stamps.iter().map(|(path, stamp)| (PathBuf::from(path), *stamp)).collect()
    }

    fn changed(settling: &Settling) -> Vec<&str> {
        settling.changed().filter_map(|path| path.to_str()).collect()
    }

    #[test]
    fn change_settles_after_quiet_time() {
        let mut settling = Settling::new(&Stamps::new(), stamps(&[("a", 1), ("b", 1)]), at(0));
        assert_eq!(settling.deadline(), None);
        settling.observe(stamps(&[("a", 2), ("b", 1)]), at(1000));
        assert_eq!(settling.deadline(), Some(at(1300)));
        settling.observe(stamps(&[("a", 2), ("b", 1)]), at(1299));
        assert!(!settling.has_settled(at(1299)) && settling.has_settled(at(1300)));
        assert_eq!(changed(&settling), ["a"]);
    }

    #[test]
    fn further_change_postpones() {
        let mut settling = Settling::new(&Stamps::new(), stamps(&[("a", 1)]), at(0));
        for turn in 1..=10 {
            settling.observe(stamps(&[("a", 1 + turn)]), at(turn * 299));
            assert!(!settling.has_settled(at(turn * 299 + 298)));
        }
        assert!(settling.has_settled(at(10 * 299 + 300)));
    }

    #[test]
    fn change_that_is_undone_is_none() {
        let mut settling = Settling::new(&Stamps::new(), stamps(&[("a", 1)]), at(0));
        settling.observe(stamps(&[("a", 0)]), at(10));
        assert!(settling.deadline().is_some());
        settling.observe(stamps(&[("a", 1)]), at(20));
        assert_eq!((settling.deadline(), settling.has_settled(at(9999))), (None, false));
    }

    #[test]
    fn change_since_the_last_report_counts() {
        let baseline = stamps(&[("a", 1), ("gone", 7)]);
        let settling = Settling::new(&baseline, stamps(&[("a", 2), ("new", 5)]), at(0));
        assert_eq!(settling.deadline(), Some(at(300)));
        assert_eq!(changed(&settling), ["a"]);
    }
}
