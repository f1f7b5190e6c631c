//! What the log says of a worker's hang and of its end: one record each, with what an operator can
//! act on.

use slog::{error, info, warn};

use super::crew::Departure;
use super::hooking;
use super::millis;
use super::pool::Pool;
use super::roster::{Farewell, Hang, Reason, WorkerId};
use crate::diagnosis::ThreadSample;
use crate::hooks::WorkerExit;
use crate::log::Fields;
use crate::os::clock;
use crate::os::process::{Exit, Pid};

impl Pool<'_> {
    /// One record for each end, with all that is known of it.
    pub(super) fn record(
        &mut self,
        pid: Pid,
        exit: Exit,
        farewell: &Farewell,
        departure: Departure,
    ) {
        let Departure { note, units, .. } = departure;
        let on_trial = self.supervisor.describe_generation(farewell.generation).is_canary;
        let counts = match farewell.reason {
            Reason::BootFailure => true,
            Reason::Hung | Reason::Crashed | Reason::OutOfMemory => on_trial,
            Reason::Asked | Reason::Scaled | Reason::Recycled | Reason::Reload => false,
        };
        // What it said goes before what was said of it when it was aborted.
        let is_news = !note.is_empty() || self.last_words.is_empty();
        if counts && is_news {
            let said = if note.is_empty() { "it said nothing" } else { &note };
            self.last_words = format!("the last one ended with {exit}: {said}");
        }
        let facts = Fields::new()
            .number("pid", pid.as_raw())
            .number("slot", farewell.slot)
            .number("generation", farewell.generation)
            .text("reason", farewell.reason.word());
        let facts = match exit {
            Exit::Code(code) => facts.number("code", code),
            Exit::Signal { core: false, .. } => facts.text("signal", exit.to_string()),
            Exit::Signal { core: true, .. } => {
                facts.text("signal", exit.to_string()).text("core", "dumped")
            }
        };
        let facts = facts
            .number("age_ms", millis(farewell.age))
            .number("units", units)
            .optional(farewell.retry_in, |facts, delay| facts.number("retry_ms", millis(delay)))
            .optional((!note.is_empty()).then_some(note), |facts, note| facts.text("error", note));
        match farewell.reason {
            Reason::Asked | Reason::Scaled | Reason::Recycled | Reason::Reload => {
                info!(self.log(), "worker exited"; facts);
            }
            Reason::Hung | Reason::Crashed | Reason::OutOfMemory => {
                warn!(self.log(), "worker exited"; facts)
            }
            // The error is then that the reload failed, which is one record.
            Reason::BootFailure if on_trial => warn!(self.log(), "worker exited"; facts),
            Reason::BootFailure => error!(self.log(), "worker exited"; facts),
        }
        let (code, signal) = match exit {
            Exit::Code(code) => (Some(code), None),
            Exit::Signal { .. } => (None, Some(exit.to_string())),
        };
        let Farewell { slot, generation, age, reason, .. } = *farewell;
        let (worker, reason) = (hooking::worker(self.name(), pid, slot, generation), reason.word());
        let end = WorkerExit { worker, reason, code, signal, uptime: age, units };
        self.hook("child_exit", |hooks| hooks.child_exit(&end));
    }

    /// One record with what an operator can act on.
    pub(super) fn describe_hang(&mut self, id: WorkerId, hang: Hang, action: &str) {
        let (pid, slot) = self.crew.who(id);
        let (what, age) = match hang {
            Hang::BootTimeout(age) => ("not ready in time", age),
            Hang::NoHeartbeat(age) => ("no heartbeat", age),
            Hang::RequestTimeout(age) => ("one unit of work for too long", age),
        };
        if matches!(hang, Hang::BootTimeout(_)) {
            self.last_words = format!("the last one was not ready in time, after {age:?}");
        } else if self.crew.generation(id).is_some_and(|it| self.supervisor.describe_generation(it).is_canary) {
            self.last_words = format!("the last one hung: {what}, for {age:?}");
        }
        let unit = self.crew.unit(id);
        let facts = Fields::new()
            .number("pid", pid.as_raw())
            .number("slot", slot)
            .text("error", what)
            .number("for_ms", millis(age))
            .optional(unit.as_ref(), |facts, unit| {
                let age = clock::now().duration_since(unit.started_at);
                facts
                    .text("work", &unit.label)
                    .number("work_ms", millis(age))
                    .number("seat", unit.thread_index)
            })
            .optional(self.examiner.diagnosis(id), |facts, diagnosis| {
                let facts = facts
                    .text("verdict", diagnosis.cause.as_str())
                    .optional(diagnosis.cpu_percent, |facts, cpu| facts.number("cpu_percent", cpu));
                let others: Vec<_> = diagnosis.other_threads.iter().map(in_brief).collect();
                let others = (!others.is_empty()).then(|| others.join("; "));
                facts
                    .optional(diagnosis.thread.clone(), with_thread)
                    .optional(others, |facts, others| facts.text("others", others))
            });
        warn!(self.log(), "worker hung"; facts, "action" => action);
        let (worker, work) = (self.facts_of(id), unit.as_ref().map(|unit| unit.label.as_str()));
        self.hook("worker_hung", |hooks| hooks.worker_hung(&worker, work));
    }
}

/// What is known of the thread that hangs.
fn with_thread(facts: Fields, thread: ThreadSample) -> Fields {
    let stack = (!thread.stack.is_empty()).then(|| thread.stack.join(" < "));
    facts
        .number("thread", thread.thread_id)
        .text("state", thread.state)
        .optional(thread.syscall, |facts, call| facts.text("call", call))
        .optional(thread.wchan, |facts, channel| facts.text("wchan", channel))
        .optional(stack, |facts, stack| facts.text("stack", stack))
}

/// Another thread, such as `4711 S futex` or `4712 R 98%`.
fn in_brief((thread, cpu): &(ThreadSample, Option<u32>)) -> String {
    let mut words = format!("{} {}", thread.thread_id, thread.state);
    if let Some(call) = &thread.syscall {
        words = format!("{words} {call}");
    }
    if let Some(cpu) = cpu.filter(|cpu| *cpu > 0) {
        words = format!("{words} {cpu}%");
    }
    words
}
