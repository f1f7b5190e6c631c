//! A program of any language beneath a worker: found, started with the worker's sockets, heard,
//! asked to leave, mourned. It must never know when any of that is due: its class does.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::context::WorkerContext;
use super::lifecycle::Lifecycle;
use crate::app::ConfigError;
use crate::listen::Listener;
use crate::os::child_program::{self, ChildProgram, ProgramSignal, ProgramSpec};
use crate::os::notify_socket::{Notification, NotifySocket};
use crate::os::process::{self, Exit, Pid};
use crate::os::{credentials, poll};
use crate::settings::{self, Settings, StopSignal};
use crate::time::MonotonicTime;

/// A program that runs beneath a worker: the `command` of the settings. It leads no process group:
/// whatever it starts ends with the worker. When the worker ends, so does the program; when the
/// worker is aborted, the program is, in its place.
#[derive(Debug)]
pub struct Program {
    child: ChildProgram,
    notify_socket: NotifySocket,
    /// Which of its outputs have not ended.
    output_open: [bool; 2],
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
    /// Both.
    pub const ALL: [Self; 2] = [Self::Stdout, Self::Stderr];

    /// Its usual name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// So many words of strangers are passed over at once.
const NOTIFICATIONS_PER_READ: usize = 64;

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramExit(Exit);

/// Finds the program of the settings, as a worker will: by the `PATH` that the worker will have,
/// seen from the folder in which it will run.
///
/// # Errors
/// It does not exist, or cannot be executed.
pub(crate) fn check_command(settings: &Settings) -> Result<(), ConfigError> {
    let program = settings.command.first().map_or("", String::as_str);
    let own = settings.env.iter().rev().find(|(name, _)| name == "PATH");
    let path = own.map(|(_, value)| OsString::from(value)).or_else(|| std::env::var_os("PATH"));
    let found =
        process::find_program(OsStr::new(program), path.as_deref(), settings.chdir.as_deref());
    found.map(|_| ()).map_err(|error| {
        let from = settings.chdir.as_deref().filter(|_| program.contains('/'));
        let from = from.map(|folder| format!(" from {}", folder.display())).unwrap_or_default();
        let is_line = settings.command.len() == 1 && program.contains(' ');
        let tip =
            if is_line { "; give the program and its arguments as separate words" } else { "" };
        ConfigError::new(format!("failed to run {program:?}{from}: {error}{tip}"))
    })
}

impl Program {
    /// Starts the `command` of the settings. It finds the worker's listeners from descriptor 3 on
    /// (`LISTEN_FDS`, `LISTEN_PID`, `LISTEN_FDNAMES`), a `NOTIFY_SOCKET` of its own, its place
    /// (`OSTLER_POOL`, `OSTLER_SLOT`, `OSTLER_GENERATION`), and, if somebody listens for a sign of
    /// life, `WATCHDOG_USEC` and `WATCHDOG_PID`. Its standard input is empty.
    ///
    /// # Errors
    /// It cannot be found or executed; no descriptors or processes are to be had.
    ///
    /// # Panics
    /// If this process has more than one thread.
    pub fn start(ctx: &WorkerContext<'_>) -> io::Result<Self> {
        let notify_socket = NotifySocket::open()?;
        let args = ctx.settings.command.iter().map(|word| CString::new(word.as_str()));
        let args = args.collect::<Result<Vec<_>, _>>()?;
        let sockets: Vec<BorrowedFd<'_>> = ctx.listeners.iter().map(|open| open.as_fd()).collect();
        let timeout = ctx.settings.timeout;
        let mut variables: Vec<(OsString, OsString)> = Vec::new();
        let mut set = |name: &str, value: String| variables.push((name.into(), value.into()));
        set(settings::POOL_VARIABLE, ctx.worker.pool.clone());
        set(settings::SLOT_VARIABLE, ctx.worker.slot.to_string());
        set(settings::GENERATION_VARIABLE, ctx.worker.generation.to_string());
        set("NOTIFY_SOCKET", notify_socket.name().to_owned());
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
        };
        Ok(Self { child: ChildProgram::start(&launch)?, notify_socket, output_open: [true; 2] })
    }

    /// Its process number.
    pub fn id(&self) -> i32 {
        self.child.pid().as_raw()
    }

    /// Sleeps until it has printed or said something or has ended, until the worker's life has news,
    /// or until `deadline`.
    ///
    /// # Errors
    /// `ENOMEM`, from ppoll(2).
    pub fn wait(&self, lifecycle: &Lifecycle, deadline: Option<MonotonicTime>) -> io::Result<()> {
        let mut fds = vec![lifecycle.wake_fd(), self.notify_socket.as_fd()];
        let outputs = self.child.outputs().iter().zip(self.output_open);
        fds.extend(outputs.filter(|(_, open)| *open).map(|(output, _)| output.as_fd()));
        poll::wait_readable(&fds, deadline).map(|_| ())
    }

    /// Reads what it has printed; `None` if there is nothing now. Never waits.
    pub fn read(&mut self, output: Output, buffer: &mut [u8]) -> Option<usize> {
        let index = output as usize;
        if !self.output_open[index] {
            return None;
        }
        let length = child_program::read(&self.child.outputs()[index], buffer)?;
        self.output_open[index] = length > 0;
        (length > 0).then_some(length)
    }

    /// The next thing that it, or something that it has started, has said by its `NOTIFY_SOCKET`:
    /// lines of `NAME=VALUE`. What strangers say is passed over. Never waits.
    pub fn next_notification(&mut self) -> Option<String> {
        for _ in 0..NOTIFICATIONS_PER_READ {
            let notification = self.notify_socket.try_receive()?;
            if self.is_from_program(&notification) {
                return Some(String::from_utf8_lossy(&notification.text).into_owned());
            }
        }
        None // a crowd of strangers: whoever waits finds the rest
    }

    /// Who has left already can only be known by its user: somebody who could do worse.
    fn is_from_program(&self, notification: &Notification) -> bool {
        match process::process_group_of(notification.sender) {
            Some(group) => notification.sender == self.child.pid() || Some(group) == own_group(),
            None => notification.uid == credentials::effective_uid(),
        }
    }

    /// Asks it to finish and leave, by this signal.
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

    /// Has it leave at once, as by Ctrl-C (INT).
    pub fn interrupt(&self) {
        self.child.send(ProgramSignal::Int);
    }

    /// Aborts it: it may say where it was, and dump core.
    pub fn abort(&self) {
        self.child.send(ProgramSignal::Abrt);
    }

    /// Kills it.
    pub fn kill(&self) {
        self.child.send(ProgramSignal::Kill);
    }

    /// How it ended, if it has.
    pub fn try_reap(&mut self) -> Option<ProgramExit> {
        self.child.try_reap().map(ProgramExit)
    }
}

impl Lifecycle {
    /// Ends the worker at once, as a program beneath it ended, so that the master sees that end: with
    /// its code, or by its signal. If the master has died, whatever the program has left behind is
    /// killed, which is the master's duty otherwise.
    pub fn exit_like(&self, exit: ProgramExit) -> ! {
        if self.is_orphaned() {
            process::kill_process_group(Pid::this());
        }
        child_program::exit_like(exit.0)
    }
}

fn own_group() -> Option<Pid> {
    process::process_group_of(Pid::this())
}

/// What a listener is called in `LISTEN_FDNAMES`, where colons separate names.
fn name_of(listener: &Listener) -> String {
    listener.name().replace('%', "%25").replace(':', "%3A")
}
