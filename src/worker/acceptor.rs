//! Letting clients in, for a class that sleeps in its own way: what it has to know is decided here,
//! and what it watches, and how, is its own affair.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::WorkerError;
use super::client::Client;
use super::context::WorkerContext;
use super::lifecycle::Stop;
use crate::listen::Stream;
use crate::os::{clock, file, poll};
use crate::time::MonotonicTime;

/// How often a worker that is awake looks for clients of whom nobody has told it, and when it looks once
/// more after the master has told it to: one that is killed may still be woken for a client, in place of
/// all others, until the kernel has taken its watches away.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What an [`Acceptor`] has found.
#[derive(Debug)]
pub enum Arrival {
    /// A client, with the address of a TCP peer. Others may wait behind it: ask again before you
    /// sleep.
    Client(Stream, Option<SocketAddr>),
    /// Nobody, and the clients who are in are to be served. Ask again at this moment at the latest.
    Nobody {
        /// When a beat or a look is due, or a pause ends, or nobody is expected any more; `None` is
        /// never.
        until: Option<MonotonicTime>,
    },
    /// It is time to return from [`run`](super::WorkerClass::run).
    Over,
}

/// Lets clients in, one after the other and from the listeners in turn; keeps to
/// `worker_connections`; pauses while the kernel has no resources for another client; empties the
/// queues that must be empty when the worker leaves; and knows when all is over.
///
/// A class that serves one client at a time asks for the [next](Self::next_client). One with a loop of
/// its own [polls](Self::poll), watches the listeners that the acceptor [awaits](Self::awaits), and
/// says who [knocks](Self::knock):
///
#[doc = concat!("```no_run\n", include_str!("../../examples/own_loop.rs"), "```")]
pub struct Acceptor<'a> {
    ctx: WorkerContext<'a>,
    doors: Vec<Entrance>,
    /// The listener whose turn it is.
    next: usize,
    /// Whether there are fewer clients than the settings allow.
    has_room: bool,
    paused_until: Option<MonotonicTime>,
    /// The changes among the queues that have been heeded.
    moves: u64,
    /// When all listeners were looked at last.
    looked_at: MonotonicTime,
    /// Whether that was because the master had said so.
    looks_again: bool,
    over: bool,
    /// If another thread keeps the worker's life: where that tells of signals.
    nudges: Option<&'a OwnedFd>,
}

/// What is known of a listener.
#[derive(Clone, Copy, Default)]
struct Entrance {
    /// Somebody has knocked, and perhaps nobody but this worker has heard it.
    knocked: bool,
    /// More may wait: it has not been looked to the end.
    more: bool,
    /// It has ended listening: nobody will ever come.
    ended: bool,
}

/// Who has just been accepted, with the address of a TCP peer.
pub(super) type Newcomer = (Stream, Option<SocketAddr>);

impl<'a> Acceptor<'a> {
    pub(super) fn new(ctx: WorkerContext<'a>) -> Self {
        let doors = vec![Entrance::default(); ctx.listeners.len()];
        Self {
            doors,
            next: 0,
            has_room: true,
            paused_until: None,
            moves: ctx.life.moves(),
            looked_at: clock::now_coarse(),
            looks_again: false,
            over: false,
            nudges: None,
            ctx,
        }
    }

    /// The same, beside a thread that keeps the worker's life, which puts a byte into this pipe
    /// whenever it has heard a signal.
    pub(super) fn nudged_by(self, nudges: &'a OwnedFd) -> Self {
        Self { nudges: Some(nudges), ..self }
    }

    /// Beats, and lets in one client if somebody waits. `present` is how many are in already. To be
    /// called on each turn of the loop: it asks the kernel only if somebody has
    /// [knocked](Self::knock), or may still wait. Whether the worker is to leave it knows from
    /// [`Lifecycle::stop`](super::Lifecycle::stop), which the loop asks when
    /// [`wake_fd`](super::Lifecycle::wake_fd) is readable.
    ///
    /// When the worker is to leave, [`Arrival::Over`] comes once `present` is 0 and nobody can be lost.
    pub fn poll(&mut self, present: usize) -> Arrival {
        self.ctx.life.notify();
        match self.look(present) {
            Arrival::Nobody { until } => {
                let beat = self.ctx.life.next_beat();
                Arrival::Nobody { until: [until, beat].into_iter().flatten().min() }
            }
            found => found,
        }
    }

    /// Whether the loop is to watch the nth listener while it sleeps. It lets go of those that are not
    /// awaited any more.
    ///
    /// If it watches exclusively, so that a client wakes one worker only
    /// ([`Listener::watch`](crate::listen::Listener::watch)), it must not let go of a listener without
    /// finding out whether somebody has just [knocked](Self::knock) there, nor return before it has let
    /// go of all: the kernel may have woken nobody else for that client.
    ///
    /// # Panics
    /// If there are not so many listeners.
    pub fn awaits(&self, listener: usize) -> bool {
        let Entrance { knocked, more, .. } = self.doors[listener];
        !knocked && !more && !self.over && self.takes_from(listener)
    }

