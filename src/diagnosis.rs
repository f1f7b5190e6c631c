//! What ails a process that is overdue, judged by two looks at it from outside. Pure: `os::inspect`
//! looks, the arbiter acts.

use std::time::Duration;

use crate::time::MonotonicTime;

/// Of the time between two looks: who runs for less of it is not busy.
const BUSY_CPU_PERCENT: u32 = 25;
/// Who gets less of it, although its group is being throttled, is short of CPU.
const STARVED_CPU_PERCENT: u32 = 50;

/// From the first look to the second; longer by a period in a group whose CPU is bounded, since it
/// is counted once a period whether it was denied any.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);

/// A process at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProcessSample {
    /// When.
    pub(crate) taken_at: MonotonicTime,
    /// Its core is being dumped.
    pub(crate) is_dumping_core: bool,
    /// Its control group is frozen.
    pub(crate) is_frozen: bool,
    /// How often its control groups have been denied the CPU; `None` if that is not counted.
    pub(crate) throttled_count: Option<u64>,
    /// The longest period for which a group of its is given a share of CPU; `None` if all may have
    /// as much as they like.
    pub(crate) cpu_period: Option<Duration>,
    /// The thread that is overdue; `None` if it could not be seen.
    pub(crate) thread: Option<ThreadSample>,
    /// Its other threads, or some of many.
    pub(crate) other_threads: Vec<ThreadSample>,
}

/// A thread at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ThreadSample {
    /// Its number in the kernel.
    pub(crate) thread_id: u64,
    /// `R`, `S`, `D`, `T`, `t`, `Z` and so on.
    pub(crate) state: char,
    /// For how long it has run since its start.
    pub(crate) cpu_time: Duration,
    /// The system call that it is in, by name or number.
    pub(crate) syscall: Option<String>,
    /// The function of the kernel in which it sleeps.
    pub(crate) wchan: Option<String>,
    /// The functions of the kernel that it is in, the innermost first.
    pub(crate) stack: Vec<String>,
}

/// Why a process does not get on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HangCause {
    /// It computes.
    Busy,
    /// It waits for something.
    Blocked,
    /// It has been stopped by a signal or a debugger.
    Stopped,
    /// Its control group is frozen.
    Frozen,
    /// It has something to do, and its control group gets too little CPU.
    Throttled,
    /// It is in the kernel, where signals do not reach it.
    Unkillable,
    /// It has crashed, and its core is being dumped.
    DumpingCore,
    /// Nothing could be seen.
    Unknown,
}

impl HangCause {
    /// The words for it in the log.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            HangCause::Busy => "busy",
            HangCause::Blocked => "blocked",
            HangCause::Stopped => "stopped",
            HangCause::Frozen => "frozen",
            HangCause::Throttled => "throttled",
            HangCause::Unkillable => "unkillable",
            HangCause::DumpingCore => "dumping_core",
            HangCause::Unknown => "unknown",
        }
    }
}

/// What two looks have shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Diagnosis {
    pub(crate) cause: HangCause,
    /// How much of the time between the looks the thread ran, in percent.
    pub(crate) cpu_percent: Option<u32>,
    /// The thread, as it was seen last.
    pub(crate) thread: Option<ThreadSample>,
    /// The other threads, with the same share of each.
    pub(crate) other_threads: Vec<(ThreadSample, Option<u32>)>,
}

impl ProcessSample {
    /// When the second look is due, if this is the first.
    pub(crate) fn next_sample_at(&self) -> MonotonicTime {
        self.taken_at.saturating_add(SAMPLE_INTERVAL + self.cpu_period.unwrap_or_default())
    }
}

/// Judges by a first and a second look, and tells what there was to be seen.
pub(crate) fn diagnose(first: &ProcessSample, second: &ProcessSample) -> Diagnosis {
    let (cause, cpu) = classify(first, second);
    let between = second.taken_at.duration_since(first.taken_at);
    let others = second.other_threads.iter().map(|after| {
        let before = first.other_threads.iter().find(|before| before.thread_id == after.thread_id);
        (after.clone(), before.and_then(|before| cpu_percent(before, after, between)))
    });
    Diagnosis {
        cause,
        cpu_percent: cpu,
        thread: second.thread.clone(),
        other_threads: others.collect(),
    }
}

