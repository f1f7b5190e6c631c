//! A worker's sign of life: the modification time of a file without a name.
//!
//! The master makes the file before the fork and stamps it then, so a worker that hangs before its
//! first beat is seen too. It must never ask the worker anything.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use crate::os::{clock, file};
use crate::time::MonotonicTime;

/// One worker's file. The master's copy reads, the worker's copy, inherited by the fork, writes.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    file: OwnedFd,
}

impl Heartbeat {
    /// Makes the file in `folder` and stamps it with this moment.
    ///
    /// # Errors
    /// The folder is missing, full or read-only; too many open files.
    pub(crate) fn new(dir: &Path) -> io::Result<Self> {
        let heartbeat = Self { file: file::anonymous_file(dir)? };
        heartbeat.beat(clock::now())?;
        Ok(heartbeat)
    }

    /// Lets another user's process beat.
    ///
    /// # Errors
    /// `EPERM` without the privilege.
    pub(crate) fn chown(&self, user: Option<u32>, group: Option<u32>) -> io::Result<()> {
        file::chown(self.file.as_fd(), user, group)
    }

    /// Says that the worker lives at this moment.
    ///
    /// # Errors
    /// `EPERM` if the file belongs to another user.
    pub(crate) fn beat(&self, now: MonotonicTime) -> io::Result<()> {
        file::set_modified(self.file.as_fd(), now)
    }

    /// When the worker last said that it lives.
    ///
    /// # Errors
    /// From fstat(2).
    pub(crate) fn last_beat(&self) -> io::Result<MonotonicTime> {
        file::modified(self.file.as_fd())
    }

    /// Another descriptor of the same file.
    ///
    /// # Errors
    /// `EMFILE`.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()? })
    }

    /// The descriptor's number, for a sibling that must close its copy.
    pub(crate) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Where heartbeat files go if nobody says: memory if it can be written to, since a disk may stall.
pub(crate) fn default_dir() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if file::anonymous_file(memory).is_ok() { memory.to_path_buf() } else { std::env::temp_dir() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_beat_is_exact_to_the_nanosecond() {
        let heartbeat = Heartbeat::new(&std::env::temp_dir()).unwrap();
        assert!(heartbeat.last_beat().unwrap() <= clock::now());
        for nanos in [0, 1, 999_999_999, 1_000_000_000, 86_400_000_000_007] {
            heartbeat.beat(MonotonicTime::from_nanos(nanos)).unwrap();
            assert_eq!(heartbeat.last_beat().unwrap(), MonotonicTime::from_nanos(nanos));
        }
    }

    #[test]
    fn new_in_missing_dir_fails() {
        assert!(Heartbeat::new(Path::new("/nonexistent/folder")).is_err());
    }
}
