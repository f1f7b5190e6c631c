//! The processes behind the roster's numbers: forking, signalling, burying, and reading their
//! signs of life. It decides nothing.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use slog::warn;

use super::board::Board;
use super::chance::Rng;
use super::child::{self, Birth};
use super::company::{Company, Plan};
use super::leaves::Leaves;
use super::ledger::Ledger;
use super::roster::{Busy, ExitClass, Generation, WorkerId};
use crate::app::WorkerInfo;
use crate::heartbeat::Heartbeat;
use crate::hooks::Hooks;
use crate::os::cgroup::{self, Cgroups};
use crate::os::clock;
use crate::os::file;
use crate::os::procfs;
use crate::os::process::{self, Exit, Pid};
use crate::os::title::ProcTitle;
use crate::scoreboard::{WorkerStatus, WorkUnit};
use crate::settings::Settings;
use crate::time::MonotonicTime;
use crate::systemd;

/// The living workers.
pub(crate) struct Crew<'a> {
    pub(super) company: Company<'a>,
    /// During a reload: what to return to if it fails.
    pub(super) previous: Option<Company<'a>>,
    title: Option<ProcTitle>,
    bell: OwnedFd,
    rope: OwnedFd,
    pub(super) members: HashMap<WorkerId, Member>,
    ids: HashMap<Pid, WorkerId>,
    chance: Rng,
    /// Whether somebody has come or gone since the queues were last shared out.
    pub(super) moved: bool,
    /// Whether a worker has been killed, which the kernel may just have woken for a client.
    pub(super) bereaved: bool,
    /// Whether there are sockets that do not listen yet.
    pub(super) unopened: bool,
    memory: Rc<MemoryWatch>,
    leaves: Rc<Leaves>,
}

/// Where the kernel counts whom it kills for lack of memory: for the workers of all pools, who may
/// have one counter.
pub(crate) struct MemoryWatch {
    cgroups: Cgroups,
    ledger: RefCell<Ledger>,
}

impl MemoryWatch {
    /// Finds the control groups.
    pub(crate) fn find() -> Rc<Self> {
        Rc::new(Self { cgroups: Cgroups::find(), ledger: RefCell::default() })
    }

    /// Where the group of a process counts, and from now on it is known how it stood. A worker that
    /// goes elsewhere later is not followed.
    fn begin(&self, pid: Pid) -> Option<PathBuf> {
        let counter = self.cgroups.memory_events(pid)?;
        let kills = cgroup::oom_kill_count(&counter)?;
        self.ledger.borrow_mut().join(&counter, kills, clock::now());
        Some(counter)
    }

    /// A worker that counted there has ended. Returns whether the kernel has killed it for lack of
    /// memory, which only one that was killed may have been. What the counter says is known from now
    /// on in any case.
    fn end(&self, counter: &Path, was_killed: bool) -> bool {
        let mut ledger = self.ledger.borrow_mut();
        if let Some(kills) = cgroup::oom_kill_count(counter) {
            ledger.observe(counter, kills, clock::now());
        }
        let claimed = was_killed && ledger.claim(counter);
        ledger.leave(counter);
        claimed
    }
}

pub(super) struct Member {
    pub(super) pid: Pid,
    pub(super) slot: usize,
    pub(super) generation: u32,
    board: Rc<Board>,
    row: usize,
    heartbeat: Heartbeat,
    /// The longest unit of work that it was promised.
    timeout: Duration,
    /// What the arbiter has been told of its stage.
    told: WorkerStatus,
    /// It was killed by us.
    killed: bool,
    /// Where its group counts who is killed for lack of memory.
    memory_events: Option<PathBuf>,
    /// The most memory that it may have; zero is any.
    memory_max: u64,
    /// Its memory is that of a program which it has started.
    has_program: bool,
    /// At how many looks in a row it had more.
    overweight: u8,
}

impl Member {
    /// Whether it lets clients in, for all that is known.
    pub(super) fn accepts(&self) -> bool {
        matches!(self.told, WorkerStatus::Ready | WorkerStatus::ReplacementRequested)
    }
}

