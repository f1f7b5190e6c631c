//! One pool: feeds facts to its supervisor, and applies the actions that the supervisor decides to
//! its processes. Knows of no other pool.

mod drain_mode;
mod events;
mod exit_history;
mod exit_log;
mod generations;
mod hang_diagnoser;
mod health;
mod leading;
mod listeners;
pub(super) mod processes;
mod reuseport;
pub(super) mod row_allocator;
mod scaling;
mod spawn_error;
mod status;
mod status_change;
pub(super) mod supervisor;
mod unix_queues;
mod wakeups;

use std::io;
use std::ops::Range;
use std::ops::RangeInclusive;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::Duration;

use slog::{Logger, info, warn};

use super::generation::PoolGeneration;
use super::hook_runner::{make_worker_ref, run_hook};
use super::operations::{PoolView, Recycled};
use super::reload_barrier::ReloadParticipant;
use crate::duration::{as_millis, format_duration};
use crate::hooks::{HookResult, Hooks, WorkerRef};
use crate::os::clock;
use crate::os::process::Pid;
use crate::settings::Settings;
use crate::time::MonotonicTime;
use exit_history::ExitHistory;
use health::{HealthMonitor, Watched};
use processes::{ProcessTable, SpawnRequest, WorkerEnvironment};
use reuseport::ShardAssigner;
use scaling::{Scaled, Scaler};
use supervisor::{
    Action, ExitReason, Hang, Policy, ShutdownMode, Standby, Supervisor, WORKERS_MAX, WorkerId,
};

/// One pool.
pub(super) struct Pool<'a> {
    /// What new workers are made from.
    generation: PoolGeneration<'a>,
    supervisor: Supervisor,
    processes: ProcessTable<'a>,
    health: HealthMonitor,
    shards: ShardAssigner,
    exits: ExitHistory,
    scaler: Scaler,
    /// A reload has removed it: it is dropped once its workers have exited.
    is_retired: bool,
    /// It serves, and is reported as not ready.
    is_in_drain_mode: bool,
    /// When it is looked again whether a worker in drain mode has finished its work.
    drain_look_at: Option<MonotonicTime>,
    /// When it is tried again to listen, after this master has begun to lead.
    bind_at: Option<MonotonicTime>,
    /// Why the last worker that failed to boot did.
    failure_reason: String,
}

impl<'a> Pool<'a> {
    /// Creates a pool at start-up.
    ///
    /// # Errors
    /// `EMFILE` or `ENFILE`.
    pub(super) fn initial(
        generation: PoolGeneration<'a>,
        environment: &Rc<WorkerEnvironment<'a>>,
    ) -> io::Result<Self> {
        let settings = &generation.spec.settings;
        let (policy, target) = (Policy::from(settings), settings.workers.count());
        let supervisor = Supervisor::new(policy, target, clock::now().as_nanos());
        let mut pool = Self::new(generation, supervisor, environment)?;
        pool.shards.set_generation(&pool.generation, &pool.processes);
        Ok(pool)
    }

    /// Creates a pool that a reload adds after this generation. It has no worker until
    /// [`begin_generation`](Self::begin_generation).
    ///
    /// # Errors
    /// `EMFILE` or `ENFILE`.
    pub(super) fn for_reload(
        generation: PoolGeneration<'a>,
        number: u32,
        environment: &Rc<WorkerEnvironment<'a>>,
    ) -> io::Result<Self> {
        let policy = Policy::from(&generation.spec.settings);
        let supervisor = Supervisor::empty(policy, number, clock::now().as_nanos());
        Self::new(generation, supervisor, environment)
    }

    fn new(
        generation: PoolGeneration<'a>,
        mut supervisor: Supervisor,
        environment: &Rc<WorkerEnvironment<'a>>,
    ) -> io::Result<Self> {
        environment.program_fds.exclude(generation.listener_fds());
        supervisor.set_standby(generation.is_standby.then_some(Standby::Kill));
        Ok(Self {
            supervisor,
            processes: ProcessTable::new(Rc::clone(environment))?,
            health: HealthMonitor::default(),
            shards: ShardAssigner::default(),
            exits: ExitHistory::default(),
            scaler: Scaler::new((environment.scaling_policy)()),
            generation,
            is_retired: false,
            is_in_drain_mode: false,
            drain_look_at: None,
            bind_at: None,
            failure_reason: String::new(),
        })
    }
}

