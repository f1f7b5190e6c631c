//! The commands of the control interface: each does what a signal does, and is followed until it has
//! come true or failed.

use serde_json::json;
use slog::info;

use super::operations::{
    Command, Fact, PoolView, Present, Progress, Recycling, Refusal, ScaleTo, Scaling, Work,
};
use super::pool::Pool;
use super::pool::supervisor::{ReloadPhase, WORKERS_MAX};
use super::transitions::Transitions;
use crate::os::signal::Signal;
use crate::time::MonotonicTime;

impl Transitions<'_> {
    /// Takes up the commands that clients have asked for since the last turn.
    pub(super) fn take_commands(&mut self, now: MonotonicTime) {
        let asked = {
            let mut operations = self.operations.lock();
            operations.set_now(now);
            operations.take_asked()
        };
        for it in asked {
            let name = it.command.name();
            let result = self.execute(it.command, &it.by, now);
            match &result {
                Ok(id) => info!(self.state.log(), "command received"; "command" => name,
                    "by" => &it.by, "operation" => id),
                Err(refusal) => info!(self.state.log(), "command refused"; "command" => name,
                    "by" => &it.by, "status" => refusal.status),
            }
            let _ = it.reply.set(result); // nothing else sets it
        }
    }

    fn execute(&mut self, command: Command, by: &str, now: MonotonicTime) -> Result<u64, Refusal> {
        let is_stop = matches!(command, Command::Stop { .. });
        if !is_stop && self.state.is_stopping() {
            return Err(Refusal::conflict("the master is stopping"));
        }
        // What ends running operations gets past them.
        let frees = matches!(command, Command::DrainMode { is_on: false, .. });
        if !is_stop && !frees && self.operations.lock().is_full() {
            return Err(Refusal::conflict("too many operations are under way"));
        }
        match command {
            Command::Reload { dry_run: false } => Ok(self.request_reload(by)),
            Command::Reload { dry_run: true } => {
                self.reload.request_dry_run(&self.state).map_err(Refusal::conflict)?;
                Ok(self.operations.lock().begin(Work::DryRun, by, None))
            }
            Command::Upgrade => {
                if self.upgrade.is_pending || !self.upgrade.is_sole_master() {
                    return Err(Refusal::conflict("an upgrade is under way"));
                }
                Ok(self.request_upgrade(true, by))
            }
            Command::Scale { pool, workers } => self.scale(pool, workers, by),
            Command::Recycle { pool, slot } => self.recycle(pool.as_deref(), slot, by, now),
            Command::DrainMode { pool, slot: Some(slot), is_on } => {
                self.set_worker_drain_mode(pool.as_deref(), slot, is_on, by, now)
            }
            Command::DrainMode { pool, slot: None, is_on } => {
                self.set_drain_mode(pool.as_deref(), is_on, by)
            }
            Command::Reopen => Ok(self.reopen_logs(by)),
            Command::Stop { now: true } => Ok(self.request_stop(Signal::Quit, by)),
            Command::Stop { now: false } => Ok(self.request_stop(Signal::Term, by)),
        }
    }

    /// Scales the only pool by a step, for SIGTTIN and SIGTTOU.
    pub(super) fn scale_by_signal(&mut self, step: isize, signal: Signal, by: &str) {
        if let Some((pool, before, after)) = self.state.scale_by(step, signal) {
            self.follow_scaling(&pool, before, after, by);
        }
    }

    fn scale(&mut self, pool: Option<String>, workers: ScaleTo, by: &str) -> Result<u64, Refusal> {
        let name = match pool {
            Some(name) => name,
            None => match self.pool_names()[..] {
                [only] => only.to_owned(),
                ref names => {
                    let names = names.join(", ");
                    return Err(Refusal::bad(format!("name a pool: there are {names}")));
                }
            },
        };
        let pool = self.find_pool(&name)?;
        let before = pool.present_target();
        let wanted = match workers {
            ScaleTo::Count(count) => count,
            ScaleTo::Step(step) => before.checked_add_signed(step).unwrap_or(0),
        };
        let range = pool.workers_range();
        let (has_range, bounds) = (range.is_some(), range.unwrap_or(1..=WORKERS_MAX));
        if !bounds.contains(&wanted) {
            let (min, max) = (bounds.start(), bounds.end());
            let reason = format!(
                "pool {name:?} has {before} workers: the number must stay from {min} to {max}"
            );
            return Err(match workers {
                ScaleTo::Count(_) if !has_range => Refusal::bad(reason),
                ScaleTo::Count(_) | ScaleTo::Step(_) => Refusal::conflict(reason),
            });
        }
        let lowest = *pool.target_bounds().start();
        if wanted < lowest && wanted < before {
            return Err(Refusal::conflict(format!(
                "pool {name:?} has workers in drain mode, which scaling does not remove: the number must \
                 stay from {lowest}, or undrain or recycle them first"
            )));
        }
        if before != wanted {
            self.state.scale(&name, wanted);
        }
        Ok(self.follow_scaling(&name, before, wanted, by))
    }

    fn follow_scaling(&mut self, name: &str, from: usize, to: usize, by: &str) -> u64 {
        let pool = self.state.pools.by_name(name).map(|pool| &*pool);
        let mut operations = self.operations.lock();
        let now = operations.now();
        let work = pool.map(|it| Scaling::new(from, to, it.supervisor(), it.step_time(), now));
        work.map_or(0, |work| operations.begin(Work::Scale(work), by, Some(name)))
    }

    fn recycle(
        &mut self,
        pool: Option<&str>,
        slot: Option<usize>,
        by: &str,
        now: MonotonicTime,
    ) -> Result<u64, Refusal> {
        let names = self.names_of(pool)?;
        if let Some(slot) = slot {
            self.pool_of_slot(&names, slot)?;
        }
        let suspended = self.state.pools.present().find(|pool| pool.supervisor().is_suspended());
        if let Some(pool) = suspended {
            return Err(Refusal::conflict(format!("pool {:?} is suspended", pool.name())));
        }
        let chosen = |pool: &&mut Pool<'_>| names.iter().any(|name| name == pool.name());
        let pools = self.state.pools.iter_mut().filter(chosen).filter(|pool| !pool.is_retired());
        let (mut workers, mut step_time) = (Vec::new(), std::time::Duration::ZERO);
        for pool in pools {
            workers.extend(pool.recycle(slot));
            step_time = step_time.max(pool.step_time());
        }
        if workers.is_empty() {
            return Err(Refusal::conflict("there is no ready worker to replace"));
        }
        let work = Work::Recycle(Recycling::new(workers, step_time, now));
        let pool = pool.filter(|_| names.len() == 1);
        Ok(self.operations.lock().begin(work, by, pool))
    }

    /// Turns the drain mode of a pool, or of all pools, on or off, in a new master too.
    fn set_drain_mode(
        &mut self,
        pool: Option<&str>,
        is_on: bool,
        by: &str,
    ) -> Result<u64, Refusal> {
        let names = self.names_of(pool)?;
        for name in &names {
            if self.state.pools.set_drain_mode(name, is_on) {
                self.upgrade.send_drain_mode(name, is_on, self.state.log());
            }
        }
        let mut operations = self.operations.lock();
        let id = operations.begin(Work::DrainMode { is_on }, by, pool);
        operations.end(id, Ok(json!({ "drain_mode": is_on, "pools": names })));
        Ok(id)
    }

    /// Turns the drain mode of a worker on or off.
    fn set_worker_drain_mode(
        &mut self,
        pool: Option<&str>,
        slot: usize,
        is_on: bool,
        by: &str,
        now: MonotonicTime,
    ) -> Result<u64, Refusal> {
        let names = self.names_of(pool)?;
        let name = self.pool_of_slot(&names, slot)?.to_owned();
        let pool = self.state.pools.present_mut().find(|pool| pool.name() == name);
        let set = pool.map(|pool| pool.set_worker_drain_mode(slot, is_on, now));
        let Some(set) = set else { return Err(Refusal::unknown("the pool was removed")) };
        let drain = set.map_err(|reason| Refusal::conflict(format!("pool {name:?}: {reason}")))?;
        let mut operations = self.operations.lock();
        if is_on {
            return Ok(operations.begin_worker_drain(drain, by, &name));
        }
        let id = operations.begin(Work::DrainMode { is_on }, by, Some(&name));
        operations.end(id, Ok(drain.result(is_on)));
        Ok(id)
    }

    /// Returns the pool of this name, or all.
    fn names_of(&self, pool: Option<&str>) -> Result<Vec<String>, Refusal> {
        Ok(match pool {
            Some(name) => vec![self.find_pool(name)?.name().to_owned()],
            None => self.pool_names().into_iter().map(str::to_owned).collect(),
        })
    }

    /// Returns the only pool of these, if it has this slot.
    fn pool_of_slot<'n>(&self, names: &'n [String], slot: usize) -> Result<&'n str, Refusal> {
        let [name] = names else {
            return Err(Refusal::bad(format!("name the pool of the slot: {}", names.join(", "))));
        };
        if self.find_pool(name)?.supervisor().target() <= slot {
            return Err(Refusal::unknown(format!("pool {name:?} has no slot {slot}")));
        }
        Ok(name)
    }

    fn pool_names(&self) -> Vec<&str> {
        self.state.pools.present().map(Pool::name).collect()
    }

    fn find_pool(&self, name: &str) -> Result<&Pool<'_>, Refusal> {
        let found = self.state.pools.present().find(|pool| pool.name() == name);
        found.ok_or_else(|| {
            let names = self.pool_names().join(", ");
            Refusal::unknown(format!("no pool is called {name:?}: there are {names}"))
        })
    }
}

