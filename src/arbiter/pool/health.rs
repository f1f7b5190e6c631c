//! Watches a pool's workers: heartbeats, work in progress and memory. Before the supervisor decides
//! on an overdue worker, two samples from /proc say why it makes no progress. Never waits: children of
//! the [`Inspector`] read what may block, and it says when it wants to sample again.

mod inspector;
mod sample_json;

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use slog::{Logger, info, warn};

use super::processes::ProcessTable;
use super::supervisor::{Supervisor, WorkerId};
use crate::diagnosis::{Diagnosis, HangCause, ProcessSample, classify, diagnose};
use crate::os::clock;
use crate::time::MonotonicTime;
use inspector::{Inquiry, Inspector, Subject};

/// How often the memory of workers with a `max_memory` is read.
const MEMORY_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A verdict that is deferred by this is not made in the present turn of the loop.
const NEXT_TURN: Duration = Duration::from_millis(1);

/// The verdict on a worker waits for a sample, which comes or is given up within seconds.
const VERDICT_DEFERRAL: Duration = Duration::from_secs(60);

/// A first sample that is older than this is discarded.
const SAMPLE_AGE_MAX: Duration = Duration::from_secs(3);

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
        self.diagnoser.diagnoses.get(&id)
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

/// Finds out why workers hang.
#[derive(Default)]
struct HangDiagnoser {
    first_samples: HashMap<WorkerId, ProcessSample>,
    diagnoses: HashMap<WorkerId, Diagnosis>,
    /// When it was last logged that a worker cannot run.
    extension_logged_at: HashMap<WorkerId, MonotonicTime>,
    /// Workers that get too little CPU time.
    cpu_starved: HashMap<WorkerId, CpuStarvation>,
}

/// A worker that is overdue.
#[derive(Clone, Copy)]
struct Suspect {
    id: WorkerId,
    /// When its work began; if it is idle, its last heartbeat.
    since: MonotonicTime,
    /// The limit that it has exceeded.
    limit: Duration,
}

/// A thread that has been seen to get too little CPU time.
struct CpuStarvation {
    /// When its work began: identifies the work.
    since: MonotonicTime,
    thread: u64,
    /// Its CPU time when that was first seen.
    initial_cpu_time: Duration,
    /// The sample at which its timeout was last extended.
    last_extension: ProcessSample,
}

impl CpuStarvation {
    fn is_about(&self, suspect: Suspect, thread: u64) -> bool {
        (self.since, self.thread) == (suspect.since, thread)
    }
}

/// The result of one step of a diagnosis.
enum DiagnosisStep {
    /// Another sample is needed at this time.
    SampleAgain(MonotonicTime),
    /// The cause is known.
    Cause(HangCause),
}

impl HangDiagnoser {
    /// Takes a sample of an overdue worker; the second one gives the cause.
    fn diagnose(&mut self, suspect: Suspect, sample: ProcessSample) -> DiagnosisStep {
        let id = suspect.id;
        let first = self
            .first_samples
            .remove(&id)
            .filter(|first| sample.taken_at.duration_since(first.taken_at) < SAMPLE_AGE_MAX);
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

    /// Returns `Throttled` instead of `Busy` if the thread has got too little CPU time since its timeout
    /// was last extended. Once its CPU time reaches the limit, it is `Busy`: an endless loop uses up
    /// any CPU time.
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

    /// Records that a worker cannot run. Returns whether to log it: the worker has sent a heartbeat
    /// since the last record.
    fn grant_extension(&mut self, id: WorkerId, beat: MonotonicTime, now: MonotonicTime) -> bool {
        self.extension_logged_at.insert(id, now).is_none_or(|logged_at| logged_at < beat)
    }

    /// Forgets a worker that has exited.
    fn forget(&mut self, id: WorkerId) {
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

    /// Returns a sample at `secs` of a thread that ran for `ran`, in a group throttled so many times.
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
        Suspect { id: WorkerId(1), since: MonotonicTime::from_nanos(since), limit: LIMIT }
    }

    #[test]
    fn starvation_after_full_cpu_time_is_busy() {
        let mut diagnoser = HangDiagnoser::default();
        let mut adjust = |secs, ran| {
            let sample = sample(secs, Duration::from_millis(ran), secs);
            diagnoser.adjust_for_starvation(suspect(1), HangCause::Throttled, sample)
        };
        assert_eq!(adjust(1, 100), HangCause::Throttled, "too little CPU time at first");
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
        // The CPU quota was lifted at the end of that second.
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
