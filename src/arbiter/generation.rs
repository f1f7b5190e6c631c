//! What one generation of workers is made from, and how the next one is prepared: whatever can fail
//! fails before anything that serves is touched.

use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use slog::warn;

use super::pool::row_allocator::RowAllocator;
use super::pool::supervisor::Policy;
use crate::address::Address;
use crate::app::App;
use crate::listen::{
    self, Access, ListenError, Listener, ListenerState, ReusePortShard, one_per_address,
};
use crate::log::access::{AccessLog, AccessLogConfig};
use crate::log::{self, EventRing, FileOwner, Log, LogError, error_chain};
use crate::os::credentials::Credentials;
use crate::os::lookups::Lookups;
use crate::os::memory::MappingId;
use crate::settings::Settings;
use crate::worker::WorkerClass;

/// A configuration, checked and with its names resolved.
pub(crate) struct ResolvedConfig<'a> {
    /// The master's own settings.
    pub(crate) master: Settings,
    /// Whether log records name the pool.
    pub(crate) has_named_pools: bool,
    pub(crate) log: log::LogConfig,
    /// One for each pool, at least one.
    pub(crate) pool_specs: Vec<PoolSpec<'a>>,
}

/// The settings of a pool, and what they name.
pub(crate) struct PoolSpec<'a> {
    pub(crate) name: String,
    pub(crate) settings: Settings,
    pub(crate) app: &'a dyn App,
    pub(crate) class: &'a dyn WorkerClass,
    pub(crate) credentials: Credentials,
    /// Mode and owner of unix socket paths.
    pub(crate) socket_access: Access,
    /// None: heartbeat files are in memory.
    pub(crate) heartbeat_dir: Option<PathBuf>,
    /// It runs only while this master leads.
    pub(crate) is_led: bool,
}

/// The master's settings and log.
pub(crate) struct MasterContext {
    pub(crate) settings: Settings,
    pub(crate) has_named_pools: bool,
    pub(crate) log: Log,
}

impl MasterContext {
    /// Returns the log of a pool. If there may be several pools, each record names this one.
    pub(super) fn pool_log(&self, pool: &str) -> Log {
        if self.has_named_pools { self.log.for_pool(pool) } else { self.log.clone() }
    }
}

/// What the workers of one generation of a pool are made from.
pub(crate) struct PoolGeneration<'a> {
    pub(crate) spec: PoolSpec<'a>,
    pub(crate) listeners: Vec<Arc<Listener>>,
    pub(super) rows: Rc<RowAllocator>,
    pub(crate) log: Log,
    pub(super) access_log: Option<Arc<AccessLog>>,
    /// It is led by a master that does not lead: it listens on nothing.
    pub(super) is_standby: bool,
    /// It has closed its listeners, which it may have shared with the generation before.
    pub(super) has_entered_standby: bool,
    /// The hosts of a led pool's addresses, as looked up when it was prepared.
    hosts: Lookups,
}

/// Why a configuration cannot be put into effect.
#[derive(Debug)]
pub(crate) enum PrepareError {
    Listen(ListenError),
    Log(LogError),
    Scoreboard(std::io::Error),
}

/// Opens the log and binds the addresses of all pools, or of none. Listeners in
/// `reusable_listeners` are used again if their addresses are configured, whichever pool they belong
/// to. A pool keeps the scoreboard of its `current` generation. If there is another master, no
/// socket is bound beside these: it would not know of it.
///
/// # Errors
/// The log cannot be opened, or an address cannot be bound; what was bound is closed again.
pub(crate) fn prepare_generations<'a>(
    config: ResolvedConfig<'a>,
    reusable_listeners: &[Arc<Listener>],
    current: &[&PoolGeneration<'_>],
    is_sole_master: bool,
    lookups: &Lookups,
) -> Result<(MasterContext, Vec<PoolGeneration<'a>>), PrepareError> {
    let ResolvedConfig { master, has_named_pools, log, pool_specs } = config;
    let (user, group) = pool_specs.first().map_or((None, None), |spec| owner_of(&spec.credentials));
    let events = match current.first() {
        Some(current) => current.log.events().map(Arc::clone),
        None => {
            let is_shown = master.control_socket.is_some() || master.metrics_bind.is_some();
            is_shown.then(|| Arc::new(EventRing::new()))
        }
    };
    let log = Log::open_with_events(&log, FileOwner { user, group }, events);
    let log = log.map_err(PrepareError::Log)?;
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
        match PoolGeneration::prepare(spec, log, &free, current, is_sole_master, lookups) {
            Ok(pool_generation) => pool_generations.push(pool_generation),
            Err(error) => {
                let prepared = pool_generations.iter().flat_map(|it| &it.listeners);
                discard(prepared, reusable_listeners);
                return Err(error);
            }
        }
    }
    Ok((context, pool_generations))
}

