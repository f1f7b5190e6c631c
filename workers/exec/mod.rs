//! `exec`: any program as a worker. The worker itself only watches over it.

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

use self::lines::Lines;
use self::monitor::{Monitor, MonitorAction, MonitorLimits};
use self::notify::{NotifyMessage, parse_messages};

/// A program in any language, `command`, which finds the listening sockets from descriptor 3 on.
///
/// It is ready when it says so by sd_notify(3), or when it has lived for `ready_after`. It lives as
/// long as it is there; once it has said `WATCHDOG=1`, it must go on saying so. Its output goes to
/// the log. The worker ends as the program does.
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
            let word = ctx.settings().command.first().map_or("", String::as_str);
            let why = format!("failed to run {word:?}: {error}");
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
            life: lifecycle,
            program,
            monitor,
            output,
            drop_reporter: DropReporter::default(),
        }
        .run()
    }
}

/// So much of an output is read at a time, and so often in a turn.
const READ_BYTES: usize = 8 << 10;
const READS_PER_TURN: usize = 8;

/// So often an output is read after the program's end: something that it has started may go on.
const READS_AT_EXIT: usize = 128;

/// So many messages are heard in a turn.
const MESSAGES_PER_TURN: usize = 64;

/// One program, and what watches over it.
struct ProgramLoop<'a> {
    settings: &'a Settings,
    life: &'a Lifecycle,
    program: Program,
    monitor: Monitor,
    output: OutputLogger<'a>,
    drop_reporter: DropReporter,
}

impl ProgramLoop<'_> {
    /// Watches until the program ends, and ends as it does.
    fn run(mut self) -> Result<(), WorkerError> {
        loop {
            // In this order: it takes away the sign by which an end wakes this loop.
            let stop = self.life.poll_stop();
            let exit = self.program.try_reap();
            self.read_notifications();
            let reads = if exit.is_some() { READS_AT_EXIT } else { READS_PER_TURN };
            self.read(reads);
            if let Some(end) = exit {
                self.exit_like_program(end);
            }
            let now = self.life.now();
            let action = self.monitor.request_stop(stop, now);
            for action in action.into_iter().chain(self.monitor.due_actions(now)) {
                self.apply(action);
            }
            let beat = self.life.next_heartbeat().filter(|_| self.monitor.sends_heartbeat());
            let deadline = [beat, self.monitor.deadline()].into_iter().flatten().min();
            self.program.wait(self.life, deadline)?;
        }
    }

    /// What the program has to say.
    fn read_notifications(&mut self) {
        for _ in 0..MESSAGES_PER_TURN {
            let Some(message) = self.program.next_notification() else { break };
            for parsed in parse_messages(&message) {
                self.on_message(parsed);
            }
        }
    }

    fn on_message(&mut self, message: NotifyMessage<'_>) {
        let now = self.life.now();
        let action = match message {
            NotifyMessage::Ready => self.monitor.on_ready(),
            NotifyMessage::Watchdog => self.monitor.on_watchdog(now),
            NotifyMessage::Stopping => self.monitor.on_stopping(),
            NotifyMessage::WatchdogTrigger => {
                self.life.set_exit_note("program requested abort: WATCHDOG=trigger");
                self.monitor.on_abort(now)
            }
            NotifyMessage::ExtendTimeout(time) => {
                self.monitor.extend_startup(time, now);
                None
            }
            NotifyMessage::Status(text) => {
                self.output.status(text);
                None
            }
        };
        if let Some(deed) = action {
            self.apply(deed);
        }
    }

    /// What the program has printed.
    fn read(&mut self, reads: usize) {
        let mut buffer = [0; READ_BYTES];
        for output in Output::ALL {
            for _ in 0..reads {
                let Some(length) = self.program.read(output, &mut buffer) else { break };
                self.output.log_output(output, &buffer[..length]);
            }
        }
        self.drop_reporter.report(self.life, &self.output);
    }

    fn apply(&mut self, action: MonitorAction) {
        match action {
            MonitorAction::ReportReady => self.life.ready(),
            MonitorAction::Heartbeat => self.life.notify(),
            MonitorAction::ReportSilent => {
                self.life.set_exit_note("program stopped sending WATCHDOG=1")
            }
            MonitorAction::ClearSilent => {
                self.life.set_exit_note("");
                self.life.notify();
            }
            MonitorAction::BeginStop => self.life.begin_graceful_stop(),
            MonitorAction::SendStopSignal => {
                self.program.send_stop_signal(self.settings.stop_signal)
            }
            MonitorAction::Interrupt => self.program.interrupt(),
            MonitorAction::Abort => self.program.abort(),
            MonitorAction::Kill => self.program.kill(),
        }
    }

    /// Ends as the program has ended.
    fn exit_like_program(&mut self, exit: ProgramExit) -> ! {
        self.output.flush();
        self.drop_reporter.report(self.life, &self.output);
        if self.monitor.is_boot_failure() {
            self.life.set_exit_note(&self.output.last);
        }
        self.life.exit_like(exit)
    }
}

/// Repeats in the log what a program prints.
struct OutputLogger<'a> {
    log: &'a Logger,
    pid: u32,
    slot: usize,
    lines: [Lines; 2],
    /// The last line that was printed, which tells most about an end.
    last: String,
}

impl OutputLogger<'_> {
    fn log_output(&mut self, output: Output, bytes: &[u8]) {
        let Self { log, pid, slot, lines, last } = self;
        lines[output as usize].feed(bytes, |line| log_line(log, *pid, *slot, output, line, last));
    }

    /// Nobody will end the lines that are begun.
    fn flush(&mut self) {
        let Self { log, pid, slot, lines, last } = self;
        for output in Output::ALL {
            lines[output as usize].finish(|line| log_line(log, *pid, *slot, output, line, last));
        }
    }

    fn status(&self, text: &str) {
        debug!(self.log, "status"; "pid" => self.pid, "slot" => self.slot, "status" => text);
    }
}

fn log_line(log: &Logger, pid: u32, slot: usize, output: Output, line: String, last: &mut String) {
    info!(log, "output"; "pid" => pid, "slot" => slot, "stream" => output.name(), "line" => &line);
    *last = line;
}

/// The log drops what it cannot write at once; that is said, as soon as it can be.
#[derive(Debug, Default)]
struct DropReporter {
    reported: u64,
    /// When it may be told again.
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
