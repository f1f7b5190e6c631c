//! The master: one loop that sleeps in one place, and does a few named things when it wakes.
//!
//! What is to be done is decided by the roster; what that means for processes is the crew's
//! affair. The arbiter never has a second thread, never blocks, and never trusts a worker.

mod board;
mod bounds;
mod chance;
mod child;
mod company;
mod crew;
mod examiner;
mod hooking;
mod ledger;
mod manager;
mod queues;
mod records;
mod reload;
mod roster;
mod upgrade;
mod watch;

use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use slog::{Logger, error, info, warn};

pub(crate) use company::{Company, CompanyError, Plan};
pub(crate) use crew::Crew;
pub(crate) use reload::Planner;
pub(crate) use roster::Outcome;
pub(crate) use upgrade::{Kin, Launch};

use crate::hooks::Hooks;
use crate::log::{Facts, chain};
use crate::os::clock;
use crate::os::daemon::Verdict;
use crate::os::poll;
use crate::os::process::{self, Pid};
use crate::os::signal::{Signal, SignalPipe};
use crate::os::title::TitleArea;
use crate::pidfile::PidFile;
use crate::settings::Settings;
use crate::stamp::Stamp;
use crate::systemd::Manager;
use crew::{Departure, News};
use examiner::Examiner;
use roster::{Action, Policy, Reason, Roster, Stop, WORKERS_MAX, WorkerId};

/// A sleep that ends so much after its deadline means that the master itself did not run.
const OVERSLEPT: Duration = Duration::from_millis(500);

/// How long a handshake that is under way may take to end.
const HANDSHAKE_MAX: Duration = Duration::from_secs(1);

/// How often workers are weighed whose memory is bounded.
const BETWEEN_WEIGHINGS: Duration = Duration::from_secs(1);

/// The master of one pool.
pub(crate) struct Arbiter<'a> {
    signals: SignalPipe,
    roster: Roster,
    crew: Crew<'a>,
    examiner: Examiner,
    planner: Planner<'a>,
    title: Option<TitleArea>,
    launch: Option<Launch>,
    pidfile: Option<PidFile>,
    manager: Manager,
    kin: Kin,
    verdict: Option<Rc<Verdict>>,
    hooks: &'a dyn Hooks,
    /// When this master woke, and when it did so before, after which it may have been stopped.
    woke_at: Stamp,
    ran_at: Stamp,
    /// When the manager wants the next sign of life.
    alive_at: Option<Stamp>,
    /// When newcomers are refused, if a stop is under way.
    refuse_at: Option<Stamp>,
    /// When workers are weighed next, if anybody's memory is bounded.
    weigh_at: Option<Stamp>,
    /// What the manager was told last.
    status: String,
    /// Whether all of the first workers have been ready at once, which is said once.
    announced: bool,
    /// Somebody has asked for a reload that has not begun.
    reload_wished: bool,
    /// A reload has been committed, and workers of the old generation may still let clients in.
    settling: bool,
    /// Somebody has asked for an upgrade that has not begun.
    upgrade_wished: bool,
    /// Why the last worker that could not boot could not.
    last_words: String,
}

/// What a master has besides its workers.
pub(crate) struct Means<'a> {
    /// Its signals, which must have been caught since before anything was created.
    pub(crate) signals: SignalPipe,
    /// How it reads its settings anew.
    pub(crate) planner: Planner<'a>,
    /// Where its title goes, if there is room for one.
    pub(crate) title: Option<TitleArea>,
    /// How it is started anew, if that is known.
    pub(crate) launch: Option<Launch>,
    /// Its pid file, if one is wished for.
    pub(crate) pidfile: Option<PidFile>,
    /// The service manager.
    pub(crate) manager: Manager,
    /// The other master, if there is one.
    pub(crate) kin: Kin,
    /// Whom to tell when the workers are ready, if this is a daemon.
    pub(crate) verdict: Option<Rc<Verdict>>,
    /// What else is to be done when something happens.
    pub(crate) hooks: &'a dyn Hooks,
}

