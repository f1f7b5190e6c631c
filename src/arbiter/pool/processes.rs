//! The processes behind the roster's numbers: forking, signalling, burying, and reading their
//! signs of life. It decides nothing.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use slog::warn;

use super::row_allocator::RowAllocator;
use super::supervisor::{Busy, ExitObservation, Generation, ProcessExit, WorkerId};
use crate::app::WorkerInfo;
use crate::arbiter::cgroup::WorkerCgroups;
use crate::arbiter::generation::{PoolGeneration, PoolSpec};
use crate::arbiter::oom::OomMonitor;
use crate::arbiter::worker_main::{self, WorkerInit};
use crate::heartbeat::Heartbeat;
use crate::hooks::Hooks;
use crate::os::cgroup::Cgroups;
use crate::os::clock;
use crate::os::file;
use crate::os::process::{self, Exit, Pid};
use crate::os::procfs;
use crate::os::title::ProcTitle;
use crate::scoreboard::{WorkUnit, WorkerStatus};
use crate::settings::Settings;
use crate::systemd;
use crate::time::MonotonicTime;

/// The living workers.
pub(crate) struct ProcessTable<'a> {
    pub(in crate::arbiter) current: PoolGeneration<'a>,
    /// During a reload: what to return to if it fails.
    pub(in crate::arbiter) previous: Option<PoolGeneration<'a>>,
    title: Option<ProcTitle>,
    wakeup_rx: OwnedFd,
    wakeup_tx: OwnedFd,
    pub(in crate::arbiter) workers: HashMap<WorkerId, WorkerProcess>,
    by_pid: HashMap<Pid, WorkerId>,
    /// Whether somebody has come or gone since the queues were last shared out.
    pub(in crate::arbiter) workers_changed: bool,
    /// Whether a worker has been killed, which the kernel may just have woken for a client.
    pub(in crate::arbiter) worker_killed_recently: bool,
    /// Whether there are sockets that do not listen yet.
    pub(in crate::arbiter) any_not_listening: bool,
    oom: Rc<OomMonitor>,
    worker_cgroups: Rc<WorkerCgroups>,
}

pub(in crate::arbiter) struct WorkerProcess {
    pub(in crate::arbiter) pid: Pid,
    pub(in crate::arbiter) slot: usize,
    pub(in crate::arbiter) generation: u32,
    rows: Rc<RowAllocator>,
    row: usize,
    heartbeat: Heartbeat,
    /// The longest unit of work that it was promised.
    timeout: Duration,
    /// What the arbiter has been told of its stage.
    reported_status: WorkerStatus,
    /// It was killed by us.
    killed_by_master: bool,
    /// Where its group counts who is killed for lack of memory.
    memory_events: Option<PathBuf>,
    /// Its memory is that of a program which it has started.
    has_program: bool,
}

impl WorkerProcess {
    /// Whether it lets clients in, for all that is known.
    pub(in crate::arbiter) fn accepts(&self) -> bool {
        matches!(self.reported_status, WorkerStatus::Ready | WorkerStatus::ReplacementRequested)
    }
}

/// What a worker says by the scoreboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::arbiter) enum StatusChange {
    /// It can serve.
    Ready,
    /// It wants a successor.
    ReplacementRequested,
    /// It drains, by whomever it was told.
    Draining,
}

/// What a spawn action and the generation say of the worker to fork.
#[derive(Clone, Copy)]
pub(in crate::arbiter) struct SpawnRequest {
    pub(in crate::arbiter) id: WorkerId,
    pub(in crate::arbiter) slot: usize,
    pub(in crate::arbiter) generation: Generation,
    pub(in crate::arbiter) max_units: u64,
}

/// A worker that has ended.
pub(in crate::arbiter) struct ReapedWorker {
    pub(in crate::arbiter) id: WorkerId,
    pub(in crate::arbiter) observation: ExitObservation,
    /// What it left to be said, such as why it could not boot.
    pub(in crate::arbiter) note: String,
    /// How many units of work it did.
    pub(in crate::arbiter) units: u64,
}

