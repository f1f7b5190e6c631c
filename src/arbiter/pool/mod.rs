//! A pool as the master sees it: its roster decides, its crew does. Nothing here knows of another
//! pool; what concerns several is the arbiter's affair.

mod exit_log;
mod health;
pub(super) mod processes;
mod reuseport;
pub(super) mod row_allocator;
pub(super) mod supervisor;

use std::os::fd::RawFd;

use slog::{Logger, error, info, warn};

use super::generation::PoolGeneration;
use super::millis;
use super::reload_barrier::ReloadParticipant;
use crate::hooks::Hooks;
use crate::log::Fields;
use crate::os::clock;
use crate::os::process::{Exit, Pid};
use crate::settings::Settings;
use crate::time::MonotonicTime;
use health::{HangDiagnoser, MEMORY_CHECK_INTERVAL};
use processes::{ProcessTable, ReapedWorker, SpawnRequest, StatusChange};
use supervisor::{Action, ExitReason, Policy, Supervisor, WorkerId};

/// One pool.
pub(super) struct Pool<'a> {
    pub(super) status: PoolStatus,
    pub(super) supervisor: Supervisor,
    pub(super) processes: ProcessTable<'a>,
    pub(super) diagnoser: HangDiagnoser,
    pub(super) hooks: &'a dyn Hooks,
    /// When workers are weighed next, if anybody's memory is bounded.
    pub(super) memory_check_due: Option<MonotonicTime>,
    /// Why the last worker that could not boot could not.
    pub(super) failure_reason: String,
}

/// What becomes of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PoolStatus {
    /// It is there, before a reload and after.
    Active,
    /// The reload that is under way adds it.
    Adding,
    /// The reload that is under way takes it away, if it comes to a good end.
    Removing,
    /// Its workers leave, and then it is forgotten.
    Removed,
}

impl<'a> Pool<'a> {
    /// A pool that is there from the start.
    pub(super) fn initial(processes: ProcessTable<'a>, hooks: &'a dyn Hooks) -> Self {
        let settings = processes.settings();
        let target = settings.workers.count();
        let supervisor = Supervisor::new(Policy::from(settings), target, clock::now().as_nanos());
        let mut pool = Self::new(PoolStatus::Active, supervisor, processes, hooks);
        pool.processes.assign_reuseport_shards();
        pool
    }

    /// A pool that a reload adds, whose workers would be of the generation after this.
    pub(super) fn for_reload(
        processes: ProcessTable<'a>,
        hooks: &'a dyn Hooks,
        generation: u32,
    ) -> Self {
        let policy = Policy::from(processes.settings());
        let supervisor = Supervisor::empty(policy, generation, clock::now().as_nanos());
        Self::new(PoolStatus::Adding, supervisor, processes, hooks)
    }

    fn new(
        status: PoolStatus,
        supervisor: Supervisor,
        processes: ProcessTable<'a>,
        hooks: &'a dyn Hooks,
    ) -> Self {
        let (diagnoser, failure_reason) = (HangDiagnoser::default(), String::new());
        Self {
            status,
            supervisor,
            processes,
            diagnoser,
            hooks,
            memory_check_due: None,
            failure_reason,
        }
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.processes.current().spec.name
    }

    pub(super) fn settings(&self) -> &Settings {
        self.processes.settings()
    }

    /// The log, in which each record names the pool where there are several.
    pub(super) fn log(&self) -> &Logger {
        self.processes.current().log.logger()
    }