/// What the operations are told.
impl Transitions<'_> {
    /// Tells the operations what has happened in this turn, and what the pools are like now.
    pub(super) fn follow_operations(&mut self, now: MonotonicTime) {
        let facts: Vec<Fact> =
            self.reload.take_facts().into_iter().chain(self.upgrade.take_facts()).collect();
        let mut operations = self.operations.lock();
        operations.set_now(now);
        facts.into_iter().for_each(|fact| operations.on_fact(fact));
        if operations.running(|_| true).is_none() {
            return;
        }
        let pools = &self.state.pools;
        let find = |name: &str| -> Option<PoolView<'_>> {
            pools.present().find(|pool| pool.name() == name).map(Pool::view)
        };
        operations.on_turn(&Present {
            workers: pools.worker_count(),
            is_stopping: pools.stopping().is_some(),
            is_pre_stop: self.state.pre_stop.is_waiting(),
            reload: self.reload_progress(now),
            pool: &find,
        });
    }

    /// Returns how many slots the reload in progress has refilled.
    fn reload_progress(&self, now: MonotonicTime) -> Option<Progress> {
        let supervisors = self.state.pools.iter().map(Pool::supervisor);
        let reloading: Vec<_> = supervisors.filter(|it| it.is_reloading()).collect();
        let slowest = reloading.iter().filter_map(|it| it.reload_phase(now)).min()?;
        let phase = if slowest <= ReloadPhase::Canary { "canary" } else { "rolling" };
        let done = reloading.iter().map(|it| it.current_count()).sum();
        let total = reloading.iter().map(|it| it.target()).sum();
        Some(Progress { done, total, phase })
    }
}
