//! A worker's life from the fork to its exit code: what the runtime does around its class.

mod resource_limits;

use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::os::fd::{OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use slog::{Logger, debug, error, warn};

use super::cgroup::WorkerCgroups;
use super::generation::{PoolGeneration, PoolSpec};
use super::hook_runner;
use crate::app::WorkerInfo;
use crate::heartbeat::Heartbeat;
use crate::hooks::Hooks;
use crate::listen::Listener;
use crate::log::access::{WorkerAccessLog, WorkerName};
use crate::log::{Fields, error_chain};
use crate::os;
use crate::os::clock;
use crate::os::memory::{self, MappingId, PublishedMemory};
use crate::os::process::{self, EX_SOFTWARE, Pid};
use crate::os::signal::{self, Signal, SignalPipe, WorkerDisposition};
use crate::os::title::ProcTitle;
use crate::os::{fd_table, journal, terminal};
use crate::scoreboard::{Scoreboard, WorkerStatus};
use crate::settings::Settings;
use crate::worker::{
    BootFailure, BootedApp, ForcedDrain, Lifecycle, LifecycleParts, WorkerAccess, WorkerContext,
};

/// The exit code of a worker that fails to boot.
pub(super) const EXIT_BOOT: u8 = 3;
/// The exit code of a worker whose class returns an error.
const EXIT_CLASS: u8 = 1;

/// What a worker is started with: references to what the fork has copied from the master, and what is
/// its own.
// Fields: some are the worker's own, and some are what it needs of the master.
pub(super) struct WorkerInit<'a> {
    pub(super) pool_generation: &'a PoolGeneration<'a>,
    pub(super) title: Option<ProcTitle>,
    pub(super) master: Pid,
    /// The descriptors that it keeps; all others are the master's or other workers'.
    pub(super) keep_fds: Vec<RawFd>,
    /// The shared memory that it keeps; all other is that of other pools.
    pub(super) keep_mappings: Vec<MappingId>,
    /// When it is killed, if its pool is led.
    pub(super) term_end: Option<&'static PublishedMemory>,
    pub(super) worker: WorkerInfo,
    pub(super) heartbeat: Heartbeat,
    /// The path for its program's notification socket.
    pub(super) notify_path: Option<PathBuf>,
    pub(super) row: usize,
    pub(super) wakeup_fd: OwnedFd,
    pub(super) max_units: u64,
    pub(super) hooks: &'a dyn Hooks,
    pub(super) cgroups: &'a WorkerCgroups,
    /// Its generation is not committed. If it fails, the failed reload is the error.
    pub(super) is_uncommitted: bool,
}

/// Reports why a worker fails.
struct BootReporter<'a> {
    scoreboard: &'a Scoreboard,
    row: usize,
    log: &'a Logger,
    slot: usize,
    is_uncommitted: bool,
}

impl BootReporter<'_> {
    /// Reports to the log and to the master why this worker fails to boot. Returns the exit code.
    fn boot_failed(&self, reason: &str) -> u8 {
        self.scoreboard.row(self.row).set_exit_note(reason);
        self.log_failure("worker failed to boot", Fields::new().text("error", reason));
        EXIT_BOOT
    }

    /// Writes one record: a warning for a canary that boots, otherwise an error.
    fn log_failure(&self, message: &str, fields: Fields) {
        let pid = Pid::this().as_raw();
        if self.is_uncommitted && self.scoreboard.row(self.row).status() == WorkerStatus::Booting {
            warn!(self.log, "{}", message; "pid" => pid, "slot" => self.slot, fields);
        } else {
            error!(self.log, "{}", message; "pid" => pid, "slot" => self.slot, fields);
        }
    }
}

/// Returns the identifier of the worker's records in the journal. The unit's `SyslogIdentifier` is not known
/// to its processes: a unit that has one sets `proc_name` too.
fn journal_identifier(settings: &Settings) -> Option<&str> {
    let is_given = !settings.source("proc_name").is_default();
    is_given.then_some(settings.proc_name.as_str())
}

