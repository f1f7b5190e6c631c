//! Workers that are overdue are looked at, twice and from outside, before anybody judges them. It
//! never waits: it says when it wants to look again.

use std::collections::HashMap;
use std::time::Duration;

use super::roster::WorkerId;
use crate::diagnosis::{Diagnosis, ProcessSample, HangCause, diagnose, classify};
use crate::os::cgroup::Cgroups;
use crate::os::procfs;
use crate::os::process::Pid;
use crate::time::MonotonicTime;

/// A first look that is older says nothing any more.
const STALE: Duration = Duration::from_secs(3);

/// The examinations.
#[derive(Default)]
pub(super) struct Examiner {
    begun: HashMap<WorkerId, ProcessSample>,
    diagnoses: HashMap<WorkerId, Diagnosis>,
    /// When it was last said that a worker cannot run.
    excused: HashMap<WorkerId, MonotonicTime>,
    /// Who is short of CPU, and has to get by on little.
    starving: HashMap<WorkerId, Hunger>,
}

/// A worker that is overdue.
#[derive(Clone, Copy)]
pub(super) struct Case {
    pub(super) id: WorkerId,
    /// The process, and the thread of it, that do not get on.
    pub(super) pid: Pid,
    pub(super) thread: u64,
    /// Since when: the beginning of its work, or its last beat.
    pub(super) since: MonotonicTime,
    /// How long it may take.
    pub(super) limit: Duration,
}

/// A thread that was seen to get too little CPU.
struct Hunger {
    /// What it is at.
    since: MonotonicTime,
    thread: u64,
    /// For how long it had run when that was first seen.
    ran: Duration,
    /// How it was when it was last excused.
    excused: ProcessSample,
}

impl Hunger {
    fn is_of(&self, case: Case, thread: u64) -> bool {
        (self.since, self.thread) == (case.since, thread)
    }
}

/// What an examination has led to.
pub(super) enum Finding {
    /// It wants to look again then.
    LookAgain(MonotonicTime),
    /// This.
    Verdict(HangCause),
}

impl Examiner {
    /// Looks at a worker and at the thread that is overdue.
    pub(super) fn examine(&mut self, case: Case, cgroups: &Cgroups) -> Finding {
        let id = case.id;
        let look = procfs::sample(case.pid, case.thread, cgroups);
        let first = self.begun.remove(&id).filter(|first| look.taken_at.duration_since(first.taken_at) < STALE);
        match first {
            Some(first) if first.next_sample_at() <= look.taken_at => {
                let diagnosis = diagnose(&first, &look);
                let verdict = self.allow_for_hunger(case, diagnosis.cause, look);
                self.diagnoses.insert(id, Diagnosis { cause: verdict, ..diagnosis });
                Finding::Verdict(verdict)
            }
            first => {
                let first = first.unwrap_or(look);
                let again = first.next_sample_at();
                self.begun.insert(id, first);
                Finding::LookAgain(again)
            }
        }
    }

    /// What a verdict becomes of a thread that gets too little CPU, or has got too little since it was
    /// last excused. Once it has run for as long as it may take, that is no excuse: an endless loop is
    /// short of any CPU.
    fn allow_for_hunger(&mut self, case: Case, verdict: HangCause, look: ProcessSample) -> HangCause {
        let Some(thread) = &look.thread else { return verdict };
        let (number, ran) = (thread.thread_id, thread.cpu_time);
        let known = self.starving.get(&case.id).filter(|hunger| hunger.is_of(case, number));
        let first = known.map_or(ran, |hunger| hunger.ran);
        let has_had_enough = !case.limit.is_zero() && ran.saturating_sub(first) >= case.limit;
        let was_short =
            || known.is_some_and(|hunger| classify(&hunger.excused, &look).0 == HangCause::Throttled);
        let is_short = match verdict {
            HangCause::Throttled => true,
            HangCause::Busy => was_short(),
            HangCause::Blocked
            | HangCause::Stopped
            | HangCause::Frozen
            | HangCause::Unkillable
            | HangCause::DumpingCore
            | HangCause::Unknown => return verdict,
        };
        if !is_short || has_had_enough {
            return HangCause::Busy;
        }
        let hunger = Hunger { since: case.since, thread: number, ran: first, excused: look };
        self.starving.insert(case.id, hunger);
        HangCause::Throttled
    }

