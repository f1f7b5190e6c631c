//! Tells when a file loses its name, or an entry of a folder changes: inotify(7) (Linux).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Watches files or folders.
#[derive(Debug)]
pub(crate) struct PathWatch(Inotify);

impl PathWatch {
    /// Creates one that watches nothing.
    ///
    /// # Errors
    /// `EMFILE`: the user has too many of them.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?))
    }

    /// Watches the file to which a path leads now, until it is deleted. Its folder is not watched: what
    /// others do there wakes no reader.
    ///
    /// # Errors
    /// From inotify_add_watch(2).
    pub(crate) fn add(&self, path: &Path) -> io::Result<()> {
        // The number of links of a file that is open changes long before it is deleted.
        let events = AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_DONT_FOLLOW;
        self.0.add_watch(path, events)?;
        Ok(())
    }

    /// Watches the entries of a folder. Adding the folder again changes nothing. Returns whether the path leads to a folder that can be watched.
    ///
    /// # Errors
    /// `ENOSPC` or `ENOMEM`, from inotify_add_watch(2).
    pub(crate) fn add_folder(&self, path: &Path) -> io::Result<bool> {
        let events = AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        match self.0.add_watch(path, events) {
            Ok(_) => Ok(true),
            Err(errno @ (Errno::ENOSPC | Errno::ENOMEM)) => Err(errno.into()),
            Err(_) => Ok(false),
        }
    }

    /// Forgets what has happened, without waiting. It may have happened to any of the files.
    pub(crate) fn clear(&self) {
        // It fails if there is nothing to read. The rest of many events makes it readable again.
        let _ = self.0.read_events();
    }
}

impl AsFd for PathWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::os::epoll::{EventQueue, Watch};

    #[test]
    fn removal_and_replacement_are_told_and_neighbours_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let _open = fs::File::create(&path).unwrap();
        let watch = PathWatch::new().unwrap();
        let events = EventQueue::new().unwrap();
        events.add(watch.as_fd(), 1, Watch::Readable).unwrap();
        watch.add(&path).unwrap();
        fs::write(dir.path().join("y"), "").unwrap();
        assert!(events.take(1).is_empty());
        fs::rename(dir.path().join("y"), &path).unwrap();
        assert_eq!(events.take(1).len(), 1);
        watch.clear();
        assert!(events.take(1).is_empty());
        watch.add(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(events.take(1).len(), 1);
    }

    #[test]
    fn written_and_touched_entries_of_a_folder_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let watch = PathWatch::new().unwrap();
        let events = EventQueue::new().unwrap();
        events.add(watch.as_fd(), 1, Watch::Readable).unwrap();
        assert!(watch.add_folder(dir.path()).unwrap());
        assert!(!watch.add_folder(&path).unwrap());
        let is_told = || {
            let is_told = !events.take(1).is_empty();
            watch.clear();
            is_told
        };
        assert!(!is_told());
        fs::write(&path, "").unwrap();
        assert!(is_told());
        let file = fs::File::open(&path).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        assert!(is_told());
        assert!(!is_told());
    }
}
