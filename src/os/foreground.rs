//! The process that a shell waits for while masters replace each other: it forks the first master, and exits
//! with the code of the last one (Linux).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{SigSet, Signal as NixSignal};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};

use super::process::{self, EX_SOFTWARE, Exit, Pid};
use super::signal::{self, Signal};
use super::{fd_table, poll};

/// The signals that are for the master.
const FORWARDED: [Signal; 8] = [
    Signal::Term,
    Signal::Int,
    Signal::Quit,
    Signal::Hup,
    Signal::Usr1,
    Signal::Usr2,
    Signal::Ttin,
    Signal::Ttou,
];

/// Runs `body` in a child, the first master, and exits once it and each master that has replaced it have
/// exited: with the exit code of the last one, 128 + N if signal N has ended it. Returns the error if there is
/// no master: from prctl(2) or fork(2).
pub(crate) fn run_masters(body: impl FnOnce() -> u8) -> io::Error {
    let mask = signal::set_of(FORWARDED.into_iter().chain([Signal::Chld, Signal::Urg]));
    let master = match start_master(&mask, body) {
        Ok(master) => master,
        Err(error) => return error,
    };
    let code = Foreground { master, successor: None }.wait(&mask);
    // Without a destructor: the descriptors of this program's own objects are closed.
    process::exit_immediately(code.unwrap_or_else(|_| {
        process::send_sigterm(master);
        EX_SOFTWARE
    }))
}

fn start_master(mask: &SigSet, body: impl FnOnce() -> u8) -> io::Result<Pid> {
    // A master whose parent, the old master, has exited becomes a child of this process.
    set_child_subreaper(true)?;
    // A signal that is ignored would not be seen.
    signal::restore_default(FORWARDED.into_iter().chain([Signal::Chld]));
    signal::set_mask(mask);
    process::fork(body)
}

/// Tells the parent of this master, if it is [`run_masters`], which process is to replace this one. Another
/// parent ignores the signal.
pub(crate) fn announce_successor(successor: Pid) {
    let value = libc::sigval { sival_ptr: successor.as_raw() as usize as *mut libc::c_void };
    // SAFETY: sigqueue(3) takes any numbers. The receiver never uses the value as a pointer.
    unsafe { libc::sigqueue(Pid::parent().as_raw(), libc::SIGURG, value) };
}

/// What the parent of the masters knows.
struct Foreground {
    master: Pid,
    /// The process that the master has executed to replace it.
    successor: Option<Pid>,
}

impl Foreground {
    /// Waits until the last master has exited. Returns its exit code.
    fn wait(&mut self, mask: &SigSet) -> io::Result<u8> {
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(mask, flags)?;
        // Listeners and pipes of this program are the master's.
        fd_table::close_all_except(&[0, 1, 2, signals.as_raw_fd()]);
        loop {
            poll::wait_readable(&[signals.as_fd()], None)?;
            let mut forwarded = Vec::new();
            // All of them before a look at the children: a successor is announced before the exit.
            while let Ok(Some(info)) = signals.read_signal() {
                forwarded.extend(self.on_signal(&info));
            }
            if let Some(code) = self.reap()? {
                return Ok(code);
            }
            // After that look, or a master would be sent what the next one must get.
            forwarded.into_iter().for_each(|signal| process::send_signal(self.master, signal));
        }
    }

    /// Handles a signal. Returns it if it is to be forwarded.
    fn on_signal(&mut self, info: &siginfo) -> Option<NixSignal> {
        let number = NixSignal::try_from(info.ssi_signo.cast_signed()).ok()?;
        let is_from_master = info.ssi_pid.cast_signed() == self.master.as_raw();
        if number == NixSignal::SIGURG && info.ssi_code == libc::SI_QUEUE && is_from_master {
            self.successor = Some(Pid::from_raw(info.ssi_int));
        }
        let is_for_master = !matches!(number, NixSignal::SIGCHLD | NixSignal::SIGURG);
        // What a terminal sends to the process group, the master has got as well.
        (is_for_master && info.ssi_code <= 0).then_some(number)
    }

    /// Reaps all children that have exited: masters, and what masters and workers have left behind. Returns
    /// the exit code of the last master.
    fn reap(&mut self) -> io::Result<Option<u8>> {
        while let Some((child, exit)) = process::next_exited_child()? {
            process::reap(child)?;
            if child != self.master {
                continue;
            }
            // The kernel has made it a child of this process before it tells of the exit.
            match self.successor.take().filter(|it| process::is_child(*it)) {
                Some(successor) => self.master = successor,
                None => return Ok(Some(exit_code(exit))),
            }
        }
        Ok(None)
    }
}

/// Returns the exit code by which a shell tells of an exit.
fn exit_code(exit: Exit) -> u8 {
    let code = match exit {
        Exit::Code(code) => code,
        Exit::Signal { number, .. } => 128 + number,
    };
    u8::try_from(code).unwrap_or(EX_SOFTWARE)
}
