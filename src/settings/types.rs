//! The types of options that the standard library lacks. They are plain values without parsers.

use std::fmt;
use std::ops::RangeInclusive;
use std::thread;

/// The number of workers of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workers {
    /// A fixed number, 1 to 4096.
    Fixed(usize),
    /// One for each CPU that this process may use.
    Auto,
    /// As many as the load requires, within bounds from 1 to 4096.
    Range {
        /// The smallest number, at least 1.
        min: usize,
        /// The largest number, at least `min`.
        max: usize,
    },
}

impl Workers {
    /// Returns the number of workers at the start, at least 1: of a range, the smallest. `Auto` asks the
    /// system at each call and takes CPU affinity and cgroup quotas into account. If the system gives no
    /// answer, it is 1.
    pub fn count(self) -> usize {
        match self {
            Self::Fixed(count) => count,
            Self::Auto => thread::available_parallelism().map_or(1, |count| count.get()),
            Self::Range { min, .. } => min,
        }
    }

    /// Returns the largest number of workers that the load can lead to.
    pub fn max_count(self) -> usize {
        match self {
            Self::Fixed(_) | Self::Auto => self.count(),
            Self::Range { max, .. } => max,
        }
    }

    /// Returns the number of workers of a pool that had `target` until now, after a reload or an upgrade.
    /// A number that a command or the load has set is kept, unless the setting has changed
    /// (`is_unchanged` is false) or, for a range, excludes it.
    pub(crate) fn kept_count(self, target: usize, is_unchanged: bool) -> usize {
        match self.range() {
            Some(range) => target.clamp(*range.start(), *range.end()),
            None if is_unchanged => target,
            None => self.count(),
        }
    }

    /// Returns the bounds between which the load decides; `None` if it does not.
    pub fn range(self) -> Option<RangeInclusive<usize>> {
        match self {
            Self::Fixed(_) | Self::Auto => None,
            Self::Range { min, max } => Some(min..=max),
        }
    }
}

impl fmt::Display for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(count) => count.fmt(f),
            Self::Auto => f.write_str("auto"),
            Self::Range { min, max } => write!(f, "{min}-{max}"),
        }
    }
}

/// The CPUs that workers run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CpuAffinity {
    /// The worker of slot k runs on the k-th CPU that the master may use, cyclically.
    Auto,
    /// The worker of slot k runs on the k-th CPU of the list, cyclically. The list is not empty.
    List(Vec<u16>),
}

impl CpuAffinity {
    /// Returns the CPU for the worker of a slot. `usable` are the CPUs that this process may use, in
    /// ascending order. Returns `None` if there are none.
    pub(crate) fn for_slot(&self, slot: usize, usable: &[u16]) -> Option<u16> {
        let cpus = match self {
            Self::Auto => usable,
            Self::List(cpus) => cpus,
        };
        cpus.get(slot.checked_rem(cpus.len())?).copied()
    }
}

/// Maximum size of a core dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoreSize {
    /// A number of bytes; 0 disables core dumps.
    Bytes(u64),
    /// No limit.
    Unlimited,
}

/// The signal that asks a program to exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopSignal {
    /// SIGTERM.
    Term,
    /// SIGINT.
    Int,
    /// SIGQUIT.
    Quit,
    /// SIGHUP.
    Hup,
    /// SIGUSR1.
    Usr1,
    /// SIGUSR2.
    Usr2,
    /// SIGWINCH.
    Winch,
}

/// The least severe record that the log contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Everything.
    Trace,
    /// Details for a developer of the program.
    Debug,
    /// The start, readiness and exit of each worker, and each requested change.
    Info,
    /// Events that may need attention.
    Warning,
    /// Failures.
    Error,
    /// Failures that end the program.
    Critical,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_count_follows_the_setting_if_that_changes() {
        let range = Workers::Range { min: 2, max: 5 };
        for (workers, target, is_unchanged, expected) in [
            (range, 4, false, 4),
            (range, 9, true, 5),
            (range, 1, false, 2),
            (Workers::Fixed(3), 4, true, 4),
            (Workers::Fixed(3), 4, false, 3),
        ] {
            assert_eq!(workers.kept_count(target, is_unchanged), expected, "{workers} {target}");
        }
    }

    #[test]
    fn for_slot_assigns_cpus_cyclically() {
        let list = CpuAffinity::List(vec![3, 1, 1]);
        let cpus: Vec<_> = (0..5).map(|slot| list.for_slot(slot, &[0])).collect();
        assert_eq!(cpus, [3, 1, 1, 3, 1].map(Some));
        let cpus: Vec<_> = (0..4).map(|slot| CpuAffinity::Auto.for_slot(slot, &[2, 5])).collect();
        assert_eq!(cpus, [2, 5, 2, 5].map(Some));
        assert_eq!(CpuAffinity::Auto.for_slot(0, &[]), None);
    }
}
