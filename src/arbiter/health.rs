//! Keeping an eye on the workers: their beats, their work, their size; and why one does not get on.

use slog::{info, warn};

use super::MEMORY_CHECK_INTERVAL;
use super::diagnoser::{DiagnosisStep, Suspect};
use super::pool::Pool;
use super::supervisor::WorkerId;
use crate::diagnosis::HangCause;
use crate::os::{clock, procfs};
use crate::time::MonotonicTime;

impl Pool<'_> {
    /// Looks who is too large, or overdue.
    pub(super) fn check_health(&mut self, now: MonotonicTime) {
        self.check_memory(now);
        self.refresh_liveness(now);
        self.diagnose_overdue(now);
    }

    /// Who has too much memory is replaced like anybody who has served its time.
    fn check_memory(&mut self, now: MonotonicTime) {
        if self.memory_check_due.is_none_or(|at| now < at) {
            return;
        }
        for (id, bytes) in self.processes.over_memory_limit() {
            let (pid, slot) = self.processes.pid_and_slot(id);
            info!(self.log(), "worker exceeds max_memory"; "pid" => pid.as_raw(), "slot" => slot,
                "memory_bytes" => bytes);
            self.supervisor.on_replacement_requested(id);
        }
        self.memory_check_due =
            self.processes.any_memory_limited().then(|| now.saturating_add(MEMORY_CHECK_INTERVAL));
    }

    fn refresh_liveness(&mut self, now: MonotonicTime) {
        for id in self.supervisor.liveness_check_due(now) {
            self.update_liveness(id);
        }
    }

    fn update_liveness(&mut self, id: WorkerId) {
        if let Some((beat, busy)) = self.processes.read_liveness(id) {
            self.supervisor.on_liveness(id, beat, busy);
        }
    }

    /// Before anybody who is overdue is judged, it is found out why it does not get on.
    fn diagnose_overdue(&mut self, now: MonotonicTime) {
        for id in self.supervisor.overdue(now) {
            let suspect = self.suspect(id);
            let cause = match self.diagnoser.diagnose(suspect, self.processes.cgroups()) {
                DiagnosisStep::SampleAgain(at) => {
                    self.supervisor.defer_verdict(id, at);
                    continue;
                }
                DiagnosisStep::Cause(cause) => cause,
            };
            match cause {
                // A look takes a moment, in which a thread of it may have taken somebody in.
                HangCause::Busy | HangCause::Blocked | HangCause::Unknown => {
                    self.update_liveness(id)
                }
                HangCause::Stopped | HangCause::Unkillable => self.supervisor.mark_unresponsive(id),
                HangCause::Frozen | HangCause::Throttled => self.extend_timeout(id, cause),
                HangCause::DumpingCore => self.allow_core_dump(id, now),
            }
        }
        for id in self.supervisor.kill_candidates(now) {
            if procfs::is_dumping_core(self.processes.hang_target(id).0) {
                self.allow_core_dump(id, now);
            }
        }
    }

    fn suspect(&self, id: WorkerId) -> Suspect {
        let (pid, thread) = self.processes.hang_target(id);
        let beat = || self.processes.read_liveness(id).map(|(beat, _)| beat);
        let since = self
            .processes
            .most_overdue_unit(id)
            .map(|unit| unit.started_at)
            .or_else(beat)
            .unwrap_or_default();
        Suspect { id, pid, thread, since, limit: self.supervisor.current_timeout(id) }
    }

    fn extend_timeout(&mut self, id: WorkerId, cause: HangCause) {
        let now = clock::now();
        self.supervisor.extend_timeout(id, now);
        let beat = self.processes.read_liveness(id).map_or(now, |(beat, _)| beat);
        if self.diagnoser.grant_extension(id, beat, now) {
            let (pid, slot) = self.processes.pid_and_slot(id);
            warn!(self.log(), "worker frozen or throttled, timeout extended"; "pid" => pid.as_raw(), "slot" => slot,
                "cause" => cause.as_str());
        }
    }

    fn allow_core_dump(&mut self, id: WorkerId, now: MonotonicTime) {
        if self.supervisor.on_core_dump(id, now) {
            let (pid, slot) = self.processes.pid_and_slot(id);
            warn!(self.log(), "worker dumping core"; "pid" => pid.as_raw(), "slot" => slot,
                "cause" => HangCause::DumpingCore.as_str());
        }
    }
}
