//! The log records of a worker's exit and of its hang: one record each, with all that is known.

use std::time::Duration;

use slog::{Logger, error, info, warn};

use super::processes::ReapedWorker;
use super::spawn_error::SpawnError;
use super::supervisor::{ExitReason, ExitReport, Hang};
use crate::diagnosis::{Diagnosis, ThreadSample};
use crate::duration::as_millis;
use crate::log::Fields;
use crate::os::clock;
use crate::os::process::{Exit, Pid};
use crate::scoreboard::WorkUnit;

/// Writes the record of an exit. If a canary fails to boot, the failed reload is the error, and this
/// is a warning.
pub(super) fn log_exit(
    log: &Logger,
    pid: Pid,
    exit: Exit,
    report: &ExitReport,
    reaped: &ReapedWorker,
    is_uncommitted: bool,
) {
    let fields = Fields::new()
        .number("pid", pid.as_raw())
        .number("slot", report.slot)
        .number("generation", report.generation)
        .text("reason", report.reason.as_str());
    let fields = match exit {
        Exit::Code(code) => fields.number("code", code),
        Exit::Signal { core: false, .. } => fields.text("signal", exit.to_string()),
        Exit::Signal { core: true, .. } => {
            fields.text("signal", exit.to_string()).text("core", "dumped")
        }
    };
    let note = (!reaped.note.is_empty()).then_some(reaped.note.as_str());
    let fields = fields
        .number("uptime_ms", as_millis(report.uptime))
        .number("units", reaped.work.counts.units)
        .optional(report.restart_in, |fields, delay| {
            fields.number("restart_in_ms", as_millis(delay))
        })
        .optional(note, |fields, note| fields.text("error", note));
    match report.reason {
        ExitReason::Requested
        | ExitReason::ScaledDown
        | ExitReason::Recycled
        | ExitReason::Reload => info!(log, "worker exited"; fields),
        ExitReason::Hung | ExitReason::Crashed | ExitReason::OomKilled => {
            warn!(log, "worker exited"; fields);
        }
        ExitReason::BootFailed if is_uncommitted => warn!(log, "worker exited"; fields),
        ExitReason::BootFailed => error!(log, "worker exited"; fields),
    }
}

/// Writes the record of a worker that could not be started.
pub(super) fn log_spawn_failure(
    log: &Logger,
    slot: usize,
    error: &SpawnError,
    restart_in: Duration,
    is_uncommitted: bool,
) {
    let fields = Fields::new()
        .number("slot", slot)
        .text("error", error.to_string())
        .number("restart_in_ms", as_millis(restart_in));
    if is_uncommitted {
        warn!(log, "failed to start worker"; fields);
    } else {
        error!(log, "failed to start worker"; fields);
    }
}

/// Returns whether an exit tells why workers of its generation cannot serve.
pub(super) fn is_boot_failure(reason: ExitReason, is_uncommitted: bool) -> bool {
    match reason {
        ExitReason::BootFailed => true,
        ExitReason::Hung | ExitReason::Crashed | ExitReason::OomKilled => is_uncommitted,
        ExitReason::Requested
        | ExitReason::ScaledDown
        | ExitReason::Recycled
        | ExitReason::Reload => false,
    }
}

/// Returns which limit was exceeded, as the log has it, and the age that was measured.
pub(super) fn describe_hang(hang: Hang) -> (&'static str, Duration) {
    match hang {
        Hang::BootTimeout(age) => ("boot_timeout", age),
        Hang::NoHeartbeat(age) => ("no_heartbeat", age),
        Hang::RequestTimeout(age) => ("request_timeout", age),
    }
}

/// Writes the record of a hang, with the work, the cause and the threads that an operator can act on.
pub(super) fn log_hang(
    log: &Logger,
    (pid, slot): (Pid, usize),
    hang: Hang,
    unit: Option<&WorkUnit>,
    status: &str,
    diagnosis: Option<&Diagnosis>,
    action: &str,
) {
    let (error, age) = describe_hang(hang);
    let fields = Fields::new()
        .number("pid", pid.as_raw())
        .number("slot", slot)
        .text("error", error)
        .number("duration_ms", as_millis(age))
        .optional(unit, |fields, unit| {
            let age = clock::now().duration_since(unit.started_at);
            fields
                .text("work", &unit.label)
                .number("work_ms", as_millis(age))
                .number("thread_index", unit.thread_index)
        })
        .optional((!status.is_empty()).then_some(status), |fields, status| {
            fields.text("status", status)
        })
        .optional(diagnosis, |fields, diagnosis| {
            let fields = fields
                .text("cause", diagnosis.cause.as_str())
                .optional(diagnosis.cpu_percent, |fields, cpu| fields.number("cpu_percent", cpu));
            let others: Vec<_> = diagnosis.other_threads.iter().map(thread_summary).collect();
            let others = (!others.is_empty()).then(|| others.join("; "));
            fields
                .optional(diagnosis.thread.clone(), add_thread_fields)
                .optional(others, |fields, others| fields.text("other_threads", others))
        });
    warn!(log, "worker hung"; fields, "action" => action);
}

/// Adds what is known of the thread that hangs.
fn add_thread_fields(fields: Fields, thread: ThreadSample) -> Fields {
    let stack = (!thread.stack.is_empty()).then(|| thread.stack.join(" < "));
    fields
        .number("tid", thread.thread_id)
        .text("state", thread.state)
        .optional(thread.syscall, |fields, call| fields.text("syscall", call))
        .optional(thread.wchan, |fields, channel| fields.text("wchan", channel))
        .optional(stack, |fields, stack| fields.text("stack", stack))
}

/// Describes another thread, such as `4711 S futex` or `4712 R 98%`.
fn thread_summary((thread, cpu): &(ThreadSample, Option<u32>)) -> String {
    let mut summary = format!("{} {}", thread.thread_id, thread.state);
    if let Some(call) = &thread.syscall {
        summary = format!("{summary} {call}");
    }
    if let Some(cpu) = cpu.filter(|cpu| *cpu > 0) {
        summary = format!("{summary} {cpu}%");
    }
    summary
}
