//! A program as a child of this process. It inherits sockets from descriptor 3 on and no other
//! descriptor of this process; its output is read through two pipes; it is signalled and reaped.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal as NixSignal;

use super::process::{self, Exit, Pid};
use super::{fd_table, file, poll, signal};

/// The exit code of a child that could not execute the program. The parent reads the error from a
/// pipe instead.
const EXIT_EXEC_FAILED: u8 = 127;

/// How many children are reaped at once.
const REAPED_MAX: usize = 256;

/// What to start, and how.
pub(crate) struct ProgramSpec<'a> {
    /// The program's name, which is looked up in `PATH`, and its arguments.
    pub(crate) args: &'a [CString],
    /// The sockets that it inherits from [`process::LISTEN_FDS_START`] on.
    pub(crate) sockets: &'a [BorrowedFd<'a>],
    /// The variables that it gets besides the environment of this process.
    pub(crate) env: &'a [(OsString, OsString)],
    /// The variables that hold its process number.
    pub(crate) pid_env_names: &'a [&'a str],
    /// It writes to this process's own outputs, instead of to pipes.
    pub(crate) inherit_output: bool,
}

/// The signals that a program can be sent.
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
    fn number(self) -> NixSignal {
        match self {
            Self::Term => NixSignal::SIGTERM,
            Self::Int => NixSignal::SIGINT,
            Self::Quit => NixSignal::SIGQUIT,
            Self::Hup => NixSignal::SIGHUP,
            Self::Usr1 => NixSignal::SIGUSR1,
            Self::Usr2 => NixSignal::SIGUSR2,
            Self::Winch => NixSignal::SIGWINCH,
            Self::Abrt => NixSignal::SIGABRT,
            Self::Kill => NixSignal::SIGKILL,
        }
    }
}

/// A program that has been started.
#[derive(Debug)]
pub(crate) struct ChildProgram {
    pid: Pid,
    /// Whether it is reaped, so that the kernel may have reused its number.
    reaped: bool,
    /// The pipes from its standard output and its standard error stream that are open. Reading never
    /// blocks.
    outputs: [Option<OwnedFd>; 2],
}

impl ChildProgram {
    /// Starts a program with default signal actions, no blocked signals, and an empty standard
    /// input. The kernel kills it when this process exits. From now on this process catches
    /// SIGCHLD, and forwards SIGABRT to the program until it is reaped.
    ///
    /// # Errors
    /// The program cannot be found or executed; `EMFILE`, `ENFILE`, or `EAGAIN` from fork(2).
    ///
    /// # Panics
    /// If this process has more than one thread.
    pub(crate) fn start(spec: &ProgramSpec<'_>) -> io::Result<Self> {
        let stdin = File::open("/dev/null")?;
        let pipes = if spec.inherit_output { None } else { Some([output_pipe()?, output_pipe()?]) };
        let (error_rx, error_tx) = file::pipe()?;
        signal::catch([signal::Signal::Chld]);
        let parent = Pid::this();
        let pid = process::fork(|| {
            let [stdout, stderr] = match &pipes {
                Some([(_, stdout), (_, stderr)]) => [stdout.as_raw_fd(), stderr.as_raw_fd()],
                None => [libc::STDOUT_FILENO, libc::STDERR_FILENO],
            };
            let stdio = [stdin.as_raw_fd(), stdout, stderr];
            let (error, error_tx) = exec_in_child(spec, parent, stdio, error_tx.as_fd());
            let errno = error.raw_os_error().unwrap_or(libc::EINVAL).to_ne_bytes();
            let _ = nix::unistd::write(error_tx, &errno);
            EXIT_EXEC_FAILED
        })?;
        // Only the child's copies of the write ends are left, so the pipes end when the last process
        // with a copy exits.
        drop(error_tx);
        let outputs = match pipes {
            Some(pipes) => pipes.map(|(rx, _)| Some(rx)),
            None => [None, None],
        };
        let child = Self { pid, reaped: false, outputs };
        signal::forward_aborts_to(Some(pid));
        match read_exec_error(&error_rx) {
            None => Ok(child),
            Some(error) => {
                process::wait_for(pid);
                Err(error)
            }
        }
    }

    /// Returns the program's process.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Returns the pipes from its standard output and its standard error stream that are open.
    pub(crate) fn open_outputs(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.outputs.iter().flatten().map(AsFd::as_fd)
    }

    /// Reads what it has printed: `index` is 0 for its standard output, 1 for its standard error
    /// stream. `None` if there is nothing now, or never again.
    pub(crate) fn read_output(&mut self, index: usize, buffer: &mut [u8]) -> Option<usize> {
        let output = self.outputs.get_mut(index)?;
        let length = read(output.as_ref()?, buffer)?;
        if length == 0 {
            *output = None;
        }
        (length > 0).then_some(length)
    }

