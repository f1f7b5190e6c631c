//! The control groups of other processes, of either version: whether they are frozen, throttled,
//! short of memory (Linux). Where there are none, nothing is known.

use std::ffi::{CStr, CString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat};

use super::leaf;
use super::process::Pid;

/// Where the hierarchies are mounted.
#[derive(Debug, Default)]
pub(crate) struct Cgroups {
    mounts: Vec<Mount>,
}

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    /// The controllers of a hierarchy of version 1; none for version 2, which has one for all.
    controllers: Vec<String>,
    /// The group that can be seen at the mount point.
    root: String,
    point: PathBuf,
}

impl Cgroups {
    /// Looks where they are mounted.
    pub(crate) fn find() -> Self {
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self { mounts: text.lines().filter_map(mount).collect() }
    }

    /// Whether a process is frozen.
    pub(crate) fn is_frozen(&self, pid: Pid) -> bool {
        let first = self.group(pid, "freezer").is_some_and(|group| {
            fs::read_to_string(group.path.join("freezer.state"))
                .is_ok_and(|state| state.trim() != "THAWED")
        });
        let second =
            || self.group(pid, "").and_then(|g| number(&g.path.join("cgroup.events"), "frozen"));
        first || second() == Some(1)
    }

    /// How often a process's groups have been denied the CPU; `None` if that is not counted.
    pub(crate) fn throttled(&self, pid: Pid) -> Option<u64> {
        let group = self.cpu_group(pid)?;
        let counts = group.line().filter_map(|at| number(&at.join("cpu.stat"), "nr_throttled"));
        counts.reduce(u64::saturating_add)
    }

    /// The longest of the periods for which a process's groups are given a share of CPU; `None` if
    /// none of them is bounded.
    pub(crate) fn cpu_period(&self, pid: Pid) -> Option<Duration> {
        self.cpu_group(pid)?.line().filter_map(cpu_period).max()
    }

    /// The group that says how much CPU a process may have.
    fn cpu_group(&self, pid: Pid) -> Option<Group<'_>> {
        self.group(pid, "cpu").or_else(|| self.group(pid, ""))
    }

    /// The file that counts how often the kernel has killed somebody in a process's group for lack
    /// of memory. See [`kills_for_memory`].
    pub(crate) fn memory_events(&self, pid: Pid) -> Option<PathBuf> {
        let first = self.group(pid, "memory").map(|group| group.path.join("memory.oom_control"));
        first.or_else(|| self.group(pid, "")?.nearest("memory.events"))
    }

    /// The group of this process, of version 2, if whoever manages it has said that it is for this
    /// process to divide, and if it can be.
    pub(crate) fn delegated(&self) -> Option<PathBuf> {
        let group = self.group(Pid::this(), "")?.path;
        let is_ours = MARKS.iter().any(|mark| is_marked(&group, mark));
        // It may not be what can be seen at that path, and it may be one that cannot be divided.
        let is_here = || leaf::direct_members(&group).contains(&Pid::this());
        (is_ours && is_here() && is_writable(&group)).then_some(group)
    }

    /// The group of a process in the hierarchy of a controller; in that of version 2 if it is empty.
    fn group(&self, pid: Pid, controller: &str) -> Option<Group<'_>> {
        let is_meant = |mount: &&Mount| match controller {
            "" => mount.controllers.is_empty(),
            _ => mount.controllers.iter().any(|known| known == controller),
        };
        let mount = self.mounts.iter().find(is_meant)?;
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let path = text.lines().find_map(|line| group_in(line, controller))?;
        let below = path.strip_prefix(&mount.root).unwrap_or(path).trim_start_matches('/');
        Some(Group { path: mount.point.join(below), top: &mount.point })
    }
}

struct Group<'a> {
    path: PathBuf,
    top: &'a Path,
}

impl Group<'_> {
    /// It and those that it lies in, as far as they can be seen.
    fn line(&self) -> impl Iterator<Item = &Path> {
        self.path.ancestors().take_while(|path| path.starts_with(self.top))
    }

    /// The file of that name that speaks for the group: a group without the controller has none, and
    /// is a part of the one above.
    fn nearest(&self, name: &str) -> Option<PathBuf> {
        self.line().map(|at| at.join(name)).find(|file| file.exists())
    }
}

/// The attributes by which a service manager says that a group has been handed over: systemd sets
/// them for `Delegate=yes`. Any user may read the second, from its version 251 on.
const MARKS: [&CStr; 2] = [c"trusted.delegate", c"user.delegate"];

/// Whether a file has an attribute that says yes.
fn is_marked(path: &Path, attribute: &CStr) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    let mut value = [0_u8; 8];
    let (place, room) = (value.as_mut_ptr().cast(), value.len());
    // SAFETY: both names end in NUL, `place` has `room` bytes, and all outlive the call.
    let length = unsafe { libc::getxattr(path.as_ptr(), attribute.as_ptr(), place, room) };
    usize::try_from(length).is_ok_and(|length| value.get(..length) == Some(b"1"))
}

