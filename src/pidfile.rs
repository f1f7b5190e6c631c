//! The pid file: locked, replaced atomically, never written through a symbolic link.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::os::file::{self, Lock};
use crate::os::process::Pid;

/// The suffix of the path while another master has the pid file itself.
const UPGRADE_SUFFIX: &str = ".2";

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
            Self::Io { path, .. } => write!(f, "failed to write pid file {}", path.display()),
        }
    }
}

impl std::error::Error for PidFileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Held { .. } | Self::NotAFile(_) => None,
        }
    }
}

impl PidFile {
    /// Writes this process's pid at `path`. Takes over a file whose owner has exited, whatever its
    /// contents.
    ///
    /// # Errors
    /// Another process has locked the file; it is not a regular file; the directory is missing,
    /// full or read-only.
    pub(crate) fn create(path: &Path) -> Result<Self, PidFileError> {
        let failed = |source| PidFileError::Io { path: path.to_path_buf(), source };
        loop {
            // Held until the end of this iteration: its lock keeps other processes from taking over
            // too.
            let stale = match open_existing(path)? {
                Existing::Absent => None,
                Existing::Stale(file) => Some(file),
                Existing::Replaced => continue,
            };
            let (temporary, file) = write_temp(path).map_err(failed)?;
            let renamed = match stale {
                Some(_) => fs::rename(&temporary, path),
                None => file::rename_noreplace(&temporary, path),
            };
            match renamed {
                Ok(()) => return Ok(Self { path: path.to_path_buf(), file }),
                Err(error) => {
                    let _ = fs::remove_file(&temporary);
                    if error.kind() != io::ErrorKind::AlreadyExists {
                        return Err(failed(error));
                    }
                }
            }
        }
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

enum Existing {
    Absent,
    /// Left by a process that has exited; this process holds its lock now.
    Stale(File),
    /// Another process has just replaced it by its own file.
    Replaced,
}

fn open_existing(path: &Path) -> Result<Existing, PidFileError> {
    let failed = |source| PidFileError::Io { path: path.to_path_buf(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Existing::Absent),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.is_file() => return Err(PidFileError::NotAFile(path.to_path_buf())),
        Ok(_) => (),
    }
    let opened = OpenOptions::new().read(true).write(true).custom_flags(file::NOFOLLOW).open(path);
    let mut found = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Existing::Replaced),
        Err(error) => return Err(failed(error)),
    };
    if let Lock::HeldBy(owner) = file::lock(&found).map_err(failed)? {
        let mut text = String::new();
        let _ = Read::by_ref(&mut found).take(32).read_to_string(&mut text);
        let owner = owner.or_else(|| text.trim().parse().ok());
        return Err(PidFileError::Held { path: path.to_path_buf(), owner });
    }
    let ours = found.metadata().map_err(failed)?;
    match fs::symlink_metadata(path) {
        Ok(now) if (now.dev(), now.ino()) == (ours.dev(), ours.ino()) => Ok(Existing::Stale(found)),
        _ => Ok(Existing::Replaced),
    }
}

/// Writes and locks a complete pid file under a temporary name.
fn write_temp(path: &Path) -> io::Result<(PathBuf, File)> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", Pid::this()));
    let temporary = path.with_file_name(name);
    let written = (|| {
        let _ = fs::remove_file(&temporary); // no other process uses it: its name has this pid
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o644)
            .custom_flags(file::NOFOLLOW)
            .open(&temporary)?;
        writeln!(file, "{}", Pid::this())?;
        file::lock(&file)?;
        Ok(file)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.map(|file| (temporary, file))
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
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
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
