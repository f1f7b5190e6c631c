//! A reload is one transaction over all pools: everything new is read, checked, bound and tried out
//! before anything old goes, and whatever fails in one pool leaves the old as it was in all.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use slog::{error, info, warn};

use super::Arbiter;
use super::generation::{self, MasterContext, PoolGeneration, PrepareError, ResolvedConfig};
use super::pool::processes::ProcessTable;
use super::pool::{Pool, PoolStatus};
use crate::listen::activation::fd_name;
use crate::listen::{Listener, ListenerState, one_per_address};
use crate::log::error_chain;
use crate::os::clock;

/// Reads the settings anew and makes a blueprint of them; or says, for an operator, why not.
pub(crate) type ConfigLoader<'a> = Box<dyn Fn() -> Result<ResolvedConfig<'a>, String> + 'a>;

/// What a reload has prepared, before anything old is touched.
struct StagedReload<'a> {
    context: MasterContext,
    /// What pools that are there, by their place, are to be made from.
    updated: Vec<(usize, PoolGeneration<'a>)>,
    /// New pools.
    added: Vec<ProcessTable<'a>>,
}

impl<'a> Arbiter<'a> {
    /// Begins a reload, if one is wished for and none is under way. Wishes that come meanwhile
    /// become one.
    pub(super) fn start_pending_reload(&mut self) {
        if !self.reload_pending || self.is_reloading() {
            return;
        }
        self.reload_pending = false;
        if self.stopping().is_some() {
            return;
        }
        self.service_manager.reloading(clock::now());
        match self.prepare_reload() {
            Ok(staged) => self.begin_reload(staged),
            Err(reason) => {
                error!(self.log(), "reload rejected"; "error" => reason);
                self.resume_workers();
                let status = format!("{}; last reload rejected", self.status_line());
                self.service_manager.ready(&status);
            }
        }
    }