    /// Sends it a signal, unless it has been reaped.
    pub(crate) fn send(&self, signal: ProgramSignal) {
        if !self.reaped {
            process::send_signal(self.pid, signal.number());
        }
    }

    /// Reaps exited children of this process until the program is among them. Returns how it exited, if
    /// it has. SIGABRT is then no longer forwarded to it. The program can make more of them (clone(2),
    /// `CLONE_PARENT`) than are reaped, but the kernel returns the oldest child first.
    pub(crate) fn try_reap(&mut self) -> Option<Exit> {
        for _ in 0..REAPED_MAX {
            let (pid, exit) = process::next_exited_child().ok().flatten()?;
            if pid == self.pid {
                signal::forward_aborts_to(None);
                self.reaped = true;
            }
            let reaped = process::reap(pid);
            if pid == self.pid {
                return Some(exit);
            }
            if reaped.is_err() {
                break; // it would be found again
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

/// Opens a pipe whose read end is nonblocking. The program's end blocks, as programs expect.
fn output_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (rx, tx) = file::pipe()?;
    fcntl(&tx, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok((rx, tx))
}

/// Executes the program, in the child. Returns only on failure: the error, and the descriptor to
/// report it on.
fn exec_in_child<'a>(
    spec: &ProgramSpec<'_>,
    parent: Pid,
    stdio: [RawFd; 3],
    error_tx: BorrowedFd<'a>,
) -> (io::Error, BorrowedFd<'a>) {
    if let Err(errno) = set_pdeathsig(NixSignal::SIGKILL) {
        return (errno.into(), error_tx);
    }
    if Pid::parent() != parent {
        process::exit_immediately(EXIT_EXEC_FAILED); // it died before the kernel could watch it
    }
    let pid = Pid::this().to_string();
    spec.env.iter().for_each(|(name, value)| process::set_env(name, value));
    spec.pid_env_names.iter().for_each(|name| process::set_env(name, &pid));
    let path = std::env::var_os("PATH");
    let name = spec.args.first().map_or(OsStr::new(""), |name| OsStr::from_bytes(name.to_bytes()));
    let program = match process::find_program(name, path.as_deref(), None) {
        Ok(program) => program,
        Err(error) => return (error, error_tx),
    };
    let sockets = spec.sockets.iter().map(AsRawFd::as_raw_fd);
    let fds: Vec<RawFd> = stdio.into_iter().chain(sockets).chain([error_tx.as_raw_fd()]).collect();
    let copies = match process::dup_fds_above(&fds, fds.len() as RawFd) {
        Ok(copies) => copies,
        Err(error) => return (error, error_tx),
    };
    let (error_fd, inherited) =
        copies.split_last().map_or((-1, &[][..]), |(last, rest)| (*last, rest));
    // SAFETY: the copy was made just above, beyond all numbers that are overwritten below.
    let error_tx = unsafe { BorrowedFd::borrow_raw(error_fd) };
    if let Err(error) = process::dup_fds_to(inherited, 0) {
        return (error, error_tx);
    }
    fd_table::close_on_exec_from(inherited.len() as RawFd);
    // In this order: a handler of the parent's would write into the parent's pipe.
    signal::reset_all_signals();
    signal::unblock_all();
    (process::exec(&program, spec.args), error_tx)
}

/// Waits until the child has executed the program, or has reported the error.
fn read_exec_error(error_rx: &OwnedFd) -> Option<io::Error> {
    let mut errno = [0; 4];
    loop {
        match nix::unistd::read(error_rx, &mut errno) {
            Ok(4) => return Some(io::Error::from_raw_os_error(i32::from_ne_bytes(errno))),
            Ok(_) => return None,
            Err(Errno::EINTR) => (),
            Err(Errno::EAGAIN) => {
                // Any failure shows again on the next read.
                let _ = poll::wait_readable(&[error_rx.as_fd()], None);
            }
            Err(errno) => return Some(errno.into()),
        }
    }
}

/// Reads the available bytes, at most the buffer's length; `None` if there are none now, 0 at the
/// end.
fn read(output: &OwnedFd, buffer: &mut [u8]) -> Option<usize> {
    loop {
        match nix::unistd::read(output, buffer) {
            Ok(length) => return Some(length),
            Err(Errno::EINTR) => (),
            Err(Errno::EAGAIN) => return None,
            Err(_) => return Some(0),
        }
    }
}

/// Exits this process as another one exited: with its code, or by its signal, without a core dump.
pub(crate) fn exit_like(exit: Exit) -> ! {
    match exit {
        Exit::Code(code) => process::exit_immediately(code.to_ne_bytes()[0]),
        Exit::Signal { number, .. } => {
            let _ = super::resources::set_core_limit(Some(0));
            if let Ok(number) = NixSignal::try_from(number) {
                signal::raise_with_default_action(number);
            }
            process::exit_immediately(process::EX_SOFTWARE) // the signal has no name, or no effect
        }
    }
}
