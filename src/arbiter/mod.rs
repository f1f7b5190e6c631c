//! The master: one thread, one loop that sleeps in one place, and one method a step of its turn.
//!
//! The supervisor of each pool decides; the pool applies that to processes. `reload`, `upgrade` and
//! `shutdown` work on a `MasterState`. The master never waits for a worker and never trusts one.

mod address_changes;
mod cgroup;
mod commands;
mod control;
mod generation;
mod hook_runner;
mod leader;
mod oom;
mod operations;
mod parts;
mod pool;
mod pools;
mod pre_stop;
mod readiness;
mod reaper;
mod reload;
mod reload_barrier;
mod service_manager;
mod shown_config;
mod shutdown;
mod sleep;
mod snapshot;
mod stall;
mod state;
mod transitions;
mod upgrade;
mod worker_main;

use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;

use slog::{Logger, info, warn};

pub(crate) use cgroup::WorkerCgroups;
pub(crate) use control::{ControlServer, ControlService};
pub(crate) use generation::{
    MasterContext, PoolGeneration, PoolSpec, PrepareError, ResolvedConfig, prepare_generations,
};
pub(crate) use leader::ask_store as ask_lease_store;
pub(crate) use oom::OomMonitor;
pub(crate) use parts::ArbiterParts;
pub(crate) use pool::{processes::WorkerEnvironment, supervisor::RunOutcome};
pub(crate) use reload::ConfigLoader;
pub(crate) use upgrade::{ExecArgs, UpgradePeer, channel as upgrade_channel};

use crate::duration::as_millis;
use crate::os::clock;
use crate::os::daemon::StartupNotifier;
use crate::os::process::{self, Exit, Pid};
use crate::os::signal::{SIGNALS_MAX, Signal, SignalPipe};
use crate::pidfile::PidFile;
use crate::time::MonotonicTime;
use leader::Leader;
use pool::Pool;
use pool::supervisor::ShutdownMode;
use pools::Pools;
use pre_stop::PreStop;
use reaper::Reaper;
use reload::Reload;
use reload_barrier::ReconcileOutcome;
use service_manager::ServiceNotifier;
use shown_config::ShownConfig;
use shutdown::Shutdown;
use sleep::{Wake, WakeSources};
use stall::{STALL_THRESHOLD, StallDetector};
use state::MasterState;
use transitions::Transitions;
use upgrade::Upgrade;

/// The master.
pub(crate) struct Arbiter<'a> {
    signals: SignalPipe,
    /// Dropped before the upgrade channel: the new master binds its addresses when that is closed.
    control: Option<ControlServer<'a>>,
    transitions: Transitions<'a>,
    pidfiles: Vec<PidFile>,
    /// The process that has launched this daemon and waits until it is ready.
    startup_notifier: Option<Rc<StartupNotifier>>,
    config: ShownConfig,
    reaper: Reaper,
    stalls: StallDetector,
}

impl<'a> Arbiter<'a> {
    /// Returns a master without workers, of at least one pool.
    ///
    /// # Errors
    /// `EMFILE` or `ENFILE`.
    pub(crate) fn new(
        generations: Vec<PoolGeneration<'a>>,
        parts: ArbiterParts<'a>,
    ) -> io::Result<Self> {
        let leader = Leader::new(&parts.context.settings)?;
        let term_end = leader.as_ref().map(Leader::term_end);
        let environment = Rc::new(WorkerEnvironment { term_end, ..parts.environment });
        let pools = generations.into_iter().map(|it| Pool::initial(it, &environment));
        let now = clock::now();
        let state = MasterState {
            pools: Pools::new(pools.collect::<io::Result<_>>()?),
            context: parts.context,
            environment,
            service_manager: ServiceNotifier::new(parts.service_manager, now),
            started_at: now,
            has_been_ready: false,
            pre_stop: PreStop::default(),
            leader,
        };
        state.set_process_title();
        state.service_manager.notify_starting(state.pools.max_boot_timeout());
        state.push_fd_store();
        if let (Some(control), Some(events)) = (&parts.control, state.context.log.events()) {
            control.show_events(events);
        }
        Ok(Self {
            signals: parts.signals,
            transitions: Transitions {
                state,
                reload: Reload::new(parts.config_loader),
                upgrade: Upgrade::new(parts.exec_args, parts.upgrade_peer),
                shutdown: Shutdown::default(),
                operations: parts
                    .control
                    .as_ref()
                    .map(ControlServer::operations)
                    .unwrap_or_default(),
            },
            pidfiles: parts.pidfiles,
            startup_notifier: parts.startup_notifier,
            control: parts.control,
            config: ShownConfig::default(),
            reaper: Reaper::new(),
            stalls: StallDetector::new(now),
        })
    }