/// Why a worker could not be started.
#[derive(Debug)]
pub(in crate::arbiter) enum SpawnError {
    Heartbeat { dir: PathBuf, source: io::Error },
    NoFreeRow,
    WakeupFd(io::Error),
    Fork(io::Error),
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Heartbeat { dir, source } => {
                write!(f, "failed to create heartbeat file in {}: {source}", dir.display())
            }
            Self::NoFreeRow => write!(f, "too many workers still draining"),
            Self::WakeupFd(source) => write!(f, "failed to duplicate wakeup pipe: {source}"),
            Self::Fork(source) => write!(f, "failed to fork: {source}"),
        }
    }
}

impl<'a> ProcessTable<'a> {
    /// A crew without a worker.
    ///
    /// # Errors
    /// No descriptor for the doorbell.
    pub(crate) fn new(
        current: PoolGeneration<'a>,
        title: Option<ProcTitle>,
        oom: &Rc<OomMonitor>,
        worker_cgroups: &Rc<WorkerCgroups>,
    ) -> io::Result<Self> {
        let (wakeup_rx, wakeup_tx) = file::pipe()?;
        let any_not_listening = current.any_not_listening();
        Ok(Self {
            current,
            previous: None,
            title,
            wakeup_rx,
            wakeup_tx,
            workers: HashMap::new(),
            by_pid: HashMap::new(),
            workers_changed: false,
            worker_killed_recently: false,
            any_not_listening,
            oom: Rc::clone(oom),
            worker_cgroups: Rc::clone(worker_cgroups),
        })
    }

    /// The control groups.
    pub(in crate::arbiter) fn cgroups(&self) -> &Cgroups {
        self.oom.cgroups()
    }

