//! A program as a child of this process: started with sockets from descriptor 3 on and nothing else
//! of ours, heard through two pipes, signalled, reaped.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal as Number;

use super::process::{self, Exit, Pid};
use super::{file, poll, signal};

/// What a child is when it could not become the program; nobody sees it.
const EXIT_EXEC_FAILED: u8 = 127;

/// How to start a program.
pub(crate) struct ProgramSpec<'a> {
    /// Its name, which is looked up in `PATH`, and its arguments.
    pub(crate) args: &'a [CString],
    /// What it finds from [`process::LISTEN_FDS_START`] on.
    pub(crate) sockets: &'a [BorrowedFd<'a>],
    /// What is laid over the environment of this process.
    pub(crate) env: &'a [(OsString, OsString)],
    /// The variable that is to hold its process number, if any.
    pub(crate) pid_env_names: &'a [&'a str],
}

/// What a program can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProgramSignal {
    Term,
    Int,
    Quit,
    Hup,
    Usr1,
    Usr2,
    Winch,
    Abrt,
    Kill,
}

impl ProgramSignal {
    fn number(self) -> Number {
        match self {
            Self::Term => Number::SIGTERM,
            Self::Int => Number::SIGINT,
            Self::Quit => Number::SIGQUIT,
            Self::Hup => Number::SIGHUP,
            Self::Usr1 => Number::SIGUSR1,
            Self::Usr2 => Number::SIGUSR2,
            Self::Winch => Number::SIGWINCH,
            Self::Abrt => Number::SIGABRT,
            Self::Kill => Number::SIGKILL,
        }
    }
}

/// A program that has been started.
#[derive(Debug)]
pub(crate) struct ChildProgram {
    pid: Pid,
    /// Whether its number may be another's by now.
    reaped: bool,
    /// What it writes to its standard output, and to its standard error stream. Reading never
    /// blocks.
    outputs: [OwnedFd; 2],
}

impl ChildProgram {
    /// Starts a program. Its signals are at their defaults and unblocked, its standard input is
    /// empty, and it is killed when this process ends. This process is told of its end by CHLD.
    ///
    /// # Errors
    /// It cannot be found or executed; no descriptors or processes are to be had.
    ///
    /// # Panics
    /// If this process has more than one thread.
    pub(crate) fn start(spec: &ProgramSpec<'_>) -> io::Result<Self> {
        let input = File::open("/dev/null")?;
        let [(out, out_end), (err, err_end)] = [output_pipe()?, output_pipe()?];
        let (error_rx, error_tx) = file::pipe()?;
        signal::catch([signal::Signal::Chld]);
        let parent = Pid::this();
        let pid = process::fork(|| {
            let ends = [input.as_raw_fd(), out_end.as_raw_fd(), err_end.as_raw_fd()];
            let (error, verdict_end) = exec_in_child(spec, parent, ends, error_tx.as_fd());
            let errno = error.raw_os_error().unwrap_or(libc::EINVAL).to_ne_bytes();
            let _ = nix::unistd::write(verdict_end, &errno);
            EXIT_EXEC_FAILED
        })?;
        // Only the child's copies are left, so the pipes end with whoever has them.
        drop((out_end, err_end, error_tx));
        let child = Self { pid, reaped: false, outputs: [out, err] };
        signal::forward_aborts_to(Some(pid));
        match read_exec_error(&error_rx) {
            None => Ok(child),
            Some(error) => {
                process::wait_for(pid);
                Err(error)
            }
        }
    }

    /// The process.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// What it writes to its standard output, and to its standard error stream.
    pub(crate) fn outputs(&self) -> &[OwnedFd; 2] {
        &self.outputs
    }

    /// Sends it a signal, unless it has been reaped.
    pub(crate) fn send(&self, signal: ProgramSignal) {
        if !self.reaped {
            process::send_signal(self.pid, signal.number());
        }
    }

    /// How it ended, if it has: then it is reaped, and so is any other child.
    pub(crate) fn try_reap(&mut self) -> Option<Exit> {
        while let Some((pid, exit)) = process::next_exited_child() {
            if pid == self.pid {
                signal::forward_aborts_to(None);
                self.reaped = true;
            }
            process::reap(pid);
            if pid == self.pid {
                return Some(exit);
            }
        }
        None
    }
}