/// Runs a worker, in the child and with every signal blocked. Returns its exit code.
pub(super) fn run_worker(init: WorkerInit<'_>) -> u8 {
    let (pool_generation, row, slot) = (init.pool_generation, init.row, init.worker.slot);
    let (scoreboard, log) = (pool_generation.rows.scoreboard(), pool_generation.log.logger());
    let pid = Pid::this().as_raw();
    fd_table::close_all_except(&init.keep_fds);
    pool_generation.log.detach_in_child();
    let _ = journal::open_own_stream(journal_identifier(&pool_generation.spec.settings)); // or it stays shared
    pool_generation.access_log.iter().for_each(|log| log.detach_in_child());
    terminal::leave();
    memory::forbid_access_except(&init.keep_mappings);
    if let Err(error) = init.cgroups.enter() {
        warn!(log, "failed to create worker cgroup"; "pid" => pid, "slot" => slot,
            "error" => error.to_string());
    }
    let reporter = BootReporter { scoreboard, row, log, slot, is_uncommitted: init.is_uncommitted };
    install_panic_hook(Arc::clone(scoreboard), log.clone(), &reporter);
    let signals = match SignalPipe::open() {
        Ok(signals) => signals,
        Err(error) => {
            return reporter.boot_failed(&format!("failed to open signal pipe: {error}"));
        }
    };
    if let Err(reason) = apply_process_settings(&init) {
        return reporter.boot_failed(&reason);
    }
    let WorkerInfo { pool, generation, .. } = &init.worker;
    let worker_ref = hook_runner::make_worker_ref(pool, Pid::this(), slot, *generation);
    hook_runner::run_hook("post_fork", log, init.hooks, |hooks| hooks.post_fork(&worker_ref));
    let threads = scoreboard.row(row).thread_count();
    let boot = || BootedApp::boot(pool_generation.spec.app, &init.worker, threads);
    let app = match catch_unwind(AssertUnwindSafe(boot)) {
        Ok(Ok(app)) => app,
        Ok(Err(reason)) => return reporter.boot_failed(&error_chain(reason.as_ref())),
        Err(_) => {
            return reporter.boot_failed(&format!("app panicked during boot: {}", last_panic()));
        }
    };
    debug!(log, "app booted"; "pid" => pid, "slot" => slot);
    match catch_unwind(AssertUnwindSafe(|| serve(init, signals, &app, &reporter))) {
        Ok(code) => code,
        Err(_) => {
            scoreboard.row(row).set_exit_note(&format!("worker class panicked: {}", last_panic()));
            EX_SOFTWARE
        }
    }
}

/// Applies signals, title, environment, limits, user and directory, in this order: what needs
/// privileges comes before they are dropped, and the worker's user enters the directory. Until the
/// class runs, there is no client, and a stop signal ends the worker by its default action.
fn apply_process_settings(init: &WorkerInit<'_>) -> Result<(), String> {
    signal::restore_default(Signal::in_worker(WorkerDisposition::Default));
    signal::restore_default(Signal::in_worker(WorkerDisposition::CaughtByClass));
    signal::restore_abrt_and_alrm();
    install_abort_backtrace(init.pool_generation.log.logger(), init.worker.slot);
    // They stay in the signal pipe until the class polls it.
    signal::catch(Signal::in_worker(WorkerDisposition::Caught));
    // A signal that `pkill` sends to all processes of this name is for the master alone.
    signal::ignore(Signal::in_worker(WorkerDisposition::Ignored));
    watch_parent(init.master)?;
    if let Some(term_end) = init.term_end {
        signal::install_fence(term_end).map_err(|error| format!("failed to set fence: {error}"))?;
    }
    signal::unblock_all();
    let PoolSpec { settings, credentials, .. } = &init.pool_generation.spec;
    if let Some(title) = init.title {
        let (pool, slot) = (&init.worker.pool, init.worker.slot);
        title.set(&format!("ostler: worker [{}] {pool}/{slot}", settings.proc_name));
    }
    for (name, value) in &settings.env {
        process::set_env(name, value);
    }
    if let Some(mask) = settings.umask {
        os::credentials::set_umask(mask);
    }
    resource_limits::apply(settings, init.worker.slot)?;
    credentials.apply().map_err(|error| {
        let user = settings.user.as_deref().unwrap_or("-");
        let group = settings.group.as_deref().unwrap_or("-");
        format!("failed to switch to user {user}, group {group}: {error}")
    })?;
    if let Some(dir) = &settings.chdir {
        change_dir(dir)?;
    }
    resource_limits::finalize(settings)?;
    watch_parent(init.master) // again: a change of user clears PR_SET_PDEATHSIG
}

