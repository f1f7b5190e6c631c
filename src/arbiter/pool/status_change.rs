//! What a worker reports through the scoreboard. Pure.

use crate::scoreboard::WorkerStatus;

/// What a worker has reported through the scoreboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StatusChange {
    /// The worker is ready.
    Ready,
    /// The worker has reached `max_requests`.
    ReplacementRequested,
    /// The worker drains. The master need not have asked it to.
    Draining,
}

impl StatusChange {
    /// Returns what it means that a status has become a later one. A status never goes back.
    pub(super) fn between(
        before: WorkerStatus,
        status: WorkerStatus,
        was_ready: bool,
    ) -> Vec<StatusChange> {
        let was_booting = before == WorkerStatus::Booting;
        let ready = was_booting.then_some(StatusChange::Ready);
        let (first, last) = match status {
            WorkerStatus::Booting => (None, None),
            WorkerStatus::Ready => (ready, None),
            WorkerStatus::ReplacementRequested => (ready, Some(StatusChange::ReplacementRequested)),
            // A worker that is stopped while it boots has never been ready.
            WorkerStatus::Draining => (ready.filter(|_| was_ready), Some(StatusChange::Draining)),
        };
        first.into_iter().chain(last).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_reports_what_was_passed_over() {
        use StatusChange as Change;
        use WorkerStatus as Status;
        let between = StatusChange::between;
        assert_eq!(between(Status::Booting, Status::Ready, true), [Change::Ready]);
        assert_eq!(
            between(Status::Booting, Status::ReplacementRequested, true),
            [Change::Ready, Change::ReplacementRequested]
        );
        assert_eq!(
            between(Status::Booting, Status::Draining, true),
            [Change::Ready, Change::Draining]
        );
        assert_eq!(between(Status::Booting, Status::Draining, false), [Change::Draining]);
        assert_eq!(between(Status::Ready, Status::Draining, true), [Change::Draining]);
    }
}
