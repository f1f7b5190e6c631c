//! Finds out which workers the kernel's OOM killer has killed, from the counters of their cgroups.

mod counters;

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use crate::os::cgroup::{self, Cgroups};
use crate::os::clock;
use crate::os::process::Pid;
use counters::OomCounters;

/// The out-of-memory kills in the workers' control groups. The workers of all pools share it: several
/// may be in one group.
pub(crate) struct OomMonitor {
    cgroups: Cgroups,
    counters: RefCell<OomCounters>,
}

impl OomMonitor {
    /// Finds the mounted control groups.
    pub(crate) fn find() -> Self {
        Self { cgroups: Cgroups::find(), counters: RefCell::default() }
    }

    /// Returns the mounted control groups.
    pub(super) fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    /// Registers a worker. Returns the `memory.events` file of its group, as of now: a worker that
    /// moves to another group later is not followed.
    pub(super) fn watch(&self, pid: Pid) -> Option<PathBuf> {
        let counter = self.cgroups.memory_events(pid)?;
        let kills = cgroup::oom_kill_count(&counter)?;
        self.counters.borrow_mut().register(&counter, kills, clock::now());
        Some(counter)
    }

    /// Unregisters a worker that has exited. Returns whether the OOM killer has killed it, which is
    /// possible only if SIGKILL from outside (`was_killed`) has ended it.
    pub(super) fn resolve_exit(&self, counter: &Path, was_killed: bool) -> bool {
        let mut counters = self.counters.borrow_mut();
        if let Some(kills) = cgroup::oom_kill_count(counter) {
            counters.update(counter, kills, clock::now());
        }
        let oom_killed = was_killed && counters.attribute_kill(counter);
        counters.unregister(counter);
        oom_killed
    }
}
