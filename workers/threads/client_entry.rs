//! A client of the pool, wherever it is.

use std::mem;
use std::sync::Mutex;

use ::mio::event::Event;
use ostler::time::MonotonicTime;
use ostler::worker::{Client, DriveStatus};

use super::shared::lock;

/// A client that is parked, in the queue, out with a thread, or gone.
pub(super) struct ClientEntry<'a> {
    inner: Mutex<EntryInner<'a>>,
}

struct EntryInner<'a> {
    state: ClientState<'a>,
    /// Something happened to its socket while it was not parked.
    event_pending: bool,
    /// Its peer has ended the stream, which is told of once.
    peer_closed: bool,
    /// When the main thread looks at it next, once that knows of it.
    next_check: Option<MonotonicTime>,
}

enum ClientState<'a> {
    Parked(Client<'a>, DriveStatus),
    Queued(Client<'a>),
    Running,
    Closed,
}

/// What came of parking a client.
pub(super) enum ParkResult<'a> {
    CheckInTime,
    /// Its deadline is earlier than the next look at it.
    CheckTooLate,
    /// It is to go on.
    EventPending(Client<'a>),
}

impl<'a> ClientEntry<'a> {
    /// A newcomer, in the queue.
    pub(super) fn new(client: Client<'a>) -> Self {
        let state = ClientState::Queued(client);
        let inner =
            EntryInner { state, event_pending: false, peer_closed: false, next_check: None };
        Self { inner: Mutex::new(inner) }
    }

    /// Something happened to its socket. Returns whether it leaves its parking place for the queue,
    /// as it does if that is what it waited for.
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

    /// Somebody must look at it. Returns whether it leaves its parking place for the queue; if it is
    /// elsewhere, whoever has it looks once more.
    pub(super) fn enqueue(&self) -> bool {
        lock(&self.inner).enqueue()
    }

    /// Takes it out of the queue.
    pub(super) fn take(&self) -> Option<Client<'a>> {
        let mut inner = lock(&self.inner);
        match mem::replace(&mut inner.state, ClientState::Running) {
            ClientState::Queued(client) => Some(client),
            other => {
                inner.state = other;
                None
            }
        }
    }

    /// Puts one that could go on back into the queue, behind others.
    pub(super) fn requeue(&self, client: Client<'a>) {
        lock(&self.inner).state = ClientState::Queued(client);
    }

    /// Parks it until what it waits for happens, unless something has happened since it was taken:
    /// then it is given back.
    pub(super) fn park(&self, client: Client<'a>, status: DriveStatus) -> ParkResult<'a> {
        let mut inner = lock(&self.inner);
        if mem::take(&mut inner.event_pending) {
            return ParkResult::EventPending(client);
        }
        let is_before =
            |look: MonotonicTime| client.deadline().is_some_and(|deadline| deadline < look);
        let is_too_late = inner.next_check.is_some_and(is_before);
        inner.state = ClientState::Parked(client, status);
        if is_too_late { ParkResult::CheckTooLate } else { ParkResult::CheckInTime }
    }

    /// It has gone. Its number may be given to others afterwards, so its socket is closed before: no
    /// event can then mean somebody else.
    pub(super) fn close(&self, client: Client<'a>) {
        drop(client);
        lock(&self.inner).state = ClientState::Closed;
    }

    /// Whether its peer has ended the stream.
    pub(super) fn is_peer_closed(&self) -> bool {
        lock(&self.inner).peer_closed
    }

    /// Whether it has waited long enough.
    pub(super) fn is_due(&self, now: MonotonicTime) -> bool {
        lock(&self.inner).deadline().is_some_and(|deadline| deadline <= now)
    }

    /// Says when the main thread looks at it next: at its deadline, at `latest` otherwise. Returns
    /// when that is.
    pub(super) fn schedule_check(&self, latest: MonotonicTime) -> MonotonicTime {
        let mut inner = lock(&self.inner);
        let check = inner.deadline().map_or(latest, |deadline| deadline.min(latest));
        inner.next_check = Some(check);
        check
    }
}

impl EntryInner<'_> {
    /// The deadline of one that is parked: nobody else waits.
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
