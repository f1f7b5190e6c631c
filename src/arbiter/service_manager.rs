//! What the service manager is told: readiness, status, signs of life, and the end. It must never
//! decide anything.

use std::os::fd::AsFd;
use std::time::Duration;

use super::Arbiter;
use super::pool::Pool;
use super::upgrade::{UpgradePeer, UpgradePhase};
use crate::listen::activation::fd_name;
use crate::os::clock;
use crate::time::MonotonicTime;

/// What the service manager grants beyond the limits of boot and drain.
const SERVICE_MANAGER_MARGIN: Duration = Duration::from_secs(5);

impl Arbiter<'_> {
    /// Such as `4/4 workers ready, generation 3`, over all pools.
    pub(super) fn status_line(&self) -> String {
        let ready: usize = self.pools.iter().map(|pool| pool.supervisor.ready_count()).sum();
        format!("{ready}/{} workers ready, generation {}", self.target(), self.generation())
    }

    pub(super) fn notify_starting(&mut self) {
        self.service_manager
            .extend_startup_timeout(self.max_boot_timeout().saturating_add(SERVICE_MANAGER_MARGIN));
        self.watchdog_due = self.service_manager.watchdog_interval().map(|_| clock::now());
        self.push_fd_store();
    }

    /// The longest time that a worker of any pool may take to boot.
    pub(super) fn max_boot_timeout(&self) -> Duration {
        self.pools.iter().map(|pool| pool.settings().boot_timeout).max().unwrap_or_default()
    }

    /// Has the manager keep the sockets for a master after this one, if that is wished for.
    pub(super) fn push_fd_store(&self) {
        if self.context.settings.fd_store {
            for listener in
                self.pools.iter().flat_map(|pool| pool.current_generation().open_listeners())
            {
                self.service_manager.store_fd(&fd_name(listener), listener.as_fd());
            }
        }
    }

    /// Signs of life from this loop, and the status when it changes.
    pub(super) fn update_service_manager(&mut self, now: MonotonicTime) {
        if let Some(every) = self.service_manager.watchdog_interval()
            && self.watchdog_due.is_none_or(|at| at <= now)
        {
            self.service_manager.ping_watchdog();
            self.watchdog_due = Some(now.saturating_add(every));
        }
        let status = self.status_line();
        if self.reported_ready && self.stopping().is_none() && status != self.status {
            self.service_manager.status(&status);
            self.status = status;
        }
    }

    /// The service stops; or another master is the service from now on.
    pub(super) fn notify_stopping(&self) {
        match &self.upgrade_peer {
            UpgradePeer::NewMaster { pid, state: UpgradePhase::Ready, .. } => {
                self.service_manager.main_pid(*pid)
            }
            UpgradePeer::None | UpgradePeer::NewMaster { .. } => {
                let drains = self.pools.iter().map(Pool::settings).map(|settings| {
                    settings.graceful_timeout.saturating_add(settings.abort_timeout)
                });
                let drain = drains.max().unwrap_or_default();
                self.service_manager.stopping(drain.saturating_add(SERVICE_MANAGER_MARGIN));
            }
            UpgradePeer::OldMaster { .. } => (), // the other is the service still
        }
    }
}