fn change_dir(dir: &Path) -> Result<(), String> {
    std::env::set_current_dir(dir)
        .map_err(|error| format!("failed to change directory to {}: {error}", dir.display()))
}

fn watch_parent(master: Pid) -> Result<(), String> {
    signal::request_parent_death_signal()
        .map_err(|error| format!("failed to watch master: {error}"))?;
    if Pid::parent() == master { Ok(()) } else { Err("master exited".to_owned()) }
}

fn serve(
    init: WorkerInit<'_>,
    signals: SignalPipe,
    app: &BootedApp,
    reporter: &BootReporter<'_>,
) -> u8 {
    let (pool_generation, worker) = (init.pool_generation, &init.worker);
    let (settings, log) = (&pool_generation.spec.settings, pool_generation.log.logger());
    let scoreboard = pool_generation.rows.scoreboard();
    let guard = ForcedDrain::new(
        Arc::clone(scoreboard),
        init.row,
        &init.wakeup_fd,
        &pool_generation.listeners,
    );
    match guard {
        Ok(guard) => signal::catch_stop_signals(guard.with_limit(settings.graceful_timeout)),
        Err(error) => {
            return reporter.boot_failed(&format!("failed to duplicate wakeup pipe: {error}"));
        }
    }
    if let Err(error) = signal::catch_parent_death(settings.graceful_timeout) {
        return reporter.boot_failed(&format!("failed to watch master: {error}"));
    }
    let made = Lifecycle::new(LifecycleParts {
        heartbeat: init.heartbeat,
        timeout: settings.timeout,
        is_scaled: settings.workers.range().is_some(),
        signals,
        board: Arc::clone(scoreboard),
        log: pool_generation.log.clone(),
        row: init.row,
        master_wakeup: init.wakeup_fd,
        max_units: init.max_units,
        access: WorkerAccess::new(
            settings.request_id_header.clone(),
            make_access_log(pool_generation, worker, init.row),
        ),
    });
    // The leak does no harm: a worker ends with `_exit`.
    let lifecycle: &'static Lifecycle = match made {
        Ok(lifecycle) => Box::leak(Box::new(lifecycle)),
        Err(error) => {
            return reporter.boot_failed(&format!("failed to open pipe: {error}"));
        }
    };
    let class = pool_generation.spec.class;
    let nonblocking_error = |listener: &Arc<Listener>| listener.set_nonblocking().err();
    if !class.runs_command()
        && let Some(error) = pool_generation.listeners.iter().find_map(nonblocking_error)
    {
        return reporter.boot_failed(&format!("failed to set socket non-blocking: {error}"));
    }
    let ctx = WorkerContext {
        listeners: &pool_generation.listeners,
        app,
        settings,
        worker,
        log,
        lifecycle,
        notify_path: init.notify_path.as_deref(),
    };
    match class.run(&ctx) {
        Ok(()) => 0,
        // The forced drain has closed its listeners, which is all that the class was told.
        Err(reason)
            if scoreboard.row(init.row).status() == WorkerStatus::Draining
                && !signal::is_polled() =>
        {
            debug!(log, "worker class returned"; "pid" => Pid::this().as_raw(), "slot" => worker.slot,
                "error" => error_chain(reason.as_ref()));
            0
        }
        Err(reason) if reason.is::<BootFailure>() => {
            reporter.boot_failed(&error_chain(reason.as_ref()))
        }
        Err(reason) => {
            let (row, reason) = (scoreboard.row(init.row), error_chain(reason.as_ref()));
            if row.exit_note().is_empty() {
                row.set_exit_note(&reason);
            }
            let fields = Fields::new().text("class", worker.class);
            reporter.log_failure("worker class failed", fields.text("error", reason));
            EXIT_CLASS
        }
    }
}

