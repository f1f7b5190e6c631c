//! A directory that only one user can enter, with one known entry.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{UnlinkatFlags, mkdtemp, unlinkat};

use super::pid::Pid;
use super::{credentials, file};

/// The end of the path of each such directory, after its parent. mkdtemp(3) replaces the X.
const NAME: &str = "ostler-notify-XXXXXX";

/// How often a new directory is created if other processes remove it before it is locked.
const TRIES_MAX: u32 = 100;
/// How many entries of a parent are searched for directories that were left behind.
const SEARCHED_MAX: usize = 4096;

/// A directory of mode 0700. Dropping it in the process that has created it removes it with its
/// entry. As long as that process or a child with the descriptor lives, it is locked (flock(2)).
#[derive(Debug)]
pub(crate) struct PrivateDir {
    path: PathBuf,
    entry: &'static str,
    dir: OwnedFd,
    creator: Pid,
}

impl PrivateDir {
    /// Creates a directory in `parent`, for one `entry`, and gives it to a user and a group.
    ///
    /// # Errors
    /// `parent` is missing, full or read-only; `EPERM` without the privilege to change the owner.
    pub(crate) fn create(
        parent: &Path,
        entry: &'static str,
        user: Option<u32>,
        group: Option<u32>,
    ) -> io::Result<Self> {
        let parent = std::path::absolute(parent)?;
        let mut tries = 0;
        loop {
            tries += 1;
            let path = mkdtemp(&parent.join(NAME))?;
            match claim(&path, user, group) {
                Ok(Some(dir)) => return Ok(Self { path, entry, dir, creator: Pid::this() }),
                Ok(None) if tries < TRIES_MAX => (), // there is another name
                outcome => {
                    let _ = fs::remove_dir(&path); // the first error says more
                    let lost = || io::Error::other("other processes remove it each time");
                    return Err(outcome.err().unwrap_or_else(lost));
                }
            }
        }
    }

    /// Returns the path of its entry.
    pub(crate) fn entry_path(&self) -> PathBuf {
        self.path.join(self.entry)
    }

    /// Returns the descriptor that keeps it locked.
    pub(crate) fn raw_fd(&self) -> RawFd {
        self.dir.as_raw_fd()
    }

    /// Returns how long the path of an entry is, in bytes.
    pub(crate) fn entry_path_len(parent: &Path, entry: &str) -> io::Result<usize> {
        Ok(std::path::absolute(parent)?.join(NAME).join(entry).as_os_str().len())
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        if self.creator == Pid::this() {
            // The user of the directory may have moved it and put another one in its place, or have
            // mounted a file system there that never answers.
            if is_still_at(&self.path, &self.dir) {
                let _ = unlinkat(&self.dir, self.entry, UnlinkatFlags::NoRemoveDir);
                remove_empty(&self.path);
            }
        }
    }
}

/// Removes the directories of this process's user and of `user` whose processes were all killed
/// before they could remove them: none holds the lock. Before Linux 5.6 it does nothing.
pub(crate) fn remove_stale(parent: &Path, entry: &str, user: Option<u32>) {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let Ok(parent_dir) = open(parent, flags, Mode::empty()) else { return };
    let Ok(entries) = fs::read_dir(parent) else { return };
    let names = entries.take(SEARCHED_MAX).filter_map(|entry| Some(entry.ok()?.file_name()));
    for name in names.filter(|name| is_name(name)) {
        if let Some(dir) = open_stale(&parent_dir, &name, user) {
            let _ = unlinkat(&dir, entry, UnlinkatFlags::NoRemoveDir);
            let _ = unlinkat(&parent_dir, name.as_os_str(), UnlinkatFlags::RemoveDir);
        }
    }
}

fn is_name(name: &OsStr) -> bool {
    name.len() == NAME.len() && name.as_bytes().starts_with(NAME.trim_end_matches('X').as_bytes())
}

/// Opens and locks a directory, if it is one of these users and no process holds its lock.
fn open_stale(parent: &OwnedFd, name: &OsStr, user: Option<u32>) -> Option<OwnedFd> {
    let dir = open_in(parent, name).ok()?;
    let status = fstat(&dir).ok()?;
    let is_own = [Some(credentials::effective_uid()), user].contains(&Some(status.st_uid));
    (is_own && status.st_mode & 0o7777 == 0o700 && lock(&dir).is_ok()).then_some(dir)
}

/// Opens a directory in another one. Never waits for another file system that was mounted on it (Linux 5.6;
/// before, it is an error).
fn open_in(parent: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS);
    Ok(openat2(parent, name, how)?)
}

/// Locks a directory until all copies of the descriptor are closed. Never waits.
fn lock(dir: &OwnedFd) -> io::Result<()> {
    // SAFETY: the descriptor is open, and flock(2) has no other argument.
    super::check(unsafe { libc::flock(dir.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) })?;
    Ok(())
}

/// Removes an entry and its directory, as far as this process may.
pub(crate) fn remove_with_entry(entry: &Path) {
    let _ = fs::remove_file(entry);
    if let Some(dir) = entry.parent() {
        remove_empty(dir);
    }
}

