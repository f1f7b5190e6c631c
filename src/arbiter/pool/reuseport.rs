//! With `reuse_port`: no queue without somebody who takes clients from it.
//!
//! The sockets at an address belong to slots. While a slot has no worker that lets clients in, since
//! it has died and may not come back yet, or since there are to be fewer workers, its queue is lent
//! to a worker in another slot. The sockets themselves stay for as long as the address is served.

use std::collections::{HashMap, HashSet};

use slog::warn;

use super::processes::ProcessTable;
use crate::arbiter::Arbiter;
use crate::os::process;

/// How many workers look for clients for whom the kernel had woken one that was killed.
const WORKERS_TO_WAKE: usize = 3;

impl Arbiter<'_> {
    /// Opens new queues once somebody can take from them, unless another master would not know of
    /// them; and lends those that are without a worker.
    pub(in crate::arbiter) fn update_reuseport(&mut self) {
        let may_open = self.stopping().is_none() && self.upgrade_peer.is_none();
        let mut opened = false;
        for pool in &mut self.pools {
            opened |=
                may_open && pool.supervisor.ready_count() > 0 && pool.processes.open_new_sockets();
        }
        if opened {
            self.push_fd_store();
        }
        self.pools.iter_mut().for_each(|pool| pool.processes.reassign_uncovered());
    }
}

impl ProcessTable<'_> {
    /// Says whose the queues are. Nobody can be told from the queues that a worker has looked at
    /// already, so all are told.
    pub(in crate::arbiter) fn assign_reuseport_shards(&mut self) {
        self.any_not_listening = self.current.any_not_listening();
        if self.current.assign_reuseport_shards() {
            self.workers.values().for_each(|worker| process::send_sigurg(worker.pid));
        }
        self.workers_changed = true;
    }

    /// Begins to listen at sockets that were bound beside others, which are of use only once there
    /// is somebody who has them. Returns whether there were any.
    pub(in crate::arbiter) fn open_new_sockets(&mut self) -> bool {
        if self.previous.is_some() || !std::mem::take(&mut self.any_not_listening) {
            return false;
        }
        let backlog = self.current.spec.settings.backlog;
        for listener in &self.current.listeners {
            if let Err(error) = listener.start_listening(backlog) {
                warn!(self.current.log.logger(), "failed to listen on reuse_port socket";
                    "address" => listener.name(), "error" => %error);
            }
        }
        self.workers.values().for_each(|worker| process::send_sigurg(worker.pid));
        self.workers_changed = true;
        true
    }

    /// Lends each queue at which nobody of its own is to somebody else, until that changes.
    pub(in crate::arbiter) fn reassign_uncovered(&mut self) {
        if std::mem::take(&mut self.worker_killed_recently) {
            // One who looks is enough, but not everybody is free to.
            let others = self.workers.values().filter(|worker| worker.accepts());
            others.take(WORKERS_TO_WAKE).for_each(|worker| process::send_sigurg(worker.pid));
        }
        if !std::mem::take(&mut self.workers_changed) {
            return;
        }
        let accepting = || self.workers.values().filter(|member| member.accepts());
        let mut coverages: HashMap<(u32, u32), ShardCoverage> = HashMap::new();
        let mut assignees = HashSet::new();
        for listener in self.current.open_listeners() {
            let Some(share) = listener.shard() else { continue };
            let since = listener.first_generation();
            let coverage = coverages.entry((since, share.count)).or_insert_with(|| {
                let here = accepting().filter(|worker| worker.generation >= since);
                ShardCoverage::new(share.count, here.map(|worker| worker.slot))
            });
            let assignee = coverage.assignee(share.index);
            if listener.assign_to(assignee) {
                assignees.extend(assignee);
            }
        }
        let told = accepting().filter(|worker| assignees.contains(&worker.slot));
        told.for_each(|worker| process::send_sigurg(worker.pid));
    }
}

/// Who is there for the sockets at one address.
pub(in crate::arbiter) struct ShardCoverage {
    /// Whether somebody is there to whom the nth socket belongs.
    covered: Vec<bool>,
    /// The slots in which somebody is, in order.
    slots: Vec<usize>,
}

impl ShardCoverage {
    /// For so many sockets, with workers in these slots.
    pub(in crate::arbiter) fn new(count: u32, slots: impl Iterator<Item = usize>) -> Self {
        let mut covered = vec![false; count as usize];
        let mut slots: Vec<usize> = slots.collect();
        slots.sort_unstable();
        slots.dedup();
        slots.iter().for_each(|slot| covered[slot % count as usize] = true);
        Self { covered, slots }
    }

    /// The slot whose worker borrows the nth socket; `None` if none needs to, or nobody is there.
    pub(in crate::arbiter) fn assignee(&self, index: u32) -> Option<usize> {
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
        assert_eq!(assignees(2, &[4, 1]), [None; 2]); // one that was added by a signal
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
