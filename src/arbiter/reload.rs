//! A reload is one transaction over all pools: everything new is read, checked, bound and tried out
//! before anything old goes, and whatever fails in one pool leaves the old as it was in all.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use slog::{error, info, warn};

use super::Arbiter;
use super::company::{self, ResolvedConfig, PoolGeneration, PrepareError, MasterContext};
use super::crew::ProcessTable;
use super::pool::{Part, Pool};
use crate::listen::activation::fd_name;
use crate::listen::{ListenerState, Listener, one_per_address};
use crate::log::error_chain;
use crate::os::clock;

/// Reads the settings anew and makes a blueprint of them; or says, for an operator, why not.
pub(crate) type Planner<'a> = Box<dyn Fn() -> Result<ResolvedConfig<'a>, String> + 'a>;

/// What a reload has prepared, before anything old is touched.
struct Change<'a> {
    context: MasterContext,
    /// What pools that are there, by their place, are to be made from.
    renewed: Vec<(usize, PoolGeneration<'a>)>,
    /// New pools.
    added: Vec<ProcessTable<'a>>,
}

impl<'a> Arbiter<'a> {
    /// Begins a reload, if one is wished for and none is under way. Wishes that come meanwhile
    /// become one.
    pub(super) fn reload_if_wished(&mut self) {
        if !self.reload_wished || self.is_reloading() {
            return;
        }
        self.reload_wished = false;
        if self.stopping().is_some() {
            return;
        }
        self.service_manager.reloading(clock::now());
        match self.prepare() {
            Ok(change) => self.begin(change),
            Err(reason) => {
                error!(self.log(), "reload refused"; "error" => reason);
                self.resume();
                let status = format!("{}; the last reload was refused", self.status_line());
                self.service_manager.ready(&status);
            }
        }
    }