/// Removes the paths of these listeners, except those that are reused.
pub(super) fn discard<'l>(
    listeners: impl Iterator<Item = &'l Arc<Listener>>,
    reusable_listeners: &[Arc<Listener>],
) {
    let is_new =
        |it: &&Arc<Listener>| !reusable_listeners.iter().any(|known| Arc::ptr_eq(known, it));
    listeners.filter(is_new).for_each(|listener| listener.remove_path());
}

fn owner_of(credentials: &Credentials) -> (Option<u32>, Option<u32>) {
    (credentials.user(), credentials.group())
}

impl PoolSpec<'_> {
    /// Looks up the hosts of a led pool's addresses, which are bound later: then nothing may wait.
    fn look_up_hosts(&self, lookups: &Lookups) -> Result<Lookups, ListenError> {
        let mut answers = Lookups::Recorded(serde_json::Map::new());
        for address in self.settings.bind.iter().filter(|_| self.is_led) {
            if let Address::Tcp { host, port } = address {
                answers.add_host(host, *port, &listen::look_up_host(lookups, address)?);
            }
        }
        Ok(answers)
    }

    /// Returns the addresses that are configured, not defaults.
    fn explicit_addresses(&self) -> Vec<Address> {
        if self.settings.source("bind").is_default() {
            return Vec::new();
        }
        self.settings.bind.clone()
    }
}

impl From<&Settings> for Policy {
    fn from(settings: &Settings) -> Self {
        Self {
            timeout: settings.timeout,
            boot_timeout: settings.boot_timeout,
            graceful_timeout: settings.graceful_timeout,
            abort_timeout: settings.abort_timeout,
            max_lifetime: settings.max_lifetime,
            max_lifetime_jitter: settings.max_lifetime_jitter,
            max_requests: settings.max_requests,
            max_requests_jitter: settings.max_requests_jitter,
            max_memory: settings.max_memory,
            max_surge: settings.max_surge,
            max_unavailable: settings.max_unavailable,
            boot_retries: settings.boot_retries,
            restart_limit: settings.restart_limit,
            restart_interval: settings.restart_interval,
        }
    }
}

impl<'a> PoolGeneration<'a> {
    /// Gives each listener the `backlog` of the settings.
    pub(super) fn set_backlogs(&self) {
        for listener in &self.listeners {
            if let Err(error) = listener.set_backlog(self.spec.settings.backlog) {
                warn!(self.log.logger(), "failed to change backlog"; "address" => listener.name(),
                    "error" => %error);
            }
        }
    }

    fn prepare(
        spec: PoolSpec<'a>,
        log: Log,
        reusable_listeners: &[Arc<Listener>],
        current: Option<&PoolGeneration<'_>>,
        is_sole_master: bool,
        lookups: &Lookups,
    ) -> Result<Self, PrepareError> {
        let threads = spec.class.threads(&spec.settings);
        let shared = current.filter(|current| current.rows.threads() == threads);
        let rows = match shared {
            Some(current) => Rc::clone(&current.rows),
            None => Rc::new(RowAllocator::new(threads).map_err(PrepareError::Scoreboard)?),
        };
        let is_standby = spec.is_led && current.is_none_or(|current| current.is_standby);
        let hosts = spec.look_up_hosts(lookups).map_err(PrepareError::Listen)?;
        let listeners = match is_standby {
            true => Vec::new(),
            false => bind_all(&spec, reusable_listeners, is_sole_master, lookups)
                .map_err(PrepareError::Listen)?,
        };
        let access_log = match open_access_log(&spec) {
            Ok(access_log) => access_log,
            Err(error) => {
                discard(listeners.iter(), reusable_listeners);
                return Err(PrepareError::Log(error));
            }
        };
        let has_entered_standby = false;
        Ok(Self { spec, listeners, rows, log, access_log, is_standby, has_entered_standby, hosts })
    }

