//! Leaving the terminal: the launching process waits for the verdict of the daemon, and exits with
//! it.

use std::cell::RefCell;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::wait::waitpid;
use nix::unistd::{Pid as RawPid, dup2_stderr, dup2_stdin, dup2_stdout, setsid};

use super::poll::{self, Interest};
use super::{credentials, file, process};

/// What the daemon tells the process that launched it, once.
#[derive(Debug)]
pub(crate) struct StartupNotifier {
    pipe: RefCell<Option<OwnedFd>>,
}

impl StartupNotifier {
    /// Says how the launching process is to exit, and what it is to print. Only the first word
    /// counts.
    pub(crate) fn notify(&self, code: u8, text: &str) {
        if let Some(pipe) = self.pipe.borrow_mut().take() {
            let mut message = vec![code];
            message.extend_from_slice(text.as_bytes());
            // A launcher that has gone does not need it. One write, which a pipe keeps whole.
            let _ = nix::unistd::write(&pipe, &message[..message.len().min(4096)]);
        }
    }
}

/// Runs `body` in a process of its own session, without a terminal, with /dev/null for its
/// standard streams. Returns in the launching process: the exit code and
/// the text of the verdict.
///
/// # Errors
/// From pipe2(2) and fork(2).
pub(crate) fn daemonize(body: impl FnOnce(StartupNotifier) -> u8) -> io::Result<(u8, String)> {
    let (read, write) = file::pipe()?;
    let intermediate = process::fork(|| {
        if setsid().is_err() {
            return 1;
        }
        // Not a session's leader, so that it can never get a terminal again.
        let daemon = process::fork(|| {
            let notifier = StartupNotifier { pipe: RefCell::new(Some(write)) };
            if let Err(error) = detach_from_terminal() {
                notifier.notify(1, &format!("failed to detach from terminal: {error}"));
                return 1;
            }
            body(notifier)
        });
        u8::from(daemon.is_err())
    })?;
    // This process's own copy of the write end went into the closure, and closes with it.
    let _ = waitpid(RawPid::from_raw(intermediate.as_raw()), None);
    read_startup_result(&read)
}

fn detach_from_terminal() -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    credentials::set_umask(0o022);
    Ok(())
}

fn read_startup_result(pipe: &OwnedFd) -> io::Result<(u8, String)> {
    let mut message = [0; 4096];
    loop {
        match nix::unistd::read(pipe, &mut message) {
            Ok(0) => return Ok((1, "daemon exited before it was ready".to_owned())),
            Ok(n) => {
                let text = String::from_utf8_lossy(&message[1..n]).into_owned();
                return Ok((message[0], text));
            }
            Err(_) => poll::wait([(pipe.as_fd(), Interest::Readable)], None).map(|_| ())?,
        }
    }
}