/// Whether groups can be made in a group, and processes moved out of it.
fn is_writable(group: &Path) -> bool {
    let can =
        |path: &Path| faccessat(AT_FDCWD, path, AccessFlags::W_OK, AtFlags::AT_EACCESS).is_ok();
    can(group) && can(&group.join("cgroup.procs"))
}

/// The longest that the kernel takes.
const CPU_PERIOD_MAX: Duration = Duration::from_secs(1);

/// The period of a group whose CPU is bounded.
fn cpu_period(group: &Path) -> Option<Duration> {
    let read = |name| fs::read_to_string(group.join(name)).ok();
    let both = read("cpu.max")
        .or_else(|| Some(format!("{} {}", read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?)));
    bounded_period(&both?)
}

/// Of a quota and a period in microseconds. The quota is `max` or -1 if there is no bound.
fn bounded_period(text: &str) -> Option<Duration> {
    let mut words = text.split_whitespace();
    let _quota: u64 = words.next()?.parse().ok()?;
    let period = Duration::from_micros(words.next()?.parse().ok()?);
    Some(period.min(CPU_PERIOD_MAX))
}

/// How often the kernel has killed for lack of memory, by a file of [`Cgroups::memory_events`].
pub(crate) fn kills_for_memory(file: &Path) -> Option<u64> {
    number(file, "oom_kill")
}

/// The number behind a word, in a file of lines of a word and a number.
fn number(file: &Path, word: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' '))?;
    value.trim().parse().ok()
}

/// A line of mountinfo, if it is about control groups: see proc_pid_mountinfo(5).
fn mount(line: &str) -> Option<Mount> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ').skip(3);
    let (root, point) = (front.next()?.to_owned(), PathBuf::from(front.next()?));
    let mut back = back.split(' ');
    let controllers = match back.next()? {
        "cgroup" => back.nth(1)?.split(',').map(str::to_owned).collect(),
        "cgroup2" => Vec::new(),
        _ => return None,
    };
    Some(Mount { controllers, root, point })
}

/// The path in a line of /proc/PID/cgroup, if it is about this controller: see cgroups(7).
fn group_in<'a>(line: &'a str, controller: &str) -> Option<&'a str> {
    let mut fields = line.splitn(3, ':');
    let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let is_meant = match controller {
        "" => number == "0" && controllers.is_empty(),
        _ => controllers.split(',').any(|known| known == controller),
    };
    is_meant.then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_both_versions_are_found() {
        let first = "31 24 0:27 /docker/7 /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup \
                     rw,cpu,cpuacct";
        let found = mount(first).unwrap();
        assert!(found.controllers.iter().any(|controller| controller == "cpu"));
        assert_eq!(found.root, "/docker/7");
        assert_eq!(found.point, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        let second = mount("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw").unwrap();
        assert_eq!((second.controllers.len(), second.root.as_str()), (0, "/"));
        assert_eq!(mount("22 1 8:1 / / rw - ext4 /dev/sda1 rw"), None);
        assert_eq!(mount("nonsense"), None);
    }

    #[test]
    fn only_a_bounded_group_has_a_period() {
        for unbounded in ["max 100000\n", "-1\n 100000\n", "max", "", "1000"] {
            assert_eq!(bounded_period(unbounded), None);
        }
        for bounded in ["1000 100000\n", "1000\n 100000\n"] {
            assert_eq!(bounded_period(bounded), Some(Duration::from_millis(100)));
        }
        assert_eq!(bounded_period("1000 9000000"), Some(CPU_PERIOD_MAX));
    }

    #[test]
    fn the_group_of_a_controller_is_found() {
        assert_eq!(group_in("4:memory:/a/b", "memory"), Some("/a/b"));
        assert_eq!(group_in("2:cpu,cpuacct:/a:b", "cpu"), Some("/a:b"));
        assert_eq!(group_in("2:cpu,cpuacct:/a", "memory"), None);
        assert_eq!(group_in("0::/user.slice", ""), Some("/user.slice"));
        assert_eq!(group_in("9:name=systemd:/", ""), None);
    }

    #[test]
    fn a_group_without_a_controller_is_a_part_of_the_one_above() {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path().join("top");
        let leaf = top.join("service/leaf");
        fs::create_dir_all(&leaf).unwrap();
        let group = Group { path: leaf.clone(), top: &top };
        // What lies above the hierarchy is none of it.
        fs::write(folder.path().join("memory.events"), "oom_kill 9\n").unwrap();
        assert_eq!(group.nearest("memory.events"), None);
        for (above, kills) in [(&top, 2), (&top.join("service"), 1), (&leaf, 0)] {
            let file = above.join("memory.events");
            fs::write(&file, format!("low 0\noom 7\noom_kill {kills}\n")).unwrap();
            assert_eq!(group.nearest("memory.events").as_deref(), Some(file.as_path()));
            assert_eq!(kills_for_memory(&file), Some(kills));
        }
    }

    #[test]
    fn what_nobody_has_marked_is_not_ours() {
        let folder = tempfile::tempdir().unwrap();
        assert!(MARKS.iter().all(|mark| !is_marked(folder.path(), mark)));
        assert!(!is_writable(folder.path()), "a folder is no group");
    }
}
