//! Control groups of version 2 that this program creates, enters, kills and removes (Linux).
//! Without control groups, every function fails or does nothing.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::os::process::{self, Pid};

/// How often to try to enter a group that is removed at the same time.
const ENTER_ATTEMPTS_MAX: usize = 5;

/// How many groups of a subtree are visited at once. No path can name a group that is nested
/// deeper.
const GROUPS_MAX: usize = 2048;

/// How often to look for processes that have joined while others were killed.
const KILL_ROUNDS_MAX: usize = 100;

/// Creates a group, unless it exists, and moves this process into it.
///
/// # Errors
/// `EACCES` or `EPERM`: no right to create it, or to move. `EAGAIN`: `cgroup.max.descendants` is
/// reached. Otherwise from mkdir(2).
pub(crate) fn enter(group: &Path) -> io::Result<()> {
    for _ in 1..ENTER_ATTEMPTS_MAX {
        match try_to_enter(group) {
            // Between the two steps the group is empty, and another process may remove it as an
            // orphan.
            Err(error) if is_missing(&error) => (),
            result => return result,
        }
    }
    try_to_enter(group)
}

fn try_to_enter(group: &Path) -> io::Result<()> {
    match fs::create_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(()) | Err(_) => write(group, "cgroup.procs", "0"),
    }
}

/// Whether an error says that the group does not exist any more.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

/// Kills all processes in a group and in its subgroups. Does not wait for their exit.
pub(crate) fn kill(group: &Path) {
    if write(group, "cgroup.kill", "1").is_err() {
        kill_members(group);
    }
}

/// Kills the members one by one, for kernels without cgroup.kill (before 5.14). The number of a
/// member that has exited meanwhile may have been reused.
fn kill_members(group: &Path) {
    let mut killed = HashSet::new();
    for _ in 0..KILL_ROUNDS_MAX {
        let mut new = members(group);
        new.retain(|pid| pid.as_raw() > 0 && killed.insert(*pid));
        if new.is_empty() {
            return;
        }
        new.into_iter().for_each(process::send_sigkill);
    }
}

/// Removes a group after its subgroups.
///
/// # Errors
/// `EBUSY` while a process is in it; `EACCES` or `EPERM` if it belongs to another user.
pub(crate) fn remove(group: &Path) -> io::Result<()> {
    let mut result = Ok(());
    for each in subtree(group).iter().rev() {
        result = match fs::remove_dir(each) {
            Err(error) if is_missing(&error) => Ok(()),
            other => other,
        };
    }
    result
}

/// Returns the error of [`remove`] for a group that has processes.
pub(crate) fn busy_error() -> io::Error {
    io::Error::from_raw_os_error(libc::EBUSY)
}

/// Whether a later [`remove`] may succeed after this error.
pub(crate) fn is_transient(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBUSY)
}

/// Returns the processes in a group and in its subgroups; 0 for each that is outside this process's
/// PID namespace.
pub(crate) fn members(group: &Path) -> Vec<Pid> {
    subtree(group).iter().flat_map(|group| direct_members(group)).collect()
}

/// Returns the processes in a group itself, without its subgroups and without zombies.
pub(crate) fn direct_members(group: &Path) -> Vec<Pid> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).map(Pid::from_raw).collect()
}

/// Returns the names of a group's direct subgroups.
pub(crate) fn child_names(group: &Path) -> Vec<OsString> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    let groups = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    groups.map(|entry| entry.file_name()).take(GROUPS_MAX).collect()
}

/// Returns a group and its subgroups, each before its own subgroups. The walk is depth first: even
/// if there are more than [`GROUPS_MAX`], the list has groups without subgroups, which can be
/// removed.
fn subtree(group: &Path) -> Vec<PathBuf> {
    let (mut groups, mut pending) = (Vec::new(), vec![group.to_owned()]);
    while let Some(next) = pending.pop().filter(|_| groups.len() < GROUPS_MAX) {
        pending.extend(child_names(&next).into_iter().map(|name| next.join(name)));
        groups.push(next);
    }
    groups
}

/// Writes a value into a file of a group. Never creates the file, which the kernel refuses with
/// another error.
fn write(group: &Path, name: &str, value: &str) -> io::Result<()> {
    File::options().write(true).open(group.join(name))?.write_all(value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};
    use std::thread;
    use std::time::{Duration, Instant};

    /// A group with a process, and a nested group with another process.
    struct TestCgroup {
        group: PathBuf,
        sleepers: Vec<Child>,
    }

    impl TestCgroup {
        /// Returns `None` where the machine allows no groups.
        fn new(name: &str) -> Option<Self> {
            let scene = Self::try_new(name);
            if scene.is_none() {
                let _ = writeln!(
                    io::stderr(),
                    "skipped: no permission to create control groups of version 2"
                );
            }
            scene
        }

        fn try_new(name: &str) -> Option<Self> {
            let tops = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
            let top = tops.into_iter().find(|top| top.join("cgroup.controllers").exists())?;
            let group = top.join(format!("ostler-unit-{name}-{}", std::process::id()));
            fs::create_dir(&group).ok()?;
            let inner = group.join("inner/innermost");
            fs::create_dir_all(&inner).ok()?;
            let sleepers = [&group, &inner].map(|group| {
                let child = Command::new("sleep").arg("1000").spawn().unwrap();
                write(group, "cgroup.procs", &child.id().to_string()).unwrap();
                child
            });
            Some(Self { group, sleepers: sleepers.into() })
        }

        fn pids(&self) -> HashSet<Pid> {
            self.sleepers.iter().map(|child| Pid::from_raw(child.id() as i32)).collect()
        }

        fn expect_all_killed(&mut self) {
            use std::os::unix::process::ExitStatusExt;
            for child in &mut self.sleepers {
                assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
            }
            let end = Instant::now() + Duration::from_secs(20);
            while let Err(error) = remove(&self.group) {
                assert!(is_transient(&error) && Instant::now() < end, "{error}");
                thread::sleep(Duration::from_millis(5));
            }
            assert!(!self.group.exists());
        }
    }

    impl Drop for TestCgroup {
        fn drop(&mut self) {
            for child in &mut self.sleepers {
                let _ = child.kill();
                let _ = child.wait();
            }
            let _ = remove(&self.group);
        }
    }

    #[test]
    fn members_include_nested_groups() {
        let Some(scene) = TestCgroup::new("members") else { return };
        assert_eq!(members(&scene.group).into_iter().collect::<HashSet<_>>(), scene.pids());
        assert_eq!(direct_members(&scene.group).len(), 1);
        assert_eq!(child_names(&scene.group), ["inner"]);
        let error = remove(&scene.group).unwrap_err();
        assert!(is_transient(&error), "{error}");
        assert!(members(&scene.group).len() == 2, "no member was killed");
    }

    #[test]
    fn kill_and_remove_include_nested_groups() {
        let Some(mut scene) = TestCgroup::new("kill") else { return };
        kill(&scene.group);
        scene.expect_all_killed();
    }

    #[test]
    fn kill_without_cgroup_kill_file_kills_all() {
        let Some(mut scene) = TestCgroup::new("kill-each") else { return };
        kill_members(&scene.group);
        scene.expect_all_killed();
    }

    #[test]
    fn remove_of_missing_group_succeeds() {
        let nowhere = Path::new("/sys/fs/cgroup/ostler-unit-nowhere");
        kill(nowhere);
        assert!(remove(nowhere).is_ok() && members(nowhere).is_empty());
    }
}
