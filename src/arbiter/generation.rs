//! What one generation of workers is made from, and how the next one is prepared: everything that
//! can be refused is refused before anything that serves is touched.

use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use slog::warn;

use super::pool::row_allocator::RowAllocator;
use crate::address::Address;
use crate::app::App;
use crate::listen::{self, Access, ListenError, Listener, ListenerState, ReusePortShard};
use crate::log::{self, Log, LogError};
use crate::os::credentials::Credentials;
use crate::settings::{Settings, Source};
use crate::worker::WorkerClass;

/// What a configuration has chosen, all of it checked.
pub(crate) struct ResolvedConfig<'a> {
    /// What holds for the master.
    pub(crate) master: Settings,
    /// Whether the log names the pools.
    pub(crate) has_named_pools: bool,
    pub(crate) log: log::LogConfig,
    /// One for each pool, at least one.
    pub(crate) pool_specs: Vec<PoolSpec<'a>>,
}

/// What the settings of a pool have chosen.
pub(crate) struct PoolSpec<'a> {
    /// The pool's name.
    pub(crate) name: String,
    pub(crate) settings: Settings,
    pub(crate) app: &'a dyn App,
    pub(crate) class: &'a dyn WorkerClass,
    pub(crate) credentials: Credentials,
    /// For paths that are bound anew.
    pub(crate) socket_access: Access,
    pub(crate) heartbeat_dir: PathBuf,
}

/// What there is one of, however many pools there are.
pub(crate) struct MasterContext {
    pub(crate) settings: Settings,
    pub(crate) has_named_pools: bool,
    pub(crate) log: Log,
}

impl MasterContext {
    /// The log of a pool. Its records name the pool, if there may be others.
    pub(super) fn pool_log(&self, pool: &str) -> Log {
        if self.has_named_pools { self.log.for_pool(pool) } else { self.log.clone() }
    }
}

/// Everything that the workers of one generation of a pool are made from.
pub(crate) struct PoolGeneration<'a> {
    pub(crate) spec: PoolSpec<'a>,
    pub(crate) listeners: Vec<Arc<Listener>>,
    pub(super) rows: Rc<RowAllocator>,
    pub(crate) log: Log,
}

/// Why a blueprint cannot be carried out.
#[derive(Debug)]
pub(crate) enum PrepareError {
    Listen(ListenError),
    Log(LogError),
    Scoreboard(std::io::Error),
}

/// Carries out a blueprint: opens the log, and binds what is not bound, for all pools or for none.
/// Listeners in `kept` whose addresses are wished for are used as they are, whichever pool they
/// belong to, and so are the boards of those who are `present` under the same name. Unless this
/// master is `alone`, none is bound beside those: the other master would not know of it.
///
/// # Errors
/// An address cannot be bound, or the log cannot be opened; what was bound is closed again.
pub(crate) fn prepare_generations<'a>(
    config: ResolvedConfig<'a>,
    reusable_listeners: &[Arc<Listener>],
    current: &[&PoolGeneration<'_>],
    is_sole_master: bool,
) -> Result<(MasterContext, Vec<PoolGeneration<'a>>), PrepareError> {
    let ResolvedConfig { master, has_named_pools, log, pool_specs } = config;
    let owner = pool_specs.first().map_or((None, None), |spec| owner_of(&spec.credentials));
    let log = Log::open(&log, owner).map_err(PrepareError::Log)?;
    let context = MasterContext { settings: master, has_named_pools, log };
    let explicit_addresses: Vec<_> = pool_specs.iter().map(PoolSpec::explicit_addresses).collect();
    let mut pool_generations: Vec<PoolGeneration<'a>> = Vec::new();
    for (at, spec) in pool_specs.into_iter().enumerate() {
        let others = explicit_addresses.iter().enumerate().filter(|(other, _)| *other != at);
        let others: Vec<&Address> = others.flat_map(|(_, addresses)| addresses).collect();
        let free = reusable_listeners
            .iter()
            .filter(|l| !others.iter().any(|address| matches_address(l, address)));
        let free: Vec<_> = free.map(Arc::clone).collect();
        let log = context.pool_log(&spec.name);
        let current =
            current.iter().find(|pool_generation| pool_generation.spec.name == spec.name).copied();
        match PoolGeneration::prepare(spec, log, &free, current, is_sole_master) {
            Ok(pool_generation) => pool_generations.push(pool_generation),
            Err(error) => {
                discard(pool_generations.iter(), reusable_listeners);
                return Err(error);
            }
        }
    }
    Ok((context, pool_generations))
}

/// Nothing comes of these companies: removes the paths that were bound for them.
pub(super) fn discard<'c, 'a: 'c>(
    pool_generations: impl Iterator<Item = &'c PoolGeneration<'a>>,
    reusable_listeners: &[Arc<Listener>],
) {
    let is_kept = |l: &&Arc<Listener>| reusable_listeners.iter().any(|known| Arc::ptr_eq(known, l));
    let all = pool_generations.flat_map(|pool_generation| &pool_generation.listeners);
    all.filter(|listener| !is_kept(listener)).for_each(|listener| listener.remove_path());
}

fn owner_of(credentials: &Credentials) -> (Option<u32>, Option<u32>) {
    (credentials.user(), credentials.group())
}

impl PoolSpec<'_> {
    /// The addresses that somebody has chosen for it.
    fn explicit_addresses(&self) -> Vec<Address> {
        match self.settings.source("bind") {
            Source::Default => Vec::new(),
            Source::File { .. } | Source::Env { .. } | Source::Flag { .. } => {
                self.settings.bind.clone()
            }
        }
    }
}

