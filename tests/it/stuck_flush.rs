//! A file whose descriptors cannot be closed: FLUSH of its file system is never answered. A process
//! that executes a program with such a descriptor to close holds the locks of that for as long.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use tempfile::TempDir;

use crate::os::{ChildSetup, prepare};
use crate::support::DEADLINE;

/// A mounted file system of one file. Dropping it ends all that waits.
pub struct StuckFlush {
    dir: TempDir,
    flushed: Receiver<()>,
    server: Option<JoinHandle<()>>,
}

impl StuckFlush {
    /// Mounts it. Returns `None` and prints the reason if the machine does not allow it.
    pub fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let device = File::options().read(true).write(true).open("/dev/fuse").ok();
        let Some(device) = device.filter(|device| mount(device, dir.path())) else {
            eprintln!("skipped: no file system of our own");
            return None;
        };
        let (tell, flushed) = channel();
        let server = Some(thread::spawn(move || serve(device, &tell)));
        Some(Self { dir, flushed, server })
    }

    /// Returns the path of the file.
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("file")
    }

    /// Waits until a process closes the file.
    #[track_caller]
    pub fn wait_flush(&self) {
        self.flushed.recv_timeout(DEADLINE).expect("no process closes the file");
    }
}

impl Drop for StuckFlush {
    fn drop(&mut self) {
        // By force: what waits for an answer gets an error.
        let _ = Command::new("umount").args(["-f", "-l"]).arg(self.dir.path()).status();
        self.server.take().map(JoinHandle::join);
    }
}

fn mount(device: &File, dir: &Path) -> bool {
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let mut command = Command::new("mount");
    command.args(["-i", "-t", "fuse", "-o", &options, "none"]).arg(dir);
    let fds = vec![device.as_raw_fd()];
    prepare(&mut command, ChildSetup { fds, ..ChildSetup::default() });
    command.status().is_ok_and(|status| status.success())
}

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;

const DIRECTORY: u32 = 0o040_755;
const REGULAR: u32 = 0o100_644;

/// Answers the kernel's requests, except FLUSH, until the file system is unmounted: see fuse(4).
fn serve(mut device: File, flushed: &Sender<()>) {
    let mut request = vec![0; 1 << 17];
    while let Ok(length) = device.read(&mut request) {
        let number = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
        assert!(length >= 40, "a request has a header");
        let (opcode, unique) = (number(4), &request[8..16]);
        let is_root = number(16) == 1;
        let attributes = || attributes(if is_root { DIRECTORY } else { REGULAR });
        let answer = match opcode {
            INIT => words(&[7, 31, 0, 0, 0, 4096, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            LOOKUP => [words(&[2, 0, 0, 0, 9, 0, 9, 0, 0, 0]), self::attributes(REGULAR)].concat(),
            GETATTR => [words(&[9, 0, 0, 0]), attributes()].concat(),
            OPEN => words(&[1, 0, 0, 0]),
            FLUSH => {
                let _ = flushed.send(());
                continue;
            }
            FORGET | INTERRUPT => continue,
            _ => Vec::new(),
        };
        let error = if answer.is_empty() { -libc::ENOSYS } else { 0 };
        let header = [&words(&[16 + answer.len() as u32, error as u32]), unique].concat();
        let _ = device.write_all(&[header, answer].concat());
    }
}

/// Returns the attributes of a file of this type and mode.
fn attributes(mode: u32) -> Vec<u8> {
    let mut attributes = words(&[0; 22]);
    attributes[60..64].copy_from_slice(&mode.to_ne_bytes());
    attributes[64..68].copy_from_slice(&1_u32.to_ne_bytes());
    attributes
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}
