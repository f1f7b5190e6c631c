//! The worker processes of one pool: forks, signals and forgets them, and reads their heartbeats and
//! scoreboard rows. Decides nothing.

mod drain_mode;
mod environment;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use slog::{Logger, warn};

use super::row_allocator::RowLease;
use super::spawn_error::SpawnError;
use super::status_change::StatusChange;
use super::supervisor::{Busy, ExitObservation, Generation, ProcessExit, WorkerId};
use super::wakeups::WakeupLimit;
use crate::app::WorkerInfo;
use crate::arbiter::generation::{PoolGeneration, PoolSpec};
use crate::arbiter::worker_main::{self, WorkerInit};
use crate::heartbeat::Heartbeat;
use crate::os::clock;
use crate::os::file;
use crate::os::memory::PublishedMemory;
use crate::os::private_dir::{self, PrivateDir};
use crate::os::process::{self, Exit, Pid};
use crate::os::procfs;
use crate::scoreboard::{DrainMode, WorkTotals, WorkUnit, WorkerStatus};
use crate::systemd;
use crate::time::MonotonicTime;
use crate::worker::NOTIFY_SOCKET_NAME;
pub(crate) use environment::WorkerEnvironment;

/// The worker processes of a pool that have not been reaped.
pub(super) struct ProcessTable<'a> {
    environment: Rc<WorkerEnvironment<'a>>,
    /// Each worker has a copy of the write end, and writes when its scoreboard row changes.
    wakeup_rx: OwnedFd,
    wakeup_tx: OwnedFd,
    wakeups: WakeupLimit,
    workers: HashMap<WorkerId, WorkerProcess>,
    by_pid: HashMap<Pid, WorkerId>,
}

pub(super) struct WorkerProcess {
    pub(super) pid: Pid,
    pub(super) slot: usize,
    pub(super) generation: u32,
    pub(super) row: RowLease,
    pub(super) heartbeat: Heartbeat,
    /// The `timeout` that it was forked with.
    timeout: Duration,
    /// The status that the pool has been told.
    reported_status: WorkerStatus,
    /// The master has sent SIGKILL.
    killed_by_master: bool,
    /// The `memory.events` file of its control group.
    memory_events: Option<PathBuf>,
    /// The directory of its program's notification socket. `None` if it runs no program.
    notify_dir: Option<PrivateDir>,
    /// Its work comes from clients.
    has_listeners: bool,
    drain_mode: DrainMode,
}

impl WorkerProcess {
    /// Returns whether the worker accepts clients, as far as it has reported.
    pub(super) fn accepts(&self) -> bool {
        let status = self.reported_status;
        matches!(status, WorkerStatus::Ready | WorkerStatus::ReplacementRequested)
            && !self.drain_mode.is_on()
    }

    /// Returns whether it runs a program (class `exec`), whose memory and hangs count as its own.
    fn has_program(&self) -> bool {
        self.notify_dir.is_some()
    }

    /// Reads from the scoreboard what has changed since the last call.
    fn take_status_changes(&mut self) -> Vec<StatusChange> {
        let row = self.row.row();
        let (before, status) = (self.reported_status, row.status());
        if status <= before {
            return Vec::new(); // unchanged, or garbage: a status never goes back
        }
        self.reported_status = status;
        StatusChange::between(before, status, row.was_ready())
    }
}

/// What a spawn action and the generation say of the worker to fork.
#[derive(Clone, Copy)]
pub(super) struct SpawnRequest {
    pub(super) id: WorkerId,
    pub(super) slot: usize,
    pub(super) generation: Generation,
    pub(super) max_units: u64,
}

/// A worker that has exited and been reaped.
pub(super) struct ReapedWorker {
    pub(super) id: WorkerId,
    pub(super) observation: ExitObservation,
    /// The text that it left on the scoreboard, such as why it could not boot.
    pub(super) note: String,
    /// What it has counted.
    pub(super) work: WorkTotals,
}

impl<'a> ProcessTable<'a> {
    /// Returns a table without workers.
    ///
    /// # Errors
    /// `EMFILE` or `ENFILE`, for the wakeup pipe.
    pub(super) fn new(environment: Rc<WorkerEnvironment<'a>>) -> io::Result<Self> {
        let (wakeup_rx, wakeup_tx) = file::pipe()?;
        Ok(Self {
            environment,
            wakeup_rx,
            wakeup_tx,
            wakeups: WakeupLimit::default(),
            workers: HashMap::new(),
            by_pid: HashMap::new(),
        })
    }

