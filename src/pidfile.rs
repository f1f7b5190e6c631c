//! The pid file: locked, replaced atomically, never written through a symbolic link.
//!
//! Other users may read it, so they can lock it for reading. Only a lock for writing marks it as in use.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::os::claim::{self, Claim};
use crate::os::credentials;
use crate::os::file;
use crate::os::process::Pid;

/// The suffix of the path while another master has the pid file itself.
const UPGRADE_SUFFIX: &str = ".2";

/// The suffix of the path before the file is complete.
const TEMPORARY_SUFFIX: &str = ".tmp";

/// The mode of a pid file, less the umask: other users may read it.
const MODE: u32 = 0o644;

/// A pid file of this process. The lock ends with the process; [`PidFile::remove`] removes the
/// file.
#[derive(Debug)]
pub(crate) struct PidFile {
    path: PathBuf,
    file: File,
}

/// Why a pid file cannot be created.
#[derive(Debug)]
pub(crate) enum PidFileError {
    /// Another process holds its lock: `owner`, if its pid is known.
    Held { path: PathBuf, owner: Option<i32> },
    /// The path leads to a directory, a symbolic link, or another file that is not regular.
    NotAFile(PathBuf),
    /// The file before it is complete belongs to another user.
    Foreign(PathBuf),
    /// The file cannot be read, written or locked.
    Io { path: PathBuf, source: io::Error },
}

impl fmt::Display for PidFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held { path, owner: Some(pid) } => {
                write!(f, "pid file {}: already running as process {pid}", path.display())
            }
            Self::Held { path, owner: None } => {
                write!(f, "pid file {}: locked by another process", path.display())
            }
            Self::NotAFile(path) => {
                write!(f, "pid file {}: not a regular file", path.display())
            }
            Self::Foreign(path) => {
                write!(f, "pid file {}: belongs to another user", path.display())
            }
            Self::Io { path, .. } => write!(f, "failed to write pid file {}", path.display()),
        }
    }
}

impl std::error::Error for PidFileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Held { .. } | Self::NotAFile(_) | Self::Foreign(_) => None,
        }
    }
}

impl PidFileError {
    /// Whether another program has created the file meanwhile.
    fn is_already_there(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::AlreadyExists)
    }
}