impl<'a> Arbiter<'a> {
    /// An arbiter without a worker.
    pub(crate) fn new(crew: Crew<'a>, means: Means<'a>) -> Self {
        let Means { signals, planner, title, launch, pidfile, manager, kin, verdict, hooks } =
            means;
        let settings = &crew.company().plan.settings;
        let workers = settings.workers.count();
        let roster = Roster::new(Policy::from(settings), workers, clock::now().as_nanos());
        let mut arbiter = Self {
            signals,
            roster,
            crew,
            examiner: Examiner::default(),
            planner,
            title,
            launch,
            pidfile,
            manager,
            kin,
            verdict,
            hooks,
            woke_at: clock::now(),
            ran_at: clock::now(),
            alive_at: None,
            refuse_at: None,
            weigh_at: None,
            status: String::new(),
            announced: false,
            reload_wished: false,
            settling: false,
            upgrade_wished: false,
            last_words: String::new(),
        };
        arbiter.show_title();
        arbiter.greet_the_manager();
        arbiter
    }

    /// Keeps the workers alive until a signal or their hopelessness ends it.
    ///
    /// # Errors
    /// The kernel has no memory to let the master sleep.
    pub(crate) fn run(&mut self) -> io::Result<Outcome> {
        self.hook("on_starting", |hooks| hooks.on_starting());
        loop {
            // Before the signals: whether this master is alone decides what a stop means.
            self.hear_the_kin();
            for signal in self.signals.take() {
                self.obey(signal);
            }
            self.ran_at = self.woke_at;
            self.hear_the_workers();
            self.bury_the_dead();
            self.change_if_wished();
            let now = clock::now();
            self.give_up_the_late(now);
            self.refuse_newcomers(now);
            self.weigh_workers(now);
            self.measure_suspects(now);
            self.examine_the_overdue(now);
            for action in self.roster.due(now) {
                self.act(action);
            }
            self.tend_the_queues();
            self.announce();
            self.conclude_reload();
            self.tell_the_manager(now);
            if let Some(outcome) = self.roster.outcome() {
                return Ok(outcome);
            }
            self.sleep(now)?;
        }
    }

    /// Begins what great change is wished for. To look up names may take long, for which no worker
    /// is to blame.
    fn change_if_wished(&mut self) {
        let before = clock::now();
        self.reload_if_wished();
        self.upgrade_if_wished();
        let after = clock::now();
        if after.since(before) > OVERSLEPT {
            self.roster.overslept(before, after);
            self.hear_the_workers();
        }
    }

    /// Why the last worker that could not boot could not.
    pub(crate) fn last_words(&self) -> &str {
        &self.last_words
    }

    /// The log, as of now.
    pub(crate) fn log(&self) -> &Logger {
        self.crew.company().log.logger()
    }

    /// Removes what the master has put into the file system, but for what another master uses.
    pub(crate) fn clean_up(&mut self) {
        self.hook("on_exit", |hooks| hooks.on_exit());
        if self.kin.is_alone() {
            self.crew.remove_paths();
        }
        if let Some(pidfile) = self.pidfile.take() {
            pidfile.remove();
        }
    }

    fn sleep(&mut self, decided: Stamp) -> io::Result<()> {
        let own = [self.kin.deadline(), self.alive_at, self.refuse_at, self.weigh_at];
        let deadlines = [self.roster.next_deadline(decided)].into_iter().chain(own);
        let deadline = deadlines.flatten().min();
        let fds = [Some(self.signals.as_fd()), Some(self.crew.doorbell()), self.kin.line()];
        poll::wait_readable(&fds.into_iter().flatten().collect::<Vec<_>>(), deadline)?;
        let now = clock::now();
        let late = deadline.map_or(Duration::ZERO, |deadline| now.since(deadline));
        if late > OVERSLEPT {
            warn!(self.log(), "master was held up"; "for_ms" => millis(late));
            self.pardon_silence(now);
        }
        self.woke_at = now;
        Ok(())
    }

    /// This process goes on: it may have been stopped, for less time than it would have slept.
    fn go_on(&mut self) {
        let now = clock::now();
        if now.since(self.ran_at) > OVERSLEPT {
            self.pardon_silence(now);
        }
    }

    /// Nobody is to blame for what the master has not seen since it last ran.
    fn pardon_silence(&mut self, now: Stamp) {
        self.roster.overslept(self.ran_at, now);
        self.ran_at = now;
    }

