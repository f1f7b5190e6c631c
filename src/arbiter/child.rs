//! Everything between the fork and the end of a worker: what the runtime does around its class.

use std::backtrace::Backtrace;
use std::os::fd::{OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use slog::{Logger, debug, error, warn};

use super::bounds;
use super::company::{PoolGeneration, PoolSpec};
use super::hooking;
use super::leaves::Leaves;
use crate::app::WorkerInfo;
use crate::heartbeat::Heartbeat;
use crate::hooks::Hooks;
use crate::listen::Listener;
use crate::log::{Fields, error_chain};
use crate::os;
use crate::os::process::{self, EX_SOFTWARE, Pid};
use crate::os::signal::{self, Signal, SignalPipe};
use crate::os::title::ProcTitle;
use crate::scoreboard::{Scoreboard, WorkerStatus};
use crate::worker::{BootedApp, ForcedDrain, Lifecycle, LifecycleParts, WorkerContext};

/// The worker could not boot.
pub(super) const EXIT_BOOT: u8 = 3;
/// The class gave up.
const EXIT_CLASS: u8 = 1;

/// What a worker is born with: the master's things that it may use, by reference, since the fork
/// gave it a copy of them, and its own.
pub(super) struct Birth<'a> {
    pub(super) company: &'a PoolGeneration<'a>,
    pub(super) title: Option<ProcTitle>,
    pub(super) master: Pid,
    /// The master's and the siblings' descriptors, to be closed.
    pub(super) strangers: Vec<RawFd>,
    pub(super) place: WorkerInfo,
    pub(super) heartbeat: Heartbeat,
    pub(super) row: usize,
    pub(super) doorbell: OwnedFd,
    pub(super) units_max: u64,
    pub(super) hooks: &'a dyn Hooks,
    pub(super) leaves: &'a Leaves,
    /// Its generation is being tried out: whether that is an error is for the master to say.
    pub(super) on_trial: bool,
}

/// Where a worker says why it fails, and how gravely.
struct Confession<'a> {
    board: &'a Scoreboard,
    row: usize,
    log: &'a Logger,
    slot: usize,
    on_trial: bool,
}

impl Confession<'_> {
    /// Tells the operator, and the master, why this worker could not boot.
    fn boot_failed(&self, reason: &str) -> u8 {
        self.board.row(self.row).set_exit_note(reason);
        self.say("worker cannot boot", Fields::new().text("error", reason));
        EXIT_BOOT
    }

    /// One record: an error, unless the worker boots on trial.
    fn say(&self, what: &str, facts: Fields) {
        let pid = Pid::this().as_raw();
        if self.on_trial && self.board.row(self.row).status() == WorkerStatus::Booting {
            warn!(self.log, "{}", what; "pid" => pid, "slot" => self.slot, facts);
        } else {
            error!(self.log, "{}", what; "pid" => pid, "slot" => self.slot, facts);
        }
    }
}

/// Lives a worker's whole life. Called in the child with every signal blocked; returns its exit
/// code.
pub(super) fn live(birth: Birth<'_>) -> u8 {
    let (pool_generation, row, slot) = (birth.company, birth.row, birth.place.slot);
    let (board, log) = (pool_generation.rows.scoreboard(), pool_generation.log.logger());
    let pid = Pid::this().as_raw();
    process::close_fds(&birth.strangers);
    if let Err(error) = birth.leaves.enter() {
        warn!(log, "worker has no control group of its own"; "pid" => pid, "slot" => slot,
            "error" => error.to_string());
    }
    let confession = Confession { board, row, log, slot, on_trial: birth.on_trial };
    log_panics(Arc::clone(board), log.clone(), &confession);
    let signals = match SignalPipe::open() {
        Ok(signals) => signals,
        Err(error) => {
            return confession.boot_failed(&format!("cannot open the signal pipe: {error}"));
        }
    };
    if let Err(reason) = become_worker(&birth) {
        return confession.boot_failed(&reason);
    }
    let WorkerInfo { pool, generation, .. } = &birth.place;
    let facts = hooking::worker(pool, Pid::this(), slot, *generation);
    hooking::run("post_fork", log, birth.hooks, |hooks| hooks.post_fork(&facts));
    let threads = board.row(row).thread_count();
    let boot = || BootedApp::boot(pool_generation.spec.app, &birth.place, threads);
    let program = match catch_unwind(AssertUnwindSafe(boot)) {
        Ok(Ok(program)) => program,
        Ok(Err(reason)) => return confession.boot_failed(&error_chain(reason.as_ref())),
        Err(_) => return confession.boot_failed("the app panicked while it booted"),
    };
    debug!(log, "app booted"; "pid" => pid, "slot" => slot);
    match catch_unwind(AssertUnwindSafe(|| serve(birth, signals, &program, &confession))) {
        Ok(code) => code,
        Err(_) => EX_SOFTWARE,
    }
}