/// What happens in one turn of the loop.
impl Pool<'_> {
    /// Reads signs of life, looks at overdue workers and reports both to the supervisor, which decides.
    pub(super) fn check_health(&mut self, now: MonotonicTime) {
        let (supervisor, processes) = (&mut self.supervisor, &self.processes);
        let log = self.generation.log.logger();
        self.health.check(Watched { supervisor, processes, log }, now);
    }

    /// Drains, aborts and kills the workers that exceed a limit, or that a stop concerns.
    pub(super) fn enforce_limits(&mut self, now: MonotonicTime) {
        let actions = self.supervisor.enforce_limits(now);
        actions.into_iter().for_each(|action| self.apply(action));
    }

    /// Changes the target by the load, if the settings have a range of workers. While something else
    /// changes the workers (`is_steady` is false), the target stays.
    pub(super) fn scale_with_load(&mut self, is_steady: bool, now: MonotonicTime) {
        let (supervisor, processes) = (&mut self.supervisor, &self.processes);
        let is_steady = is_steady && !supervisor.is_suspended();
        let is_ending = self.is_retired || supervisor.stopping().is_some();
        let generation = &self.generation;
        let pool = Scaled { generation, supervisor, processes, is_steady, is_ending };
        self.scaler.scale(pool, now);
    }

    /// Returns its part in what the reload barrier decides for all pools.
    pub(super) fn reload_participant(&mut self, is_removing: bool) -> ReloadParticipant<'_> {
        ReloadParticipant { is_removing, supervisor: &mut self.supervisor }
    }

    /// Does what its supervisor has decided.
    pub(super) fn apply(&mut self, action: Action) {
        match action {
            Action::Spawn { id, slot, max_units } => self.spawn(id, slot, max_units),
            Action::Drain(id, reason) => {
                if reason != ExitReason::Requested {
                    self.log_draining(id, reason);
                }
                self.processes.drain(id);
            }
            Action::QuickStop(id) => self.processes.quick_stop(id),
            Action::DrainHung(id, hang) => {
                self.report_hang(id, hang, "draining");
                self.processes.drain(id);
            }
            Action::Abort(id, hang) => {
                self.report_hang(id, hang, "aborted");
                self.processes.abort(id);
                // The record and the hook have taken time.
                self.supervisor.on_aborted(id, clock::now());
            }
            Action::KillHung(id, hang) => {
                self.report_hang(id, hang, "killed");
                self.processes.kill(id);
            }
            Action::Kill(id, reason) => {
                let (pid, slot) = self.processes.pid_and_slot(id);
                warn!(self.log(), "worker killed"; "pid" => pid.as_raw(), "slot" => slot,
                    "reason" => reason.as_str());
                self.processes.kill(id);
            }
        }
    }

    fn spawn(&mut self, id: WorkerId, slot: usize, max_units: u64) {
        let generation = self.supervisor.describe_generation(self.supervisor.generation());
        self.hook("pre_fork", |hooks| hooks.pre_fork(self.name(), slot, generation.number));
        let now = clock::now();
        let request = SpawnRequest { id, slot, generation, max_units };
        match self.processes.spawn(request, &self.generation) {
            Ok(pid) => {
                self.supervisor.on_spawned(id, slot, now);
                self.exits.on_started();
                self.health.on_spawned(self.settings().max_memory > 0, now);
                info!(self.log(), "worker started"; "pid" => pid.as_raw(), "slot" => slot,
                    "generation" => generation.number);
            }
            Err(reason) => {
                let restart_in = if reason.may_pass() {
                    self.supervisor.on_spawn_failed(slot, now)
                } else {
                    self.supervisor.on_spawn_impossible(slot, now)
                };
                let is_uncommitted = generation.is_uncommitted;
                if is_uncommitted || !reason.may_pass() {
                    self.failure_reason = format!("failed to start worker: {reason}");
                }
                exit_log::log_spawn_failure(self.log(), slot, &reason, restart_in, is_uncommitted);
            }
        }
    }

    fn log_draining(&self, id: WorkerId, reason: ExitReason) {
        let (pid, slot) = self.processes.pid_and_slot(id);
        info!(self.log(), "worker draining"; "pid" => pid.as_raw(), "slot" => slot,
            "reason" => reason.as_str());
    }

    fn report_hang(&mut self, id: WorkerId, hang: Hang, action: &str) {
        let generation = self.processes.generation(id);
        let is_uncommitted =
            generation.is_some_and(|it| self.supervisor.describe_generation(it).is_uncommitted);
        let (limit, age) = exit_log::describe_hang(hang);
        let age = format_duration(Duration::from_millis(as_millis(age)));
        if matches!(hang, Hang::BootTimeout(_)) {
            self.failure_reason = format!("last worker exceeded boot_timeout after {age}");
        } else if is_uncommitted {
            self.failure_reason = format!("last worker hung: {limit} for {age}");
        }
        let unit = self.processes.most_overdue_unit(id);
        let (process, diagnosis) = (self.processes.pid_and_slot(id), self.health.diagnosis(id));
        let status = self.processes.status_text(id);
        exit_log::log_hang(self.log(), process, hang, unit.as_ref(), &status, diagnosis, action);
        let (worker, work) = (self.worker_ref(id), unit.as_ref().map(|unit| unit.label.as_str()));
        self.hook("worker_hung", |hooks| hooks.worker_hung(&worker, work));
    }

    /// Begins to listen on sockets that were bound beside others, once a worker is ready. Returns
    /// whether there were any.
    pub(super) fn open_reuseport_listeners(&mut self) -> bool {
        // Until a reload commits, older workers do not have its sockets.
        self.shards.any_not_listening()
            && !self.supervisor.is_reloading()
            && self.supervisor.ready_count() > 0
            && self.shards.open_listeners(&self.generation, &self.processes)
    }

    /// Assigns SO_REUSEPORT queues without an accepting worker to other workers.
    pub(super) fn reassign_reuseport_shards(&mut self) {
        self.shards.reassign_uncovered(&self.generation, &self.processes);
    }
}

