//! The death of the parent: the kernel's notice of it, and an alarm that bounds the orphan's life.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigHandler, Signal as NixSignal};

use super::forced_drain::{arm_alarm_across_ticks, on_stop_signal};
use super::{Signal, set_action};

/// How long an orphan may live, in whole seconds.
static ORPHAN_TIMEOUT_SECONDS: AtomicU32 = AtomicU32::new(0);

/// Requests a signal when the parent dies (Linux): [`Signal::ParentDeath`] goes to the pipe, and
/// `limit` later, rounded up to whole seconds, an alarm kills the process and the process group
/// that it must lead.
///
/// # Errors
/// From prctl(2).
pub(crate) fn catch_parent_death(limit: Duration) -> io::Result<()> {
    let seconds = limit.as_secs_f64().ceil().clamp(1.0, 1e9) as u32;
    ORPHAN_TIMEOUT_SECONDS.store(seconds, Ordering::Relaxed);
    set_action(NixSignal::SIGALRM, SigHandler::Handler(on_orphan_timeout));
    set_action(Signal::ParentDeath.number(), SigHandler::Handler(on_parent_death));
    request_parent_death_signal()
}

/// Requests [`Signal::ParentDeath`] when the parent dies (Linux). Its default action ends the
/// process. A change of user clears the request, so repeat the call after one.
///
/// # Errors
/// From prctl(2).
pub(crate) fn request_parent_death_signal() -> io::Result<()> {
    Ok(set_pdeathsig(Signal::ParentDeath.number())?)
}

/// Arms the alarm that bounds the orphan's life, then stops the process as SIGTERM would. No master
/// is left to end it from outside, and its loop may be stuck.
extern "C" fn on_parent_death(number: libc::c_int) {
    arm_alarm_across_ticks(ORPHAN_TIMEOUT_SECONDS.load(Ordering::Relaxed));
    on_stop_signal(number);
}

/// Kills this process and all that it has started, by their process group: no master is left to do
/// so.
extern "C" fn on_orphan_timeout(_: libc::c_int) {
    // SAFETY: kill(2) is async-signal-safe; 0 is the group of this process, which a worker leads.
    unsafe { libc::kill(0, libc::SIGKILL) };
}