    /// Makes everything that can be made without touching what serves.
    fn prepare_reload(&self) -> Result<StagedReload<'a>, String> {
        let config = (self.config_loader)()?;
        check_reloadable(&self.context, &config)?;
        let current: Vec<&PoolGeneration<'a>> =
            self.pools.iter().map(Pool::current_generation).collect();
        let reusable_listeners =
            current.iter().flat_map(|pool_generation| &pool_generation.listeners);
        let reusable_listeners: Vec<Arc<Listener>> = reusable_listeners.map(Arc::clone).collect();
        let (context, pool_generations) = generation::prepare_generations(
            config,
            &reusable_listeners,
            &current,
            self.upgrade_peer.is_none(),
        )
        .map_err(prepare_error_text)?;
        let mut staged = StagedReload { context, updated: Vec::new(), added: Vec::new() };
        for pool_generation in pool_generations {
            let name = &pool_generation.spec.name;
            match self.pools.iter().position(|pool| pool.name() == name) {
                Some(index) => staged.updated.push((index, pool_generation)),
                None => {
                    match ProcessTable::new(pool_generation, self.title, &self.oom, &self.cgroups) {
                        Ok(processes) => staged.added.push(processes),
                        Err(error) => {
                            staged.discard(&reusable_listeners);
                            return Err(format!("failed to create pipe for new pool: {error}"));
                        }
                    }
                }
            }
        }
        Ok(staged)
    }

    fn begin_reload(&mut self, staged: StagedReload<'a>) {
        self.log_reload_complete(); // of an earlier one
        let new_addresses = self.newly_opened(&staged);
        let StagedReload { context, updated, added } = staged;
        self.previous_context = Some(std::mem::replace(&mut self.context, context));
        let before = self.generation();
        self.generation_count += 1;
        let generation = self.generation_count;
        self.pools.iter_mut().for_each(|pool| _ = pool.supervisor.resume());
        for pool in self.pools.iter_mut().filter(|pool| pool.status == PoolStatus::Active) {
            pool.status = PoolStatus::Removing;
        }
        for (index, pool_generation) in updated {
            self.pools[index].stage_reload(pool_generation, generation);
        }
        for processes in added {
            let mut pool = Pool::for_reload(processes, self.hooks, before);
            pool.start_generation(pool.settings().workers.count(), generation);
            self.pools.push(pool);
        }
        self.log_reload_started(generation);
        self.hook("on_reload", |hooks| hooks.on_reload(generation));
        for (pool, address) in new_addresses {
            info!(self.context.pool_log(&pool).logger(), "listening"; "address" => address);
        }
    }

    /// The addresses that are new, each with its pool.
    fn newly_opened(&self, staged: &StagedReload<'a>) -> Vec<(String, String)> {
        let known = |l: &&Listener| {
            let current = self.pools.iter().flat_map(|pool| &pool.current_generation().listeners);
            current.map(AsRef::as_ref).any(|known| std::ptr::eq(known, *l))
        };
        let mut new_addresses = Vec::new();
        for pool_generation in staged.generations() {
            let fresh = pool_generation.listeners.iter().map(AsRef::as_ref);
            let fresh = fresh.filter(|l| !known(l) && l.state() != ListenerState::NotListening);
            for listener in one_per_address(fresh) {
                new_addresses.push((pool_generation.spec.name.clone(), listener.name().to_owned()));
            }
        }
        new_addresses
    }

    fn log_reload_started(&self, generation: u32) {
        let new = || self.pools.iter().filter(|pool| pool.supervisor.is_reloading());
        let workers: usize = new().map(|pool| pool.supervisor.target()).sum();
        if self.context.has_named_pools {
            let names: Vec<&str> = new().map(Pool::name).collect();
            info!(self.log(), "reload started"; "generation" => generation,
                "pools" => names.join(", "), "workers" => workers);
        } else {
            let class = new().next().map_or("", |pool| pool.current_generation().spec.class.name());
            info!(self.log(), "reload started"; "generation" => generation, "class" => class,
                "workers" => workers);
        }
    }

    /// The new generation is complete in all pools: what only the old one had is let go.
    pub(super) fn commit_reload(&mut self) {
        let (is_sole_master, generation) = (self.upgrade_peer.is_none(), self.generation());
        self.previous_context = None;
        let stays = |pool: &&Pool<'a>| pool.status != PoolStatus::Removing;
        let keep_open: Vec<RawFd> = self
            .pools
            .iter()
            .filter(stays)
            .flat_map(|pool| pool.current_generation().listener_fds())
            .collect();
        let mut closed: Vec<(String, Arc<Listener>)> = Vec::new();
        for pool in &mut self.pools {
            let old = pool.commit(is_sole_master, generation, &keep_open);
            closed.extend(old.into_iter().map(|listener| (pool.name().to_owned(), listener)));
        }
        for listener in one_per_address(closed.iter().map(|(_, listener)| listener.as_ref())) {
            self.service_manager.remove_stored_fd(&fd_name(listener));
            let of = |(_, known): &&(String, Arc<Listener>)| std::ptr::eq(known.as_ref(), listener);
            let pool = closed.iter().find(of).map_or("", |(pool, _)| pool);
            info!(self.context.pool_log(pool).logger(), "stopped listening";
                "address" => listener.name());
        }
        self.push_fd_store();
        self.pools.iter().for_each(Pool::set_backlogs);
        self.set_process_title();
        self.waiting_for_old_workers = true;
    }

    /// Says that a reload is done, once nobody of an older generation lets clients in.
    pub(super) fn finish_reload(&mut self) {
        let generation = self.generation();
        if self.waiting_for_old_workers
            && self.stopping().is_none()
            && !self.pools.iter().any(|pool| pool.processes.any_older_accepts(generation))
        {
            self.log_reload_complete();
        }
    }

    fn log_reload_complete(&mut self) {
        if std::mem::take(&mut self.waiting_for_old_workers) {
            info!(self.log(), "reload complete"; "generation" => self.generation());
            self.service_manager.ready(&self.status_line());
        }
    }

    /// The new generation has failed in the pool of this index: back to the old in all.
    pub(super) fn roll_back_reload(&mut self, failed_pool: usize) {
        let is_sole_master = self.upgrade_peer.is_none();
        let is_named = self.context.has_named_pools;
        if let Some(previous) = self.previous_context.take() {
            self.context = previous;
        }
        let stays = |pool: &&Pool<'a>| pool.status != PoolStatus::Adding;
        let keep_open: Vec<RawFd> =
            self.pools.iter().filter(stays).flat_map(|pool| pool.previous_listener_fds()).collect();
        self.pools.iter_mut().for_each(|pool| pool.roll_back(is_sole_master, &keep_open));
        let (pool, log) = (&self.pools[failed_pool], &self.context.log);
        let log = if is_named { log.for_pool(pool.name()) } else { log.clone() };
        error!(log.logger(), "reload failed, rolled back";
            "generation" => self.generation(), "error" => &pool.failure_reason);
        let status = format!("{}; last reload failed", self.status_line());
        self.service_manager.ready(&status);
    }
}

