//! What signals and commands change: reloads, upgrades and stops, and the state that they work on.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use slog::{info, warn};

use super::generation::PoolGeneration;
use super::leader::Leader;
use super::operations::{ReloadStage, SharedOperations, Work};
use super::pre_stop::StopFacts;
use super::reload::{FileChange, Reload};
use super::reload_barrier::ReloadResult;
use super::shutdown::{self, Shutdown};
use super::sleep::earliest;
use super::snapshot::Snapshot;
use super::state::MasterState;
use super::upgrade::{Upgrade, UpgradePeer, UpgradePhase};
use crate::duration::{as_millis, format_duration};
use crate::os::process::{Exit, Pid};
use crate::os::signal::Signal;
use crate::os::{clock, foreground};
use crate::time::MonotonicTime;

/// The state of the master, and what is under way to change it.
pub(super) struct Transitions<'a> {
    pub(super) state: MasterState<'a>,
    pub(super) reload: Reload<'a>,
    pub(super) upgrade: Upgrade,
    pub(super) shutdown: Shutdown,
    pub(super) operations: SharedOperations,
}

impl Transitions<'_> {
    /// Returns when there is something to do, if nothing happens before.
    pub(super) fn next_deadline(&self) -> Option<MonotonicTime> {
        earliest([
            self.upgrade.next_deadline(),
            self.state.service_manager.next_deadline(),
            self.shutdown.next_deadline(),
            self.state.pre_stop.next_deadline(),
            self.reload.next_deadline(),
            self.state.leader.as_ref().and_then(Leader::next_deadline),
            self.operations.lock().next_deadline(),
            self.state.environment.cgroups.next_deadline(),
        ])
    }

    /// Returns the descriptors that are readable when there is something to do.
    pub(super) fn wakeup_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let leader = self.state.leader.as_ref().and_then(Leader::fd);
        let upgrade = self.upgrade.channel_fd();
        leader.into_iter().chain(upgrade).chain(self.reload.planning_fds())
    }
}

/// What is asked for, by a signal or a command. Each begins an operation, and returns its number.
impl Transitions<'_> {
    /// Asks for a reload. If one is asked for already and has not begun, both are one.
    pub(super) fn request_reload(&mut self, by: &str) -> u64 {
        self.reload.request();
        let mut operations = self.operations.lock();
        let requested = |work: &Work| *work == Work::Reload(ReloadStage::Requested);
        operations
            .running(requested)
            .unwrap_or_else(|| operations.begin(Work::Reload(ReloadStage::Requested), by, None))
    }

    /// Asks for an upgrade. If `replaces` is set, this master stops once the new one is ready.
    pub(super) fn request_upgrade(&mut self, replaces: bool, by: &str) -> u64 {
        self.upgrade.is_pending = true;
        let mut operations = self.operations.lock();
        let is_upgrade = |work: &Work| matches!(work, Work::Upgrade { new_pid: None, .. });
        let old_pid = Pid::this().as_raw();
        let work = Work::Upgrade { replaces, old_pid, new_pid: None, is_ready: false };
        let running = operations.running(is_upgrade);
        running.unwrap_or_else(|| operations.begin(work, by, None))
    }

    /// Stops the master as a signal demands, or stops it harder.
    pub(super) fn request_stop(&mut self, signal: Signal, by: &str) -> u64 {
        let id = {
            let mut operations = self.operations.lock();
            let running = operations.running(|work| matches!(work, Work::Stop { .. }));
            let workers = self.state.pools.worker_count();
            running.unwrap_or_else(|| operations.begin(Work::Stop { workers }, by, None))
        };
        self.stop(signal, by);
        id
    }

    /// Reopens the logs.
    pub(super) fn reopen_logs(&mut self, by: &str) -> u64 {
        let id = self.operations.lock().begin(Work::Reopen, by, None);
        let previous = self.reload.transaction().map(|it| it.previous_context());
        let access_logs = self.reload.previous_generations().map(PoolGeneration::reopen_access_log);
        let reopened = access_logs.fold(Ok(()), Result::and);
        let reopened = self.state.reopen_logs(previous).and(reopened);
        self.operations.lock().end(id, reopened.map(|()| serde_json::json!({})));
        id
    }

    /// Drains the workers; the master stays. Only a daemon, or a master that is being upgraded, takes
    /// SIGWINCH as a command.
    pub(super) fn suspend_workers(&mut self) {
        if !self.state.context.settings.daemon && self.upgrade.is_sole_master() {
            warn!(self.state.log(), "signal ignored: not a daemon"; "signal" => "WINCH");
            return;
        }
        self.state.suspend_workers();
    }
}

