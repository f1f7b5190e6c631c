//! Control groups made by a test, version 1 or 2. They need root and a writable hierarchy.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::id;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::unistd::Pid;
use rustix::fs::{XattrFlags, setxattr};

use crate::launch::Launch;
use crate::proc::{becomes_true, wait_until};
use crate::support::DEADLINE;

/// The hierarchies: version 1, and version 2 with that controller.
const TOP: &str = "/sys/fs/cgroup";

/// Where systems in hybrid mode mount version 2, without controllers.
const UNIFIED: &str = "/sys/fs/cgroup/unified";

/// The attribute that a service manager sets on a delegated group.
const MARK: &str = "user.delegate";

/// A control group. Dropping it moves its members to the parent group, and removes it.
pub struct Group {
    path: PathBuf,
    home: PathBuf,
    second_version: bool,
}

impl Group {
    /// Creates a group under a controller. Returns `None` and prints the reason if the machine does
    /// not allow it.
    pub fn new(controller: &str) -> Option<Self> {
        let first = Path::new(TOP).join(controller);
        let second_version = !first.join("cgroup.procs").exists();
        let home = if second_version { PathBuf::from(TOP) } else { first };
        let group = Self::new_in(home, second_version)?;
        let needed = match controller {
            "memory" => Some(group.memory_limit()),
            "cpu" => Some(group.cpu_limit()),
            _ => None,
        };
        let lacks = needed.is_some_and(|file| !group.path.join(file).exists());
        if lacks {
            eprintln!("skipped: no {controller} controller for a control group of our own");
        }
        (!lacks).then_some(group)
    }

    /// Creates a version 2 group to start a server in. If it is `delegated`, the server may divide
    /// it among its workers. Returns `None` and prints the reason if the machine does not allow it.
    pub fn for_a_server(delegated: bool) -> Option<Self> {
        let homes = [TOP, UNIFIED].map(PathBuf::from);
        let Some(home) = homes.into_iter().find(|home| home.join("cgroup.controllers").exists())
        else {
            eprintln!("skipped: no control groups of version 2");
            return None;
        };
        let group = Self::new_in(home, true)?;
        if delegated && let Err(error) = setxattr(&group.path, MARK, b"1", XattrFlags::empty()) {
            eprintln!("skipped: a control group cannot be marked as delegated: {error}");
            return None;
        }
        Some(group)
    }

    fn new_in(home: PathBuf, second_version: bool) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("ostler-test-{}-{}", id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = home.join(name);
        if let Err(error) = fs::create_dir(&path) {
            eprintln!("skipped: no control group of our own under {}: {error}", home.display());
            return None;
        }
        Some(Self { path, home, second_version })
    }

    /// Prepares a server that starts in this group.
    pub fn launch(&self, flags: &[&str]) -> Launch {
        self.launch_by(&[], flags)
    }

    /// Prepares a server that starts in this group, run by these words.
    pub fn launch_by(&self, words: &[&str], flags: &[&str]) -> Launch {
        let script = format!("echo 0 >{}/cgroup.procs && exec \"$@\"", self.path.display());
        let program = env!("CARGO_BIN_EXE_ostler");
        Launch::by(&[&["sh", "-c", &script, "sh"], words, &[program]].concat(), flags)
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the names of its child groups, sorted.
    pub fn inner(&self) -> Vec<String> {
        let dirs = inner(&self.path).into_iter();
        let mut names: Vec<_> =
            dirs.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }

    /// Returns whether the memory controller is available here.
    pub fn bounds_memory(&self) -> bool {
        self.path.join(self.memory_limit()).exists()
    }

    /// Moves a process, with all its threads, into the group.
    #[track_caller]
    pub fn take(&self, pid: Pid) {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    /// Freezes all its members.
    #[track_caller]
    pub fn freeze(&self) {
        self.set_frozen(true);
        wait_until("the group is frozen", || self.is_frozen());
    }

    /// Thaws all its members.
    #[track_caller]
    pub fn thaw(&self) {
        self.set_frozen(false);
        wait_until("the group has thawed", || !self.is_frozen());
    }

    /// Limits the total memory of its members.
    #[track_caller]
    pub fn limit_memory(&self, bytes: u64) {
        fs::write(self.path.join(self.memory_limit()), bytes.to_string()).unwrap();
    }

    /// Limits its members together to `quota` microseconds of CPU time a period of `period`
    /// microseconds.
    #[track_caller]
    pub fn limit_cpu(&self, quota: u32, period: u32) {
        if self.second_version {
            fs::write(self.path.join("cpu.max"), format!("{quota} {period}")).unwrap();
        } else {
            fs::write(self.path.join("cpu.cfs_period_us"), period.to_string()).unwrap();
            fs::write(self.path.join("cpu.cfs_quota_us"), quota.to_string()).unwrap();
        }
    }

    /// Removes the CPU limit.
    #[track_caller]
    pub fn unlimit_cpu(&self) {
        let none = if self.second_version { "max" } else { "-1" };
        fs::write(self.path.join(self.cpu_limit()), none).unwrap();
    }

    fn cpu_limit(&self) -> &'static str {
        if self.second_version { "cpu.max" } else { "cpu.cfs_quota_us" }
    }

    fn memory_limit(&self) -> &'static str {
        if self.second_version { "memory.max" } else { "memory.limit_in_bytes" }
    }

    fn set_frozen(&self, frozen: bool) {
        let (file, word) = match (self.second_version, frozen) {
            (true, true) => ("cgroup.freeze", "1"),
            (true, false) => ("cgroup.freeze", "0"),
            (false, true) => ("freezer.state", "FROZEN"),
            (false, false) => ("freezer.state", "THAWED"),
        };
        let _ = fs::write(self.path.join(file), word);
    }

    fn is_frozen(&self) -> bool {
        let read = |file| fs::read_to_string(self.path.join(file)).unwrap_or_default();
        match self.second_version {
            true => read("cgroup.events").contains("frozen 1"),
            false => read("freezer.state").trim() == "FROZEN",
        }
    }

    fn members(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// Returns the child groups of a group.
fn inner(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// Kills the members of all child groups, and removes those groups.
fn clear(group: &Path) {
    for inner in inner(group) {
        let _ = fs::write(inner.join("cgroup.kill"), "1");
        clear(&inner);
        let _ = fs::remove_dir(inner);
    }
}

/// Returns the path of a process's version 2 group, from the top of the hierarchy.
#[track_caller]
pub fn group_of(pid: Pid) -> PathBuf {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("the process lives");
    PathBuf::from(text.lines().find_map(|line| line.strip_prefix("0::")).expect("version 2"))
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.path.join("freezer.state").exists() || self.second_version {
            self.set_frozen(false);
        }
        becomes_true(DEADLINE, || {
            clear(&self.path);
            for member in self.members() {
                let _ = fs::write(self.home.join("cgroup.procs"), member);
            }
            fs::remove_dir(&self.path).is_ok()
        });
    }
}