    /// Keeps the workers alive until a signal stops the master, or no worker can ever be ready.
    ///
    /// # Errors
    /// `ENOMEM`, from poll(2).
    pub(crate) fn run(&mut self) -> io::Result<RunOutcome> {
        self.transitions.state.hook("on_starting", |hooks| hooks.on_starting());
        loop {
            // Before the signals: a stop depends on whether there is another master.
            self.read_upgrade_channel();
            let signals = self.signals.take();
            if signals.len() >= SIGNALS_MAX {
                self.reaper.on_sigchld(); // it may have been lost
            }
            let now = clock::now();
            self.transitions.operations.lock().set_now(now);
            signals.into_iter().for_each(|signal| self.handle_signal(signal));
            self.transitions.take_commands(now);
            self.stalls.begin_turn();
            self.poll_worker_status();
            self.reap_children();
            self.start_pending_transition();
            let now = clock::now();
            self.transitions.enforce_upgrade_timeout(now);
            self.transitions.end_pre_stop(now);
            self.transitions.reject_new_connections(now);
            self.check_health(now);
            self.enforce_limits(now);
            if self.reconcile(now) {
                self.reconcile(now);
            }
            self.update_reuseport();
            self.report_ready();
            self.transitions.report_upgrade_complete();
            self.transitions.reload.report_complete(&self.transitions.state);
            self.transitions.watch_files();
            self.update_service_manager(now);
            self.transitions.follow_operations(now);
            self.serve_control(now);
            if let Some(outcome) = self.outcome(now) {
                self.finish_control(now);
                return Ok(outcome);
            }
            self.sleep(now)?;
        }
    }

    /// Learns whether the new master is ready or has failed, and whether the old one has exited.
    fn read_upgrade_channel(&mut self) {
        let transitions = &mut self.transitions;
        let Some(old_master) = transitions.upgrade.read_channel(&mut transitions.state) else {
            return;
        };
        for error in self.pidfiles.iter_mut().filter_map(|pidfile| pidfile.promote().err()) {
            warn!(transitions.state.log(), "failed to rename pid file"; "error" => error.to_string());
        }
        self.transitions.state.service_manager.notify_main_pid(Pid::this());
        self.transitions.on_peer_exit(old_master);
    }

    fn handle_signal(&mut self, signal: Signal) {
        let by = format!("signal SIG{}", signal.name());
        let transitions = &mut self.transitions;
        match signal {
            Signal::Chld => self.reaper.on_sigchld(),
            Signal::Term | Signal::Int | Signal::Quit => {
                transitions.request_stop(signal, &by);
            }
            Signal::Hup => {
                transitions.request_reload(&by);
            }
            Signal::Ttin => transitions.scale_by_signal(1, signal, &by),
            Signal::Ttou => transitions.scale_by_signal(-1, signal, &by),
            Signal::Usr1 => {
                transitions.reopen_logs(&by);
            }
            Signal::Usr2 => {
                transitions.request_upgrade(false, &by);
            }
            Signal::Winch => transitions.suspend_workers(),
            Signal::Cont => self.on_sigcont(),
            Signal::Urg | Signal::ParentDeath => (), // for workers
        }
    }

    fn poll_worker_status(&mut self) {
        self.transitions.state.pools.iter_mut().for_each(Pool::poll_worker_status);
    }

    fn reap_children(&mut self) {
        self.reaper.begin_turn();
        while let Some((pid, exit)) = self.reaper.next_exited(self.transitions.state.log()) {
            let is_worker = self.transitions.state.pools.by_worker(pid).is_some();
            if is_worker {
                process::kill_process_group(pid); // what the worker has started exits with it
            } else {
                self.read_upgrade_channel(); // its last message, if it is the new master
            }
            self.reaper.reap(pid, self.transitions.state.log());
            if is_worker {
                self.on_worker_exit(pid, exit);
            } else {
                // Beside a new master, an orphan that PID 1 has adopted, or one that plans a reload.
                self.transitions.on_child_exit(pid, exit);
            }
        }
    }

