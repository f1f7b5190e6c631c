//! A short-lived child for what may block: it answers through a pipe, and its parent waits for nothing.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal as NixSignal;

use super::fd_table::{self, Visit};
use super::file;
use super::process::{self, Pid};

/// A child that runs one function. Dropping it kills the child.
#[derive(Debug)]
pub(crate) struct HelperProcess {
    pid: Pid,
    answer_rx: OwnedFd,
    answer: Vec<u8>,
    has_ended: bool,
}

impl HelperProcess {
    /// Forks a child that runs `body` and exits. The child has the pipe for its answer, and no other
    /// descriptor of this process; its standard streams are empty. No signal but SIGKILL reaches it,
    /// and the kernel kills it when this process exits. The process reaps it like any other child.
    ///
    /// # Errors
    /// `EMFILE` or `ENFILE`; `EAGAIN` or `ENOMEM` from fork(2).
    pub(crate) fn start(body: impl FnOnce(&mut File)) -> io::Result<Self> {
        Self::fork(|answer_tx| answer_file(answer_tx, &[]), body)
    }

    /// Does what [`start`](Self::start) does, but the child keeps the directories that this process has
    /// open.
    ///
    /// # Errors
    /// Those of [`start`](Self::start).
    pub(crate) fn start_with_dirs(body: impl FnOnce(&mut File)) -> io::Result<Self> {
        let prepare = |answer_tx| {
            let mut dirs = Vec::new();
            fd_table::for_each_fd(|number| {
                dirs.extend(file::is_dir(number).then_some(number));
                Visit::Continue
            });
            answer_file(answer_tx, &dirs)
        };
        Self::fork(prepare, body)
    }

    /// Does what [`start`](Self::start) does, but the child lives on: it has a pipe for commands, too,
    /// whose other end is returned. Neither process waits for the other: both ends never block.
    ///
    /// # Errors
    /// Those of [`start`](Self::start).
    pub(crate) fn start_with_input(
        body: impl FnOnce(&mut File, &mut File),
    ) -> io::Result<(Self, File)> {
        let (input_rx, input_tx) = file::pipe()?;
        let number = input_rx.as_raw_fd();
        let mut input = File::from(input_rx);
        let prepare = |answer_tx| answer_file(answer_tx, &[number]);
        let helper = Self::fork(prepare, |answer| body(answer, &mut input))?;
        Ok((helper, File::from(input_tx)))
    }

    fn fork(
        prepare: impl FnOnce(OwnedFd) -> io::Result<File>,
        body: impl FnOnce(&mut File),
    ) -> io::Result<Self> {
        let (answer_rx, answer_tx) = file::pipe()?;
        fcntl(&answer_tx, FcntlArg::F_SETFL(OFlag::empty()))?; // an answer may exceed the pipe
        let parent = Pid::this();
        let pid = process::fork(move || match prepare(answer_tx) {
            Ok(mut answer)
                if set_pdeathsig(NixSignal::SIGKILL).is_ok() && Pid::parent() == parent =>
            {
                body(&mut answer);
                0
            }
            Ok(_) | Err(_) => process::EX_SOFTWARE,
        })?;
        Ok(Self { pid, answer_rx, answer: Vec::new(), has_ended: false })
    }

    /// Returns the descriptor that is readable when a part of the answer has come, or its end.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.answer_rx.as_fd()
    }

    /// Reads what has come. Returns whether the helper has ended, so that nothing more will come.
    pub(crate) fn read(&mut self) -> bool {
        let mut buffer = [0; 16 << 10];
        while !self.has_ended {
            match nix::unistd::read(&self.answer_rx, &mut buffer) {
                Ok(0) => self.has_ended = true,
                Ok(length) => self.answer.extend_from_slice(&buffer[..length]),
                Err(Errno::EINTR) => (),
                Err(Errno::EAGAIN) => return false,
                Err(_) => self.has_ended = true,
            }
        }
        true
    }

    /// Returns the answer so far.
    pub(crate) fn answer(&self) -> &[u8] {
        &self.answer
    }

    /// Takes the next message of this many bytes, if it has come whole.
    pub(crate) fn take_message<const N: usize>(&mut self) -> Option<[u8; N]> {
        while self.answer.len() < N && !self.has_ended {
            let mut buffer = [0; N];
            let wanted = N - self.answer.len();
            match nix::unistd::read(&self.answer_rx, &mut buffer[..wanted]) {
                Ok(0) => self.has_ended = true,
                Ok(length) => self.answer.extend_from_slice(&buffer[..length]),
                Err(Errno::EINTR) => (),
                Err(Errno::EAGAIN) => return None,
                Err(_) => self.has_ended = true,
            }
        }
        let message = self.answer.get(..N)?.try_into().ok();
        self.answer.clear();
        message
    }

    /// Whether it has closed the pipe, as far as that was read.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Kills it, unless it has ended. A process that waits in the kernel for a file system exits later:
    /// [`read`](Self::read) says when.
    pub(crate) fn kill(&mut self) {
        // While the pipe is open the child has not exited, so its number is its own.
        if !self.read() {
            process::send_sigkill(self.pid);
        }
    }
}

/// Prepares the descriptors of the child. Returns the file for its answer.
fn answer_file(answer_tx: OwnedFd, keep: &[RawFd]) -> io::Result<File> {
    // Only now: the limit of descriptors may leave the parent no room for more than the pipe.
    fd_table::close_all_except(&[keep, &[answer_tx.as_raw_fd()]].concat());
    let null = File::options().read(true).write(true).open("/dev/null")?;
    process::dup_fds_to(&[null.as_raw_fd(); 3], 0)?;
    std::mem::forget(null);
    Ok(File::from(answer_tx))
}

impl Drop for HelperProcess {
    fn drop(&mut self) {
        self.kill();
    }
}
