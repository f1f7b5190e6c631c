//! Which workers the kernel's OOM killer has killed: reads the counters of their control groups.

mod counters;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::os::cgroup::{self, Cgroups};
use crate::os::clock;
use crate::os::process::Pid;
use counters::OomCounters;

/// Where the kernel counts whom it kills for lack of memory: for the workers of all pools, who may
/// have one counter.
pub(crate) struct OomMonitor {
    cgroups: Cgroups,
    counters: RefCell<OomCounters>,
}

impl OomMonitor {
    /// Finds the control groups.
    pub(crate) fn find() -> Rc<Self> {
        Rc::new(Self { cgroups: Cgroups::find(), counters: RefCell::default() })
    }

    /// The control groups.
    pub(super) fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    /// Where the group of a process counts, and from now on it is known how it stood. A worker that
    /// goes elsewhere later is not followed.
    pub(super) fn watch(&self, pid: Pid) -> Option<PathBuf> {
        let counter = self.cgroups.memory_events(pid)?;
        let kills = cgroup::oom_kill_count(&counter)?;
        self.counters.borrow_mut().register(&counter, kills, clock::now());
        Some(counter)
    }

    /// A worker that counted there has ended. Returns whether the kernel has killed it for lack of
    /// memory, which only one that was killed may have been. What the counter says is known from now
    /// on in any case.
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