    /// Returns what the workers of all pools have in common.
    pub(super) fn environment(&self) -> &WorkerEnvironment<'a> {
        &self.environment
    }

    /// Returns whether every worker has been reaped.
    pub(super) fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// Returns whether a process is a worker of this pool.
    pub(super) fn contains(&self, pid: Pid) -> bool {
        self.by_pid.contains_key(&pid)
    }

    /// Returns the descriptor that is readable when a worker's status has changed; `None` while it is
    /// not waited for.
    pub(super) fn wakeup_fd(&self) -> Option<BorrowedFd<'_>> {
        self.wakeups.is_open().then_some(self.wakeup_rx.as_fd())
    }

    /// Returns when that descriptor is waited for again.
    pub(super) fn next_deadline(&self) -> Option<MonotonicTime> {
        self.wakeups.next_deadline()
    }

    /// Returns a worker that has not been reaped.
    pub(super) fn worker(&self, id: WorkerId) -> Option<&WorkerProcess> {
        self.workers.get(&id)
    }

    /// Returns the workers that accept clients.
    pub(super) fn accepting(&self) -> impl Iterator<Item = &WorkerProcess> {
        self.workers.values().filter(|worker| worker.accepts())
    }

    /// Returns the generation of each worker, and whether it has reported that it drains.
    pub(super) fn generations(&self) -> impl Iterator<Item = (u32, bool)> {
        let drains = |worker: &WorkerProcess| worker.reported_status == WorkerStatus::Draining;
        self.workers.values().map(move |worker| (worker.generation, drains(worker)))
    }

    /// Forks a worker of this generation of the pool.
    ///
    /// # Errors
    /// The heartbeat file, a scoreboard row, a descriptor or the process cannot be created now.
    pub(super) fn spawn(
        &mut self,
        request: SpawnRequest,
        pool_generation: &PoolGeneration<'a>,
    ) -> Result<Pid, SpawnError> {
        let spec = &pool_generation.spec;
        let (user, group) = (spec.credentials.user(), spec.credentials.group());
        let heartbeat = Heartbeat::owned_by(spec.heartbeat_dir.as_deref(), user, group)
            .map_err(|source| SpawnError::Heartbeat { dir: spec.heartbeat_dir.clone(), source })?;
        let notify_dir = self.make_notify_dir(spec)?;
        let row = pool_generation.rows.take_row().ok_or(SpawnError::NoFreeRow)?;
        let pid =
            self.fork(request, pool_generation, row.index(), &heartbeat, notify_dir.as_ref())?;
        self.environment.cgroups.on_spawned(pid);
        self.wakeups.on_spawned();
        let worker = WorkerProcess {
            pid,
            slot: request.slot,
            generation: request.generation.number,
            row,
            heartbeat,
            timeout: spec.settings.timeout,
            reported_status: WorkerStatus::Booting,
            killed_by_master: false,
            memory_events: self.environment.oom.watch(pid),
            notify_dir,
            has_listeners: !pool_generation.listeners.is_empty(),
            drain_mode: DrainMode::default(),
        };
        self.workers.insert(request.id, worker);
        self.by_pid.insert(pid, request.id);
        Ok(pid)
    }

    fn fork(
        &self,
        request: SpawnRequest,
        pool_generation: &PoolGeneration<'_>,
        row: usize,
        heartbeat: &Heartbeat,
        notify_dir: Option<&PrivateDir>,
    ) -> Result<Pid, SpawnError> {
        let SpawnRequest { slot, generation, max_units, .. } = request;
        let PoolSpec { name, settings, class, .. } = &pool_generation.spec;
        let wakeup_fd = self.wakeup_tx.try_clone().map_err(SpawnError::WakeupFd)?;
        let heartbeat = heartbeat.try_clone().map_err(SpawnError::WakeupFd)?;
        let term_end = self.environment.term_end.filter(|_| pool_generation.spec.is_led);
        let program_fds = self.environment.program_fds.unchanged();
        let worker_fds = pool_generation.listener_fds().chain(pool_generation.log_fds());
        let own_fds = [0, 1, 2, wakeup_fd.as_raw_fd(), heartbeat.raw_fd()];
        let own_fds = own_fds.into_iter().chain(notify_dir.map(PrivateDir::raw_fd));
        let init = WorkerInit {
            pool_generation,
            title: self.environment.title,
            master: Pid::this(),
            keep_fds: own_fds.chain(worker_fds).chain(program_fds).collect(),
            keep_mappings: pool_generation
                .mappings()
                .chain(term_end.map(PublishedMemory::id))
                .collect(),
            term_end,
            worker: WorkerInfo {
                pool: name.clone(),
                slot,
                generation: generation.number,
                class: class.name(),
                options: settings.app_options.clone(),
                limits: settings.limits(),
            },
            heartbeat,
            notify_path: notify_dir.map(PrivateDir::entry_path),
            row,
            wakeup_fd,
            max_units,
            hooks: self.environment.hooks,
            cgroups: &self.environment.cgroups,
            is_uncommitted: generation.is_uncommitted,
        };
        let forked = process::fork(move || {
            process::set_process_group(Pid::this());
            systemd::ENV_VARS.iter().for_each(|name| process::unset_env(name));
            worker_main::run_worker(init)
        });
        // In both processes: either may run first.
        forked.inspect(|child| process::set_process_group(*child)).map_err(SpawnError::Fork)
    }

    /// Reads from the scoreboard what has changed since the last call.
    pub(super) fn take_status_changes(
        &mut self,
        now: MonotonicTime,
    ) -> Vec<(WorkerId, StatusChange)> {
        if self.wakeups.try_open(now) && file::drain_pipe(&self.wakeup_rx) {
            self.wakeups.on_wakeup(now);
        }
        let mut changes = Vec::new();
        for (id, worker) in &mut self.workers {
            changes.extend(worker.take_status_changes().into_iter().map(|change| (*id, change)));
        }
        changes
    }

    /// Reads from the scoreboard what has changed of one worker since the last call.
    pub(super) fn take_status_changes_of(&mut self, pid: Pid) -> Vec<(WorkerId, StatusChange)> {
        let Some(id) = self.by_pid.get(&pid).copied() else { return Vec::new() };
        let Some(worker) = self.workers.get_mut(&id) else { return Vec::new() };
        worker.take_status_changes().into_iter().map(|change| (id, change)).collect()
    }

    /// Removes a process that has exited. Returns `None` if it is no worker of this pool.
    pub(super) fn remove(&mut self, pid: Pid, exit: Exit) -> Option<ReapedWorker> {
        let id = self.by_pid.remove(&pid)?;
        let worker = self.workers.remove(&id)?;
        let killed_externally = match exit {
            Exit::Signal { number, .. } => process::is_sigkill(number) && !worker.killed_by_master,
            Exit::Code(_) => false,
        };
        let counter = worker.memory_events.as_deref();
        let oom_kill = counter
            .is_some_and(|counter| self.environment.oom.resolve_exit(counter, killed_externally));
        let row = worker.row.row();
        let observation = ExitObservation {
            exit: process_exit(exit),
            was_draining: row.status() == WorkerStatus::Draining,
            killed_by_master: worker.killed_by_master,
            oom_kill,
            has_worked: row.units() > 0 || (worker.has_listeners && row.is_busy()),
        };
        let mut note = row.exit_note();
        if oom_kill && note.is_empty() {
            "killed by the kernel OOM killer".clone_into(&mut note);
        }
        Some(ReapedWorker { id, observation, note, work: row.totals(clock::now()) })
    }

    /// Reads a worker's last heartbeat and the age of its work. If its heartbeat cannot be read, now
    /// is returned: the worker is not at fault.
    pub(super) fn read_liveness(
        &self,
        id: WorkerId,
        log: &Logger,
    ) -> Option<(MonotonicTime, Option<Busy>)> {
        let worker = self.worker(id)?;
        // Both are stamped by a coarse clock: the real time may be a little later.
        let latest = |stamp: MonotonicTime| stamp.saturating_add(clock::COARSE_LAG);
        match worker.heartbeat.last_beat() {
            Ok(beat) => {
                let busy = worker.row.row().busy_interval(clock::now(), worker.timeout);
                let busy = busy.map(|(oldest, newest)| Busy {
                    oldest: latest(oldest),
                    newest: latest(newest),
                });
                Some((latest(beat), busy))
            }
            Err(error) => {
                warn!(log, "failed to read heartbeat"; "pid" => worker.pid.as_raw(),
                    "error" => %error);
                Some((clock::now(), None))
            }
        }
    }

    /// Returns a worker's memory in bytes, as RSS. A program that the worker runs is included.
    pub(super) fn resident_memory(&self, id: WorkerId) -> Option<u64> {
        let worker = self.worker(id)?;
        procfs::resident_memory(worker.pid, worker.has_program())
    }

    /// Returns whether the kernel is writing the core of a worker or of its program.
    pub(super) fn is_dumping_core(&self, id: WorkerId) -> bool {
        self.worker(id).is_some_and(|it| procfs::is_any_dumping_core(it.pid, it.has_program()))
    }

    /// Returns the unit of work of a worker whose deadline is the earliest.
    pub(super) fn most_overdue_unit(&self, id: WorkerId) -> Option<WorkUnit> {
        let worker = self.worker(id)?;
        worker.row.row().most_overdue_unit(clock::now(), worker.timeout)
    }

    /// Returns what a worker is doing, in its own words; empty if it has not told.
    pub(super) fn status_text(&self, id: WorkerId) -> String {
        self.workers.get(&id).map_or_else(String::new, |worker| worker.row.row().status_text())
    }

    /// Returns whether a worker only supervises a program.
    pub(super) fn has_program(&self, id: WorkerId) -> bool {
        self.workers.get(&id).is_some_and(WorkerProcess::has_program)
    }

    /// Returns a worker's process and slot.
    pub(super) fn pid_and_slot(&self, id: WorkerId) -> (Pid, usize) {
        self.worker(id).map_or((Pid::from_raw(0), 0), |worker| (worker.pid, worker.slot))
    }

    /// Returns a worker's generation.
    pub(super) fn generation(&self, id: WorkerId) -> Option<u32> {
        self.workers.get(&id).map(|worker| worker.generation)
    }

    /// Sends SIGTERM: drain and exit.
    pub(super) fn drain(&self, id: WorkerId) {
        self.signal(id, process::send_sigterm);
    }

    /// Sends SIGQUIT: exit immediately.
    pub(super) fn quick_stop(&self, id: WorkerId) {
        self.signal(id, process::send_sigquit);
    }

    /// Sends SIGABRT to the thread that is overdue, so that the backtrace shows what hangs.
    pub(super) fn abort(&self, id: WorkerId) {
        let thread = self.most_overdue_unit(id).map_or(0, |unit| unit.thread_id);
        self.signal(id, |pid| process::send_sigabrt_to_thread(pid, thread));
    }

    /// Sends SIGKILL.
    pub(super) fn kill(&mut self, id: WorkerId) {
        self.signal(id, process::send_sigkill);
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.killed_by_master = true;
        }
    }

    /// Sends SIGUSR1 to every worker: reopen the logs.
    pub(super) fn reopen_logs(&self) {
        self.workers.values().for_each(|worker| process::send_sigusr1(worker.pid));
    }

    /// Sends SIGURG to every worker: look at the listeners again.
    pub(super) fn recheck_listeners(&self) {
        self.workers.values().for_each(|worker| process::send_sigurg(worker.pid));
    }

    /// Creates the directory for the notification socket of a program, if the class runs one.
    fn make_notify_dir(&self, spec: &PoolSpec<'_>) -> Result<Option<PrivateDir>, SpawnError> {
        let dir = spec.heartbeat_dir.as_deref().filter(|_| spec.class.runs_command());
        let Some(dir) = dir else { return Ok(None) };
        let (user, group) = (spec.credentials.user(), spec.credentials.group());
        if self.workers.is_empty() {
            private_dir::remove_stale(dir, NOTIFY_SOCKET_NAME, user);
        }
        let created = PrivateDir::create(dir, NOTIFY_SOCKET_NAME, user, group);
        created.map(Some).map_err(|source| SpawnError::NotifyDir { dir: dir.into(), source })
    }

    /// Signals a worker. It has not been reaped, so that its pid cannot have been reused.
    fn signal(&self, id: WorkerId, send: impl FnOnce(Pid)) {
        if let Some(worker) = self.workers.get(&id) {
            send(worker.pid);
        }
    }
}

fn process_exit(exit: Exit) -> ProcessExit {
    match exit {
        Exit::Code(code) => ProcessExit::Code(code),
        Exit::Signal { number, .. } if process::is_termination_signal(number) => {
            ProcessExit::TerminationSignal
        }
        Exit::Signal { .. } => ProcessExit::FaultSignal,
    }
}
