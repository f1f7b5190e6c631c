//! Letting clients in, for classes with an event loop of their own.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use super::client::Client;
use super::context::WorkerContext;
use crate::os::clock;
use crate::time::MonotonicTime;

/// How many clients more than its share a worker may have, besides an eighth of the share. A
/// worker that is awake is quicker than one that is being woken, and would take all of a burst.
const SHARE_SLACK: usize = 2;
/// How often a worker that is awake looks at its listeners anew. One that is killed takes with it that
/// the kernel has woken it, and nobody else, for a client; its successor looks when it joins, and the
/// master has others look at once.
const REJOIN_EVERY: Duration = Duration::from_secs(2);
/// For how long a worker that has its share leaves clients to others, who may be stuck.
const YIELD_MAX: Duration = Duration::from_millis(20);

/// The listeners as members of an epoll instance. It wakes one worker for one client, lets in no
/// more than `worker_connections`, and pauses while the kernel has no resources for another one.
pub struct Gate<'a> {
    ctx: &'a WorkerContext<'a>,
    first_token: usize,
    state: State,
    /// Which listeners are in the epoll instance.
    watched: Vec<bool>,
    /// Which listeners have left the epoll instance in this turn. The kernel may have woken this
    /// worker, and nobody else, for a client there: one more is let in.
    owed: Vec<bool>,
    /// Which listeners have ended listening: nobody will ever come there.
    ended: Vec<bool>,
    /// The number of clients that the others were told of last.
    told: usize,
    /// When all listeners were looked at last.
    looked_at: MonotonicTime,
    /// Whether other workers take clients from a queue of this one's as well.
    shares: bool,
    /// The changes among the queues that have been heeded.
    moves: u64,
    /// Whether the worker drains: it lets in only who waits at a listener that it must empty.
    draining: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// There are as many clients as the settings allow.
    Full,
    /// The kernel has no resources for another one; tried again at this moment.
    Paused(MonotonicTime),
    /// Others have fewer clients: they go first, until this moment at the latest.
    Yielding(MonotonicTime),
}

impl<'a> Gate<'a> {
    /// An open gate. The events of the nth listener carry `first_token` + n.
    ///
    /// # Errors
    /// From epoll_ctl(2).
    pub fn open(
        ctx: &'a WorkerContext<'a>,
        epoll: &impl AsRawFd,
        first_token: usize,
    ) -> io::Result<Self> {
        let watched = vec![false; ctx.listeners().len()];
        let mut gate = Self {
            ctx,
            first_token,
            state: State::Open,
            owed: watched.clone(),
            ended: watched.clone(),
            watched,
            told: 0,
            looked_at: clock::now(),
            shares: true,
            moves: 0,
            draining: false,
        };
        gate.turn_to(State::Open, epoll)?;
        Ok(gate)
    }

    /// How many listeners there are.
    pub fn listeners(&self) -> usize {
        self.ctx.listeners().len()
    }

