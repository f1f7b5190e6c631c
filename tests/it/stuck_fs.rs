//! A directory in which nobody gets on: a way into the kernel from which no signal leads back.

use std::fs::File;
use std::path::Path;
use std::thread::{self, JoinHandle};

use crate::os::{TouchTrap, read_names_into};

/// Keeps a directory locked. Who makes or removes a file in it waits in state D, whatever signals
/// come, until this is dropped: the kernel holds the lock for somebody who reads the names into
/// memory that is not there.
pub struct StuckFs {
    void: Option<TouchTrap>,
    reader: Option<JoinHandle<()>>,
}

impl StuckFs {
    /// Locks a directory; nothing, and a line that says why, if the machine does not allow it.
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
        // Without it the page is like any other.
        drop(self.void.take());
        self.reader.take().map(JoinHandle::join);
    }
}
