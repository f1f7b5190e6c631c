//! Programs that this process starts and ends from outside, as a test of them does.

use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal as Number, kill};
use nix::unistd::{Pid as RawPid, setsid};

use super::process::Pid;
use super::signal::Signal;

/// Makes the program lead a session of its own, in which whoever it leaves behind is found again;
/// the kernel kills it when the thread ends that starts it. It dumps no core.
pub(crate) fn bind_to_parent(command: &mut Command) {
    let before_exec = || {
        setsid()?;
        set_pdeathsig(Number::SIGKILL)?;
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
        Ok(())
    };
    // SAFETY: the closure makes plain system calls only; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(before_exec) };
}

/// Tells a process something. Nothing happens if it is not there any more.
pub(crate) fn send_signal(pid: Pid, signal: Signal) {
    send(pid, signal.number());
}

/// Stops a process, such that only a kill can still reach it.
pub(crate) fn send_sigstop(pid: Pid) {
    send(pid, Number::SIGSTOP);
}

/// Kills a process.
pub(crate) fn send_sigkill(pid: Pid) {
    send(pid, Number::SIGKILL);
}

fn send(pid: Pid, number: Number) {
    assert!(pid.as_raw() > 1, "0 and below name groups, and 1 is everybody's");
    let _ = kill(RawPid::from_raw(pid.as_raw()), number);
}