    /// Begins to listen, since this master leads now.
    ///
    /// # Errors
    /// An address cannot be bound now; nothing is bound then.
    pub(super) fn leave_standby(&mut self) -> Result<(), ListenError> {
        self.listeners = bind_all(&self.spec, &[], true, &self.hosts)?;
        self.is_standby = false;
        Ok(())
    }

    /// Stops listening and frees the addresses at once, since another master may lead.
    pub(super) fn enter_standby(&mut self) {
        self.stop_accepting(&[]);
        self.free_addresses();
        self.listeners.clear();
        (self.is_standby, self.has_entered_standby) = (true, true);
    }

    /// Stops accepting new connections, except on the sockets in `keep_open`. Workers that drain empty
    /// the queues.
    pub(super) fn stop_accepting(&self, keep_open: &[RawFd]) {
        let ends: Vec<_> =
            self.listeners.iter().filter(|it| !keep_open.contains(&it.as_raw_fd())).collect();
        ends.iter().for_each(|it| it.steer_group_to_first());
        // The first socket of a group is the last.
        for listener in ends.into_iter().rev() {
            if let Err(error) = listener.stop_accepting() {
                warn!(self.log.logger(), "failed to stop listening";
                    "address" => listener.name(), "error" => %error);
            }
        }
    }

    /// Rejects new connections where the queue is empty. Returns whether no listener is left to do.
    pub(super) fn reject_new_connections(&self) -> bool {
        let mut done = true;
        for listener in &self.listeners {
            done &= listener.reject_new_connections();
        }
        done
    }

    /// Divides the sockets of each address among the slots, if `reuse_port` is set. Returns whether
    /// anything has changed.
    pub(super) fn assign_reuseport_shards(&self) -> bool {
        let mut changed = false;
        for address in &self.spec.settings.bind {
            let here = self.listeners.iter().filter(|listener| listener.address() == address);
            let here: Vec<_> = here.collect();
            for group in here.chunk_by(|one, other| one.name() == other.name()) {
                let count = group.len() as u32;
                let several = self.spec.settings.reuse_port && count > 1;
                for (index, listener) in (0..).zip(group) {
                    let shard = several.then_some(ReusePortShard { index, count });
                    changed |= listener.set_shard(shard);
                }
            }
        }
        changed
    }

    /// Returns whether there are sockets that do not listen yet.
    pub(super) fn any_not_listening(&self) -> bool {
        self.listeners.iter().any(|listener| listener.state() == ListenerState::NotListening)
    }

    /// Returns the sockets that listen.
    pub(super) fn open_listeners(&self) -> impl Iterator<Item = &Arc<Listener>> {
        self.listeners.iter().filter(|listener| listener.state() != ListenerState::NotListening)
    }

    /// Returns the descriptors of the sockets.
    pub(super) fn listener_fds(&self) -> impl Iterator<Item = RawFd> {
        self.listeners.iter().map(|listener| listener.as_raw_fd())
    }

    /// Returns the descriptors of the logs that its workers write.
    pub(super) fn log_fds(&self) -> impl Iterator<Item = RawFd> {
        let access_log = self.access_log.iter().filter_map(|log| log.raw_fd());
        self.log.raw_fds().chain(access_log)
    }

    /// Opens the file of the access log again.
    ///
    /// # Errors
    /// The file cannot be opened, which has been logged. The log goes on as it was.
    pub(super) fn reopen_access_log(&self) -> Result<(), String> {
        let Some(access_log) = &self.access_log else { return Ok(()) };
        let Err(error) = access_log.reopen() else { return Ok(()) };
        let reason = error_chain(&error);
        warn!(self.log.logger(), "failed to reopen access log"; "error" => &reason);
        Err(reason)
    }

    /// Returns the shared memory that its workers use.
    pub(super) fn mappings(&self) -> impl Iterator<Item = MappingId> {
        let listeners = self.listeners.iter().map(|listener| listener.mapping());
        listeners.chain(self.rows.scoreboard().mappings())
    }

    /// Returns whether a listener is one of its own.
    pub(crate) fn has(&self, listener: &Arc<Listener>) -> bool {
        self.listeners.iter().any(|own| Arc::ptr_eq(own, listener))
    }