    /// What new workers are made from.
    pub(in crate::arbiter) fn current(&self) -> &PoolGeneration<'a> {
        &self.current
    }

    /// The settings of new workers.
    pub(in crate::arbiter) fn settings(&self) -> &Settings {
        &self.current.spec.settings
    }

    /// Whether nobody is left.
    pub(in crate::arbiter) fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// New workers are made from something new. The old is kept until it is known whether that
    /// was a good idea.
    pub(in crate::arbiter) fn stage_generation(&mut self, next: PoolGeneration<'a>) {
        self.previous = Some(std::mem::replace(&mut self.current, next));
    }

    /// It was. Returns the old, if there was one.
    pub(in crate::arbiter) fn commit_generation(
        &mut self,
        generation: u32,
    ) -> Option<PoolGeneration<'a>> {
        let previous = self.previous.take();
        if let Some(previous) = &previous {
            for listener in self.current.listeners_not_in(previous) {
                listener.set_first_generation(generation);
            }
        }
        self.assign_reuseport_shards();
        previous
    }

    /// It was not: back to the old, if there was one. Returns the new.
    pub(in crate::arbiter) fn restore_generation(&mut self) -> Option<PoolGeneration<'a>> {
        let failed = std::mem::replace(&mut self.current, self.previous.take()?);
        self.assign_reuseport_shards();
        Some(failed)
    }

    /// Nobody will be made from anything any more. Lets nobody new in, but where somebody else goes
    /// on serving.
    pub(in crate::arbiter) fn retire_pool(&mut self, is_sole_master: bool, keep_open: &[RawFd]) {
        if is_sole_master {
            self.current.stop_accepting(keep_open);
        }
        self.current.listeners.clear();
        (self.workers_changed, self.any_not_listening) = (true, false);
    }

    /// Whether a worker of an older generation may still let clients in: it has not said that it
    /// leaves.
    pub(in crate::arbiter) fn any_older_accepts(&self, generation: u32) -> bool {
        let accepts = |m: &WorkerProcess| {
            m.generation < generation && m.reported_status != WorkerStatus::Draining
        };
        self.workers.values().any(accepts)
    }

    /// Tells all that nobody will serve after them, and lets nobody new in.
    pub(in crate::arbiter) fn stop_accepting(&self) {
        self.generations().for_each(|pool_generation| pool_generation.stop_accepting(&[]));
    }

    /// Refuses newcomers where the door is closed and nobody waits. Returns whether that is done
    /// everywhere.
    pub(in crate::arbiter) fn reject_new_connections(&self) -> bool {
        let mut done = true;
        for pool_generation in self.generations() {
            done &= pool_generation.reject_new_connections();
        }
        done
    }

    /// Removes the paths of listeners that are ours.
    pub(crate) fn remove_paths(&self) {
        self.generations()
            .flat_map(|pool_generation| &pool_generation.listeners)
            .for_each(|l| l.remove_path());
    }

    /// What is, and during a reload also what was.
    pub(in crate::arbiter) fn generations(&self) -> impl Iterator<Item = &PoolGeneration<'a>> {
        self.previous.iter().chain([&self.current])
    }

    /// Readable when a worker has news.
    pub(in crate::arbiter) fn wakeup_fd(&self) -> BorrowedFd<'_> {
        self.wakeup_rx.as_fd()
    }

    /// Forks a worker.
    ///
    /// # Errors
    /// No file, row, descriptor or process can be had now.
    pub(in crate::arbiter) fn spawn(
        &mut self,
        request: SpawnRequest,
        fds_to_close: Vec<RawFd>,
        hooks: &dyn Hooks,
    ) -> Result<Pid, SpawnError> {
        let SpawnRequest { id, slot, generation, .. } = request;
        let dir = &self.current.spec.heartbeat_dir;
        let heartbeat = self
            .make_heartbeat()
            .map_err(|source| SpawnError::Heartbeat { dir: dir.clone(), source })?;
        let rows = Rc::clone(&self.current.rows);
        let row = rows.take_row().ok_or(SpawnError::NoFreeRow)?;
        let own_fds = self.current.listener_fds().chain(self.current.log.raw_fds());
        let inherited_fds: HashSet<RawFd> = own_fds.collect();
        let fds_to_close =
            self.owned_fds().chain(fds_to_close).filter(|fd| !inherited_fds.contains(fd));
        let fds_to_close = fds_to_close.collect();
        match self.fork(request, row, &heartbeat, fds_to_close, hooks) {
            Ok(pid) => {
                self.worker_cgroups.on_spawned(pid);
                let worker = WorkerProcess {
                    pid,
                    slot,
                    generation: generation.number,
                    rows,
                    row,
                    heartbeat,
                    timeout: self.current.spec.settings.timeout,
                    reported_status: WorkerStatus::Booting,
                    killed_by_master: false,
                    memory_events: self.oom.watch(pid),
                    has_program: self.current.spec.class.runs_command(),
                };
                self.workers.insert(id, worker);
                self.by_pid.insert(pid, id);
                Ok(pid)
            }
            Err(error) => {
                rows.release_row(row);
                Err(error)
            }
        }
    }

    fn make_heartbeat(&self) -> io::Result<Heartbeat> {
        let PoolSpec { credentials, heartbeat_dir, .. } = &self.current.spec;
        let heartbeat = Heartbeat::new(heartbeat_dir)?;
        if credentials.user().is_some() {
            heartbeat.chown(credentials.user(), credentials.group())?;
        }
        Ok(heartbeat)
    }

    fn fork(
        &self,
        request: SpawnRequest,
        row: usize,
        heartbeat: &Heartbeat,
        fds_to_close: Vec<RawFd>,
        hooks: &dyn Hooks,
    ) -> Result<Pid, SpawnError> {
        let SpawnRequest { slot, generation, .. } = request;
        let wakeup_fd = self.wakeup_tx.try_clone().map_err(SpawnError::WakeupFd)?;
        let heartbeat = heartbeat.try_clone().map_err(SpawnError::WakeupFd)?;
        let current = &self.current;
        let settings = &current.spec.settings;
        let init = WorkerInit {
            pool_generation: current,
            title: self.title,
            master: Pid::this(),
            fds_to_close,
            worker: WorkerInfo {
                pool: current.spec.name.clone(),
                slot,
                generation: generation.number,
                class: current.spec.class.name(),
                options: settings.app_options.clone(),
                limits: settings.limits(),
            },
            heartbeat,
            row,
            wakeup_fd,
            max_units: request.max_units,
            hooks,
            cgroups: &self.worker_cgroups,
            is_canary: generation.is_canary,
        };
        let forked = process::fork(move || {
            process::set_process_group(Pid::this());
            systemd::ENV_VARS.iter().for_each(|name| process::unset_env(name));
            worker_main::run_worker(init)
        });
        // Whichever of the two comes first.
        forked.inspect(|child| process::set_process_group(*child)).map_err(SpawnError::Fork)
    }

    /// What this master holds for the pool. A worker must not keep any of it but its listeners: one
    /// that outlives its generation in some worker would keep its queue open, and nobody would look
    /// at it.
    pub(in crate::arbiter) fn owned_fds(&self) -> impl Iterator<Item = RawFd> {
        let heartbeats = self.workers.values().map(|worker| worker.heartbeat.raw_fd());
        let sockets = self.generations().flat_map(PoolGeneration::listener_fds);
        heartbeats.chain(sockets).chain([self.wakeup_rx.as_raw_fd(), self.wakeup_tx.as_raw_fd()])
    }

    /// What the workers have to say since the last call.
    pub(in crate::arbiter) fn take_status_changes(&mut self) -> Vec<(WorkerId, StatusChange)> {
        file::drain_pipe(&self.wakeup_rx);
        let mut changes = Vec::new();
        for (id, worker) in &mut self.workers {
            let row = worker.rows.scoreboard().row(worker.row);
            let status = row.status();
            if status == worker.reported_status {
                continue;
            }
            match status {
                WorkerStatus::Ready => changes.push((*id, StatusChange::Ready)),
                WorkerStatus::ReplacementRequested
                    if worker.reported_status == WorkerStatus::Booting =>
                {
                    changes.extend([
                        (*id, StatusChange::Ready),
                        (*id, StatusChange::ReplacementRequested),
                    ]);
                }
                WorkerStatus::ReplacementRequested => {
                    changes.push((*id, StatusChange::ReplacementRequested))
                }
                // One that was asked to leave before it could serve has never been ready.
                WorkerStatus::Draining
                    if worker.reported_status == WorkerStatus::Booting && row.was_ready() =>
                {
                    changes.extend([(*id, StatusChange::Ready), (*id, StatusChange::Draining)]);
                }
                WorkerStatus::Draining => changes.push((*id, StatusChange::Draining)),
                WorkerStatus::Booting => (),
            }
            worker.reported_status = status;
            self.workers_changed = true;
        }
        changes
    }

    /// Whether a process is a worker of ours.
    pub(in crate::arbiter) fn contains(&self, pid: Pid) -> bool {
        self.by_pid.contains_key(&pid)
    }

    /// Forgets a process that has ended. `None` if it was none of ours.
    pub(in crate::arbiter) fn on_exit(&mut self, pid: Pid, exit: Exit) -> Option<ReapedWorker> {
        let id = self.by_pid.remove(&pid)?;
        let worker = self.workers.remove(&id)?;
        self.workers_changed = true;
        self.worker_killed_recently |= matches!(exit, Exit::Signal { .. });
        let killed_externally = match exit {
            Exit::Signal { number, .. } => process::is_sigkill(number) && !worker.killed_by_master,
            Exit::Code(_) => false,
        };
        let counter = worker.memory_events.as_deref();
        let oom_kill =
            counter.is_some_and(|counter| self.oom.resolve_exit(counter, killed_externally));
        let row = worker.rows.scoreboard().row(worker.row);
        let observation = ExitObservation {
            exit: process_exit(exit),
            was_draining: row.status() == WorkerStatus::Draining,
            killed_by_master: worker.killed_by_master,
            oom_kill,
        };
        let mut note = row.exit_note();
        if oom_kill && note.is_empty() {
            "killed by the kernel OOM killer".clone_into(&mut note);
        }
        let reaped = ReapedWorker { id, observation, note, units: row.units() };
        worker.rows.release_row(worker.row);
        Some(reaped)
    }

    /// A worker's last beat and what it works on. `None` if it has none to
    /// tell, for which it is not to blame.
    pub(in crate::arbiter) fn read_liveness(
        &self,
        id: WorkerId,
    ) -> Option<(MonotonicTime, Option<Busy>)> {
        let worker = self.workers.get(&id)?;
        // Both were stamped by a coarse clock: it may be a little later than they say.
        let late = |stamp: MonotonicTime| stamp.saturating_add(clock::COARSE_LAG);
        match worker.heartbeat.last_beat() {
            Ok(beat) => {
                let row = worker.rows.scoreboard().row(worker.row);
                let busy = row.busy_interval(clock::now(), worker.timeout);
                let busy = busy
                    .map(|(oldest, newest)| Busy { oldest: late(oldest), newest: late(newest) });
                Some((late(beat), busy))
            }
            Err(error) => {
                warn!(self.current.log.logger(), "failed to read heartbeat"; "pid" => worker.pid.as_raw(),
                    "error" => %error);
                Some((clock::now(), None))
            }
        }
    }

    /// Returns a worker's memory in bytes. A program that the worker runs is included. A value up
    /// to `threshold` may be inexact.
    pub(in crate::arbiter) fn memory(&self, id: WorkerId, threshold: u64) -> Option<u64> {
        let worker = self.workers.get(&id)?;
        let read_memory = if worker.has_program { procfs::memory_of_tree } else { procfs::memory };
        read_memory(worker.pid, threshold)
    }

    /// The unit of work of a worker whose time is up first.
    pub(in crate::arbiter) fn most_overdue_unit(&self, id: WorkerId) -> Option<WorkUnit> {
        let worker = self.workers.get(&id)?;
        let row = worker.rows.scoreboard().row(worker.row);
        row.most_overdue_unit(clock::now(), worker.timeout)
    }

    /// The process, and the thread of it, by which to see why a worker does not get on; thread 0 is
    /// its first.
    pub(in crate::arbiter) fn hang_target(&self, id: WorkerId) -> (Pid, u64) {
        let (pid, _) = self.pid_and_slot(id);
        let worker = self.workers.get(&id);
        if worker.is_some_and(|member| member.has_program) {
            return (procfs::process_to_diagnose(pid, self.cgroups()), 0);
        }
        (pid, self.most_overdue_unit(id).map_or(0, |unit| unit.thread_id))
    }

    /// A worker's process and slot.
    pub(in crate::arbiter) fn pid_and_slot(&self, id: WorkerId) -> (Pid, usize) {
        let worker = self.workers.get(&id);
        worker.map_or((Pid::from_raw(0), 0), |member| (member.pid, member.slot))
    }

    /// A worker's generation.
    pub(in crate::arbiter) fn generation(&self, id: WorkerId) -> Option<u32> {
        self.workers.get(&id).map(|worker| worker.generation)
    }

    /// Asks a worker to drain and leave.
    pub(in crate::arbiter) fn drain(&self, id: WorkerId) {
        self.signal(id, process::send_sigterm);
    }

    /// Asks a worker to leave at once.
    pub(in crate::arbiter) fn quick_stop(&self, id: WorkerId) {
        self.signal(id, process::send_sigquit);
    }

    /// Aborts a worker in the thread that is overdue: what that was at is what it then tells.
    pub(in crate::arbiter) fn abort(&self, id: WorkerId) {
        let thread = self.most_overdue_unit(id).map_or(0, |unit| unit.thread_id);
        self.signal(id, |pid| process::send_sigabrt_to_thread(pid, thread));
    }

    /// Tells all workers that the logs have been moved.
    pub(in crate::arbiter) fn reopen_logs(&self) {
        self.workers.values().for_each(|worker| process::send_sigusr1(worker.pid));
    }

    /// Kills a worker.
    pub(in crate::arbiter) fn kill(&mut self, id: WorkerId) {
        self.signal(id, process::send_sigkill);
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.killed_by_master = true;
        }
    }

    /// Only members are signalled, and a member has not been reaped: see `process`.
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
