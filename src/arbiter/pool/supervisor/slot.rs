//! A slot and the workers that sit in it: usually one, two while one replaces the other.

use std::time::Duration;

use super::types::{Busy, ExitClass, ExitReason, Policy, ShutdownMode, WorkerId};
use crate::time::MonotonicTime;

/// A worker that has served for so long is no crash loop.
const STABLE_UPTIME: Duration = Duration::from_secs(60);

/// A place for a worker. It outlives the workers that sit in it.
#[derive(Clone, Debug, Default)]
pub(super) struct Slot {
    pub(super) workers: Vec<Worker>,
    pub(super) not_before: MonotonicTime,
    pub(super) boot_failures: u32,
    pub(super) crashes: u32,
    /// A spawn has been handed out, and its fate is not known.
    pub(super) spawning: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Worker {
    pub(super) id: WorkerId,
    pub(super) generation: u32,
    /// The rules of its generation.
    pub(super) policy: Policy,
    pub(super) started: MonotonicTime,
    pub(super) ready_at: Option<MonotonicTime>,
    /// For how long it serves; zero is for ever.
    pub(super) lifetime: Duration,
    pub(super) state: State,
    /// The last sign of life that is known.
    pub(super) last_beat: MonotonicTime,
    /// What its threads are known to work on.
    pub(super) busy: Option<Busy>,
    /// It has asked for a successor.
    pub(super) replacement_requested: bool,
    /// It is not judged before: it is being examined.
    pub(super) verdict_deferred_until: MonotonicTime,
    /// Nobody blames it for time before: it could not run.
    pub(super) timeout_extended_at: MonotonicTime,
    /// No signal but KILL reaches it.
    pub(super) is_unresponsive: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Booting,
    Ready,
    Stopping {
        reason: ExitReason,
        kill_at: MonotonicTime,
        mode: ShutdownMode,
    },
    /// One of its threads hangs: it leaves, and is aborted as soon as the others are done.
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

impl Slot {
    /// New rules, new chances.
    pub(super) fn reset_backoff(&mut self) {
        (self.boot_failures, self.crashes) = (0, 0);
        self.not_before = MonotonicTime::default();
    }

    /// Whether nobody serves here, and nobody is on the way. One who drains makes room for a
    /// successor; one who is being aborted does so once it is gone.
    pub(super) fn is_vacant(&self) -> bool {
        let holds = |worker: &Worker| match worker.state {
            State::Booting | State::Ready | State::Aborting { .. } => true,
            State::Stopping { .. } | State::DrainingHung { .. } | State::Killed { .. } => false,
        };
        !self.spawning && !self.workers.iter().any(holds)
    }

    /// Whether somebody is on the way, or has just failed to arrive.
    pub(super) fn is_being_filled(&self) -> bool {
        self.spawning || self.workers.iter().any(Worker::is_starting)
    }

    /// Whether anybody serves here.
    pub(super) fn is_served(&self) -> bool {
        self.workers.iter().any(|worker| worker.state == State::Ready)
    }

    /// Whether a worker of this generation serves here.
    pub(super) fn is_served_by(&self, generation: u32) -> bool {
        let serves = |w: &Worker| w.generation == generation && w.state == State::Ready;
        self.workers.iter().any(serves)
    }

    /// The youngest worker of this generation that serves here: whoever else does is to go.
    pub(super) fn replacement(&self, generation: u32) -> Option<WorkerId> {
        let serves = |w: &&Worker| w.generation == generation && w.state == State::Ready;
        self.workers.iter().filter(serves).map(|worker| worker.id).max()
    }

    /// The youngest worker of any generation that serves here.
    pub(super) fn newest_ready(&self) -> Option<WorkerId> {
        let serving = self.workers.iter().filter(|worker| worker.state == State::Ready);
        serving.map(|worker| worker.id).max()
    }

    /// How bad this ending is: how many failures in a row that makes, 0 if the slot may be filled
    /// again at once.
    pub(super) fn record_failure(
        &mut self,
        worker: &Worker,
        reason: ExitReason,
        exit_class: ExitClass,
        now: MonotonicTime,
    ) -> u32 {
        if worker.ready_at.is_some_and(|at| now.duration_since(at) >= STABLE_UPTIME) {
            (self.crashes, self.boot_failures) = (0, 0);
        }
        match reason {
            ExitReason::Requested | ExitReason::ScaledDown | ExitReason::Recycled => 0,
            ExitReason::Reload | ExitReason::Hung => 0,
            // A kill from outside says nothing about the worker.
            ExitReason::Crashed if exit_class == ExitClass::KilledExternally => 0,
            // The kernel's kill does: it took too much.
            ExitReason::Crashed | ExitReason::OomKilled => {
                self.crashes += 1;
                self.crashes - 1 // the first is forgiven
            }
            ExitReason::BootFailed => {
                self.boot_failures += 1;
                self.boot_failures
            }
        }
    }
}

impl Worker {
    /// Why it is seen to have ended.
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

    /// Whether it boots, or is being aborted because it has not.
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

    /// Whether it serves, and is of an earlier generation than this.
    pub(super) fn is_old(&self, generation: u32) -> bool {
        self.generation < generation && self.state == State::Ready
    }

    /// Why it is replaced, if this generation is wished for.
    pub(super) fn replacement_reason(&self, generation: u32) -> ExitReason {
        if self.generation == generation { ExitReason::Recycled } else { ExitReason::Reload }
    }

    /// Begins to drain at `now`.
    pub(super) fn begin_drain(&mut self, reason: ExitReason, now: MonotonicTime) {
        let kill_at = now.saturating_add(self.policy.graceful_timeout);
        self.state = State::Stopping { reason, kill_at, mode: ShutdownMode::Graceful };
    }

    /// When it must be ready. Nobody is blamed for time before `timeout_floor`.
    pub(super) fn boot_deadline(&self, timeout_floor: MonotonicTime) -> Option<MonotonicTime> {
        let limit = self.policy.boot_timeout;
        let since = self.started.max(timeout_floor).max(self.timeout_extended_at);
        (!limit.is_zero()).then(|| since.saturating_add(limit).max(self.verdict_deferred_until))
    }

    /// When it is taken for hung, unless there is a new sign of life. To begin a unit of work is
    /// one, so while there is work its age alone counts.
    pub(super) fn hang_deadline(&self, timeout_floor: MonotonicTime) -> Option<MonotonicTime> {
        let limit = self
            .timeout_deadline(self.busy.map_or(self.last_beat, |busy| busy.oldest), timeout_floor);
        limit.map(|at| at.max(self.verdict_deferred_until))
    }

    /// When work, or silence, that began then has taken too long.
    pub(super) fn timeout_deadline(
        &self,
        since: MonotonicTime,
        timeout_floor: MonotonicTime,
    ) -> Option<MonotonicTime> {
        let limit = self.policy.timeout;
        (!limit.is_zero())
            .then(|| since.max(timeout_floor).max(self.timeout_extended_at).saturating_add(limit))
    }

    /// When it has served its time.
    pub(super) fn recycle_deadline(&self) -> Option<MonotonicTime> {
        let ready_at = self.ready_at?;
        (!self.lifetime.is_zero()).then(|| ready_at.saturating_add(self.lifetime))
    }
}
