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
use crate::listen::{self, Access, Door, ListenError, Listener, Share};
use crate::log::{self, Log, LogError};
use crate::os::identity::Identity;
use crate::settings::{Settings, Source};
use crate::worker::WorkerClass;

/// What the settings have chosen, all of it checked.
pub(crate) struct Plan<'a> {
    pub(crate) settings: Settings,
    pub(crate) app: &'a dyn App,
    pub(crate) class: &'a dyn WorkerClass,
    pub(crate) identity: Identity,
    /// For paths that are bound anew.
    pub(crate) socket_access: Access,
    pub(crate) heartbeat_folder: PathBuf,
    pub(crate) log: log::Wish,
}

/// Everything that the workers of one generation are made from.
pub(crate) struct Company<'a> {
    pub(crate) plan: Plan<'a>,
    pub(crate) listeners: Vec<Arc<Listener>>,
    pub(super) board: Rc<Board>,
    pub(crate) log: Log,
}

/// Why a plan cannot be carried out.
#[derive(Debug)]
pub(crate) enum CompanyError {
    Listen(ListenError),
    Log(LogError),
    Board(std::io::Error),
}

impl<'a> Company<'a> {
    /// Carries out a plan: binds what is not bound, opens the log. Listeners in `kept` whose
    /// addresses are wished for are used as they are, and so is the board of `present`. Unless this
    /// master is `alone`, none is bound beside those: the other master would not know of it.
    ///
    /// # Errors
    /// An address cannot be bound, or the log cannot be opened; what was bound is closed again.
    pub(crate) fn found(
        plan: Plan<'a>,
        kept: &[Arc<Listener>],
        present: Option<&Company<'_>>,
        alone: bool,
    ) -> Result<Self, CompanyError> {
        let seats = plan.class.seats(&plan.settings);
        let shared = present.filter(|present| present.board.seats() == seats);
        let board = match shared {
            Some(present) => Rc::clone(&present.board),
            None => Rc::new(Board::new(seats).map_err(CompanyError::Board)?),
        };
        let owner = (plan.identity.user(), plan.identity.group());
        let log = Log::open(&plan.log, owner).map_err(CompanyError::Log)?;
        let listeners = bind_all(&plan, kept, alone).map_err(CompanyError::Listen)?;
        Ok(Self { plan, listeners, board, log })
    }

    /// Tells the workers that nobody serves after them, and lets nobody new in; but for what
    /// `successor` goes on using.
    pub(super) fn close(&self, successor: Option<&Company<'_>>) {
        let kept = |listener: &Arc<Listener>| {
            successor.is_some_and(|next| next.listeners.iter().any(|l| Arc::ptr_eq(l, listener)))
        };
        for listener in self.listeners.iter().filter(|listener| !kept(listener)) {
            if let Err(error) = listener.close_the_door() {
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
            done &= listener.refuse_newcomers();
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
                news |= listener.set_share(several.then_some(Share { index, count }));
            }
        }
        news
    }

    /// Whether there are sockets that do not listen yet.
    pub(super) fn has_unopened(&self) -> bool {
        self.listeners.iter().any(|listener| listener.door() == Door::Unopened)
    }

    /// The sockets that listen.
    pub(super) fn open_listeners(&self) -> impl Iterator<Item = &Arc<Listener>> {
        self.listeners.iter().filter(|listener| listener.door() != Door::Unopened)
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
    if !plan.class.listens() {
        return Ok(Vec::new());
    }
    let given = || kept.iter().filter(|listener| listener.is_given());
    if matches!(settings.source("bind"), Source::Default) && given().next().is_some() {
        return Ok(given().map(Arc::clone).collect());
    }
    let mut fresh: Vec<Arc<Listener>> = Vec::new();
    let mut listeners = Vec::new();
    // A descriptor that was handed over under another name is the same descriptor.
    let is_meant = |listener: &&Arc<Listener>, address: &Address| match address {
        Address::Fd(number) => listener.as_raw_fd() == *number || listener.address() == address,
        Address::Tcp { .. } | Address::Unix(_) | Address::Abstract(_) => {
            listener.address() == address
        }
    };
    for address in &settings.bind {
        let is_usable = |l: &&Arc<Listener>| is_meant(l, address) && !l.is_lost();
        let present = kept.iter().chain(&fresh).filter(is_usable);
        let mut present: Vec<Arc<Listener>> = present.map(Arc::clone).collect();
        let is_served = !present.is_empty();
        let several = settings.reuse_port && matches!(address, Address::Tcp { .. });
        let wanted = if several && (alone || !is_served) { settings.workers.count() } else { 1 };
        while present.len() < wanted {
            let bound = match present.first() {
                Some(first) => first.beside(),
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
