//! All pools of the master: what concerns every pool, or is counted over all of them.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use super::generation::PoolGeneration;
use super::pool::Pool;
use super::pool::supervisor::{RunOutcome, ShutdownMode, Supervisor};
use super::snapshot::{MasterPhase, PoolTotals};
use crate::listen::Listener;
use crate::os::process::Pid;
use crate::time::MonotonicTime;

/// The pools, at least one.
pub(super) struct Pools<'a>(Vec<Pool<'a>>);

impl<'a> Deref for Pools<'a> {
    type Target = Vec<Pool<'a>>;

    fn deref(&self) -> &Vec<Pool<'a>> {
        &self.0
    }
}

impl<'a> DerefMut for Pools<'a> {
    fn deref_mut(&mut self) -> &mut Vec<Pool<'a>> {
        &mut self.0
    }
}

impl<'a> Pools<'a> {
    pub(super) fn new(pools: Vec<Pool<'a>>) -> Self {
        Self(pools)
    }

    /// Returns what new workers are made from, in each pool.
    pub(super) fn generations(&self) -> impl Iterator<Item = &PoolGeneration<'a>> {
        self.iter().map(Pool::generation)
    }

    /// Returns the listeners that accept connections.
    pub(super) fn open_listeners(&self) -> impl Iterator<Item = &Arc<Listener>> {
        self.generations().flat_map(PoolGeneration::open_listeners)
    }

    /// Returns the pools that the settings have. The others only drain.
    pub(super) fn present(&self) -> impl Iterator<Item = &Pool<'a>> {
        self.iter().filter(|pool| !pool.is_retired())
    }

    /// Returns the pools that the settings have, to change them.
    pub(super) fn present_mut(&mut self) -> impl Iterator<Item = &mut Pool<'a>> {
        self.iter_mut().filter(|pool| !pool.is_retired())
    }

    /// Returns the pool of this name, also if it only drains.
    pub(super) fn by_name(&mut self, name: &str) -> Option<&mut Pool<'a>> {
        self.iter_mut().find(|pool| pool.name() == name)
    }

    /// Returns the pool of a worker process.
    pub(super) fn by_worker(&mut self, pid: Pid) -> Option<&mut Pool<'a>> {
        self.iter_mut().find(|pool| pool.contains(pid))
    }

    /// Returns the number of the newest generation that is not rolled back.
    pub(super) fn generation_number(&self) -> u32 {
        self.iter().map(|pool| pool.supervisor().generation()).max().unwrap_or_default()
    }

    /// Adds what the workers of another master had done, by the name of their pool.
    pub(super) fn add_earlier(&mut self, earlier: Option<(String, PoolTotals)>) {
        if let Some((name, totals)) = earlier
            && let Some(pool) = self.by_name(&name)
        {
            pool.add_earlier(&totals);
        }
    }

    /// Takes over the number of workers of a pool of the master that this one is to replace.
    pub(super) fn inherit_target(&mut self, (name, target, workers): (&str, usize, &str)) {
        if let Some(pool) = self.by_name(name) {
            pool.inherit_target(target, workers);
        }
    }

    /// Turns the drain mode of a pool on or off. Returns whether it was not so.
    pub(super) fn set_drain_mode(&mut self, name: &str, is_on: bool) -> bool {
        let pool = self.by_name(name).filter(|pool| !pool.is_retired());
        pool.is_some_and(|pool| pool.set_drain_mode(is_on))
    }

    /// Returns how many workers have not exited.
    pub(super) fn worker_count(&self) -> usize {
        self.iter().map(|pool| pool.supervisor().worker_count()).sum()
    }

    /// Returns how many workers there should be.
    pub(super) fn target(&self) -> usize {
        self.iter().map(|pool| pool.supervisor().target()).sum()
    }

    /// Returns whether every pool has as many ready workers as it should.
    pub(super) fn all_ready(&self) -> bool {
        // Those that were put into drain mode have been ready.
        let ready = |it: &Supervisor| it.ready_count() + it.drain_mode_count();
        let is_ready = |it: &Supervisor| it.is_standby() || ready(it) >= it.target();
        self.iter().map(Pool::supervisor).all(is_ready)
    }

    /// Returns when a pool has something to do, if nothing happens before.
    pub(super) fn next_deadline(&self, now: MonotonicTime) -> Option<MonotonicTime> {
        self.iter().filter_map(|pool| pool.next_deadline(now)).min()
    }

    /// Returns the state of the workers, such as `4/4 workers ready, generation 3`.
    pub(super) fn status_line(&self) -> String {
        let ready: usize = self.iter().map(|pool| pool.supervisor().ready_count()).sum();
        format!("{ready}/{} workers ready, generation {}", self.target(), self.generation_number())
    }

    /// Returns the longest time that a worker may take to boot.
    pub(super) fn max_boot_timeout(&self) -> Duration {
        self.iter().map(|pool| pool.settings().boot_timeout).max().unwrap_or_default()
    }

    /// Returns the longest time that a worker may take to drain and to be killed.
    pub(super) fn max_stop_time(&self) -> Duration {
        let settings = self.iter().map(Pool::settings);
        let times = settings.map(|it| it.graceful_timeout.saturating_add(it.abort_timeout));
        times.max().unwrap_or_default()
    }

    /// Returns whether a reload is in progress.
    pub(super) fn is_reloading(&self) -> bool {
        self.iter().any(|pool| pool.supervisor().is_reloading())
    }

    /// Returns how the master stops, if it does.
    pub(super) fn stopping(&self) -> Option<ShutdownMode> {
        self.iter().filter_map(|pool| pool.supervisor().stopping()).max()
    }

    /// Returns what the master is doing. `is_starting` means that its first workers are not ready.
    pub(super) fn phase(&self, is_starting: bool) -> MasterPhase {
        if self.stopping().is_some() {
            MasterPhase::Stopping
        } else if is_starting {
            MasterPhase::Starting
        } else if self.is_reloading() {
            MasterPhase::Reloading
        } else {
            MasterPhase::Running
        }
    }

    /// Returns how the run has ended, once it has in every pool.
    pub(super) fn outcome(&self) -> Option<RunOutcome> {
        let outcomes = self.iter().map(|pool| pool.supervisor().outcome());
        let outcomes: Vec<RunOutcome> = outcomes.collect::<Option<_>>()?;
        let never_ready = outcomes.contains(&RunOutcome::NeverReady);
        Some(if never_ready { RunOutcome::NeverReady } else { RunOutcome::Stopped })
    }

    /// Begins to stop every pool, or stops it harder.
    pub(super) fn stop(&mut self, mode: ShutdownMode) {
        self.iter_mut().for_each(|pool| pool.stop(mode));
    }

    /// Starts workers again in every pool after a graceful stop. Returns whether this has undone it.
    pub(super) fn cancel_stop(&mut self) -> bool {
        let is_graceful = self.stopping() == Some(ShutdownMode::Graceful);
        if is_graceful {
            self.iter_mut().for_each(Pool::cancel_stop);
        }
        is_graceful
    }

    /// Starts workers again in every pool that was suspended. Returns whether there was any.
    pub(super) fn resume(&mut self) -> bool {
        let resumed = self.iter_mut().map(Pool::resume);
        resumed.fold(false, |any, resumed| any | resumed)
    }

    /// Excludes the time in which the master did not run from the workers' timeouts.
    pub(super) fn discount_stall(&mut self, since: MonotonicTime, now: MonotonicTime) {
        self.iter_mut().for_each(|pool| pool.discount_stall(since, now));
    }

    /// Drops the pools that a reload has removed and whose workers have exited.
    pub(super) fn drop_retired(&mut self) {
        self.retain(|pool| !pool.is_dropped());
    }
}