impl<'a> PoolGeneration<'a> {
    fn prepare(
        spec: PoolSpec<'a>,
        log: Log,
        reusable_listeners: &[Arc<Listener>],
        current: Option<&PoolGeneration<'_>>,
        is_sole_master: bool,
    ) -> Result<Self, PrepareError> {
        let threads = spec.class.threads(&spec.settings);
        let shared = current.filter(|present| present.rows.threads() == threads);
        let rows = match shared {
            Some(present) => Rc::clone(&present.rows),
            None => Rc::new(RowAllocator::new(threads).map_err(PrepareError::Scoreboard)?),
        };
        let listeners =
            bind_all(&spec, reusable_listeners, is_sole_master).map_err(PrepareError::Listen)?;
        Ok(Self { spec, listeners, rows, log })
    }

    /// Tells the workers that nobody serves after them, and lets nobody new in; but for the sockets
    /// that are `kept`.
    pub(super) fn stop_accepting(&self, keep_open: &[RawFd]) {
        let is_kept = |l: &&Arc<Listener>| keep_open.contains(&l.as_raw_fd());
        for listener in self.listeners.iter().filter(|listener| !is_kept(listener)) {
            if let Err(error) = listener.stop_accepting() {
                warn!(self.log.logger(), "failed to stop listening";
                    "address" => listener.name(), "error" => %error);
            }
        }
    }

    /// Refuses newcomers where the door is closed and nobody waits. Returns whether that is done
    /// everywhere.
    pub(super) fn reject_new_connections(&self) -> bool {
        let mut done = true;
        for listener in &self.listeners {
            done &= listener.reject_new_connections();
        }
        done
    }

    /// Says whose the queues are: with `reuse_port`, those of several sockets at one address belong
    /// to different workers. Returns whether that is news.
    pub(super) fn assign_reuseport_shards(&self) -> bool {
        let mut changed = false;
        for address in &self.spec.settings.bind {
            let here = || self.listeners.iter().filter(|listener| listener.address() == address);
            let count = here().count() as u32;
            let several = self.spec.settings.reuse_port && count > 1;
            for (index, listener) in (0..).zip(here()) {
                changed |= listener.set_shard(several.then_some(ReusePortShard { index, count }));
            }
        }
        changed
    }

    /// Whether there are sockets that do not listen yet.
    pub(super) fn any_not_listening(&self) -> bool {
        self.listeners.iter().any(|listener| listener.state() == ListenerState::NotListening)
    }

    /// The sockets that listen.
    pub(super) fn open_listeners(&self) -> impl Iterator<Item = &Arc<Listener>> {
        self.listeners.iter().filter(|listener| listener.state() != ListenerState::NotListening)
    }

    /// The numbers of the sockets.
    pub(super) fn listener_fds(&self) -> impl Iterator<Item = RawFd> {
        self.listeners.iter().map(|listener| listener.as_raw_fd())
    }

    /// The listeners that it has and `other` has not.
    pub(super) fn listeners_not_in(
        &self,
        other: &PoolGeneration<'_>,
    ) -> impl Iterator<Item = &Listener> {
        let differs = |l: &&Arc<Listener>| !other.listeners.iter().any(|o| Arc::ptr_eq(o, l));
        self.listeners.iter().filter(differs).map(AsRef::as_ref)
    }
}

/// Binds all addresses or none. What is bound already is kept. Sockets that a service manager has
/// given take the place of an address that nobody has chosen.
fn bind_all(
    spec: &PoolSpec<'_>,
    reusable_listeners: &[Arc<Listener>],
    is_sole_master: bool,
) -> Result<Vec<Arc<Listener>>, ListenError> {
    let settings = &spec.settings;
    if settings.bind.is_empty() {
        return Ok(Vec::new()); // a job, or a class that takes no clients
    }
    let socket_activated =
        || reusable_listeners.iter().filter(|listener| listener.is_socket_activated());
    if matches!(settings.source("bind"), Source::Default) && socket_activated().next().is_some() {
        return Ok(socket_activated().map(Arc::clone).collect());
    }
    let mut fresh: Vec<Arc<Listener>> = Vec::new();
    let mut listeners = Vec::new();
    for address in &settings.bind {
        let is_usable = |l: &&Arc<Listener>| matches_address(l, address) && !l.path_was_replaced();
        let usable = reusable_listeners.iter().chain(&fresh).filter(is_usable);
        let mut sockets: Vec<Arc<Listener>> = usable.map(Arc::clone).collect();
        let is_served = !sockets.is_empty();
        let several = settings.reuse_port && matches!(address, Address::Tcp { .. });
        let wanted =
            if several && (is_sole_master || !is_served) { settings.workers.count() } else { 1 };
        while sockets.len() < wanted {
            let bound = match sockets.first() {
                Some(first) => first.bind_sibling(),
                None => listen::bind(address, settings.backlog, spec.socket_access),
            };
            match bound {
                Ok(listener) => {
                    let listener = Arc::new(listener);
                    fresh.push(Arc::clone(&listener));
                    sockets.push(listener);
                }
                Err(error) => {
                    fresh.iter().for_each(|listener| listener.remove_path());
                    return Err(error);
                }
            }
        }
        // One descriptor may have been named twice.
        sockets.retain(|listener| !listeners.iter().any(|known| Arc::ptr_eq(known, listener)));
        listeners.extend(sockets);
    }
    Ok(listeners)
}

/// Whether a listener is what an address asks for. A descriptor that was handed over under another
/// name is the same descriptor.
fn matches_address(listener: &Listener, address: &Address) -> bool {
    match address {
        Address::Fd(number) => listener.as_raw_fd() == *number || listener.address() == address,
        Address::Tcp { .. } | Address::Unix(_) | Address::Abstract(_) => {
            listener.address() == address
        }
    }
}
