//! Daemons: the launching process waits for the daemon's startup result, and exits with its code.

use std::cell::RefCell;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::wait::waitpid;
use nix::unistd::{Pid as RawPid, dup2_stderr, dup2_stdin, dup2_stdout, setsid};

use super::poll::{self, Interest};
use super::{credentials, file, process};

/// Reports the daemon's startup result to the launching process, once.
#[derive(Debug)]
pub(crate) struct StartupNotifier {
    pipe: RefCell<Option<OwnedFd>>,
}

impl StartupNotifier {
    /// Sends the exit code of the launching process and the text that it prints. Only the first
    /// call has an effect.
    pub(crate) fn notify(&self, code: u8, text: &str) {
        if let Some(pipe) = self.pipe.borrow_mut().take() {
            let mut message = vec![code];
            message.extend_from_slice(text.as_bytes());
            // It fails only if the launcher has exited. A pipe keeps one write of this size whole.
            let _ = nix::unistd::write(&pipe, &message[..message.len().min(4096)]);
        }
    }
}

/// Runs `body` in a process with its own session, without a terminal, and with /dev/null as its
/// standard streams. Returns in the launching process, with the exit code and the text of the
/// startup result.
///
/// # Errors
/// From pipe2(2) and fork(2).
pub(crate) fn daemonize(body: impl FnOnce(StartupNotifier) -> u8) -> io::Result<(u8, String)> {
    let (read, write) = file::pipe()?;
    let intermediate = process::fork(|| {
        if setsid().is_err() {
            return 1;
        }
        // Not a session leader, so that it can never get a controlling terminal again.
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
    // The closure owned this process's copy of the write end, and has closed it.
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
