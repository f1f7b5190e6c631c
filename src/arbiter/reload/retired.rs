//! Listeners that a reload has closed. Until the workers that have them drain, their addresses cannot be
//! bound again.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::listen::Listener;
use crate::time::MonotonicTime;

/// How long a closed listener still completes handshakes, and how often its queue is looked at then.
const HANDSHAKE_TIME: Duration = Duration::from_secs(1);

/// Closed listeners whose addresses may not be free.
#[derive(Default)]
pub(super) struct RetiredListeners {
    listeners: Vec<Retired>,
    /// When their queues are looked at.
    check_at: Option<MonotonicTime>,
}

struct Retired {
    listener: Arc<Listener>,
    /// The generations whose workers have it.
    generations: Range<u32>,
}

impl RetiredListeners {
    /// Adds listeners that have been closed at `now`, and that the workers of these generations have.
    pub(super) fn add(
        &mut self,
        listeners: impl Iterator<Item = Arc<Listener>>,
        generations: &Range<u32>,
        now: MonotonicTime,
    ) {
        let retired =
            listeners.map(|listener| Retired { listener, generations: generations.clone() });
        self.listeners.extend(retired);
        self.check_at = Some(now.saturating_add(HANDSHAKE_TIME));
    }

    /// Frees the addresses of those that no worker has, and that no client waits for any more.
    pub(super) fn free(&mut self, any_worker_of: impl Fn(&Range<u32>) -> bool, now: MonotonicTime) {
        if self.listeners.is_empty() {
            return;
        }
        let is_due = self.check_at.is_some_and(|at| at <= now);
        self.listeners
            .retain(|it| any_worker_of(&it.generations) && !(is_due && it.listener.free_address()));
        if is_due {
            self.check_at = Some(now.saturating_add(HANDSHAKE_TIME));
        }
    }

    /// Returns whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.listeners.is_empty()
    }

    /// Returns when [`free`](Self::free) is due, unless a worker exits before.
    pub(super) fn next_deadline(&self) -> Option<MonotonicTime> {
        self.check_at.filter(|_| !self.is_empty())
    }
}