impl Transitions<'_> {
    /// Returns what the control interface shows. `config` is the JSON of the settings in use.
    pub(super) fn snapshot(&self, config: Arc<[u8]>, now: MonotonicTime) -> Snapshot {
        let mut operations = self.operations.lock();
        Snapshot {
            operation: operations.running_json(),
            operation_counts: operations.counts(),
            config,
            ..self.state.snapshot(self.upgrade.peer().pid(), now)
        }
    }
}

/// What happens in one turn of the loop.
impl<'a> Transitions<'a> {
    /// Begins or ceases to lead, and begins a pending reload or upgrade.
    pub(super) fn start_pending(&mut self) {
        self.state.follow_leader();
        let is_sole_master = self.upgrade.is_sole_master();
        match self.reload.take_file_change(&self.state, is_sole_master) {
            Some(FileChange { by, is_program: true }) => self.request_upgrade(true, &by),
            Some(FileChange { by, is_program: false }) => self.request_reload(&by),
            None => 0,
        };
        self.reload.start_pending(&mut self.state, is_sole_master);
        self.start_pending_upgrade();
        // A reload may have added a pool, which is on standby at first.
        self.state.follow_leader();
    }

    fn start_pending_upgrade(&mut self) {
        let is_reloading = self.reload.is_planning() || self.state.pools.is_reloading();
        if !self.upgrade.is_pending || is_reloading {
            return;
        }
        self.upgrade.is_pending = false;
        if self.state.is_stopping() {
            let reason = "master is stopping";
            self.upgrade.reject(reason.to_owned(), self.state.log());
            return;
        }
        if self.state.leader.is_some() {
            let reason = "pools are led, and the new master could not lead: restart instead";
            self.upgrade.reject(reason.to_owned(), self.state.log());
            return;
        }
        let is_started = self.upgrade.start(&self.state);
        let is_replacing = |work: &Work| matches!(work, Work::Upgrade { replaces: true, .. });
        let replaces = self.operations.lock().running(is_replacing).is_some();
        if is_started && replaces {
            self.upgrade.stop_when_ready();
        }
        if self.state.context.settings.reload
            && let Some(new_master) = self.upgrade.peer().pid().filter(|_| is_started)
        {
            foreground::announce_successor(new_master);
        }
    }

    /// Kills a new master that is late, and stops this one once the new one is ready, if that was
    /// asked for.
    pub(super) fn enforce_upgrade_timeout(&mut self, now: MonotonicTime) {
        self.upgrade.on_turn(now, self.state.log());
        if let Some(by) = self.upgrade.take_due_stop(self.state.log()) {
            self.stop(Signal::Term, by);
        }
    }

    /// Begins the drain, once `pre_stop` is over.
    pub(super) fn end_pre_stop(&mut self, now: MonotonicTime) {
        if let Some(by) = self.state.pre_stop.take_due(now) {
            self.begin_stop(Signal::Term, &by);
        }
    }

    /// Watches the files for which `reload` is set.
    pub(super) fn watch_files(&mut self) {
        let (exec_args, is_sole_master) =
            (self.upgrade.exec_args.as_ref(), self.upgrade.is_sole_master());
        self.reload.watch_files(&self.state, exec_args, is_sole_master);
    }

    /// Reports once that this master has replaced the old one.
    pub(super) fn report_upgrade_complete(&mut self) {
        self.upgrade.report_complete(self.state.has_been_ready, self.state.log());
    }

    pub(super) fn reject_new_connections(&mut self, now: MonotonicTime) {
        let generations = self.reload.previous_generations().chain(self.state.pools.generations());
        self.shutdown.reject_new_connections(generations, now);
    }

    /// Commits or rolls back a reload in all pools.
    pub(super) fn end_reload(&mut self, result: ReloadResult) {
        let is_sole_master = self.upgrade.is_sole_master();
        self.reload.commit_or_roll_back(result, &mut self.state, is_sole_master);
    }

