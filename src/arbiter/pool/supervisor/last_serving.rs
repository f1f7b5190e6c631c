//! The worker that keeps serving while others boot: no scale-down, no replacement and no roll-back leaves a
//! pool without one.

use super::Supervisor;
use super::slot::Worker;
use super::types::{Desired, WorkerId};

impl Supervisor {
    /// Returns the worker that serves and is not drained for another one. There is none in a pool that is
    /// being removed.
    ///
    /// It is of the committed generation if one of that serves, or else of any other than the new one: until
    /// a reload commits, and after its roll-back, no other worker may listen on an old address. Next, it
    /// is one that stays: within the target, and not replaced in its slot. So it is a surplus worker only
    /// while no worker serves that can take its place.
    pub(super) fn last_serving(&self) -> Option<WorkerId> {
        let Desired { target, generation, .. } = self.desired;
        if target == 0 {
            return None;
        }
        let committed = self.committed().generation;
        // Replacements begin with the lowest slot, so the highest within the target is the last.
        let slots = (0..target).rev().chain(target..self.slots.len());
        let serving = slots.flat_map(|slot| {
            let workers = self.slots[slot].workers.iter().filter(|worker| worker.is_serving());
            workers.map(move |worker| (slot, worker))
        });
        let rank = |(slot, worker): &(usize, &Worker)| {
            let kept = self.slots[*slot].kept_worker(generation);
            let stays = *slot < target && kept.is_some_and(|kept| kept.id == worker.id);
            let is_new = worker.generation == generation;
            (worker.generation != committed, is_new, !stays)
        };
        serving.min_by_key(rank).map(|(_, worker)| worker.id)
    }
}
