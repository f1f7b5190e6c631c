//! How long a connection may wait for its client. Pure: time is an argument.

use std::time::Duration;

use ostler::time::MonotonicTime;

/// How long a connection keeps the memory of its protocol after a response.
const RELEASE_AFTER: Duration = Duration::from_millis(200);

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The first byte of the first request.
    Connected,
    /// The first byte of the next request, after this many.
    Idle(u32),
    /// The end of a request's head, after this many requests.
    Head(u32),
    /// The app.
    Busy,
    /// The app, which reads a body after its response.
    Body,
    /// Room for output; the number changes with each 4 KiB that the client takes.
    Writing(u64),
}

/// The time limits of the phases.
#[derive(Clone, Copy, Debug)]
pub(super) struct PhaseLimits {
    pub(super) header_timeout: Duration,
    pub(super) keepalive: Duration,
    pub(super) write_timeout: Duration,
    pub(super) drain_idle_timeout: Duration,
}

/// The deadline of one connection.
#[derive(Debug)]
pub(super) struct PhaseTimer {
    limits: PhaseLimits,
    phase: Phase,
    since: MonotonicTime,
    /// When the worker has begun to drain.
    drains_since: Option<MonotonicTime>,
    /// Whether the connection has been told to close.
    is_closing: bool,
}

impl PhaseLimits {
    /// Returns when a connection without a request in progress, which may be idle for `limit`, is closed.
    pub(super) fn pause_end(
        &self,
        since: MonotonicTime,
        limit: Duration,
        drains_since: Option<MonotonicTime>,
    ) -> MonotonicTime {
        let end = since.saturating_add(limit);
        match drains_since {
            // A request may be in transit.
            Some(drains_since) => {
                end.min(drains_since.max(since).saturating_add(self.drain_idle_timeout))
            }
            None => end,
        }
    }
}

impl PhaseTimer {
    pub(super) fn new(limits: PhaseLimits, now: MonotonicTime) -> Self {
        Self { limits, phase: Phase::Connected, since: now, drains_since: None, is_closing: false }
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// Takes in the phase. `now` is called only if the phase is another.
    pub(super) fn set_phase(&mut self, phase: Phase, now: impl FnOnce() -> MonotonicTime) {
        if phase != self.phase {
            self.phase = phase;
            self.since = now();
        }
    }

    /// Takes in that the worker drains.
    pub(super) fn drain(&mut self, now: MonotonicTime) {
        self.drains_since.get_or_insert(now);
    }

    /// Takes in that the worker drains no longer.
    pub(super) fn end_drain(&mut self) {
        self.drains_since = None;
    }

    /// Takes in that the connection has been told to close.
    pub(super) fn close(&mut self, now: MonotonicTime) {
        self.is_closing = true;
        self.since = now;
    }

    pub(super) fn is_closing(&self) -> bool {
        self.is_closing
    }

    /// Returns when the present phase is over; `None` is never.
    pub(super) fn deadline(&self) -> Option<MonotonicTime> {
        let limits = &self.limits;
        let limit = match self.phase {
            Phase::Busy | Phase::Body => return None,
            Phase::Connected | Phase::Head(_) => limits.header_timeout,
            Phase::Idle(_) if self.is_closing => limits.header_timeout,
            Phase::Idle(_) => limits.keepalive,
            Phase::Writing(_) => limits.write_timeout,
        };
        let is_idle = matches!(self.phase, Phase::Connected | Phase::Idle(_));
        let drains_since = self.drains_since.filter(|_| is_idle && !self.is_closing);
        Some(limits.pause_end(self.since, limit, drains_since))
    }

    /// Returns when an idle connection gives back the memory of its protocol.
    pub(super) fn release_at(&self) -> Option<MonotonicTime> {
        let is_idle = matches!(self.phase, Phase::Idle(_));
        is_idle.then(|| self.since.saturating_add(RELEASE_AFTER))
    }
}

/// Whether the output of a connection moves.
#[derive(Debug)]
pub(super) struct OutputProgress {
    sent: u64,
    moved_at: MonotonicTime,
}

impl OutputProgress {
    pub(super) fn new(now: MonotonicTime) -> Self {
        Self { sent: 0, moved_at: now }
    }

