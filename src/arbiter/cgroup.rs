//! A control group for each worker, below the master's own if that is delegated (systemd
//! `Delegate=`). A process that a worker has started may leave its process group, but not its cgroup.

mod orphans;

use std::cell::{Cell, RefCell};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use slog::{Logger, info, warn};

use crate::os::cgroup::Cgroups;
use crate::os::cgroup::manage as cgroup_manage;
use crate::os::clock;
use crate::os::process::Pid;
use crate::time::MonotonicTime;
use orphans::{CgroupName, OrphanAction};

/// How long the exit of a master without workers waits until their cgroups are removed.
const EXIT_WAIT_MAX: Duration = Duration::from_secs(5);

/// The control groups of all pools' workers.
pub(crate) struct WorkerCgroups {
    /// The delegated group; if there is none, workers have no cgroups of their own.
    parent: Option<PathBuf>,
    master: Pid,
    pending_removals: RefCell<Vec<PendingRemoval>>,
    /// Until when the exit of the master waits for removals.
    exit_deadline: Cell<Option<MonotonicTime>>,
}

/// A cgroup that is to be removed.
struct PendingRemoval {
    name: CgroupName,
    /// Its master has exited; its worker may still run.
    is_orphan: bool,
    /// How many removals have failed.
    tries: u32,
    retry_at: MonotonicTime,
}

impl WorkerCgroups {
    /// Finds the delegated group, and the cgroups that earlier masters have left in it.
    pub(crate) fn find(log: &Logger) -> Self {
        let parent = Cgroups::find().delegated_group();
        if let Some(parent) = &parent {
            info!(log, "cgroup delegated"; "path" => %parent.display());
        }
        let cgroups = Self {
            parent,
            master: Pid::this(),
            pending_removals: RefCell::default(),
            exit_deadline: Cell::default(),
        };
        // This master has no worker yet: a cgroup with its pid is of an earlier process.
        cgroups.find_orphans(cgroups.master);
        cgroups
    }

    fn path(&self, name: CgroupName) -> Option<PathBuf> {
        Some(self.parent.as_ref()?.join(name.dir_name()))
    }

    fn cgroup_name(&self, worker: Pid) -> CgroupName {
        CgroupName { master: self.master.as_raw(), worker: worker.as_raw() }
    }

    /// Moves this process, a new worker, into a cgroup of its own.
    ///
    /// # Errors
    /// The cgroup cannot be created or entered.
    pub(super) fn enter(&self) -> io::Result<()> {
        self.path(self.cgroup_name(Pid::this())).map_or(Ok(()), |path| cgroup_manage::enter(&path))
    }

    /// Records a new worker. If an earlier one had the same pid, its cgroup is not removed any more.
    pub(super) fn on_spawned(&self, worker: Pid) {
        let name = self.cgroup_name(worker);
        self.pending_removals.borrow_mut().retain(|removal| removal.name != name);
    }

    /// Kills what a worker that has exited has left in its cgroup, and removes the cgroup, now or as
    /// soon as it is empty.
    pub(super) fn remove(&self, worker: Pid, log: &Logger) {
        if self.parent.is_some() {
            self.schedule_removal(self.cgroup_name(worker), false);
            self.retry_removals(clock::now(), log);
        }
    }

    /// Schedules the removal of cgroups whose masters have exited, such as the one of this pid.
    pub(super) fn find_orphans(&self, exited_master: Pid) {
        let Some(parent) = &self.parent else { return };
        let names = cgroup_manage::child_names(parent);
        let live_masters: Vec<i32> =
            cgroup_manage::direct_members(parent).into_iter().map(Pid::as_raw).collect();
        let names = names.iter().filter_map(|name| name.to_str());
        for name in orphans::orphans(names, &live_masters, exited_master.as_raw()) {
            self.schedule_removal(name, true);
        }
    }

