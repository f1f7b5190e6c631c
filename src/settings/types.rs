//! The types of options that the standard library lacks. Plain values: nothing here reads a text.

use std::fmt;
use std::thread;

/// How many workers a pool keeps alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workers {
    /// This many, 1 to 4096.
    Fixed(usize),
    /// One for each processor that this process may use.
    Auto,
}

impl Workers {
    /// The number of workers, at least 1. `Auto` asks the system anew each time, and takes
    /// affinity and cgroup quotas into account; if the system does not tell, it is 1.
    pub fn count(self) -> usize {
        match self {
            Self::Fixed(count) => count,
            Self::Auto => thread::available_parallelism().map_or(1, |count| count.get()),
        }
    }
}

impl fmt::Display for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(count) => count.fmt(f),
            Self::Auto => f.write_str("auto"),
        }
    }
}

/// On which processors workers run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CpuAffinity {
    /// Each on the processor of its slot, among those that the master may use, in turn.
    Auto,
    /// The worker of slot k on the k-th of these, in turn; at least one.
    List(Vec<u16>),
}

impl CpuAffinity {
    /// The processor for the worker of a slot. `usable` are those that this process may use, in
    /// their order; `None` if there is nothing to choose from.
    pub(crate) fn for_slot(&self, slot: usize, usable: &[u16]) -> Option<u16> {
        let cpus = match self {
            Self::Auto => usable,
            Self::List(cpus) => cpus,
        };
        cpus.get(slot.checked_rem(cpus.len())?).copied()
    }
}

/// Most bytes of a core dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoreSize {
    /// So many; none at all if 0.
    Bytes(u64),
    /// Whatever it takes.
    Unlimited,
}

/// The signal by which a program is asked to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopSignal {
    /// TERM.
    Term,
    /// INT.
    Int,
    /// QUIT.
    Quit,
    /// HUP.
    Hup,
    /// USR1.
    Usr1,
    /// USR2.
    Usr2,
    /// WINCH.
    Winch,
}

/// The least severe record that is still written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Everything.
    Trace,
    /// What a developer of this program wants to see.
    Debug,
    /// Each worker's start, readiness and end, and each change that was asked for.
    Info,
    /// What may need attention.
    Warning,
    /// What failed.
    Error,
    /// What ends the whole program.
    Critical,
}

#[cfg(test)]
mod tests {
    use super::*;

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