    /// Makes everything that can be made without touching what serves.
    fn prepare(&self) -> Result<Change<'a>, String> {
        let config = (self.planner)()?;
        refuse_what_needs_an_upgrade(&self.context, &config)?;
        let current: Vec<&PoolGeneration<'a>> = self.pools.iter().map(Pool::current_generation).collect();
        let reusable_listeners = current.iter().flat_map(|pool_generation| &pool_generation.listeners);
        let reusable_listeners: Vec<Arc<Listener>> = reusable_listeners.map(Arc::clone).collect();
        let (context, pool_generations) =
            company::prepare_generations(config, &reusable_listeners, &current, self.kin.is_alone()).map_err(in_words)?;
        let mut change = Change { context, renewed: Vec::new(), added: Vec::new() };
        for pool_generation in pool_generations {
            let name = &pool_generation.spec.name;
            match self.pools.iter().position(|pool| pool.name() == name) {
                Some(index) => change.renewed.push((index, pool_generation)),
                None => match ProcessTable::new(pool_generation, self.title, &self.oom, &self.cgroups) {
                    Ok(processes) => change.added.push(processes),
                    Err(error) => {
                        change.take_back(&reusable_listeners);
                        return Err(format!("cannot make a pipe for a new pool: {error}"));
                    }
                },
            }
        }
        Ok(change)
    }

    fn begin(&mut self, change: Change<'a>) {
        self.say_done(); // of an earlier one
        let opened = self.opened_by(&change);
        let Change { context, renewed, added } = change;
        self.previous_context = Some(std::mem::replace(&mut self.context, context));
        let before = self.generation();
        self.generations += 1;
        let generation = self.generations;
        self.pools.iter_mut().for_each(|pool| _ = pool.supervisor.resume());
        for pool in self.pools.iter_mut().filter(|pool| pool.part == Part::Stays) {
            pool.part = Part::Goes;
        }
        for (index, pool_generation) in renewed {
            self.pools[index].adopt(pool_generation, generation);
        }
        for processes in added {
            let mut pool = Pool::added(processes, self.hooks, before);
            pool.renew(pool.settings().workers.count(), generation);
            self.pools.push(pool);
        }
        self.say_begun(generation);
        self.hook("on_reload", |hooks| hooks.on_reload(generation));
        for (pool, address) in opened {
            info!(self.context.pool_log(&pool).logger(), "listening"; "address" => address);
        }
    }

    /// The addresses that are new, each with its pool.
    fn opened_by(&self, change: &Change<'a>) -> Vec<(String, String)> {
        let known = |l: &&Listener| {
            let current = self.pools.iter().flat_map(|pool| &pool.current_generation().listeners);
            current.map(AsRef::as_ref).any(|known| std::ptr::eq(known, *l))
        };
        let mut opened = Vec::new();
        for pool_generation in change.companies() {
            let fresh = pool_generation.listeners.iter().map(AsRef::as_ref);
            let fresh = fresh.filter(|l| !known(l) && l.state() != ListenerState::NotListening);
            for listener in one_per_address(fresh) {
                opened.push((pool_generation.spec.name.clone(), listener.name().to_owned()));
            }
        }
        opened
    }

    fn say_begun(&self, generation: u32) {
        let new = || self.pools.iter().filter(|pool| pool.supervisor.is_reloading());
        let workers: usize = new().map(|pool| pool.supervisor.target()).sum();
        if self.context.has_named_pools {
            let names: Vec<&str> = new().map(Pool::name).collect();
            info!(self.log(), "reload begins"; "generation" => generation,
                "pools" => names.join(", "), "workers" => workers);
        } else {
            let class = new().next().map_or("", |pool| pool.current_generation().spec.class.name());
            info!(self.log(), "reload begins"; "generation" => generation, "class" => class,
                "workers" => workers);
        }
    }

    /// The new generation is complete in all pools: what only the old one had is let go.
    pub(super) fn commit_reload(&mut self) {
        let (alone, generation) = (self.kin.is_alone(), self.generation());
        self.previous_context = None;
        let stays = |pool: &&Pool<'a>| pool.part != Part::Goes;
        let kept: Vec<RawFd> =
            self.pools.iter().filter(stays).flat_map(|pool| pool.current_generation().listener_fds()).collect();
        let mut closed: Vec<(String, Arc<Listener>)> = Vec::new();
        for pool in &mut self.pools {
            let old = pool.commit(alone, generation, &kept);
            closed.extend(old.into_iter().map(|listener| (pool.name().to_owned(), listener)));
        }
        for listener in one_per_address(closed.iter().map(|(_, listener)| listener.as_ref())) {
            self.service_manager.remove_stored_fd(&fd_name(listener));
            let of = |(_, known): &&(String, Arc<Listener>)| std::ptr::eq(known.as_ref(), listener);
            let pool = closed.iter().find(of).map_or("", |(pool, _)| pool);
            info!(self.context.pool_log(pool).logger(), "no longer listening";
                "address" => listener.name());
        }
        self.push_fd_store();
        self.pools.iter().for_each(Pool::set_backlogs);
        self.show_title();
        self.settling = true;
    }

    /// Says that a reload is done, once nobody of an older generation lets clients in.
    pub(super) fn conclude_reload(&mut self) {
        let generation = self.generation();
        if self.settling
            && self.stopping().is_none()
            && !self.pools.iter().any(|pool| pool.processes.any_older_accepts(generation))
        {
            self.say_done();
        }
    }

    fn say_done(&mut self) {
        if std::mem::take(&mut self.settling) {
            info!(self.log(), "reload done"; "generation" => self.generation());
            self.service_manager.ready(&self.status_line());
        }
    }

    /// The new generation has failed in the pool of this index: back to the old in all.
    pub(super) fn roll_back_reload(&mut self, culprit: usize) {
        let alone = self.kin.is_alone();
        let is_named = self.context.has_named_pools;
        if let Some(earlier) = self.previous_context.take() {
            self.context = earlier;
        }
        let stays = |pool: &&Pool<'a>| pool.part != Part::Comes;
        let kept: Vec<RawFd> =
            self.pools.iter().filter(stays).flat_map(|pool| pool.earlier_sockets()).collect();
        self.pools.iter_mut().for_each(|pool| pool.roll_back(alone, &kept));
        let (pool, log) = (&self.pools[culprit], &self.context.log);
        let log = if is_named { log.for_pool(pool.name()) } else { log.clone() };
        error!(log.logger(), "reload failed: back to the earlier settings";
            "generation" => self.generation(), "error" => &pool.failure_reason);
        let status = format!("{}; the last reload failed", self.status_line());
        self.service_manager.ready(&status);
    }
}

