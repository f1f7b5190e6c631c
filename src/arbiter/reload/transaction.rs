//! The two halves of a reload: what is prepared, and what is installed and can be undone.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use slog::warn;

use crate::arbiter::generation::{
    self, MasterContext, PoolGeneration, PrepareError, ResolvedConfig,
};
use crate::arbiter::pool::Pool;
use crate::arbiter::pools::Pools;
use crate::arbiter::state::MasterState;
use crate::listen::{Listener, ListenerState, one_per_address};
use crate::log::error_chain;
use crate::os::lookups::Lookups;

/// Reads the configuration again and resolves it, by look-ups. An error is a text for the operator.
pub(crate) type ConfigLoader<'a> = Box<dyn Fn(&Lookups) -> Result<ResolvedConfig<'a>, String> + 'a>;

/// What a reload has prepared. Nothing old has been touched.
pub(super) struct StagedReload<'a> {
    context: MasterContext,
    /// The next generations of pools that exist.
    updated: Vec<PoolGeneration<'a>>,
    /// New pools, without workers.
    added: Vec<Pool<'a>>,
    reusable_listeners: Vec<Arc<Listener>>,
}

/// A reload whose generation is installed in all pools, and what a roll-back restores.
pub(in crate::arbiter) struct ReloadTransaction<'a> {
    /// The number of the new generation.
    generation: u32,
    previous_context: MasterContext,
    /// What happens to each pool that was not retired, by its name.
    changes: Vec<(String, PoolChange<'a>)>,
}

/// What a reload does to a pool.
enum PoolChange<'a> {
    /// The pool exists before and after.
    Updated { previous_generation: Box<PoolGeneration<'a>> },
    /// The pool exists after a commit only.
    Added,
    /// The pool exists before a commit only.
    Removed,
}

impl<'a> StagedReload<'a> {
    /// Reads the configuration, checks it, opens the log and binds new addresses. `lookups` were recorded
    /// by [`Planning`](super::planning::Planning), so that nothing here waits for a server.
    ///
    /// # Errors
    /// A text for the operator. What was bound is closed again.
    pub(super) fn prepare(
        load_config: &ConfigLoader<'a>,
        state: &MasterState<'a>,
        is_sole_master: bool,
        lookups: &Lookups,
    ) -> Result<Self, Rejection> {
        let config = load_config(lookups)?;
        check_reloadable(&state.context, &config)?;
        let pools = &state.pools;
        let current: Vec<&PoolGeneration<'a>> = pools.generations().collect();
        let reusable = current.iter().flat_map(|it| &it.listeners);
        let reusable_listeners: Vec<_> = reusable.map(Arc::clone).collect();
        let (context, generations) = generation::prepare_generations(
            config,
            &reusable_listeners,
            &current,
            is_sole_master,
            lookups,
        )
        .map_err(Rejection::from)?;
        let mut staged =
            Self { context, updated: Vec::new(), added: Vec::new(), reusable_listeners };
        for generation in generations {
            if pools.iter().any(|pool| pool.name() == generation.spec.name) {
                staged.updated.push(generation);
                continue;
            }
            let listeners = generation.listeners.clone();
            match Pool::for_reload(generation, pools.generation_number(), &state.environment) {
                Ok(pool) => staged.added.push(pool),
                Err(error) => {
                    staged.discard(&listeners);
                    return Err(format!("failed to create pipe for new pool: {error}").into());
                }
            }
        }
        Ok(staged)
    }

    /// Installs the new generation in all pools.
    pub(super) fn begin(
        self,
        state: &mut MasterState<'a>,
        generation: u32,
    ) -> ReloadTransaction<'a> {
        let pools = &mut state.pools;
        let previous_context = std::mem::replace(&mut state.context, self.context);
        let mut changes: Vec<_> =
            pools.present().map(|pool| (pool.name().to_owned(), PoolChange::Removed)).collect();
        for next in self.updated {
            let name = next.spec.name.clone();
            let Some(pool) = pools.by_name(&name) else { continue };
            let previous_generation = Box::new(pool.replace_generation(next, generation));
            match changes.iter_mut().find(|(changed, _)| *changed == name) {
                Some((_, change)) => *change = PoolChange::Updated { previous_generation },
                // A pool that an earlier reload has removed, and whose workers still drain.
                None => changes.push((name, PoolChange::Added)),
            }
        }
        for mut pool in self.added {
            changes.push((pool.name().to_owned(), PoolChange::Added));
            pool.begin_generation(pool.settings().workers.count(), generation);
            pools.push(pool);
        }
        ReloadTransaction { generation, previous_context, changes }
    }

    /// Returns the pool and the name of each address that does not listen yet.
    pub(super) fn new_addresses(&self) -> Vec<(String, String)> {
        let is_new = |listener: &&Arc<Listener>| {
            !self.reusable_listeners.iter().any(|known| Arc::ptr_eq(known, listener))
                && listener.state() != ListenerState::NotListening
        };
        let mut addresses = Vec::new();
        for generation in self.generations() {
            let fresh = generation.listeners.iter().filter(is_new).map(AsRef::as_ref);
            for listener in one_per_address(fresh) {
                addresses.push((generation.spec.name.clone(), listener.name().to_owned()));
            }
        }
        addresses
    }

    fn generations(&self) -> impl Iterator<Item = &PoolGeneration<'a>> {
        self.updated.iter().chain(self.added.iter().map(Pool::generation))
    }

    /// Removes the paths that were bound for nothing, `listeners` included.
    fn discard(&self, listeners: &[Arc<Listener>]) {
        let staged = self.generations().flat_map(|generation| &generation.listeners);
        generation::discard(staged.chain(listeners), &self.reusable_listeners);
    }
}

