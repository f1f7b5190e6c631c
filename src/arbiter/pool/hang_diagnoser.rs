//! Finds out why a worker hangs, from two samples of it, and whether it gets too little CPU time.

use std::collections::HashMap;
use std::time::Duration;

use super::supervisor::WorkerId;
use crate::diagnosis::{Diagnosis, HangCause, ProcessSample, classify, diagnose, is_asleep};
use crate::time::MonotonicTime;

/// A first sample that is older than this is discarded.
const SAMPLE_AGE_MAX: Duration = Duration::from_secs(3);
/// How many times its limit a thread may sleep beside threads that get too little CPU time.
const SLEEP_LIMITS_MAX: u32 = 10;

/// Finds out why workers hang.
#[derive(Default)]
pub(super) struct HangDiagnoser {
    first_samples: HashMap<WorkerId, ProcessSample>,
    diagnoses: HashMap<WorkerId, Diagnosis>,
    /// When it was last logged that a worker cannot run.
    extension_logged_at: HashMap<WorkerId, MonotonicTime>,
    /// Workers that get too little CPU time.
    cpu_starved: HashMap<WorkerId, CpuStarvation>,
}

/// A worker that is overdue.
#[derive(Clone, Copy)]
pub(super) struct Suspect {
    pub(super) id: WorkerId,
    /// When its work began; if it is idle, its last heartbeat.
    pub(super) since: MonotonicTime,
    /// The limit that it has exceeded.
    pub(super) limit: Duration,
}

/// A thread that has been seen to get too little CPU time.
struct CpuStarvation {
    /// When its work began: identifies the work.
    since: MonotonicTime,
    thread: u64,
    /// Its CPU time when that was first seen.
    initial_cpu_time: Duration,
    /// When it fell asleep, if it has slept in all samples since.
    sleep: Option<Sleep>,
    /// The sample at which its timeout was last extended.
    last_extension: ProcessSample,
}

/// The first sample in which a thread slept that may wait for one that gets too little CPU time.
#[derive(Clone, Copy)]
struct Sleep {
    since: MonotonicTime,
    /// How much CPU time its process had used.
    cpu_time: Option<Duration>,
}

impl Sleep {
    fn begin(sample: &ProcessSample) -> Self {
        Self { since: sample.taken_at, cpu_time: sample.cpu_time }
    }

    /// Returns whether the thread waits for something else: what it waits for would have happened.
    fn is_over(self, sample: &ProcessSample, limit: Duration) -> bool {
        let used = self.cpu_time.zip(sample.cpu_time);
        let has_run = used.is_some_and(|(before, now)| now.saturating_sub(before) >= limit);
        has_run || sample.taken_at.duration_since(self.since) >= limit * SLEEP_LIMITS_MAX
    }
}

/// The result of one step of a diagnosis.
pub(super) enum DiagnosisStep {
    /// Another sample is needed at this time.
    SampleAgain(MonotonicTime),
    /// The cause is known.
    Cause(HangCause),
}

