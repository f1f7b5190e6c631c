//! Decides what to do about a program, by its notifications and as time passes. Pure: time is an
//! argument.

use std::time::Duration;

use ostler::time::MonotonicTime;
use ostler::worker::StopRequest;

use self::MonitorAction::{
    Abort, BeginStop, ClearSilent, Heartbeat, Interrupt, Kill, ReportReady, ReportSilent,
    SendStopSignal,
};

/// The limits from the settings.
#[derive(Clone, Copy, Debug)]
pub(super) struct MonitorLimits {
    /// How long a program must run to count as ready.
    pub(super) ready_after: Duration,
    /// Its longest silence once it has sent `WATCHDOG=1`; zero is no limit.
    pub(super) timeout: Duration,
    /// From an abort or an interrupt to the kill.
    pub(super) abort_timeout: Duration,
}

/// What the worker must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MonitorAction {
    /// Report that the worker is ready.
    ReportReady,
    /// Send a heartbeat.
    Heartbeat,
    /// Set an exit note: the program is silent, so the worker will soon count as hung.
    ReportSilent,
    /// Clear that note, and send a heartbeat.
    ClearSilent,
    /// Begin a graceful stop of the worker.
    BeginStop,
    /// Send the program its stop signal.
    SendStopSignal,
    /// Send it SIGINT.
    Interrupt,
    /// Send it SIGABRT.
    Abort,
    /// Send it SIGKILL.
    Kill,
}

/// The state of a program.
#[derive(Clone, Debug)]
pub(super) struct Monitor {
    limits: MonitorLimits,
    is_ready: bool,
    /// When it counts as ready by its age.
    ready_at: MonotonicTime,
    /// When it last sent `WATCHDOG=1`; `None` if it never has.
    last_watchdog: Option<MonotonicTime>,
    /// Whether its silence was reported.
    reported_silent: bool,
    /// Whether it stops by itself.
    stopping: bool,
    /// The stop that was requested.
    stop_request: StopRequest,
    /// When to send SIGKILL.
    kill_at: Option<MonotonicTime>,
}

impl Monitor {
    /// Creates the monitor of a program that was started at `now`.
    pub(super) fn new(limits: MonitorLimits, now: MonotonicTime) -> Self {
        Self {
            limits,
            is_ready: false,
            ready_at: now.saturating_add(limits.ready_after),
            last_watchdog: None,
            reported_silent: false,
            stopping: false,
            stop_request: StopRequest::None,
            kill_at: None,
        }
    }

    /// Returns whether its exit now means that it failed to boot.
    pub(super) fn is_boot_failure(&self) -> bool {
        !self.is_ready && self.stop_request == StopRequest::None
    }

    /// Handles `READY=1`.
    pub(super) fn on_ready(&mut self) -> Option<MonitorAction> {
        (!std::mem::replace(&mut self.is_ready, true)).then_some(ReportReady)
    }

    /// Handles `WATCHDOG=1`: from now on the program must repeat it.
    pub(super) fn on_watchdog(&mut self, now: MonotonicTime) -> Option<MonitorAction> {
        self.last_watchdog = Some(now);
        Some(if std::mem::take(&mut self.reported_silent) { ClearSilent } else { Heartbeat })
    }

    /// Handles `EXTEND_TIMEOUT_USEC`: the program needs this much more time to become ready.
    pub(super) fn extend_startup(&mut self, time: Duration, now: MonotonicTime) {
        self.ready_at = self.ready_at.max(now.saturating_add(time));
    }

    /// Handles `STOPPING=1`. A program that was never ready needs no replacement first.
    pub(super) fn on_stopping(&mut self) -> Option<MonitorAction> {
        let is_first = !std::mem::replace(&mut self.stopping, true);
        (is_first && self.is_ready && self.stop_request == StopRequest::None).then_some(BeginStop)
    }

    /// Aborts the program.
    pub(super) fn on_abort(&mut self, now: MonotonicTime) -> Option<MonitorAction> {
        self.kill_by(now.saturating_add(self.limits.abort_timeout));
        Some(Abort)
    }

    /// Requests a stop. The master bounds a drain by `graceful_timeout`.
    pub(super) fn request_stop(
        &mut self,
        stop: StopRequest,
        now: MonotonicTime,
    ) -> Option<MonitorAction> {
        if stop <= self.stop_request {
            return None;
        }
        self.stop_request = stop;
        match stop {
            StopRequest::None => None,
            StopRequest::Graceful => (!self.stopping).then_some(SendStopSignal),
            StopRequest::Immediate => {
                self.kill_by(now.saturating_add(self.limits.abort_timeout));
                Some(Interrupt)
            }
        }
    }

    /// Returns what is due at `now`.
    pub(super) fn due_actions(&mut self, now: MonotonicTime) -> Vec<MonitorAction> {
        let mut actions = Vec::new();
        if !self.is_ready && self.stop_request == StopRequest::None && self.ready_at <= now {
            actions.extend(self.on_ready());
        }
        if self.last_watchdog.is_none() {
            actions.push(Heartbeat); // it counts as alive while it runs
        }
        if self.silent_at().is_some_and(|at| at <= now) {
            self.reported_silent = true;
            actions.push(ReportSilent);
        }
        if self.kill_at.is_some_and(|at| at <= now) {
            self.kill_at = None;
            actions.push(Kill);
        }
        actions
    }

    /// Returns when the next action is due, besides the worker's heartbeat.
    pub(super) fn deadline(&self) -> Option<MonotonicTime> {
        let ready_at =
            (!self.is_ready && self.stop_request == StopRequest::None).then_some(self.ready_at);
        [ready_at, self.silent_at(), self.kill_at].into_iter().flatten().min()
    }

