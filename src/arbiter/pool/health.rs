//! Watches a pool's workers: heartbeats, work in progress and memory. Before the supervisor decides
//! on an overdue worker, two samples from /proc say why it makes no progress. Never waits: children of
//! the [`Inspector`] read what may block, and it says when it wants to sample again.
//!
//! What is read goes to the supervisor: `supervisor/slot.rs` says when a worker is overdue, `facts.rs`
//! records its progress, and `decide.rs` has it aborted and killed.

mod inspector;
mod sample_json;

use std::os::fd::BorrowedFd;
use std::time::Duration;

use slog::{Logger, info, warn};

use super::hang_diagnoser::{DiagnosisStep, HangDiagnoser, Suspect};
use super::processes::ProcessTable;
use super::supervisor::{Supervisor, WorkerId};
use crate::diagnosis::{Diagnosis, HangCause, ProcessSample};
use crate::os::clock;
use crate::time::MonotonicTime;
use inspector::{Inquiry, Inspector, Subject};

/// How often the memory of workers with a `max_memory` is read.
const MEMORY_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A verdict that is deferred by this is not made in the present turn of the loop.
const NEXT_TURN: Duration = Duration::from_millis(1);

/// The verdict on a worker waits for a sample, which comes or is given up within seconds.
const VERDICT_DEFERRAL: Duration = Duration::from_secs(60);

/// What is known of the health of a pool's workers.
#[derive(Default)]
pub(super) struct HealthMonitor {
    diagnoser: HangDiagnoser,
    inspector: Inspector,
    /// The workers whose RSS exceeds `max_memory`, with it, while their PSS is read.
    over_rss: Vec<(WorkerId, u64)>,
    /// When memory is read next, if any worker has a `max_memory`.
    memory_check_due: Option<MonotonicTime>,
}

/// The workers that a [`HealthMonitor`] reports on, and the log that it writes to.
pub(super) struct Watched<'w, 'a> {
    pub(super) supervisor: &'w mut Supervisor,
    pub(super) processes: &'w ProcessTable<'a>,
    pub(super) log: &'w Logger,
}

impl HealthMonitor {
    /// Tells the supervisor which workers exceed `max_memory`, which show signs of life, and why
    /// those that are overdue make no progress.
    pub(super) fn check(&mut self, mut workers: Watched<'_, '_>, now: MonotonicTime) {
        for id in self.inspector.advance(now) {
            workers.supervisor.defer_verdict(id, now);
        }
        self.finish_memory_check(&mut workers);
        self.check_memory(&mut workers, now);
        if workers.supervisor.any_deadline_passed(now) {
            for id in workers.supervisor.liveness_check_due(now) {
                workers.update_liveness(id);
            }
            self.diagnose_overdue(&mut workers, now);
        }
        let cgroups = workers.processes.environment().oom.cgroups();
        for id in self.inspector.start_pending(cgroups, now) {
            workers.supervisor.defer_verdict(id, now + NEXT_TURN);
        }
    }

    /// Begins to read the memory of workers if the worker started at `now` has a `max_memory`.
    pub(super) fn on_spawned(&mut self, has_memory_limit: bool, now: MonotonicTime) {
        if has_memory_limit {
            self.memory_check_due.get_or_insert(now.saturating_add(MEMORY_CHECK_INTERVAL));
        }
    }

    /// Forgets a worker that has exited.
    pub(super) fn on_worker_exit(&mut self, id: WorkerId) {
        self.diagnoser.forget(id);
        self.inspector.forget(id);
        self.over_rss.retain(|(known, _)| *known != id);
    }

