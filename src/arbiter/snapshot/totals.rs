//! What a pool's workers have done so far.

use std::time::Duration;

use crate::scoreboard::WorkTotals;

/// What has been counted since the first master started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::arbiter) struct PoolTotals {
    /// What workers past and present have counted.
    pub(in crate::arbiter) work: WorkTotals,
    pub(in crate::arbiter) workers_started: u64,
    /// How often a worker has become ready, and how long that took altogether.
    pub(in crate::arbiter) boots: u64,
    pub(in crate::arbiter) boot_time: Duration,
    /// A reason and how many workers have exited for it.
    pub(in crate::arbiter) exits: Vec<(&'static str, u64)>,
}

impl PoolTotals {
    /// Returns what has been counted beyond `before`.
    pub(in crate::arbiter) fn since(&self, before: &Self) -> Self {
        let exits = self.exits.iter().map(|(reason, count)| {
            let known = before.exits.iter().find(|(name, _)| name == reason);
            (*reason, count.saturating_sub(known.map_or(0, |(_, count)| *count)))
        });
        Self {
            work: self.work.clone().since(&before.work),
            workers_started: self.workers_started.saturating_sub(before.workers_started),
            boots: self.boots.saturating_sub(before.boots),
            boot_time: self.boot_time.saturating_sub(before.boot_time),
            exits: exits.collect(),
        }
    }

    /// Adds other totals.
    pub(in crate::arbiter) fn add(&mut self, other: &Self) {
        self.work.add(&other.work);
        self.workers_started = self.workers_started.saturating_add(other.workers_started);
        self.boots = self.boots.saturating_add(other.boots);
        self.boot_time = self.boot_time.saturating_add(other.boot_time);
        for (reason, count) in &other.exits {
            match self.exits.iter_mut().find(|(name, _)| name == reason) {
                Some((_, total)) => *total = total.saturating_add(*count),
                None => self.exits.push((reason, *count)),
            }
        }
    }
}