/// Signals, title, environment, bounds, identity, folder: in this order, since what needs privileges
/// comes before they are dropped, and the folder is entered by whoever is to work there. A signal that ends the worker may do so until its class runs: it has no client yet.
fn become_worker(birth: &Birth<'_>) -> Result<(), String> {
    signal::restore_default(&[
        Signal::Term,
        Signal::Int,
        Signal::Quit,
        Signal::Chld,
        Signal::Cont,
        Signal::ParentDeath,
    ]);
    signal::restore_abrt_and_alrm();
    tell_where_aborted(birth.company.log.logger(), birth.place.slot);
    // They wait in the pipe for a loop that heeds them.
    signal::catch(&[Signal::Usr1, Signal::Urg]);
    // An operator's signal to all processes of this name concerns the master alone.
    signal::ignore(&[
        Signal::Hup,
        Signal::Usr2,
        Signal::Ttin,
        Signal::Ttou,
        Signal::Winch,
    ]);
    watch_the_master(birth.master)?;
    signal::unblock_all();
    let PoolSpec { settings, credentials, .. } = &birth.company.spec;
    if let Some(title) = birth.title {
        let (pool, slot) = (&birth.place.pool, birth.place.slot);
        title.set(&format!("ostler: worker [{}] {pool}/{slot}", settings.proc_name));
    }
    for (name, value) in &settings.env {
        process::set_env(name, value);
    }
    if let Some(mask) = settings.umask {
        os::credentials::set_umask(mask);
    }
    bounds::set(settings, birth.place.slot)?;
    credentials.apply().map_err(|error| {
        let user = settings.user.as_deref().unwrap_or("-");
        let group = settings.group.as_deref().unwrap_or("-");
        format!("cannot become user {user}, group {group}: {error}")
    })?;
    if let Some(folder) = &settings.chdir {
        enter(folder)?;
    }
    bounds::seal(settings)?;
    watch_the_master(birth.master) // again: a change of user ends the watch
}

fn enter(folder: &Path) -> Result<(), String> {
    std::env::set_current_dir(folder)
        .map_err(|error| format!("cannot enter the folder {}: {error}", folder.display()))
}

fn watch_the_master(master: Pid) -> Result<(), String> {
    signal::request_parent_death_signal().map_err(|error| format!("cannot watch the master: {error}"))?;
    if Pid::parent() == master { Ok(()) } else { Err("the master has died".to_owned()) }
}

