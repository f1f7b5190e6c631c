//! What is to be done about a program, by what it says and as time passes. Pure: time is an argument.

use std::time::Duration;

use ostler::time::MonotonicTime;
use ostler::worker::Stop;

use self::Deed::{Abort, Accuse, Acquit, Ask, Beat, Interrupt, Kill, Ready, Retire};

/// The bounds that the settings set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// A program that has lived so long is ready.
    pub(super) ready_after: Duration,
    /// Its longest silence, once it has said that it lives; zero is for ever.
    pub(super) timeout: Duration,
    /// From an abort or an interrupt to the kill.
    pub(super) abort_grace: Duration,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    /// Say that the worker is ready.
    Ready,
    /// Say that the worker lives.
    Beat,
    /// Leave word that the program is silent, for which the worker will soon be taken for hung.
    Accuse,
    /// Take that back, and say that the worker lives.
    Acquit,
    /// Say that the worker leaves.
    Retire,
    /// Ask the program to finish and leave.
    Ask,
    /// Have it leave at once.
    Interrupt,
    /// Have it say where it is, and die.
    Abort,
    /// End it.
    Kill,
}

/// What is known of a program.
#[derive(Clone, Debug)]
pub(super) struct Vigil {
    terms: Terms,
    is_ready: bool,
    /// When its age makes it ready.
    ready_at: MonotonicTime,
    /// When it last said that it lives; none before it has begun to.
    said: Option<MonotonicTime>,
    /// Its silence has been told.
    accused: bool,
    /// It leaves by itself.
    leaves: bool,
    /// How it has been asked to leave.
    asked: Stop,
    /// When it has had its time.
    kill_at: Option<MonotonicTime>,
}

impl Vigil {
    /// A program that was started at `now`.
    pub(super) fn new(terms: Terms, now: MonotonicTime) -> Self {
        Self {
            terms,
            is_ready: false,
            ready_at: now.saturating_add(terms.ready_after),
            said: None,
            accused: false,
            leaves: false,
            asked: Stop::None,
            kill_at: None,
        }
    }

    /// Whether the program has failed to become ready, if it has ended.
    pub(super) fn is_boot_failure(&self) -> bool {
        !self.is_ready && self.asked == Stop::None
    }

    /// It has said that it is ready.
    pub(super) fn ready(&mut self) -> Option<Deed> {
        (!std::mem::replace(&mut self.is_ready, true)).then_some(Ready)
    }

    /// It has said that it lives: from now on that is what counts.
    pub(super) fn alive(&mut self, now: MonotonicTime) -> Option<Deed> {
        self.said = Some(now);
        Some(if std::mem::take(&mut self.accused) { Acquit } else { Beat })
    }

    /// It has said that it needs so much more time to get ready.
    pub(super) fn extend(&mut self, time: Duration, now: MonotonicTime) {
        self.ready_at = self.ready_at.max(now.saturating_add(time));
    }

    /// It has said that it leaves. One that was never ready has nothing to hand over.
    pub(super) fn leaving(&mut self) -> Option<Deed> {
        let is_news = !std::mem::replace(&mut self.leaves, true);
        (is_news && self.is_ready && self.asked == Stop::None).then_some(Retire)
    }

    /// It is to be aborted.
    pub(super) fn abort(&mut self, now: MonotonicTime) -> Option<Deed> {
        self.kill_by(now.saturating_add(self.terms.abort_grace));
        Some(Abort)
    }

    /// The worker is to stop so. How long a drain may take is not decided here.
    pub(super) fn stop(&mut self, stop: Stop, now: MonotonicTime) -> Option<Deed> {
        if stop <= self.asked {
            return None;
        }
        self.asked = stop;
        match stop {
            Stop::None => None,
            Stop::Graceful => (!self.leaves).then_some(Ask),
            Stop::Now => {
                self.kill_by(now.saturating_add(self.terms.abort_grace));
                Some(Interrupt)
            }
        }
    }

    /// What is due at `now`.
    pub(super) fn due(&mut self, now: MonotonicTime) -> Vec<Deed> {
        let mut deeds = Vec::new();
        if !self.is_ready && self.asked == Stop::None && self.ready_at <= now {
            deeds.extend(self.ready());
        }
        if self.said.is_none() {
            deeds.push(Beat); // to be there is enough
        }
        if self.accuse_at().is_some_and(|at| at <= now) {
            self.accused = true;
            deeds.push(Accuse);
        }
        if self.kill_at.is_some_and(|at| at <= now) {
            self.kill_at = None;
            deeds.push(Kill);
        }
        deeds
    }

    /// When something will be due, besides the worker's own beat.
    pub(super) fn deadline(&self) -> Option<MonotonicTime> {
        let ready_at = (!self.is_ready && self.asked == Stop::None).then_some(self.ready_at);
        [ready_at, self.accuse_at(), self.kill_at].into_iter().flatten().min()
    }

    /// Whether the worker is to beat by itself.
    pub(super) fn beats(&self) -> bool {
        self.said.is_none()
    }

