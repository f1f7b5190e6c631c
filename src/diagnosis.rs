//! Classifies why an overdue process makes no progress, from two /proc samples. Pure: `os::procfs`
//! takes the samples, the arbiter acts.

use std::time::Duration;

use crate::time::MonotonicTime;

/// A thread that runs for less of the time between two samples is not busy.
const BUSY_CPU_PERCENT: u32 = 25;
/// A ready thread that runs for less of that time while its group is throttled is short of CPU.
const STARVED_CPU_PERCENT: u32 = 50;

/// The time between the two samples. It is longer by the CPU period in a group with a CPU quota,
/// whose throttling the kernel counts once a period.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);

/// The state of a process at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProcessSample {
    /// When the sample was taken.
    pub(crate) taken_at: MonotonicTime,
    /// Whether the kernel is writing its core dump.
    pub(crate) is_dumping_core: bool,
    /// Whether its control group is frozen.
    pub(crate) is_frozen: bool,
    /// How often its control groups were throttled; `None` if the kernel does not count it.
    pub(crate) throttled_count: Option<u64>,
    /// The longest CPU period of its control groups with a CPU quota; `None` if none has one.
    pub(crate) cpu_period: Option<Duration>,
    /// How much CPU time all of its threads have used, also those that have ended; `None` if that could
    /// not be read.
    pub(crate) cpu_time: Option<Duration>,
    /// The overdue thread; `None` if it could not be read.
    pub(crate) thread: Option<ThreadSample>,
    /// Its other threads, or some of them if there are many.
    pub(crate) other_threads: Vec<ThreadSample>,
}

/// The state of a thread at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ThreadSample {
    /// Its number in the kernel.
    pub(crate) thread_id: u64,
    /// `R`, `S`, `D`, `T`, `t`, `Z` and others, see proc_pid_stat(5).
    pub(crate) state: char,
    /// How much CPU time it has used since its start.
    pub(crate) cpu_time: Duration,
    /// The system call in which it waits, by name or number.
    pub(crate) syscall: Option<String>,
    /// The kernel function in which it sleeps.
    pub(crate) wchan: Option<String>,
    /// Its kernel stack, the innermost function first.
    pub(crate) stack: Vec<String>,
}

/// Why a process makes no progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HangCause {
    /// It computes.
    Busy,
    /// It sleeps in a system call.
    Blocked,
    /// A signal or a debugger has stopped it.
    Stopped,
    /// Its control group is frozen.
    Frozen,
    /// It, or a thread for which it may wait, is ready to run, and its control group gets too little CPU.
    Throttled,
    /// It sleeps uninterruptibly in the kernel, where no signal reaches it.
    Unkillable,
    /// It has crashed, and the kernel is writing its core dump.
    DumpingCore,
    /// Its state could not be read.
    Unknown,
}

impl HangCause {
    /// Returns the value for the log.
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

/// The result of two samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Diagnosis {
    pub(crate) cause: HangCause,
    /// How much of the time between the samples the thread ran, in percent.
    pub(crate) cpu_percent: Option<u32>,
    /// The thread in the second sample.
    pub(crate) thread: Option<ThreadSample>,
    /// The other threads in the second sample, each with its CPU percentage.
    pub(crate) other_threads: Vec<(ThreadSample, Option<u32>)>,
}

impl ProcessSample {
    /// Returns the sample of a process that could not be read.
    pub(crate) fn unreadable(taken_at: MonotonicTime) -> Self {
        Self {
            taken_at,
            is_dumping_core: false,
            is_frozen: false,
            throttled_count: None,
            cpu_period: None,
            cpu_time: None,
            thread: None,
            other_threads: Vec::new(),
        }
    }

    /// Returns when to take the second sample, if this is the first.
    pub(crate) fn next_sample_at(&self) -> MonotonicTime {
        self.taken_at + SAMPLE_INTERVAL + self.cpu_period.unwrap_or_default()
    }

    fn other(&self, thread_id: u64) -> Option<&ThreadSample> {
        self.other_threads.iter().find(|thread| thread.thread_id == thread_id)
    }
}

/// Classifies two samples, and reports all threads of the second.
pub(crate) fn diagnose(first: &ProcessSample, second: &ProcessSample) -> Diagnosis {
    let (cause, cpu) = classify(first, second);
    let between = second.taken_at.duration_since(first.taken_at);
    let others = second.other_threads.iter().map(|after| {
        let before = first.other(after.thread_id);
        (
            after.clone(),
            before.and_then(|before| cpu_percent(before.cpu_time, after.cpu_time, between)),
        )
    });
    Diagnosis {
        cause,
        cpu_percent: cpu,
        thread: second.thread.clone(),
        other_threads: others.collect(),
    }
}