    fn obey(&mut self, signal: Signal) {
        match signal {
            Signal::Child => (), // the dead are buried on every turn
            Signal::Terminate => self.stop(signal, Stop::Graceful),
            Signal::Interrupt | Signal::Quit => {
                let again = self.roster.stopping().is_some_and(|stop| stop >= Stop::Quick);
                self.stop(signal, if again { Stop::Kill } else { Stop::Quick });
            }
            Signal::Hangup => self.reload_wished = true,
            Signal::OneMore => self.resize(self.roster.target() + 1),
            Signal::OneFewer => self.resize(self.roster.target() - 1),
            Signal::ReopenLogs => self.reopen_logs(),
            Signal::Upgrade => self.upgrade_wished = true,
            Signal::LetGo => self.let_workers_go(),
            Signal::Continued => self.go_on(),
            Signal::Queues | Signal::Orphaned => (), // the master minds no queue and no parent
        }
    }

    fn stop(&mut self, signal: Signal, stop: Stop) {
        if self.roster.stopping().is_none() {
            self.close_the_house();
        }
        if self.roster.stopping().is_some_and(|earlier| earlier >= stop) {
            return;
        }
        info!(self.log(), "stopping"; "signal" => signal.name(), "how" => match stop {
            Stop::Graceful => "graceful",
            Stop::Quick => "quick",
            Stop::Kill => "kill",
        });
        self.roster.stop(stop);
    }

    /// Tells the workers that nobody serves after them, and the manager that the service stops;
    /// unless another master goes on serving.
    pub(super) fn close_the_house(&mut self) {
        self.farewell_to_the_manager();
        if self.kin.is_alone() {
            self.crew.close_the_house();
            self.refuse_at = Some(clock::now().after(HANDSHAKE_MAX));
        }
    }

    /// Once those have come in whose handshake was under way, others need not wait for an answer.
    fn refuse_newcomers(&mut self, now: Stamp) {
        if self.refuse_at.is_some_and(|at| at <= now) {
            let done = self.crew.refuse_newcomers();
            self.refuse_at = (!done).then(|| now.after(HANDSHAKE_MAX));
        }
    }

    fn resize(&mut self, wish: usize) {
        let before = self.roster.target();
        let after = self.roster.resize(wish);
        if before == after {
            warn!(self.log(), "number of workers stays"; "workers" => after,
                "least" => 1, "most" => WORKERS_MAX);
        } else {
            info!(self.log(), "number of workers changes"; "from" => before, "to" => after);
        }
    }

    /// The master's own first: workers without privileges find a file that is theirs.
    fn reopen_logs(&mut self) {
        match self.crew.company().log.reopen() {
            Ok(()) => info!(self.log(), "logs reopened"),
            Err(error) => {
                error!(self.log(), "log cannot be reopened"; "error" => chain(&error));
            }
        }
        self.crew.reopen_logs();
    }

    /// Learns from the scoreboard who has become ready, and who wants a successor.
    fn hear_the_workers(&mut self) {
        let now = clock::now();
        for (id, news) in self.crew.news() {
            match news {
                News::Ready => {
                    if let Some(age) = self.roster.ready(id, now) {
                        let (pid, slot) = self.crew.who(id);
                        info!(self.log(), "worker ready"; "pid" => pid.as_raw(), "slot" => slot,
                            "age_ms" => millis(age));
                        let worker = self.facts_of(id);
                        self.hook("worker_ready", |hooks| hooks.worker_ready(&worker));
                    }
                }
                News::Spent => self.roster.spent(id),
                News::Leaving => {
                    if self.roster.leaves(id, now) {
                        let (pid, slot) = self.crew.who(id);
                        info!(self.log(), "worker leaves"; "pid" => pid.as_raw(), "slot" => slot,
                            "reason" => Reason::Asked.word());
                    }
                }
            }
        }
    }