/// The verdict by a first and a second look, and how much of the time between them the thread ran, in
/// percent.
pub(crate) fn classify(first: &ProcessSample, second: &ProcessSample) -> (HangCause, Option<u32>) {
    let (before, after) = (first.thread.as_ref(), second.thread.as_ref());
    // Another thread may have been the one that was overdue: then there is one look at this one.
    let before =
        before.filter(|before| after.is_some_and(|after| before.thread_id == after.thread_id));
    let between = second.taken_at.duration_since(first.taken_at);
    let cpu = before.zip(after).and_then(|(before, after)| cpu_percent(before, after, between));
    let was = |states: &[char]| {
        let seen = [before, after];
        after.is_some() && seen.into_iter().flatten().all(|t| states.contains(&t.state))
    };
    // Who sleeps wants no CPU, whatever others of its group do with theirs.
    let is_ready = before.into_iter().chain(after).any(|thread| thread.state == 'R');
    let denied = is_ready && first.throttled_count < second.throttled_count;
    let starved = denied && cpu.is_none_or(|cpu| cpu < STARVED_CPU_PERCENT);
    let cause = if second.is_dumping_core {
        HangCause::DumpingCore
    } else if first.is_frozen || second.is_frozen {
        HangCause::Frozen
    } else if was(&['T', 't']) {
        HangCause::Stopped
    } else if after.is_none() || was(&['Z', 'X']) {
        HangCause::Unknown
    } else if starved {
        HangCause::Throttled
    } else if was(&['D']) && cpu.is_none_or(|cpu| cpu < BUSY_CPU_PERCENT) {
        HangCause::Unkillable
    } else if was(&['R']) || cpu.is_some_and(|cpu| cpu >= BUSY_CPU_PERCENT) {
        HangCause::Busy
    } else {
        HangCause::Blocked
    };
    (cause, cpu)
}

