//! A slot and its workers: usually one, two during a replacement.

use std::time::Duration;

use super::types::{
    Busy, Desired, DrainProgress, ExitClass, ExitReason, Policy, ShutdownMode, WorkerId,
};
use crate::time::MonotonicTime;

/// The consecutive samples over `max_memory` that recycle a worker: a short peak is no leak.
const OVER_LIMIT_SAMPLES: u8 = 3;

/// How many stalls of the master in a row are discounted for one deadline. Workers can cause stalls,
/// for they use the same CPUs: without a limit, a hang would never be found.
pub(super) const STALLS_MAX: u8 = 3;

/// A stable position for a worker. It outlives its workers.
#[derive(Clone, Debug, Default)]
pub(super) struct Slot {
    pub(super) workers: Vec<Worker>,
    /// No worker is started before this time.
    pub(super) not_before: MonotonicTime,
    /// How many workers in a row have failed before they had served.
    pub(super) failures: u32,
    /// A spawn was returned, and its result is not known.
    pub(super) spawning: bool,
}

/// All that the rules read about a worker.
// Fields: a worker has one record instead of an entry in several maps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Worker {
    pub(super) id: WorkerId,
    pub(super) generation: u32,
    /// The policy of the worker's generation.
    pub(super) policy: Policy,
    pub(super) started: MonotonicTime,
    pub(super) ready_at: Option<MonotonicTime>,
    /// `max_lifetime` with jitter; zero is unlimited.
    pub(super) lifetime: Duration,
    pub(super) state: State,
    /// It has begun to drain unasked, before it had served.
    pub(super) drains_early: bool,
    /// Of the drain mode, which has a meaning only while the worker is ready.
    pub(super) drain_progress: DrainProgress,
    /// The last heartbeat read, or the time of becoming ready.
    pub(super) last_beat: MonotonicTime,
    /// The units of work in progress at the last reading.
    pub(super) busy: Option<Busy>,
    pub(super) replacement_requested: bool,
    /// How many samples in a row exceeded `max_memory`.
    pub(super) over_limit_samples: u8,
    /// The worker is being diagnosed: no timeout is enforced before this time.
    pub(super) verdict_deferred_until: MonotonicTime,
    /// Timeouts start here at the earliest: the worker was frozen or throttled before, or the master
    /// did not run.
    pub(super) timeout_extended_at: MonotonicTime,
    /// How many stalls of the master were discounted since the worker's last progress.
    pub(super) discounted_stalls: u8,
    /// No signal but SIGKILL reaches the worker.
    pub(super) is_unresponsive: bool,
}

/// How many workers of one slot may drain unasked, before they have served, and still be replaced. A
/// worker can write to the scoreboard that another drains, and each of its replacements too.
const EARLY_DRAINS_MAX: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Booting,
    Ready,
    Stopping {
        reason: ExitReason,
        kill_at: MonotonicTime,
        mode: ShutdownMode,
    },
    /// One thread hangs: the worker drains, and is aborted once its other threads are idle.
    DrainingHung {
        kill_at: MonotonicTime,
    },
    Aborting {
        reason: ExitReason,
        kill_at: MonotonicTime,
    },
    Killed {
        reason: ExitReason,
    },
}

impl State {
    /// Returns the state as the control interface shows it, unless the worker is in drain mode.
    fn as_str(self) -> &'static str {
        match self {
            Self::Booting => "booting",
            Self::Ready => "ready",
            Self::Stopping { .. } => "draining",
            Self::DrainingHung { .. } => "hung",
            Self::Aborting { .. } => "aborting",
            Self::Killed { .. } => "killed",
        }
    }
}

impl Slot {
    /// Clears the failure counter and the restart delay.
    pub(super) fn reset_backoff(&mut self) {
        self.failures = 0;
        self.not_before = MonotonicTime::default();
    }

    /// Returns whether a worker may be started here. A draining worker does not occupy its slot, unless
    /// too many drain that have not served; an aborting one does until it is killed or exits.
    pub(super) fn is_vacant(&self) -> bool {
        let occupies = |worker: &Worker| match worker.state {
            State::Booting | State::Ready | State::Aborting { .. } => true,
            State::Stopping { .. } | State::DrainingHung { .. } | State::Killed { .. } => false,
        };
        !self.spawning
            && !self.workers.iter().any(occupies)
            && self.workers.iter().filter(|worker| worker.drains_early).count() < EARLY_DRAINS_MAX
    }