    fn on_worker_exit(&mut self, pid: Pid, exit: Exit) {
        if let Some(pool) = self.transitions.state.pools.by_worker(pid) {
            pool.on_worker_exit(pid, exit);
        }
        self.transitions.state.environment.cgroups.remove(pid, self.log());
    }

    /// Begins a pending reload or upgrade. Workers do not time out for the time that it takes.
    fn start_pending_transition(&mut self) {
        let before = clock::now();
        self.transitions.start_pending();
        let after = clock::now();
        if after.duration_since(before) > STALL_THRESHOLD {
            self.transitions.state.pools.discount_stall(before, after);
            self.poll_worker_status();
        }
    }

    fn check_health(&mut self, now: MonotonicTime) {
        self.transitions.state.pools.iter_mut().for_each(|pool| pool.check_health(now));
    }

    /// Ends workers that exceed a limit, in all pools, and scales, before a reload is decided on. If one of
    /// several pools has failed, the master stops: the others alone are not what was configured.
    fn enforce_limits(&mut self, now: MonotonicTime) {
        let any_failed =
            self.transitions.state.pools.iter().any(|pool| pool.supervisor().has_failed());
        if any_failed
            && self.transitions.state.pools.stopping().is_none()
            && self.transitions.state.pools.len() > 1
        {
            self.transitions.begin_shutdown();
            self.transitions.state.pools.stop(ShutdownMode::Graceful);
        }
        let is_sole_master = self.transitions.upgrade.is_sole_master();
        self.transitions.state.enforce_limits(is_sole_master, now);
    }

    /// Starts and drains workers. A reload commits or rolls back in all pools before any worker drains for
    /// it. Returns whether one has: its roll-back may have scaled a pool, so there may be more to do.
    fn reconcile(&mut self, now: MonotonicTime) -> bool {
        let transaction = self.transitions.reload.transaction();
        let participants = self.transitions.state.pools.iter_mut().map(|pool| {
            let is_removing = transaction.is_some_and(|it| it.removes(pool.name()));
            pool.reload_participant(is_removing)
        });
        let ReconcileOutcome { result, actions } =
            reload_barrier::reconcile_all(participants.collect(), now);
        if let Some(result) = result {
            self.transitions.end_reload(result);
        }
        for (pool, actions) in self.transitions.state.pools.iter_mut().zip(actions) {
            actions.into_iter().for_each(|action| pool.apply(action));
        }
        if self.transitions.state.pools.iter().any(Pool::is_dropped) {
            self.flush_statsd(now);
            self.transitions.state.pools.drop_retired();
        }
        result.is_some()
    }

    fn update_reuseport(&mut self) {
        self.transitions.state.update_reuseport(self.transitions.upgrade.is_sole_master());
    }

    /// Reports once that the first workers are ready.
    fn report_ready(&mut self) {
        if self.transitions.state.has_been_ready || !self.transitions.state.pools.all_ready() {
            return;
        }
        self.transitions.state.has_been_ready = true;
        info!(self.log(), "all workers ready"; "workers" => self.transitions.state.pools.target(),
            "pid" => Pid::this().as_raw());
        self.transitions.upgrade.report_ready();
        self.transitions.state.notify_ready(None);
        if let Some(notifier) = self.startup_notifier.take() {
            notifier.notify(0, "");
        }
        self.transitions.state.hook("when_ready", |hooks| hooks.when_ready());
    }

    fn update_service_manager(&mut self, now: MonotonicTime) {
        let state = &mut self.transitions.state;
        state.service_manager.ping_watchdog_if_due(now);
        if state.has_been_ready {
            state.service_manager.notify_status(|| state.pools.status_line());
        }
    }

    /// Serves the clients of the control interface, from what this turn has decided.
    fn serve_control(&mut self, now: MonotonicTime) {
        let Some(control) = &mut self.control else { return };
        let transitions = &self.transitions;
        let config = &mut self.config;
        let unready_reason = || transitions.state.unready_reason();
        let collect = || transitions.snapshot(config.json(transitions), now);
        let is_sole_master = transitions.upgrade.is_sole_master();
        control.serve(now, is_sole_master, transitions.state.log(), unready_reason, collect);
    }

    /// Sends to statsd what is new. If another master goes on after this one, it sends the gauges.
    fn flush_statsd(&mut self, now: MonotonicTime) {
        let Some(control) = &mut self.control else { return };
        let transitions = &self.transitions;
        let has_successor = transitions.upgrade.successor().is_some();
        let collect = || transitions.snapshot(Arc::default(), now);
        control.flush_statsd(has_successor, transitions.state.log(), collect);
    }