fn serve(
    birth: Birth<'_>,
    signals: SignalPipe,
    program: &BootedApp,
    confession: &Confession<'_>,
) -> u8 {
    let (pool_generation, place) = (birth.company, &birth.place);
    let (settings, log) = (&pool_generation.spec.settings, pool_generation.log.logger());
    let board = pool_generation.rows.scoreboard();
    let guard = ForcedDrain::new(Arc::clone(board), birth.row, &birth.doorbell, &pool_generation.listeners);
    match guard {
        Ok(guard) => signal::catch_stop_signals(guard.with_limit(settings.graceful_timeout)),
        Err(error) => {
            return confession.boot_failed(&format!("cannot share the doorbell: {error}"));
        }
    }
    if let Err(error) = signal::catch_parent_death(settings.graceful_timeout) {
        return confession.boot_failed(&format!("cannot watch the master: {error}"));
    }
    let made = Lifecycle::new(LifecycleParts {
        heartbeat: birth.heartbeat,
        timeout: settings.timeout,
        signals,
        board: Arc::clone(board),
        log: pool_generation.log.clone(),
        row: birth.row,
        master_wakeup: birth.doorbell,
        max_units: birth.units_max,
    });
    // Nothing is lost by the leak: a worker leaves by `_exit`.
    let life: &'static Lifecycle = match made {
        Ok(life) => Box::leak(Box::new(life)),
        Err(error) => {
            return confession.boot_failed(&format!("cannot open a pipe: {error}"));
        }
    };
    let class = pool_generation.spec.class;
    let unruly = |listener: &Arc<Listener>| listener.set_nonblocking().err();
    if !class.runs_command()
        && let Some(error) = pool_generation.listeners.iter().find_map(unruly)
    {
        return confession.boot_failed(&format!("cannot set up a socket: {error}"));
    }
    let ctx = WorkerContext { listeners: &pool_generation.listeners, app: program, settings, worker: place, log, lifecycle: life };
    match class.run(&ctx) {
        Ok(()) => 0,
        // It was told so by nothing but the loss of its listeners.
        Err(reason) if board.row(birth.row).status() == WorkerStatus::Draining && !signal::is_polled() => {
            debug!(log, "worker class ended"; "pid" => Pid::this().as_raw(), "slot" => place.slot,
                "error" => error_chain(reason.as_ref()));
            0
        }
        Err(reason) => {
            let facts = Fields::new().text("class", place.class);
            confession.say("worker class failed", facts.text("error", error_chain(reason.as_ref())));
            EXIT_CLASS
        }
    }
}

/// A panic is one record in the log, wherever it is caught.
fn log_panics(board: Arc<Scoreboard>, log: Logger, confession: &Confession<'_>) {
    let Confession { row, slot, on_trial, .. } = *confession;
    std::panic::set_hook(Box::new(move |panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let text = panic.payload_as_str().unwrap_or("(no message)").to_owned();
        let confession = Confession { board: &board, row, log: &log, slot, on_trial };
        confession.say("panic", Fields::new().text("error", text).text("at", place));
    }));
}

/// The last words of a worker that is aborted, by itself or by the master: what it was at.
fn tell_where_aborted(log: &Logger, slot: usize) {
    let log = log.clone();
    signal::install_abort_hook(move || {
        let trace = Backtrace::force_capture().to_string();
        warn!(log, "worker aborted"; "pid" => Pid::this().as_raw(), "slot" => slot,
            "thread" => process::thread_id(), "backtrace" => calls(&trace));
    });
}

/// So much of a backtrace is told: a record is not longer than the log allows.
const BACKTRACE_BYTES_MAX: usize = 3 << 10;

/// The calls in a backtrace, on one line and the innermost first, without those of the handler.
fn calls(trace: &str) -> String {
    let mut calls: Vec<String> = Vec::new();
    for line in trace.lines().map(str::trim) {
        let (number, name) = line.split_once(": ").unwrap_or(("", line));
        if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) {
            calls.push(name.to_owned());
        } else if let (Some(place), Some(call)) = (line.strip_prefix("at "), calls.last_mut()) {
            *call = format!("{call} ({place})");
        }
    }
    let handler = calls.iter().position(|call| call.contains("on_abort"));
    let mut text = String::new();
    for call in calls.iter().skip(handler.map_or(0, |at| at + 1)) {
        if text.len() + call.len() > BACKTRACE_BYTES_MAX {
            break;
        }
        if !text.is_empty() {
            text.push_str(" < ");
        }
        text.push_str(call);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backtrace_becomes_one_line_without_its_handler() {
        let trace = "   0: ostler::os::signal::on_abort\n             at ./src/os/signal.rs:9:5\n   \
                     1: <unknown>\n   2: clock_nanosleep\n   3: demo::handle\n             at \
                     ./src/demo.rs:80:17\n";
        assert_eq!(
            calls(trace),
            "<unknown> < clock_nanosleep < demo::handle (./src/demo.rs:80:17)"
        );
        assert_eq!(calls("disabled backtrace"), "");
        let long = "  1: ".to_owned() + &"x".repeat(2000) + "\n";
        assert_eq!(calls(&long.repeat(9)).len(), 2000);
    }
}
