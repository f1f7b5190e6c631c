//! What one generation of workers is made from, and how the next one is prepared: everything that
//! can be refused is refused before anything that serves is touched.

use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use slog::warn;

use super::board::Board;
use crate::address::Address;
use crate::app::App;
use crate::listen::{self, Access, ListenerState, ListenError, Listener, ReusePortShard};
use crate::log::{self, Log, LogError};
use crate::os::credentials::Credentials;
use crate::settings::{Settings, Source};
use crate::worker::WorkerClass;

/// What a configuration has chosen, all of it checked.
pub(crate) struct Blueprint<'a> {
    /// What holds for the master.
    pub(crate) master: Settings,
    /// Whether the log names the pools.
    pub(crate) is_divided: bool,
    pub(crate) log: log::LogConfig,
    /// One for each pool, at least one.
    pub(crate) plans: Vec<Plan<'a>>,
}

/// What the settings of a pool have chosen.
pub(crate) struct Plan<'a> {
    /// The pool's name.
    pub(crate) pool: String,
    pub(crate) settings: Settings,
    pub(crate) app: &'a dyn App,
    pub(crate) class: &'a dyn WorkerClass,
    pub(crate) identity: Credentials,
    /// For paths that are bound anew.
    pub(crate) socket_access: Access,
    pub(crate) heartbeat_folder: PathBuf,
}

/// What there is one of, however many pools there are.
pub(crate) struct House {
    pub(crate) settings: Settings,
    pub(crate) is_divided: bool,
    pub(crate) log: Log,
}

impl House {
    /// The log of a pool. Its records name the pool, if there may be others.
    pub(super) fn log_of(&self, pool: &str) -> Log {
        if self.is_divided { self.log.for_pool(pool) } else { self.log.clone() }
    }
}

/// Everything that the workers of one generation of a pool are made from.
pub(crate) struct Company<'a> {
    pub(crate) plan: Plan<'a>,
    pub(crate) listeners: Vec<Arc<Listener>>,
    pub(super) board: Rc<Board>,
    pub(crate) log: Log,
}

/// Why a blueprint cannot be carried out.
#[derive(Debug)]
pub(crate) enum CompanyError {
    Listen(ListenError),
    Log(LogError),
    Board(std::io::Error),
}

/// Carries out a blueprint: opens the log, and binds what is not bound, for all pools or for none.
/// Listeners in `kept` whose addresses are wished for are used as they are, whichever pool they
/// belong to, and so are the boards of those who are `present` under the same name. Unless this
/// master is `alone`, none is bound beside those: the other master would not know of it.
///
/// # Errors
/// An address cannot be bound, or the log cannot be opened; what was bound is closed again.
pub(crate) fn found<'a>(
    blueprint: Blueprint<'a>,
    kept: &[Arc<Listener>],
    present: &[&Company<'_>],
    alone: bool,
) -> Result<(House, Vec<Company<'a>>), CompanyError> {
    let Blueprint { master, is_divided, log, plans } = blueprint;
    let owner = plans.first().map_or((None, None), |plan| owner_of(&plan.identity));
    let log = Log::open(&log, owner).map_err(CompanyError::Log)?;
    let house = House { settings: master, is_divided, log };
    let asked_for: Vec<_> = plans.iter().map(Plan::asked_for).collect();
    let mut companies: Vec<Company<'a>> = Vec::new();
    for (at, plan) in plans.into_iter().enumerate() {
        let others = asked_for.iter().enumerate().filter(|(other, _)| *other != at);
        let others: Vec<&Address> = others.flat_map(|(_, addresses)| addresses).collect();
        let free = kept.iter().filter(|l| !others.iter().any(|address| is_meant(l, address)));
        let free: Vec<_> = free.map(Arc::clone).collect();
        let log = house.log_of(&plan.pool);
        let present = present.iter().find(|company| company.plan.pool == plan.pool).copied();
        match Company::found(plan, log, &free, present, alone) {
            Ok(company) => companies.push(company),
            Err(error) => {
                take_back(companies.iter(), kept);
                return Err(error);
            }
        }
    }
    Ok((house, companies))
}

/// Nothing comes of these companies: removes the paths that were bound for them.
pub(super) fn take_back<'c, 'a: 'c>(
    companies: impl Iterator<Item = &'c Company<'a>>,
    kept: &[Arc<Listener>],
) {
    let is_kept = |l: &&Arc<Listener>| kept.iter().any(|known| Arc::ptr_eq(known, l));
    let all = companies.flat_map(|company| &company.listeners);
    all.filter(|listener| !is_kept(listener)).for_each(|listener| listener.remove_path());
}

fn owner_of(identity: &Credentials) -> (Option<u32>, Option<u32>) {
    (identity.user(), identity.group())
}

impl Plan<'_> {
    /// The addresses that somebody has chosen for it.
    fn asked_for(&self) -> Vec<Address> {
        match self.settings.source("bind") {
            Source::Default => Vec::new(),
            Source::File { .. } | Source::Env { .. } | Source::Flag { .. } => {
                self.settings.bind.clone()
            }
        }
    }
}

