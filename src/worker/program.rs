//! A program in any language as the child of a worker: finds it, starts it with the worker's sockets,
//! reads its output and notifications, stops it and reaps it. Its class decides when.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};
use std::thread;

use super::context::WorkerContext;
use super::lifecycle::Lifecycle;
use crate::app::ConfigError;
use crate::listen::Listener;
use crate::os::child_program::{self, ChildProgram, ProgramSignal, ProgramSpec};
use crate::os::notify_socket::{self, Notification, NotifySocket};
use crate::os::private_dir::{self, PrivateDir};
use crate::os::process::{self, Exit, Pid};
use crate::os::{credentials, poll};
use crate::settings::{self, Settings, StopSignal};
use crate::time::MonotonicTime;

/// The program of a worker: the `command` of the settings. It leads no process group, so the processes
/// that it starts end with the worker. When the worker exits, the program is killed. When the worker
/// is aborted, the program is aborted in its place.
#[derive(Debug)]
pub struct Program {
    child: ChildProgram,
    notify_socket: NotifySocket,
    notify_path: PathBuf,
    fd_closer: FdCloser,
}

/// One of a program's two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// The standard output.
    Stdout,
    /// The standard error stream.
    Stderr,
}

impl Output {
    /// Both outputs.
    pub const ALL: [Self; 2] = [Self::Stdout, Self::Stderr];

    /// Returns its usual name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// How many bytes of a script's first line the kernel reads (`BINPRM_BUF_SIZE`).
const SCRIPT_LINE_MAX: u64 = 256;
/// How many notifications of other programs are skipped in one call.
const NOTIFICATIONS_PER_READ: usize = 64;

/// How a program exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramExit(Exit);

/// Checks that the program of the settings can be executed, with the `PATH` and the working directory
/// that a worker will have.
///
/// # Errors
/// It does not exist, or cannot be executed.
pub(crate) fn check_command(settings: &Settings) -> Result<(), ConfigError> {
    let program = settings.command.first().map_or("", String::as_str);
    let worker_path = settings.env.iter().rev().find(|(name, _)| name == "PATH");
    let path =
        worker_path.map(|(_, value)| OsString::from(value)).or_else(|| std::env::var_os("PATH"));
    let found =
        process::find_program(OsStr::new(program), path.as_deref(), settings.chdir.as_deref());
    let found = found.and_then(|path| check_interpreter(&path, settings.chdir.as_deref()));
    found.map_err(|error| {
        let from = settings.chdir.as_deref().filter(|_| program.contains('/'));
        let from = from.map(|dir| format!(" from {}", dir.display())).unwrap_or_default();
        let is_line = settings.command.len() == 1 && program.contains(' ');
        let tip =
            if is_line { "; give the program and its arguments as separate words" } else { "" };
        ConfigError::new(format!("failed to run {program:?}{from}: {error}{tip}"))
    })
}

/// Checks that the interpreter which a script names exists: execve(2) says `ENOENT` as if it were the
/// script itself that is missing.
fn check_interpreter(script: &Path, dir: Option<&Path>) -> io::Result<()> {
    let mut line = Vec::new();
    // A program that cannot be read may be executed all the same.
    let Ok(file) = File::open(script) else { return Ok(()) };
    BufReader::new(file.take(SCRIPT_LINE_MAX)).read_until(b'\n', &mut line)?;
    let Some(words) = line.strip_prefix(b"#!") else { return Ok(()) };
    let words = words.trim_ascii_start();
    let end = words.iter().position(u8::is_ascii_whitespace).unwrap_or(words.len());
    let interpreter = Path::new(OsStr::from_bytes(&words[..end]));
    let path = dir.map_or_else(|| interpreter.to_path_buf(), |dir| dir.join(interpreter));
    match path.try_exists() {
        Ok(false) if end > 0 => Err(io::Error::other(format!(
            "its interpreter {interpreter:?} does not exist: correct the first line of {script:?}"
        ))),
        Ok(_) | Err(_) => Ok(()),
    }
}

impl Program {
    /// Starts the `command` of the settings. It gets the worker's listeners from descriptor 3 on
    /// (`LISTEN_FDS`, `LISTEN_PID`, `LISTEN_FDNAMES`), a `NOTIFY_SOCKET` of its own, `OSTLER_POOL`,
    /// `OSTLER_SLOT` and `OSTLER_GENERATION`, and, if `timeout` is not 0, `WATCHDOG_USEC` and
    /// `WATCHDOG_PID`. Its standard input is empty. With `inherit_output` it has the outputs of this
    /// process, and [`read`](Self::read) returns nothing.
    ///
    /// # Errors
    /// It cannot be found or executed; there are no descriptors or processes.
    ///
    /// # Panics
    /// If this process has more than one thread.
    pub fn start(ctx: &WorkerContext<'_>) -> io::Result<Self> {
        let (notify_socket, notify_path) = open_notify_socket(ctx)?;
        let args = ctx.settings.command.iter().map(|word| CString::new(word.as_str()));
        let args = args.collect::<Result<Vec<_>, _>>()?;
        let sockets: Vec<BorrowedFd<'_>> =
            ctx.listeners.iter().map(|listener| listener.as_fd()).collect();
        let timeout = ctx.settings.timeout;
        let mut variables: Vec<(OsString, OsString)> = Vec::new();
        let mut set = |name: &str, value: String| variables.push((name.into(), value.into()));
        set(settings::POOL_VARIABLE, ctx.worker.pool.clone());
        set(settings::SLOT_VARIABLE, ctx.worker.slot.to_string());
        set(settings::GENERATION_VARIABLE, ctx.worker.generation.to_string());
        variables.push(("NOTIFY_SOCKET".into(), notify_path.clone().into()));
        let mut set = |name: &str, value: String| variables.push((name.into(), value.into()));
        let mut pid_variables = Vec::new();
        if !sockets.is_empty() {
            let names: Vec<_> = ctx.listeners.iter().map(|listener| name_of(listener)).collect();
            set("LISTEN_FDS", sockets.len().to_string());
            set("LISTEN_FDNAMES", names.join(":"));
            pid_variables.push("LISTEN_PID");
        }
        if !timeout.is_zero() {
            set("WATCHDOG_USEC", timeout.as_micros().to_string());
            pid_variables.push("WATCHDOG_PID");
        }
        let launch = ProgramSpec {
            args: &args,
            sockets: &sockets,
            env: &variables,
            pid_env_names: &pid_variables,
            inherit_output: ctx.settings.inherit_output,
        };
        Ok(Self {
            child: ChildProgram::start(&launch)?,
            notify_socket,
            notify_path,
            fd_closer: FdCloser::default(),
        })
    }

