//! What ails a process that is overdue, judged by two looks at it from outside. Pure: `os::inspect`
//! looks, the arbiter acts.

use std::time::Duration;

use crate::time::MonotonicTime;

/// Of the time between two looks: who runs for less of it is not busy.
const BUSY_SHARE: u32 = 25;
/// Who gets less of it, although its group is being throttled, is short of CPU.
const STARVED_SHARE: u32 = 50;

/// From the first look to the second; longer by a period in a group whose CPU is bounded, since it
/// is counted once a period whether it was denied any.
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// A process at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    /// When.
    pub(crate) at: MonotonicTime,
    /// Its core is being dumped.
    pub(crate) dumping: bool,
    /// Its control group is frozen.
    pub(crate) frozen: bool,
    /// How often its control groups have been denied the CPU; `None` if that is not counted.
    pub(crate) throttled: Option<u64>,
    /// The longest period for which a group of its is given a share of CPU; `None` if all may have
    /// as much as they like.
    pub(crate) period: Option<Duration>,
    /// The thread that is overdue; `None` if it could not be seen.
    pub(crate) thread: Option<Thread>,
    /// Its other threads, or some of many.
    pub(crate) others: Vec<Thread>,
}

/// A thread at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Thread {
    /// Its number in the kernel.
    pub(crate) number: u64,
    /// `R`, `S`, `D`, `T`, `t`, `Z` and so on.
    pub(crate) state: char,
    /// For how long it has run since its start.
    pub(crate) ran: Duration,
    /// The system call that it is in, by name or number.
    pub(crate) call: Option<String>,
    /// The function of the kernel in which it sleeps.
    pub(crate) channel: Option<String>,
    /// The functions of the kernel that it is in, the innermost first.
    pub(crate) stack: Vec<String>,
}

/// Why a process does not get on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
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

impl Verdict {
    /// The words for it in the log.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Verdict::Busy => "busy",
            Verdict::Blocked => "blocked",
            Verdict::Stopped => "stopped",
            Verdict::Frozen => "frozen",
            Verdict::Throttled => "throttled",
            Verdict::Unkillable => "unkillable",
            Verdict::DumpingCore => "dumping core",
            Verdict::Unknown => "unknown",
        }
    }
}

/// What two looks have shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Diagnosis {
    pub(crate) verdict: Verdict,
    /// How much of the time between the looks the thread ran, in percent.
    pub(crate) cpu: Option<u32>,
    /// The thread, as it was seen last.
    pub(crate) thread: Option<Thread>,
    /// The other threads, with the same share of each.
    pub(crate) others: Vec<(Thread, Option<u32>)>,
}

impl Look {
    /// When the second look is due, if this is the first.
    pub(crate) fn again_at(&self) -> MonotonicTime {
        self.at.saturating_add(BETWEEN_LOOKS + self.period.unwrap_or_default())
    }
}

/// Judges by a first and a second look, and tells what there was to be seen.
pub(crate) fn diagnose(first: &Look, second: &Look) -> Diagnosis {
    let (verdict, cpu) = judge(first, second);
    let between = second.at.duration_since(first.at);
    let others = second.others.iter().map(|after| {
        let before = first.others.iter().find(|before| before.number == after.number);
        (after.clone(), before.and_then(|before| share(before, after, between)))
    });
    Diagnosis { verdict, cpu, thread: second.thread.clone(), others: others.collect() }
}

/// The verdict by a first and a second look, and how much of the time between them the thread ran, in
/// percent.
pub(crate) fn judge(first: &Look, second: &Look) -> (Verdict, Option<u32>) {
    let (before, after) = (first.thread.as_ref(), second.thread.as_ref());
    // Another thread may have been the one that was overdue: then there is one look at this one.
    let before = before.filter(|before| after.is_some_and(|after| before.number == after.number));
    let between = second.at.duration_since(first.at);
    let cpu = before.zip(after).and_then(|(before, after)| share(before, after, between));
    let was = |states: &[char]| {
        let seen = [before, after];
        after.is_some() && seen.into_iter().flatten().all(|t| states.contains(&t.state))
    };
    // Who sleeps wants no CPU, whatever others of its group do with theirs.
    let is_ready = before.into_iter().chain(after).any(|thread| thread.state == 'R');
    let denied = is_ready && first.throttled < second.throttled;
    let starved = denied && cpu.is_none_or(|cpu| cpu < STARVED_SHARE);
    let verdict = if second.dumping {
        Verdict::DumpingCore
    } else if first.frozen || second.frozen {
        Verdict::Frozen
    } else if was(&['T', 't']) {
        Verdict::Stopped
    } else if after.is_none() || was(&['Z', 'X']) {
        Verdict::Unknown
    } else if starved {
        Verdict::Throttled
    } else if was(&['D']) && cpu.is_none_or(|cpu| cpu < BUSY_SHARE) {
        Verdict::Unkillable
    } else if was(&['R']) || cpu.is_some_and(|cpu| cpu >= BUSY_SHARE) {
        Verdict::Busy
    } else {
        Verdict::Blocked
    };
    (verdict, cpu)
}