    /// Lets in one client from the nth listener; `None` if nobody waits or the gate is shut.
    /// `present` is the number of clients that are in already.
    ///
    /// # Errors
    /// From epoll_ctl(2). That there are no resources for a client is not one: it is logged, and
    /// the gate is shut for a while.
    pub fn admit(
        &mut self,
        listener: usize,
        present: usize,
        epoll: &impl AsRawFd,
    ) -> io::Result<Option<Client<'a>>> {
        let told = std::mem::take(&mut self.owed[listener]) || self.watched[listener];
        let open = self.state == State::Open && self.takes_from(listener);
        if !told && !open {
            return Ok(None);
        }
        match self.ctx.listeners()[listener].accept() {
            Ok(Some((stream, address))) => {
                if present + 1 >= self.ctx.settings().worker_connections {
                    self.turn_to(State::Full, epoll)?;
                } else if open {
                    self.rejoin(listener, epoll)?;
                } else {
                    self.turn_to(self.state, epoll)?;
                }
                Ok(Some(self.ctx.open(stream, address, true)))
            }
            Ok(None) if !open => {
                self.turn_to(self.state, epoll)?; // or it would be told of again and again
                Ok(None)
            }
            Ok(None) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.ended[listener] = true;
                self.turn_to(self.state, epoll)?;
                Ok(None)
            }
            Err(error) => {
                self.ctx.warn_of_pause(&error);
                self.turn_to(State::Paused(self.ctx.end_of_pause()), epoll)?;
                Ok(None)
            }
        }
    }

    /// Opens the gate again if what shut it is over. To be called on every turn of the loop, after
    /// its events.
    ///
    /// # Errors
    /// From epoll_ctl(2).
    pub fn reconsider(&mut self, present: usize, epoll: &impl AsRawFd) -> io::Result<()> {
        self.owed.fill(false);
        if self.moves != self.ctx.life().moves() {
            self.turn_to(self.state, epoll)?;
            self.rejoin_all(epoll)?;
        }
        let crowded = match self.state {
            State::Yielding(_) => self.has_its_share(present),
            State::Open => present != self.told && self.has_its_share(present),
            State::Full | State::Paused(_) => false,
        };
        let now = clock::now();
        if now.duration_since(self.looked_at) >= REJOIN_EVERY {
            self.looked_at = now;
            self.rejoin_all(epoll)?;
        }
        match self.state {
            State::Full if present < self.ctx.settings().worker_connections => {
                self.turn_to(State::Open, epoll)
            }
            State::Paused(until) if until <= now => self.turn_to(State::Open, epoll),
            State::Yielding(until) if !crowded || until <= now => self.turn_to(State::Open, epoll),
            State::Open if crowded => self.turn_to(State::Yielding(now.saturating_add(YIELD_MAX)), epoll),
            State::Open | State::Full | State::Paused(_) | State::Yielding(_) => Ok(()),
        }
    }

    /// Whether this worker has more than its share of the clients of all workers.
    fn has_its_share(&mut self, present: usize) -> bool {
        self.told = present;
        let share = self.ctx.life().fair_share(present);
        present > share + share / 8 + SHARE_SLACK && self.shares && !self.draining
    }

    /// The worker leaves: from now on the gate lets in only who waits at a listener at which nobody
    /// serves after this worker.
    ///
    /// # Errors
    /// From epoll_ctl(2).
    pub fn drain(&mut self, epoll: &impl AsRawFd) -> io::Result<()> {
        self.draining = true;
        let state = match self.state {
            State::Yielding(_) => State::Open,
            state => state,
        };
        self.turn_to(state, epoll)
    }

    /// When [`reconsider`](Self::reconsider) is due, or [`expects`](Self::expects) has another
    /// answer.
    pub fn deadline(&self) -> Option<MonotonicTime> {
        match self.state {
            State::Paused(until) | State::Yielding(until) => Some(until),
            State::Open | State::Full => self.ctx.expects_until(),
        }
    }

    /// Whether somebody may wait behind the gate who will be let in later, or be about to come
    /// although the worker drains.
    pub fn expects(&self) -> bool {
        self.holds_back() || self.ctx.expects_until().is_some()
    }

    /// Whether somebody may wait behind the gate who will be let in later.
    pub fn holds_back(&self) -> bool {
        matches!(self.state, State::Full | State::Paused(_) | State::Yielding(_))
    }

    /// Puts a listener at the end of the kernel's queue of sleepers, so that its next client wakes
    /// another worker. Otherwise the kernel favours the same one. A listener whose door was closed
    /// while the worker drained joins only now.
    fn rejoin(&mut self, listener: usize, epoll: &impl AsRawFd) -> io::Result<()> {
        let socket = &self.ctx.listeners()[listener];
        if std::mem::replace(&mut self.watched[listener], true) {
            if socket.is_sharded() {
                return Ok(());
            }
            socket.unwatch(epoll)?;
        }
        socket.watch(epoll, self.first_token + listener)
    }

    fn rejoin_all(&self, epoll: &impl AsRawFd) -> io::Result<()> {
        for (index, listener) in self.ctx.listeners().iter().enumerate() {
            if self.watched[index] {
                listener.unwatch(epoll)?;
                listener.watch(epoll, self.first_token + index)?;
            }
        }
        Ok(())
    }

    fn takes_from(&self, listener: usize) -> bool {
        let socket = &self.ctx.listeners()[listener];
        let wanted =
            if self.draining { self.ctx.must_empty(socket) } else { self.ctx.attends(socket) };
        wanted && !self.ended[listener]
    }

    fn turn_to(&mut self, state: State, epoll: &impl AsRawFd) -> io::Result<()> {
        self.state = state;
        self.moves = self.ctx.life().moves();
        self.shares = self.ctx.listeners().iter().any(|listener| !listener.is_sharded());
        for (index, listener) in self.ctx.listeners().iter().enumerate() {
            let wish = state == State::Open && self.takes_from(index);
            match (self.watched[index], wish) {
                (false, true) => listener.watch(epoll, self.first_token + index)?,
                (true, false) => {
                    listener.unwatch(epoll)?;
                    self.owed[index] = true;
                }
                (true, true) | (false, false) => (),
            }
            self.watched[index] = wish;
        }
        Ok(())
    }
}
