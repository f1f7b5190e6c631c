//! The control groups of processes, of version 1 or 2: whether they are frozen, throttled, short of
//! memory (Linux). Without control groups, every question has the answer "unknown".

pub(crate) mod manage;

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat};

use super::pid::Pid;
use super::proc_dir;

/// The mounted hierarchies.
#[derive(Debug, Default)]
pub(crate) struct Cgroups {
    mounts: Vec<Mount>,
}

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    /// The controllers of a hierarchy of version 1; empty for version 2, which has one hierarchy
    /// for all.
    controllers: Vec<String>,
    /// The group that is visible at the mount point.
    root: PathBuf,
    mount_point: PathBuf,
}

impl Cgroups {
    /// Reads where the hierarchies are mounted.
    pub(crate) fn find() -> Self {
        let text = fs::read("/proc/self/mountinfo").unwrap_or_default();
        Self { mounts: text.split(|byte| *byte == b'\n').filter_map(parse_mount).collect() }
    }

    /// Whether a process is frozen.
    pub(crate) fn is_frozen(&self, pid: Pid) -> bool {
        let v1 = self.group_of(pid, "freezer").is_some_and(|group| {
            fs::read_to_string(group.path.join("freezer.state"))
                .is_ok_and(|state| state.trim() != "THAWED")
        });
        let v2 = || {
            self.group_of(pid, "")
                .and_then(|g| read_counter(&g.path.join("cgroup.events"), "frozen"))
        };
        v1 || v2() == Some(1)
    }

    /// Returns how often a process's groups were throttled; `None` if the kernel does not count it.
    pub(crate) fn throttled_count(&self, pid: Pid) -> Option<u64> {
        let group = self.cpu_group(pid)?;
        let counts =
            group.ancestors().filter_map(|at| read_counter(&at.join("cpu.stat"), "nr_throttled"));
        counts.reduce(u64::saturating_add)
    }

    /// Returns the longest CPU period of a process's groups that have a CPU quota; `None` if none
    /// has.
    pub(crate) fn cpu_period(&self, pid: Pid) -> Option<Duration> {
        self.cpu_group(pid)?.ancestors().filter_map(cpu_period).max()
    }

    /// Returns the smallest memory limit of a process's groups in bytes; `None` if none has one.
    pub(crate) fn memory_limit(&self, pid: Pid) -> Option<u64> {
        self.smallest_limit(pid, "memory", ["memory.limit_in_bytes", "memory.max"])
    }

    /// Returns the smallest limit of processes and threads of a process's groups; `None` if none has one.
    pub(crate) fn process_limit(&self, pid: Pid) -> Option<u64> {
        self.smallest_limit(pid, "pids", ["pids.max", "pids.max"])
    }

    /// Returns the smallest number in these files, of version 1 and 2, of a process's groups.
    fn smallest_limit(&self, pid: Pid, controller: &str, files: [&str; 2]) -> Option<u64> {
        let [v1, v2] = files;
        let (group, file) = match self.group_of(pid, controller) {
            Some(group) => (group, v1),
            None => (self.group_of(pid, "")?, v2),
        };
        let read = |at: &Path| fs::read_to_string(at.join(file)).ok()?.trim().parse::<u64>().ok();
        // Version 1 has a large number for no limit.
        group.ancestors().filter_map(read).filter(|limit| *limit < 1 << 60).min()
    }

    /// Returns the group that limits the CPU of a process.
    fn cpu_group(&self, pid: Pid) -> Option<Group<'_>> {
        self.group_of(pid, "cpu").or_else(|| self.group_of(pid, ""))
    }

    /// Returns the file that counts the kernel's OOM kills in a process's group. See
    /// [`oom_kill_count`].
    pub(crate) fn memory_events(&self, pid: Pid) -> Option<PathBuf> {
        let v1 = self.group_of(pid, "memory").map(|group| group.path.join("memory.oom_control"));
        v1.or_else(|| self.group_of(pid, "")?.nearest_file("memory.events"))
    }

    /// Returns the version 2 group of this process, if a service manager has delegated it and this
    /// process may create groups in it.
    pub(crate) fn delegated_group(&self) -> Option<PathBuf> {
        let group = self.group_of(Pid::this(), "")?.path;
        let is_delegated = DELEGATE_XATTRS.iter().any(|name| has_true_xattr(&group, name));
        // That path may show another group, or one in which no group can be created.
        let is_member = || manage::direct_members(&group).contains(&Pid::this());
        (is_delegated && is_member() && is_writable(&group)).then_some(group)
    }

    /// Returns the group of a process in the hierarchy of a controller; in that of version 2 if
    /// `controller` is empty.
    fn group_of(&self, pid: Pid, controller: &str) -> Option<Group<'_>> {
        let has_controller = |mount: &&Mount| match controller {
            "" => mount.controllers.is_empty(),
            _ => mount.controllers.iter().any(|known| known == controller),
        };
        let mount = self.mounts.iter().find(has_controller)?;
        let text = fs::read(proc_dir::dir_of(pid)?.join("cgroup")).ok()?;
        let mut lines = text.split(|byte| *byte == b'\n');
        let path = lines.find_map(|line| parse_cgroup_line(line, controller))?;
        let below = path.strip_prefix(&mount.root).unwrap_or(path);
        let below = below.strip_prefix("/").unwrap_or(below);
        Some(Group { path: mount.mount_point.join(below), mount_point: &mount.mount_point })
    }
}