/// Returns the cause by two samples, and how much of the time between them the thread ran, in
/// percent.
pub(crate) fn classify(first: &ProcessSample, second: &ProcessSample) -> (HangCause, Option<u32>) {
    let seen = overdue_thread(first, second);
    let [before, after] = seen;
    let between = second.taken_at.duration_since(first.taken_at);
    let cpu = before
        .zip(after)
        .and_then(|(before, after)| cpu_percent(before.cpu_time, after.cpu_time, between));
    let was = |states| was_in(seen, states);
    // A sleeping thread needs no CPU, even if other processes of its group are throttled. But it may
    // wait for a thread that does.
    let is_ready = before.into_iter().chain(after).any(|thread| thread.state == 'R');
    let lacks_cpu = if is_ready {
        cpu.is_none_or(|cpu| cpu < STARVED_CPU_PERCENT)
    } else {
        was(&['S']) && others_lack_cpu(first, second, between)
    };
    let starved = lacks_cpu && first.throttled_count < second.throttled_count;
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

/// Returns whether the overdue thread slept in both samples, or in the second if the first is about
/// another thread.
pub(crate) fn is_asleep(first: &ProcessSample, second: &ProcessSample) -> bool {
    was_in(overdue_thread(first, second), &['S'])
}

/// Returns the overdue thread in each sample. If another thread was overdue in the first, only the second
/// one is about this thread.
fn overdue_thread<'s>(
    first: &'s ProcessSample,
    second: &'s ProcessSample,
) -> [Option<&'s ThreadSample>; 2] {
    let (before, after) = (first.thread.as_ref(), second.thread.as_ref());
    let is_same = |before: &&ThreadSample| after.is_some_and(|t| t.thread_id == before.thread_id);
    [before.filter(is_same), after]
}

/// Returns whether the thread was in one of these states in all samples in which it was `seen`.
fn was_in(seen: [Option<&ThreadSample>; 2], states: &[char]) -> bool {
    seen[1].is_some() && seen.into_iter().flatten().all(|thread| states.contains(&thread.state))
}

/// Returns whether another thread was ready in both samples, and the process has run little.
fn others_lack_cpu(first: &ProcessSample, second: &ProcessSample, between: Duration) -> bool {
    let was_ready = |number| first.other(number).is_some_and(|before| before.state == 'R');
    let mut ready = second.other_threads.iter().filter(|after| after.state == 'R');
    let times = first.cpu_time.zip(second.cpu_time);
    let cpu = times.and_then(|(before, after)| cpu_percent(before, after, between));
    ready.any(|after| was_ready(after.thread_id))
        && cpu.is_some_and(|cpu| cpu < STARVED_CPU_PERCENT)
}

