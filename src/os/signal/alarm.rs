//! The process's one SIGALRM timer, set by calls that a signal handler may make.

/// Sends SIGALRM once, after so many seconds; 0 disarms the timer.
pub(super) fn arm_alarm(seconds: u32) {
    // SAFETY: alarm(2) is async-signal-safe and touches no memory.
    unsafe { libc::alarm(seconds) };
}

/// Sends SIGALRM at this interval; 0 disarms the timer. It replaces any alarm set before.
pub(super) fn set_alarm_interval(micros: libc::suseconds_t) {
    let interval = libc::timeval { tv_sec: 0, tv_usec: micros };
    let timer = libc::itimerval { it_interval: interval, it_value: interval };
    // SAFETY: a plain system call on Linux; `timer` outlives it, and nothing is written back.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
}
