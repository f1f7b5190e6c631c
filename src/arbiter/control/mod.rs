//! The control interface: HTTP over `control_socket` and `metrics_bind`, served by the master's loop.
//!
//! It shows what the master does, and never waits for a client: each turn of the loop serves a bounded
//! number of them from one snapshot.

mod api;
mod client;
mod commands;
mod events;
mod failure;
mod metrics;
mod page;
mod parameters;
mod places;
mod sse;
mod statsd;
#[cfg(test)]
mod tests;
mod usage;

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use slog::{Logger, info, warn};

use super::operations::SharedOperations;
use super::snapshot::Snapshot;
use crate::address::Address;
use crate::app::{ClientInfo, Limits, Service};
use crate::http::Http;
use crate::listen::{self, Access, ListenError, Listener};
use crate::log::error_chain;
use crate::os::epoll::{Event, EventQueue, Watch};
use crate::os::{clock, credentials, host, socket};
use crate::session::Session;
use crate::settings::Settings;
use crate::time::MonotonicTime;
use api::{Api, Endpoint, SharedView, View};
use client::{Buffers, ControlClient};
use places::WaitPlaces;
use statsd::StatsdSender;
use usage::UsageMonitor;

/// How many clients may be connected to one endpoint. The longest idle one makes room for a new one.
const CLIENTS_MAX: usize = 16;
/// How many events one turn of the master's loop handles.
const EVENTS_MAX: usize = 16;
/// The tokens of listeners are their indices, below this one.
const FIRST_CLIENT_TOKEN: u64 = 1 << 16;
/// How many connections may wait in the kernel.
const BACKLOG: u32 = 64;
/// After serving clients for a time, the server pauses for this many times as long: a flood of requests
/// takes at most a tenth of the master's time.
const PAUSE_FACTOR: u32 = 9;
/// The longest pause: the machine may have stood still meanwhile.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How large the body of a command may be.
const BODY_BYTES_MAX: usize = 64 << 10;
/// How long a client may take to accept output.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How soon an address is tried again that could not be bound.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// The services of both endpoints. It outlives the [`ControlServer`], whose connections borrow it.
pub(crate) struct ControlService {
    addresses: Vec<(Endpoint, Address)>,
    statsd: Option<Address>,
    control: Http<Api>,
    metrics: Http<Api>,
    view: SharedView,
    operations: SharedOperations,
    /// Which client of `control_socket` is served now.
    client: Arc<Mutex<String>>,
    /// The users that may connect to `control_socket`, beside root and the master's own.
    users: Vec<u32>,
}

impl ControlService {
    /// Creates the services that the settings ask for. `users` are those of `control_users`.
    pub(crate) fn new(settings: &Settings, users: Vec<u32>) -> Self {
        let control = settings.control_socket.clone().map(Address::Unix);
        let addresses = control.map(|address| (Endpoint::Control, address)).into_iter();
        let metrics = settings.metrics_bind.clone();
        let addresses = addresses.chain(metrics.map(|address| (Endpoint::Metrics, address)));
        let view = SharedView::new(Mutex::default());
        let operations = SharedOperations::default();
        let client = Arc::<Mutex<String>>::default();
        let mut hosts = settings.metrics_hosts.clone();
        hosts.extend(host::name());
        let service = |endpoint| {
            let max_body_bytes = match endpoint {
                Endpoint::Control => BODY_BYTES_MAX,
                Endpoint::Metrics => 0,
            };
            let limits = Limits { max_head_bytes: 8 << 10, max_body_bytes, ..Limits::default() };
            let api = Api {
                endpoint,
                view: Arc::clone(&view),
                operations: operations.clone(),
                places: WaitPlaces::default(),
                client: Arc::clone(&client),
                hosts: hosts.clone(),
            };
            Http::new(api, limits)
        };
        Self {
            addresses: addresses.collect(),
            statsd: settings.statsd_host.clone(),
            control: service(Endpoint::Control),
            metrics: service(Endpoint::Metrics),
            view,
            operations,
            client,
            users,
        }
    }