/// How much of a time a thread has run, in percent.
fn cpu_percent(before: &ThreadSample, after: &ThreadSample, interval: Duration) -> Option<u32> {
    let ran = after.cpu_time.saturating_sub(before.cpu_time).as_nanos();
    let percent = (ran * 100).checked_div(interval.as_nanos())?;
    Some(u32::try_from(percent).unwrap_or(u32::MAX).min(100))
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: MonotonicTime = MonotonicTime::from_nanos(1_000_000_000);

    fn sample(state: char) -> ProcessSample {
        let thread = ThreadSample { thread_id: 7, state, ..ThreadSample::default() };
        let at = AT;
        let (dumping, frozen, throttled, period) = (false, false, None, None);
        let (thread, others) = (Some(thread), Vec::new());
        ProcessSample {
            taken_at: at,
            is_dumping_core: dumping,
            is_frozen: frozen,
            throttled_count: throttled,
            cpu_period: period,
            thread,
            other_threads: others,
        }
    }

    /// A second look, at which the thread has run for so many milliseconds of twenty.
    fn later_sample(state: char, ran: u64) -> ProcessSample {
        let mut sample = ProcessSample {
            taken_at: AT.saturating_add(Duration::from_millis(20)),
            ..sample(state)
        };
        sample.thread.as_mut().unwrap().cpu_time = Duration::from_millis(ran);
        sample
    }

    fn cause_of(first: ProcessSample, second: ProcessSample) -> (HangCause, Option<u32>) {
        let diagnosis = diagnose(&first, &second);
        (diagnosis.cause, diagnosis.cpu_percent)
    }

    #[test]
    fn running_thread_is_busy_sleeping_is_blocked() {
        assert_eq!(cause_of(sample('R'), later_sample('R', 20)), (HangCause::Busy, Some(100)));
        // A loaded machine may give it nothing at all.
        assert_eq!(cause_of(sample('R'), later_sample('R', 0)), (HangCause::Busy, Some(0)));
        assert_eq!(cause_of(sample('S'), later_sample('R', 10)), (HangCause::Busy, Some(50)));
        assert_eq!(cause_of(sample('S'), later_sample('S', 5)), (HangCause::Busy, Some(25)));
        assert_eq!(cause_of(sample('S'), later_sample('S', 0)), (HangCause::Blocked, Some(0)));
        assert_eq!(cause_of(sample('R'), later_sample('S', 1)), (HangCause::Blocked, Some(5)));
    }

    #[test]
    fn stop_in_only_one_sample_is_blocked() {
        assert_eq!(cause_of(sample('T'), later_sample('T', 0)).0, HangCause::Stopped);
        assert_eq!(cause_of(sample('T'), later_sample('t', 0)).0, HangCause::Stopped);
        assert_eq!(cause_of(sample('t'), later_sample('S', 0)).0, HangCause::Blocked);
    }

    #[test]
    fn uninterruptible_in_both_samples_is_unkillable() {
        assert_eq!(cause_of(sample('D'), later_sample('D', 0)).0, HangCause::Unkillable);
        assert_eq!(cause_of(sample('S'), later_sample('D', 0)).0, HangCause::Blocked);
        assert_eq!(cause_of(sample('D'), later_sample('D', 15)).0, HangCause::Busy);
    }

    #[test]
    fn frozen_cgroup_overrides_thread_state() {
        for state in ['S', 'D', 'T', 'R'] {
            let frozen = ProcessSample { is_frozen: true, ..later_sample(state, 0) };
            assert_eq!(cause_of(sample(state), frozen).0, HangCause::Frozen);
            let thawed = ProcessSample { is_frozen: true, ..sample(state) };
            assert_eq!(cause_of(thawed, later_sample(state, 0)).0, HangCause::Frozen);
        }
    }

    #[test]
    fn throttled_cgroup_with_little_cpu_is_throttled() {
        let first = |times| ProcessSample { throttled_count: Some(times), ..sample('R') };
        let second =
            |times, ran| ProcessSample { throttled_count: Some(times), ..later_sample('R', ran) };
        assert_eq!(cause_of(first(3), second(4, 0)).0, HangCause::Throttled);
        assert_eq!(cause_of(first(3), second(3, 0)).0, HangCause::Busy);
        assert_eq!(cause_of(first(3), second(4, 15)).0, HangCause::Busy);
        let second = ProcessSample { throttled_count: Some(4), ..later_sample('S', 0) };
        assert_eq!(cause_of(first(3), second.clone()).0, HangCause::Throttled);
        let asleep = ProcessSample { throttled_count: Some(3), ..sample('S') };
        assert_eq!(
            cause_of(asleep, second).0,
            HangCause::Blocked,
            "others of its group were denied"
        );
    }

    #[test]
    fn samples_with_cpu_quota_span_a_whole_period() {
        assert_eq!(sample('R').next_sample_at(), AT.saturating_add(SAMPLE_INTERVAL));
        let period = Some(Duration::from_secs(1));
        let bounded = ProcessSample { cpu_period: period, ..sample('R') };
        assert!(bounded.next_sample_at() > AT.saturating_add(Duration::from_secs(1)));
    }

    #[test]
    fn core_dump_overrides_every_other_cause() {
        let dumping =
            ProcessSample { is_dumping_core: true, is_frozen: true, ..later_sample('D', 0) };
        assert_eq!(cause_of(sample('D'), dumping).0, HangCause::DumpingCore);
    }

    #[test]
    fn other_threads_are_reported_not_classified() {
        let thread = |number, ran| ThreadSample {
            thread_id: number,
            state: 'R',
            cpu_time: Duration::from_millis(ran),
            ..ThreadSample::default()
        };
        let first =
            ProcessSample { other_threads: vec![thread(8, 100), thread(9, 0)], ..sample('S') };
        let second = ProcessSample {
            other_threads: vec![thread(8, 110), thread(10, 20)],
            ..later_sample('S', 0)
        };
        let diagnosis = diagnose(&first, &second);
        assert_eq!(diagnosis.cause, HangCause::Blocked);
        let reported = [(thread(8, 110), Some(50)), (thread(10, 20), None)];
        assert_eq!(diagnosis.other_threads, reported);
    }

    #[test]
    fn missing_thread_is_unknown() {
        let unreadable = || ProcessSample { thread: None, ..sample('R') };
        assert_eq!(cause_of(unreadable(), unreadable()), (HangCause::Unknown, None));
        assert_eq!(cause_of(sample('Z'), later_sample('Z', 0)).0, HangCause::Unknown);
        assert_eq!(cause_of(unreadable(), later_sample('S', 0)), (HangCause::Blocked, None));
        let mut another = later_sample('S', 20);
        another.thread.as_mut().unwrap().thread_id = 8;
        assert_eq!(cause_of(sample('R'), another), (HangCause::Blocked, None));
    }
}
