//! What the master asks of a worker by SIGURG: to look at its listeners anew, and to begin or end its drain
//! mode, which the scoreboard says.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::scoreboard::DrainMode;

/// What the master has asked, by the signals that were processed.
#[derive(Debug, Default)]
pub(super) struct MasterRequests {
    /// How often it has asked to look at all listeners anew.
    rechecks: AtomicU64,
    /// The drain mode.
    drain_mode: AtomicU64,
    /// The drain mode for which the worker is reported as drained; 0 if it is not.
    drained_for: AtomicU64,
}

impl MasterRequests {
    /// Takes in a SIGURG, and the drain mode of then.
    pub(super) fn on_sigurg(&self, mode: DrainMode) {
        self.drain_mode.store(mode.word(), Ordering::Relaxed);
        self.rechecks.fetch_add(1, Ordering::Release);
    }

    pub(super) fn rechecks(&self) -> u64 {
        self.rechecks.load(Ordering::Acquire)
    }

    pub(super) fn drain_mode(&self) -> DrainMode {
        DrainMode::from_word(self.drain_mode.load(Ordering::Relaxed))
    }

    /// Takes in whether the worker is drained. Returns the drain mode for which it is to be reported as
    /// drained, if that changes: none is one that is off.
    pub(super) fn set_drained(&self, is_drained: bool) -> Option<DrainMode> {
        let mode = if is_drained { self.drain_mode() } else { DrainMode::default() };
        if self.drained_for.load(Ordering::Relaxed) == mode.word() {
            return None;
        }
        self.drained_for.store(mode.word(), Ordering::Relaxed);
        Some(mode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drained_worker_is_reported_once_for_each_drain_mode() {
        let (requests, off) = (MasterRequests::default(), DrainMode::default());
        assert_eq!(requests.set_drained(false), None);
        let first = off.next();
        requests.on_sigurg(first);
        assert_eq!((requests.rechecks(), requests.drain_mode()), (1, first));
        assert_eq!(requests.set_drained(true), Some(first));
        assert_eq!(requests.set_drained(true), None);
        requests.on_sigurg(first.next());
        requests.on_sigurg(first.next().next());
        assert_eq!(requests.set_drained(true), Some(first.next().next()));
        assert_eq!(requests.set_drained(false), Some(off));
        assert!(first.is_on() && !off.is_on() && !first.next().is_on());
    }
}
