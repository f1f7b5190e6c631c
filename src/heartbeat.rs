//! A worker's heartbeat: the modification time of an unlinked file.
//!
//! The master creates the file before the fork and sets its time then. A worker that is not ready yet
//! is bounded by `boot_timeout` instead. The master never queries the worker itself.
//!
//! A heartbeat proves progress only while the worker has no unit of work: a busy one is judged by the
//! start of its oldest unit, which the scoreboard has. The master judges by the file only when
//! `timeout` has passed since the last progress that it knows of; the control interface shows its age: see `arbiter/pool/health.rs`, and
//! `hang_deadline` in `arbiter/pool/supervisor/slot.rs`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::os::{clock, file, memory, resources};
use crate::time::MonotonicTime;

/// If the number of workers follows the load, an idle worker that has sent no heartbeat for so long is
/// stuck, and counts as busy. Such a worker sends one at least four times as often.
pub(crate) const SILENT_AFTER: Duration = Duration::from_secs(1);

/// One worker's heartbeat file. The master reads its copy; the worker inherits one and writes it.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    file: OwnedFd,
}

impl Heartbeat {
    /// Creates the file in `dir`, or in memory if there is none, with the current time as its first
    /// heartbeat.
    ///
    /// # Errors
    /// The directory is missing, full or read-only; too many open files.
    fn new(dir: Option<&Path>) -> io::Result<Self> {
        let file = dir.map_or_else(memory::anonymous_file, file::anonymous_file)?;
        let heartbeat = Self { file };
        heartbeat.beat(clock::now())?;
        Ok(heartbeat)
    }

    /// Creates the file for the processes of a user, or of the master's own.
    ///
    /// # Errors
    /// Those of [`new`](Self::new); `EPERM` without the privilege to change the owner.
    pub(crate) fn owned_by(
        dir: Option<&Path>,
        user: Option<u32>,
        group: Option<u32>,
    ) -> io::Result<Self> {
        let heartbeat = Self::new(dir)?;
        if user.is_some() {
            file::chown(heartbeat.file.as_fd(), user, group)?;
        }
        Ok(heartbeat)
    }

    /// Writes a heartbeat at `now`.
    ///
    /// # Errors
    /// `EPERM` if the file belongs to another user.
    pub(crate) fn beat(&self, now: MonotonicTime) -> io::Result<()> {
        file::set_modified(self.file.as_fd(), now)
    }

    /// Returns the time of the last heartbeat.
    ///
    /// # Errors
    /// From fstat(2).
    pub(crate) fn last_beat(&self) -> io::Result<MonotonicTime> {
        file::modified(self.file.as_fd())
    }

    /// Duplicates the descriptor.
    ///
    /// # Errors
    /// `EMFILE`.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()? })
    }

    /// Returns the descriptor's number, for the list of descriptors that its worker keeps.
    pub(crate) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Checks that heartbeat files of this owner can be created in a directory, by creating one, unlinked.
///
/// # Errors
/// Why not. A shortage, such as a full disk, is no error: it may pass.
pub(crate) fn check_dir(dir: &Path, user: Option<u32>, group: Option<u32>) -> io::Result<()> {
    match Heartbeat::owned_by(Some(dir), user, group) {
        Err(error) if !resources::is_shortage(&error) => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Returns the default directory of heartbeat files: /dev/shm if it is writable, since a disk may
/// stall; otherwise the system's temporary directory; none if that is not writable either, as in a
/// container with a read-only root. To find out, it creates unlinked files.
pub(crate) fn default_dir() -> Option<PathBuf> {
    let dirs = [PathBuf::from("/dev/shm"), std::env::temp_dir()];
    dirs.into_iter().find(|dir| file::anonymous_file(dir).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_beat_is_exact_to_the_nanosecond() {
        for dir in [Some(std::env::temp_dir()), None] {
            let heartbeat = Heartbeat::new(dir.as_deref()).unwrap();
            assert!(heartbeat.last_beat().unwrap() <= clock::now());
            for nanos in [0, 1, 999_999_999, 1_000_000_000, 86_400_000_000_007] {
                heartbeat.beat(MonotonicTime::from_nanos(nanos)).unwrap();
                assert_eq!(heartbeat.last_beat().unwrap(), MonotonicTime::from_nanos(nanos));
            }
        }
    }

    #[test]
    fn new_in_missing_dir_fails() {
        assert!(Heartbeat::new(Some(Path::new("/nonexistent/dir"))).is_err());
    }
}
