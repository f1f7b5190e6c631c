//! The master: one loop that sleeps in one place, and does a few named things when it wakes.
//!
//! What is to be done is decided by the roster; what that means for processes is the crew's
//! affair. The arbiter never has a second thread, never blocks, and never trusts a worker.

mod cgroup;
mod generation;
mod hook_runner;
mod oom;
mod pool;
mod reload;
mod reload_barrier;
mod service_manager;
mod upgrade;
mod worker_main;

use std::io;
use std::os::fd::{AsFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use slog::{Logger, error, info, warn};

pub(crate) use cgroup::WorkerCgroups;
pub(crate) use generation::{
    MasterContext, PoolGeneration, PoolSpec, PrepareError, ResolvedConfig, prepare_generations,
};
pub(crate) use oom::OomMonitor;
pub(crate) use pool::processes::ProcessTable;
pub(crate) use pool::supervisor::RunOutcome;
pub(crate) use reload::ConfigLoader;
pub(crate) use upgrade::channel as upgrade_channel;
pub(crate) use upgrade::{ExecArgs, UpgradePeer};

use crate::hooks::Hooks;
use crate::log::error_chain;
use crate::os::clock;
use crate::os::daemon::StartupNotifier;
use crate::os::poll;
use crate::os::process::{self, Pid};
use crate::os::signal::{Signal, SignalPipe};
use crate::os::title::ProcTitle;
use crate::pidfile::PidFile;
use crate::systemd::ServiceManager;
use crate::time::MonotonicTime;
use pool::Pool;
use pool::supervisor::{Action, ShutdownMode, WORKERS_MAX};
use reload_barrier::ReloadResult;

/// A sleep that ends so much after its deadline means that the master itself did not run.
const STALL_THRESHOLD: Duration = Duration::from_millis(500);

/// How long a handshake that is under way may take to end.
const HANDSHAKE_MAX: Duration = Duration::from_secs(1);

/// The master of one pool, or of several.
pub(crate) struct Arbiter<'a> {
    signals: SignalPipe,
    pools: Vec<Pool<'a>>,
    context: MasterContext,
    /// During a reload: what to return to if it fails.
    previous_context: Option<MasterContext>,
    oom: Rc<OomMonitor>,
    cgroups: Rc<WorkerCgroups>,
    config_loader: ConfigLoader<'a>,
    title: Option<ProcTitle>,
    exec_args: Option<ExecArgs>,
    pidfile: Option<PidFile>,
    service_manager: ServiceManager,
    upgrade_peer: UpgradePeer,
    startup_notifier: Option<Rc<StartupNotifier>>,
    hooks: &'a dyn Hooks,
    /// When this master woke, and when it did so before, after which it may have been stopped.
    woke_at: MonotonicTime,
    prev_wake_at: MonotonicTime,
    /// When the manager wants the next sign of life.
    watchdog_due: Option<MonotonicTime>,
    /// When newcomers are refused, if a stop is under way.
    reject_connections_at: Option<MonotonicTime>,
    /// What the manager was told last.
    status: String,
    /// Whether all of the first workers have been ready at once, which is said once.
    reported_ready: bool,
    /// How many generations there have been.
    generation_count: u32,
    /// Somebody has asked for a reload that has not begun.
    reload_pending: bool,
    /// A reload has been committed, and workers of the old generation may still let clients in.
    waiting_for_old_workers: bool,
    /// Somebody has asked for an upgrade that has not begun.
    upgrade_pending: bool,
}