    /// Returns the descriptor that is readable when more is known of a worker.
    pub(super) fn wakeup_fd(&self) -> Option<BorrowedFd<'_>> {
        self.inspector.wakeup_fd()
    }

    /// Returns the last diagnosis of a worker.
    pub(super) fn diagnosis(&self, id: WorkerId) -> Option<&Diagnosis> {
        self.diagnoser.diagnosis(id)
    }

    /// Returns when memory is read next, or a child is given up.
    pub(super) fn next_deadline(&self) -> Option<MonotonicTime> {
        [self.memory_check_due, self.inspector.next_deadline()].into_iter().flatten().min()
    }

    fn check_memory(&mut self, workers: &mut Watched<'_, '_>, now: MonotonicTime) {
        if self.memory_check_due.is_none_or(|at| now < at) {
            return;
        }
        for (id, limit) in workers.supervisor.memory_checks() {
            match workers.processes.resident_memory(id) {
                // The PSS may be less. Whether it still is asked for: `finish_memory_check` finds out.
                Some(rss) if limit < rss => {
                    self.over_rss.retain(|(known, _)| *known != id);
                    self.over_rss.push((id, rss));
                }
                bytes => workers.on_memory_sample(id, bytes),
            }
        }
        self.finish_memory_check(workers);
        let again = now.saturating_add(MEMORY_CHECK_INTERVAL);
        self.memory_check_due = workers.supervisor.any_memory_limited().then_some(again);
    }

    /// Takes the PSS of workers whose RSS exceeds the limit; the RSS of those whose PSS cannot be read.
    fn finish_memory_check(&mut self, workers: &mut Watched<'_, '_>) {
        let inspector = &mut self.inspector;
        self.over_rss.retain(|(id, rss)| {
            let Some(pss) = inspector.ask(workers.inquiry(*id, Subject::Memory)) else {
                return true;
            };
            workers.on_memory_sample(*id, Some(pss.as_u64().unwrap_or(*rss)));
            false
        });
    }

    fn diagnose_overdue(&mut self, workers: &mut Watched<'_, '_>, now: MonotonicTime) {
        for id in workers.supervisor.overdue(now) {
            let Some(answer) = self.inspector.ask(workers.inquiry(id, Subject::Sample)) else {
                workers.supervisor.defer_verdict(id, now.saturating_add(VERDICT_DEFERRAL));
                continue;
            };
            let sample = sample_json::decode(&answer);
            let sample = sample.unwrap_or_else(|| ProcessSample::unreadable(now));
            let cause = match self.diagnoser.diagnose(workers.suspect(id), sample) {
                DiagnosisStep::SampleAgain(at) => {
                    // A slow answer may have come later than that.
                    workers.supervisor.defer_verdict(id, at.max(now + NEXT_TURN));
                    continue;
                }
                DiagnosisStep::Cause(cause) => cause,
            };
            match cause {
                // Sampling takes time, in which a thread may have accepted a client.
                HangCause::Busy | HangCause::Blocked | HangCause::Unknown => {
                    workers.update_liveness(id);
                }
                HangCause::Stopped | HangCause::Unkillable => {
                    workers.supervisor.mark_unresponsive(id);
                }
                HangCause::Frozen | HangCause::Throttled => {
                    self.extend_timeout(workers, id, cause);
                }
                HangCause::DumpingCore => workers.allow_core_dump(id, now),
            }
        }
        for id in workers.supervisor.kill_candidates(now) {
            if workers.processes.is_dumping_core(id) {
                workers.allow_core_dump(id, now);
            }
        }
    }

    fn extend_timeout(&mut self, workers: &mut Watched<'_, '_>, id: WorkerId, cause: HangCause) {
        let now = clock::now();
        workers.supervisor.extend_timeout(id, now);
        let liveness = workers.processes.read_liveness(id, workers.log);
        let beat = liveness.map_or(now, |(beat, _)| beat);
        if self.diagnoser.grant_extension(id, beat, now) {
            let (pid, slot) = workers.processes.pid_and_slot(id);
            warn!(workers.log, "worker frozen or throttled, timeout extended";
                "pid" => pid.as_raw(), "slot" => slot, "cause" => cause.as_str());
        }
    }
}

impl Watched<'_, '_> {
    fn update_liveness(&mut self, id: WorkerId) {
        if let Some((beat, busy)) = self.processes.read_liveness(id, self.log) {
            self.supervisor.on_liveness(id, beat, busy);
        }
    }

    fn on_memory_sample(&mut self, id: WorkerId, bytes: Option<u64>) {
        let Some(bytes) = self.supervisor.on_memory_sample(id, bytes) else { return };
        let (pid, slot) = self.processes.pid_and_slot(id);
        info!(self.log, "worker exceeds max_memory"; "pid" => pid.as_raw(), "slot" => slot,
            "memory_bytes" => bytes);
    }

    fn inquiry(&self, id: WorkerId, subject: Subject) -> Inquiry {
        let (pid, _) = self.processes.pid_and_slot(id);
        let has_program = self.processes.has_program(id);
        let unit = if has_program { None } else { self.processes.most_overdue_unit(id) };
        let thread = unit.map_or(0, |unit| unit.thread_id);
        Inquiry { id, subject, pid, thread, has_program }
    }

    fn suspect(&self, id: WorkerId) -> Suspect {
        let unit = self.processes.most_overdue_unit(id);
        let beat = || self.processes.read_liveness(id, self.log).map(|(beat, _)| beat);
        let since = unit.map(|unit| unit.started_at).or_else(beat).unwrap_or_default();
        Suspect { id, since, limit: self.supervisor.current_timeout(id) }
    }

    fn allow_core_dump(&mut self, id: WorkerId, now: MonotonicTime) {
        if self.supervisor.on_core_dump(id, now) {
            let (pid, slot) = self.processes.pid_and_slot(id);
            warn!(self.log, "worker dumping core"; "pid" => pid.as_raw(), "slot" => slot,
                "cause" => HangCause::DumpingCore.as_str());
        }
    }
}