/// What a worker says by the scoreboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// It can serve.
    Ready,
    /// It wants a successor.
    Spent,
    /// It drains, by whomever it was told.
    Leaving,
}

/// A worker that has ended.
pub(super) struct ReapedWorker {
    pub(super) id: WorkerId,
    pub(super) exit_class: ExitClass,
    /// What it left to be said, such as why it could not boot.
    pub(super) note: String,
    /// How many units of work it did.
    pub(super) units: u64,
}

/// Why a worker could not be started.
#[derive(Debug)]
pub(super) enum SpawnError {
    Heartbeat { folder: PathBuf, source: io::Error },
    Crowded,
    Doorbell(io::Error),
    Fork(io::Error),
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Heartbeat { folder, source } => {
                write!(f, "cannot make a heartbeat file in {}: {source}", folder.display())
            }
            Self::Crowded => write!(f, "too many workers are still leaving"),
            Self::Doorbell(source) => write!(f, "cannot share the doorbell: {source}"),
            Self::Fork(source) => write!(f, "cannot fork: {source}"),
        }
    }
}

impl<'a> Crew<'a> {
    /// A crew without a worker.
    ///
    /// # Errors
    /// No descriptor for the doorbell.
    pub(crate) fn new(
        company: Company<'a>,
        title: Option<ProcTitle>,
        memory: &Rc<MemoryWatch>,
        leaves: &Rc<Leaves>,
    ) -> io::Result<Self> {
        let (bell, rope) = file::pipe()?;
        let unopened = company.has_unopened();
        Ok(Self {
            company,
            previous: None,
            title,
            bell,
            rope,
            members: HashMap::new(),
            ids: HashMap::new(),
            chance: Rng::new(clock::now().as_nanos()),
            moved: false,
            bereaved: false,
            unopened,
            memory: Rc::clone(memory),
            leaves: Rc::clone(leaves),
        })
    }

    /// The control groups.
    pub(super) fn cgroups(&self) -> &Cgroups {
        &self.memory.cgroups
    }