/// What a master has besides its workers.
pub(crate) struct ArbiterParts<'a> {
    /// Its signals, which must have been caught since before anything was created.
    pub(crate) signals: SignalPipe,
    /// What there is one of.
    pub(crate) context: MasterContext,
    /// What the crews of its pools share.
    pub(crate) oom: Rc<OomMonitor>,
    /// The control groups of the workers of its pools.
    pub(crate) cgroups: Rc<WorkerCgroups>,
    /// How it reads its settings anew.
    pub(crate) config_loader: ConfigLoader<'a>,
    /// Where its title goes, if there is room for one.
    pub(crate) title: Option<ProcTitle>,
    /// How it is started anew, if that is known.
    pub(crate) exec_args: Option<ExecArgs>,
    /// Its pid file, if one is wished for.
    pub(crate) pidfile: Option<PidFile>,
    /// The service manager.
    pub(crate) service_manager: ServiceManager,
    /// The other master, if there is one.
    pub(crate) upgrade_peer: UpgradePeer,
    /// Whom to tell when the workers are ready, if this is a daemon.
    pub(crate) startup_notifier: Option<Rc<StartupNotifier>>,
    /// What else is to be done when something happens.
    pub(crate) hooks: &'a dyn Hooks,
}

impl<'a> Arbiter<'a> {
    /// An arbiter without a worker. There is at least one crew.
    pub(crate) fn new(process_tables: Vec<ProcessTable<'a>>, parts: ArbiterParts<'a>) -> Self {
        let ArbiterParts {
            signals, context, oom, cgroups, config_loader, title, exec_args, ..
        } = parts;
        let ArbiterParts {
            pidfile, service_manager, upgrade_peer, startup_notifier, hooks, ..
        } = parts;
        let mut arbiter = Self {
            signals,
            pools: process_tables
                .into_iter()
                .map(|processes| Pool::initial(processes, hooks))
                .collect(),
            context,
            previous_context: None,
            oom,
            cgroups,
            config_loader,
            title,
            exec_args,
            pidfile,
            service_manager,
            upgrade_peer,
            startup_notifier,
            hooks,
            woke_at: clock::now(),
            prev_wake_at: clock::now(),
            watchdog_due: None,
            reject_connections_at: None,
            status: String::new(),
            reported_ready: false,
            generation_count: 1,
            reload_pending: false,
            waiting_for_old_workers: false,
            upgrade_pending: false,
        };
        arbiter.set_process_title();
        arbiter.notify_starting();
        arbiter
    }

    /// Keeps the workers alive until a signal or their hopelessness ends it.
    ///
    /// # Errors
    /// The kernel has no memory to let the master sleep.
    pub(crate) fn run(&mut self) -> io::Result<RunOutcome> {
        self.hook("on_starting", |hooks| hooks.on_starting());
        loop {
            // Before the signals: whether this master is alone decides what a stop means.
            self.read_upgrade_channel();
            for signal in self.signals.take() {
                self.handle_signal(signal);
            }
            self.prev_wake_at = self.woke_at;
            self.poll_worker_status();
            self.reap_children();
            self.start_pending_transition();
            let now = clock::now();
            self.enforce_upgrade_timeout(now);
            self.reject_new_connections(now);
            self.pools.iter_mut().for_each(|pool| pool.check_health(now));
            self.enforce_limits(now);
            self.reconcile(now);
            self.update_reuseport();
            self.report_ready();
            self.finish_reload();
            self.update_service_manager(now);
            self.cgroups.retry_removals(now, self.context.log.logger());
            let outcome = self.outcome();
            if self.cgroups.may_exit(outcome.is_some(), now)
                && let Some(outcome) = outcome
            {
                return Ok(outcome);
            }
            self.sleep(now)?;
        }
    }

    /// Ends who is to be ended, in all pools, before it is decided what that means for a reload.
    fn enforce_limits(&mut self, now: MonotonicTime) {
        self.stop_if_pool_failed();
        for index in 0..self.pools.len() {
            let actions = self.pools[index].supervisor.enforce_limits(now);
            actions.into_iter().for_each(|action| self.apply(index, action));
        }
    }

