//! The time between SIGTERM and the drain (`pre_stop`): the master still accepts clients while `/readyz`
//! fails, so that load balancers stop sending new ones. Pure: time is an argument.

use std::time::Duration;

use crate::time::MonotonicTime;

/// A stop that may be delayed.
#[derive(Debug, Default)]
pub(super) struct PreStop {
    waiting: Option<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    /// When the drain begins.
    until: MonotonicTime,
    /// What has asked for the stop.
    by: String,
}

/// What a stop is decided by that is asked for before any worker drains.
#[derive(Clone, Copy, Debug)]
pub(super) struct StopFacts {
    /// The setting `pre_stop`.
    pub(super) delay: Duration,
    /// Whether the stop is graceful: SIGTERM, not SIGINT or SIGQUIT.
    pub(super) is_graceful: bool,
    /// Whether the service has ever been ready. If not, no load balancer sends clients.
    pub(super) has_been_ready: bool,
    /// Whether another master serves the addresses after this one has exited.
    pub(super) has_successor: bool,
}

impl PreStop {
    /// Decides on a request to stop. Returns for how long the drain is delayed; `None` if it begins now.
    /// A second request ends the delay.
    pub(super) fn on_stop_request(
        &mut self,
        facts: StopFacts,
        by: &str,
        now: MonotonicTime,
    ) -> Option<Duration> {
        let StopFacts { delay, is_graceful, has_been_ready, has_successor } = facts;
        let is_first = self.waiting.take().is_none();
        if !is_first || !is_graceful || delay.is_zero() || !has_been_ready || has_successor {
            return None;
        }
        self.waiting = Some(Waiting { until: now.saturating_add(delay), by: by.to_owned() });
        Some(delay)
    }

    /// Returns once what has asked for the stop, when the delay is over.
    pub(super) fn take_due(&mut self, now: MonotonicTime) -> Option<String> {
        self.waiting.take_if(|waiting| waiting.until <= now).map(|waiting| waiting.by)
    }

    /// Returns whether a stop is delayed.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Returns when the delay is over.
    pub(super) fn next_deadline(&self) -> Option<MonotonicTime> {
        self.waiting.as_ref().map(|waiting| waiting.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: Duration = Duration::from_secs(10);
    const TERM: StopFacts =
        StopFacts { delay: DELAY, is_graceful: true, has_been_ready: true, has_successor: false };

    fn at(secs: u64) -> MonotonicTime {
        MonotonicTime::default().saturating_add(Duration::from_secs(secs))
    }

    #[test]
    fn drain_is_due_after_the_delay() {
        let mut pre_stop = PreStop::default();
        assert_eq!(pre_stop.on_stop_request(TERM, "first", at(1)), Some(DELAY));
        assert_eq!(pre_stop.next_deadline(), Some(at(11)));
        assert_eq!(pre_stop.take_due(at(10)), None);
        assert!(pre_stop.is_waiting());
        assert_eq!(pre_stop.take_due(at(11)).as_deref(), Some("first"));
        assert!(!pre_stop.is_waiting());
        assert_eq!(pre_stop.take_due(at(12)), None);
        assert_eq!(pre_stop.next_deadline(), None);
    }

    #[test]
    fn second_request_ends_the_delay() {
        for second in [TERM, StopFacts { is_graceful: false, ..TERM }] {
            let mut pre_stop = PreStop::default();
            pre_stop.on_stop_request(TERM, "first", at(1));
            assert_eq!(pre_stop.on_stop_request(second, "second", at(2)), None);
            assert!(!pre_stop.is_waiting());
            assert_eq!(pre_stop.take_due(at(20)), None);
        }
    }

    #[test]
    fn stop_without_use_of_a_delay_is_not_delayed() {
        for facts in [
            StopFacts { delay: Duration::ZERO, ..TERM },
            StopFacts { is_graceful: false, ..TERM },
            StopFacts { has_been_ready: false, ..TERM },
            StopFacts { has_successor: true, ..TERM },
        ] {
            let mut pre_stop = PreStop::default();
            assert_eq!(pre_stop.on_stop_request(facts, "first", at(1)), None, "{facts:?}");
            assert!(!pre_stop.is_waiting());
        }
    }
}
