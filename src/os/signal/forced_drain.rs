//! The drain of a process that polls no signals: a timer's handler decides when it exits.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use nix::errno::Errno;
use nix::sys::signal::{SigHandler, Signal as NixSignal};

use super::abort::is_aborting;
use super::alarm::{arm_alarm, set_alarm_interval};
use super::pipe::on_signal;
use super::{Signal, set_action};
use crate::os::process;

/// How often [`SignalDrain::may_exit`] is asked, in microseconds.
const DRAIN_TICK_MICROS: libc::suseconds_t = 20_000;

/// Drains a process that polls no signals. Its methods run in a signal handler, between any two
/// instructions: they must take no lock and allocate no memory.
pub(crate) trait SignalDrain: Send + Sync {
    /// Notes that this signal told the process to stop.
    fn on_stop_requested(&self, signal: Signal);

    /// Whether the process may exit now.
    fn may_exit(&self) -> bool;
}

/// The drain of this process; empty before [`catch_stop_signals`].
static SIGNAL_DRAIN: OnceLock<Box<dyn SignalDrain>> = OnceLock::new();

/// Whether this process has polled its signals.
static SIGNALS_POLLED: AtomicBool = AtomicBool::new(false);

/// The seconds of the alarm to arm again when the ticks end; 0 if they displaced none.
static DISPLACED_ALARM_SECONDS: AtomicU32 = AtomicU32::new(0);

/// Notes that this process polls its signals.
pub(crate) fn mark_polled() {
    if !is_polled() {
        SIGNALS_POLLED.store(true, Ordering::Relaxed);
    }
}

/// Whether this process has ever polled its signals.
pub(crate) fn is_polled() -> bool {
    SIGNALS_POLLED.load(Ordering::Relaxed)
}

/// Sends SIGTERM, SIGINT and SIGQUIT to this process's [`SignalPipe`](super::SignalPipe) from now
/// on. Until the process polls its signals, `drain` handles these and the parent's death. Only the
/// first call in a process's life sets `drain`.
pub(crate) fn catch_stop_signals(drain: impl SignalDrain + 'static) {
    let _ = SIGNAL_DRAIN.set(Box::new(drain));
    for signal in [Signal::Term, Signal::Int, Signal::Quit] {
        set_action(signal.number(), SigHandler::Handler(on_stop_signal));
    }
}

/// Arms an alarm. If the ticks of a drain displace it, it is armed again when they end.
pub(super) fn arm_alarm_across_ticks(seconds: u32) {
    DISPLACED_ALARM_SECONDS.store(seconds, Ordering::Relaxed);
    arm_alarm(seconds);
}

/// Passes the signal to the pipe, and starts the ticks of the drain if the process polls no
/// signals.
pub(super) extern "C" fn on_stop_signal(number: libc::c_int) {
    on_signal(number);
    let (Some(drain), false) = (SIGNAL_DRAIN.get(), is_polled() || is_aborting()) else { return };
    let errno = Errno::last();
    if let Some(signal) = Signal::from_byte(number as u8) {
        drain.on_stop_requested(signal);
    }
    set_action(NixSignal::SIGALRM, SigHandler::Handler(on_drain_tick));
    set_alarm_interval(DRAIN_TICK_MICROS);
    errno.set();
}

/// Exits if the drain is over, and ends the ticks if the process has begun to poll its signals.
extern "C" fn on_drain_tick(_: libc::c_int) {
    let errno = Errno::last();
    if is_aborting() {
        return;
    }
    if is_polled() {
        set_alarm_interval(0);
        set_action(NixSignal::SIGALRM, SigHandler::SigDfl);
        let displaced = DISPLACED_ALARM_SECONDS.load(Ordering::Relaxed);
        if displaced > 0 {
            arm_alarm(displaced);
        }
    } else if SIGNAL_DRAIN.get().is_some_and(|drain| drain.may_exit()) {
        process::exit_immediately(0);
    }
    errno.set();
}
