//! Everything between the fork and the end of a worker: what the runtime does around its class.

mod resource_limits;

use std::backtrace::Backtrace;
use std::os::fd::{OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use slog::{Logger, debug, error, warn};

use super::cgroup::WorkerCgroups;
use super::generation::{PoolGeneration, PoolSpec};
use super::hook_runner;
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
pub(super) struct WorkerInit<'a> {
    pub(super) pool_generation: &'a PoolGeneration<'a>,
    pub(super) title: Option<ProcTitle>,
    pub(super) master: Pid,
    /// The master's and the siblings' descriptors, to be closed.
    pub(super) fds_to_close: Vec<RawFd>,
    pub(super) worker: WorkerInfo,
    pub(super) heartbeat: Heartbeat,
    pub(super) row: usize,
    pub(super) wakeup_fd: OwnedFd,
    pub(super) max_units: u64,
    pub(super) hooks: &'a dyn Hooks,
    pub(super) cgroups: &'a WorkerCgroups,
    /// Its generation is being tried out: whether that is an error is for the master to say.
    pub(super) is_canary: bool,
}

/// Where a worker says why it fails, and how gravely.
struct BootReporter<'a> {
    scoreboard: &'a Scoreboard,
    row: usize,
    log: &'a Logger,
    slot: usize,
    is_canary: bool,
}

impl BootReporter<'_> {
    /// Tells the operator, and the master, why this worker could not boot.
    fn boot_failed(&self, reason: &str) -> u8 {
        self.scoreboard.row(self.row).set_exit_note(reason);
        self.log_failure("worker failed to boot", Fields::new().text("error", reason));
        EXIT_BOOT
    }

    /// One record: an error, unless the worker boots on trial.
    fn log_failure(&self, message: &str, fields: Fields) {
        let pid = Pid::this().as_raw();
        if self.is_canary && self.scoreboard.row(self.row).status() == WorkerStatus::Booting {
            warn!(self.log, "{}", message; "pid" => pid, "slot" => self.slot, fields);
        } else {
            error!(self.log, "{}", message; "pid" => pid, "slot" => self.slot, fields);
        }
    }
}

/// Lives a worker's whole life. Called in the child with every signal blocked; returns its exit
/// code.
pub(super) fn run_worker(init: WorkerInit<'_>) -> u8 {
    let (pool_generation, row, slot) = (init.pool_generation, init.row, init.worker.slot);
    let (scoreboard, log) = (pool_generation.rows.scoreboard(), pool_generation.log.logger());
    let pid = Pid::this().as_raw();
    process::close_fds(&init.fds_to_close);
    if let Err(error) = init.cgroups.enter() {
        warn!(log, "failed to create worker cgroup"; "pid" => pid, "slot" => slot,
            "error" => error.to_string());
    }
    let reporter = BootReporter { scoreboard, row, log, slot, is_canary: init.is_canary };
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
        Err(_) => return reporter.boot_failed("app panicked during boot"),
    };
    debug!(log, "app booted"; "pid" => pid, "slot" => slot);
    match catch_unwind(AssertUnwindSafe(|| serve(init, signals, &app, &reporter))) {
        Ok(code) => code,
        Err(_) => EX_SOFTWARE,
    }
}

/// Signals, title, environment, bounds, identity, folder: in this order, since what needs privileges
/// comes before they are dropped, and the folder is entered by whoever is to work there. A signal that ends the worker may do so until its class runs: it has no client yet.
fn apply_process_settings(init: &WorkerInit<'_>) -> Result<(), String> {
    signal::restore_default(&[
        Signal::Term,
        Signal::Int,
        Signal::Quit,
        Signal::Chld,
        Signal::Cont,
        Signal::ParentDeath,
    ]);
    signal::restore_abrt_and_alrm();
    install_abort_backtrace(init.pool_generation.log.logger(), init.worker.slot);
    // They wait in the pipe for a loop that heeds them.
    signal::catch(&[Signal::Usr1, Signal::Urg]);
    // An operator's signal to all processes of this name concerns the master alone.
    signal::ignore(&[Signal::Hup, Signal::Usr2, Signal::Ttin, Signal::Ttou, Signal::Winch]);
    watch_parent(init.master)?;
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
    watch_parent(init.master) // again: a change of user ends the watch
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
        signals,
        board: Arc::clone(scoreboard),
        log: pool_generation.log.clone(),
        row: init.row,
        master_wakeup: init.wakeup_fd,
        max_units: init.max_units,
    });
    // Nothing is lost by the leak: a worker leaves by `_exit`.
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
    };
    match class.run(&ctx) {
        Ok(()) => 0,
        // It was told so by nothing but the loss of its listeners.
        Err(reason)
            if scoreboard.row(init.row).status() == WorkerStatus::Draining
                && !signal::is_polled() =>
        {
            debug!(log, "worker class returned"; "pid" => Pid::this().as_raw(), "slot" => worker.slot,
                "error" => error_chain(reason.as_ref()));
            0
        }
        Err(reason) => {
            let fields = Fields::new().text("class", worker.class);
            reporter.log_failure(
                "worker class failed",
                fields.text("error", error_chain(reason.as_ref())),
            );
            EXIT_CLASS
        }
    }
}

/// A panic is one record in the log, wherever it is caught.
fn install_panic_hook(scoreboard: Arc<Scoreboard>, log: Logger, reporter: &BootReporter<'_>) {
    let BootReporter { row, slot, is_canary, .. } = *reporter;
    std::panic::set_hook(Box::new(move |panic| {
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        let text = panic.payload_as_str().unwrap_or("(no message)").to_owned();
        let reporter = BootReporter { scoreboard: &scoreboard, row, log: &log, slot, is_canary };
        reporter.log_failure(
            "worker panicked",
            Fields::new().text("error", text).text("location", location),
        );
    }));
}

/// The last words of a worker that is aborted, by itself or by the master: what it was at.
fn install_abort_backtrace(log: &Logger, slot: usize) {
    let log = log.clone();
    signal::install_abort_hook(move || {
        let trace = Backtrace::force_capture().to_string();
        warn!(log, "worker aborted"; "pid" => Pid::this().as_raw(), "slot" => slot,
            "tid" => process::thread_id(), "backtrace" => format_backtrace(&trace));
    });
}

/// So much of a backtrace is told: a record is not longer than the log allows.
const BACKTRACE_BYTES_MAX: usize = 3 << 10;

/// The calls in a backtrace, on one line and the innermost first, without those of the handler.
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
    fn a_backtrace_becomes_one_line_without_its_handler() {
        let trace = "   0: ostler::os::signal::on_abort\n             at ./src/os/signal.rs:9:5\n   \
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