    /// Has workers come and go. A reload ends in all pools at once, before anybody goes for it.
    fn reconcile(&mut self, now: MonotonicTime) {
        let participants = self.pools.iter_mut().map(Pool::reload_participant);
        let reload_barrier::ReconcileOutcome { result, actions } =
            reload_barrier::reconcile_all(participants.collect(), now);
        match result {
            Some(ReloadResult::Commit) => self.commit_reload(),
            Some(ReloadResult::RollBack { failed_pool }) => self.roll_back_reload(failed_pool),
            None => (),
        }
        for (index, actions) in actions.into_iter().enumerate() {
            actions.into_iter().for_each(|action| self.apply(index, action));
        }
        self.pools.retain(|pool| !pool.is_removed());
    }

    fn apply(&mut self, index: usize, action: Action) {
        let (before, rest) = self.pools.split_at_mut(index);
        let Some((pool, after)) = rest.split_first_mut() else { return };
        let fds_to_close = || -> Vec<RawFd> {
            let others = before.iter().chain(after.iter());
            let other_fds = others.flat_map(|pool| pool.processes.owned_fds());
            // Until it is known whether new settings are good, there is an earlier log, too.
            let contexts = self.previous_context.iter().chain([&self.context]);
            let other_fds = other_fds.chain(contexts.flat_map(|context| context.log.raw_fds()));
            other_fds.chain(self.signals.raw_fds()).chain(self.upgrade_peer.channel_fd()).collect()
        };
        pool.apply(action, fds_to_close);
    }

    /// A pool that was never ready, and never will be, ends the whole: it was asked for, and to
    /// serve the rest without it is something else.
    fn stop_if_pool_failed(&mut self) {
        let any_failed = self.pools.iter().any(|pool| pool.supervisor.has_failed());
        if any_failed && self.stopping().is_none() && self.pools.len() > 1 {
            self.begin_shutdown();
            self.pools.iter_mut().for_each(|pool| pool.supervisor.stop(ShutdownMode::Graceful));
        }
    }

    /// The end, once it has come for all pools.
    fn outcome(&self) -> Option<RunOutcome> {
        let outcomes: Option<Vec<RunOutcome>> =
            self.pools.iter().map(|pool| pool.supervisor.outcome()).collect();
        let ends = outcomes?;
        Some(if ends.contains(&RunOutcome::NeverReady) {
            RunOutcome::NeverReady
        } else {
            RunOutcome::Stopped
        })
    }

    /// How the whole stops, if it does.
    fn stopping(&self) -> Option<ShutdownMode> {
        self.pools.iter().filter_map(|pool| pool.supervisor.stopping()).max()
    }

    fn is_reloading(&self) -> bool {
        self.pools.iter().any(|pool| pool.supervisor.is_reloading())
    }

    /// The generation that is wished for.
    fn generation(&self) -> u32 {
        self.pools
            .iter()
            .map(|pool| pool.supervisor.generation())
            .max()
            .unwrap_or(self.generation_count)
    }

    /// How many workers are wished for, in all pools.
    fn target(&self) -> usize {
        self.pools.iter().map(|pool| pool.supervisor.target()).sum()
    }

    /// Begins what great change is wished for. To look up names may take long, for which no worker
    /// is to blame.
    fn start_pending_transition(&mut self) {
        let before = clock::now();
        self.start_pending_reload();
        self.start_pending_upgrade();
        let after = clock::now();
        if after.duration_since(before) > STALL_THRESHOLD {
            self.pools.iter_mut().for_each(|pool| pool.supervisor.discount_stall(before, after));
            self.poll_worker_status();
        }
    }

    /// After an end without hope: the log of the pool that was never ready, and what its last worker
    /// had to say.
    pub(crate) fn failure_reason(&self) -> (&Logger, String) {
        let mut failed_pools = self.pools.iter().filter(|pool| pool.supervisor.has_failed());
        let Some(pool) = failed_pools.next() else { return (self.log(), String::new()) };
        let reason = pool.failure_reason.clone();
        (
            pool.log(),
            if self.context.has_named_pools {
                format!("pool {:?}: {reason}", pool.name())
            } else {
                reason
            },
        )
    }