struct Group<'a> {
    path: PathBuf,
    mount_point: &'a Path,
}

impl Group<'_> {
    /// Returns the group and its visible ancestors, innermost first.
    fn ancestors(&self) -> impl Iterator<Item = &Path> {
        self.path.ancestors().take_while(|path| path.starts_with(self.mount_point))
    }

    /// Returns the file of that name that covers the group. A group without the controller has no
    /// such file, and its nearest ancestor with one counts for it.
    fn nearest_file(&self, name: &str) -> Option<PathBuf> {
        self.ancestors().map(|at| at.join(name)).find(|file| file.exists())
    }
}

/// The attributes by which a service manager marks a delegated group: systemd sets them for
/// `Delegate=yes`. Any user may read the second one, which systemd sets from version 251 on.
const DELEGATE_XATTRS: [&CStr; 2] = [c"trusted.delegate", c"user.delegate"];

/// Whether a file has this attribute with the value `1`.
fn has_true_xattr(path: &Path, attribute: &CStr) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    let mut value = [0_u8; 8];
    let target = value.as_mut_ptr().cast();
    // SAFETY: both names end in NUL, `target` has `value.len()` bytes, and all outlive the call.
    let length = unsafe { libc::getxattr(path.as_ptr(), attribute.as_ptr(), target, value.len()) };
    usize::try_from(length).is_ok_and(|length| value.get(..length) == Some(b"1"))
}

/// Whether this process may create groups in a group, and move processes out of it.
fn is_writable(group: &Path) -> bool {
    let may_write =
        |path: &Path| faccessat(AT_FDCWD, path, AccessFlags::W_OK, AtFlags::AT_EACCESS).is_ok();
    may_write(group) && may_write(&group.join("cgroup.procs"))
}

/// The longest CPU period that the kernel accepts.
const CPU_PERIOD_MAX: Duration = Duration::from_secs(1);

/// Returns the CPU period of a group with a CPU quota.
fn cpu_period(group: &Path) -> Option<Duration> {
    let read = |name| fs::read_to_string(group.join(name)).ok();
    let quota_and_period = read("cpu.max")
        .or_else(|| Some(format!("{} {}", read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?)));
    parse_cpu_period(&quota_and_period?)
}

/// Parses a quota and a period in microseconds. The quota is `max` or -1 if there is none.
fn parse_cpu_period(text: &str) -> Option<Duration> {
    let mut words = text.split_whitespace();
    let _quota: u64 = words.next()?.parse().ok()?;
    let period = Duration::from_micros(words.next()?.parse().ok()?);
    Some(period.min(CPU_PERIOD_MAX))
}

/// Returns how many OOM kills a file of [`Cgroups::memory_events`] counts.
pub(crate) fn oom_kill_count(file: &Path) -> Option<u64> {
    read_counter(file, "oom_kill")
}

/// Returns the number after a key, in a file of lines of a key and a number.
fn read_counter(file: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
    value.trim().parse().ok()
}

/// Parses a line of mountinfo, if it is about control groups: see proc_pid_mountinfo(5). A path may
/// have bytes that are not UTF-8.
fn parse_mount(line: &[u8]) -> Option<Mount> {
    const SEPARATOR: &[u8] = b" - ";
    let middle = line.windows(SEPARATOR.len()).position(|at| at == SEPARATOR)?;
    let mut front = line[..middle].split(|byte| *byte == b' ').skip(3);
    let root = unescape(front.next()?);
    let mount_point = unescape(front.next()?);
    let back = String::from_utf8_lossy(&line[middle + SEPARATOR.len()..]);
    let mut back = back.split(' ');
    let controllers = match back.next()? {
        "cgroup" => back.nth(1)?.split(',').map(str::to_owned).collect(),
        "cgroup2" => Vec::new(),
        _ => return None,
    };
    Some(Mount { controllers, root, mount_point })
}

