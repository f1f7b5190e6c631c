//! What the service manager (systemd) is told: readiness, status, watchdog pings, the main process,
//! and the sockets to store. Decides nothing.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use crate::listen::Listener;
use crate::listen::activation::fd_name;
use crate::os::process::Pid;
use crate::systemd::ServiceManager;
use crate::time::MonotonicTime;

/// What is added to the workers' own limits when the manager is asked for time.
const MARGIN: Duration = Duration::from_secs(5);

/// Tells the service manager what happens.
pub(super) struct ServiceNotifier {
    manager: ServiceManager,
    /// When the next watchdog ping is due, if the manager wants any.
    watchdog_due: Option<MonotonicTime>,
    last_status: String,
    /// Whether the manager was told that the service stops. It is told of no readiness from then on.
    is_stopping: bool,
}

impl ServiceNotifier {
    /// Returns a notifier whose first watchdog ping is due now.
    pub(super) fn new(manager: ServiceManager, now: MonotonicTime) -> Self {
        let watchdog_due = manager.watchdog_interval().map(|_| now);
        Self { manager, watchdog_due, last_status: String::new(), is_stopping: false }
    }

    /// Asks for as much time as workers have to boot.
    pub(super) fn notify_starting(&self, boot_timeout: Duration) {
        self.manager.extend_startup_timeout(boot_timeout.saturating_add(MARGIN));
    }

    /// Reports that the service is ready, again after a reload.
    pub(super) fn notify_ready(&self, status: &str) {
        if !self.is_stopping {
            self.manager.ready(status);
        }
    }

    /// Reports that a reload begins.
    pub(super) fn notify_reloading(&self, now: MonotonicTime) {
        self.manager.reloading(now);
    }

    /// Reports the status, if it has changed. Without a manager, it is not computed.
    pub(super) fn notify_status(&mut self, status: impl FnOnce() -> String) {
        if self.is_stopping || !self.manager.is_connected() {
            return;
        }
        let status = status();
        if status != self.last_status {
            self.manager.status(&status);
            self.last_status = status;
        }
    }

    /// Reports that the service stops, which may take as long as its workers have to, and in which way.
    pub(super) fn notify_stopping(&mut self, stop_time: Duration, status: &str) {
        self.is_stopping = true;
        self.manager.stopping(stop_time.saturating_add(MARGIN), status);
    }

    /// Reports which process is the service from now on.
    pub(super) fn notify_main_pid(&self, pid: Pid) {
        self.manager.main_pid(pid);
    }

    /// Sends a watchdog ping, if one is due.
    pub(super) fn ping_watchdog_if_due(&mut self, now: MonotonicTime) {
        if let Some(interval) = self.manager.watchdog_interval()
            && self.watchdog_due.is_none_or(|at| at <= now)
        {
            self.manager.ping_watchdog();
            self.watchdog_due = Some(now.saturating_add(interval));
        }
    }

    /// Returns when the next watchdog ping is due.
    pub(super) fn next_deadline(&self) -> Option<MonotonicTime> {
        self.watchdog_due
    }

    /// Has the manager store these sockets for the next master, except those that it has passed itself.
    pub(super) fn push_fd_store<'l>(&self, listeners: impl Iterator<Item = &'l Arc<Listener>>) {
        let ours = listeners.filter(|listener| !listener.is_inherited());
        ours.for_each(|it| self.manager.store_fd(&fd_name(it), it.as_fd()));
    }

    /// Has the manager drop a socket.
    pub(super) fn remove_stored_fd(&self, listener: &Listener) {
        self.manager.remove_stored_fd(&fd_name(listener));
    }
}
