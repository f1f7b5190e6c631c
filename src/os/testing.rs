//! Starting, signalling and killing programs under test.

use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal as NixSignal, kill};
use nix::unistd::{Pid as RawPid, setsid};

use super::pid::Pid;
use super::signal::Signal;

/// Makes the program the leader of its own session, by which a test finds the processes that it
/// leaves behind. The kernel kills it when the thread that starts it exits. It dumps no core.
pub(crate) fn bind_to_parent(command: &mut Command) {
    let before_exec = || {
        setsid()?;
        set_pdeathsig(NixSignal::SIGKILL)?;
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
        Ok(())
    };
    // SAFETY: the closure makes plain system calls only; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(before_exec) };
}

/// Sends a signal. Does nothing if the process does not exist any more.
pub(crate) fn send_signal(pid: Pid, signal: Signal) {
    send(pid, signal.number());
}

/// Returns the kernel's number of a signal.
pub(crate) fn signal_number(signal: Signal) -> i32 {
    signal.number() as i32
}

/// Sends SIGSTOP: only SIGKILL and SIGCONT still have an effect on the process.
pub(crate) fn send_sigstop(pid: Pid) {
    send(pid, NixSignal::SIGSTOP);
}

/// Sends SIGKILL.
pub(crate) fn send_sigkill(pid: Pid) {
    send(pid, NixSignal::SIGKILL);
}

fn send(pid: Pid, number: NixSignal) {
    assert!(pid.as_raw() > 1, "0 and below name groups, and 1 is init");
    let _ = kill(RawPid::from_raw(pid.as_raw()), number);
}
