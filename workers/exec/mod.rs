//! `exec`: runs any program as a worker. The worker itself only monitors it.

mod lines;
mod monitor;
mod notify;

use std::time::Duration;

use slog::{Logger, debug, info, warn};

use ostler::app::ConfigError;
use ostler::settings::Settings;
use ostler::time::MonotonicTime;
use ostler::worker::{
    Lifecycle, Output, Program, ProgramExit, WorkerClass, WorkerContext, WorkerError,
};

use self::lines::{Lines, Piece};
use self::monitor::{Monitor, MonitorAction, MonitorLimits};
use self::notify::{NotifyMessage, parse_messages};

/// Runs a program in any language, `command`, which gets the listening sockets from descriptor 3 on.
///
/// The program is ready when it reports that by sd_notify(3), or when it has run for `ready_after`. It
/// counts as alive while it runs; once it has sent `WATCHDOG=1`, it must go on sending it. Its output
/// goes to the log. The worker exits as the program does.
pub struct ExecClass;

impl WorkerClass for ExecClass {
    fn name(&self) -> &'static str {
        "exec"
    }

    fn runs_command(&self) -> bool {
        true
    }

    fn check(&self, settings: &Settings) -> Result<(), ConfigError> {
        if settings.max_requests > 0 {
            return Err(ConfigError::new(
                "exec cannot count the requests of a program, so max_requests must be 0: use max_lifetime or max_memory",
            ));
        }
        if settings.access_log.is_some() {
            return Err(ConfigError::new(
                "exec cannot log the requests of a program, so access_log must not be set: let the program write its own",
            ));
        }
        if settings.reuse_port {
            return Err(ConfigError::new(
                "exec does not support reuse_port: a program cannot be told to accept from the queue of another that has exited; without reuse_port, all programs share one socket per address",
            ));
        }
        Ok(())
    }

    fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError> {
        let lifecycle = ctx.lifecycle();
        let program = Program::start(ctx).map_err(|error| {
            let name = ctx.settings().command.first().map_or("", String::as_str);
            let why = format!("failed to run {name:?}: {error}");
            lifecycle.set_exit_note(&why);
            why
        })?;
        let (pid, slot, log) = (std::process::id(), ctx.worker().slot, ctx.log());
        info!(log, "program started"; "pid" => pid, "slot" => slot, "program_pid" => program.id());
        let settings = ctx.settings();
        let limits = MonitorLimits {
            ready_after: settings.ready_after,
            timeout: settings.timeout,
            abort_timeout: settings.abort_timeout,
        };
        let monitor = Monitor::new(limits, lifecycle.now());
        let output =
            OutputLogger { log, pid, slot, lines: Default::default(), last: String::new() };
        ProgramLoop {
            settings,
            lifecycle,
            program,
            monitor,
            output,
            drop_reporter: DropReporter::default(),
        }
        .run()
    }
}

/// How many bytes of an output one read takes, and how many reads one turn.
const READ_BYTES: usize = 8 << 10;
const READS_PER_TURN: usize = 8;

/// How many reads an output gets after the program's exit: its children may go on writing.
const READS_AT_EXIT: usize = 128;

/// How many notifications one turn handles.
const MESSAGES_PER_TURN: usize = 64;

/// One program and its monitor.
struct ProgramLoop<'a> {
    settings: &'a Settings,
    lifecycle: &'a Lifecycle,
    program: Program,
    monitor: Monitor,
    output: OutputLogger<'a>,
    drop_reporter: DropReporter,
}