    /// In time for the master, for whom the last beat may be a little older than the last word.
    fn accuse_at(&self) -> Option<MonotonicTime> {
        let judged = !self.accused && !self.terms.timeout.is_zero();
        self.said.filter(|_| judged).map(|said| said.saturating_add(self.terms.timeout * 3 / 4))
    }

    fn kill_by(&mut self, at: MonotonicTime) {
        self.kill_at = Some(self.kill_at.map_or(at, |earlier| earlier.min(at)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> MonotonicTime {
        MonotonicTime::from_nanos(1_000_000_000).saturating_add(Duration::from_millis(millis))
    }

    fn vigil() -> Vigil {
        let secs = Duration::from_secs;
        let (ready_after, timeout) = (secs(1), secs(10));
        Vigil::new(Terms { ready_after, timeout, abort_grace: secs(2) }, at(0))
    }

    #[test]
    fn age_makes_it_ready_once() {
        let mut vigil = vigil();
        assert_eq!(vigil.due(at(999)), [Beat]);
        assert_eq!(vigil.deadline(), Some(at(1000)));
        assert_eq!(vigil.due(at(1000)), [Ready, Beat]);
        assert_eq!((vigil.due(at(2000)), vigil.ready()), (vec![Beat], None));
        assert_eq!(vigil.deadline(), None);
    }

    #[test]
    fn its_word_makes_it_ready_before_and_it_may_ask_for_more_time() {
        let mut early = vigil();
        assert_eq!(early.ready(), Some(Ready));
        assert!(!early.is_boot_failure());
        let mut late = vigil();
        late.extend(Duration::from_secs(5), at(500));
        late.extend(Duration::from_secs(1), at(600)); // less than it has
        assert_eq!(late.due(at(5499)), [Beat]);
        assert!(late.is_boot_failure());
        assert_eq!(late.due(at(5500)), [Ready, Beat]);
    }

    #[test]
    fn once_it_says_that_it_lives_its_silence_counts() {
        let mut vigil = vigil();
        vigil.ready();
        assert!(vigil.beats());
        assert_eq!(vigil.alive(at(0)), Some(Beat));
        assert!(!vigil.beats());
        assert_eq!(vigil.due(at(7_499)), []);
        assert_eq!(vigil.alive(at(7_499)), Some(Beat));
        assert_eq!(vigil.deadline(), Some(at(14_999)));
        assert_eq!(vigil.due(at(14_999)), [Accuse]);
        assert_eq!((vigil.due(at(30_000)), vigil.deadline()), (vec![], None));
        assert_eq!(vigil.alive(at(30_000)), Some(Acquit));
        assert_eq!(vigil.alive(at(30_001)), Some(Beat));
        assert_eq!(vigil.deadline(), Some(at(37_501)));
    }

    #[test]
    fn a_stop_is_passed_on_once_and_only_becomes_harder() {
        let mut vigil = vigil();
        vigil.ready();
        assert_eq!(vigil.stop(Stop::None, at(0)), None);
        assert_eq!(vigil.stop(Stop::Graceful, at(0)), Some(Ask));
        assert_eq!(vigil.stop(Stop::Graceful, at(1)), None);
        assert_eq!(vigil.deadline(), None, "the master bounds it");
        assert_eq!(vigil.stop(Stop::Now, at(100)), Some(Interrupt));
        assert_eq!(vigil.stop(Stop::Graceful, at(101)), None);
        assert_eq!(vigil.due(at(2099)), [Beat]);
        assert_eq!(vigil.due(at(2100)), [Beat, Kill]);
        assert_eq!(vigil.due(at(9999)), [Beat]);
    }

    #[test]
    fn one_that_was_asked_to_leave_is_not_ready_any_more() {
        let mut vigil = vigil();
        assert_eq!(vigil.stop(Stop::Graceful, at(0)), Some(Ask));
        assert_eq!((vigil.due(at(5000)), vigil.deadline()), (vec![Beat], None));
        assert!(!vigil.is_boot_failure());
    }

    #[test]
    fn one_that_leaves_by_itself_is_not_asked_to() {
        let mut vigil = vigil();
        assert_eq!(vigil.leaving(), None, "it was never ready");
        let mut vigil = self::vigil();
        vigil.ready();
        assert_eq!((vigil.leaving(), vigil.leaving()), (Some(Retire), None));
        assert_eq!(vigil.stop(Stop::Graceful, at(0)), None);
        assert_eq!(vigil.stop(Stop::Now, at(0)), Some(Interrupt));
        let mut asked = self::vigil();
        asked.ready();
        asked.stop(Stop::Graceful, at(0));
        assert_eq!(asked.leaving(), None, "that is the answer");
    }

    #[test]
    fn an_abort_is_followed_by_a_kill() {
        let mut vigil = vigil();
        vigil.ready();
        assert_eq!(vigil.abort(at(0)), Some(Abort));
        vigil.stop(Stop::Now, at(1000)); // no reprieve
        assert_eq!(vigil.due(at(2000)), [Beat, Kill]);
    }
}