    /// Returns whether a worker is starting, or is being aborted because its boot timed out.
    pub(super) fn is_being_filled(&self) -> bool {
        self.spawning || self.workers.iter().any(Worker::is_starting)
    }

    /// Returns whether a worker is ready here.
    pub(super) fn is_served(&self) -> bool {
        self.workers.iter().any(|worker| worker.state == State::Ready)
    }

    /// Returns whether a ready worker here is not in drain mode.
    pub(super) fn has_serving(&self) -> bool {
        self.workers.iter().any(Worker::is_serving)
    }

    /// Returns whether a worker here is in drain mode.
    pub(super) fn is_in_drain_mode(&self) -> bool {
        self.workers.iter().any(Worker::is_in_drain_mode)
    }

    /// Returns whether a worker of `generation` is ready here.
    pub(super) fn is_served_by(&self, generation: u32) -> bool {
        self.replacement(generation).is_some()
    }

    /// Returns the newest ready worker of `generation`: it replaces every other worker here.
    pub(super) fn replacement(&self, generation: u32) -> Option<WorkerId> {
        let kept = self.kept_worker(generation);
        kept.filter(|worker| worker.generation == generation).map(|worker| worker.id)
    }

    /// Returns the ready worker that replaces every other here in a pool of `generation`.
    pub(super) fn kept_worker(&self, generation: u32) -> Option<&Worker> {
        let ready = self.workers.iter().filter(|worker| worker.state == State::Ready);
        ready.max_by_key(|worker| (worker.generation == generation, worker.id))
    }

    /// Returns the newest ready worker of any generation.
    pub(super) fn newest_ready(&self) -> Option<WorkerId> {
        let ready = self.workers.iter().filter(|worker| worker.state == State::Ready);
        ready.map(|worker| worker.id).max()
    }
}

/// Returns the smallest target that removes no worker in drain mode and leaves a slot beside them that serves,
/// or will, if the pool becomes `desired`.
pub(super) fn least_target(slots: &[Slot], desired: Desired) -> usize {
    let slots = &slots[..desired.target.min(slots.len())];
    let yields_to_held =
        |slot: &Slot| slot.kept_worker(desired.generation).is_some_and(Worker::is_in_drain_mode);
    let last_held = slots.iter().rposition(Slot::is_in_drain_mode);
    let first_other = slots.iter().position(|slot| !yields_to_held(slot));
    let lowest = last_held.into_iter().chain(last_held.and(first_other)).max();
    lowest.map_or(1, |slot| slot + 1)
}

impl Worker {
    /// Returns whether the worker is ready and not in drain mode.
    pub(super) fn is_serving(&self) -> bool {
        self.state == State::Ready && self.drain_progress == DrainProgress::Off
    }

    /// Returns whether the worker is ready and in drain mode.
    pub(super) fn is_in_drain_mode(&self) -> bool {
        self.state == State::Ready && self.drain_progress != DrainProgress::Off
    }