    fn bury_the_dead(&mut self) {
        while let Some((pid, exit)) = process::dead() {
            // A number is its owner's until it is reaped. What a worker has started ends with it;
            // a successor's last words are heard, for which it may be killed.
            if self.crew.is_member(pid) {
                process::end_group(pid);
            } else {
                self.hear_the_kin();
            }
            process::reap(pid);
            // A stranger's end, as PID 1 sees many, is nobody's concern.
            let Some(departure) = self.crew.bury(pid, exit) else {
                self.mourn_successor(pid, exit);
                continue;
            };
            let Departure { id, ending, .. } = departure;
            self.examiner.forget(id);
            if let Some(farewell) = self.roster.ended(id, ending, clock::now()) {
                self.record(pid, exit, &farewell, departure);
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Spawn { id, slot } => self.spawn(id, slot),
            Action::Drain(id, reason) => {
                let (pid, slot) = self.crew.who(id);
                if reason != Reason::Asked {
                    info!(self.log(), "worker is asked to leave"; "pid" => pid.as_raw(),
                        "slot" => slot, "reason" => reason.word());
                }
                self.crew.drain(id);
            }
            Action::Quit(id) => self.crew.quit(id),
            Action::Condemn(id, hang) => {
                self.describe_hang(id, hang, "the other threads may finish");
                self.crew.drain(id);
            }
            Action::Abort(id, hang) => {
                self.describe_hang(id, hang, "aborted");
                self.crew.abort(id);
            }
            Action::End(id, hang) => {
                self.describe_hang(id, hang, "killed");
                self.crew.kill(id);
            }
            Action::Kill(id, reason) => {
                let (pid, slot) = self.crew.who(id);
                warn!(self.log(), "worker is killed"; "pid" => pid.as_raw(), "slot" => slot,
                    "reason" => reason.word());
                self.crew.kill(id);
            }
            Action::Commit => self.commit_reload(),
            Action::RollBack => self.roll_back_reload(),
        }
    }

    fn spawn(&mut self, id: WorkerId, slot: usize) {
        let generation = self.roster.describe(self.roster.generation());
        let own: Vec<_> =
            self.signals.numbers().into_iter().chain(self.kin.line_number()).collect();
        self.hook("pre_fork", |hooks| hooks.pre_fork(slot, generation.number));
        let now = clock::now();
        match self.crew.spawn(id, slot, generation, &own, self.hooks) {
            Ok(pid) => {
                self.roster.spawned(id, slot, now);
                if self.crew.company().plan.settings.max_memory > 0 {
                    self.weigh_at.get_or_insert(now.after(BETWEEN_WEIGHINGS));
                }
                info!(self.log(), "worker started"; "pid" => pid.as_raw(), "slot" => slot,
                    "generation" => generation.number);
            }
            Err(reason) => {
                let retry = self.roster.spawn_failed(slot, now);
                let facts = Facts::new().number("slot", slot).text("error", reason.to_string());
                let facts = facts.number("retry_ms", millis(retry));
                if generation.on_trial {
                    self.last_words = format!("a worker cannot be started: {reason}");
                    warn!(self.log(), "worker cannot be started"; facts);
                } else {
                    error!(self.log(), "worker cannot be started"; facts);
                }
            }
        }
    }

    fn announce(&mut self) {
        if !self.announced && self.roster.ready_count() >= self.roster.target() {
            self.announced = true;
            info!(self.log(), "ready"; "workers" => self.roster.target(),
                "pid" => Pid::this().as_raw());
            if let Kin::Predecessor { line, .. } = &self.kin {
                line.say_ready();
            }
            self.manager.ready(&self.status_line());
            if let Some(verdict) = self.verdict.take() {
                verdict.say(0, "");
            }
            self.hook("when_ready", |hooks| hooks.when_ready());
        }
    }

    fn show_title(&mut self) {
        if let Some(title) = self.title {
            title.set(&format!("ostler: master [{}]", self.crew.company().plan.settings.proc_name));
        }
    }
}

impl From<&Settings> for Policy {
    fn from(settings: &Settings) -> Self {
        Self {
            timeout: settings.timeout,
            boot_timeout: settings.boot_timeout,
            graceful: settings.graceful_timeout,
            abort_grace: settings.abort_grace,
            max_lifetime: settings.max_lifetime,
            max_lifetime_jitter: settings.max_lifetime_jitter,
            max_surge: settings.max_surge,
            max_unavailable: settings.max_unavailable,
            boot_retries: settings.boot_retries,
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