impl<'a> ReloadTransaction<'a> {
    /// Returns the master's settings and log before the reload.
    pub(in crate::arbiter) fn previous_context(&self) -> &MasterContext {
        &self.previous_context
    }

    /// Returns what pools were made from that the reload updates.
    pub(in crate::arbiter) fn previous_generations(
        &self,
    ) -> impl Iterator<Item = &PoolGeneration<'a>> {
        self.changes.iter().filter_map(|(_, change)| match change {
            PoolChange::Updated { previous_generation } => Some(previous_generation.as_ref()),
            PoolChange::Added | PoolChange::Removed => None,
        })
    }

    /// Returns whether a commit removes the pool of this name.
    pub(in crate::arbiter) fn removes(&self, pool: &str) -> bool {
        self.changes
            .iter()
            .any(|(name, change)| name == pool && matches!(change, PoolChange::Removed))
    }

    /// Makes the new generation the only one, in all pools. If there is no other master, stops
    /// listening where no pool listens any more. Returns these listeners, each with its pool's name.
    pub(super) fn commit(
        self,
        pools: &mut Pools<'a>,
        is_sole_master: bool,
    ) -> Vec<(String, Arc<Listener>)> {
        let stay = pools.iter().filter(|pool| !self.removes(pool.name()));
        let keep_open: Vec<RawFd> =
            stay.flat_map(|pool| pool.generation().listener_fds()).collect();
        let mut closed = Vec::new();
        for (name, change) in self.changes {
            let Some(pool) = pools.by_name(&name) else { continue };
            let old = match change {
                PoolChange::Updated { previous_generation } => {
                    pool.commit_generation(Some(&previous_generation), self.generation);
                    warn_of_kept_access(&previous_generation, pool.generation());
                    if is_sole_master {
                        previous_generation.stop_accepting(&keep_open);
                    }
                    previous_generation.listeners
                }
                PoolChange::Added => {
                    pool.commit_generation(None, self.generation);
                    Vec::new()
                }
                PoolChange::Removed => {
                    let listeners = pool.generation().listeners.clone();
                    pool.retire(is_sole_master, &keep_open);
                    listeners
                }
            };
            let old = old.into_iter().filter(|it| !keep_open.contains(&it.as_raw_fd()));
            closed.extend(old.map(|listener| (name.clone(), listener)));
        }
        closed
    }

    /// Returns to the previous generation, settings and log, in all pools. If there is no other
    /// master, stops listening on what only the new generation has bound. Returns these listeners.
    pub(super) fn roll_back(
        self,
        state: &mut MasterState<'a>,
        is_sole_master: bool,
    ) -> Vec<Arc<Listener>> {
        let pools = &mut state.pools;
        state.context = self.previous_context;
        let restored = self.changes.iter().filter_map(|(name, change)| match change {
            PoolChange::Updated { previous_generation } => Some(previous_generation.as_ref()),
            PoolChange::Removed => pools.generations().find(|it| it.spec.name == *name),
            PoolChange::Added => None,
        });
        let keep_open: Vec<RawFd> = restored.flat_map(PoolGeneration::listener_fds).collect();
        let mut closed = Vec::new();
        for (name, change) in self.changes {
            let Some(pool) = pools.by_name(&name) else { continue };
            match change {
                PoolChange::Updated { previous_generation } => {
                    let failed = pool.restore_generation(*previous_generation);
                    if is_sole_master {
                        failed.stop_accepting(&keep_open);
                    }
                    closed.extend(failed.listeners);
                }
                PoolChange::Added => {
                    closed.extend(pool.generation().listeners.iter().map(Arc::clone));
                    pool.retire(is_sole_master, &keep_open);
                }
                PoolChange::Removed => (),
            }
        }
        closed.retain(|listener| !keep_open.contains(&listener.as_raw_fd()));
        closed
    }
}

/// Warns of the paths that stay as they were bound, if the settings ask for another mode or owner.
fn warn_of_kept_access(previous: &PoolGeneration<'_>, new: &PoolGeneration<'_>) {
    if previous.spec.socket_access == new.spec.socket_access {
        return;
    }
    let kept = new.listeners.iter().filter(|it| previous.has(it) && it.bound_path().is_some());
    for listener in kept {
        warn!(new.log.logger(), "socket path keeps its mode and owner";
            "address" => listener.name(),
            "error" => "socket_mode, socket_user and socket_group are for a path that is bound anew: restart");
    }
}

/// Why a reload is not begun.
pub(super) struct Rejection {
    /// A text for the operator.
    pub(super) reason: String,
    /// A socket has the address already.
    pub(super) is_address_in_use: bool,
}

impl From<String> for Rejection {
    fn from(reason: String) -> Self {
        Self { reason, is_address_in_use: false }
    }
}

impl From<PrepareError> for Rejection {
    fn from(error: PrepareError) -> Self {
        match error {
            PrepareError::Listen(error) => {
                Self { reason: error_chain(&error), is_address_in_use: error.is_in_use() }
            }
            PrepareError::Log(error) => error_chain(&error).into(),
            PrepareError::Scoreboard(error) => {
                format!("failed to create scoreboard: {error}").into()
            }
        }
    }
}

/// Refuses a configuration that changes what only a restart can change, or whose file looks cut off.
pub(super) fn check_reloadable(
    context: &MasterContext,
    config: &ResolvedConfig<'_>,
) -> Result<(), String> {
    let new = &config.master;
    if let Some(reason) = context.settings.find_truncation(new) {
        return Err(reason);
    }
    match context.settings.find_unreloadable(new) {
        None => Ok(()),
        Some(key) => {
            let source = new.source(key);
            Err(format!("{key} ({source}) cannot be changed by reload; restart required"))
        }
    }
}
