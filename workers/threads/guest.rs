//! A client of the pool, wherever it is.

use std::mem;
use std::sync::Mutex;

use ::mio::event::Event;
use ostler::time::MonotonicTime;
use ostler::worker::{Client, DriveStatus};

use super::office::lock;

/// A client that is parked, in the queue, out with a thread, or gone.
pub(super) struct Guest<'a> {
    place: Mutex<Place<'a>>,
}

struct Place<'a> {
    whereabouts: Whereabouts<'a>,
    /// Something happened to its socket while it was not parked.
    stirred: bool,
    /// Its peer has ended the stream, which is told of once.
    ended: bool,
    /// When the main thread looks at it next, once that knows of it.
    next_look: Option<MonotonicTime>,
}

enum Whereabouts<'a> {
    Parked(Client<'a>, DriveStatus),
    Queued(Client<'a>),
    Out,
    Gone,
}

/// What came of parking a client.
pub(super) enum Parking<'a> {
    Patient,
    /// Its deadline is earlier than the next look at it.
    Impatient,
    /// It is to go on.
    Stirred(Client<'a>),
}

impl<'a> Guest<'a> {
    /// A newcomer, in the queue.
    pub(super) fn new(client: Client<'a>) -> Self {
        let whereabouts = Whereabouts::Queued(client);
        let place = Place { whereabouts, stirred: false, ended: false, next_look: None };
        Self { place: Mutex::new(place) }
    }

    /// Something happened to its socket. Returns whether it leaves its parking place for the queue,
    /// as it does if that is what it waited for.
    pub(super) fn stir(&self, event: &Event) -> bool {
        let mut place = lock(&self.place);
        place.ended |= event.is_read_closed() || event.is_error();
        let of_use = match &place.whereabouts {
            Whereabouts::Parked(_, DriveStatus::WantWrite) => event.is_writable() || place.ended,
            Whereabouts::Parked(..) => event.is_readable() || place.ended,
            Whereabouts::Queued(_) | Whereabouts::Out | Whereabouts::Gone => true,
        };
        of_use && place.queue()
    }

    /// Somebody must look at it. Returns whether it leaves its parking place for the queue; if it is
    /// elsewhere, whoever has it looks once more.
    pub(super) fn queue(&self) -> bool {
        lock(&self.place).queue()
    }

    /// Takes it out of the queue.
    pub(super) fn take(&self) -> Option<Client<'a>> {
        let mut place = lock(&self.place);
        match mem::replace(&mut place.whereabouts, Whereabouts::Out) {
            Whereabouts::Queued(client) => Some(client),
            elsewhere => {
                place.whereabouts = elsewhere;
                None
            }
        }
    }

    /// Puts one that could go on back into the queue, behind others.
    pub(super) fn requeue(&self, client: Client<'a>) {
        lock(&self.place).whereabouts = Whereabouts::Queued(client);
    }

    /// Parks it until what it waits for happens, unless something has happened since it was taken:
    /// then it is given back.
    pub(super) fn park(&self, client: Client<'a>, turn: DriveStatus) -> Parking<'a> {
        let mut place = lock(&self.place);
        if mem::take(&mut place.stirred) {
            return Parking::Stirred(client);
        }
        let is_before = |look: MonotonicTime| client.deadline().is_some_and(|deadline| deadline < look);
        let is_impatient = place.next_look.is_some_and(is_before);
        place.whereabouts = Whereabouts::Parked(client, turn);
        if is_impatient { Parking::Impatient } else { Parking::Patient }
    }

    /// It has gone. Its number may be given to others afterwards, so its socket is closed before: no
    /// event can then mean somebody else.
    pub(super) fn leave(&self, client: Client<'a>) {
        drop(client);
        lock(&self.place).whereabouts = Whereabouts::Gone;
    }

    /// Whether its peer has ended the stream.
    pub(super) fn has_ended(&self) -> bool {
        lock(&self.place).ended
    }

    /// Whether it has waited long enough.
    pub(super) fn is_due(&self, now: MonotonicTime) -> bool {
        lock(&self.place).deadline().is_some_and(|deadline| deadline <= now)
    }

    /// Says when the main thread looks at it next: at its deadline, at `latest` otherwise. Returns
    /// when that is.
    pub(super) fn plan_look(&self, latest: MonotonicTime) -> MonotonicTime {
        let mut place = lock(&self.place);
        let look = place.deadline().map_or(latest, |deadline| deadline.min(latest));
        place.next_look = Some(look);
        look
    }
}

impl Place<'_> {
    /// The deadline of one that is parked: nobody else waits.
    fn deadline(&self) -> Option<MonotonicTime> {
        match &self.whereabouts {
            Whereabouts::Parked(client, _) => client.deadline(),
            Whereabouts::Queued(_) | Whereabouts::Out | Whereabouts::Gone => None,
        }
    }

    fn queue(&mut self) -> bool {
        match mem::replace(&mut self.whereabouts, Whereabouts::Gone) {
            Whereabouts::Parked(client, _) => {
                self.whereabouts = Whereabouts::Queued(client);
                true
            }
            elsewhere => {
                self.whereabouts = elsewhere;
                self.stirred = true;
                false
            }
        }
    }
}
