//! Reloads (SIGHUP). A reload is one transaction over all pools: everything new is read, checked and
//! bound before anything old is touched; then all pools commit, or all return to what they were.
//!
//! 1. [`Planning`] reads and looks up in a child what the reload needs, while the loop goes on.
//!    [`StagedReload::prepare`] repeats that with the answers. Both may fail without effect: *reload
//!    rejected*.
//! 2. [`StagedReload::begin`] installs the new generation in all pools. The [`ReloadTransaction`] keeps
//!    what a roll-back restores. The supervisors start one canary each.
//! 3. `reload_barrier` says in each turn whether all pools have completed, or one has failed. Then
//!    [`Reload::commit_or_roll_back`] does that, before any worker drains for it.
//! 4. [`Reload::report_complete`] waits until no old worker accepts clients.

mod dry_run;
mod file_watch;
mod planning;
mod retired;
mod transaction;

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use serde_json::Value;
use slog::{error, info};

use super::generation::PoolGeneration;
use super::operations::Fact;
use super::pool::Pool;
use super::reload_barrier::ReloadResult;
use super::state::MasterState;
use super::upgrade::ExecArgs;
use crate::listen::{Listener, one_per_address};
use crate::os::clock;
use crate::os::lookups::Lookups;
use crate::time::MonotonicTime;
use dry_run::DryRun;
pub(super) use file_watch::FileChange;
use file_watch::FileWatch;
use planning::Planning;
use retired::RetiredListeners;
pub(crate) use transaction::ConfigLoader;
use transaction::{Rejection, ReloadTransaction, StagedReload};

/// The reloads of a master: at most one at a time.
pub(super) struct Reload<'a> {
    load_config: ConfigLoader<'a>,
    /// SIGHUP has arrived since the last reload began. Several become one reload.
    is_pending: bool,
    planning: Option<Planning>,
    /// A child that was given up, and has not exited.
    abandoned: Option<Planning>,
    /// The reload in progress: the new generation is installed, but not committed.
    transaction: Option<Box<ReloadTransaction<'a>>>,
    /// The generation of a committed reload, while older workers may still accept clients.
    incomplete_generation: Option<u32>,
    /// What earlier reloads have closed.
    retired: RetiredListeners,
    /// The requested reload waits until that is free: it binds one of these addresses again.
    waits_for_address: bool,
    /// The number of the newest generation, which may have been rolled back.
    newest_generation: u32,
    dry_run: DryRun,
    file_watch: FileWatch,
    /// What has happened since [`take_facts`](Self::take_facts).
    facts: Vec<Fact>,
}

impl<'a> Reload<'a> {
    pub(super) fn new(load_config: ConfigLoader<'a>) -> Self {
        Self {
            load_config,
            is_pending: false,
            planning: None,
            abandoned: None,
            transaction: None,
            incomplete_generation: None,
            retired: RetiredListeners::default(),
            waits_for_address: false,
            newest_generation: 1,
            dry_run: DryRun::default(),
            file_watch: FileWatch::default(),
            facts: Vec::new(),
        }
    }

    /// Takes what has happened since the last call.
    pub(super) fn take_facts(&mut self) -> Vec<Fact> {
        std::mem::take(&mut self.facts)
    }

    /// Begins to find out what a reload would change.
    ///
    /// # Errors
    /// Why it cannot begin now.
    pub(super) fn request_dry_run(&mut self, state: &MasterState<'a>) -> Result<(), String> {
        self.dry_run.start(&self.load_config, state)
    }

    /// Asks for a reload, which begins once none is in progress.
    pub(super) fn request(&mut self) {
        self.is_pending = true;
    }

    /// Plans a requested reload, unless one is in progress or the master stops, and begins it once it is
    /// planned.
    pub(super) fn start_pending(&mut self, state: &mut MasterState<'a>, is_sole_master: bool) {
        let any_worker_of =
            |generations: &_| state.pools.iter().any(|it| it.has_worker_of(generations));
        self.retired.free(any_worker_of, clock::now());
        self.facts.extend(self.dry_run.poll(clock::now()).map(Fact::DryRunEnded));
        if state.is_stopping() {
            (self.planning, self.is_pending) = (None, false);
        }
        if let Some(planning) = &mut self.planning {
            let Some(planned) = planning.poll(clock::now()) else { return };
            self.end_planning();
            let staged = planned.map_err(Rejection::from);
            match staged.and_then(|answers| self.prepare(state, is_sole_master, answers)) {
                Ok(staged) => self.begin(staged, state),
                Err(rejection) if rejection.is_address_in_use && !self.retired.is_empty() => {
                    info!(state.log(), "reload deferred"; "error" => rejection.reason);
                    (self.is_pending, self.waits_for_address) = (true, true);
                    self.facts.push(Fact::ReloadDeferred);
                }
                Err(rejection) => self.reject(rejection.reason, state),
            }
        }
        self.waits_for_address &= !self.retired.is_empty();
        if self.is_pending && !self.waits_for_address && !state.pools.is_reloading() {
            self.is_pending = false;
            self.facts.push(Fact::ReloadPlanned);
            state.service_manager.notify_reloading(clock::now());
            match self.start_planning(state) {
                Ok(planning) => self.planning = Some(planning),
                Err(reason) => self.reject(reason, state),
            }
        }
    }