    fn http(&self, endpoint: Endpoint) -> &Http<Api> {
        match endpoint {
            Endpoint::Control => &self.control,
            Endpoint::Metrics => &self.metrics,
        }
    }
}

/// The sockets and the clients of the control interface.
pub(crate) struct ControlServer<'a> {
    service: &'a ControlService,
    events: EventQueue,
    listeners: Vec<(Endpoint, Listener)>,
    /// By the token of their events.
    clients: HashMap<u64, ControlClient<'a>>,
    next_token: u64,
    /// The addresses that are not bound yet: another master has them, or has just had them.
    unbound: Vec<(Endpoint, Address)>,
    /// When they are tried again; `None` before the first failure.
    retry_at: Option<MonotonicTime>,
    buffers: Buffers,
    usage: UsageMonitor,
    statsd: Option<StatsdSender>,
    /// Whether it was logged that `unbound` cannot be bound.
    has_warned: bool,
    /// Until when it pauses.
    paused_until: MonotonicTime,
}

impl<'a> ControlServer<'a> {
    /// Binds the addresses; returns `None` if there are none. If there is another master, it has them
    /// until it exits: then [`serve`](Self::serve) binds them later.
    ///
    /// # Errors
    /// An address cannot be bound or watched; what was bound is closed again.
    pub(crate) fn open(
        service: &'a ControlService,
        is_sole_master: bool,
    ) -> Result<Option<Self>, ListenError> {
        let first = service.addresses.first().map(|(_, address)| address);
        let Some(first) = first.or(service.statsd.as_ref()) else { return Ok(None) };
        let failed = |source| ListenError::Bind { address: first.clone(), source };
        let events = EventQueue::new().map_err(failed)?;
        let mut server = Self {
            service,
            events,
            listeners: Vec::new(),
            clients: HashMap::new(),
            next_token: FIRST_CLIENT_TOKEN,
            unbound: service.addresses.clone(),
            retry_at: None,
            buffers: Buffers::default(),
            usage: UsageMonitor::default(),
            statsd: service.statsd.as_ref().and_then(|it| StatsdSender::new(it, clock::now())),
            has_warned: false,
            paused_until: MonotonicTime::default(),
        };
        if is_sole_master {
            server.bind_all().inspect_err(|_| server.remove_paths())?;
        }
        Ok(Some(server))
    }

    /// Binds the addresses that are not bound yet, up to the first that cannot be.
    fn bind_all(&mut self) -> Result<(), ListenError> {
        while let Some((endpoint, address)) = self.unbound.first().cloned() {
            let access = match endpoint {
                // The kernel checks the mode when a client connects, and `accept` checks the user.
                Endpoint::Control if self.service.users.is_empty() => {
                    Access { mode: 0o600, ..Access::default() }
                }
                Endpoint::Control => Access { mode: 0o666, ..Access::default() },
                Endpoint::Metrics => Access::default(),
            };
            for listener in listen::bind(&address, BACKLOG, access)? {
                let token = self.listeners.len() as u64;
                let watched = self.events.add(listener.as_fd(), token, Watch::Readable);
                self.listeners.push((endpoint, listener));
                watched.map_err(|source| ListenError::Bind { address: address.clone(), source })?;
            }
            self.unbound.remove(0);
        }
        Ok(())
    }

    /// Logs the addresses at which it listens.
    pub(crate) fn log_addresses(&self, log: &Logger) {
        for (_, listener) in &self.listeners {
            info!(log, "control interface listening"; "address" => listener.name());
        }
    }

    /// Removes the paths of its unix sockets, unless they lead elsewhere by now.
    pub(crate) fn remove_paths(&self) {
        self.listeners.iter().for_each(|(_, listener)| listener.remove_path());
    }

