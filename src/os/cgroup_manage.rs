//! Control groups of version 2 that are ours to make: entered, ended, removed (Linux). Where there
//! are none, everything here fails or does nothing.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::process::{self, Pid};

/// How often it is tried to enter a group that goes in the same moment.
const ENTER_ATTEMPTS_MAX: usize = 5;

/// So many groups, one inside another, are gone through at once: no path can name one that lies
/// deeper.
const GROUPS_MAX: usize = 2048;

/// How often those are looked for who have come while the others were killed.
const KILL_ROUNDS_MAX: usize = 100;

/// Makes a group, unless it is there, and moves this process into it.
///
/// # Errors
/// No right to make it, no right to move, no room (`cgroup.max.descendants`), and whatever else
/// mkdir(2) and the kernel say.
pub(crate) fn enter(group: &Path) -> io::Result<()> {
    for _ in 1..ENTER_ATTEMPTS_MAX {
        match try_to_enter(group) {
            // Between the two steps it is empty, and may be taken for one that was left behind.
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

/// Whether an error says that the group is there no more.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

/// Kills whoever is in a group, and in groups inside it. It does not wait for them to die.
pub(crate) fn kill(group: &Path) {
    if write(group, "cgroup.kill", "1").is_err() {
        kill_members(group);
    }
}

/// The same for a kernel that cannot do it at once (before 5.14). Who has left by itself meanwhile
/// may have passed on its number.
fn kill_members(group: &Path) {
    let mut killed = HashSet::new();
    for _ in 0..KILL_ROUNDS_MAX {
        let mut fresh = members(group);
        fresh.retain(|pid| pid.as_raw() > 0 && killed.insert(*pid));
        if fresh.is_empty() {
            return;
        }
        fresh.into_iter().for_each(process::send_sigkill);
    }
}

/// Removes a group, and before it those inside it.
///
/// # Errors
/// `EBUSY` while somebody is in it; `EACCES` or `EPERM` for somebody else's.
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

/// Why a group cannot be removed now.
pub(crate) fn busy_error() -> io::Error {
    io::Error::from_raw_os_error(libc::EBUSY)
}

/// Whether an error of [`remove`] may pass.
pub(crate) fn is_transient(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBUSY)
}

/// Who is in a group, and in groups inside it; 0 for each who cannot be named from here.
pub(crate) fn members(group: &Path) -> Vec<Pid> {
    subtree(group).iter().flat_map(|group| direct_members(group)).collect()
}

/// Who is in this very group, and not in one inside it. Who is a zombie has left.
pub(crate) fn direct_members(group: &Path) -> Vec<Pid> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).map(Pid::from_raw).collect()
}

/// The names of the groups in a group.
pub(crate) fn child_names(group: &Path) -> Vec<String> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    let groups = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    groups.filter_map(|entry| entry.file_name().into_string().ok()).take(GROUPS_MAX).collect()
}

/// A group and those inside it, each before those that it holds. If there are too many it begins with
/// some that hold none.
fn subtree(group: &Path) -> Vec<PathBuf> {
    let (mut groups, mut pending) = (Vec::new(), vec![group.to_owned()]);
    while let Some(next) = pending.pop().filter(|_| groups.len() < GROUPS_MAX) {
        pending.extend(child_names(&next).into_iter().map(|name| next.join(name)));
        groups.push(next);
    }
    groups
}

/// Writes a word into a file of a group. Never makes one, which the kernel refuses in its own way.
fn write(group: &Path, name: &str, word: &str) -> io::Result<()> {
    File::options().write(true).open(group.join(name))?.write_all(word.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};
    use std::thread;
    use std::time::{Duration, Instant};

    /// A group in which there is a process, and another inside it in which there is one. None where
    /// the machine allows none.
    struct TestCgroup {
        group: PathBuf,
        sleepers: Vec<Child>,
    }

    impl TestCgroup {
        fn new(name: &str) -> Option<Self> {
            let scene = Self::try_new(name);
            if scene.is_none() {
                let _ =
                    writeln!(io::stderr(), "skipped: no control groups of version 2 of our own");
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
        assert!(members(&scene.group).len() == 2, "nobody was disturbed");
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