impl<'a> StagedReload<'a> {
    fn generations(&self) -> impl Iterator<Item = &PoolGeneration<'a>> {
        let updated = self.updated.iter().map(|(_, pool_generation)| pool_generation);
        updated.chain(self.added.iter().map(ProcessTable::current))
    }

    /// Nothing comes of it.
    fn discard(&self, reusable_listeners: &[Arc<Listener>]) {
        generation::discard(self.generations(), reusable_listeners);
    }
}

/// What a reload means for one pool.
impl<'a> Pool<'a> {
    /// New workers are to be made from this.
    fn stage_reload(&mut self, pool_generation: PoolGeneration<'a>, generation: u32) {
        let current = self.settings();
        let settings = &pool_generation.spec.settings;
        // Workers that were added or taken away by a signal stay so, unless the file says anew
        // how many there are to be.
        let unchanged = settings.workers == current.workers && self.status != PoolStatus::Removed;
        let target = if unchanged { self.supervisor.target() } else { settings.workers.count() };
        self.status = if self.status == PoolStatus::Removed {
            PoolStatus::Adding
        } else {
            PoolStatus::Active
        };
        self.processes.stage_generation(pool_generation);
        self.start_generation(target, generation);
    }

    /// A reload has come to its end. Returns the listeners that nobody has any more.
    fn commit(
        &mut self,
        is_sole_master: bool,
        generation: u32,
        keep_open: &[RawFd],
    ) -> Vec<Arc<Listener>> {
        let old = match self.status {
            PoolStatus::Removing => {
                let listeners = self.current_generation().listeners.clone();
                self.retire(is_sole_master, keep_open);
                listeners
            }
            PoolStatus::Removed => Vec::new(),
            PoolStatus::Active | PoolStatus::Adding => {
                self.status = PoolStatus::Active;
                let previous = self.processes.commit_generation(generation);
                if let Some(previous) = previous.as_ref().filter(|_| is_sole_master) {
                    previous.stop_accepting(keep_open);
                }
                previous.map_or(Vec::new(), |previous| previous.listeners)
            }
        };
        let is_closed = |listener: &Arc<Listener>| !keep_open.contains(&listener.as_raw_fd());
        old.into_iter().filter(is_closed).collect()
    }

    /// The sockets that it had before a reload.
    fn previous_listener_fds(&self) -> impl Iterator<Item = RawFd> {
        self.processes.generations().next().into_iter().flat_map(PoolGeneration::listener_fds)
    }

    /// A reload has failed, here or elsewhere.
    fn roll_back(&mut self, is_sole_master: bool, keep_open: &[RawFd]) {
        if let Some(failed) = self.processes.restore_generation().filter(|_| is_sole_master) {
            failed.stop_accepting(keep_open);
        }
        match self.status {
            PoolStatus::Adding => self.retire(is_sole_master, keep_open),
            PoolStatus::Removing => self.status = PoolStatus::Active,
            PoolStatus::Active | PoolStatus::Removed => (),
        }
    }

    fn set_backlogs(&self) {
        let backlog = self.settings().backlog;
        for listener in &self.current_generation().listeners {
            if let Err(error) = listener.set_backlog(backlog) {
                warn!(self.log(), "failed to change backlog"; "address" => listener.name(),
                    "error" => %error);
            }
        }
    }
}

fn prepare_error_text(error: PrepareError) -> String {
    match error {
        PrepareError::Listen(error) => error_chain(&error),
        PrepareError::Log(error) => error_chain(&error),
        PrepareError::Scoreboard(error) => format!("failed to create scoreboard: {error}"),
    }
}

/// What belongs to the master itself cannot change under it.
fn check_reloadable(context: &MasterContext, config: &ResolvedConfig<'_>) -> Result<(), String> {
    let (old, new) = (&context.settings, &config.master);
    let changed = [
        ("pidfile", old.pidfile != new.pidfile),
        ("daemon", old.daemon != new.daemon),
        ("single_instance", old.single_instance != new.single_instance),
        ("proc_name", new.single_instance && old.proc_name != new.proc_name),
    ];
    match changed.iter().find(|(_, changed)| *changed) {
        None => Ok(()),
        Some((key, _)) => {
            let source = new.source(key);
            Err(format!("{key} ({source}) cannot be changed by reload; restart required"))
        }
    }
}
