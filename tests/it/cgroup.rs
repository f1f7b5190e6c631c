//! Control groups of a test's own, where the machine allows: of version 1 or 2, by root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::id;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::unistd::Pid;
use rustix::fs::{XattrFlags, setxattr};

use crate::launch::Launch;
use crate::proc::{becomes_true, wait_until};
use crate::support::DEADLINE;

/// Where the hierarchies are, version 1 and version 2 with that controller.
const TOP: &str = "/sys/fs/cgroup";

/// Where version 2 may be besides: where it has no controllers.
const UNIFIED: &str = "/sys/fs/cgroup/unified";

/// What a service manager puts on a group that it hands over.
const MARK: &str = "user.delegate";

/// A control group, which goes when this is dropped: whoever is in it goes back to where the first
/// of them came from.
pub struct Group {
    path: PathBuf,
    home: PathBuf,
    second_version: bool,
}

impl Group {
    /// A group under a controller; none, and a line that says why, if the machine allows none.
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

    /// A group of version 2 that a server may be started in, to divide it among its workers if it is
    /// `delegated`; none, and a line that says why, if the machine allows none.
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

    /// A server about to be started in it.
    pub fn launch(&self, flags: &[&str]) -> Launch {
        self.launch_by(&[], flags)
    }

    /// The same by these words.
    pub fn launch_by(&self, words: &[&str], flags: &[&str]) -> Launch {
        let script = format!("echo 0 >{}/cgroup.procs && exec \"$@\"", self.path.display());
        let program = env!("CARGO_BIN_EXE_ostler");
        Launch::by(&[&["sh", "-c", &script, "sh"], words, &[program]].concat(), flags)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of the groups in it, in order.
    pub fn inner(&self) -> Vec<String> {
        let folders = inner(&self.path).into_iter();
        let mut names: Vec<_> =
            folders.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }

    /// Whether its memory can be bounded.
    pub fn bounds_memory(&self) -> bool {
        self.path.join(self.memory_limit()).exists()
    }

    /// Puts a process into it, with all its threads.
    #[track_caller]
    pub fn take(&self, pid: Pid) {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    /// Freezes everybody in it.
    #[track_caller]
    pub fn freeze(&self) {
        self.set_frozen(true);
        wait_until("the group is frozen", || self.is_frozen());
    }

    /// Lets everybody in it go on.
    #[track_caller]
    pub fn thaw(&self) {
        self.set_frozen(false);
        wait_until("the group has thawed", || !self.is_frozen());
    }

    /// Bounds the memory of all in it together.
    #[track_caller]
    pub fn limit_memory(&self, bytes: u64) {
        fs::write(self.path.join(self.memory_limit()), bytes.to_string()).unwrap();
    }

    /// Lets all in it together run for so many microseconds of each period, as long as that is.
    #[track_caller]
    pub fn limit_cpu(&self, quota: u32, period: u32) {
        if self.second_version {
            fs::write(self.path.join("cpu.max"), format!("{quota} {period}")).unwrap();
        } else {
            fs::write(self.path.join("cpu.cfs_period_us"), period.to_string()).unwrap();
            fs::write(self.path.join("cpu.cfs_quota_us"), quota.to_string()).unwrap();
        }
    }

    /// Lets all in it run as they like.
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

/// The groups in a group.
fn inner(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// Kills whoever is in groups in this one, and removes those.
fn clear(group: &Path) {
    for inner in inner(group) {
        let _ = fs::write(inner.join("cgroup.kill"), "1");
        clear(&inner);
        let _ = fs::remove_dir(inner);
    }
}

/// The path of the group of version 2 that a process is in, from the top of the hierarchy.
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