impl Drop for ChildProgram {
    fn drop(&mut self) {
        if !self.reaped {
            signal::forward_aborts_to(None);
        }
    }
}

/// A pipe of which the end that is read never blocks; the program's end does, as it expects.
fn output_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = file::pipe()?;
    fcntl(&write, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok((read, write))
}

/// Becomes the program, in the child. Returns why not, and where to say so.
fn exec_in_child<'a>(
    spec: &ProgramSpec<'_>,
    parent: Pid,
    stdio: [RawFd; 3],
    error_tx: BorrowedFd<'a>,
) -> (io::Error, BorrowedFd<'a>) {
    if let Err(errno) = set_pdeathsig(Number::SIGKILL) {
        return (errno.into(), error_tx);
    }
    if Pid::parent() != parent {
        process::exit_immediately(EXIT_EXEC_FAILED); // it has died before it could be watched
    }
    let own = Pid::this().to_string();
    spec.env.iter().for_each(|(name, value)| process::set_env(name, value));
    spec.pid_env_names.iter().for_each(|name| process::set_env(name, &own));
    let path = std::env::var_os("PATH");
    let word = spec.args.first().map_or(OsStr::new(""), |word| OsStr::from_bytes(word.to_bytes()));
    let program = match process::find_program(word, path.as_deref(), None) {
        Ok(program) => program,
        Err(error) => return (error, error_tx),
    };
    let descriptors: Vec<RawFd> =
        spec.sockets.iter().map(AsRawFd::as_raw_fd).chain([error_tx.as_raw_fd()]).collect();
    let descriptors = [stdio.as_slice(), &descriptors].concat();
    let copies = match process::dup_fds_above(&descriptors, descriptors.len() as RawFd) {
        Ok(lifted) => lifted,
        Err(error) => return (error, error_tx),
    };
    let (error_fd, handed_on) =
        copies.split_last().map_or((-1, &[][..]), |(line, rest)| (*line, rest));
    // SAFETY: the copy was made just above, beyond whatever is overwritten below.
    let error_tx = unsafe { BorrowedFd::borrow_raw(error_fd) };
    if let Err(error) = process::dup_fds_to(handed_on, 0) {
        return (error, error_tx);
    }
    // In this order: a handler of the parent's would write into the parent's pipe.
    signal::reset_all_signals();
    signal::unblock_all();
    (process::exec(&program, spec.args), error_tx)
}

/// Waits until the child has become the program, or has said why not.
fn read_exec_error(error_rx: &OwnedFd) -> Option<io::Error> {
    let mut errno = [0; 4];
    loop {
        match nix::unistd::read(error_rx, &mut errno) {
            Ok(4) => return Some(io::Error::from_raw_os_error(i32::from_ne_bytes(errno))),
            Ok(_) => return None,
            Err(Errno::EINTR) => (),
            Err(Errno::EAGAIN) => {
                // Cannot fail in a way that trying again would not show.
                let _ = poll::wait_readable(&[error_rx.as_fd()], None);
            }
            Err(errno) => return Some(errno.into()),
        }
    }
}

/// Reads what there is, at most the buffer's length; `None` if there is nothing now, 0 at the end.
pub(crate) fn read(output: &OwnedFd, buffer: &mut [u8]) -> Option<usize> {
    loop {
        match nix::unistd::read(output, buffer) {
            Ok(length) => return Some(length),
            Err(Errno::EINTR) => (),
            Err(Errno::EAGAIN) => return None,
            Err(_) => return Some(0),
        }
    }
}

/// Ends this process as another one ended: with its code, or by its signal, and without a core of
/// its own.
pub(crate) fn exit_like(exit: Exit) -> ! {
    match exit {
        Exit::Code(code) => process::exit_immediately(code.to_ne_bytes()[0]),
        Exit::Signal { number, .. } => {
            let _ = super::resources::set_core_limit(Some(0));
            if let Ok(number) = Number::try_from(number) {
                signal::raise_with_default_action(number);
            }
            process::exit_immediately(process::EX_SOFTWARE) // a signal without a name, or without effect
        }
    }
}