impl<'a> Company<'a> {
    fn found(
        plan: Plan<'a>,
        log: Log,
        kept: &[Arc<Listener>],
        present: Option<&Company<'_>>,
        alone: bool,
    ) -> Result<Self, CompanyError> {
        let seats = plan.class.threads(&plan.settings);
        let shared = present.filter(|present| present.board.seats() == seats);
        let board = match shared {
            Some(present) => Rc::clone(&present.board),
            None => Rc::new(Board::new(seats).map_err(CompanyError::Board)?),
        };
        let listeners = bind_all(&plan, kept, alone).map_err(CompanyError::Listen)?;
        Ok(Self { plan, listeners, board, log })
    }

    /// Tells the workers that nobody serves after them, and lets nobody new in; but for the sockets
    /// that are `kept`.
    pub(super) fn close(&self, kept: &[RawFd]) {
        let is_kept = |l: &&Arc<Listener>| kept.contains(&l.as_raw_fd());
        for listener in self.listeners.iter().filter(|listener| !is_kept(listener)) {
            if let Err(error) = listener.stop_accepting() {
                warn!(self.log.logger(), "listener cannot be closed to newcomers";
                    "address" => listener.name(), "error" => %error);
            }
        }
    }

    /// Refuses newcomers where the door is closed and nobody waits. Returns whether that is done
    /// everywhere.
    pub(super) fn refuse_newcomers(&self) -> bool {
        let mut done = true;
        for listener in &self.listeners {
            done &= listener.reject_new_connections();
        }
        done
    }

    /// Says whose the queues are: with `reuse_port`, those of several sockets at one address belong
    /// to different workers. Returns whether that is news.
    pub(super) fn share_out(&self) -> bool {
        let mut news = false;
        for address in &self.plan.settings.bind {
            let here = || self.listeners.iter().filter(|listener| listener.address() == address);
            let count = here().count() as u32;
            let several = self.plan.settings.reuse_port && count > 1;
            for (index, listener) in (0..).zip(here()) {
                news |= listener.set_shard(several.then_some(ReusePortShard { index, count }));
            }
        }
        news
    }

    /// Whether there are sockets that do not listen yet.
    pub(super) fn has_unopened(&self) -> bool {
        self.listeners.iter().any(|listener| listener.state() == ListenerState::NotListening)
    }

    /// The sockets that listen.
    pub(super) fn open_listeners(&self) -> impl Iterator<Item = &Arc<Listener>> {
        self.listeners.iter().filter(|listener| listener.state() != ListenerState::NotListening)
    }

    /// The numbers of the sockets.
    pub(super) fn sockets(&self) -> impl Iterator<Item = RawFd> {
        self.listeners.iter().map(|listener| listener.as_raw_fd())
    }

    /// The listeners that it has and `other` has not.
    pub(super) fn listeners_unlike(&self, other: &Company<'_>) -> impl Iterator<Item = &Listener> {
        let differs = |l: &&Arc<Listener>| !other.listeners.iter().any(|o| Arc::ptr_eq(o, l));
        self.listeners.iter().filter(differs).map(AsRef::as_ref)
    }
}

/// Binds all addresses or none. What is bound already is kept. Sockets that a service manager has
/// given take the place of an address that nobody has chosen.
fn bind_all(
    plan: &Plan<'_>,
    kept: &[Arc<Listener>],
    alone: bool,
) -> Result<Vec<Arc<Listener>>, ListenError> {
    let settings = &plan.settings;
    if settings.bind.is_empty() {
        return Ok(Vec::new()); // a job, or a class that takes no clients
    }
    let given = || kept.iter().filter(|listener| listener.is_socket_activated());
    if matches!(settings.source("bind"), Source::Default) && given().next().is_some() {
        return Ok(given().map(Arc::clone).collect());
    }
    let mut fresh: Vec<Arc<Listener>> = Vec::new();
    let mut listeners = Vec::new();
    for address in &settings.bind {
        let is_usable = |l: &&Arc<Listener>| is_meant(l, address) && !l.path_was_replaced();
        let present = kept.iter().chain(&fresh).filter(is_usable);
        let mut present: Vec<Arc<Listener>> = present.map(Arc::clone).collect();
        let is_served = !present.is_empty();
        let several = settings.reuse_port && matches!(address, Address::Tcp { .. });
        let wanted = if several && (alone || !is_served) { settings.workers.count() } else { 1 };
        while present.len() < wanted {
            let bound = match present.first() {
                Some(first) => first.bind_sibling(),
                None => listen::bind(address, settings.backlog, plan.socket_access),
            };
            match bound {
                Ok(listener) => {
                    let listener = Arc::new(listener);
                    fresh.push(Arc::clone(&listener));
                    present.push(listener);
                }
                Err(error) => {
                    fresh.iter().for_each(|listener| listener.remove_path());
                    return Err(error);
                }
            }
        }
        // One descriptor may have been named twice.
        present.retain(|listener| !listeners.iter().any(|known| Arc::ptr_eq(known, listener)));
        listeners.extend(present);
    }
    Ok(listeners)
}

/// Whether a listener is what an address asks for. A descriptor that was handed over under another
/// name is the same descriptor.
fn is_meant(listener: &Listener, address: &Address) -> bool {
    match address {
        Address::Fd(number) => listener.as_raw_fd() == *number || listener.address() == address,
        Address::Tcp { .. } | Address::Unix(_) | Address::Abstract(_) => {
            listener.address() == address
        }
    }
}
