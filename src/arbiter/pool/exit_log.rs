//! What the log says of a worker's hang and of its end: one record each, with what an operator can
//! act on.

use slog::{error, info, warn};

use super::Pool;
use super::processes::ReapedWorker;
use super::supervisor::{ExitReason, ExitReport, Hang, WorkerId};
use crate::arbiter::{hook_runner, millis};
use crate::diagnosis::ThreadSample;
use crate::hooks::WorkerExit;
use crate::log::Fields;
use crate::os::clock;
use crate::os::process::{Exit, Pid};

impl Pool<'_> {
    /// One record for each end, with all that is known of it.
    pub(super) fn log_exit(
        &mut self,
        pid: Pid,
        exit: Exit,
        report: &ExitReport,
        reaped: ReapedWorker,
    ) {
        let ReapedWorker { note, units, .. } = reaped;
        let is_canary = self.supervisor.describe_generation(report.generation).is_canary;
        let is_failure = match report.reason {
            ExitReason::BootFailed => true,
            ExitReason::Hung | ExitReason::Crashed | ExitReason::OomKilled => is_canary,
            ExitReason::Requested
            | ExitReason::ScaledDown
            | ExitReason::Recycled
            | ExitReason::Reload => false,
        };
        // What it said goes before what was said of it when it was aborted.
        let is_news = !note.is_empty() || self.failure_reason.is_empty();
        if is_failure && is_news {
            let detail = if note.is_empty() { "no error reported" } else { &note };
            self.failure_reason = format!("last worker exited with {exit}: {detail}");
        }
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
        let fields = fields
            .number("uptime_ms", millis(report.uptime))
            .number("units", units)
            .optional(report.restart_in, |fields, delay| {
                fields.number("restart_in_ms", millis(delay))
            })
            .optional((!note.is_empty()).then_some(note), |fields, note| {
                fields.text("error", note)
            });
        match report.reason {
            ExitReason::Requested
            | ExitReason::ScaledDown
            | ExitReason::Recycled
            | ExitReason::Reload => {
                info!(self.log(), "worker exited"; fields);
            }
            ExitReason::Hung | ExitReason::Crashed | ExitReason::OomKilled => {
                warn!(self.log(), "worker exited"; fields)
            }
            // The error is then that the reload failed, which is one record.
            ExitReason::BootFailed if is_canary => warn!(self.log(), "worker exited"; fields),
            ExitReason::BootFailed => error!(self.log(), "worker exited"; fields),
        }
        let (code, signal) = match exit {
            Exit::Code(code) => (Some(code), None),
            Exit::Signal { .. } => (None, Some(exit.to_string())),
        };
        let ExitReport { slot, generation, uptime, reason, .. } = *report;
        let (worker, reason) =
            (hook_runner::make_worker_ref(self.name(), pid, slot, generation), reason.as_str());
        let worker_exit = WorkerExit { worker, reason, code, signal, uptime, units };
        self.hook("child_exit", |hooks| hooks.child_exit(&worker_exit));
    }

    /// One record with what an operator can act on.
    pub(super) fn log_hang(&mut self, id: WorkerId, hang: Hang, action: &str) {
        let (pid, slot) = self.processes.pid_and_slot(id);
        let (error, age) = match hang {
            Hang::BootTimeout(age) => ("boot_timeout", age),
            Hang::NoHeartbeat(age) => ("no_heartbeat", age),
            Hang::RequestTimeout(age) => ("request_timeout", age),
        };
        if matches!(hang, Hang::BootTimeout(_)) {
            self.failure_reason = format!("last worker exceeded boot_timeout after {age:?}");
        } else if self
            .processes
            .generation(id)
            .is_some_and(|it| self.supervisor.describe_generation(it).is_canary)
        {
            self.failure_reason = format!("last worker hung: {error} for {age:?}");
        }
        let unit = self.processes.most_overdue_unit(id);
        let fields = Fields::new()
            .number("pid", pid.as_raw())
            .number("slot", slot)
            .text("error", error)
            .number("duration_ms", millis(age))
            .optional(unit.as_ref(), |fields, unit| {
                let age = clock::now().duration_since(unit.started_at);
                fields
                    .text("work", &unit.label)
                    .number("work_ms", millis(age))
                    .number("thread_index", unit.thread_index)
            })
            .optional(self.diagnoser.diagnosis(id), |fields, diagnosis| {
                let fields = fields
                    .text("cause", diagnosis.cause.as_str())
                    .optional(diagnosis.cpu_percent, |fields, cpu| {
                        fields.number("cpu_percent", cpu)
                    });
                let others: Vec<_> = diagnosis.other_threads.iter().map(thread_summary).collect();
                let others = (!others.is_empty()).then(|| others.join("; "));
                fields
                    .optional(diagnosis.thread.clone(), add_thread_fields)
                    .optional(others, |fields, others| fields.text("other_threads", others))
            });
        warn!(self.log(), "worker hung"; fields, "action" => action);
        let (worker, work) = (self.worker_ref(id), unit.as_ref().map(|unit| unit.label.as_str()));
        self.hook("worker_hung", |hooks| hooks.worker_hung(&worker, work));
    }
}

/// What is known of the thread that hangs.
fn add_thread_fields(fields: Fields, thread: ThreadSample) -> Fields {
    let stack = (!thread.stack.is_empty()).then(|| thread.stack.join(" < "));
    fields
        .number("tid", thread.thread_id)
        .text("state", thread.state)
        .optional(thread.syscall, |fields, call| fields.text("syscall", call))
        .optional(thread.wchan, |fields, channel| fields.text("wchan", channel))
        .optional(stack, |fields, stack| fields.text("stack", stack))
}

/// Another thread, such as `4711 S futex` or `4712 R 98%`.
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
