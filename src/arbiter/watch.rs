//! Keeping an eye on the workers: their beats, their work, their size; and why one does not get on.

use slog::{info, warn};

use super::BETWEEN_WEIGHINGS;
use super::examiner::{Case, Finding};
use super::pool::Pool;
use super::roster::WorkerId;
use crate::diagnosis::HangCause;
use crate::os::{clock, procfs};
use crate::time::MonotonicTime;

impl Pool<'_> {
    /// Looks who is too large, or overdue.
    pub(super) fn look_after_the_workers(&mut self, now: MonotonicTime) {
        self.weigh_workers(now);
        self.measure_suspects(now);
        self.examine_the_overdue(now);
    }

    /// Who has too much memory is replaced like anybody who has served its time.
    fn weigh_workers(&mut self, now: MonotonicTime) {
        if self.weigh_at.is_none_or(|at| now < at) {
            return;
        }
        for (id, bytes) in self.processes.over_memory_limit() {
            let (pid, slot) = self.processes.pid_and_slot(id);
            info!(self.log(), "worker is too large"; "pid" => pid.as_raw(), "slot" => slot,
                "bytes" => bytes);
            self.supervisor.on_replacement_requested(id);
        }
        self.weigh_at = self.processes.any_memory_limited().then(|| now.saturating_add(BETWEEN_WEIGHINGS));
    }

    fn measure_suspects(&mut self, now: MonotonicTime) {
        for id in self.supervisor.liveness_check_due(now) {
            self.measure(id);
        }
    }

    fn measure(&mut self, id: WorkerId) {
        if let Some((beat, busy)) = self.processes.read_liveness(id) {
            self.supervisor.on_liveness(id, beat, busy);
        }
    }

    /// Before anybody who is overdue is judged, it is found out why it does not get on.
    fn examine_the_overdue(&mut self, now: MonotonicTime) {
        for id in self.supervisor.overdue(now) {
            let case = self.case(id);
            let verdict = match self.examiner.examine(case, self.processes.cgroups()) {
                Finding::LookAgain(at) => {
                    self.supervisor.defer_verdict(id, at);
                    continue;
                }
                Finding::Verdict(verdict) => verdict,
            };
            match verdict {
                // A look takes a moment, in which a thread of it may have taken somebody in.
                HangCause::Busy | HangCause::Blocked | HangCause::Unknown => self.measure(id),
                HangCause::Stopped | HangCause::Unkillable => self.supervisor.mark_unresponsive(id),
                HangCause::Frozen | HangCause::Throttled => self.excuse(id, verdict),
                HangCause::DumpingCore => self.let_dump(id, now),
            }
        }
        for id in self.supervisor.kill_candidates(now) {
            if procfs::is_dumping_core(self.processes.hang_target(id).0) {
                self.let_dump(id, now);
            }
        }
    }

    fn case(&self, id: WorkerId) -> Case {
        let (pid, thread) = self.processes.hang_target(id);
        let beat = || self.processes.read_liveness(id).map(|(beat, _)| beat);
        let since = self.processes.most_overdue_unit(id).map(|unit| unit.started_at).or_else(beat).unwrap_or_default();
        Case { id, pid, thread, since, limit: self.supervisor.current_timeout(id) }
    }

    fn excuse(&mut self, id: WorkerId, verdict: HangCause) {
        let now = clock::now();
        self.supervisor.extend_timeout(id, now);
        let beat = self.processes.read_liveness(id).map_or(now, |(beat, _)| beat);
        if self.examiner.excuse(id, beat, now) {
            let (pid, slot) = self.processes.pid_and_slot(id);
            warn!(self.log(), "worker cannot run"; "pid" => pid.as_raw(), "slot" => slot,
                "verdict" => verdict.as_str());
        }
    }

    fn let_dump(&mut self, id: WorkerId, now: MonotonicTime) {
        if self.supervisor.on_core_dump(id, now) {
            let (pid, slot) = self.processes.pid_and_slot(id);
            warn!(self.log(), "worker has crashed"; "pid" => pid.as_raw(), "slot" => slot,
                "verdict" => HangCause::DumpingCore.as_str());
        }
    }
}
