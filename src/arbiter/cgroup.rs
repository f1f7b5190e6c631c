//! A control group for each worker, a leaf of the master's own, where that has been delegated: a
//! process that a worker has started may leave its process group, but not this one.

mod orphans;

use std::cell::{Cell, RefCell};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use slog::{Logger, info, warn};

use crate::os::cgroup::Cgroups;
use crate::os::cgroup_manage;
use crate::os::clock;
use crate::os::process::Pid;
use crate::time::MonotonicTime;
use orphans::{CgroupName, OrphanAction};

/// How long a master stays for the last of them to go, once it has no worker any more.
const EXIT_WAIT_MAX: Duration = Duration::from_secs(5);

/// The leaves of all pools' workers.
pub(crate) struct WorkerCgroups {
    /// Where they are made; nowhere if that has not been delegated.
    parent: Option<PathBuf>,
    master: Pid,
    pending_removals: RefCell<Vec<PendingRemoval>>,
    /// Until when the master stays for them, if it would end.
    exit_deadline: Cell<Option<MonotonicTime>>,
}

/// One that is to go.
struct PendingRemoval {
    name: CgroupName,
    /// Its master has died, and its worker may live.
    is_orphan: bool,
    /// How often it could not be removed.
    tries: u32,
    retry_at: MonotonicTime,
}

impl WorkerCgroups {
    /// Looks where this process's workers can have some, and for those that a master before it has
    /// left there.
    pub(crate) fn find(log: &Logger) -> Rc<Self> {
        let parent = Cgroups::find().delegated_group();
        if let Some(parent) = &parent {
            info!(log, "cgroup delegated"; "path" => %parent.display());
        }
        let cgroups = Rc::new(Self {
            parent,
            master: Pid::this(),
            pending_removals: RefCell::default(),
            exit_deadline: Cell::default(),
        });
        // Those under its own number are of an earlier process: it has none yet.
        cgroups.find_orphans(cgroups.master);
        cgroups
    }

    fn path(&self, name: CgroupName) -> Option<PathBuf> {
        Some(self.parent.as_ref()?.join(name.dir_name()))
    }

    fn cgroup_name(&self, worker: Pid) -> CgroupName {
        CgroupName { master: self.master.as_raw(), worker: worker.as_raw() }
    }

    /// Moves this process, a worker that has just been born, into a leaf of its own.
    ///
    /// # Errors
    /// What [`leaf::enter`] says.
    pub(super) fn enter(&self) -> io::Result<()> {
        self.path(self.cgroup_name(Pid::this())).map_or(Ok(()), |path| cgroup_manage::enter(&path))
    }

    /// A worker has been born: a leaf that one before it has left under its name is its own now.
    pub(super) fn on_spawned(&self, worker: Pid) {
        let name = self.cgroup_name(worker);
        self.pending_removals.borrow_mut().retain(|doomed| doomed.name != name);
    }

    /// A worker has died: kills what it has left behind in its leaf, and removes that, now or as soon
    /// as it is empty.
    pub(super) fn remove(&self, worker: Pid, log: &Logger) {
        if self.parent.is_some() {
            self.schedule_removal(self.cgroup_name(worker), false);
            self.retry_removals(clock::now(), log);
        }
    }

    /// Looks for the leaves of masters that have died, such as that of this number.
    pub(super) fn find_orphans(&self, exited_master: Pid) {
        let Some(parent) = &self.parent else { return };
        let names = cgroup_manage::child_names(parent);
        let live_masters: Vec<i32> =
            cgroup_manage::direct_members(parent).into_iter().map(Pid::as_raw).collect();
        let names = names.iter().map(String::as_str);
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

    /// Removes those whose time has come.
    pub(super) fn retry_removals(&self, now: MonotonicTime, log: &Logger) {
        self.pending_removals
            .borrow_mut()
            .retain_mut(|removal| now < removal.retry_at || !self.try_to_remove(removal, now, log));
    }

    /// Returns whether nothing more is to be done about it.
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

    /// When one is to be looked at again.
    pub(super) fn next_deadline(&self) -> Option<MonotonicTime> {
        let pending = self.pending_removals.borrow();
        pending.iter().map(|doomed| doomed.retry_at).chain(self.exit_deadline.get()).min()
    }

    /// Whether a master that would end may: its own leaves have all gone, or have had enough time.
    pub(super) fn may_exit(&self, wants_exit: bool, now: MonotonicTime) -> bool {
        let own_removed = || self.pending_removals.borrow().iter().all(|doomed| doomed.is_orphan);
        if !wants_exit || own_removed() {
            self.exit_deadline.set(None);
            return wants_exit;
        }
        let until = self.exit_deadline.get().unwrap_or_else(|| now.saturating_add(EXIT_WAIT_MAX));
        self.exit_deadline.set(Some(until));
        until <= now
    }
}

fn removal_action(removal: &PendingRemoval, path: &Path) -> OrphanAction {
    if !removal.is_orphan {
        return OrphanAction::Remove;
    }
    let members: Vec<i32> = cgroup_manage::members(path).into_iter().map(Pid::as_raw).collect();
    orphans::orphan_action(removal.name, &members)
}
