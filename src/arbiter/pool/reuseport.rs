//! With `reuse_port`: no SO_REUSEPORT queue without a worker that accepts from it.
//!
//! The sockets (shards) at an address belong to slots. While a slot has no worker that accepts, since
//! it has exited or the pool has been scaled down, its shard is assigned to a worker in another slot.
//! The sockets stay open for as long as the address is served.

use std::collections::{HashMap, HashSet};

use slog::warn;

use super::processes::ProcessTable;
use crate::arbiter::generation::PoolGeneration;
use crate::os::process;

/// How many workers look for clients after one was killed that the kernel may just have woken.
const WORKERS_TO_WAKE: usize = 3;

/// Assigns the shards of a pool's listeners to its workers.
#[derive(Default)]
pub(super) struct ShardAssigner {
    /// Workers have come or gone since the shards were assigned.
    workers_changed: bool,
    /// A worker was killed, which the kernel may just have woken for a client.
    worker_killed: bool,
    /// Some sockets of the generation do not listen yet.
    any_not_listening: bool,
}

impl ShardAssigner {
    /// Divides the sockets of a generation among the slots. Which workers have already used a socket
    /// is not known, so all of them look again.
    pub(super) fn set_generation(
        &mut self,
        generation: &PoolGeneration<'_>,
        processes: &ProcessTable<'_>,
    ) {
        self.any_not_listening = generation.any_not_listening();
        if generation.assign_reuseport_shards() {
            processes.recheck_listeners();
        }
        self.workers_changed = true;
    }

    /// Records that the status of a worker has changed.
    pub(super) fn on_workers_changed(&mut self) {
        self.workers_changed = true;
    }

    /// Records that a worker has exited.
    pub(super) fn on_worker_exit(&mut self, by_signal: bool) {
        self.workers_changed = true;
        self.worker_killed |= by_signal;
    }

    /// Returns whether some sockets of the generation do not listen yet.
    pub(super) fn any_not_listening(&self) -> bool {
        self.any_not_listening
    }

    /// Begins to listen on sockets that were bound beside others. Call it once a worker is ready that
    /// has them. Returns whether there were any.
    pub(super) fn open_listeners(
        &mut self,
        generation: &PoolGeneration<'_>,
        processes: &ProcessTable<'_>,
    ) -> bool {
        if !std::mem::take(&mut self.any_not_listening) {
            return false;
        }
        let backlog = generation.spec.settings.backlog;
        for listener in &generation.listeners {
            if let Err(error) = listener.start_listening(backlog) {
                warn!(generation.log.logger(), "failed to listen on reuse_port socket";
                    "address" => listener.name(), "error" => %error);
            }
        }
        processes.recheck_listeners();
        self.workers_changed = true;
        true
    }

    /// Assigns each shard without an accepting worker of its own to another slot.
    pub(super) fn reassign_uncovered(
        &mut self,
        generation: &PoolGeneration<'_>,
        processes: &ProcessTable<'_>,
    ) {
        if std::mem::take(&mut self.worker_killed) {
            // One worker that looks is enough, but not every worker is free to.
            let woken = processes.accepting().take(WORKERS_TO_WAKE);
            woken.for_each(|worker| process::send_sigurg(worker.pid));
        }
        if !std::mem::take(&mut self.workers_changed) {
            return;
        }
        let mut coverages: HashMap<(u32, u32), ShardCoverage> = HashMap::new();
        let mut assignees = HashSet::new();
        for listener in generation.open_listeners() {
            let Some(shard) = listener.shard() else { continue };
            let since = listener.first_generation();
            let coverage = coverages.entry((since, shard.count)).or_insert_with(|| {
                let have_it = processes.accepting().filter(|worker| worker.generation >= since);
                ShardCoverage::new(shard.count, have_it.map(|worker| worker.slot))
            });
            let assignee = coverage.assignee(shard.index);
            if listener.assign_to(assignee) {
                assignees.extend(assignee);
            }
        }
        let told = processes.accepting().filter(|worker| assignees.contains(&worker.slot));
        told.for_each(|worker| process::send_sigurg(worker.pid));
    }
}

/// Which shards of one address have a worker of their own.
struct ShardCoverage {
    /// Whether the nth socket's slots have a worker that accepts.
    covered: Vec<bool>,
    /// The slots with a worker that accepts, in order.
    slots: Vec<usize>,
}

impl ShardCoverage {
    /// Computes the coverage of `count` sockets by workers in these slots.
    fn new(count: u32, slots: impl Iterator<Item = usize>) -> Self {
        let mut covered = vec![false; count as usize];
        let mut slots: Vec<usize> = slots.collect();
        slots.sort_unstable();
        slots.dedup();
        slots.iter().for_each(|slot| covered[slot % count as usize] = true);
        Self { covered, slots }
    }

    /// Returns the slot that the nth socket is assigned to; `None` if it is covered, or no worker
    /// accepts.
    fn assignee(&self, index: u32) -> Option<usize> {
        let index = index as usize;
        if self.covered[index] || self.slots.is_empty() {
            return None;
        }
        Some(self.slots[index % self.slots.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assignees(count: u32, slots: &[usize]) -> Vec<Option<usize>> {
        let coverage = ShardCoverage::new(count, slots.iter().copied());
        (0..count).map(|index| coverage.assignee(index)).collect()
    }

    #[test]
    fn assignee_of_covered_shard_is_none() {
        assert_eq!(assignees(3, &[0, 1, 2]), [None; 3]);
        assert_eq!(assignees(2, &[4, 1]), [None; 2], "a slot that SIGTTIN added");
    }

    #[test]
    fn assignee_of_uncovered_shard_is_a_present_slot() {
        assert_eq!(assignees(3, &[1, 1]), [Some(1), None, Some(1)]);
        assert_eq!(assignees(4, &[0, 2]), [None, Some(2), None, Some(2)]);
        assert_eq!(assignees(2, &[]), [None; 2]);
        for gone in 0..8 {
            let slots: Vec<usize> = (0..8).filter(|slot| *slot != gone).collect();
            for (slot, assignee) in assignees(8, &slots).into_iter().enumerate() {
                assert_eq!(assignee.is_some(), slot == gone);
                assert_ne!(assignee, Some(gone));
            }
        }
    }
}
