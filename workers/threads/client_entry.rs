//! A client of the pool, in whichever state.

use std::mem;
use std::sync::Mutex;

use ::mio::event::Event;
use ostler::time::MonotonicTime;
use ostler::worker::{Client, DriveStatus};

use super::lock::lock;

/// A client that is parked, queued, running in a thread, or closed.
pub(super) struct ClientEntry<'a> {
    inner: Mutex<EntryInner<'a>>,
}

struct EntryInner<'a> {
    state: ClientState<'a>,
    /// Its socket had an event while it was not parked.
    event_pending: bool,
    /// Its peer has ended the stream, which is reported once.
    peer_closed: bool,
    /// When the main thread checks it next; `None` before the main thread knows of it.
    next_check: Option<MonotonicTime>,
}

/// The client is in a box, since it moves from state to state at each event.
enum ClientState<'a> {
    Parked(Box<Client<'a>>, DriveStatus),
    Queued(Box<Client<'a>>),
    Running,
    Closed,
}

/// The result of parking a client.
pub(super) enum ParkResult<'a> {
    CheckInTime,
    /// Its deadline is earlier than the next check.
    CheckTooLate,
    /// It has an event already, so it must run again.
    EventPending(Box<Client<'a>>),
}

impl<'a> ClientEntry<'a> {
    /// Creates the entry of a new client, in the queue.
    pub(super) fn new(client: Client<'a>) -> Self {
        let state = ClientState::Queued(Box::new(client));
        let inner =
            EntryInner { state, event_pending: false, peer_closed: false, next_check: None };
        Self { inner: Mutex::new(inner) }
    }

    /// Records an event of its socket. Returns whether it must be queued: it was parked, and waited for
    /// this event.
    pub(super) fn on_event(&self, event: &Event) -> bool {
        let mut inner = lock(&self.inner);
        inner.peer_closed |= event.is_read_closed() || event.is_error();
        let is_relevant = match &inner.state {
            ClientState::Parked(_, DriveStatus::WantWrite) => {
                event.is_writable() || inner.peer_closed
            }
            ClientState::Parked(..) => event.is_readable() || inner.peer_closed,
            ClientState::Queued(_) | ClientState::Running | ClientState::Closed => true,
        };
        is_relevant && inner.enqueue()
    }

    /// Makes a thread run it. Returns whether it must be queued: it was parked. If it is queued or running,
    /// its thread runs it once more.
    pub(super) fn enqueue(&self) -> bool {
        lock(&self.inner).enqueue()
    }

    /// Takes a queued client, to run it.
    pub(super) fn take(&self) -> Option<Box<Client<'a>>> {
        let mut inner = lock(&self.inner);
        match mem::replace(&mut inner.state, ClientState::Running) {
            ClientState::Queued(client) => Some(client),
            other => {
                inner.state = other;
                None
            }
        }
    }

    /// Marks a client that has yielded as queued again.
    pub(super) fn requeue(&self, client: Box<Client<'a>>) {
        lock(&self.inner).state = ClientState::Queued(client);
    }

    /// Parks it until the event that it waits for. If an event has come since it was taken, returns it
    /// instead.
    pub(super) fn park(&self, client: Box<Client<'a>>, status: DriveStatus) -> ParkResult<'a> {
        let mut inner = lock(&self.inner);
        if mem::take(&mut inner.event_pending) {
            return ParkResult::EventPending(client);
        }
        let is_before =
            |check: MonotonicTime| client.deadline().is_some_and(|deadline| deadline < check);
        let is_too_late = inner.next_check.is_some_and(is_before);
        inner.state = ClientState::Parked(client, status);
        if is_too_late { ParkResult::CheckTooLate } else { ParkResult::CheckInTime }
    }

    /// Closes it. The socket is closed before the index is reused, so that no event can mean another
    /// client.
    pub(super) fn close(&self, client: Box<Client<'a>>) {
        drop(client);
        lock(&self.inner).state = ClientState::Closed;
    }

    /// Returns whether its peer has ended the stream.
    pub(super) fn is_peer_closed(&self) -> bool {
        lock(&self.inner).peer_closed
    }

    /// Returns whether its deadline has come.
    pub(super) fn is_due(&self, now: MonotonicTime) -> bool {
        lock(&self.inner).deadline().is_some_and(|deadline| deadline <= now)
    }

    /// Sets when the main thread checks it next, and returns that time: its deadline, or `latest` if that
    /// is earlier.
    pub(super) fn schedule_check(&self, latest: MonotonicTime) -> MonotonicTime {
        let mut inner = lock(&self.inner);
        let check = inner.deadline().map_or(latest, |deadline| deadline.min(latest));
        inner.next_check = Some(check);
        check
    }
}

impl EntryInner<'_> {
    /// Returns the deadline of a parked client; in other states it waits for nothing.
    fn deadline(&self) -> Option<MonotonicTime> {
        match &self.state {
            ClientState::Parked(client, _) => client.deadline(),
            ClientState::Queued(_) | ClientState::Running | ClientState::Closed => None,
        }
    }

    fn enqueue(&mut self) -> bool {
        match mem::replace(&mut self.state, ClientState::Closed) {
            ClientState::Parked(client, _) => {
                self.state = ClientState::Queued(client);
                true
            }
            other => {
                self.state = other;
                self.event_pending = true;
                false
            }
        }
    }
}
