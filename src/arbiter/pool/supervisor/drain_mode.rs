//! The drain mode of one worker: it accepts no clients, finishes those that it has, and stays. It belongs to
//! the process: a replacement serves.

use std::ops::RangeInclusive;

use super::Supervisor;
use super::slot::{self, State};
use super::types::{Desired, DrainModeError, DrainProgress, WorkerId};

impl Supervisor {
    /// Begins the drain mode of the newest ready worker of a slot. Returns the worker, and whether it was
    /// not in drain mode.
    ///
    /// # Errors
    /// There is none, or no other slot serves, or none would serve once the reload in progress has
    /// ended, however it ends, or a failed one is undone.
    pub(crate) fn begin_drain_mode(
        &mut self,
        slot: usize,
    ) -> Result<(WorkerId, bool), DrainModeError> {
        let id = self.newest_ready(slot).ok_or(DrainModeError::NotReady)?;
        if self.drain_progress(id) != DrainProgress::Off {
            return Ok((id, false));
        }
        if ![self.desired, self.committed()].iter().all(|end| self.serves_beside(slot, end)) {
            return Err(DrainModeError::LastServing);
        }
        self.set_drain_progress(id, DrainProgress::Draining);
        Ok((id, true))
    }

    /// Returns whether another slot serves if the pool becomes `desired`. A worker of a later generation does
    /// not count: it may yield to an old one in drain mode, and may not listen on the old addresses.
    fn serves_beside(&self, slot: usize, desired: &Desired) -> bool {
        let others = self.slots.iter().take(desired.target).enumerate();
        let mut others = others.filter(|(other, _)| *other != slot);
        others.any(|(_, other)| {
            let kept = other.kept_worker(desired.generation);
            kept.is_some_and(|it| it.is_serving() && it.generation <= desired.generation)
        })
    }

    /// Ends the drain mode of the newest worker of a slot that is in it. Returns the worker, or else the
    /// newest ready one, and whether it was in drain mode.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn end_drain_mode(
        &mut self,
        slot: usize,
    ) -> Result<(WorkerId, bool), DrainModeError> {
        let workers = self.slots.get(slot).map_or(&[][..], |slot| &slot.workers);
        // After a roll-back, a newer worker may serve beside it for a while.
        let in_drain_mode = workers.iter().filter(|worker| worker.is_in_drain_mode());
        let id = in_drain_mode.map(|worker| worker.id).max().or_else(|| self.newest_ready(slot));
        let id = id.ok_or(DrainModeError::NotReady)?;
        let was_on = self.drain_progress(id) != DrainProgress::Off;
        self.set_drain_progress(id, DrainProgress::Off);
        Ok((id, was_on))
    }

    /// Records that a worker in drain mode has no clients. Returns whether that is new.
    pub(crate) fn on_drained(&mut self, id: WorkerId) -> bool {
        let is_new = self.drain_progress(id) == DrainProgress::Draining;
        if is_new {
            self.set_drain_progress(id, DrainProgress::Drained);
        }
        is_new
    }

    /// Returns how far the drain mode of a worker has come.
    pub(crate) fn drain_progress(&self, id: WorkerId) -> DrainProgress {
        let worker = self.workers().find(|worker| worker.id == id);
        let worker = worker.filter(|worker| worker.state == State::Ready);
        worker.map_or(DrainProgress::Off, |worker| worker.drain_progress)
    }

    fn set_drain_progress(&mut self, id: WorkerId, progress: DrainProgress) {
        if let Some(worker) = self.worker(id) {
            worker.drain_progress = progress;
        }
    }

    /// Returns how many ready workers are in drain mode.
    pub(crate) fn drain_mode_count(&self) -> usize {
        self.workers().filter(|worker| worker.is_in_drain_mode()).count()
    }

    /// Returns whether workers are in drain mode, and only one serves.
    pub(super) fn has_one_serving_beside_drained(&self) -> bool {
        self.drain_mode_count() > 0 && self.ready_count() == 1
    }

    /// Returns the bounds between which the target can be changed now, in a pool whose settings permit
    /// `range`. They are within the range: no worker of the committed generation has a slot beyond its own
    /// range, and one of another generation is replaced anyway.
    pub(crate) fn target_bounds(&self, range: RangeInclusive<usize>) -> RangeInclusive<usize> {
        let lowest = slot::least_target(&self.slots, self.desired);
        lowest.clamp(*range.start(), *range.end())..=*range.end()
    }
}