    /// The log, as of now.
    pub(crate) fn log(&self) -> &Logger {
        self.context.log.logger()
    }

    /// Removes what the master has put into the file system, but for what another master uses.
    pub(crate) fn clean_up(&mut self) {
        self.hook("on_exit", |hooks| hooks.on_exit());
        if self.upgrade_peer.is_none() {
            self.pools.iter().for_each(|pool| pool.processes.remove_paths());
        }
        if let Some(pidfile) = self.pidfile.take() {
            pidfile.remove();
        }
    }

    fn sleep(&mut self, decided_at: MonotonicTime) -> io::Result<()> {
        let cgroup_retry_at = self.cgroups.next_deadline();
        let own = [
            self.upgrade_peer.deadline(),
            self.watchdog_due,
            self.reject_connections_at,
            cgroup_retry_at,
        ];
        let own = own.into_iter().flatten();
        let pool_deadlines = self.pools.iter().filter_map(|pool| pool.next_deadline(decided_at));
        let deadline = own.chain(pool_deadlines).min();
        let wakeup_fds = self.pools.iter().map(|pool| pool.processes.wakeup_fd());
        let fds = wakeup_fds.chain([self.signals.as_fd()]).chain(self.upgrade_peer.channel());
        poll::wait_readable(&fds.collect::<Vec<_>>(), deadline)?;
        let now = clock::now();
        let late = deadline.map_or(Duration::ZERO, |deadline| now.duration_since(deadline));
        if late > STALL_THRESHOLD {
            warn!(self.log(), "master event loop stalled"; "duration_ms" => millis(late));
            self.discount_stall(now);
        }
        self.woke_at = now;
        Ok(())
    }

    /// This process goes on: it may have been stopped, for less time than it would have slept.
    fn on_sigcont(&mut self) {
        let now = clock::now();
        if now.duration_since(self.prev_wake_at) > STALL_THRESHOLD {
            self.discount_stall(now);
        }
    }

    /// Nobody is to blame for what the master has not seen since it last ran.
    fn discount_stall(&mut self, now: MonotonicTime) {
        self.pools
            .iter_mut()
            .for_each(|pool| pool.supervisor.discount_stall(self.prev_wake_at, now));
        self.prev_wake_at = now;
    }

    fn handle_signal(&mut self, signal: Signal) {
        match signal {
            Signal::Chld => (), // the dead are buried on every turn
            Signal::Term => self.stop(signal, ShutdownMode::Graceful),
            Signal::Int | Signal::Quit => {
                let again = self.stopping().is_some_and(|stop| stop >= ShutdownMode::Quick);
                self.stop(signal, if again { ShutdownMode::Kill } else { ShutdownMode::Quick });
            }
            Signal::Hup => self.reload_pending = true,
            Signal::Ttin => self.scale_by(1, signal),
            Signal::Ttou => self.scale_by(-1, signal),
            Signal::Usr1 => self.reopen_logs(),
            Signal::Usr2 => self.upgrade_pending = true,
            Signal::Winch => self.suspend_workers(),
            Signal::Cont => self.on_sigcont(),
            Signal::Urg | Signal::ParentDeath => (), // the master minds no queue and no parent
        }
    }

    fn stop(&mut self, signal: Signal, stop: ShutdownMode) {
        if self.stopping().is_none() {
            self.begin_shutdown();
        }
        if self.stopping().is_some_and(|earlier| earlier >= stop) {
            return;
        }
        info!(self.log(), "stopping"; "signal" => signal.name(), "mode" => match stop {
            ShutdownMode::Graceful => "graceful",
            ShutdownMode::Quick => "quick",
            ShutdownMode::Kill => "kill",
        });
        self.pools.iter_mut().for_each(|pool| pool.supervisor.stop(stop));
    }

