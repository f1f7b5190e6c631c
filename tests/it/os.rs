//! What safe Rust cannot ask of the kernel: a child's first steps, and another process's limits.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
use nix::unistd::{Pid, setsid};

/// What a server finds when it starts.
#[derive(Clone, Copy, Default)]
pub struct Inheritance {
    /// A descriptor of ours that stays open in it, under the same number.
    pub fd: Option<RawFd>,
    /// The state of its signals.
    pub signals: Signals,
}

/// The state of signals that a parent leaves behind.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Signals {
    /// All at their defaults.
    #[default]
    Default,
    /// All blocked, and SIGCHLD ignored: what a careless supervisor hands down.
    Careless,
}

/// Makes the child a session of its own that dies with the thread that starts it and dumps no core.
pub fn prepare(command: &mut Command, inheritance: Inheritance) {
    let first_steps = move || {
        setsid()?;
        set_pdeathsig(Signal::SIGKILL)?;
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
        if let Some(fd) = inheritance.fd {
            // SAFETY: the test that asked for `fd` keeps it open until the server has started.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        // A shell that starts the tests in the background has INT and QUIT ignored.
        for number in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM] {
            // SAFETY: the default action installs no handler.
            unsafe { signal(number, SigHandler::SigDfl) }?;
        }
        if inheritance.signals == Signals::Careless {
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
            // SAFETY: ignoring a signal installs no handler.
            unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
        }
        Ok(())
    };
    // SAFETY: the closure makes plain system calls only; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(first_steps) };
}

/// Takes over a descriptor that the kernel has just made for us, and of which nobody else knows.
pub fn own(number: RawFd) -> OwnedFd {
    // SAFETY: the caller has it from recvmsg(2), and has given its number to nobody.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Sets the soft limit of open descriptors of another process.
pub fn limit_descriptors(pid: Pid, soft: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the answer, and no new limit is given.
    let got = unsafe {
        libc::prlimit(pid.as_raw(), libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut limit)
    };
    assert_eq!(got, 0, "cannot read the limits of {pid}: {}", io::Error::last_os_error());
    limit.rlim_cur = soft;
    // SAFETY: `limit` is a valid limit, and the old one is not asked for.
    let set = unsafe {
        libc::prlimit(pid.as_raw(), libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut())
    };
    assert_eq!(set, 0, "cannot limit {pid}: {}", io::Error::last_os_error());
}
