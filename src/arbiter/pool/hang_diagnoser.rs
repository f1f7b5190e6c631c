//! Finds out why a worker hangs, from two samples of it, and whether it gets too little CPU time.

use std::collections::HashMap;
use std::time::Duration;

use super::supervisor::WorkerId;
use crate::diagnosis::{Diagnosis, HangCause, ProcessSample, classify, diagnose};
use crate::time::MonotonicTime;

/// A first sample that is older than this is discarded.
const SAMPLE_AGE_MAX: Duration = Duration::from_secs(3);

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
    /// How much CPU time the other threads of its process have used since.
    others_cpu_time: Duration,
    /// The sample at which its timeout was last extended.
    last_extension: ProcessSample,
}

impl CpuStarvation {
    fn is_about(&self, suspect: Suspect, thread: u64) -> bool {
        (self.since, self.thread) == (suspect.since, thread)
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

    /// Returns `Throttled` instead of `Busy` or `Blocked` if the thread has got too little CPU time since
    /// its timeout was last extended: it has a whole `timeout` after the throttling. Once its CPU time
    /// reaches the limit, it is `Busy`: an endless loop uses up any CPU time. A thread that sleeps is
    /// `Blocked` once the CPU time of all threads reaches the limit: it waits for something else.
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
        let others = known.map_or(Duration::ZERO, |starvation| {
            let since_then = sample.others_cpu_time_since(&starvation.last_extension);
            starvation.others_cpu_time + since_then
        });
        let own = cpu_time.saturating_sub(first);
        let is_used_up = |used| !suspect.limit.is_zero() && used >= suspect.limit;
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
        if is_used_up(own) {
            return HangCause::Busy;
        }
        if thread.state == 'S' && is_used_up(own + others) {
            return HangCause::Blocked;
        }
        let starvation = CpuStarvation {
            since: suspect.since,
            thread: number,
            initial_cpu_time: first,
            others_cpu_time: others,
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
    fn sleep_after_full_cpu_time_of_all_threads_is_blocked() {
        let mut diagnoser = HangDiagnoser::default();
        let mut adjust = |secs, ended: &[u64], others_ran: u64| {
            let mut sample = sample(secs, Duration::from_millis(100), secs);
            let thread = sample.thread.as_mut().unwrap();
            thread.state = 'S';
            let thread = thread.clone();
            let others = (8..12).filter(|number| !ended.contains(number));
            let cpu_time = Duration::from_millis(others_ran);
            let others =
                others.map(|thread_id| ThreadSample { thread_id, cpu_time, ..thread.clone() });
            sample.other_threads = others.collect();
            diagnoser.adjust_for_starvation(suspect(1), HangCause::Throttled, sample)
        };
        assert_eq!(adjust(1, &[], 1000), HangCause::Throttled);
        assert_eq!(adjust(2, &[], 1100), HangCause::Throttled, "0.4 s");
        assert_eq!(adjust(3, &[8, 9], 1200), HangCause::Throttled, "0.6 s; two have ended");
        assert_eq!(adjust(4, &[8, 9], 1399), HangCause::Throttled, "0.998 s");
        assert_eq!(adjust(5, &[8, 9], 1400), HangCause::Blocked, "1 s");
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
    fn starvation_other_cause_after_throttled_is_extended_once() {
        for cause in [HangCause::Busy, HangCause::Blocked] {
            let mut diagnoser = HangDiagnoser::default();
            let sample = |secs, ran, throttled| sample(secs, Duration::from_millis(ran), throttled);
            let mut adjust =
                |cause, sample| diagnoser.adjust_for_starvation(suspect(1), cause, sample);
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
