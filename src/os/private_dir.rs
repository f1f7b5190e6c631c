//! A directory that only one user can enter, with one known entry.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, mkdtemp, unlinkat};

use super::file::{self, FileId};
use super::pid::Pid;

/// The end of the path of each such directory, after its parent. mkdtemp(3) replaces the X.
const NAME: &str = "ostler-XXXXXX";

/// A directory of mode 0700. Dropping it in the process that has created it removes it with its
/// entry.
#[derive(Debug)]
pub(crate) struct PrivateDir {
    path: PathBuf,
    entry: &'static str,
    id: FileId,
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
        let path = mkdtemp(&std::path::absolute(parent)?.join(NAME))?;
        let made = open_dir(&path).and_then(|dir| {
            if user.is_some() || group.is_some() {
                file::chown(dir.as_fd(), user, group)?;
            }
            file::id(dir.as_raw_fd())
        });
        match made {
            Ok(id) => Ok(Self { path, entry, id, creator: Pid::this() }),
            Err(error) => {
                let _ = std::fs::remove_dir(&path); // the first error says more
                Err(error)
            }
        }
    }

    /// Returns the path of its entry.
    pub(crate) fn entry_path(&self) -> PathBuf {
        self.path.join(self.entry)
    }

    /// Returns how long the path of an entry is, in bytes.
    pub(crate) fn entry_path_len(parent: &Path, entry: &str) -> io::Result<usize> {
        Ok(std::path::absolute(parent)?.join(NAME).join(entry).as_os_str().len())
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        if self.creator == Pid::this() {
            // The user of the directory may have moved it and put another one in its place.
            let dir = open_dir(&self.path);
            if let Ok(dir) = dir
                && file::id(dir.as_raw_fd()).is_ok_and(|id| id == self.id)
            {
                let _ = unlinkat(&dir, self.entry, UnlinkatFlags::NoRemoveDir);
                remove_empty(&self.path);
            }
        }
    }
}

/// Removes an entry and its directory, as far as this process may.
pub(crate) fn remove_with_entry(entry: &Path) {
    let _ = std::fs::remove_file(entry);
    if let Some(dir) = entry.parent() {
        remove_empty(dir);
    }
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
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

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
    fn create_in_missing_parent_fails() {
        let created = PrivateDir::create(Path::new("/nonexistent"), "entry", None, None);
        assert_eq!(created.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