    fn schedule_removal(&self, name: CgroupName, is_orphan: bool) {
        let mut pending = self.pending_removals.borrow_mut();
        if pending.iter().all(|other| other.name != name) {
            pending.push(PendingRemoval {
                name,
                is_orphan,
                tries: 0,
                retry_at: MonotonicTime::default(),
            });
        }
    }

    /// Tries again to remove the cgroups that are due.
    pub(super) fn retry_removals(&self, now: MonotonicTime, log: &Logger) {
        self.pending_removals
            .borrow_mut()
            .retain_mut(|removal| now < removal.retry_at || !self.try_to_remove(removal, now, log));
    }

    /// Returns whether the removal is done, or is given up.
    fn try_to_remove(
        &self,
        removal: &mut PendingRemoval,
        now: MonotonicTime,
        log: &Logger,
    ) -> bool {
        let Some(path) = self.path(removal.name) else { return true };
        let result = match removal_action(removal, &path) {
            OrphanAction::Remove => {
                cgroup_manage::kill(&path);
                cgroup_manage::remove(&path)
            }
            OrphanAction::Keep => Err(cgroup_manage::busy_error()),
        };
        let Err(error) = result else { return true };
        removal.tries = removal.tries.saturating_add(1);
        removal.retry_at = now.saturating_add(orphans::retry_delay(removal.tries));
        let may_pass = cgroup_manage::is_transient(&error);
        if !may_pass || (removal.tries == orphans::TRIES_BEFORE_WARNING && !removal.is_orphan) {
            warn!(log, "failed to remove worker cgroup"; "path" => %path.display(),
                "error" => error.to_string());
        }
        !may_pass
    }

    /// Returns when a removal is tried again, or the exit of the master is not delayed any longer.
    pub(super) fn next_deadline(&self) -> Option<MonotonicTime> {
        let pending = self.pending_removals.borrow();
        pending.iter().map(|removal| removal.retry_at).chain(self.exit_deadline.get()).min()
    }

    /// Waits for the removals once no worker is left; a stop that is cancelled ends the wait. Returns
    /// whether the master may exit: the cgroups of its own workers are removed, or the wait has been long
    /// enough.
    pub(super) fn wait_for_exit(&self, has_stopped: bool, now: MonotonicTime) -> bool {
        let begun = self.exit_deadline.get().filter(|_| has_stopped);
        let deadline = begun.unwrap_or_else(|| now.saturating_add(EXIT_WAIT_MAX));
        self.exit_deadline.set(has_stopped.then_some(deadline));
        let own_removed = self.pending_removals.borrow().iter().all(|removal| removal.is_orphan);
        has_stopped && (own_removed || deadline <= now)
    }
}

fn removal_action(removal: &PendingRemoval, path: &Path) -> OrphanAction {
    if !removal.is_orphan {
        return OrphanAction::Remove;
    }
    let members: Vec<i32> = cgroup_manage::members(path).into_iter().map(Pid::as_raw).collect();
    orphans::orphan_action(removal.name, &members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancelled_stop_leaves_no_deadline() {
        let at = |seconds: u64| MonotonicTime::from_nanos(seconds * 1_000_000_000);
        let cgroups = WorkerCgroups {
            parent: None,
            master: Pid::this(),
            pending_removals: RefCell::default(),
            exit_deadline: Cell::default(),
        };
        cgroups.schedule_removal(CgroupName { master: 1, worker: 2 }, false);
        cgroups.pending_removals.borrow_mut()[0].retry_at = at(100);
        assert!(!cgroups.wait_for_exit(true, at(1)));
        assert_eq!(cgroups.next_deadline(), Some(at(1).saturating_add(EXIT_WAIT_MAX)));
        assert!(!cgroups.wait_for_exit(false, at(2)));
        assert_eq!(cgroups.next_deadline(), Some(at(100)));
        assert!(!cgroups.wait_for_exit(true, at(3)));
        assert!(cgroups.wait_for_exit(true, at(3).saturating_add(EXIT_WAIT_MAX)));
    }
}