impl ProgramLoop<'_> {
    /// Monitors the program until it exits, and exits as it does.
    fn run(mut self) -> Result<(), WorkerError> {
        loop {
            // In this order: poll_stop() takes the SIGCHLD by which an exit wakes this loop.
            let stop = self.lifecycle.poll_stop();
            let exit = self.program.try_reap();
            self.read_notifications();
            let reads = if exit.is_some() { READS_AT_EXIT } else { READS_PER_TURN };
            self.read(reads);
            if let Some(exit) = exit {
                self.exit_like_program(exit);
            }
            let now = self.lifecycle.now();
            let action = self.monitor.request_stop(stop, now);
            for action in action.into_iter().chain(self.monitor.due_actions(now)) {
                self.apply(action);
            }
            let heartbeat =
                self.lifecycle.next_heartbeat().filter(|_| self.monitor.sends_heartbeat());
            let deadline = [heartbeat, self.monitor.deadline()].into_iter().flatten().min();
            self.program.wait(self.lifecycle, deadline)?;
        }
    }

    /// Handles the program's notifications.
    fn read_notifications(&mut self) {
        for _ in 0..MESSAGES_PER_TURN {
            let Some(message) = self.program.next_notification() else { break };
            for parsed in parse_messages(&message) {
                self.on_message(parsed);
            }
        }
    }

    fn on_message(&mut self, message: NotifyMessage<'_>) {
        let now = self.lifecycle.now();
        let action = match message {
            NotifyMessage::Ready => self.monitor.on_ready(),
            NotifyMessage::Watchdog => self.monitor.on_watchdog(now),
            NotifyMessage::Stopping => self.monitor.on_stopping(),
            NotifyMessage::WatchdogTrigger => {
                self.lifecycle.set_exit_note("program requested abort: WATCHDOG=trigger");
                self.monitor.on_abort(now)
            }
            NotifyMessage::ExtendTimeout(time) => {
                self.monitor.extend_startup(time, now);
                None
            }
            NotifyMessage::Status(text) => {
                self.lifecycle.set_status_text(text);
                self.output.status(text);
                None
            }
        };
        if let Some(action) = action {
            self.apply(action);
        }
    }

    /// Logs what the program has printed.
    fn read(&mut self, reads: usize) {
        let mut buffer = [0; READ_BYTES];
        for output in Output::ALL {
            for _ in 0..reads {
                let Some(length) = self.program.read(output, &mut buffer) else { break };
                self.output.log_output(output, &buffer[..length]);
            }
        }
        self.drop_reporter.report(self.lifecycle, &self.output);
    }

    fn apply(&mut self, action: MonitorAction) {
        match action {
            MonitorAction::ReportReady => self.lifecycle.ready(),
            MonitorAction::Heartbeat => self.lifecycle.notify(),
            MonitorAction::ReportSilent => {
                self.lifecycle.set_exit_note("program stopped sending WATCHDOG=1")
            }
            MonitorAction::ClearSilent => {
                self.lifecycle.set_exit_note("");
                self.lifecycle.notify();
            }
            MonitorAction::BeginStop => self.lifecycle.begin_graceful_stop(),
            MonitorAction::SendStopSignal => {
                self.program.send_stop_signal(self.settings.stop_signal)
            }
            MonitorAction::Interrupt => self.program.interrupt(),
            MonitorAction::Abort => self.program.abort(),
            MonitorAction::Kill => self.program.kill(),
        }
    }

    /// Exits as the program has exited.
    fn exit_like_program(&mut self, exit: ProgramExit) -> ! {
        self.output.flush();
        self.drop_reporter.report(self.lifecycle, &self.output);
        if self.monitor.is_boot_failure() {
            self.lifecycle.set_exit_note(&self.output.last);
        }
        self.program.exit_like(exit, self.lifecycle)
    }
}

/// Logs what a program prints.
struct OutputLogger<'a> {
    log: &'a Logger,
    pid: u32,
    slot: usize,
    lines: [Lines; 2],
    /// The last line, which explains an exit best.
    last: String,
}

impl OutputLogger<'_> {
    fn log_output(&mut self, output: Output, bytes: &[u8]) {
        let Self { log, pid, slot, lines, last } = self;
        lines[output as usize]
            .feed(bytes, |piece| log_piece(log, *pid, *slot, output, piece, last));
    }

    /// Logs the lines that have no end.
    fn flush(&mut self) {
        let Self { log, pid, slot, lines, last } = self;
        for output in Output::ALL {
            lines[output as usize].finish(|piece| log_piece(log, *pid, *slot, output, piece, last));
        }
    }

    fn status(&self, text: &str) {
        debug!(self.log, "status"; "pid" => self.pid, "slot" => self.slot, "status" => text);
    }
}

/// Logs a line, or a piece of a long one, which has the field `partial` if another one follows.
fn log_piece(log: &Logger, pid: u32, slot: usize, output: Output, piece: Piece, last: &mut String) {
    let (stream, line) = (output.name(), &piece.text);
    if piece.is_partial {
        info!(log, "output"; "pid" => pid, "slot" => slot, "stream" => stream, "line" => line,
            "partial" => true);
    } else {
        info!(log, "output"; "pid" => pid, "slot" => slot, "stream" => stream, "line" => line);
    }
    *last = piece.text;
}

/// Reports, as soon as the log takes records again, that it has dropped some.
#[derive(Debug, Default)]
struct DropReporter {
    reported: u64,
    /// When the next report may be logged.
    next_report: MonotonicTime,
}

impl DropReporter {
    const REPORT_INTERVAL: Duration = Duration::from_secs(1);

    fn report(&mut self, lifecycle: &Lifecycle, output: &OutputLogger<'_>) {
        let (dropped, now) = (lifecycle.records_dropped(), lifecycle.now());
        if dropped == self.reported || now < self.next_report {
            return;
        }
        self.next_report = now.saturating_add(Self::REPORT_INTERVAL);
        warn!(output.log, "log records dropped"; "pid" => output.pid, "slot" => output.slot,
            "records" => dropped - self.reported);
        if lifecycle.records_dropped() == dropped {
            self.reported = dropped; // else this one was dropped too
        }
    }
}