    /// Returns what has changed of the files for which `reload` is set, once that has settled and no reload,
    /// upgrade or stop is under way.
    pub(super) fn take_file_change(
        &mut self,
        state: &MasterState<'a>,
        is_sole_master: bool,
    ) -> Option<FileChange> {
        self.file_watch.read();
        if self.may_reload(state, is_sole_master) {
            self.file_watch.take_change(state)
        } else {
            None
        }
    }

    /// Watches the files, if `reload` is set.
    pub(super) fn watch_files(
        &mut self,
        state: &MasterState<'a>,
        exec_args: Option<&ExecArgs>,
        is_sole_master: bool,
    ) {
        if !state.context.settings.reload || state.is_stopping() {
            self.file_watch.stop();
        } else if self.may_reload(state, is_sole_master) {
            self.file_watch.keep_running(state, exec_args);
        } else {
            self.file_watch.retry_later();
        }
    }

    fn may_reload(&self, state: &MasterState<'a>, is_sole_master: bool) -> bool {
        let is_reloading = self.is_pending || self.planning.is_some() || state.pools.is_reloading();
        is_sole_master && !is_reloading && !state.is_stopping()
    }

    fn reject(&mut self, reason: String, state: &mut MasterState<'_>) {
        error!(state.log(), "reload rejected"; "error" => &reason);
        self.facts.push(Fact::ReloadRejected(reason));
        state.resume_workers();
        state.notify_ready(Some("last reload rejected"));
    }

    /// Starts one child at most: none while an abandoned one has not exited.
    fn start_planning(&mut self, state: &MasterState<'a>) -> Result<Planning, String> {
        if self.abandoned.as_mut().is_some_and(|it| !it.has_ended()) {
            return Err("a file system does not answer to an earlier reload".to_owned());
        }
        self.abandoned = None;
        Planning::start(&self.load_config, state)
            .map_err(|error| format!("failed to fork: {error}"))
    }

    fn end_planning(&mut self) {
        let Some(mut planning) = self.planning.take() else { return };
        planning.abandon();
        self.abandoned = (!planning.has_ended()).then_some(planning);
    }