    /// Answers the clients that wait for the end of this master.
    fn finish_control(&mut self, now: MonotonicTime) {
        let successor = self.transitions.upgrade.successor().map(Pid::as_raw);
        self.transitions.operations.lock().on_exit(successor);
        self.flush_statsd(now);
        if let Some(control) = &mut self.control {
            control.finish(now);
        }
    }

    /// Returns how the run has ended, once all workers have exited and their cgroups are removed, or
    /// have had enough time.
    fn outcome(&mut self, now: MonotonicTime) -> Option<RunOutcome> {
        let cgroups = &self.transitions.state.environment.cgroups;
        cgroups.retry_removals(now, self.transitions.state.log());
        let outcome = self.transitions.state.pools.outcome();
        let may_exit = cgroups.wait_for_exit(outcome.is_some(), now);
        let outcome = outcome?;
        (self.transitions.state.release_leadership() && may_exit).then_some(outcome)
    }

    /// Sleeps until a signal, a worker, another master, or the next deadline. Serves the clients of the
    /// control interface meanwhile: for them alone, the workers need not be looked at, of which there may
    /// be thousands.
    fn sleep(&mut self, decided_at: MonotonicTime) -> io::Result<()> {
        let due = self.transitions.state.pools.next_deadline(decided_at);
        let mut slept_at = decided_at;
        while self.sleep_once(slept_at, due)? == Wake::ControlClients {
            slept_at = clock::now();
            self.stalls.begin_turn();
            self.transitions.operations.lock().set_now(slept_at);
            self.serve_control(slept_at);
        }
        Ok(())
    }

    /// Sleeps once, until `due` at the latest. A descriptor that the loop is to wait for is added here;
    /// [`run`](Self::run) reads it in a step of its own, since no step learns which one is readable.
    fn sleep_once(&mut self, now: MonotonicTime, due: Option<MonotonicTime>) -> io::Result<Wake> {
        let deadline = sleep::earliest([
            due,
            self.transitions.next_deadline(),
            self.stalls.next_deadline(),
            self.reaper.has_more().then_some(now),
        ]);
        let mut fds = vec![self.signals.as_fd()];
        fds.extend(self.transitions.state.pools.iter().flat_map(Pool::wakeup_fds));
        fds.extend(self.transitions.wakeup_fds());
        let others = WakeSources { fds, deadline };
        let control = self.control.as_ref().map(|it| it.wake_sources(now)).unwrap_or_default();
        control::hand_over_sockets(self.log());
        self.stalls.on_sleep(process::voluntary_switches());
        let deferred = self.stalls.next_deadline().map(|_| Signal::Cont);
        let wake = sleep::sleep(&control, &others, deferred)?;
        let deadline = sleep::earliest([control.deadline, others.deadline]);
        let now = clock::now();
        let Some(stall) = self.stalls.on_wake(deadline, now) else { return Ok(wake) };
        warn!(self.log(), "master event loop stalled"; "duration_ms" => as_millis(stall.late));
        self.transitions.state.pools.discount_stall(stall.since, now);
        Ok(Wake::Anything)
    }

    /// Handles SIGCONT: the master may have been stopped for less time than it would have slept.
    fn on_sigcont(&mut self) {
        let now = clock::now();
        if let Some(stall) = self.stalls.on_sigcont(process::voluntary_switches(), now) {
            self.transitions.state.pools.discount_stall(stall.since, now);
        }
    }

    /// Returns the current log.
    pub(crate) fn log(&self) -> &Logger {
        self.transitions.state.log()
    }

    /// Returns why no worker was ever ready, with the log of the pool that has failed.
    pub(crate) fn failure_reason(&self) -> (&Logger, String) {
        self.transitions.state.failure_reason()
    }

    /// Removes the pid file, and frees the addresses unless there is another master, which gets the totals.
    pub(crate) fn clean_up(&mut self) {
        let operations = self.transitions.operations.lock().counts();
        self.transitions.upgrade.hand_over(&self.transitions.state, &operations);
        self.transitions.state.hook("on_exit", |hooks| hooks.on_exit());
        self.transitions.free_addresses();
        if let Some(control) = &self.control {
            control.remove_paths();
        }
        self.pidfiles.drain(..).for_each(PidFile::remove);
    }
}