impl<'a> Change<'a> {
    fn companies(&self) -> impl Iterator<Item = &PoolGeneration<'a>> {
        let renewed = self.renewed.iter().map(|(_, pool_generation)| pool_generation);
        renewed.chain(self.added.iter().map(ProcessTable::current))
    }

    /// Nothing comes of it.
    fn take_back(&self, reusable_listeners: &[Arc<Listener>]) {
        company::discard(self.companies(), reusable_listeners);
    }
}

/// What a reload means for one pool.
impl<'a> Pool<'a> {
    /// New workers are to be made from this.
    fn adopt(&mut self, pool_generation: PoolGeneration<'a>, generation: u32) {
        let current = self.settings();
        let settings = &pool_generation.spec.settings;
        // Workers that were added or taken away by a signal stay so, unless the file says anew
        // how many there are to be.
        let unchanged = settings.workers == current.workers && self.part != Part::Gone;
        let target = if unchanged { self.supervisor.target() } else { settings.workers.count() };
        self.part = if self.part == Part::Gone { Part::Comes } else { Part::Stays };
        self.processes.stage_generation(pool_generation);
        self.renew(target, generation);
    }

    /// A reload has come to its end. Returns the listeners that nobody has any more.
    fn commit(&mut self, alone: bool, generation: u32, kept: &[RawFd]) -> Vec<Arc<Listener>> {
        let old = match self.part {
            Part::Goes => {
                let listeners = self.current_generation().listeners.clone();
                self.dissolve(alone, kept);
                listeners
            }
            Part::Gone => Vec::new(),
            Part::Stays | Part::Comes => {
                self.part = Part::Stays;
                let previous = self.processes.commit_generation(generation);
                if let Some(previous) = previous.as_ref().filter(|_| alone) {
                    previous.stop_accepting(kept);
                }
                previous.map_or(Vec::new(), |previous| previous.listeners)
            }
        };
        let is_lost = |listener: &Arc<Listener>| !kept.contains(&listener.as_raw_fd());
        old.into_iter().filter(is_lost).collect()
    }

    /// The sockets that it had before a reload.
    fn earlier_sockets(&self) -> impl Iterator<Item = RawFd> {
        self.processes.generations().next().into_iter().flat_map(PoolGeneration::listener_fds)
    }

    /// A reload has failed, here or elsewhere.
    fn roll_back(&mut self, alone: bool, kept: &[RawFd]) {
        if let Some(failed) = self.processes.restore_generation().filter(|_| alone) {
            failed.stop_accepting(kept);
        }
        match self.part {
            Part::Comes => self.dissolve(alone, kept),
            Part::Goes => self.part = Part::Stays,
            Part::Stays | Part::Gone => (),
        }
    }

    fn set_backlogs(&self) {
        let backlog = self.settings().backlog;
        for listener in &self.current_generation().listeners {
            if let Err(error) = listener.set_backlog(backlog) {
                warn!(self.log(), "backlog cannot be changed"; "address" => listener.name(),
                    "error" => %error);
            }
        }
    }
}

fn in_words(error: PrepareError) -> String {
    match error {
        PrepareError::Listen(error) => error_chain(&error),
        PrepareError::Log(error) => error_chain(&error),
        PrepareError::Scoreboard(error) => format!("cannot make a scoreboard: {error}"),
    }
}

/// What belongs to the master itself cannot change under it.
fn refuse_what_needs_an_upgrade(context: &MasterContext, config: &ResolvedConfig<'_>) -> Result<(), String> {
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
            let place = new.source(key);
            Err(format!("{key} ({place}) cannot change by a reload: start the program anew"))
        }
    }
}
