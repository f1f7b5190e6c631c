//! The addresses of the control interface, and the sockets that listen there. A path that is removed or
//! replaced is bound again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use slog::{Logger, info, warn};

use super::api::Endpoint;
use crate::address::Address;
use crate::listen::{self, Access, ListenError, Listener};
use crate::log::error_chain;
use crate::os::epoll::{EventQueue, Watch};
use crate::os::passed_fds::{self, UntrustedSocket};
use crate::os::path_watch::PathWatch;
use crate::time::MonotonicTime;

/// The token of the events of paths. Those of listeners are below it.
pub(super) const PATH_TOKEN: u64 = 1 << 15;
/// How many connections may wait in the kernel.
const BACKLOG: u32 = 64;
/// How soon an address is tried again that could not be bound. Each failure doubles it.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// How often it is doubled.
const DOUBLINGS_MAX: u32 = 5;

/// The addresses, bound or not yet.
pub(super) struct BoundAddresses {
    /// By the token of their events.
    listeners: BTreeMap<u64, (Endpoint, Listener)>,
    /// The addresses that are not bound: another master has them, or has just had them, or their paths
    /// lead elsewhere.
    unbound: Vec<(Endpoint, Address)>,
    /// Whether users beside root and the master's own may connect to `control_socket`.
    is_shared: bool,
    /// Tells of the paths of the listeners; `None` if there are none, or the kernel has no more watches.
    watch: Option<PathWatch>,
    /// When the unbound ones are tried again; `None` before the first failure.
    retry_at: Option<MonotonicTime>,
    /// How often in a row `unbound` could not be bound. The first time is logged.
    failures: u32,
}

impl BoundAddresses {
    pub(super) fn new(unbound: Vec<(Endpoint, Address)>, is_shared: bool) -> Self {
        let listeners = BTreeMap::new();
        Self { listeners, unbound, is_shared, watch: None, retry_at: None, failures: 0 }
    }

    /// Returns when [`take_over`](Self::take_over) is due again.
    pub(super) fn retry_at(&self) -> Option<MonotonicTime> {
        self.retry_at
    }

    /// Returns the endpoint of the listener with this token, if there is one.
    pub(super) fn endpoint(&self, token: u64) -> Option<Endpoint> {
        self.listeners.get(&token).map(|(endpoint, _)| *endpoint)
    }

    /// Accepts a client that waits at a listener, if there is one.
    pub(super) fn accept(&self, token: u64) -> Option<(UntrustedSocket, Option<SocketAddr>)> {
        let (stream, address) = self.listeners.get(&token)?.1.accept().ok().flatten()?;
        Some((UntrustedSocket::client(stream.into()), address))
    }

    /// Binds the addresses that are not bound, up to the first that cannot be.
    pub(super) fn bind_all(&mut self, events: &EventQueue) -> Result<(), ListenError> {
        while let Some((endpoint, address)) = self.unbound.first().cloned() {
            let access = match endpoint {
                // The kernel checks the mode when a client connects, and the server checks the user.
                Endpoint::Control if self.is_shared => Access { mode: 0o666, ..Access::default() },
                Endpoint::Control => Access { mode: 0o600, ..Access::default() },
                Endpoint::Metrics => Access::default(),
            };
            for listener in listen::bind(&address, BACKLOG, access)? {
                let tokens = 0..PATH_TOKEN;
                let token = tokens.into_iter().find(|token| !self.listeners.contains_key(token));
                let token = token.unwrap_or_default(); // there are few
                let watched = events.add(listener.as_fd(), token, Watch::Readable);
                passed_fds::refuse(listener.as_fd());
                self.watch_path(&listener, events);
                self.listeners.insert(token, (endpoint, listener));
                watched.map_err(|source| ListenError::Bind { address: address.clone(), source })?;
            }
            self.unbound.remove(0);
        }
        Ok(())
    }

    /// Has the kernel tell when a listener loses its path. A lack of watches leaves it unwatched.
    fn watch_path(&mut self, listener: &Listener, events: &EventQueue) {
        let Some(path) = listener.bound_path() else { return };
        if self.watch.is_none() {
            let watch = PathWatch::new().ok();
            let is_added =
                |it: &PathWatch| events.add(it.as_fd(), PATH_TOKEN, Watch::Readable).is_ok();
            self.watch = watch.filter(is_added);
        }
        self.watch.iter().for_each(|watch| {
            let _ = watch.add(path);
        });
    }

    /// Closes the listeners whose paths lead elsewhere, after an event with [`PATH_TOKEN`]. They are
    /// bound again as if another master had had them.
    pub(super) fn release_lost(&mut self, events: &EventQueue, log: &Logger, now: MonotonicTime) {
        self.watch.iter().for_each(PathWatch::clear);
        let lost = self.listeners.iter().filter(|(_, (_, listener))| listener.path_was_replaced());
        for token in lost.map(|(token, _)| *token).collect::<Vec<_>>() {
            let Some((endpoint, listener)) = self.listeners.remove(&token) else { continue };
            warn!(log, "control interface path removed or replaced"; "address" => listener.name());
            events.remove(listener.as_fd());
            self.unbound.extend(
                listener.bound_path().map(|path| (endpoint, Address::Unix(path.to_path_buf()))),
            );
            self.retry_at = Some(now.saturating_add(RETRY_INTERVAL));
        }
    }

    /// Binds what is not bound, if it is due and no other master has it.
    pub(super) fn take_over(
        &mut self,
        events: &EventQueue,
        is_sole_master: bool,
        log: &Logger,
        now: MonotonicTime,
    ) {
        if !is_sole_master {
            self.retry_at = None; // the exit of the other master is awaited, not polled
            return;
        }
        if self.unbound.is_empty() || self.retry_at.is_some_and(|at| now < at) {
            return;
        }
        let known: Vec<u64> = self.listeners.keys().copied().collect();
        match self.bind_all(events) {
            Ok(()) => {
                (self.retry_at, self.failures) = (None, 0);
                self.log_except(&known, log);
            }
            Err(error) => {
                let doublings = self.failures.min(DOUBLINGS_MAX);
                self.retry_at = Some(now.saturating_add(RETRY_INTERVAL * 2u32.pow(doublings)));
                if self.failures == 0 {
                    warn!(log, "control interface not available yet"; "error" => error_chain(&error));
                }
                self.failures = self.failures.saturating_add(1);
            }
        }
    }

    /// Logs the addresses at which it listens.
    pub(super) fn log(&self, log: &Logger) {
        self.log_except(&[], log);
    }

    fn log_except(&self, known: &[u64], log: &Logger) {
        for (_, (_, listener)) in self.listeners.iter().filter(|(token, _)| !known.contains(token))
        {
            info!(log, "control interface listening"; "address" => listener.name());
        }
    }

    /// Removes the paths of its unix sockets, unless they lead elsewhere by now.
    pub(super) fn remove_paths(&self) {
        self.listeners.values().for_each(|(_, listener)| listener.remove_path());
    }
}