impl HangDiagnoser {
    /// Takes a sample of an overdue worker; the second one gives the cause.
    pub(super) fn diagnose(&mut self, suspect: Suspect, sample: ProcessSample) -> DiagnosisStep {
        let id = suspect.id;
        let first = self
            .first_samples
            .remove(&id)
            .filter(|first| sample.taken_at.duration_since(first.taken_at) < SAMPLE_AGE_MAX);
        match first {
            Some(first) if first.next_sample_at() <= sample.taken_at => {
                let diagnosis = diagnose(&first, &sample);
                let sleeps = is_asleep(&first, &sample);
                let cause = self.adjust_for_starvation(suspect, diagnosis.cause, sleeps, sample);
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

    /// Returns `Throttled` instead of `Busy` or `Blocked` if the thread has got too little CPU time since
    /// its timeout was last extended: it has a whole `timeout` after the throttling. Once its CPU time
    /// reaches the limit, it is `Busy`: an endless loop uses up any CPU time. A thread that `sleeps` all
    /// the time is `Blocked` once its process has used that much CPU time, and after ten times the limit.
    fn adjust_for_starvation(
        &mut self,
        suspect: Suspect,
        cause: HangCause,
        sleeps: bool,
        sample: ProcessSample,
    ) -> HangCause {
        let Some(thread) = &sample.thread else { return cause };
        let (number, cpu_time) = (thread.thread_id, thread.cpu_time);
        let work = self.cpu_starved.get(&suspect.id).filter(|known| known.since == suspect.since);
        let known = work.filter(|known| known.thread == number);
        let sleep = sleeps
            .then(|| work.and_then(|known| known.sleep).unwrap_or_else(|| Sleep::begin(&sample)));
        let first = known.map_or(cpu_time, |starvation| starvation.initial_cpu_time);
        let has_limit = !suspect.limit.is_zero();
        let used_full_limit = has_limit && cpu_time.saturating_sub(first) >= suspect.limit;
        let was_starved = || {
            known.is_some_and(|starvation| {
                classify(&starvation.last_extension, &sample).0 == HangCause::Throttled
            })
        };
        let is_starved = match cause {
            HangCause::Throttled => true,
            HangCause::Busy | HangCause::Blocked => was_starved(),
            HangCause::Stopped
            | HangCause::Frozen
            | HangCause::Unkillable
            | HangCause::DumpingCore
            | HangCause::Unknown => return cause,
        };
        if !is_starved {
            return cause;
        }
        if used_full_limit {
            return HangCause::Busy;
        }
        if has_limit && sleep.is_some_and(|sleep| sleep.is_over(&sample, suspect.limit)) {
            return HangCause::Blocked;
        }
        let starvation = CpuStarvation {
            since: suspect.since,
            thread: number,
            initial_cpu_time: first,
            sleep,
            last_extension: sample,
        };
        self.cpu_starved.insert(suspect.id, starvation);
        HangCause::Throttled
    }

    /// Returns the last diagnosis of a worker.
    pub(super) fn diagnosis(&self, id: WorkerId) -> Option<&Diagnosis> {
        self.diagnoses.get(&id)
    }

    /// Records that a worker cannot run. Returns whether to log it: the worker has sent a heartbeat
    /// since the last record.
    pub(super) fn grant_extension(
        &mut self,
        id: WorkerId,
        beat: MonotonicTime,
        now: MonotonicTime,
    ) -> bool {
        self.extension_logged_at.insert(id, now).is_none_or(|logged_at| logged_at < beat)
    }

    /// Forgets a worker that has exited.
    pub(super) fn forget(&mut self, id: WorkerId) {
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
            cpu_time: None,
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
            diagnoser.adjust_for_starvation(suspect(1), HangCause::Throttled, false, sample)
        };
        assert_eq!(adjust(1, 100), HangCause::Throttled, "too little CPU time at first");
        assert_eq!(adjust(2, 500), HangCause::Throttled);
        assert_eq!(adjust(3, 1099), HangCause::Throttled);
        assert_eq!(adjust(4, 1100), HangCause::Busy);
    }

    #[test]
    fn sleep_ends_with_the_cpu_time_of_the_process_or_after_ten_limits() {
        let throttled = |diagnoser: &mut HangDiagnoser, secs, sleeps, process_ran| {
            let sample = ProcessSample {
                cpu_time: Some(Duration::from_millis(process_ran)),
                ..sample(secs, Duration::from_millis(100), secs)
            };
            diagnoser.adjust_for_starvation(suspect(1), HangCause::Throttled, sleeps, sample)
        };
        let mut diagnoser = HangDiagnoser::default();
        let mut adjust = |secs, sleeps, ran| throttled(&mut diagnoser, secs, sleeps, ran);
        assert_eq!(adjust(1, true, 5000), HangCause::Throttled);
        assert_eq!(adjust(2, true, 5999), HangCause::Throttled);
        assert_eq!(adjust(3, false, 7000), HangCause::Throttled, "it has been ready");
        assert_eq!(adjust(4, true, 8000), HangCause::Throttled);
        assert_eq!(adjust(5, true, 8999), HangCause::Throttled);
        assert_eq!(adjust(6, true, 9000), HangCause::Blocked);
        let mut diagnoser = HangDiagnoser::default();
        let mut adjust = |secs| throttled(&mut diagnoser, secs, true, 0);
        assert!((1..11).all(|secs| adjust(secs) == HangCause::Throttled));
        assert_eq!(adjust(11), HangCause::Blocked);
    }

    #[test]
    fn sleep_goes_on_if_another_thread_has_taken_the_work() {
        let mut diagnoser = HangDiagnoser::default();
        let mut adjust = |secs| {
            let mut sample = sample(secs, Duration::ZERO, secs);
            sample.thread.as_mut().unwrap().thread_id = secs;
            diagnoser.adjust_for_starvation(suspect(1), HangCause::Throttled, true, sample)
        };
        assert!((1..11).all(|secs| adjust(secs) == HangCause::Throttled));
        assert_eq!(adjust(11), HangCause::Blocked);
    }

    #[test]
    fn starvation_other_work_starts_anew() {
        let mut diagnoser = HangDiagnoser::default();
        let mut adjust = |since, ran| {
            let sample = sample(1, Duration::from_millis(ran), 1);
            diagnoser.adjust_for_starvation(suspect(since), HangCause::Throttled, false, sample)
        };
        assert_eq!(adjust(1, 100), HangCause::Throttled);
        assert_eq!(adjust(2, 1200), HangCause::Throttled);
        assert_eq!(adjust(2, 2100), HangCause::Throttled);
        assert_eq!(adjust(2, 2200), HangCause::Busy);
    }

    #[test]
    fn starvation_other_cause_after_throttled_is_extended_once() {
        for cause in [HangCause::Busy, HangCause::Blocked] {
            let mut diagnoser = HangDiagnoser::default();
            let sample = |secs, ran, throttled| sample(secs, Duration::from_millis(ran), throttled);
            let mut adjust =
                |cause, sample| diagnoser.adjust_for_starvation(suspect(1), cause, false, sample);
            assert_eq!(adjust(cause, sample(1, 0, 5)), cause);
            assert_eq!(adjust(HangCause::Throttled, sample(2, 0, 6)), HangCause::Throttled);
            // The CPU quota was lifted at the end of that second.
            assert_eq!(adjust(cause, sample(3, 100, 15)), HangCause::Throttled);
            assert_eq!(adjust(cause, sample(4, 900, 15)), cause);
        }
    }

    #[test]
    fn starvation_other_causes_are_unchanged() {
        let mut diagnoser = HangDiagnoser::default();
        let mut adjust = |cause| {
            diagnoser.adjust_for_starvation(suspect(1), cause, false, sample(1, Duration::ZERO, 1))
        };
        assert_eq!(adjust(HangCause::Throttled), HangCause::Throttled);
        for cause in
            [HangCause::Blocked, HangCause::Stopped, HangCause::Frozen, HangCause::Unkillable]
        {
            assert_eq!(adjust(cause), cause);
        }
    }
}