    /// Takes in how many bytes were sent so far. Returns whether `step` bytes were sent within `limit`.
    pub(super) fn is_moving(
        &mut self,
        sent: u64,
        step: u64,
        limit: Duration,
        now: MonotonicTime,
    ) -> bool {
        if sent.wrapping_sub(self.sent) >= step {
            (self.sent, self.moved_at) = (sent, now);
        }
        now.duration_since(self.moved_at) < limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: PhaseLimits = PhaseLimits {
        header_timeout: Duration::from_secs(10),
        keepalive: Duration::from_secs(5),
        write_timeout: Duration::from_secs(30),
        drain_idle_timeout: Duration::from_millis(100),
    };

    fn at(seconds: u64) -> MonotonicTime {
        MonotonicTime::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn each_phase_has_its_limit_from_its_begin() {
        let mut timer = PhaseTimer::new(LIMITS, at(1));
        assert_eq!(timer.deadline(), Some(at(11)));
        timer.set_phase(Phase::Head(0), || at(2));
        timer.set_phase(Phase::Head(0), || unreachable!("the phase is the same"));
        assert_eq!(timer.deadline(), Some(at(12)));
        timer.set_phase(Phase::Busy, || at(3));
        assert_eq!(timer.deadline(), None);
        timer.set_phase(Phase::Writing(1), || at(4));
        timer.set_phase(Phase::Writing(2), || at(20));
        assert_eq!(timer.deadline(), Some(at(50)));
        timer.set_phase(Phase::Body, || at(21));
        assert_eq!(timer.deadline(), None);
        timer.set_phase(Phase::Idle(1), || at(21));
        assert_eq!(timer.deadline(), Some(at(26)));
    }

    #[test]
    fn idle_connection_alone_is_released() {
        let mut timer = PhaseTimer::new(LIMITS, at(1));
        for phase in [Phase::Connected, Phase::Head(1), Phase::Busy, Phase::Writing(1)] {
            timer.set_phase(phase, || at(2));
            assert_eq!(timer.release_at(), None);
        }
        timer.set_phase(Phase::Idle(1), || at(3));
        assert_eq!(timer.release_at(), Some(at(3).saturating_add(RELEASE_AFTER)));
    }

    #[test]
    fn drain_shortens_idle_phases_only() {
        let soon = at(2).saturating_add(LIMITS.drain_idle_timeout);
        let mut timer = PhaseTimer::new(LIMITS, at(1));
        timer.drain(at(2));
        assert_eq!(timer.deadline(), Some(soon));
        timer.set_phase(Phase::Head(0), || at(2));
        assert_eq!(timer.deadline(), Some(at(12)));
        timer.set_phase(Phase::Busy, || at(3));
        assert_eq!(timer.deadline(), None);
        timer.set_phase(Phase::Idle(1), || at(4));
        assert_eq!(timer.deadline(), Some(at(4).saturating_add(LIMITS.drain_idle_timeout)));
    }

    #[test]
    fn drain_that_ends_shortens_nothing() {
        let mut timer = PhaseTimer::new(LIMITS, at(1));
        timer.drain(at(2));
        timer.end_drain();
        timer.set_phase(Phase::Idle(1), || at(3));
        assert_eq!(timer.deadline(), Some(at(8)));
    }

    #[test]
    fn told_connection_has_header_timeout_to_close() {
        let mut timer = PhaseTimer::new(LIMITS, at(1));
        timer.set_phase(Phase::Idle(1), || at(2));
        timer.drain(at(3));
        timer.close(at(4));
        assert!(timer.is_closing());
        assert_eq!(timer.deadline(), Some(at(14)));
    }

    #[test]
    fn output_moves_by_its_step_within_the_limit() {
        let mut progress = OutputProgress::new(at(1));
        let mut is_moving =
            |sent, seconds| progress.is_moving(sent, 4096, LIMITS.write_timeout, at(seconds));
        assert!(is_moving(4000, 30));
        assert!(!is_moving(4095, 31));
        assert!(is_moving(4096, 32));
        assert!(is_moving(8191, 61));
        assert!(!is_moving(8191, 62));
        assert!(is_moving(8192, 63));
    }
}