    /// Returns its process ID.
    pub fn id(&self) -> i32 {
        self.child.pid().as_raw()
    }

    /// Sleeps until it has printed something, sent a notification or exited, until the worker has signals
    /// to process, or until `deadline`.
    ///
    /// # Errors
    /// `ENOMEM`, from ppoll(2).
    pub fn wait(&self, lifecycle: &Lifecycle, deadline: Option<MonotonicTime>) -> io::Result<()> {
        let mut fds = vec![lifecycle.wake_fd(), self.notify_socket.as_fd()];
        fds.extend(self.child.open_outputs());
        poll::wait_readable(&fds, deadline).map(|_| ())
    }

    /// Reads what it has printed; `None` if there is nothing now. It never waits.
    pub fn read(&mut self, output: Output, buffer: &mut [u8]) -> Option<usize> {
        self.child.read_output(output as usize, buffer)
    }

    /// Receives the next notification that it, or a process that it has started, has sent to its
    /// `NOTIFY_SOCKET`: lines of `NAME=VALUE`. Those of other senders are skipped. It never waits.
    pub fn next_notification(&mut self) -> Option<String> {
        for _ in 0..NOTIFICATIONS_PER_READ {
            let mut notification = self.notify_socket.try_receive()?;
            self.fd_closer.close(std::mem::take(&mut notification.fds));
            if self.is_from_program(&notification) {
                return Some(String::from_utf8_lossy(&notification.text).into_owned());
            }
        }
        None // many foreign notifications: the next turn reads the rest
    }

    /// Returns whether the program or its child has sent it. A sender that has exited is identified by
    /// its user alone: a process of that user could do worse than send notifications. A sender outside
    /// of this PID namespace has no number, and is refused.
    fn is_from_program(&self, notification: &Notification) -> bool {
        if notification.sender.as_raw() <= 0 {
            return false; // to getpgid(2), 0 is this process
        }
        match process::process_group_of(notification.sender) {
            Some(group) => notification.sender == self.child.pid() || Some(group) == own_group(),
            None => notification.uid == credentials::effective_uid(),
        }
    }