    /// Handles the exit of a child that is no worker: the new master, or one that has nothing to say.
    pub(super) fn on_child_exit(&mut self, pid: Pid, exit: Exit) {
        if self.upgrade.on_child_exit(pid, exit, self.state.context.log.logger()) {
            self.on_new_master_exit(pid);
        }
    }

    /// Goes on alone after the new master has exited. If that was ready and has died, a graceful stop
    /// is cancelled: no master would serve. A reload that the stop has cut off cannot be resumed.
    fn on_new_master_exit(&mut self, pid: Pid) {
        let is_lost = self.upgrade.take_lost_successor() && self.reload.transaction().is_none();
        if is_lost && self.state.pools.cancel_stop() {
            self.upgrade.report_cancelled_stop(self.state.context.log.logger());
            self.state.service_manager.notify_main_pid(Pid::this());
        }
        self.on_peer_exit(pid);
        self.state.resume_workers();
    }

    /// Takes over from another master that has exited.
    pub(super) fn on_peer_exit(&mut self, pid: Pid) {
        self.state.environment.cgroups.find_orphans(pid);
        self.state.pools.iter().for_each(|pool| pool.restore_listeners(pid, None));
        if self.state.pools.stopping().is_some() {
            self.begin_shutdown(); // the stop began when there was another master
        }
    }

    /// Stops the master as this signal does, or delays that for `pre_stop`. `by` is what has asked for it.
    fn stop(&mut self, signal: Signal, by: &str) {
        if self.state.pools.stopping().is_none()
            && (self.upgrade.defers_stop(signal, self.state.log()) || self.delays_stop(signal, by))
        {
            return;
        }
        self.begin_stop(signal, by);
    }

    /// Decides whether `pre_stop` delays this stop: clients are accepted until it is over.
    fn delays_stop(&mut self, signal: Signal, by: &str) -> bool {
        let facts = StopFacts {
            delay: self.state.context.settings.pre_stop,
            is_graceful: signal == Signal::Term,
            has_been_ready: self.state.has_been_ready,
            has_successor: self.upgrade.successor().is_some(),
        };
        let Some(delay) = self.state.pre_stop.on_stop_request(facts, by, clock::now()) else {
            return false;
        };
        info!(self.state.log(), "pre-stop started"; "by" => by, "duration_ms" => as_millis(delay));
        let stop_time = self.state.pools.max_stop_time().saturating_add(delay);
        let status = format!("stopping in {}, still accepting", format_duration(delay));
        self.state.service_manager.notify_stopping(stop_time, &status);
        true
    }

    /// Stops the master, or stops it harder.
    fn begin_stop(&mut self, signal: Signal, by: &str) {
        let stopping = self.state.pools.stopping();
        if stopping.is_none() {
            self.begin_shutdown();
        }
        let Some(mode) = shutdown::requested_mode(signal, stopping) else { return };
        info!(self.state.log(), "stopping"; "by" => by, "mode" => shutdown::mode_name(mode));
        self.state.pools.stop(mode);
    }

    /// Stops listening and tells the service manager, unless another master goes on serving.
    pub(super) fn begin_shutdown(&mut self) {
        let stop_time = self.state.pools.max_stop_time();
        match self.upgrade.peer() {
            UpgradePeer::NewMaster { pid, phase: UpgradePhase::Ready, .. } => {
                self.state.service_manager.notify_main_pid(*pid);
            }
            UpgradePeer::None | UpgradePeer::NewMaster { .. } => {
                self.state.service_manager.notify_stopping(stop_time, "stopping");
            }
            UpgradePeer::OldMaster { .. } => (), // which is still the service
        }
        if self.upgrade.is_sole_master() {
            let generations =
                self.reload.previous_generations().chain(self.state.pools.generations());
            self.shutdown.stop_accepting(generations, &self.state.service_manager, clock::now());
        }
    }

    /// Frees the addresses, if there is no other master.
    pub(super) fn free_addresses(&self) {
        if self.upgrade.is_sole_master() {
            let generations =
                self.reload.previous_generations().chain(self.state.pools.generations());
            generations.for_each(PoolGeneration::free_addresses);
        }
    }
}
