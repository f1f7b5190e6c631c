//! SIGABRT: a hook that runs before the process dies of it, or a child that gets it instead.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal as NixSignal};
use nix::sys::signal::{kill, raise, sigaction, sigprocmask};

use super::alarm::arm_alarm;
use super::pipe::on_signal;
use super::set_action;
use crate::os::pid::Pid;

/// What this process does when it is aborted.
static ABORT_HOOK: OnceLock<Box<dyn Fn() + Send + Sync>> = OnceLock::new();

/// Whether the hook has begun.
static ABORTING: AtomicBool = AtomicBool::new(false);

/// The process that is aborted in place of this one; 0 if none.
static ABORT_TARGET: AtomicI32 = AtomicI32::new(0);

/// How long the hook may take, in whole seconds.
const ABORT_HOOK_SECONDS: u32 = 1;

/// Runs `hook` when this process is aborted. SIGABRT ends the process when the hook returns, or 1 s
/// later. Only the first call in a process's life sets the hook.
pub(crate) fn install_abort_hook(hook: impl Fn() + Send + Sync + 'static) {
    let _ = ABORT_HOOK.set(Box::new(hook));
    // SA_RESETHAND: the second one kills. SA_NODEFER: it need not wait until the first is done.
    let flags = SaFlags::SA_RESETHAND | SaFlags::SA_NODEFER;
    let action = SigAction::new(SigHandler::Handler(on_abort), flags, SigSet::empty());
    // SAFETY: `on_abort` never returns to the code that it interrupts, so nothing that it does can
    // confuse that code.
    let set = unsafe { sigaction(NixSignal::SIGABRT, &action) };
    debug_assert!(set.is_ok(), "SIGABRT may be caught");
}

/// Whether this process is being aborted. Its hook runs, and nothing else may end it before.
pub(crate) fn is_aborting() -> bool {
    ABORTING.load(Ordering::Relaxed)
}

/// Forwards SIGABRT to a child that has not been reaped, instead of aborting this process: the
/// child is what hangs, and may report or dump core. Pass `None` before the child is reaped.
pub(crate) fn forward_aborts_to(child: Option<Pid>) {
    ABORT_TARGET.store(child.map_or(0, Pid::as_raw), Ordering::Relaxed);
    if child.is_some() {
        set_action(NixSignal::SIGABRT, SigHandler::Handler(forward_abort));
    }
}

/// Runs the hook, and dies. This is more than a handler may do: the hook may wait for a lock that
/// the interrupted code holds, and crash. The process is lost anyway. Whatever the hook does,
/// SIGABRT ends the process: another one, such as that of a crash in here, finds the default action
/// already, and so does the one that the alarm sends.
extern "C" fn on_abort(_: libc::c_int) {
    ABORTING.store(true, Ordering::Relaxed);
    arm_alarm(ABORT_HOOK_SECONDS); // first: an earlier one is not meant for what follows
    set_action(NixSignal::SIGALRM, SigHandler::Handler(on_abort_hook_timeout));
    on_signal(libc::SIGTERM); // the other threads accept no more clients
    let alarm_only = SigSet::from(NixSignal::SIGALRM);
    let _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&alarm_only), None);
    if let Some(hook) = ABORT_HOOK.get() {
        hook();
    }
    let _ = raise(NixSignal::SIGABRT);
}

/// Ends the process, whose hook has taken too long.
extern "C" fn on_abort_hook_timeout(_: libc::c_int) {
    // To the process: the thread that runs this may have blocked SIGABRT, the aborted one has not.
    let _ = kill(nix::unistd::Pid::this(), NixSignal::SIGABRT);
}

/// Passes SIGABRT on. May run between any two instructions of this process.
extern "C" fn forward_abort(number: libc::c_int) {
    let errno = Errno::last();
    let target = ABORT_TARGET.load(Ordering::Relaxed);
    if target > 0 {
        // SAFETY: kill(2) is async-signal-safe and takes any numbers.
        unsafe { libc::kill(target, number) };
    }
    errno.set();
}
