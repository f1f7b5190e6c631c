//! A control group for each worker, a leaf of the master's own, where that has been delegated: a
//! process that a worker has started may leave its process group, but not this one.

use std::cell::{Cell, RefCell};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use slog::{Logger, info, warn};

use super::estate::{self, Fate, Owner};
use crate::os::cgroup::Cgroups;
use crate::os::clock;
use crate::os::cgroup_manage;
use crate::os::process::Pid;
use crate::time::MonotonicTime;

/// How long a master stays for the last of them to go, once it has no worker any more.
const STAYS_FOR: Duration = Duration::from_secs(5);

/// The leaves of all pools' workers.
pub(crate) struct Leaves {
    /// Where they are made; nowhere if that has not been delegated.
    home: Option<PathBuf>,
    master: Pid,
    doomed: RefCell<Vec<Doomed>>,
    /// Until when the master stays for them, if it would end.
    stays_until: Cell<Option<MonotonicTime>>,
}

/// One that is to go.
struct Doomed {
    owner: Owner,
    /// Its master has died, and its worker may live.
    is_orphan: bool,
    /// How often it could not be removed.
    tries: u32,
    at: MonotonicTime,
}

impl Leaves {
    /// Looks where this process's workers can have some, and for those that a master before it has
    /// left there.
    pub(crate) fn find(log: &Logger) -> Rc<Self> {
        let home = Cgroups::find().delegated_group();
        if let Some(home) = &home {
            info!(log, "control group delegated"; "path" => %home.display());
        }
        let leaves = Rc::new(Self {
            home,
            master: Pid::this(),
            doomed: RefCell::default(),
            stays_until: Cell::default(),
        });
        // Those under its own number are of an earlier process: it has none yet.
        leaves.look_for_orphans(leaves.master);
        leaves
    }

    fn path(&self, owner: Owner) -> Option<PathBuf> {
        Some(self.home.as_ref()?.join(owner.name()))
    }

    fn owner(&self, worker: Pid) -> Owner {
        Owner { master: self.master.as_raw(), worker: worker.as_raw() }
    }

    /// Moves this process, a worker that has just been born, into a leaf of its own.
    ///
    /// # Errors
    /// What [`leaf::enter`] says.
    pub(super) fn enter(&self) -> io::Result<()> {
        self.path(self.owner(Pid::this())).map_or(Ok(()), |path| cgroup_manage::enter(&path))
    }

    /// A worker has been born: a leaf that one before it has left under its name is its own now.
    pub(super) fn born(&self, worker: Pid) {
        let owner = self.owner(worker);
        self.doomed.borrow_mut().retain(|doomed| doomed.owner != owner);
    }

    /// A worker has died: kills what it has left behind in its leaf, and removes that, now or as soon
    /// as it is empty.
    pub(super) fn remove(&self, worker: Pid, log: &Logger) {
        if self.home.is_some() {
            self.doom(self.owner(worker), false);
            self.tend(clock::now(), log);
        }
    }

    /// Looks for the leaves of masters that have died, such as that of this number.
    pub(super) fn look_for_orphans(&self, gone: Pid) {
        let Some(home) = &self.home else { return };
        let names = cgroup_manage::child_names(home);
        let beside: Vec<i32> = cgroup_manage::direct_members(home).into_iter().map(Pid::as_raw).collect();
        let names = names.iter().map(String::as_str);
        for owner in estate::orphans(names, &beside, gone.as_raw()) {
            self.doom(owner, true);
        }
    }

    fn doom(&self, owner: Owner, is_orphan: bool) {
        let mut doomed = self.doomed.borrow_mut();
        if doomed.iter().all(|other| other.owner != owner) {
            doomed.push(Doomed { owner, is_orphan, tries: 0, at: MonotonicTime::default() });
        }
    }

    /// Removes those whose time has come.
    pub(super) fn tend(&self, now: MonotonicTime, log: &Logger) {
        self.doomed
            .borrow_mut()
            .retain_mut(|doomed| now < doomed.at || !self.try_to_remove(doomed, now, log));
    }

    /// Returns whether nothing more is to be done about it.
    fn try_to_remove(&self, doomed: &mut Doomed, now: MonotonicTime, log: &Logger) -> bool {
        let Some(path) = self.path(doomed.owner) else { return true };
        let result = match fate(doomed, &path) {
            Fate::Ends => {
                cgroup_manage::kill(&path);
                cgroup_manage::remove(&path)
            }
            Fate::Stays => Err(cgroup_manage::busy_error()),
        };
        let Err(error) = result else { return true };
        doomed.tries = doomed.tries.saturating_add(1);
        doomed.at = now.saturating_add(estate::patience(doomed.tries));
        let may_pass = cgroup_manage::is_transient(&error);
        if !may_pass || (doomed.tries == estate::TRIES_TOLD && !doomed.is_orphan) {
            warn!(log, "control group cannot be removed"; "path" => %path.display(),
                "error" => error.to_string());
        }
        !may_pass
    }

    /// When one is to be looked at again.
    pub(super) fn next_deadline(&self) -> Option<MonotonicTime> {
        let doomed = self.doomed.borrow();
        doomed.iter().map(|doomed| doomed.at).chain(self.stays_until.get()).min()
    }

    /// Whether a master that would end may: its own leaves have all gone, or have had enough time.
    pub(super) fn let_go(&self, would_end: bool, now: MonotonicTime) -> bool {
        let have_gone = || self.doomed.borrow().iter().all(|doomed| doomed.is_orphan);
        if !would_end || have_gone() {
            self.stays_until.set(None);
            return would_end;
        }
        let until = self.stays_until.get().unwrap_or_else(|| now.saturating_add(STAYS_FOR));
        self.stays_until.set(Some(until));
        until <= now
    }
}

fn fate(doomed: &Doomed, path: &Path) -> Fate {
    if !doomed.is_orphan {
        return Fate::Ends;
    }
    let members: Vec<i32> = cgroup_manage::members(path).into_iter().map(Pid::as_raw).collect();
    estate::fate_of_orphan(doomed.owner, &members)
}