impl PidFile {
    /// Writes this process's pid at `path`. Takes over a file whose owner has exited, whatever its
    /// contents, and whichever process has locked it for reading.
    ///
    /// # Errors
    /// Another process has locked the file for writing; it is not a regular file; the directory is
    /// missing, full or read-only.
    pub(crate) fn create(path: &Path) -> Result<Self, PidFileError> {
        let failed = |source| PidFileError::Io { path: path.to_path_buf(), source };
        let mut name = path.as_os_str().to_owned();
        name.push(TEMPORARY_SUFFIX);
        let temporary = PathBuf::from(name);
        loop {
            let Some(file) = claim(&temporary)? else { continue };
            // Until it is renamed, its lock keeps other masters from doing the same.
            let renamed = write_pid(&file).map_err(failed).and_then(|()| match find_stale(path)? {
                true => fs::rename(&temporary, path).map_err(failed),
                false => file::rename_noreplace(&temporary, path).map_err(failed),
            });
            match renamed {
                Ok(()) => {
                    // A file system without modes refuses it.
                    let _ = file.set_permissions(Permissions::from_mode(credentials::masked(MODE)));
                    return Ok(Self { path: path.to_path_buf(), file });
                }
                Err(error) => {
                    let _ = fs::remove_file(&temporary);
                    if !error.is_already_there() {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Returns whether no process holds the pid file at `path`. If that cannot be found out, one may.
    pub(crate) fn is_free(path: &Path) -> bool {
        find_stale(path).is_ok()
    }

    /// Writes this process's pid at `path` with the suffix `.2`, until [`promote`](Self::promote).
    ///
    /// # Errors
    /// Those of [`create`](Self::create).
    pub(crate) fn create_for_upgrade(path: &Path) -> Result<Self, PidFileError> {
        let mut upgrade_path = path.as_os_str().to_owned();
        upgrade_path.push(UPGRADE_SUFFIX);
        Self::create(Path::new(&upgrade_path))
    }

    /// Renames the file to the path without `.2`, whose owner has exited. Does nothing if the path
    /// has no such suffix.
    ///
    /// # Errors
    /// From rename(2).
    pub(crate) fn promote(&mut self) -> io::Result<()> {
        let name = self.path.as_os_str().as_encoded_bytes();
        let Some(first) = name.strip_suffix(UPGRADE_SUFFIX.as_bytes()) else { return Ok(()) };
        let first = PathBuf::from(OsStr::from_bytes(first));
        fs::rename(&self.path, &first)?;
        self.path = first;
        Ok(())
    }

    /// Removes the file, if the path still leads to it.
    pub(crate) fn remove(self) {
        let ours = self.file.metadata().map(|m| (m.dev(), m.ino()));
        let current = fs::symlink_metadata(&self.path).map(|m| (m.dev(), m.ino()));
        if let (Ok(ours), Ok(current)) = (ours, current)
            && ours == current
        {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Claims the path of a file that is not complete yet. Returns `None` if the path no longer leads to it.
fn claim(path: &Path) -> Result<Option<File>, PidFileError> {
    let path_buf = || path.to_path_buf();
    match claim::claim(path).map_err(|source| PidFileError::Io { path: path_buf(), source })? {
        Claim::Taken(file) => Ok(Some(file)),
        Claim::Gone => Ok(None),
        Claim::Held(file, owner) => {
            let owner = owner.or_else(|| read_pid(&file));
            Err(PidFileError::Held { path: path_buf(), owner })
        }
        Claim::Foreign => Err(PidFileError::Foreign(path_buf())),
        Claim::NotAFile => Err(PidFileError::NotAFile(path_buf())),
    }
}

/// Returns whether there is a pid file whose owner has exited.
fn find_stale(path: &Path) -> Result<bool, PidFileError> {
    let failed = |source| PidFileError::Io { path: path.to_path_buf(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.is_file() => return Err(PidFileError::NotAFile(path.to_path_buf())),
        Ok(_) => (),
    }
    let opened = OpenOptions::new().read(true).write(true).custom_flags(file::NOFOLLOW).open(path);
    let found = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed(error)),
    };
    match file::write_lock(&found).map_err(failed)? {
        None => Ok(true),
        Some(owner) => {
            let owner = owner.or_else(|| read_pid(&found));
            Err(PidFileError::Held { path: path.to_path_buf(), owner })
        }
    }
}

fn read_pid(mut file: &File) -> Option<i32> {
    let mut text = String::new();
    Read::by_ref(&mut file).take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn write_pid(mut file: &File) -> io::Result<()> {
    file.set_len(0)?;
    writeln!(file, "{}", Pid::this())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_pid_file_is_replaced_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pid");
        for stale in [None, Some(""), Some("garbage"), Some("1\n"), Some("999999999\n")] {
            if let Some(text) = stale {
                fs::write(&path, text).unwrap();
                fs::write(dir.path().join("x.pid.tmp"), text).unwrap();
            }
            let file = PidFile::create(&path).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", Pid::this()));
            file.remove();
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{stale:?}");
        }
    }

    #[test]
    fn create_over_symlink_or_dir_fails() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("precious");
        fs::write(&target, "precious").unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(matches!(PidFile::create(&link), Err(PidFileError::NotAFile(_))));
        assert!(matches!(PidFile::create(dir.path()), Err(PidFileError::NotAFile(_))));
        let path = dir.path().join("x.pid");
        let temporary = dir.path().join("x.pid.tmp");
        fs::rename(&link, &temporary).unwrap();
        assert!(PidFile::create(&path).is_err());
        fs::remove_file(&temporary).unwrap();
        fs::hard_link(&target, &temporary).unwrap();
        assert!(matches!(PidFile::create(&path), Err(PidFileError::NotAFile(_))));
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
    }

    #[test]
    fn temporary_file_of_another_user_is_named_or_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (path, temporary) = (dir.path().join("x.pid"), dir.path().join("x.pid.tmp"));
        let error = PidFileError::Foreign(temporary.clone());
        assert!(error.to_string().ends_with("x.pid.tmp: belongs to another user"), "{error}");
        if credentials::effective_uid() != 0 {
            return; // only root has other users
        }
        fs::write(&temporary, "7\n").unwrap();
        std::os::unix::fs::chown(&temporary, Some(65534), Some(65534)).unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o1777)).unwrap();
        let file = PidFile::create(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", Pid::this()));
        assert_eq!(fs::metadata(&path).unwrap().uid(), 0);
        file.remove();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn replaced_pid_file_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pid");
        let file = PidFile::create(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "7\n").unwrap();
        file.remove();
        assert_eq!(fs::read_to_string(&path).unwrap(), "7\n");
    }
}