/// Opens and locks a new directory, and gives it to a user and a group. Returns `None` if [`remove_stale`] of
/// another process takes it for one that was left behind, before it is locked.
fn claim(path: &Path, user: Option<u32>, group: Option<u32>) -> io::Result<Option<OwnedFd>> {
    let is_lost = |error: &io::Error| {
        matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::WouldBlock)
    };
    let dir = match open_dir(path) {
        Ok(dir) => dir,
        Err(error) if is_lost(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    match lock(&dir) {
        Err(error) if is_lost(&error) => return Ok(None),
        Ok(()) | Err(_) => (), // a file system without locks
    }
    if !is_at(path, &dir) {
        return Ok(None); // it was removed, and its lock released
    }
    if user.is_some() || group.is_some() {
        file::chown(dir.as_fd(), user, group)?;
    }
    Ok(Some(dir))
}

/// Returns whether a path leads to a directory, on the file system of its parent. Never waits for another
/// one, as far as the kernel can avoid that (Linux 5.6).
fn is_still_at(path: &Path, dir: &OwnedFd) -> bool {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return false };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let Ok(parent) = open(parent, flags, Mode::empty()) else { return false };
    let id = |dir: &OwnedFd| file::id(dir.as_raw_fd()).ok();
    match open_in(&parent, name) {
        Ok(found) => id(&found) == id(dir),
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => is_at(path, dir),
        Err(_) => false,
    }
}

/// Returns whether a path leads to a directory.
fn is_at(path: &Path, dir: &OwnedFd) -> bool {
    let id = |dir: &OwnedFd| file::id(dir.as_raw_fd()).ok();
    open_dir(path).is_ok_and(|found| id(&found) == id(dir))
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(open(path, flags, Mode::empty())?)
}

/// Removes a directory. It stays if it has other entries: they are not Ostler's.
fn remove_empty(dir: &Path) {
    let _ = unlinkat(AT_FDCWD, dir, UnlinkatFlags::RemoveDir);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    fn entries(dir: &Path) -> usize {
        fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn private_dir_is_removed_with_its_entry() {
        let parent = tempfile::tempdir().unwrap();
        let dir = PrivateDir::create(parent.path(), "entry", None, None).unwrap();
        let path = dir.entry_path();
        let length = PrivateDir::entry_path_len(parent.path(), "entry").unwrap();
        assert_eq!(path.as_os_str().len(), length);
        let mode = fs::metadata(path.parent().unwrap()).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o700);
        fs::write(&path, "").unwrap();
        drop(dir);
        assert_eq!(entries(parent.path()), 0);
    }

    #[test]
    fn new_dir_is_not_taken_for_one_left_behind() {
        let parent = tempfile::tempdir().unwrap();
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    remove_stale(parent.path(), "entry", None);
                }
            });
            let dirs = (0..3000).map(|_| {
                let dir = PrivateDir::create(parent.path(), "entry", None, None)?;
                fs::write(dir.entry_path(), "")
            });
            let outcome = dirs.collect::<io::Result<()>>();
            is_over.store(true, Ordering::Relaxed);
            outcome.expect("each exists until it is dropped");
        });
    }

    #[test]
    fn drop_of_replaced_dir_removes_nothing_elsewhere() {
        let parent = tempfile::tempdir().unwrap();
        let [moved, other] = ["moved", "other"].map(|name| parent.path().join(name));
        fs::create_dir(&other).unwrap();
        fs::write(other.join("entry"), "").unwrap();
        for replace_by_link in [true, false] {
            let dir = PrivateDir::create(parent.path(), "entry", None, None).unwrap();
            fs::rename(&dir.path, &moved).unwrap();
            let replacement = dir.path.clone();
            if replace_by_link {
                symlink(&other, &replacement).unwrap();
            } else {
                fs::create_dir(&replacement).unwrap();
                fs::write(replacement.join("entry"), "").unwrap();
            }
            drop(dir);
            assert!(other.join("entry").exists() && replacement.join("entry").exists());
            fs::remove_dir(&moved).unwrap();
        }
    }

    #[test]
    fn only_directories_without_lock_are_stale() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path();
        let used = PrivateDir::create(path, "entry", None, None).unwrap();
        let [mut left, mut kept] =
            [(); 2].map(|()| PrivateDir::create(path, "entry", None, None).unwrap());
        for dir in [&used, &left, &kept] {
            fs::write(dir.entry_path(), "").unwrap();
        }
        let other = path.join("other");
        fs::create_dir(&other).unwrap();
        symlink(&other, path.join("ostler-notify-a_link")).unwrap();
        // A copy of the descriptor in another process keeps it locked.
        let copy = kept.dir.try_clone().unwrap();
        // As if their creator had been killed.
        for dir in [&mut left, &mut kept] {
            dir.creator = Pid::from_raw(1);
        }
        drop((left, kept));
        remove_stale(path, "entry", None);
        assert_eq!(entries(path), 4, "used, kept, and the others");
        drop((copy, used));
        remove_stale(path, "entry", None);
        assert_eq!(entries(path), 2);
    }

    #[test]
    fn create_in_missing_parent_fails() {
        let created = PrivateDir::create(Path::new("/nonexistent"), "entry", None, None);
        assert_eq!(created.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
