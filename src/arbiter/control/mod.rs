//! The control interface: HTTP over `control_socket` and `metrics_bind`, served by the master's loop.
//!
//! It shows what the master does, and never waits for a client: each turn of the loop serves them for a
//! bounded time, from one snapshot. While only they have work, a turn does nothing else.

mod addresses;
mod api;
mod client;
mod commands;
mod events;
mod failure;
mod metrics;
mod page;
mod parameters;
mod places;
mod service;
mod sse;
mod statsd;
#[cfg(test)]
mod tests;
mod turn;
mod usage;
mod view;

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use slog::{Logger, error};

use super::operations::SharedOperations;
use super::sleep::WakeSources;
use super::snapshot::Snapshot;
use crate::app::{ClientInfo, Service};
use crate::http::Http;
use crate::listen::ListenError;
use crate::log::EventRing;
use crate::os::epoll::{Event, EventQueue, Watch};
use crate::os::{clock, credentials, passed_fds, socket};
use crate::session::Session;
use crate::time::MonotonicTime;
use addresses::{BoundAddresses, PATH_TOKEN};
use api::{Api, Endpoint};
use client::{Buffers, ControlClient};
use places::WAITING_MAX;
pub(crate) use service::ControlService;
use statsd::StatsdSender;
use turn::{Budget, Turn};
use usage::UsageMonitor;

