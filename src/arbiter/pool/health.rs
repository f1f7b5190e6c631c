//! Watches a pool's workers: heartbeats, work in progress, memory; and finds out why an overdue
//! worker makes no progress, from two samples. It never waits: it says when to sample again.

use std::collections::HashMap;
use std::time::Duration;

use slog::{info, warn};

use super::Pool;
use super::supervisor::WorkerId;
use crate::diagnosis::{Diagnosis, HangCause, ProcessSample, classify, diagnose};
use crate::os::cgroup::Cgroups;
use crate::os::process::Pid;
use crate::os::{clock, procfs};
use crate::time::MonotonicTime;

/// How often workers are weighed whose memory is bounded.
pub(in crate::arbiter) const MEMORY_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A first look that is older says nothing any more.
const STALE: Duration = Duration::from_secs(3);

impl Pool<'_> {
    /// Looks who is too large, or overdue.
    pub(in crate::arbiter) fn check_health(&mut self, now: MonotonicTime) {
        self.check_memory(now);
        self.refresh_liveness(now);
        self.diagnose_overdue(now);
    }

    /// Who has too much memory is replaced like anybody who has served its time.
    fn check_memory(&mut self, now: MonotonicTime) {
        if self.memory_check_due.is_none_or(|at| now < at) {
            return;
        }
        for (id, limit) in self.supervisor.memory_checks() {
            let bytes = self.processes.memory(id, limit);
            let Some(bytes) = self.supervisor.on_memory_sample(id, bytes) else { continue };
            let (pid, slot) = self.processes.pid_and_slot(id);
            info!(self.log(), "worker exceeds max_memory"; "pid" => pid.as_raw(), "slot" => slot,
                "memory_bytes" => bytes);
        }
        self.memory_check_due =
            self.supervisor.any_memory_limited().then(|| now.saturating_add(MEMORY_CHECK_INTERVAL));
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

/// The examinations.
#[derive(Default)]
pub(in crate::arbiter) struct HangDiagnoser {
    first_samples: HashMap<WorkerId, ProcessSample>,
    diagnoses: HashMap<WorkerId, Diagnosis>,
    /// When it was last said that a worker cannot run.
    extension_logged_at: HashMap<WorkerId, MonotonicTime>,
    /// Who is short of CPU, and has to get by on little.
    cpu_starved: HashMap<WorkerId, CpuStarvation>,
}

/// A worker that is overdue.
#[derive(Clone, Copy)]
pub(in crate::arbiter) struct Suspect {
    pub(in crate::arbiter) id: WorkerId,
    /// The process, and the thread of it, that do not get on.
    pub(in crate::arbiter) pid: Pid,
    pub(in crate::arbiter) thread: u64,
    /// Since when: the beginning of its work, or its last beat.
    pub(in crate::arbiter) since: MonotonicTime,
    /// How long it may take.
    pub(in crate::arbiter) limit: Duration,
}

/// A thread that was seen to get too little CPU.
struct CpuStarvation {
    /// What it is at.
    since: MonotonicTime,
    thread: u64,
    /// For how long it had run when that was first seen.
    initial_cpu_time: Duration,
    /// How it was when it was last excused.
    last_extension: ProcessSample,
}

impl CpuStarvation {
    fn is_about(&self, suspect: Suspect, thread: u64) -> bool {
        (self.since, self.thread) == (suspect.since, thread)
    }
}

/// What an examination has led to.
pub(in crate::arbiter) enum DiagnosisStep {
    /// It wants to look again then.
    SampleAgain(MonotonicTime),
    /// This.
    Cause(HangCause),
}

impl HangDiagnoser {
    /// Looks at a worker and at the thread that is overdue.
    pub(in crate::arbiter) fn diagnose(
        &mut self,
        suspect: Suspect,
        cgroups: &Cgroups,
    ) -> DiagnosisStep {
        let id = suspect.id;
        let sample = procfs::sample(suspect.pid, suspect.thread, cgroups);
        let first = self
            .first_samples
            .remove(&id)
            .filter(|first| sample.taken_at.duration_since(first.taken_at) < STALE);
        match first {
            Some(first) if first.next_sample_at() <= sample.taken_at => {
                let diagnosis = diagnose(&first, &sample);
                let cause = self.adjust_for_starvation(suspect, diagnosis.cause, sample);
                self.diagnoses.insert(id, Diagnosis { cause, ..diagnosis });
                DiagnosisStep::Cause(cause)
            }
            first => {
                let first = first.unwrap_or(sample);
                let again = first.next_sample_at();
                self.first_samples.insert(id, first);
                DiagnosisStep::SampleAgain(again)
            }
        }
    }

    /// What a verdict becomes of a thread that gets too little CPU, or has got too little since it was
    /// last excused. Once it has run for as long as it may take, that is no excuse: an endless loop is
    /// short of any CPU.
    fn adjust_for_starvation(
        &mut self,
        suspect: Suspect,
        cause: HangCause,
        sample: ProcessSample,
    ) -> HangCause {
        let Some(thread) = &sample.thread else { return cause };
        let (number, cpu_time) = (thread.thread_id, thread.cpu_time);
        let known = self
            .cpu_starved
            .get(&suspect.id)
            .filter(|starvation| starvation.is_about(suspect, number));
        let first = known.map_or(cpu_time, |starvation| starvation.initial_cpu_time);
        let used_full_limit =
            !suspect.limit.is_zero() && cpu_time.saturating_sub(first) >= suspect.limit;
        let was_starved = || {
            known.is_some_and(|starvation| {
                classify(&starvation.last_extension, &sample).0 == HangCause::Throttled
            })
        };
        let is_starved = match cause {
            HangCause::Throttled => true,
            HangCause::Busy => was_starved(),
            HangCause::Blocked
            | HangCause::Stopped
            | HangCause::Frozen
            | HangCause::Unkillable
            | HangCause::DumpingCore
            | HangCause::Unknown => return cause,
        };
        if !is_starved || used_full_limit {
            return HangCause::Busy;
        }
        let starvation = CpuStarvation {
            since: suspect.since,
            thread: number,
            initial_cpu_time: first,
            last_extension: sample,
        };
        self.cpu_starved.insert(suspect.id, starvation);
        HangCause::Throttled
    }

    /// What was found last.
    pub(in crate::arbiter) fn diagnosis(&self, id: WorkerId) -> Option<&Diagnosis> {
        self.diagnoses.get(&id)
    }

    /// A worker cannot run. Returns whether that is news: it has beaten since it was last said.
    pub(in crate::arbiter) fn grant_extension(
        &mut self,
        id: WorkerId,
        beat: MonotonicTime,
        now: MonotonicTime,
    ) -> bool {
        self.extension_logged_at.insert(id, now).is_none_or(|logged_at| logged_at < beat)
    }

    /// A worker has ended.
    pub(in crate::arbiter) fn forget(&mut self, id: WorkerId) {
        self.first_samples.remove(&id);
        self.diagnoses.remove(&id);
        self.extension_logged_at.remove(&id);
        self.cpu_starved.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnosis::ThreadSample;

    const LIMIT: Duration = Duration::from_secs(1);

    /// A look at a thread that has had so much of so much time, and so many periods without CPU.
    fn sample(secs: u64, ran: Duration, throttled: u64) -> ProcessSample {
        let at = MonotonicTime::from_nanos(1_000_000_000).saturating_add(Duration::from_secs(secs));
        let thread =
            ThreadSample { thread_id: 7, state: 'R', cpu_time: ran, ..ThreadSample::default() };
        let throttled = Some(throttled);
        let (dumping, frozen, period) = (false, false, Some(Duration::from_millis(100)));
        ProcessSample {
            taken_at: at,
            is_dumping_core: dumping,
            is_frozen: frozen,
            throttled_count: throttled,
            cpu_period: period,
            thread: Some(thread),
            other_threads: Vec::new(),
        }
    }

    fn suspect(since: u64) -> Suspect {
        let (id, pid, since) = (WorkerId(1), Pid::this(), MonotonicTime::from_nanos(since));
        Suspect { id, pid, thread: 7, since, limit: LIMIT }
    }

    #[test]
    fn starvation_after_full_cpu_time_is_busy() {
        let mut diagnoser = HangDiagnoser::default();
        let mut adjust = |secs, ran| {
            let sample = sample(secs, Duration::from_millis(ran), secs);
            diagnoser.adjust_for_starvation(suspect(1), HangCause::Throttled, sample)
        };
        assert_eq!(adjust(1, 100), HangCause::Throttled, "the first time it may be news");
        assert_eq!(adjust(2, 500), HangCause::Throttled);
        assert_eq!(adjust(3, 1099), HangCause::Throttled);
        assert_eq!(adjust(4, 1100), HangCause::Busy);
    }

    #[test]
    fn starvation_other_work_starts_anew() {
        let mut diagnoser = HangDiagnoser::default();
        let mut adjust = |since, ran| {
            let sample = sample(1, Duration::from_millis(ran), 1);
            diagnoser.adjust_for_starvation(suspect(since), HangCause::Throttled, sample)
        };
        assert_eq!(adjust(1, 100), HangCause::Throttled);
        assert_eq!(adjust(2, 1200), HangCause::Throttled);
        assert_eq!(adjust(2, 2100), HangCause::Throttled);
        assert_eq!(adjust(2, 2200), HangCause::Busy);
    }

    #[test]
    fn starvation_busy_after_throttled_is_extended_once() {
        let mut diagnoser = HangDiagnoser::default();
        let sample = |secs, ran, throttled| sample(secs, Duration::from_millis(ran), throttled);
        let mut adjust = |cause, sample| diagnoser.adjust_for_starvation(suspect(1), cause, sample);
        assert_eq!(adjust(HangCause::Busy, sample(1, 0, 5)), HangCause::Busy);
        assert_eq!(adjust(HangCause::Throttled, sample(2, 0, 6)), HangCause::Throttled);
        // The bound was lifted at the end of that second.
        assert_eq!(adjust(HangCause::Busy, sample(3, 100, 15)), HangCause::Throttled);
        assert_eq!(adjust(HangCause::Busy, sample(4, 900, 15)), HangCause::Busy);
    }

    #[test]
    fn starvation_other_causes_are_unchanged() {
        let mut diagnoser = HangDiagnoser::default();
        let mut adjust = |cause| {
            diagnoser.adjust_for_starvation(suspect(1), cause, sample(1, Duration::ZERO, 1))
        };
        assert_eq!(adjust(HangCause::Throttled), HangCause::Throttled);
        for cause in
            [HangCause::Blocked, HangCause::Stopped, HangCause::Frozen, HangCause::Unkillable]
        {
            assert_eq!(adjust(cause), cause);
        }
    }
}