    fn prepare(
        &self,
        state: &MasterState<'a>,
        is_sole_master: bool,
        answers: Value,
    ) -> Result<StagedReload<'a>, Rejection> {
        let lookups = Lookups::recorded(answers)
            .ok_or_else(|| Rejection::from("the plan has no answers".to_owned()))?;
        StagedReload::prepare(&self.load_config, state, is_sole_master, &lookups)
    }

    /// Whether a reload is being planned.
    pub(super) fn is_planning(&self) -> bool {
        self.planning.is_some()
    }

    /// Returns the descriptors that are readable when a plan is there, or files have changed.
    pub(super) fn planning_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.plannings().map(Planning::fd).chain(self.file_watch.fd())
    }

    /// Returns when a plan is given up, closed listeners are looked at, or files are watched again.
    pub(super) fn next_deadline(&self) -> Option<MonotonicTime> {
        let plans = self.plannings().map(Planning::deadline);
        plans.chain(self.retired.next_deadline()).chain(self.file_watch.next_deadline()).min()
    }

    fn plannings(&self) -> impl Iterator<Item = &Planning> {
        self.planning.iter().chain(self.dry_run.planning())
    }

    fn begin(&mut self, staged: StagedReload<'a>, state: &mut MasterState<'a>) {
        let new_addresses = staged.new_addresses();
        state.pools.resume();
        self.newest_generation += 1; // no number is used twice
        let generation = self.newest_generation;
        self.transaction = Some(Box::new(staged.begin(state, generation)));
        self.facts.push(Fact::ReloadStarted(generation));
        log_started(state, generation);
        state.hook("on_reload", |hooks| hooks.on_reload(generation));
        for (pool, address) in new_addresses {
            info!(state.context.pool_log(&pool).logger(), "listening"; "address" => address);
        }
    }

    /// Returns the transaction in progress. A stop leaves it as it is: neither generation serves on.
    pub(super) fn transaction(&self) -> Option<&ReloadTransaction<'a>> {
        self.transaction.as_deref()
    }

    /// Returns what pools were made from before the reload in progress.
    pub(super) fn previous_generations(&self) -> impl Iterator<Item = &PoolGeneration<'a>> {
        self.transaction().into_iter().flat_map(ReloadTransaction::previous_generations)
    }

    /// Commits or rolls back in all pools, as the reload barrier has decided.
    pub(super) fn commit_or_roll_back(
        &mut self,
        result: ReloadResult,
        state: &mut MasterState<'a>,
        is_sole_master: bool,
    ) {
        let Some(transaction) = self.transaction.take() else { return };
        let (newest, now) = (self.newest_generation, clock::now());
        match result {
            ReloadResult::Commit => {
                let closed = transaction.commit(&mut state.pools, is_sole_master);
                self.incomplete_generation = Some(self.newest_generation);
                self.facts.push(Fact::ReloadCommitted(self.newest_generation));
                report_closed(&closed, state);
                let closed = closed.into_iter().map(|(_, listener)| listener);
                self.retired.add(closed.filter(|_| is_sole_master), &(0..newest), now);
                state.push_fd_store();
                state.set_process_title();
            }
            ReloadResult::RollBack { failed_pool } => {
                let names_pool = state.context.has_named_pools;
                let closed = transaction.roll_back(state, is_sole_master).into_iter();
                let closed = closed.filter(|_| is_sole_master);
                self.retired.add(closed, &(newest..newest + 1), now);
                let (pool, log) = (&state.pools[failed_pool], &state.context.log);
                let log = if names_pool { log.for_pool(pool.name()) } else { log.clone() };
                error!(log.logger(), "reload failed, rolled back";
                    "generation" => state.pools.generation_number(),
                    "error" => pool.failure_reason());
                let reason = match names_pool {
                    true => format!("pool {:?}: {}", pool.name(), pool.failure_reason()),
                    false => pool.failure_reason().to_owned(),
                };
                self.facts.push(Fact::ReloadRolledBack(format!("rolled back: {reason}")));
                state.notify_ready(Some("last reload failed"));
            }
        }
    }

    /// Reports a committed reload, once no worker of an older generation accepts clients. If another
    /// has committed by then, one report is for both.
    pub(super) fn report_complete(&mut self, state: &MasterState<'_>) {
        let Some(generation) = self.incomplete_generation else { return };
        if state.pools.stopping().is_some()
            || state.pools.iter().any(|pool| pool.any_older_accepts(generation))
        {
            return;
        }
        self.incomplete_generation = None;
        info!(state.log(), "reload complete"; "generation" => generation);
        self.facts.push(Fact::ReloadComplete(generation));
        if self.transaction.is_none() {
            state.notify_ready(None); // otherwise at the end of the reload in progress
        }
    }
}

fn log_started(state: &MasterState<'_>, generation: u32) {
    let log = state.log();
    let reloading = || state.pools.iter().filter(|pool| pool.supervisor().is_reloading());
    let workers: usize = reloading().map(|pool| pool.supervisor().target()).sum();
    if state.context.has_named_pools {
        let names: Vec<&str> = reloading().map(Pool::name).collect();
        info!(log, "reload started"; "generation" => generation, "pools" => names.join(", "),
            "workers" => workers);
    } else {
        let class = reloading().next().map_or("", |pool| pool.generation().spec.class.name());
        info!(log, "reload started"; "generation" => generation, "class" => class,
            "workers" => workers);
    }
}

/// Logs each address that is no longer listened on, and removes it from the fd store.
fn report_closed(closed: &[(String, Arc<Listener>)], state: &MasterState<'_>) {
    for listener in one_per_address(closed.iter().map(|(_, listener)| listener.as_ref())) {
        state.service_manager.remove_stored_fd(listener);
        let of = |(_, it): &&(String, Arc<Listener>)| std::ptr::eq(it.as_ref(), listener);
        let pool = closed.iter().find(of).map_or("", |(pool, _)| pool);
        info!(state.context.pool_log(pool).logger(), "stopped listening";
            "address" => listener.name());
    }
}