    /// What was found last.
    pub(super) fn diagnosis(&self, id: WorkerId) -> Option<&Diagnosis> {
        self.diagnoses.get(&id)
    }

    /// A worker cannot run. Returns whether that is news: it has beaten since it was last said.
    pub(super) fn excuse(&mut self, id: WorkerId, beat: MonotonicTime, now: MonotonicTime) -> bool {
        self.excused.insert(id, now).is_none_or(|said| said < beat)
    }

    /// A worker has ended.
    pub(super) fn forget(&mut self, id: WorkerId) {
        self.begun.remove(&id);
        self.diagnoses.remove(&id);
        self.excused.remove(&id);
        self.starving.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnosis::ThreadSample;

    const LIMIT: Duration = Duration::from_secs(1);

    /// A look at a thread that has had so much of so much time, and so many periods without CPU.
    fn look(secs: u64, ran: Duration, throttled: u64) -> ProcessSample {
        let at = MonotonicTime::from_nanos(1_000_000_000).saturating_add(Duration::from_secs(secs));
        let thread = ThreadSample { thread_id: 7, state: 'R', cpu_time: ran, ..ThreadSample::default() };
        let throttled = Some(throttled);
        let (dumping, frozen, period) = (false, false, Some(Duration::from_millis(100)));
        ProcessSample { taken_at: at, is_dumping_core: dumping, is_frozen: frozen, throttled_count: throttled, cpu_period: period, thread: Some(thread), other_threads: Vec::new() }
    }

    fn case(since: u64) -> Case {
        let (id, pid, since) = (WorkerId(1), Pid::this(), MonotonicTime::from_nanos(since));
        Case { id, pid, thread: 7, since, limit: LIMIT }
    }

    #[test]
    fn who_has_run_for_its_time_is_busy_however_little_that_was_a_second() {
        let mut examiner = Examiner::default();
        let mut judge = |secs, ran| {
            let look = look(secs, Duration::from_millis(ran), secs);
            examiner.allow_for_hunger(case(1), HangCause::Throttled, look)
        };
        assert_eq!(judge(1, 100), HangCause::Throttled, "the first time it may be news");
        assert_eq!(judge(2, 500), HangCause::Throttled);
        assert_eq!(judge(3, 1099), HangCause::Throttled);
        assert_eq!(judge(4, 1100), HangCause::Busy);
    }

    #[test]
    fn other_work_begins_with_nothing() {
        let mut examiner = Examiner::default();
        let mut judge = |since, ran| {
            let look = look(1, Duration::from_millis(ran), 1);
            examiner.allow_for_hunger(case(since), HangCause::Throttled, look)
        };
        assert_eq!(judge(1, 100), HangCause::Throttled);
        assert_eq!(judge(2, 1200), HangCause::Throttled);
        assert_eq!(judge(2, 2100), HangCause::Throttled);
        assert_eq!(judge(2, 2200), HangCause::Busy);
    }

    #[test]
    fn who_was_short_until_just_now_is_excused_and_who_never_was_is_not() {
        let mut examiner = Examiner::default();
        let look = |secs, ran, throttled| look(secs, Duration::from_millis(ran), throttled);
        let mut judge = |verdict, look| examiner.allow_for_hunger(case(1), verdict, look);
        assert_eq!(judge(HangCause::Busy, look(1, 0, 5)), HangCause::Busy);
        assert_eq!(judge(HangCause::Throttled, look(2, 0, 6)), HangCause::Throttled);
        // The bound was lifted at the end of that second.
        assert_eq!(judge(HangCause::Busy, look(3, 100, 15)), HangCause::Throttled);
        assert_eq!(judge(HangCause::Busy, look(4, 900, 15)), HangCause::Busy);
    }

    #[test]
    fn what_has_nothing_to_do_with_the_cpu_stays_what_it_is() {
        let mut examiner = Examiner::default();
        let mut judge =
            |verdict| examiner.allow_for_hunger(case(1), verdict, look(1, Duration::ZERO, 1));
        assert_eq!(judge(HangCause::Throttled), HangCause::Throttled);
        for verdict in [HangCause::Blocked, HangCause::Stopped, HangCause::Frozen, HangCause::Unkillable] {
            assert_eq!(judge(verdict), verdict);
        }
    }
}