    /// The nth listener was readable. The next [`poll`](Self::poll) looks, also if the worker is full
    /// or leaves meanwhile: the kernel may have woken nobody else for that client.
    ///
    /// # Panics
    /// If there are not so many listeners.
    pub fn knock(&mut self, listener: usize) {
        self.doors[listener].knocked = true;
    }

    /// The next client, for a class that serves one at a time: sleeps and beats until there is one;
    /// `None` when it is time to stop. A client's connection is not reusable: a protocol that can
    /// announce it closes after one answer.
    ///
    /// # Errors
    /// A listener is broken.
    pub fn next_client(&mut self) -> Result<Option<Client<'a>>, WorkerError> {
        let newcomer = self.next_stream()?;
        Ok(newcomer.map(|(stream, address)| self.ctx.open(stream, address, false)))
    }

    /// As [`next_client`](Self::next_client), for who wants the bare socket.
    pub(super) fn next_stream(&mut self) -> Result<Option<Newcomer>, WorkerError> {
        loop {
            self.hear();
            match self.look(0) {
                Arrival::Client(stream, address) => return Ok(Some((stream, address))),
                Arrival::Nobody { until } => self.sleep(until)?,
                Arrival::Over => return Ok(None),
            }
        }
    }

    /// Beats, and hears whether it is time to stop.
    fn hear(&self) {
        match self.nudges {
            None => {
                self.ctx.life.notify();
                self.ctx.life.stop();
            }
            Some(nudges) => file::drain_pipe(nudges),
        }
    }

    /// As [`poll`](Self::poll), without a beat.
    fn look(&mut self, present: usize) -> Arrival {
        let stop = self.ctx.life.stopping();
        self.has_room = present < self.ctx.settings.worker_connections;
        if self.paused_until.is_some_and(|until| until <= clock::now()) {
            self.paused_until = None;
        }
        let closing = stop == Stop::Graceful && present == 0;
        // Asked first: who comes between a look at the queues and the end of the time in which
        // somebody may come must be looked for once more.
        let expects = self.ctx.expects_until().is_some();
        let (now, moves) = (clock::now_coarse(), self.ctx.life.moves());
        if closing || self.moves != moves || now.duration_since(self.looked_at) >= LOOK_EVERY {
            self.looks_again = self.moves != moves;
            (self.moves, self.looked_at) = (moves, now);
            self.doors.iter_mut().for_each(|door| door.more = true);
        }
        let newcomer = if stop == Stop::Now { None } else { self.accept() };
        if let Some((stream, address)) = newcomer {
            return Arrival::Client(stream, address);
        }
        self.over = stop == Stop::Now || (closing && !expects && self.paused_until.is_none());
        if self.over {
            return Arrival::Over;
        }
        let next_look = self.looks_again.then(|| self.looked_at.saturating_add(LOOK_EVERY));
        let deadlines = [self.paused_until, self.ctx.expects_until(), next_look];
        Arrival::Nobody { until: deadlines.into_iter().flatten().min() }
    }

    /// Accepts from the listeners in turn, so that none starves another.
    fn accept(&mut self) -> Option<Newcomer> {
        let count = self.doors.len();
        for offset in 0..count {
            let index = (self.next + offset) % count;
            let Entrance { knocked, more, .. } = self.doors[index];
            let looks = knocked || (more && self.takes_from(index));
            if !looks || self.paused_until.is_some() {
                continue;
            }
            let accepted = self.ctx.listeners[index].accept();
            let door = &mut self.doors[index];
            *door = Entrance { knocked: false, more: !matches!(accepted, Ok(None)), ..*door };
            match accepted {
                Ok(Some(newcomer)) => {
                    self.next = index + 1;
                    return Some(newcomer);
                }
                Ok(None) => (),
                // It has ended listening, which only happens when the worker is to leave.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => door.ended = true,
                Err(error) => {
                    self.ctx.warn_of_pause(&error);
                    self.paused_until = Some(self.ctx.end_of_pause());
                }
            }
        }
        None
    }

    fn takes_from(&self, index: usize) -> bool {
        let listener = &self.ctx.listeners[index];
        let wanted = match self.ctx.life.stopping() {
            Stop::None => self.ctx.attends(listener),
            Stop::Graceful => self.ctx.must_empty(listener),
            Stop::Now => false,
        };
        wanted && self.has_room && self.paused_until.is_none() && !self.doors[index].ended
    }

    fn sleep(&mut self, until: Option<MonotonicTime>) -> io::Result<()> {
        let (wake, beat) = match self.nudges {
            None => (self.ctx.life.wake_fd(), self.ctx.life.next_beat()),
            Some(nudges) => (nudges.as_fd(), None),
        };
        let awaited: Vec<_> = (0..self.doors.len()).filter(|index| self.awaits(*index)).collect();
        let mut fds = vec![wake];
        fds.extend(awaited.iter().map(|index| self.ctx.listeners[*index].as_fd()));
        let ready = poll::wait_readable(&fds, [until, beat].into_iter().flatten().min())?;
        for (index, _) in awaited.into_iter().zip(&ready[1..]).filter(|(_, ready)| **ready) {
            self.knock(index);
        }
        Ok(())
    }
}