/// Replaces the octal numbers by which mountinfo shows white space and backslashes, such as `\040`.
fn unescape(path: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            Some(_) | None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Returns the path in a line of /proc/PID/cgroup, if it is about this controller: see cgroups(7).
fn parse_cgroup_line<'a>(line: &'a [u8], controller: &str) -> Option<&'a Path> {
    let mut fields = line.splitn(3, |byte| *byte == b':');
    let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let matches = match controller {
        "" => number == b"0" && controllers.is_empty(),
        _ => controllers.split(|byte| *byte == b',').any(|known| known == controller.as_bytes()),
    };
    matches.then(|| Path::new(OsStr::from_bytes(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_mount_reads_both_versions() {
        let parse_mount = |line: &str| parse_mount(line.as_bytes());
        let first = "31 24 0:27 /docker/7 /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup \
                     rw,cpu,cpuacct";
        let found = parse_mount(first).unwrap();
        assert!(found.controllers.iter().any(|controller| controller == "cpu"));
        assert_eq!(found.root, Path::new("/docker/7"));
        assert_eq!(found.mount_point, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        let second = parse_mount("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw").unwrap();
        assert_eq!((second.controllers.len(), second.root.to_str()), (0, Some("/")));
        assert_eq!(parse_mount("22 1 8:1 / / rw - ext4 /dev/sda1 rw"), None);
        assert_eq!(parse_mount("nonsense"), None);
    }

    #[test]
    fn paths_may_have_any_bytes() {
        let line = b"30 23 0:26 /a\\040\xff /sys/fs\\134\xfe rw - cgroup2 cgroup2 rw";
        let found = parse_mount(line).unwrap();
        assert_eq!(found.root, Path::new(OsStr::from_bytes(b"/a \xff")));
        assert_eq!(found.mount_point, Path::new(OsStr::from_bytes(b"/sys/fs\\\xfe")));
        let path = parse_cgroup_line(b"0::/a \xff/b", "").unwrap();
        assert_eq!(path.strip_prefix(&found.root), Ok(Path::new("b")));
        assert_eq!(unescape(b"a\\04"), Path::new("a\\04"));
    }

    #[test]
    fn cpu_period_without_quota_is_none() {
        for unbounded in ["max 100000\n", "-1\n 100000\n", "max", "", "1000"] {
            assert_eq!(parse_cpu_period(unbounded), None);
        }
        for bounded in ["1000 100000\n", "1000\n 100000\n"] {
            assert_eq!(parse_cpu_period(bounded), Some(Duration::from_millis(100)));
        }
        assert_eq!(parse_cpu_period("1000 9000000"), Some(CPU_PERIOD_MAX));
    }

    #[test]
    fn parse_cgroup_line_finds_controller() {
        let parse_cgroup_line = |line: &'static str, controller| {
            parse_cgroup_line(line.as_bytes(), controller).and_then(Path::to_str)
        };
        assert_eq!(parse_cgroup_line("4:memory:/a/b", "memory"), Some("/a/b"));
        assert_eq!(parse_cgroup_line("2:cpu,cpuacct:/a:b", "cpu"), Some("/a:b"));
        assert_eq!(parse_cgroup_line("2:cpu,cpuacct:/a", "memory"), None);
        assert_eq!(parse_cgroup_line("0::/user.slice", ""), Some("/user.slice"));
        assert_eq!(parse_cgroup_line("9:name=systemd:/", ""), None);
    }

    #[test]
    fn nearest_file_without_controller_is_ancestors() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        let leaf = top.join("service/leaf");
        fs::create_dir_all(&leaf).unwrap();
        let group = Group { path: leaf.clone(), mount_point: &top };
        // A file above the mount point does not count.
        fs::write(dir.path().join("memory.events"), "oom_kill 9\n").unwrap();
        assert_eq!(group.nearest_file("memory.events"), None);
        for (group_dir, kills) in [(&top, 2), (&top.join("service"), 1), (&leaf, 0)] {
            let file = group_dir.join("memory.events");
            fs::write(&file, format!("low 0\noom 7\noom_kill {kills}\n")).unwrap();
            assert_eq!(group.nearest_file("memory.events").as_deref(), Some(file.as_path()));
            assert_eq!(oom_kill_count(&file), Some(kills));
        }
    }

    #[test]
    fn dir_without_xattr_is_not_delegated() {
        let dir = tempfile::tempdir().unwrap();
        assert!(DELEGATE_XATTRS.iter().all(|name| !has_true_xattr(dir.path(), name)));
        assert!(!is_writable(dir.path()), "a plain directory is no group");
    }
}