    /// Returns the descriptor that is readable when [`serve`](Self::serve) has something to do; `None`
    /// while it pauses.
    pub(super) fn fd(&self, now: MonotonicTime) -> Option<BorrowedFd<'_>> {
        (self.paused_until <= now).then(|| self.events.as_fd())
    }

    /// Returns when [`serve`](Self::serve) is due, if no client is ready before.
    pub(super) fn next_deadline(&self, now: MonotonicTime) -> Option<MonotonicTime> {
        if now < self.paused_until {
            return Some(self.paused_until);
        }
        let statsd = self.statsd.as_ref().map(StatsdSender::next_deadline);
        let clients = self.clients.values().filter_map(ControlClient::deadline);
        clients.chain(self.retry_at).chain(statsd).min()
    }

    /// Serves the clients that are ready, without waiting. Calls `collect` at most once, and only if
    /// there is one. If this is the only master, binds what another one had before.
    pub(super) fn serve(
        &mut self,
        now: MonotonicTime,
        is_sole_master: bool,
        log: &Logger,
        collect: impl FnOnce() -> Snapshot,
    ) {
        self.usage.read(now);
        if now < self.paused_until {
            return;
        }
        let is_due = self.retry_at.is_none_or(|at| at <= now);
        if is_sole_master && !self.unbound.is_empty() && is_due {
            self.take_over(log, now);
        }
        self.close_overdue(now);
        self.wake_waiting(now);
        let ready = self.events.take(EVENTS_MAX);
        let statsd = self.statsd.as_mut();
        let statsd = statsd.and_then(|it| it.begin_turn(now, log).then_some(it));
        if ready.is_empty() && statsd.is_none() {
            return;
        }
        let begin = clock::now();
        let mut snapshot = collect();
        if let Some(statsd) = statsd {
            statsd.send(&snapshot, now);
        }
        self.usage.update(&mut snapshot, now);
        let view = Arc::new(View::new(snapshot));
        *self.service.view.lock().unwrap_or_else(PoisonError::into_inner) = view;
        for event in ready {
            match usize::try_from(event.token).ok().filter(|index| *index < self.listeners.len()) {
                Some(index) => self.accept(index, now),
                None => self.on_event(event, now),
            }
        }
        let end = clock::now();
        let pause = end.duration_since(begin).saturating_mul(PAUSE_FACTOR).min(PAUSE_MAX);
        self.paused_until = end.saturating_add(pause);
    }

    /// Returns the operations that its clients begin and ask for.
    pub(super) fn operations(&self) -> SharedOperations {
        self.service.operations.clone()
    }

    /// Answers the clients that wait, as far as their sockets take it now: the master exits.
    pub(super) fn finish(&mut self, now: MonotonicTime) {
        self.wake_waiting(now);
    }

    /// Sends to statsd what is new, before something that was counted is forgotten. Calls `collect` only
    /// if there is a server.
    pub(super) fn flush_statsd(
        &mut self,
        has_successor: bool,
        log: &Logger,
        collect: impl FnOnce() -> Snapshot,
    ) {
        if let Some(statsd) = &mut self.statsd {
            statsd.send_last(&collect(), has_successor, (clock::now(), log));
        }
    }

    /// Binds the addresses that the old master had, now that it has exited.
    fn take_over(&mut self, log: &Logger, now: MonotonicTime) {
        let bound = self.bind_all();
        self.retry_at = bound.is_err().then(|| now.saturating_add(RETRY_INTERVAL));
        match bound {
            Ok(()) => self.log_addresses(log),
            Err(error) if !self.has_warned => {
                self.has_warned = true;
                warn!(log, "control interface not available yet"; "error" => error_chain(&error));
            }
            Err(_) => (),
        }
    }

    /// Accepts the clients that wait at a listener.
    fn accept(&mut self, index: usize, now: MonotonicTime) {
        for _ in 0..CLIENTS_MAX {
            let (endpoint, listener) = &self.listeners[index];
            let endpoint = *endpoint;
            // A shortage is left to the next turn: the kernel reports the listener again.
            let Ok(Some((stream, address))) = listener.accept() else { return };
            let peer = socket::peer_credentials(stream.as_fd());
            let name = match (endpoint, peer) {
                (Endpoint::Metrics, _) => String::new(),
                (Endpoint::Control, Some((user, pid))) if self.is_allowed(user) => {
                    format!("uid {user} pid {pid}")
                }
                (Endpoint::Control, _) => continue,
            };
            self.make_room(endpoint);
            let service: &'a Http<Api> = self.service.http(endpoint);
            let info = ClientInfo { address, allow_keepalive: true };
            let session = Session::new(service.accept(&info), WRITE_TIMEOUT, now);
            let token = self.next_token;
            self.next_token += 1;
            if self.events.add(stream.as_fd(), token, Watch::Readable).is_ok() {
                self.clients
                    .insert(token, ControlClient::new(endpoint, name, stream, session, now));
                self.drive(token, now);
            }
        }
    }

    fn is_allowed(&self, user: u32) -> bool {
        user == 0 || user == credentials::effective_uid() || self.service.users.contains(&user)
    }

    /// Closes the client of an endpoint that has been silent for the longest, if there are too many.
    /// Clients that wait for an answer have places of their own: see `places`.
    fn make_room(&mut self, endpoint: Endpoint) {
        let is_counted =
            |client: &ControlClient<'_>| client.endpoint() == endpoint && !client.is_waiting();
        let others = self.clients.iter().filter(|(_, client)| is_counted(client));
        if others.clone().count() >= CLIENTS_MAX
            && let Some((&token, _)) = others.min_by_key(|(_, client)| client.active_at())
        {
            self.close(token);
        }
    }

    fn on_event(&mut self, event: Event, now: MonotonicTime) {
        let Event { token, is_broken } = event;
        match self.clients.get_mut(&token) {
            Some(client) if client.is_waiting() => {
                self.update(token, |client, _| client.on_peer_end(is_broken));
            }
            Some(_) => self.drive(token, now),
            None => (),
        }
    }

    fn drive(&mut self, token: u64, now: MonotonicTime) {
        self.update(token, |client, buffers| client.drive(buffers, now));
    }

    /// Calls a client, watches its socket for what it waits for next, and closes it if `call` returns
    /// false.
    fn update(
        &mut self,
        token: u64,
        call: impl FnOnce(&mut ControlClient<'a>, &mut Buffers) -> bool,
    ) {
        let Some(client) = self.clients.get_mut(&token) else { return };
        let before = client.watch();
        client
            .name()
            .clone_into(&mut self.service.client.lock().unwrap_or_else(PoisonError::into_inner));
        let is_open = call(client, &mut self.buffers);
        let watch = client.watch();
        let is_watched =
            before == watch || self.events.change(client.as_fd(), token, watch).is_ok();
        if !is_open || !is_watched {
            self.close(token);
        }
    }

    /// Has each client that waits look whether there is an answer by now.
    fn wake_waiting(&mut self, now: MonotonicTime) {
        let waiting = self.clients.iter().filter(|(_, client)| client.is_waiting());
        for token in waiting.map(|(token, _)| *token).collect::<Vec<_>>() {
            self.update(token, |client, buffers| {
                client.wake(buffers, now);
                client.drive(buffers, now)
            });
        }
    }

    fn close(&mut self, token: u64) {
        if let Some(client) = self.clients.remove(&token) {
            // A child that was just forked may still have the socket: closing it does not suffice.
            self.events.remove(client.as_fd());
        }
    }

    /// Tells the clients whose time has passed, which closes most of them.
    fn close_overdue(&mut self, now: MonotonicTime) {
        let is_due = |client: &ControlClient<'_>| client.deadline().is_some_and(|at| at <= now);
        let due = self.clients.iter().filter(|(_, client)| is_due(client));
        for token in due.map(|(token, _)| *token).collect::<Vec<_>>() {
            self.update(token, |client, buffers| {
                client.on_timeout(buffers, now);
                client.drive(buffers, now)
            });
        }
    }
}