    /// Returns whether the worker sends heartbeats without `WATCHDOG=1`.
    pub(super) fn sends_heartbeat(&self) -> bool {
        self.last_watchdog.is_none()
    }

    /// Returns when to report silence: at three quarters of `timeout`, before the master finds the worker
    /// hung, since its last heartbeat may be a little older than the last `WATCHDOG=1`.
    fn silent_at(&self) -> Option<MonotonicTime> {
        let watched = !self.reported_silent && !self.limits.timeout.is_zero();
        self.last_watchdog
            .filter(|_| watched)
            .map(|said| said.saturating_add(self.limits.timeout * 3 / 4))
    }

    fn kill_by(&mut self, at: MonotonicTime) {
        self.kill_at = Some(self.kill_at.map_or(at, |earlier| earlier.min(at)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> MonotonicTime {
        MonotonicTime::from_nanos(1_000_000_000).saturating_add(Duration::from_millis(millis))
    }

    fn monitor() -> Monitor {
        let secs = Duration::from_secs;
        let (ready_after, timeout) = (secs(1), secs(10));
        Monitor::new(MonitorLimits { ready_after, timeout, abort_timeout: secs(2) }, at(0))
    }

    #[test]
    fn program_is_ready_once_after_ready_after() {
        let mut monitor = monitor();
        assert_eq!(monitor.due_actions(at(999)), [Heartbeat]);
        assert_eq!(monitor.deadline(), Some(at(1000)));
        assert_eq!(monitor.due_actions(at(1000)), [ReportReady, Heartbeat]);
        assert_eq!((monitor.due_actions(at(2000)), monitor.on_ready()), (vec![Heartbeat], None));
        assert_eq!(monitor.deadline(), None);
    }

    #[test]
    fn ready_message_is_early_and_extend_delays_ready_after() {
        let mut early = monitor();
        assert_eq!(early.on_ready(), Some(ReportReady));
        assert!(!early.is_boot_failure());
        let mut late = monitor();
        late.extend_startup(Duration::from_secs(5), at(500));
        late.extend_startup(Duration::from_secs(1), at(600)); // less than it has
        assert_eq!(late.due_actions(at(5499)), [Heartbeat]);
        assert!(late.is_boot_failure());
        assert_eq!(late.due_actions(at(5500)), [ReportReady, Heartbeat]);
    }

    #[test]
    fn silence_counts_after_first_watchdog_message() {
        let mut monitor = monitor();
        monitor.on_ready();
        assert!(monitor.sends_heartbeat());
        assert_eq!(monitor.on_watchdog(at(0)), Some(Heartbeat));
        assert!(!monitor.sends_heartbeat());
        assert_eq!(monitor.due_actions(at(7_499)), []);
        assert_eq!(monitor.on_watchdog(at(7_499)), Some(Heartbeat));
        assert_eq!(monitor.deadline(), Some(at(14_999)));
        assert_eq!(monitor.due_actions(at(14_999)), [ReportSilent]);
        assert_eq!((monitor.due_actions(at(30_000)), monitor.deadline()), (vec![], None));
        assert_eq!(monitor.on_watchdog(at(30_000)), Some(ClearSilent));
        assert_eq!(monitor.on_watchdog(at(30_001)), Some(Heartbeat));
        assert_eq!(monitor.deadline(), Some(at(37_501)));
    }

    #[test]
    fn stop_is_sent_once_and_only_escalates() {
        let mut monitor = monitor();
        monitor.on_ready();
        assert_eq!(monitor.request_stop(StopRequest::None, at(0)), None);
        assert_eq!(monitor.request_stop(StopRequest::Graceful, at(0)), Some(SendStopSignal));
        assert_eq!(monitor.request_stop(StopRequest::Graceful, at(1)), None);
        assert_eq!(monitor.deadline(), None, "the master bounds it");
        assert_eq!(monitor.request_stop(StopRequest::Immediate, at(100)), Some(Interrupt));
        assert_eq!(monitor.request_stop(StopRequest::Graceful, at(101)), None);
        assert_eq!(monitor.due_actions(at(2099)), [Heartbeat]);
        assert_eq!(monitor.due_actions(at(2100)), [Heartbeat, Kill]);
        assert_eq!(monitor.due_actions(at(9999)), [Heartbeat]);
    }

    #[test]
    fn stopping_program_is_never_reported_ready() {
        let mut monitor = monitor();
        assert_eq!(monitor.request_stop(StopRequest::Graceful, at(0)), Some(SendStopSignal));
        assert_eq!((monitor.due_actions(at(5000)), monitor.deadline()), (vec![Heartbeat], None));
        assert!(!monitor.is_boot_failure());
    }

    #[test]
    fn program_that_stops_by_itself_gets_no_stop_signal() {
        let mut monitor = monitor();
        assert_eq!(monitor.on_stopping(), None, "it was never ready");
        let mut monitor = self::monitor();
        monitor.on_ready();
        assert_eq!((monitor.on_stopping(), monitor.on_stopping()), (Some(BeginStop), None));
        assert_eq!(monitor.request_stop(StopRequest::Graceful, at(0)), None);
        assert_eq!(monitor.request_stop(StopRequest::Immediate, at(0)), Some(Interrupt));
        let mut asked = self::monitor();
        asked.on_ready();
        asked.request_stop(StopRequest::Graceful, at(0));
        assert_eq!(asked.on_stopping(), None, "it was asked to stop");
    }

    #[test]
    fn abort_is_followed_by_kill() {
        let mut monitor = monitor();
        monitor.on_ready();
        assert_eq!(monitor.on_abort(at(0)), Some(Abort));
        monitor.request_stop(StopRequest::Immediate, at(1000)); // delays nothing
        assert_eq!(monitor.due_actions(at(2000)), [Heartbeat, Kill]);
    }
}
