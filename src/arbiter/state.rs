//! What the parts of the master work on together: the pools, the settings and the log, and what is
//! said to the service manager.

use std::rc::Rc;
use std::sync::Arc;

use slog::{Logger, error, info, warn};

use super::generation::{MasterContext, PoolGeneration};
use super::hook_runner::run_hook;
use super::leader::Leader;
use super::pool::Pool;
use super::pool::processes::WorkerEnvironment;
use super::pools::Pools;
use super::pre_stop::PreStop;
use super::readiness;
use super::service_manager::ServiceNotifier;
use super::snapshot::{MasterPhase, Snapshot};
use crate::hooks::{HookResult, Hooks};
use crate::log::error_chain;
use crate::os::clock;
use crate::os::process::Pid;
use crate::os::signal::Signal;
use crate::time::MonotonicTime;

/// The state that reloads, upgrades and stops change.
pub(super) struct MasterState<'a> {
    pub(super) pools: Pools<'a>,
    pub(super) context: MasterContext,
    pub(super) environment: Rc<WorkerEnvironment<'a>>,
    pub(super) service_manager: ServiceNotifier,
    pub(super) started_at: MonotonicTime,
    /// Whether all first workers have been ready, which is reported once.
    pub(super) has_been_ready: bool,
    pub(super) pre_stop: PreStop,
    /// `None` if no pool is led.
    pub(super) leader: Option<Leader>,
}

