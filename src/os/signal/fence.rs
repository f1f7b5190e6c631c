//! The fence of a led worker: a timer that kills it when its master's term has ended, whatever the
//! master does. The process can prevent it: it blocks SIGRTMAX in every thread, handles or ignores it,
//! deletes the timer, or executes another program.

use std::io;
use std::mem;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::unistd::{getpgrp, getpid};

use crate::os::clock;
use crate::os::memory::PublishedMemory;
use crate::time::MonotonicTime;

/// Where the end of the term is, on the clock of [`clock::boot_now`], in nanoseconds.
static TERM_END: OnceLock<&'static PublishedMemory> = OnceLock::new();

/// The timer of this process.
static TIMER: AtomicUsize = AtomicUsize::new(0);

/// Kills this process, and the process group that it must lead, once the term has ended that the master
/// publishes in the first word of `term_end`. While the master extends it, the process lives. Only the
/// first call in a process's life has an effect.
///
/// # Errors
/// From timer_create(2) and sigaction(2); this process leads no process group.
pub(crate) fn install_fence(term_end: &'static PublishedMemory) -> io::Result<()> {
    if TERM_END.set(term_end).is_err() {
        return Ok(());
    }
    if !leads_its_group() {
        return Err(io::Error::other("the process leads no process group"));
    }
    // SAFETY: sigaction is plain numbers, for which zero is a value.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = on_fence as *const () as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler makes async-signal-safe calls only, and keeps errno.
    super::super::check(unsafe {
        libc::sigaction(fence_signal(), &raw const action, std::ptr::null_mut())
    })?;
    // SAFETY: sigevent is plain numbers, for which zero is a value.
    let mut event: libc::sigevent = unsafe { mem::zeroed() };
    event.sigev_notify = libc::SIGEV_SIGNAL;
    event.sigev_signo = fence_signal();
    let mut timer: libc::timer_t = std::ptr::null_mut();
    // SAFETY: both are written or read during the call only.
    super::super::check(unsafe {
        libc::timer_create(libc::CLOCK_BOOTTIME, &raw mut event, &raw mut timer)
    })?;
    TIMER.store(timer as usize, Ordering::Relaxed);
    enforce_fence();
    Ok(())
}

/// The last of the signals that have no meaning of their own.
fn fence_signal() -> libc::c_int {
    libc::SIGRTMAX()
}

extern "C" fn on_fence(_: libc::c_int) {
    let errno = Errno::last();
    enforce_fence();
    errno.set();
}

/// Kills this process if the term has ended, and sets the timer to its end otherwise.
fn enforce_fence() {
    let Some(term_end) = TERM_END.get() else { return };
    let end = MonotonicTime::from_nanos(term_end.load(0));
    let is_set = clock::boot_now() < end && set_timer(end);
    if !is_set {
        // If it has left its group since, the group is another's.
        let target = if leads_its_group() { 0 } else { getpid().as_raw() };
        // SAFETY: kill(2) is async-signal-safe; 0 is the group of this process.
        unsafe { libc::kill(target, libc::SIGKILL) };
    }
}

/// Returns whether this process leads its process group. Async-signal-safe.
fn leads_its_group() -> bool {
    getpgrp() == getpid()
}

fn set_timer(at: MonotonicTime) -> bool {
    let nanos = at.as_nanos();
    let value = libc::timespec {
        tv_sec: (nanos / 1_000_000_000) as libc::time_t,
        tv_nsec: (nanos % 1_000_000_000) as libc::c_long,
    };
    let never = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let spec = libc::itimerspec { it_interval: never, it_value: value };
    let timer = TIMER.load(Ordering::Relaxed) as libc::timer_t;
    // SAFETY: timer_settime(2) is async-signal-safe; the timer is this process's, and lives as long.
    let set = unsafe {
        libc::timer_settime(timer, libc::TIMER_ABSTIME, &raw const spec, std::ptr::null_mut())
    };
    set == 0
}