/// How many clients may be connected to one endpoint. The longest idle one makes room for a new one.
const CLIENTS_MAX: usize = 16;
/// How many events one turn of the master's loop handles.
const EVENTS_MAX: usize = 64;
/// The tokens of listeners and paths are below this one.
const FIRST_CLIENT_TOKEN: u64 = 1 << 16;
/// How many bytes of answers may wait for clients that do not read. Beyond that, the client that has
/// been silent for the longest is closed.
const KEPT_BYTES_MAX: usize = 16 << 20;
/// While so many sockets wait for a child that closes them, further clients wait in the kernel.
const KEPT_SOCKETS_MAX: usize = 64;
/// How long a client may take to accept output.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// The sockets and the clients of the control interface.
pub(crate) struct ControlServer<'a> {
    service: &'a ControlService,
    events: EventQueue,
    addresses: BoundAddresses,
    /// By the token of their events.
    clients: BTreeMap<u64, ControlClient<'a>>,
    next_token: u64,
    /// The waiting client that was woken last: the next turn goes on behind it.
    woken: u64,
    /// Whether the next turn begins with a snapshot, for which this one has had no time.
    must_collect: bool,
    buffers: Buffers,
    usage: UsageMonitor,
    statsd: Option<StatsdSender>,
    budget: Budget,
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
        let statsd = service.statsd.as_ref().and_then(|it| StatsdSender::new(it, clock::now()));
        let is_shared = !service.users.is_empty();
        let mut addresses = BoundAddresses::new(service.addresses.clone(), is_shared);
        if is_sole_master {
            addresses.bind_all(&events).inspect_err(|_| addresses.remove_paths())?;
        }
        Ok(Some(Self {
            service,
            events,
            addresses,
            clients: BTreeMap::new(),
            next_token: FIRST_CLIENT_TOKEN,
            woken: 0,
            must_collect: false,
            buffers: Buffers::default(),
            usage: UsageMonitor::default(),
            statsd,
            budget: Budget::default(),
        }))
    }

    /// Logs the addresses at which it listens.
    pub(crate) fn log_addresses(&self, log: &Logger) {
        self.addresses.log(log);
    }

    /// Sets the records that it shows as events.
    pub(super) fn show_events(&self, events: &Arc<EventRing>) {
        let _ = self.service.events.set(Arc::clone(events)); // there is one for a master's life
    }

    /// Removes the paths of its unix sockets, unless they lead elsewhere by now.
    pub(crate) fn remove_paths(&self) {
        self.addresses.remove_paths();
    }

    /// Returns when [`serve`](Self::serve) has something to do. While it pauses, it reads nothing.
    pub(super) fn wake_sources(&self, now: MonotonicTime) -> WakeSources<'_> {
        let may_read = self.budget.pause_end() <= now;
        let fds = may_read.then(|| self.events.as_fd()).into_iter().collect();
        WakeSources { fds, deadline: self.next_deadline(now) }
    }

    /// Returns when [`serve`](Self::serve) is due, if no client is ready before.
    fn next_deadline(&self, now: MonotonicTime) -> Option<MonotonicTime> {
        if self.budget.has_more() || now < self.budget.pause_end() {
            return Some(self.budget.pause_end().max(now));
        }
        let statsd = self.statsd.as_ref().map(StatsdSender::next_deadline);
        let clients = self.clients.values().filter_map(ControlClient::deadline);
        let others = [self.addresses.retry_at(), statsd, passed_fds::next_deadline()];
        clients.chain(others.into_iter().flatten()).min()
    }

    /// Serves the clients that are ready, without waiting and for a bounded time. Calls `unready_reason` and
    /// `collect` at most once, and only if a client has asked for what they return. If this is the only
    /// master, binds what another one had before.
    pub(super) fn serve(
        &mut self,
        now: MonotonicTime,
        is_sole_master: bool,
        log: &Logger,
        unready_reason: impl FnOnce() -> Option<String>,
        collect: impl FnOnce() -> Snapshot,
    ) {
        self.usage.read(now);
        if now < self.budget.pause_end() {
            return;
        }
        self.addresses.take_over(&self.events, is_sole_master, log, now);
        let (mut turn, cpu) = (Turn::begin(clock::now()), clock::thread_cpu_time());
        self.close_overdue(&mut turn, now);
        self.service.view.begin_turn();
        self.service.readiness.begin_turn();
        let mut collect = Some(collect);
        let is_statsd_due = self.statsd.as_mut().is_some_and(|it| it.begin_turn(now, log));
        // A turn without time for a snapshot is followed by one that begins with it, and that by one that
        // begins with the clients who have waited for it: neither can be put off for ever.
        if is_statsd_due || self.must_collect {
            collect.take().into_iter().for_each(|collect| self.collect(collect, &mut turn, now));
        } else {
            self.wake_waiting(&mut turn, now);
        }
        self.take_events(&mut turn, log, now);
        // Before the snapshot, which the same client may ask for next.
        if self.service.readiness.is_wanted() {
            self.service.readiness.set(unready_reason());
            self.wake_waiting(&mut turn, now);
        }
        if self.service.view.is_wanted() && !turn.is_over() {
            collect.take().into_iter().for_each(|collect| self.collect(collect, &mut turn, now));
        }
        if collect.is_none() {
            self.wake_waiting(&mut turn, now);
        }
        self.must_collect = self.service.view.is_wanted() && collect.is_some();
        self.close_unread(now);
        hand_over_sockets(log); // here its time counts
        self.budget.spend(&turn, clock::thread_cpu_time().saturating_sub(cpu), clock::now());
    }

    /// Collects what requests see, and what is sent without one.
    fn collect(&mut self, collect: impl FnOnce() -> Snapshot, turn: &mut Turn, now: MonotonicTime) {
        turn.has_worked();
        let mut snapshot = collect();
        if let Some(statsd) = self.statsd.as_mut().filter(|statsd| statsd.is_due(now)) {
            statsd.send(&snapshot, now);
        }
        self.usage.update(&mut snapshot, now);
        self.service.readiness.set(snapshot.unready_reason());
        self.service.view.set_snapshot(snapshot);
    }

    /// Handles descriptors that are ready. They are taken one by one: the kernel puts each behind the
    /// others, so all have their share of the turns.
    fn take_events(&mut self, turn: &mut Turn, log: &Logger, now: MonotonicTime) {
        for _ in 0..EVENTS_MAX {
            let Some(event) = self.events.take(1).pop() else { return };
            turn.has_worked();
            match self.addresses.endpoint(event.token) {
                Some(endpoint) => self.accept(event.token, endpoint, turn, now),
                None if event.token == PATH_TOKEN => {
                    self.addresses.release_lost(&self.events, log, now);
                }
                None => self.on_event(event, turn, now),
            }
            if turn.is_over() {
                return;
            }
        }
    }

    /// Returns the operations that its clients begin and ask for.
    pub(super) fn operations(&self) -> SharedOperations {
        self.service.operations.clone()
    }

    /// Sends the clients what a turn that was too short has left, and answers those that wait, as far as
    /// their sockets take it now: the master exits.
    pub(super) fn finish(&mut self, now: MonotonicTime) {
        let mut turn = Turn::last(clock::now());
        let sending = self.clients.iter().filter(|(_, client)| client.is_sending());
        for token in sending.map(|(token, _)| *token).collect::<Vec<_>>() {
            self.drive(token, &turn, now);
        }
        self.wake_waiting(&mut turn, now);
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

    /// Accepts the clients that wait at a listener.
    fn accept(&mut self, listener: u64, endpoint: Endpoint, turn: &Turn, now: MonotonicTime) {
        for _ in 0..CLIENTS_MAX {
            if passed_fds::kept() >= KEPT_SOCKETS_MAX || !self.make_room(endpoint) {
                return;
            }
            // A shortage is left to the next turn: the kernel reports the listener again.
            let Some((client, address)) = self.addresses.accept(listener) else { return };
            let peer = socket::peer_credentials(client.as_fd());
            let name = match (endpoint, peer) {
                (Endpoint::Metrics, _) => String::new(),
                (Endpoint::Control, Some((user, pid))) if self.is_allowed(user) => {
                    format!("uid {user} pid {pid}")
                }
                (Endpoint::Control, _) => continue,
            };
            let service: &'a Http<Api> = self.service.http(endpoint);
            let info = ClientInfo { address, allow_keepalive: true };
            let session = Session::new(service.accept(&info), WRITE_TIMEOUT, now);
            let token = self.next_token;
            self.next_token += 1;
            if self.events.add(client.as_fd(), token, Watch::Readable).is_ok() {
                self.clients
                    .insert(token, ControlClient::new(endpoint, name, client, session, now));
                self.drive(token, turn, now);
            }
            if turn.is_over() {
                return;
            }
        }
    }

    fn is_allowed(&self, user: u32) -> bool {
        user == 0 || user == credentials::effective_uid() || self.service.users.contains(&user)
    }

    /// Closes the client of an endpoint that has been silent for the longest, if there are too many.
    /// Clients that wait for an answer have places of their own: see `places`. Returns false if too many
    /// wait for the next view: a further client stays in the kernel until they have it.
    fn make_room(&mut self, endpoint: Endpoint) -> bool {
        let clients = self.clients.iter().filter(|(_, client)| client.endpoint() == endpoint);
        let count = clients.clone().count();
        let others = clients.filter(|(_, client)| !client.is_waiting());
        if others.clone().count() >= CLIENTS_MAX
            && let Some((&token, _)) = others.min_by_key(|(_, client)| client.active_at())
        {
            self.close(token);
            return true;
        }
        count < CLIENTS_MAX + WAITING_MAX
    }

    fn on_event(&mut self, event: Event, turn: &Turn, now: MonotonicTime) {
        let Event { token, is_broken } = event;
        match self.clients.get_mut(&token) {
            Some(client) if client.is_waiting() => {
                self.update(token, |client, _| client.on_peer_end(is_broken));
            }
            Some(_) => self.drive(token, turn, now),
            None => (),
        }
    }

    fn drive(&mut self, token: u64, turn: &Turn, now: MonotonicTime) {
        self.update(token, |client, buffers| client.drive(buffers, turn, now));
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

    /// Has each client that waits look whether there is an answer by now, as far as the turn lasts. The
    /// next turn goes on with the others.
    fn wake_waiting(&mut self, turn: &mut Turn, now: MonotonicTime) {
        let waiting = self.clients.iter().filter(|(_, client)| client.is_waiting());
        let tokens: Vec<_> = waiting.map(|(token, _)| *token).collect();
        let next = tokens.partition_point(|token| *token <= self.woken);
        for token in tokens[next..].iter().chain(&tokens[..next]) {
            if turn.is_over() {
                return;
            }
            self.update(*token, |client, buffers| {
                client.wake(buffers, now);
                if !client.is_waiting() {
                    turn.has_worked();
                }
                client.drive(buffers, turn, now)
            });
            self.woken = *token;
        }
    }

    fn close(&mut self, token: u64) {
        if let Some(client) = self.clients.remove(&token) {
            // A child that was just forked may still have the socket: closing it does not suffice.
            self.events.remove(client.as_fd());
        }
    }

    /// Closes clients that do not read, the longest silent one first, while their answers hold too much
    /// memory.
    fn close_unread(&mut self, now: MonotonicTime) {
        while self.service.view.kept_bytes() > KEPT_BYTES_MAX {
            let silent =
                self.clients.iter().filter(|(_, it)| it.is_sending() && it.active_at() < now);
            match silent.min_by_key(|(_, client)| client.active_at()) {
                Some((&token, _)) => self.close(token),
                None => return,
            }
        }
    }

    /// Tells the clients whose time has passed, which closes most of them.
    fn close_overdue(&mut self, turn: &mut Turn, now: MonotonicTime) {
        let is_due = |client: &ControlClient<'_>| client.deadline().is_some_and(|at| at <= now);
        let due = self.clients.iter().filter(|(_, client)| is_due(client));
        for token in due.map(|(token, _)| *token).collect::<Vec<_>>() {
            turn.has_worked();
            self.update(token, |client, buffers| {
                client.on_timeout(buffers, now);
                client.drive(buffers, turn, now)
            });
        }
    }
}

/// Has a child close sockets in which clients may have left descriptors: to close those may wait.
pub(super) fn hand_over_sockets(log: &Logger) {
    if let Err(error) = passed_fds::hand_over() {
        error!(log, "failed to fork, closed clients stay open"; "error" => error.to_string());
    }
}
