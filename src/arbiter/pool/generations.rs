//! What a reload does to one pool: it replaces the generation, and commits or restores.

use std::os::fd::RawFd;
use std::sync::Arc;

use super::Pool;
use super::supervisor::Policy;
use crate::arbiter::generation::PoolGeneration;
use crate::listen::Listener;
use crate::settings::Workers;

impl<'a> Pool<'a> {
    /// Begins to replace the workers by those of another generation. Returns the previous one.
    pub(in crate::arbiter) fn replace_generation(
        &mut self,
        next: PoolGeneration<'a>,
        number: u32,
    ) -> PoolGeneration<'a> {
        let (workers, is_unchanged) =
            (next.spec.settings.workers, next.spec.settings.workers == self.settings().workers);
        let target = match self.supervisor.target() {
            _ if self.is_retired => workers.count(),
            target => workers.kept_count(target, is_unchanged),
        };
        self.is_retired = false;
        self.processes.environment().program_fds.exclude(next.listener_fds());
        let previous = std::mem::replace(&mut self.generation, next);
        self.begin_generation(target, number);
        previous
    }

    /// Takes over the number of workers that the pool has in the master that this one is to replace, and
    /// whose setting was `workers`. No worker has been started. `auto` is determined anew.
    pub(in crate::arbiter) fn inherit_target(&mut self, target: usize, workers: &str) {
        let own = self.settings().workers;
        let is_unchanged = own != Workers::Auto && own.to_string() == workers;
        self.supervisor.scale_to(own.kept_count(target, is_unchanged));
    }

    /// Begins to start `target` workers of this generation, the canary first.
    pub(in crate::arbiter) fn begin_generation(&mut self, target: usize, number: u32) {
        self.failure_reason.clear();
        self.supervisor.begin_reload(Policy::from(self.settings()), target, number);
    }

    /// Ends a reload that has replaced `previous`, or has added the pool.
    pub(in crate::arbiter) fn commit_generation(
        &mut self,
        previous: Option<&PoolGeneration<'_>>,
        number: u32,
    ) {
        let is_new = |listener: &&Arc<Listener>| previous.is_none_or(|it| !it.has(listener));
        for listener in self.generation.listeners.iter().filter(is_new) {
            listener.set_first_generation(number);
        }
        self.shards.set_generation(&self.generation, &self.processes);
        self.generation.set_backlogs();
    }

    /// Returns to the previous generation. Returns the one that has failed.
    pub(in crate::arbiter) fn restore_generation(
        &mut self,
        previous: PoolGeneration<'a>,
    ) -> PoolGeneration<'a> {
        let failed = std::mem::replace(&mut self.generation, previous);
        if failed.has_entered_standby && !self.generation.is_standby {
            // Meanwhile the leadership was lost, and the sockets of both were closed. If it has been
            // regained, this generation binds its addresses anew.
            self.generation.enter_standby();
        }
        if self.workers_range().is_some() && self.supervisor.target() > 0 {
            self.scale_to(self.supervisor.target()); // a signal may have moved it within the new range
        }
        self.shards.set_generation(&self.generation, &self.processes);
        failed
    }

    /// Drains all workers for good. If there is no other master, stops listening, except on
    /// `keep_open`.
    pub(in crate::arbiter) fn retire(&mut self, is_sole_master: bool, keep_open: &[RawFd]) {
        (self.is_retired, self.is_in_drain_mode) = (true, false);
        self.supervisor.scale_to_zero();
        if is_sole_master {
            self.generation.stop_accepting(keep_open);
        }
        self.generation.listeners.clear();
        self.shards.set_generation(&self.generation, &self.processes);
    }
}
