//! Finds out why a worker hangs, from two samples of it, and whether it gets too little CPU time.

use std::collections::HashMap;
use std::time::Duration;

use super::supervisor::WorkerId;
use crate::diagnosis::{Diagnosis, HangCause, ProcessSample, classify, diagnose, is_asleep};
use crate::time::MonotonicTime;

/// A first sample that is older than this is discarded.
const SAMPLE_AGE_MAX: Duration = Duration::from_secs(3);
/// How many times the timeout of a thread is extended that sleeps beside threads that get too little CPU
/// time.
const SLEEP_EXTENSIONS_MAX: u32 = 10;

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
    /// How often the timeout was extended although the thread slept.
    sleep_extensions: u32,
    /// The CPU time of its process at the first of these extensions since it was ready.
    process_cpu_time: Option<Duration>,
    /// The sample at which its timeout was last extended.
    last_extension: ProcessSample,
}

impl CpuStarvation {
    /// Returns whether a thread that still sleeps waits for something else than CPU time: what it waits
    /// for would have happened.
    fn has_slept_enough(&self, process_cpu_time: Option<Duration>, limit: Duration) -> bool {
        let ran = process_cpu_time.zip(self.process_cpu_time);
        self.sleep_extensions >= SLEEP_EXTENSIONS_MAX
            || ran.is_some_and(|(now, before)| now.saturating_sub(before) >= limit)
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
    /// reaches the limit, it is `Busy`: an endless loop uses up any CPU time. A thread that `sleeps` is
    /// `Blocked` once its process has used that much CPU time meanwhile, and after ten extensions.
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
        let slept_enough =
            work.is_some_and(|work| work.has_slept_enough(sample.cpu_time, suspect.limit));
        if has_limit && sleeps && slept_enough {
            return HangCause::Blocked;
        }
        let process_cpu_time = work.and_then(|work| work.process_cpu_time).or(sample.cpu_time);
        let starvation = CpuStarvation {
            since: suspect.since,
            thread: number,
            initial_cpu_time: first,
            sleep_extensions: work.map_or(0, |work| work.sleep_extensions) + u32::from(sleeps),
            process_cpu_time: process_cpu_time.filter(|_| sleeps),
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

    /// Returns two samples, 200 ms apart, of a thread that sleeps beside one that is ready, in a throttled
    /// group. With `was_ready` it is ready in the first one.
    fn sleeping_samples(secs: u64, process_ran: u64, was_ready: bool) -> [ProcessSample; 2] {
        [(0, if was_ready { 'R' } else { 'S' }), (200, 'S')].map(|(millis, state)| {
            let mut sample = sample(secs, Duration::from_millis(100), 1000 * secs + millis);
            sample.taken_at = sample.taken_at.saturating_add(Duration::from_millis(millis));
            sample.cpu_time = Some(Duration::from_millis(process_ran));
            let other = ThreadSample { thread_id: 8, state: 'R', ..ThreadSample::default() };
            sample.other_threads = vec![other];
            sample.thread.as_mut().unwrap().state = state;
            sample
        })
    }

    fn cause_of(diagnoser: &mut HangDiagnoser, samples: [ProcessSample; 2]) -> HangCause {
        let [first, second] = samples.map(|sample| diagnoser.diagnose(suspect(1), sample));
        assert!(matches!(first, DiagnosisStep::SampleAgain(_)));
        let DiagnosisStep::Cause(cause) = second else { panic!("the second sample is too early") };
        cause
    }

    #[test]
    fn sleep_ends_with_the_cpu_time_of_the_process() {
        let mut diagnoser = HangDiagnoser::default();
        let mut cause = |secs, process_ran, was_ready| {
            cause_of(&mut diagnoser, sleeping_samples(secs, process_ran, was_ready))
        };
        assert_eq!(cause(1, 5000, false), HangCause::Throttled);
        assert_eq!(cause(2, 5999, false), HangCause::Throttled);
        assert_eq!(cause(3, 7000, true), HangCause::Throttled, "it was ready");
        assert_eq!(cause(4, 8000, false), HangCause::Throttled);
        assert_eq!(cause(5, 8999, false), HangCause::Throttled);
        assert_eq!(cause(6, 9000, false), HangCause::Blocked);
    }

    #[test]
    fn sleep_ends_after_ten_extensions() {
        let mut diagnoser = HangDiagnoser::default();
        let mut cause = |secs, was_ready| {
            let mut samples = sleeping_samples(secs, 0, was_ready);
            // Another thread may have taken the work.
            for thread in samples.iter_mut().filter_map(|sample| sample.thread.as_mut()) {
                thread.thread_id = secs;
            }
            cause_of(&mut diagnoser, samples)
        };
        assert!((101..110).all(|secs| cause(secs, false) == HangCause::Throttled));
        assert_eq!(cause(1000, true), HangCause::Throttled, "it was ready: not counted");
        assert_eq!(cause(1001, false), HangCause::Throttled);
        assert_eq!(cause(1002, false), HangCause::Blocked);
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