/// Returns the access log of this worker, if there is one.
fn make_access_log(
    pool_generation: &PoolGeneration<'_>,
    worker: &WorkerInfo,
    row: usize,
) -> Option<Arc<WorkerAccessLog>> {
    let log = Arc::clone(pool_generation.access_log.as_ref()?);
    let name = WorkerName { pool: worker.pool.clone(), slot: worker.slot, pid: std::process::id() };
    let scoreboard = Arc::clone(pool_generation.rows.scoreboard());
    let on_drop = move || scoreboard.row(row).worker_counters().add_dropped_access_record();
    let logger = pool_generation.log.logger().clone();
    Some(Arc::new(WorkerAccessLog::new(log, name, logger, on_drop)))
}

thread_local! {
    /// The text and the location of the last panic of this thread.
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

fn last_panic() -> String {
    LAST_PANIC.with_borrow(String::clone)
}

/// Logs each panic as one record, wherever it is caught, with the unit of work in which it happened.
fn install_panic_hook(scoreboard: Arc<Scoreboard>, log: Logger, reporter: &BootReporter<'_>) {
    let BootReporter { row, slot, is_uncommitted, .. } = *reporter;
    std::panic::set_hook(Box::new(move |panic| {
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        let text = panic.payload_as_str().unwrap_or("(no message)").to_owned();
        LAST_PANIC.with_borrow_mut(|last| *last = format!("{text} ({location})"));
        let reporter =
            BootReporter { scoreboard: &scoreboard, row, log: &log, slot, is_uncommitted };
        let fields = Fields::new().text("error", text).text("location", location);
        // A thread that has several units in progress, as a class of one function may, is in one of them.
        let thread_id = process::thread_id();
        let units = scoreboard.row(row).units_in_progress(clock::now());
        let mut units = units.filter(|unit| unit.thread_id == thread_id);
        let unit = units.next().filter(|_| units.next().is_none());
        let label = unit.map(|unit| unit.label).filter(|label| !label.is_empty());
        let fields = fields.optional(label, |fields, label| fields.text("label", label));
        reporter.log_failure("worker panicked", fields);
    }));
}

/// Logs a backtrace when the worker is aborted, by itself or by the master.
fn install_abort_backtrace(log: &Logger, slot: usize) {
    let log = log.clone();
    signal::install_abort_hook(move || {
        let trace = Backtrace::force_capture().to_string();
        warn!(log, "worker aborted"; "pid" => Pid::this().as_raw(), "slot" => slot,
            "tid" => process::thread_id(), "backtrace" => format_backtrace(&trace));
    });
}

/// How much of a backtrace is logged, in bytes: the length of a record is limited.
const BACKTRACE_BYTES_MAX: usize = 3 << 10;

/// Formats the calls of a backtrace on one line, the innermost first, without those of the handler.
fn format_backtrace(trace: &str) -> String {
    let mut frames: Vec<String> = Vec::new();
    for line in trace.lines().map(str::trim) {
        let (index, name) = line.split_once(": ").unwrap_or(("", line));
        if !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit()) {
            frames.push(name.to_owned());
        } else if let (Some(location), Some(frame)) = (line.strip_prefix("at "), frames.last_mut())
        {
            *frame = format!("{frame} ({location})");
        }
    }
    let handler = frames.iter().position(|call| call.contains("on_abort"));
    let mut text = String::new();
    for frame in frames.iter().skip(handler.map_or(0, |at| at + 1)) {
        if text.len() + frame.len() > BACKTRACE_BYTES_MAX {
            break;
        }
        if !text.is_empty() {
            text.push_str(" < ");
        }
        text.push_str(frame);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format_backtrace_is_one_line_without_the_handler() {
        let trace = "   0: ostler::os::signal::abort::on_abort\n             at ./src/os/signal/abort.rs:9:5\n   \
                     1: <unknown>\n   2: clock_nanosleep\n   3: demo::handle\n             at \
                     ./src/demo.rs:80:17\n";
        assert_eq!(
            format_backtrace(trace),
            "<unknown> < clock_nanosleep < demo::handle (./src/demo.rs:80:17)"
        );
        assert_eq!(format_backtrace("disabled backtrace"), "");
        let long = "  1: ".to_owned() + &"x".repeat(2000) + "\n";
        assert_eq!(format_backtrace(&long.repeat(9)).len(), 2000);
    }
}