    /// What new workers are made from.
    pub(super) fn company(&self) -> &Company<'a> {
        &self.company
    }

    /// The settings of new workers.
    pub(super) fn settings(&self) -> &Settings {
        &self.company.plan.settings
    }

    /// Whether nobody is left.
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// New workers are made from something new. The old is kept until it is known whether that
    /// was a good idea.
    pub(super) fn adopt(&mut self, company: Company<'a>) {
        self.previous = Some(std::mem::replace(&mut self.company, company));
    }

    /// It was. Returns the old, if there was one.
    pub(super) fn commit(&mut self, generation: u32) -> Option<Company<'a>> {
        let previous = self.previous.take();
        if let Some(previous) = &previous {
            for listener in self.company.listeners_unlike(previous) {
                listener.set_first_generation(generation);
            }
        }
        self.share_out();
        previous
    }

    /// It was not: back to the old, if there was one. Returns the new.
    pub(super) fn roll_back(&mut self) -> Option<Company<'a>> {
        let failed = std::mem::replace(&mut self.company, self.previous.take()?);
        self.share_out();
        Some(failed)
    }

    /// Nobody will be made from anything any more. Lets nobody new in, but where somebody else goes
    /// on serving.
    pub(super) fn dissolve(&mut self, alone: bool, kept: &[RawFd]) {
        if alone {
            self.company.close(kept);
        }
        self.company.listeners.clear();
        (self.moved, self.unopened) = (true, false);
    }

    /// Whether a worker of an older generation may still let clients in: it has not said that it
    /// leaves.
    pub(super) fn any_older_accepts(&self, generation: u32) -> bool {
        let accepts = |m: &Member| m.generation < generation && m.told != WorkerStatus::Draining;
        self.members.values().any(accepts)
    }

    /// Tells all that nobody will serve after them, and lets nobody new in.
    pub(super) fn close_the_house(&self) {
        self.companies().for_each(|company| company.close(&[]));
    }

    /// Refuses newcomers where the door is closed and nobody waits. Returns whether that is done
    /// everywhere.
    pub(super) fn refuse_newcomers(&self) -> bool {
        let mut done = true;
        for company in self.companies() {
            done &= company.refuse_newcomers();
        }
        done
    }

    /// Removes the paths of listeners that are ours.
    pub(crate) fn remove_paths(&self) {
        self.companies().flat_map(|company| &company.listeners).for_each(|l| l.remove_path());
    }

    /// What is, and during a reload also what was.
    pub(super) fn companies(&self) -> impl Iterator<Item = &Company<'a>> {
        self.previous.iter().chain([&self.company])
    }

    /// Readable when a worker has news.
    pub(super) fn doorbell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Forks a worker.
    ///
    /// # Errors
    /// No file, row, descriptor or process can be had now.
    pub(super) fn spawn(
        &mut self,
        id: WorkerId,
        slot: usize,
        generation: Generation,
        strangers: Vec<RawFd>,
        hooks: &dyn Hooks,
    ) -> Result<Pid, SpawnError> {
        let folder = &self.company.plan.heartbeat_folder;
        let heartbeat = self
            .make_heartbeat()
            .map_err(|source| SpawnError::Heartbeat { folder: folder.clone(), source })?;
        let board = Rc::clone(&self.company.board);
        let row = board.take_row().ok_or(SpawnError::Crowded)?;
        let own = self.company.sockets().chain(self.company.log.raw_fds());
        let given: HashSet<RawFd> = own.collect();
        let strangers = self.descriptors().chain(strangers).filter(|fd| !given.contains(fd));
        let strangers = strangers.collect();
        match self.fork(slot, generation, row, &heartbeat, strangers, hooks) {
            Ok(pid) => {
                self.leaves.born(pid);
                let member = Member {
                    pid,
                    slot,
                    generation: generation.number,
                    board,
                    row,
                    heartbeat,
                    timeout: self.company.plan.settings.timeout,
                    told: WorkerStatus::Booting,
                    killed: false,
                    memory_events: self.memory.begin(pid),
                    memory_max: self.company.plan.settings.max_memory,
                    has_program: self.company.plan.class.runs_command(),
                    overweight: 0,
                };
                self.members.insert(id, member);
                self.ids.insert(pid, id);
                Ok(pid)
            }
            Err(error) => {
                board.give_back(row);
                Err(error)
            }
        }
    }

    fn make_heartbeat(&self) -> io::Result<Heartbeat> {
        let Plan { identity, heartbeat_folder, .. } = &self.company.plan;
        let heartbeat = Heartbeat::new(heartbeat_folder)?;
        if identity.user().is_some() {
            heartbeat.chown(identity.user(), identity.group())?;
        }
        Ok(heartbeat)
    }

    fn fork(
        &mut self,
        slot: usize,
        generation: Generation,
        row: usize,
        heartbeat: &Heartbeat,
        strangers: Vec<RawFd>,
        hooks: &dyn Hooks,
    ) -> Result<Pid, SpawnError> {
        let doorbell = self.rope.try_clone().map_err(SpawnError::Doorbell)?;
        let heartbeat = heartbeat.try_clone().map_err(SpawnError::Doorbell)?;
        let company = &self.company;
        let settings = &company.plan.settings;
        let birth = Birth {
            company,
            title: self.title,
            master: Pid::this(),
            strangers,
            place: WorkerInfo {
                pool: company.plan.pool.clone(),
                slot,
                generation: generation.number,
                class: company.plan.class.name(),
                options: settings.app_options.clone(),
                limits: settings.limits(),
            },
            heartbeat,
            row,
            doorbell,
            units_max: units_max(settings, &mut self.chance),
            hooks,
            leaves: &self.leaves,
            on_trial: generation.is_canary,
        };
        let forked = process::fork(move || {
            process::set_process_group(Pid::this());
            systemd::ENV_VARS.iter().for_each(|name| process::unset_env(name));
            child::live(birth)
        });
        // Whichever of the two comes first.
        forked.inspect(|child| process::set_process_group(*child)).map_err(SpawnError::Fork)
    }

    /// What this master holds for the pool. A worker must not keep any of it but its listeners: one
    /// that outlives its generation in some worker would keep its queue open, and nobody would look
    /// at it.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        let heartbeats = self.members.values().map(|member| member.heartbeat.raw_fd());
        let sockets = self.companies().flat_map(Company::sockets);
        heartbeats.chain(sockets).chain([self.bell.as_raw_fd(), self.rope.as_raw_fd()])
    }

    /// What the workers have to say since the last call.
    pub(super) fn news(&mut self) -> Vec<(WorkerId, News)> {
        file::drain_pipe(&self.bell);
        let mut news = Vec::new();
        for (id, member) in &mut self.members {
            let row = member.board.scores().row(member.row);
            let stage = row.status();
            if stage == member.told {
                continue;
            }
            match stage {
                WorkerStatus::Ready => news.push((*id, News::Ready)),
                WorkerStatus::ReplacementRequested if member.told == WorkerStatus::Booting => {
                    news.extend([(*id, News::Ready), (*id, News::Spent)]);
                }
                WorkerStatus::ReplacementRequested => news.push((*id, News::Spent)),
                // One that was asked to leave before it could serve has never been ready.
                WorkerStatus::Draining if member.told == WorkerStatus::Booting && row.was_ready() => {
                    news.extend([(*id, News::Ready), (*id, News::Leaving)]);
                }
                WorkerStatus::Draining => news.push((*id, News::Leaving)),
                WorkerStatus::Booting => (),
            }
            member.told = stage;
            self.moved = true;
        }
        news
    }

    /// Whether a process is a worker of ours.
    pub(super) fn is_member(&self, pid: Pid) -> bool {
        self.ids.contains_key(&pid)
    }

    /// Forgets a process that has ended. `None` if it was none of ours.
    pub(super) fn bury(&mut self, pid: Pid, exit: Exit) -> Option<ReapedWorker> {
        let id = self.ids.remove(&pid)?;
        let member = self.members.remove(&id)?;
        self.moved = true;
        self.bereaved |= matches!(exit, Exit::Signal { .. });
        let killed_by_others = match exit {
            Exit::Signal { number, .. } => process::is_sigkill(number) && !member.killed,
            Exit::Code(_) => false,
        };
        let counter = member.memory_events.as_deref();
        let out_of_memory =
            counter.is_some_and(|counter| self.memory.end(counter, killed_by_others));
        let row = member.board.scores().row(member.row);
        let exit_class = match exit {
            _ if out_of_memory => ExitClass::OomKilled,
            Exit::Code(0) if row.status() == WorkerStatus::Draining => ExitClass::Requested,
            Exit::Signal { number, .. } if process::is_termination_signal(number) => ExitClass::KilledExternally,
            Exit::Code(_) | Exit::Signal { .. } => ExitClass::Crashed,
        };
        let mut note = row.exit_note();
        if out_of_memory && note.is_empty() {
            "the kernel has killed it for lack of memory".clone_into(&mut note);
        }
        let reaped = ReapedWorker { id, exit_class, note, units: row.units() };
        member.board.give_back(member.row);
        Some(reaped)
    }

    /// A worker's last beat and what it works on. `None` if it has none to
    /// tell, for which it is not to blame.
    pub(super) fn measure(&self, id: WorkerId) -> Option<(MonotonicTime, Option<Busy>)> {
        let member = self.members.get(&id)?;
        // Both were stamped by a coarse clock: it may be a little later than they say.
        let late = |stamp: MonotonicTime| stamp.saturating_add(clock::COARSE_LAG);
        match member.heartbeat.last_beat() {
            Ok(beat) => {
                let row = member.board.scores().row(member.row);
                let busy = row.busy_interval(clock::now(), member.timeout);
                let busy = busy
                    .map(|(oldest, newest)| Busy { oldest: late(oldest), newest: late(newest) });
                Some((late(beat), busy))
            }
            Err(error) => {
                warn!(self.company.log.logger(), "heartbeat cannot be read"; "pid" => member.pid.as_raw(),
                    "error" => %error);
                Some((clock::now(), None))
            }
        }
    }

    /// The workers that have become too large for good, and how large they are. Each is told of
    /// once.
    pub(super) fn weigh(&mut self) -> Vec<(WorkerId, u64)> {
        let mut found = Vec::new();
        for (id, member) in &mut self.members {
            let limit = member.memory_max;
            if !member.accepts() || limit == 0 || member.overweight == OVERWEIGHT_LOOKS {
                continue;
            }
            let weigh =
                if member.has_program { procfs::memory_of_tree } else { procfs::memory };
            match weigh(member.pid, limit).filter(|bytes| *bytes > limit) {
                Some(bytes) => {
                    member.overweight += 1;
                    if member.overweight == OVERWEIGHT_LOOKS {
                        found.push((*id, bytes));
                    }
                }
                None => member.overweight = 0,
            }
        }
        found
    }

    /// Whether anybody's memory is bounded.
    pub(super) fn any_bounded(&self) -> bool {
        self.members.values().any(|member| member.memory_max > 0)
    }

    /// The unit of work of a worker whose time is up first.
    pub(super) fn unit(&self, id: WorkerId) -> Option<WorkUnit> {
        let member = self.members.get(&id)?;
        let row = member.board.scores().row(member.row);
        row.most_overdue_unit(clock::now(), member.timeout)
    }

    /// The process, and the thread of it, by which to see why a worker does not get on; thread 0 is
    /// its first.
    pub(super) fn suspect(&self, id: WorkerId) -> (Pid, u64) {
        let (pid, _) = self.who(id);
        let member = self.members.get(&id);
        if member.is_some_and(|member| member.has_program) {
            return (procfs::process_to_diagnose(pid, self.cgroups()), 0);
        }
        (pid, self.unit(id).map_or(0, |unit| unit.thread_id))
    }

    /// A worker's process and slot.
    pub(super) fn who(&self, id: WorkerId) -> (Pid, usize) {
        let member = self.members.get(&id);
        member.map_or((Pid::from_raw(0), 0), |member| (member.pid, member.slot))
    }

    /// A worker's generation.
    pub(super) fn generation(&self, id: WorkerId) -> Option<u32> {
        self.members.get(&id).map(|member| member.generation)
    }

    /// Asks a worker to drain and leave.
    pub(super) fn drain(&self, id: WorkerId) {
        self.signal(id, process::send_sigterm);
    }

    /// Asks a worker to leave at once.
    pub(super) fn quit(&self, id: WorkerId) {
        self.signal(id, process::send_sigquit);
    }

    /// Aborts a worker in the thread that is overdue: what that was at is what it then tells.
    pub(super) fn abort(&self, id: WorkerId) {
        let thread = self.unit(id).map_or(0, |unit| unit.thread_id);
        self.signal(id, |pid| process::send_sigabrt_to_thread(pid, thread));
    }

    /// Tells all workers that the logs have been moved.
    pub(super) fn reopen_logs(&self) {
        self.members.values().for_each(|member| process::send_sigusr1(member.pid));
    }

    /// Kills a worker.
    pub(super) fn kill(&mut self, id: WorkerId) {
        self.signal(id, process::send_sigkill);
        if let Some(member) = self.members.get_mut(&id) {
            member.killed = true;
        }
    }

    /// Only members are signalled, and a member has not been reaped: see `process`.
    fn signal(&self, id: WorkerId, send: impl FnOnce(Pid)) {
        if let Some(member) = self.members.get(&id) {
            send(member.pid);
        }
    }
}

/// At how many looks in a row a worker must be too large: what comes and goes is no leak.
const OVERWEIGHT_LOOKS: u8 = 3;

/// After how many units of work a worker asks for a successor; zero is never.
fn units_max(settings: &Settings, chance: &mut Rng) -> u64 {
    if settings.max_requests == 0 {
        return 0;
    }
    let jitter = settings.max_requests_jitter.saturating_add(1);
    settings.max_requests.saturating_add(chance.below(jitter))
}
