//! A directory in which every file operation blocks: the way to a process in state D that no signal
//! ends.

use std::fs::File;
use std::path::Path;
use std::thread::{self, JoinHandle};

use crate::os::{TouchTrap, read_names_into};

/// Keeps a directory locked. A process that makes or removes a file in it waits in state D,
/// whatever signals come, until this is dropped. The kernel holds the lock for a thread that reads
/// the directory's names into memory without content.
pub struct StuckFs {
    void: Option<TouchTrap>,
    reader: Option<JoinHandle<()>>,
}

impl StuckFs {
    /// Locks a directory. Returns `None` and prints the reason if the machine does not allow it.
    pub fn new(directory: &Path) -> Option<Self> {
        let void = match TouchTrap::new() {
            Ok(void) => void,
            Err(error) => {
                eprintln!("skipped: no directory can be held: {error}");
                return None;
            }
        };
        let (directory, page) = (File::open(directory).unwrap(), void.page());
        let reader = thread::spawn(move || read_names_into(&directory, page));
        void.wait_touched();
        Some(Self { void: Some(void), reader: Some(reader) })
    }
}

impl Drop for StuckFs {
    fn drop(&mut self) {
        // Without userfaultfd, the page becomes an ordinary one.
        drop(self.void.take());
        self.reader.take().map(JoinHandle::join);
    }
}