    /// Returns the state as the control interface shows it.
    pub(super) fn shown_state(&self) -> &'static str {
        match (self.state, self.drain_progress) {
            (State::Ready, DrainProgress::Draining) => "draining",
            (State::Ready, DrainProgress::Drained) => "drained",
            (state, _) => state.as_str(),
        }
    }

    /// Returns the reason for an exit in the present state.
    pub(super) fn exit_reason(&self, exit_class: ExitClass) -> ExitReason {
        match self.state {
            State::Booting => ExitReason::BootFailed,
            State::Ready | State::Stopping { .. } if exit_class == ExitClass::OomKilled => {
                ExitReason::OomKilled
            }
            State::Ready if exit_class == ExitClass::Requested => ExitReason::Requested,
            State::Ready => ExitReason::Crashed,
            State::DrainingHung { .. } => ExitReason::Hung,
            State::Stopping { reason, .. }
            | State::Aborting { reason, .. }
            | State::Killed { reason } => reason,
        }
    }

    /// Returns whether the worker boots, or is being aborted because its boot timed out.
    pub(super) fn is_starting(&self) -> bool {
        match self.state {
            State::Booting | State::Aborting { reason: ExitReason::BootFailed, .. } => true,
            State::Ready
            | State::Stopping { .. }
            | State::DrainingHung { .. }
            | State::Aborting { .. }
            | State::Killed { .. } => false,
        }
    }

    /// Returns whether the worker is ready and of a generation before `generation`.
    pub(super) fn is_old(&self, generation: u32) -> bool {
        self.generation < generation && self.state == State::Ready
    }

    /// Returns why the worker is replaced while the pool's generation is `generation`.
    pub(super) fn replacement_reason(&self, generation: u32) -> ExitReason {
        if self.generation == generation { ExitReason::Recycled } else { ExitReason::Reload }
    }

    pub(super) fn begin_drain(&mut self, reason: ExitReason, now: MonotonicTime) {
        let kill_at = now.saturating_add(self.policy.graceful_timeout);
        self.state = State::Stopping { reason, kill_at, mode: ShutdownMode::Graceful };
        self.discounted_stalls = 0;
    }

    /// Excludes `lost`, in which the master did not run until `now`, from the worker's deadlines.
    pub(super) fn discount_stall(&mut self, lost: Duration, now: MonotonicTime) {
        if self.discounted_stalls == STALLS_MAX {
            return;
        }
        self.discounted_stalls += 1;
        self.timeout_extended_at = now;
        match &mut self.state {
            State::Stopping { kill_at, .. }
            | State::DrainingHung { kill_at }
            | State::Aborting { kill_at, .. } => *kill_at = kill_at.saturating_add(lost),
            State::Booting | State::Ready | State::Killed { .. } => (),
        }
    }

    /// Returns since when the worker has made no progress, by the last reading.
    pub(super) fn last_progress(&self) -> MonotonicTime {
        self.busy.map_or(self.last_beat, |busy| busy.oldest)
    }

    /// Returns whether memory samples of the worker are needed: it is ready, `max_memory` is set,
    /// and the limit has not been reported as exceeded.
    pub(super) fn needs_memory_sample(&self) -> bool {
        self.state == State::Ready
            && self.policy.max_memory > 0
            && self.over_limit_samples < OVER_LIMIT_SAMPLES
    }

    /// Counts a memory sample. Returns whether it is the one that recycles the worker.
    pub(super) fn record_memory_sample(&mut self, bytes: Option<u64>) -> bool {
        if !self.needs_memory_sample() {
            return false;
        }
        if bytes.is_none_or(|bytes| bytes <= self.policy.max_memory) {
            self.over_limit_samples = 0;
            return false;
        }
        self.over_limit_samples += 1;
        self.over_limit_samples == OVER_LIMIT_SAMPLES
    }

    /// Returns when a booting worker must be ready.
    pub(super) fn boot_deadline(&self) -> Option<MonotonicTime> {
        let limit = self.policy.boot_timeout;
        let since = self.started.max(self.timeout_extended_at);
        (!limit.is_zero()).then(|| since.saturating_add(limit).max(self.verdict_deferred_until))
    }

    /// Returns when the worker counts as hung unless it makes progress. Beginning a unit of work is
    /// progress, so while the worker is busy only the age of its oldest unit counts.
    pub(super) fn hang_deadline(&self) -> Option<MonotonicTime> {
        let limit = self.timeout_deadline(self.last_progress());
        limit.map(|at| at.max(self.verdict_deferred_until))
    }

    /// Returns when work or silence that began at `since` exceeds `timeout`.
    pub(super) fn timeout_deadline(&self, since: MonotonicTime) -> Option<MonotonicTime> {
        let limit = self.policy.timeout;
        (!limit.is_zero()).then(|| since.max(self.timeout_extended_at).saturating_add(limit))
    }

    /// Returns when the worker has been ready for its lifetime.
    pub(super) fn recycle_deadline(&self) -> Option<MonotonicTime> {
        let ready_at = self.ready_at?;
        (!self.lifetime.is_zero()).then(|| ready_at.saturating_add(self.lifetime))
    }
}
