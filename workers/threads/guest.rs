//! A client of the pool, wherever it is.

use std::mem;
use std::sync::Mutex;

use ::mio::event::Event;
use ostler::stamp::Stamp;
use ostler::worker::{Client, Turn};

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
}

enum Whereabouts<'a> {
    Parked(Client<'a>, Turn),
    Queued(Client<'a>),
    Out,
    Gone,
}

impl<'a> Guest<'a> {
    /// A newcomer, in the queue.
    pub(super) fn new(client: Client<'a>) -> Self {
        let whereabouts = Whereabouts::Queued(client);
        Self { place: Mutex::new(Place { whereabouts, stirred: false, ended: false }) }
    }

    /// Something happened to its socket. Returns whether it leaves its parking place for the queue,
    /// as it does if that is what it waited for.
    pub(super) fn stir(&self, event: &Event) -> bool {
        let mut place = lock(&self.place);
        place.ended |= event.is_read_closed() || event.is_error();
        let of_use = match &place.whereabouts {
            Whereabouts::Parked(_, Turn::Write) => event.is_writable() || place.ended,
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

    /// Parks it until what it waits for happens, unless something has happened since it was taken:
    /// then it is given back.
    pub(super) fn park(&self, client: Client<'a>, turn: Turn) -> Option<Client<'a>> {
        let mut place = lock(&self.place);
        if mem::take(&mut place.stirred) {
            return Some(client);
        }
        place.whereabouts = Whereabouts::Parked(client, turn);
        None
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

    /// When it has waited long enough; `None` if it waits for nothing.
    pub(super) fn deadline(&self) -> Option<Stamp> {
        match &lock(&self.place).whereabouts {
            Whereabouts::Parked(client, _) => client.deadline(),
            Whereabouts::Queued(_) | Whereabouts::Out | Whereabouts::Gone => None,
        }
    }
}

impl Place<'_> {
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
