//! A client of the pool, in whichever state.

use std::mem;
use std::sync::{Mutex, MutexGuard};

use ::mio::event::Event;
use ostler::time::MonotonicTime;
use ostler::worker::{Client, DriveStatus};

use super::lock::lock;

/// A client that is parked, queued, running in a thread, or closed.
pub(super) struct ClientEntry<'a> {
    inner: Mutex<EntryInner>,
    /// `None` once it is closed. Only the thread that runs it has the lock: the client stays where it is in
    /// all states.
    client: Mutex<Option<Client<'a>>>,
}

struct EntryInner {
    state: ClientState,
    /// Its socket had an event while it was not parked.
    event_pending: bool,
    /// Its peer has ended the stream, which is reported once.
    peer_closed: bool,
    /// When the main thread checks it next; `None` before the main thread knows of it.
    next_check: Option<MonotonicTime>,
}

#[derive(Clone, Copy)]
enum ClientState {
    /// It waits for what the status says, or for its deadline.
    Parked(DriveStatus, Option<MonotonicTime>),
    Queued,
    Running,
    Closed,
}

/// The result of parking a client.
#[derive(Clone, Copy)]
pub(super) enum ParkResult {
    CheckInTime,
    /// Its deadline is earlier than the next check.
    CheckTooLate,
    /// It has an event already, so it must run again.
    EventPending,
}

impl<'a> ClientEntry<'a> {
    /// Creates the entry of a new client, in the queue.
    pub(super) fn new(client: Client<'a>) -> Self {
        let state = ClientState::Queued;
        let inner =
            EntryInner { state, event_pending: false, peer_closed: false, next_check: None };
        Self { inner: Mutex::new(inner), client: Mutex::new(Some(client)) }
    }

    /// Records an event of its socket. Returns whether it must be queued: it was parked, and waited for
    /// this event.
    pub(super) fn on_event(&self, event: &Event) -> bool {
        let mut inner = lock(&self.inner);
        inner.peer_closed |= event.is_read_closed() || event.is_error();
        let is_relevant = match inner.state {
            ClientState::Parked(DriveStatus::WantWrite, _) => {
                event.is_writable() || inner.peer_closed
            }
            ClientState::Parked(..) => event.is_readable() || inner.peer_closed,
            ClientState::Queued | ClientState::Running | ClientState::Closed => true,
        };
        is_relevant && inner.enqueue()
    }

    /// Makes a thread run it. Returns whether it must be queued: it was parked. If it is queued or running,
    /// its thread runs it once more.
    pub(super) fn enqueue(&self) -> bool {
        lock(&self.inner).enqueue()
    }

    /// Takes a queued client, to run it until the lock is dropped.
    pub(super) fn take(&self) -> Option<MutexGuard<'_, Option<Client<'a>>>> {
        {
            let mut inner = lock(&self.inner);
            if !matches!(inner.state, ClientState::Queued) {
                return None;
            }
            inner.state = ClientState::Running;
        }
        Some(self.client())
    }

    /// Locks the client. Only for the thread that runs it.
    pub(super) fn client(&self) -> MutexGuard<'_, Option<Client<'a>>> {
        lock(&self.client)
    }

    /// Marks a client that has yielded as queued again.
    pub(super) fn requeue(&self) {
        lock(&self.inner).state = ClientState::Queued;
    }

    /// Parks it until the event that it waits for, unless an event has come since it was taken.
    pub(super) fn park(&self, status: DriveStatus, deadline: Option<MonotonicTime>) -> ParkResult {
        let mut inner = lock(&self.inner);
        if mem::take(&mut inner.event_pending) {
            return ParkResult::EventPending;
        }
        inner.state = ClientState::Parked(status, deadline);
        match (deadline, inner.next_check) {
            (Some(deadline), Some(check)) if deadline < check => ParkResult::CheckTooLate,
            _ => ParkResult::CheckInTime,
        }
    }

    /// Marks a client as closed. Close its socket before, and free its index after it: no event can mean
    /// another client.
    pub(super) fn close(&self) {
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

impl EntryInner {
    /// Returns the deadline of a parked client; in other states it waits for nothing.
    fn deadline(&self) -> Option<MonotonicTime> {
        match self.state {
            ClientState::Parked(_, deadline) => deadline,
            ClientState::Queued | ClientState::Running | ClientState::Closed => None,
        }
    }

    fn enqueue(&mut self) -> bool {
        let is_parked = matches!(self.state, ClientState::Parked(..));
        if is_parked {
            self.state = ClientState::Queued;
        } else {
            self.event_pending = true;
        }
        is_parked
    }
}