    /// Tells the workers that nobody serves after them, and the manager that the service stops;
    /// unless another master goes on serving.
    pub(super) fn begin_shutdown(&mut self) {
        self.notify_stopping();
        if self.upgrade_peer.is_none() {
            self.pools.iter().for_each(|pool| pool.processes.stop_accepting());
            self.reject_connections_at = Some(clock::now().saturating_add(HANDSHAKE_MAX));
        }
    }

    /// Once those have come in whose handshake was under way, others need not wait for an answer.
    fn reject_new_connections(&mut self, now: MonotonicTime) {
        if self.reject_connections_at.is_some_and(|at| at <= now) {
            let mut done = true;
            for pool in &self.pools {
                done &= pool.processes.reject_new_connections();
            }
            self.reject_connections_at = (!done).then(|| now.saturating_add(HANDSHAKE_MAX));
        }
    }

    /// Of several pools, a signal cannot say which it means.
    fn scale_by(&mut self, step: isize, signal: Signal) {
        let [pool] = &mut self.pools[..] else {
            warn!(self.log(), "signal ignored: multiple pools configured"; "signal" => signal.name(),
                "error" => "set workers in the configuration file and send HUP");
            return;
        };
        let before = pool.supervisor.target();
        let after = pool.supervisor.scale_to(before.saturating_add_signed(step));
        if before == after {
            warn!(self.log(), "worker count at limit"; "workers" => after,
                "min" => 1, "max" => WORKERS_MAX);
        } else {
            info!(self.log(), "worker count changed"; "from" => before, "to" => after);
        }
    }

    /// The master's own first: workers without privileges find a file that is theirs.
    fn reopen_logs(&mut self) {
        match self.context.log.reopen() {
            Ok(()) => info!(self.log(), "logs reopened"),
            Err(error) => {
                error!(self.log(), "failed to reopen log"; "error" => error_chain(&error));
            }
        }
        if let Some(Err(error)) = self.previous_context.as_ref().map(|earlier| earlier.log.reopen())
        {
            warn!(self.log(), "failed to reopen log of previous settings";
                "error" => error_chain(&error));
        }
        self.pools.iter().for_each(|pool| pool.processes.reopen_logs());
    }

    fn poll_worker_status(&mut self) {
        self.pools.iter_mut().for_each(Pool::poll_worker_status);
    }

    fn reap_children(&mut self) {
        while let Some((pid, exit)) = process::next_exited_child() {
            // A number is its owner's until it is reaped. What a worker has started ends with it;
            // a successor's last words are heard, for which it may be killed.
            let pool = self.pools.iter().position(|pool| pool.processes.contains(pid));
            if pool.is_some() {
                process::kill_process_group(pid);
            } else {
                self.read_upgrade_channel();
            }
            process::reap(pid);
            match pool {
                Some(pool) => {
                    self.pools[pool].on_worker_exit(pid, exit);
                    self.cgroups.remove(pid, self.context.log.logger());
                }
                // A stranger's end, as PID 1 sees many, is nobody's concern.
                None => self.on_new_master_exit(pid, exit),
            }
        }
    }

    fn report_ready(&mut self) {
        if !self.reported_ready && self.pools.iter().all(Pool::is_ready) {
            self.reported_ready = true;
            info!(self.log(), "all workers ready"; "workers" => self.target(), "pid" => Pid::this().as_raw());
            if let UpgradePeer::OldMaster { channel, .. } = &self.upgrade_peer {
                channel.send_ready();
            }
            self.service_manager.ready(&self.status_line());
            if let Some(notifier) = self.startup_notifier.take() {
                notifier.notify(0, "");
            }
            self.hook("when_ready", |hooks| hooks.when_ready());
        }
    }

    fn set_process_title(&mut self) {
        if let Some(title) = self.title {
            title.set(&format!("ostler: master [{}]", self.context.settings.proc_name));
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
