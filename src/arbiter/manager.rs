//! What the service manager is told: readiness, status, signs of life, and the end. It must never
//! decide anything.

use std::os::fd::AsFd;
use std::time::Duration;

use super::Arbiter;
use super::upgrade::{Kin, Progress};
use crate::listen::inherit::name_of;
use crate::os::clock;
use crate::stamp::Stamp;

/// What the service manager grants beyond the limits of boot and drain.
const MANAGER_ALLOWANCE: Duration = Duration::from_secs(5);

impl Arbiter<'_> {
    /// Such as `4/4 ready, generation 3`.
    pub(super) fn status_line(&self) -> String {
        let (ready, target) = (self.roster.ready_count(), self.roster.target());
        format!("{ready}/{target} ready, generation {}", self.roster.generation())
    }

    pub(super) fn greet_the_manager(&mut self) {
        let boot = self.crew.company().plan.settings.boot_timeout;
        self.manager.booting(boot.saturating_add(MANAGER_ALLOWANCE));
        self.alive_at = self.manager.watchdog().map(|_| clock::now());
        self.store_sockets();
    }

    /// Has the manager keep the sockets for a master after this one, if that is wished for.
    pub(super) fn store_sockets(&self) {
        let company = self.crew.company();
        if company.plan.settings.fd_store {
            for listener in company.open_listeners() {
                self.manager.keep(&name_of(listener), listener.as_fd());
            }
        }
    }

    /// Signs of life from this loop, and the status when it changes.
    pub(super) fn tell_the_manager(&mut self, now: Stamp) {
        if let Some(every) = self.manager.watchdog()
            && self.alive_at.is_none_or(|at| at <= now)
        {
            self.manager.alive();
            self.alive_at = Some(now.after(every));
        }
        let status = self.status_line();
        if self.announced && self.roster.stopping().is_none() && status != self.status {
            self.manager.status(&status);
            self.status = status;
        }
    }

    /// The service stops; or another master is the service from now on.
    pub(super) fn farewell_to_the_manager(&self) {
        let settings = &self.crew.company().plan.settings;
        match &self.kin {
            Kin::Successor { pid, state: Progress::Ready, .. } => self.manager.main_pid(*pid),
            Kin::Alone | Kin::Successor { .. } => {
                let drain = settings.graceful_timeout.saturating_add(settings.abort_grace);
                self.manager.stopping(drain.saturating_add(MANAGER_ALLOWANCE));
            }
            Kin::Predecessor { .. } => (), // the other is the service still
        }
    }
}