impl MasterState<'_> {
    /// Returns the current log.
    pub(super) fn log(&self) -> &Logger {
        self.context.log.logger()
    }

    /// Has the led pools do what the leadership of this master demands now.
    pub(super) fn follow_leader(&mut self) {
        let Some(leader) = &mut self.leader else { return };
        let duty = leader.advance(self.context.log.logger());
        let now = clock::now();
        self.pools.iter_mut().for_each(|pool| pool.follow_leader(duty, now));
        let led = self.pools.iter().filter(|pool| pool.generation().spec.is_led);
        let has_workers = led.map(|pool| pool.supervisor().worker_count()).sum::<usize>() > 0;
        if self.pools.stopping().is_some() && !has_workers {
            self.release_leadership(); // pools that are not led may drain for long
        }
    }

    /// Lets another master lead, since no worker is left. Returns whether that is done.
    pub(super) fn release_leadership(&mut self) -> bool {
        let log = self.context.log.logger();
        self.leader.as_mut().is_none_or(|leader| leader.release(log))
    }

    /// Returns whether the master stops, or will after `pre_stop`.
    pub(super) fn is_stopping(&self) -> bool {
        self.pre_stop.is_waiting() || self.pools.stopping().is_some()
    }

    /// Returns what the master is doing.
    fn phase(&self) -> MasterPhase {
        match self.pools.phase(!self.has_been_ready) {
            MasterPhase::Stopping => MasterPhase::Stopping,
            _ if self.pre_stop.is_waiting() => MasterPhase::PreStop,
            other => other,
        }
    }

    /// Returns what the control interface shows; `peer` is the other master.
    pub(super) fn snapshot(&self, peer: Option<Pid>, now: MonotonicTime) -> Snapshot {
        Snapshot {
            pid: Pid::this().as_raw(),
            proc_name: self.context.settings.proc_name.clone(),
            uptime: now.duration_since(self.started_at),
            phase: self.phase(),
            peer_pid: peer.map(Pid::as_raw),
            generation: self.pools.generation_number(),
            pools: self.pools.iter().map(|pool| pool.snapshot(now)).collect(),
            events: self.context.log.events().map(Arc::clone),
            records_dropped: self.context.log.dropped(),
            listen_drops: None,
            leader: self.leader.as_ref().map(Leader::snapshot),
            ..Snapshot::default()
        }
    }

    /// Returns why the service is not ready; `None` if it is.
    pub(super) fn unready_reason(&self) -> Option<String> {
        readiness::unready_reason(self.phase(), self.pools.iter().map(Pool::readiness))
    }

    /// Runs a hook of the master.
    pub(super) fn hook(&self, name: &str, call: impl FnOnce(&dyn Hooks) -> HookResult) {
        run_hook(name, self.log(), self.environment.hooks, call);
    }

    /// Sets the title that ps(1) shows.
    pub(super) fn set_process_title(&self) {
        if let Some(title) = self.environment.title {
            title.set(&format!("ostler: master [{}]", self.context.settings.proc_name));
        }
    }

    /// Has the service manager store the sockets for the next master, if `fd_store` is set.
    pub(super) fn push_fd_store(&self) {
        if self.context.settings.fd_store {
            self.service_manager.push_fd_store(self.pools.open_listeners());
        }
    }

    /// Opens SO_REUSEPORT sockets for which a worker is ready, and assigns those without a worker.
    /// Another master would not know of new sockets, so they wait until it has exited.
    pub(super) fn update_reuseport(&mut self, is_sole_master: bool) {
        let may_open = self.pools.stopping().is_none() && is_sole_master;
        let mut any_opened = false;
        for pool in self.pools.iter_mut() {
            any_opened |= may_open && pool.open_reuseport_listeners();
        }
        if any_opened {
            self.push_fd_store();
        }
        self.pools.iter_mut().for_each(Pool::reassign_reuseport_shards);
    }

    /// Reports that the service is ready: at first, and after each reload. A `remark` says how the
    /// reload has ended.
    pub(super) fn notify_ready(&self, remark: Option<&str>) {
        let status = self.pools.status_line();
        let remark = remark.map(|remark| format!("; {remark}")).unwrap_or_default();
        self.service_manager.notify_ready(&format!("{status}{remark}"));
    }

    /// Scales the pool by `step`, for SIGTTIN and SIGTTOU. Of several pools, a signal cannot say which.
    /// Returns the pool's name, and the numbers of workers before and after.
    pub(super) fn scale_by(
        &mut self,
        step: isize,
        signal: Signal,
    ) -> Option<(String, usize, usize)> {
        let [pool] = &mut self.pools[..] else {
            warn!(self.log(), "signal ignored: multiple pools configured"; "signal" => signal.name(),
                "error" => "set workers in the configuration file and send HUP");
            return None;
        };
        let wanted = pool.present_target().saturating_add_signed(step);
        let name = pool.name().to_owned();
        let (before, after) = self.scale(&name, wanted)?;
        Some((name, before, after))
    }

    /// Changes how many workers a pool has. Returns the numbers before and after.
    pub(super) fn scale(&mut self, name: &str, wanted: usize) -> Option<(usize, usize)> {
        let pool = self.pools.by_name(name)?;
        let before = pool.present_target();
        // A suspended pool stays suspended at no workers.
        let after = if (before, wanted) == (0, 0) { 0 } else { pool.scale_to(wanted) };
        if before == after {
            let bounds = pool.target_bounds();
            warn!(self.log(), "worker count at limit"; "workers" => after,
                "min" => bounds.start(), "max" => bounds.end());
        } else {
            pool.resume();
            info!(self.log(), "worker count changed"; "from" => before, "to" => after);
        }
        Some((before, after))
    }

    /// Ends workers that exceed a limit, and changes the number of workers by load. That stays during a
    /// reload, and while another master has workers too.
    pub(super) fn enforce_limits(&mut self, is_sole_master: bool, now: MonotonicTime) {
        let is_steady = is_sole_master && !self.pools.is_reloading();
        for pool in self.pools.iter_mut() {
            pool.enforce_limits(now);
            pool.scale_with_load(is_steady, now);
        }
    }

    /// Reopens the logs, for SIGUSR1. The master's is the first: it gives the file to the workers' user.
    /// `previous` is what a reload in progress may return to.
    ///
    /// # Errors
    /// The master's log or an access log cannot be reopened, which has been logged. It goes on as it
    /// was, and the other logs are reopened.
    pub(super) fn reopen_logs(&self, previous: Option<&MasterContext>) -> Result<(), String> {
        let reopened = self.context.log.reopen().map_err(|error| error_chain(&error));
        match &reopened {
            Ok(()) => info!(self.log(), "logs reopened"),
            Err(reason) => error!(self.log(), "failed to reopen log"; "error" => reason),
        }
        if let Some(Err(error)) = previous.map(|it| it.log.reopen()) {
            warn!(self.log(), "failed to reopen log of previous settings";
                "error" => error_chain(&error));
        }
        let access_logs = self.pools.generations().map(PoolGeneration::reopen_access_log);
        let reopened = access_logs.fold(reopened, Result::and);
        self.pools.iter().for_each(Pool::reopen_logs);
        reopened
    }

    /// Drains the workers, for SIGWINCH; the master stays.
    pub(super) fn suspend_workers(&mut self) {
        info!(self.log(), "suspending workers");
        self.pools.iter_mut().for_each(Pool::suspend);
    }

    /// Starts workers again that were suspended.
    pub(super) fn resume_workers(&mut self) {
        if self.pools.resume() {
            info!(self.log(), "resuming workers");
        }
    }

    /// Returns why no worker was ever ready, with the log of the pool that has failed.
    pub(super) fn failure_reason(&self) -> (&Logger, String) {
        let failed = self.pools.iter().find(|pool| pool.supervisor().has_failed());
        let Some(pool) = failed else { return (self.log(), String::new()) };
        let mut reason = pool.failure_reason().to_owned();
        if self.context.has_named_pools {
            reason = format!("pool {:?}: {reason}", pool.name());
        }
        (pool.log(), reason)
    }
}