/// Returns how much of an interval a thread or a process has run, by its CPU times, in percent; at most
/// 100.
fn cpu_percent(before: Duration, after: Duration, interval: Duration) -> Option<u32> {
    let ran = after.saturating_sub(before).as_nanos();
    let percent = (ran * 100).checked_div(interval.as_nanos())?;
    Some(u32::try_from(percent).unwrap_or(u32::MAX).min(100))
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: MonotonicTime = MonotonicTime::from_nanos(1_000_000_000);

    fn sample(state: char) -> ProcessSample {
        let thread = ThreadSample { thread_id: 7, state, ..ThreadSample::default() };
        ProcessSample {
            taken_at: AT,
            is_dumping_core: false,
            is_frozen: false,
            throttled_count: None,
            cpu_period: None,
            cpu_time: None,
            thread: Some(thread),
            other_threads: Vec::new(),
        }
    }

    /// A second sample, 20 ms after the first, in which the thread has run for `ran` milliseconds.
    fn later_sample(state: char, ran: u64) -> ProcessSample {
        let mut sample =
            ProcessSample { taken_at: AT + Duration::from_millis(20), ..sample(state) };
        sample.thread.as_mut().unwrap().cpu_time = Duration::from_millis(ran);
        sample
    }

    fn cause_of(first: ProcessSample, second: ProcessSample) -> (HangCause, Option<u32>) {
        let diagnosis = diagnose(&first, &second);
        (diagnosis.cause, diagnosis.cpu_percent)
    }

    #[test]
    fn cause_of_running_is_busy_of_sleeping_is_blocked() {
        assert_eq!(cause_of(sample('R'), later_sample('R', 20)), (HangCause::Busy, Some(100)));
        // A loaded machine may give it no CPU at all.
        assert_eq!(cause_of(sample('R'), later_sample('R', 0)), (HangCause::Busy, Some(0)));
        assert_eq!(cause_of(sample('S'), later_sample('R', 10)), (HangCause::Busy, Some(50)));
        assert_eq!(cause_of(sample('S'), later_sample('S', 5)), (HangCause::Busy, Some(25)));
        assert_eq!(cause_of(sample('S'), later_sample('S', 0)), (HangCause::Blocked, Some(0)));
        assert_eq!(cause_of(sample('R'), later_sample('S', 1)), (HangCause::Blocked, Some(5)));
    }

    #[test]
    fn cause_of_stop_in_one_sample_is_blocked() {
        assert_eq!(cause_of(sample('T'), later_sample('T', 0)).0, HangCause::Stopped);
        assert_eq!(cause_of(sample('T'), later_sample('t', 0)).0, HangCause::Stopped);
        assert_eq!(cause_of(sample('t'), later_sample('S', 0)).0, HangCause::Blocked);
    }

    #[test]
    fn cause_of_uninterruptible_sleep_is_unkillable() {
        assert_eq!(cause_of(sample('D'), later_sample('D', 0)).0, HangCause::Unkillable);
        assert_eq!(cause_of(sample('S'), later_sample('D', 0)).0, HangCause::Blocked);
        assert_eq!(cause_of(sample('D'), later_sample('D', 15)).0, HangCause::Busy);
    }

    #[test]
    fn cause_of_frozen_cgroup_overrides_thread_state() {
        for state in ['S', 'D', 'T', 'R'] {
            let frozen = ProcessSample { is_frozen: true, ..later_sample(state, 0) };
            assert_eq!(cause_of(sample(state), frozen).0, HangCause::Frozen);
            let thawed = ProcessSample { is_frozen: true, ..sample(state) };
            assert_eq!(cause_of(thawed, later_sample(state, 0)).0, HangCause::Frozen);
        }
    }

    #[test]
    fn cause_of_throttled_cgroup_with_little_cpu_is_throttled() {
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
            "other processes of its group were throttled"
        );
    }

    #[test]
    fn cause_of_sleep_beside_threads_that_lack_cpu_is_throttled() {
        let other = |state| ThreadSample { thread_id: 8, state, ..ThreadSample::default() };
        let cause = |state, others: [char; 2], throttled, ran: u64| {
            let [before, after] = others.map(|state| vec![other(state)]);
            let first = ProcessSample {
                throttled_count: Some(3),
                cpu_time: Some(Duration::from_millis(100)),
                other_threads: before,
                ..sample(state)
            };
            let second = ProcessSample {
                throttled_count: Some(throttled),
                cpu_time: Some(Duration::from_millis(100 + ran)),
                other_threads: after,
                ..later_sample(state, 0)
            };
            cause_of(first, second).0
        };
        assert_eq!(cause('S', ['R', 'R'], 4, 9), HangCause::Throttled);
        assert_eq!(cause('S', ['R', 'R'], 3, 9), HangCause::Blocked);
        assert_eq!(cause('S', ['R', 'R'], 4, 10), HangCause::Blocked);
        assert_eq!(cause('S', ['S', 'R'], 4, 9), HangCause::Blocked);
        assert_eq!(cause('D', ['R', 'R'], 4, 9), HangCause::Unkillable);
    }

    #[test]
    fn thread_sleeps_if_no_sample_says_otherwise() {
        assert!(is_asleep(&sample('S'), &later_sample('S', 0)));
        assert!(!is_asleep(&sample('R'), &later_sample('S', 0)));
        assert!(!is_asleep(&sample('S'), &later_sample('R', 0)));
        let mut another = sample('R');
        another.thread.as_mut().unwrap().thread_id = 8;
        assert!(is_asleep(&another, &later_sample('S', 0)));
        let unreadable = ProcessSample { thread: None, ..sample('S') };
        assert!(!is_asleep(&sample('S'), &unreadable));
    }

    #[test]
    fn sample_with_cpu_quota_spans_a_whole_period() {
        assert_eq!(sample('R').next_sample_at(), AT + SAMPLE_INTERVAL);
        let period = Some(Duration::from_secs(1));
        let bounded = ProcessSample { cpu_period: period, ..sample('R') };
        assert!(bounded.next_sample_at() > AT + Duration::from_secs(1));
    }

    #[test]
    fn cause_of_core_dump_overrides_every_other() {
        let dumping =
            ProcessSample { is_dumping_core: true, is_frozen: true, ..later_sample('D', 0) };
        assert_eq!(cause_of(sample('D'), dumping).0, HangCause::DumpingCore);
    }

    #[test]
    fn diagnosis_reports_other_threads_without_cause() {
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
    fn cause_of_missing_thread_is_unknown() {
        let unreadable = || ProcessSample { thread: None, ..sample('R') };
        assert_eq!(cause_of(unreadable(), unreadable()), (HangCause::Unknown, None));
        assert_eq!(cause_of(sample('Z'), later_sample('Z', 0)).0, HangCause::Unknown);
        assert_eq!(cause_of(unreadable(), later_sample('S', 0)), (HangCause::Blocked, None));
        let mut another = later_sample('S', 20);
        another.thread.as_mut().unwrap().thread_id = 8;
        assert_eq!(cause_of(sample('R'), another), (HangCause::Blocked, None));
    }
}