/// Commands and questions of the master, passed on to the part that they concern.
impl<'a> Pool<'a> {
    /// Returns its name.
    pub(super) fn name(&self) -> &str {
        &self.generation.spec.name
    }

    /// Returns what new workers are made from.
    pub(super) fn generation(&self) -> &PoolGeneration<'a> {
        &self.generation
    }

    /// Returns the settings of new workers.
    pub(super) fn settings(&self) -> &Settings {
        &self.generation.spec.settings
    }

    /// Returns the bounds of the number of workers, if the load decides on it.
    pub(super) fn workers_range(&self) -> Option<RangeInclusive<usize>> {
        self.settings().workers.range()
    }

    /// Returns its log. If there may be several pools, each record names this one.
    pub(super) fn log(&self) -> &Logger {
        self.generation.log.logger()
    }

    /// Returns why the last worker that failed to boot did.
    pub(super) fn failure_reason(&self) -> &str {
        &self.failure_reason
    }

    /// Returns its supervisor, for questions.
    pub(super) fn supervisor(&self) -> &Supervisor {
        &self.supervisor
    }

    /// Returns whether a reload has removed it.
    pub(super) fn is_retired(&self) -> bool {
        self.is_retired
    }

    /// Returns whether it is to be dropped: a reload has removed it, and each worker has been reaped.
    pub(super) fn is_dropped(&self) -> bool {
        self.is_retired && self.processes.is_empty()
    }

    /// Returns whether a process is a worker of this pool.
    pub(super) fn contains(&self, pid: Pid) -> bool {
        self.processes.contains(pid)
    }

    /// Returns whether a worker of an older generation may still accept clients.
    pub(super) fn any_older_accepts(&self, generation: u32) -> bool {
        self.processes.generations().any(|(it, drains)| it < generation && !drains)
    }

    /// Returns whether a worker of these generations has not exited.
    pub(super) fn has_worker_of(&self, generations: &Range<u32>) -> bool {
        self.processes.generations().any(|(it, _)| generations.contains(&it))
    }

    /// Returns what is readable when a worker's status has changed, if it is waited for, or when more is
    /// known of a worker.
    pub(super) fn wakeup_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.processes.wakeup_fd().into_iter().chain(self.health.wakeup_fd())
    }

    /// Returns when there is something to do, if no worker reports anything before.
    pub(super) fn next_deadline(&self, now: MonotonicTime) -> Option<MonotonicTime> {
        let scaling = self.scaler.next_deadline();
        let (health, processes) = (self.health.next_deadline(), self.processes.next_deadline());
        let own = [health, processes, scaling, self.drain_look_at, self.bind_at];
        self.supervisor.next_deadline(now).into_iter().chain(own.into_iter().flatten()).min()
    }

    /// Begins to stop, or stops harder.
    pub(super) fn stop(&mut self, mode: ShutdownMode) {
        self.supervisor.stop(mode);
    }

    /// Starts workers again after a graceful stop.
    pub(super) fn cancel_stop(&mut self) {
        self.supervisor.cancel_stop();
    }

    /// Changes how many workers it should have. Returns the number within its bounds.
    pub(super) fn scale_to(&mut self, target: usize) -> usize {
        let from = self.supervisor.target();
        let bounds = self.target_bounds();
        let to = self.supervisor.scale_to(target.clamp(*bounds.start(), *bounds.end()));
        self.scaler.on_command(from, to);
        to
    }

    /// Returns the bounds between which it can be scaled now.
    pub(super) fn target_bounds(&self) -> RangeInclusive<usize> {
        let range = self.workers_range().unwrap_or(1..=WORKERS_MAX);
        self.supervisor.target_bounds(range)
    }

    /// Returns how many workers it should have now. A suspended pool has none.
    pub(super) fn present_target(&self) -> usize {
        if self.supervisor.is_suspended() { 0 } else { self.supervisor.target() }
    }

    /// Requests the replacement of the ready worker of a slot, or of every slot. Returns these workers.
    pub(super) fn recycle(&mut self, slot: Option<usize>) -> Vec<Recycled> {
        let chosen = self.supervisor.recycle(slot).into_iter();
        let recycled = chosen.map(|(id, slot)| Recycled {
            pool: self.name().to_owned(),
            slot,
            id,
            pid: self.processes.pid_and_slot(id).0.as_raw(),
            failures: self.supervisor.slot_failures(slot),
            new_pid: None,
            has_exited: false,
        });
        recycled.collect()
    }

    /// Returns the workers that a reload would replace.
    pub(super) fn active_pids(&self) -> Vec<i32> {
        let active = self.supervisor.active_workers();
        active.filter_map(|id| Some(self.processes.worker(id)?.pid.as_raw())).collect()
    }

    /// Returns what operations ask of it.
    pub(super) fn view(&self) -> PoolView<'_> {
        let pid_of = Box::new(|id| self.processes.worker(id).map(|worker| worker.pid.as_raw()));
        PoolView { supervisor: &self.supervisor, failure_reason: &self.failure_reason, pid_of }
    }

    /// Returns the longest time in which a worker boots, drains and is killed.
    pub(super) fn step_time(&self) -> Duration {
        let settings = self.settings();
        let times = [settings.boot_timeout, settings.graceful_timeout, settings.abort_timeout];
        times.into_iter().fold(Duration::ZERO, Duration::saturating_add)
    }

    /// Drains all workers until [`resume`](Self::resume). A reload in progress fails.
    pub(super) fn suspend(&mut self) {
        if self.supervisor.is_reloading() {
            "workers were suspended".clone_into(&mut self.failure_reason);
        }
        self.supervisor.suspend();
    }

    /// Starts workers again. Returns whether it was suspended.
    pub(super) fn resume(&mut self) -> bool {
        self.supervisor.resume()
    }

    /// Excludes the time in which the master did not run from the workers' timeouts.
    pub(super) fn discount_stall(&mut self, since: MonotonicTime, now: MonotonicTime) {
        self.supervisor.discount_stall(since, now);
    }

    /// Has every worker reopen its logs.
    pub(super) fn reopen_logs(&self) {
        self.processes.reopen_logs();
    }

    fn hook(&self, name: &str, call: impl FnOnce(&dyn Hooks) -> HookResult) {
        run_hook(name, self.log(), self.processes.environment().hooks, call);
    }

    fn worker_ref(&self, id: WorkerId) -> WorkerRef {
        let (pid, slot) = self.processes.pid_and_slot(id);
        make_worker_ref(self.name(), pid, slot, self.processes.generation(id).unwrap_or(0))
    }
}