/// How much of a time a thread has run, in percent.
fn share(before: &Thread, after: &Thread, time: Duration) -> Option<u32> {
    let ran = after.ran.saturating_sub(before.ran).as_nanos();
    let share = (ran * 100).checked_div(time.as_nanos())?;
    Some(u32::try_from(share).unwrap_or(u32::MAX).min(100))
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: MonotonicTime = MonotonicTime::from_nanos(1_000_000_000);

    fn look(state: char) -> Look {
        let thread = Thread { number: 7, state, ..Thread::default() };
        let at = AT;
        let (dumping, frozen, throttled, period) = (false, false, None, None);
        let (thread, others) = (Some(thread), Vec::new());
        Look { at, dumping, frozen, throttled, period, thread, others }
    }

    /// A second look, at which the thread has run for so many milliseconds of twenty.
    fn later(state: char, ran: u64) -> Look {
        let mut look = Look { at: AT.saturating_add(Duration::from_millis(20)), ..look(state) };
        look.thread.as_mut().unwrap().ran = Duration::from_millis(ran);
        look
    }

    fn verdict(first: Look, second: Look) -> (Verdict, Option<u32>) {
        let diagnosis = diagnose(&first, &second);
        (diagnosis.verdict, diagnosis.cpu)
    }

    #[test]
    fn who_runs_is_busy_and_who_sleeps_is_blocked() {
        assert_eq!(verdict(look('R'), later('R', 20)), (Verdict::Busy, Some(100)));
        // A loaded machine may give it nothing at all.
        assert_eq!(verdict(look('R'), later('R', 0)), (Verdict::Busy, Some(0)));
        assert_eq!(verdict(look('S'), later('R', 10)), (Verdict::Busy, Some(50)));
        assert_eq!(verdict(look('S'), later('S', 5)), (Verdict::Busy, Some(25)));
        assert_eq!(verdict(look('S'), later('S', 0)), (Verdict::Blocked, Some(0)));
        assert_eq!(verdict(look('R'), later('S', 1)), (Verdict::Blocked, Some(5)));
    }

    #[test]
    fn a_stop_counts_only_if_it_lasts() {
        assert_eq!(verdict(look('T'), later('T', 0)).0, Verdict::Stopped);
        assert_eq!(verdict(look('T'), later('t', 0)).0, Verdict::Stopped);
        assert_eq!(verdict(look('t'), later('S', 0)).0, Verdict::Blocked);
    }

    #[test]
    fn who_waits_for_a_disk_all_the_while_is_beyond_signals() {
        assert_eq!(verdict(look('D'), later('D', 0)).0, Verdict::Unkillable);
        assert_eq!(verdict(look('S'), later('D', 0)).0, Verdict::Blocked);
        assert_eq!(verdict(look('D'), later('D', 15)).0, Verdict::Busy);
    }

    #[test]
    fn a_frozen_group_explains_every_state() {
        for state in ['S', 'D', 'T', 'R'] {
            let frozen = Look { frozen: true, ..later(state, 0) };
            assert_eq!(verdict(look(state), frozen).0, Verdict::Frozen);
            let thawed = Look { frozen: true, ..look(state) };
            assert_eq!(verdict(thawed, later(state, 0)).0, Verdict::Frozen);
        }
    }

    #[test]
    fn a_throttled_group_explains_a_thread_that_gets_little() {
        let first = |times| Look { throttled: Some(times), ..look('R') };
        let second = |times, ran| Look { throttled: Some(times), ..later('R', ran) };
        assert_eq!(verdict(first(3), second(4, 0)).0, Verdict::Throttled);
        assert_eq!(verdict(first(3), second(3, 0)).0, Verdict::Busy);
        assert_eq!(verdict(first(3), second(4, 15)).0, Verdict::Busy);
        let second = Look { throttled: Some(4), ..later('S', 0) };
        assert_eq!(verdict(first(3), second.clone()).0, Verdict::Throttled);
        let asleep = Look { throttled: Some(3), ..look('S') };
        assert_eq!(verdict(asleep, second).0, Verdict::Blocked, "others of its group were denied");
    }

    #[test]
    fn between_two_looks_at_a_bounded_group_lies_a_whole_period() {
        assert_eq!(look('R').again_at(), AT.saturating_add(BETWEEN_LOOKS));
        let period = Some(Duration::from_secs(1));
        let bounded = Look { period, ..look('R') };
        assert!(bounded.again_at() > AT.saturating_add(Duration::from_secs(1)));
    }

    #[test]
    fn a_core_that_is_dumped_explains_everything() {
        let dumping = Look { dumping: true, frozen: true, ..later('D', 0) };
        assert_eq!(verdict(look('D'), dumping).0, Verdict::DumpingCore);
    }

    #[test]
    fn the_other_threads_are_told_of_and_not_judged() {
        let thread = |number, ran| Thread {
            number,
            state: 'R',
            ran: Duration::from_millis(ran),
            ..Thread::default()
        };
        let first = Look { others: vec![thread(8, 100), thread(9, 0)], ..look('S') };
        let second = Look { others: vec![thread(8, 110), thread(10, 20)], ..later('S', 0) };
        let diagnosis = diagnose(&first, &second);
        assert_eq!(diagnosis.verdict, Verdict::Blocked);
        let told = [(thread(8, 110), Some(50)), (thread(10, 20), None)];
        assert_eq!(diagnosis.others, told);
    }

    #[test]
    fn what_cannot_be_seen_is_not_judged() {
        let blind = || Look { thread: None, ..look('R') };
        assert_eq!(verdict(blind(), blind()), (Verdict::Unknown, None));
        assert_eq!(verdict(look('Z'), later('Z', 0)).0, Verdict::Unknown);
        assert_eq!(verdict(blind(), later('S', 0)), (Verdict::Blocked, None));
        let mut another = later('S', 20);
        another.thread.as_mut().unwrap().number = 8;
        assert_eq!(verdict(look('R'), another), (Verdict::Blocked, None));
    }
}