    /// Frees the addresses that its listeners have bound: removes paths, and shuts TCP sockets down.
    pub(super) fn free_addresses(&self) {
        for listener in &self.listeners {
            listener.remove_path();
            listener.shut_down();
        }
    }
}

/// Opens the access log of a pool, if it has one.
fn open_access_log(spec: &PoolSpec<'_>) -> Result<Option<Arc<AccessLog>>, LogError> {
    let settings = &spec.settings;
    let Some(target) = settings.access_log.clone() else { return Ok(None) };
    let (user, group) = owner_of(&spec.credentials);
    let config = AccessLogConfig {
        target,
        format: settings.access_log_format.clone(),
        sample: settings.access_log_sample,
        is_buffered: settings.access_log_buffer,
    };
    AccessLog::open(config, FileOwner { user, group }).map(|log| Some(Arc::new(log)))
}

/// Binds or reuses all addresses of a pool, or none. Sockets from the service manager replace the default.
fn bind_all(
    spec: &PoolSpec<'_>,
    reusable_listeners: &[Arc<Listener>],
    is_sole_master: bool,
    lookups: &Lookups,
) -> Result<Vec<Arc<Listener>>, ListenError> {
    let settings = &spec.settings;
    if settings.bind.is_empty() {
        return Ok(Vec::new()); // a job, or a class that does not listen
    }
    let socket_activated =
        || reusable_listeners.iter().filter(|listener| listener.is_socket_activated());
    if settings.source("bind").is_default() && socket_activated().next().is_some() {
        return Ok(socket_activated().map(Arc::clone).collect());
    }
    let mut fresh: Vec<Arc<Listener>> = Vec::new();
    let mut listeners = Vec::new();
    for address in &settings.bind {
        let is_usable = |l: &&Arc<Listener>| matches_address(l, address) && !l.path_was_replaced();
        let usable = reusable_listeners.iter().chain(&fresh).filter(is_usable);
        let mut sockets: Vec<Arc<Listener>> = usable.map(Arc::clone).collect();
        let is_served = !sockets.is_empty();
        let bound =
            match bind_missing(spec, lookups, address, &sockets, is_sole_master || !is_served) {
                Ok(bound) => bound.into_iter().map(Arc::new),
                Err(error) => {
                    fresh.iter().for_each(|listener| listener.remove_path());
                    return Err(error);
                }
            };
        for listener in bound {
            fresh.push(Arc::clone(&listener));
            sockets.push(listener);
        }
        // A host's name may have several addresses. The sockets of each are in a row.
        sockets.sort_by(|one, other| one.name().cmp(other.name()));
        // One descriptor may have been configured twice.
        sockets.retain(|listener| !listeners.iter().any(|known| Arc::ptr_eq(known, listener)));
        listeners.extend(sockets);
    }
    Ok(listeners)
}

/// Binds what an address lacks beside `sockets`: all of its sockets, or some of a `reuse_port` group
/// if that may grow.
fn bind_missing(
    spec: &PoolSpec<'_>,
    lookups: &Lookups,
    address: &Address,
    sockets: &[Arc<Listener>],
    may_grow: bool,
) -> Result<Vec<Listener>, ListenError> {
    let settings = &spec.settings;
    let mut bound = match sockets {
        [] => listen::bind_with(lookups, address, settings.backlog, spec.socket_access)?,
        [..] => Vec::new(),
    };
    if !(settings.reuse_port && may_grow && matches!(address, Address::Tcp { .. })) {
        return Ok(bound);
    }
    let mut siblings = Vec::new();
    let all: Vec<&Listener> = sockets.iter().map(AsRef::as_ref).chain(&bound).collect();
    for first in one_per_address(all.iter().copied()) {
        let present = all.iter().filter(|it| it.name() == first.name()).count();
        for _ in present..settings.workers.max_count() {
            siblings.push(first.bind_sibling()?);
        }
    }
    bound.extend(siblings);
    Ok(bound)
}

/// Returns whether a listener is what an address means. `fd://N` means the descriptor, whatever its
/// name.
pub(super) fn matches_address(listener: &Listener, address: &Address) -> bool {
    match address {
        Address::Fd(number) => listener.as_raw_fd() == *number || listener.address() == address,
        Address::Tcp { .. } | Address::Unix(_) | Address::Abstract(_) => {
            listener.address() == address
        }
    }
}