    /// Its part in what all pools do together.
    pub(super) fn reload_participant(&mut self) -> ReloadParticipant<'_> {
        ReloadParticipant {
            is_removing: self.status == PoolStatus::Removing,
            supervisor: &mut self.supervisor,
        }
    }

    /// Whether as many workers are ready as are wished for.
    pub(super) fn is_ready(&self) -> bool {
        self.supervisor.ready_count() >= self.supervisor.target()
    }

    /// Whether it has left for good.
    pub(super) fn is_removed(&self) -> bool {
        self.status == PoolStatus::Removed && self.processes.is_empty()
    }

    /// Begins to replace the workers by those of a new generation.
    pub(super) fn start_generation(&mut self, target: usize, generation: u32) {
        self.failure_reason.clear();
        let policy = Policy::from(self.settings());
        self.supervisor.begin_reload(policy, target, generation);
    }

    /// Its workers are to leave, and its listeners close, but for those that are `kept`.
    pub(super) fn retire(&mut self, is_sole_master: bool, keep_open: &[RawFd]) {
        self.status = PoolStatus::Removed;
        self.supervisor.scale_to_zero();
        self.processes.retire_pool(is_sole_master, keep_open);
    }

    /// When there may be something to do, if nobody has news before.
    pub(super) fn next_deadline(&self, decided_at: MonotonicTime) -> Option<MonotonicTime> {
        [self.supervisor.next_deadline(decided_at), self.memory_check_due]
            .into_iter()
            .flatten()
            .min()
    }

    /// Learns from the scoreboard who has become ready, and who wants a successor.
    pub(super) fn poll_worker_status(&mut self) {
        let now = clock::now();
        for (id, change) in self.processes.take_status_changes() {
            match change {
                StatusChange::Ready => {
                    if let Some(uptime) = self.supervisor.on_ready(id, now) {
                        let (pid, slot) = self.processes.pid_and_slot(id);
                        info!(self.log(), "worker ready"; "pid" => pid.as_raw(), "slot" => slot,
                            "uptime_ms" => millis(uptime));
                        let worker = self.worker_ref(id);
                        self.hook("worker_ready", |hooks| hooks.worker_ready(&worker));
                    }
                }
                StatusChange::ReplacementRequested => self.supervisor.on_replacement_requested(id),
                StatusChange::Draining => {
                    if self.supervisor.on_draining(id, now) {
                        let (pid, slot) = self.processes.pid_and_slot(id);
                        info!(self.log(), "worker draining"; "pid" => pid.as_raw(), "slot" => slot,
                            "reason" => ExitReason::Requested.as_str());
                    }
                }
            }
        }
    }

    /// One of its workers has ended, and been reaped.
    pub(super) fn on_worker_exit(&mut self, pid: Pid, exit: Exit) {
        let Some(reaped) = self.processes.on_exit(pid, exit) else { return };
        let ReapedWorker { id, observation, .. } = reaped;
        self.diagnoser.forget(id);
        if let Some(report) = self.supervisor.on_exit(id, observation, clock::now()) {
            self.log_exit(pid, exit, &report, reaped);
        }
    }

    /// Does what its roster has decided. `fds_to_close` are the descriptors of the master, and of other
    /// pools, that no worker may keep.
    pub(super) fn apply(&mut self, action: Action, fds_to_close: impl FnOnce() -> Vec<RawFd>) {
        match action {
            Action::Spawn { id, slot, max_units } => {
                self.spawn(id, slot, max_units, fds_to_close())
            }
            Action::Drain(id, reason) => {
                let (pid, slot) = self.processes.pid_and_slot(id);
                if reason != ExitReason::Requested {
                    info!(self.log(), "worker draining"; "pid" => pid.as_raw(),
                        "slot" => slot, "reason" => reason.as_str());
                }
                self.processes.drain(id);
            }
            Action::QuickStop(id) => self.processes.quick_stop(id),
            Action::DrainHung(id, hang) => {
                self.log_hang(id, hang, "draining");
                self.processes.drain(id);
            }
            Action::Abort(id, hang) => {
                self.log_hang(id, hang, "aborted");
                self.processes.abort(id);
                // To describe it has taken time, and so may a hook.
                self.supervisor.on_aborted(id, clock::now());
            }
            Action::KillHung(id, hang) => {
                self.log_hang(id, hang, "killed");
                self.processes.kill(id);
            }
            Action::KillOverdue(id, reason) => {
                let (pid, slot) = self.processes.pid_and_slot(id);
                warn!(self.log(), "worker killed"; "pid" => pid.as_raw(), "slot" => slot,
                    "reason" => reason.as_str());
                self.processes.kill(id);
            }
        }
    }

    fn spawn(&mut self, id: WorkerId, slot: usize, max_units: u64, fds_to_close: Vec<RawFd>) {
        let generation = self.supervisor.describe_generation(self.supervisor.generation());
        self.hook("pre_fork", |hooks| hooks.pre_fork(self.name(), slot, generation.number));
        let now = clock::now();
        let request = SpawnRequest { id, slot, generation, max_units };
        match self.processes.spawn(request, fds_to_close, self.hooks) {
            Ok(pid) => {
                self.supervisor.on_spawned(id, slot, now);
                if self.settings().max_memory > 0 {
                    self.memory_check_due.get_or_insert(now.saturating_add(MEMORY_CHECK_INTERVAL));
                }
                info!(self.log(), "worker started"; "pid" => pid.as_raw(), "slot" => slot,
                    "generation" => generation.number);
            }
            Err(reason) => {
                let restart_in = self.supervisor.on_spawn_failed(slot, now);
                let fields = Fields::new().number("slot", slot).text("error", reason.to_string());
                let fields = fields.number("restart_in_ms", millis(restart_in));
                if generation.is_canary {
                    self.failure_reason = format!("failed to start worker: {reason}");
                    warn!(self.log(), "failed to start worker"; fields);
                } else {
                    error!(self.log(), "failed to start worker"; fields);
                }
            }
        }
    }

    /// What new workers are made from.
    pub(super) fn current_generation(&self) -> &PoolGeneration<'a> {
        self.processes.current()
    }
}

impl From<&Settings> for Policy {
    fn from(settings: &Settings) -> Self {
        Self {
            timeout: settings.timeout,
            boot_timeout: settings.boot_timeout,
            graceful_timeout: settings.graceful_timeout,
            abort_timeout: settings.abort_timeout,
            max_lifetime: settings.max_lifetime,
            max_lifetime_jitter: settings.max_lifetime_jitter,
            max_requests: settings.max_requests,
            max_requests_jitter: settings.max_requests_jitter,
            max_memory: settings.max_memory,
            max_surge: settings.max_surge,
            max_unavailable: settings.max_unavailable,
            boot_retries: settings.boot_retries,
        }
    }
}
