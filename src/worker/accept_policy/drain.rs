//! What a worker that drains owes to each listener's queue. Pure.

use std::time::Duration;

use crate::listen::ListenerState;
use crate::time::MonotonicTime;

/// How long a handshake may take that had begun when its listener was closed for new ones: the
/// client's last packet is on its way, and puts one more connection into the queue.
pub(super) const LATE_HANDSHAKE_MAX: Duration = Duration::from_millis(100);
/// How long a queue to which clients may still be added is emptied again and again.
const REFILL_MAX: Duration = Duration::from_secs(1);

/// How far a graceful stop has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::worker) struct Drain {
    /// The time since the worker was asked to stop.
    pub(in crate::worker) elapsed: Duration,
    /// Whether the master has died: then no other worker serves after this one.
    pub(in crate::worker) orphaned: bool,
}

/// What a worker that drains owes to the clients in a listener's queue. The master bounds all of it
/// by `graceful_timeout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::worker) enum BacklogDuty {
    /// Leave them: other workers serve them.
    None,
    /// Accept them; late handshakes may add more.
    AwaitHandshakes,
    /// Accept them until the queue is seen empty while the worker has no client.
    Empty,
    /// Accept those that wait now: there may always be more.
    EmptyOnce,
}

impl Drain {
    /// Returns the duty to the queue of a listener in this state.
    pub(in crate::worker) fn duty(self, state: ListenerState) -> BacklogDuty {
        match state {
            ListenerState::NotListening => BacklogDuty::None,
            ListenerState::Open if !self.orphaned => BacklogDuty::None,
            ListenerState::DrainBounded if self.elapsed < LATE_HANDSHAKE_MAX => {
                BacklogDuty::AwaitHandshakes
            }
            ListenerState::DrainBounded => BacklogDuty::Empty,
            ListenerState::DrainUnbounded | ListenerState::Open if self.elapsed < REFILL_MAX => {
                BacklogDuty::Empty
            }
            ListenerState::DrainUnbounded | ListenerState::Open => BacklogDuty::EmptyOnce,
        }
    }

    /// Returns how long after the beginning of the stop the duty to such a queue changes by itself.
    pub(super) fn next_change(self, state: ListenerState) -> Option<Duration> {
        match (self.duty(state), state) {
            (BacklogDuty::AwaitHandshakes, _) => Some(LATE_HANDSHAKE_MAX),
            (BacklogDuty::Empty, ListenerState::DrainBounded) => None,
            (BacklogDuty::Empty, _) => Some(REFILL_MAX),
            (BacklogDuty::None | BacklogDuty::EmptyOnce, _) => None,
        }
    }
}

impl BacklogDuty {
    /// Returns whether it is fulfilled if the queue is, or is not, seen empty now.
    pub(in crate::worker) fn is_met(self, is_empty: bool, has_clients: bool) -> bool {
        match self {
            Self::None => true,
            Self::AwaitHandshakes => false,
            Self::Empty => is_empty && !has_clients,
            Self::EmptyOnce => is_empty,
        }
    }
}

/// Returns when the last late handshake must have come to one of these listeners; `None` if none is
/// expected.
pub(in crate::worker) fn handshakes_end(
    drain: Drain,
    since: MonotonicTime,
    mut states: impl Iterator<Item = ListenerState>,
) -> Option<MonotonicTime> {
    states
        .any(|state| drain.duty(state) == BacklogDuty::AwaitHandshakes)
        .then(|| since.saturating_add(LATE_HANDSHAKE_MAX))
}