    /// Sends the signal that asks it to finish and exit.
    pub fn send_stop_signal(&self, signal: StopSignal) {
        self.child.send(match signal {
            StopSignal::Term => ProgramSignal::Term,
            StopSignal::Int => ProgramSignal::Int,
            StopSignal::Quit => ProgramSignal::Quit,
            StopSignal::Hup => ProgramSignal::Hup,
            StopSignal::Usr1 => ProgramSignal::Usr1,
            StopSignal::Usr2 => ProgramSignal::Usr2,
            StopSignal::Winch => ProgramSignal::Winch,
        });
    }

    /// Sends SIGINT, as Ctrl-C does: it must exit at once.
    pub fn interrupt(&self) {
        self.child.send(ProgramSignal::Int);
    }

    /// Sends SIGABRT: it may print a backtrace, and dump core.
    pub fn abort(&self) {
        self.child.send(ProgramSignal::Abrt);
    }

    /// Sends SIGKILL.
    pub fn kill(&self) {
        self.child.send(ProgramSignal::Kill);
    }

    /// Reaps it and returns how it exited, if it has.
    pub fn try_reap(&mut self) -> Option<ProgramExit> {
        self.child.try_reap().map(ProgramExit)
    }

    /// Exits the worker at once as its program exited, with the same code or by the same signal, so that
    /// the master sees it. If the master has died, this does what the master does otherwise: it removes
    /// the notification socket, and kills the processes that the program has left.
    pub fn exit_like(&self, exit: ProgramExit, lifecycle: &Lifecycle) -> ! {
        if lifecycle.is_orphaned() {
            private_dir::remove_with_entry(&self.notify_path);
            process::kill_process_group(Pid::this());
        }
        child_program::exit_like(exit.0)
    }
}

/// The name of the notification socket in its directory.
pub(crate) const NOTIFY_SOCKET_NAME: &str = "notify";

/// Checks that the path of a notification socket in this directory fits a socket address.
///
/// # Errors
/// It is too long.
pub(crate) fn check_notify_path(dir: &Path) -> Result<(), ConfigError> {
    let length = PrivateDir::entry_path_len(dir, NOTIFY_SOCKET_NAME);
    let excess = length.unwrap_or(0).saturating_sub(notify_socket::PATH_BYTES_MAX);
    if excess == 0 {
        return Ok(());
    }
    Err(ConfigError::new(format!(
        "{} is {excess} bytes too long: the path of NOTIFY_SOCKET in it may have {} bytes",
        dir.display(),
        notify_socket::PATH_BYTES_MAX
    )))
}

fn open_notify_socket(ctx: &WorkerContext<'_>) -> io::Result<(NotifySocket, PathBuf)> {
    let path = ctx.notify_path.ok_or(io::ErrorKind::Unsupported)?;
    let opened = NotifySocket::bind(path).map_err(|error| {
        let text = format!(
            "cannot create NOTIFY_SOCKET {}: {error}; the workers' user needs access to worker_tmp_dir",
            path.display()
        );
        io::Error::new(error.kind(), text)
    });
    Ok((opened?, path.to_owned()))
}

/// Closes descriptors in a thread of its own: a socket with SO_LINGER, a terminal or a file of a
/// network may block in close(2), and the worker must not.
#[derive(Debug, Default)]
struct FdCloser {
    /// How many wait here is limited by RLIMIT_NOFILE.
    queue: Option<Sender<Vec<OwnedFd>>>,
}

impl FdCloser {
    fn close(&mut self, fds: Vec<OwnedFd>) {
        if fds.is_empty() {
            return;
        }
        if self.queue.is_none() {
            let (queue, received) = mpsc::channel();
            let closer = thread::Builder::new().name("ostler-close".to_owned());
            let started = closer.spawn(move || received.into_iter().for_each(drop));
            self.queue = started.is_ok().then_some(queue);
        }
        if let Some(queue) = &self.queue {
            let _ = queue.send(fds); // without a thread, they are closed here
        }
    }
}

fn own_group() -> Option<Pid> {
    process::process_group_of(Pid::this())
}

/// Returns a listener's name for `LISTEN_FDNAMES`, where colons separate names.
fn name_of(listener: &Listener) -> String {
    listener.name().replace('%', "%25").replace(':', "%3A")
}
