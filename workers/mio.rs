//! `mio`: one event loop, edge-triggered, for very many clients.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use ::mio::event::Event;
use ::mio::unix::SourceFd;
use ::mio::{Events, Interest, Poll, Token};
use ostler::worker::{
    Buffers, Client, Deadlines, Desk, EpollAcceptor, Look, Stop, Turn, WorkerClass, WorkerContext,
    WorkerError,
};
use slab::Slab;

/// One thread and one event loop a worker. A handler that blocks stalls every client of its
/// worker, so it suits handlers that are quick; slow clients and idle ones cost memory only.
pub struct MioClass;

/// The signals. Clients have the tokens from 0 on, listeners those from `FIRST_LISTENER` on.
const WAKE: Token = Token(usize::MAX);
const FIRST_LISTENER: usize = usize::MAX / 2;
/// Events that are looked at in one turn of the loop.
const EVENTS_MAX: usize = 512;
/// Clients that are accepted before the others have their turn.
const ACCEPTS_MAX: usize = 1;

impl WorkerClass for MioClass {
    fn name(&self) -> &'static str {
        "mio"
    }

    fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError> {
        let mut event_loop = EventLoop::new(ctx)?;
        ctx.life().ready();
        event_loop.run()
    }
}

struct EventLoop<'a> {
    ctx: &'a WorkerContext<'a>,
    poll: Poll,
    gate: EpollAcceptor<'a>,
    clients: Slab<Guest<'a>>,
    deadlines: Deadlines,
    /// Clients that could go on, but have had their share.
    eager: VecDeque<usize>,
    buffers: Buffers,
    desk: Desk<'a>,
    draining: bool,
}

struct Guest<'a> {
    client: Client<'a>,
    /// Whether it is among those that could go on.
    eager: bool,
    /// Whether the poll tells of room for output as well.
    tells_of_room: bool,
}

impl<'a> EventLoop<'a> {
    fn new(ctx: &'a WorkerContext<'a>) -> io::Result<Self> {
        let poll = Poll::new()?;
        let wake = ctx.life().wake_fd().as_raw_fd();
        poll.registry().register(&mut SourceFd(&wake), WAKE, Interest::READABLE)?;
        let gate = EpollAcceptor::register(ctx, &poll, FIRST_LISTENER)?;
        Ok(Self {
            ctx,
            poll,
            gate,
            clients: Slab::new(),
            deadlines: Deadlines::new(ctx.life().now()),
            eager: VecDeque::new(),
            buffers: Buffers::default(),
            desk: ctx.life().desk(0).beating(),
            draining: false,
        })
    }

    fn run(&mut self) -> Result<(), WorkerError> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        loop {
            self.ctx.life().notify();
            self.sleep(&mut events)?;
            for event in &events {
                // Many clients, each quick enough, may together take longer than a beat.
                self.ctx.life().notify();
                match event.token() {
                    WAKE => self.heed_signals()?,
                    Token(listener) if listener >= FIRST_LISTENER => {
                        self.accept(listener - FIRST_LISTENER)?;
                    }
                    Token(client) => self.attend(client, look(event)),
                }
            }
            self.serve_the_eager();
            self.expire();
            self.gate.update(self.clients.len(), &self.poll)?;
            if self.ctx.life().stopping() == Stop::Now || self.is_done()? {
                return Ok(());
            }
        }
    }

    fn sleep(&mut self, events: &mut Events) -> io::Result<()> {
        let timeout = if self.eager.is_empty() { self.patience() } else { Some(Duration::ZERO) };
        match self.poll.poll(events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    /// Until the next deadline or beat.
    fn patience(&self) -> Option<Duration> {
        let deadline = [self.deadlines.next(), self.gate.deadline()].into_iter().flatten().min();
        let wait = deadline.map(|at| at.duration_since(self.ctx.life().now()));
        [wait, self.ctx.life().pulse()].into_iter().flatten().min()
    }

    fn heed_signals(&mut self) -> io::Result<()> {
        if self.ctx.life().stop() == Stop::Graceful && !self.draining {
            self.draining = true;
            self.gate.drain(&self.poll)?;
            for index in self.indices() {
                self.clients[index].client.drain(&mut self.buffers, &mut self.desk);
                self.attend(index, Look::ToTheEnd);
            }
        }
        Ok(())
    }

    /// Whether the worker has drained. If nobody serves after it, the queues must be empty too.
    fn is_done(&mut self) -> io::Result<bool> {
        if !self.draining || !self.clients.is_empty() {
            return Ok(false);
        }
        // Asked first: who comes between a look at the queues and the end of the time in which
        // somebody may come must be looked for once more.
        let expects = self.gate.may_receive_more();
        for listener in 0..self.gate.listeners() {
            self.accept(listener)?;
        }
        Ok(self.clients.is_empty() && !expects && !self.gate.may_receive_more())
    }

    fn accept(&mut self, listener: usize) -> io::Result<()> {
        for _ in 0..ACCEPTS_MAX {
            match self.gate.accept(listener, self.clients.len(), &self.poll)? {
                Some(client) => self.welcome(client),
                None => break,
            }
        }
        Ok(())
    }

    fn welcome(&mut self, client: Client<'a>) {
        let fd = client.as_raw_fd();
        let index = self.clients.insert(Guest { client, eager: false, tells_of_room: false });
        let registry = self.poll.registry();
        if registry.register(&mut SourceFd(&fd), Token(index), Interest::READABLE).is_err() {
            self.clients.remove(index); // no memory to watch it: this client is given up
            return;
        }
        self.schedule(index);
        if self.draining {
            self.attend(index, Look::ToTheEnd); // what it has sent already is answered
            if let Some(guest) = self.clients.get_mut(index) {
                guest.client.drain(&mut self.buffers, &mut self.desk);
                self.attend(index, Look::ToTheEnd);
            }
        }
    }

    /// Lets a client go as far as it can.
    fn attend(&mut self, index: usize, look: Look) {
        let Some(guest) = self.clients.get_mut(index) else { return };
        match guest.client.turn(look, &mut self.buffers, &mut self.desk) {
            Turn::Read => self.schedule(index),
            Turn::Write => {
                if !guest.tells_of_room {
                    guest.tells_of_room = true;
                    let both = Interest::READABLE | Interest::WRITABLE;
                    let fd = guest.client.as_raw_fd();
                    let registry = self.poll.registry();
                    if registry.reregister(&mut SourceFd(&fd), Token(index), both).is_err() {
                        return self.see_off(index);
                    }
                }
                self.schedule(index);
            }
            Turn::Again => {
                if !std::mem::replace(&mut guest.eager, true) {
                    self.eager.push_back(index);
                }
                self.schedule(index);
            }
            Turn::Gone => self.see_off(index),
        }
    }

    fn serve_the_eager(&mut self) {
        for _ in 0..self.eager.len() {
            if let Some(index) = self.eager.pop_front() {
                if let Some(guest) = self.clients.get_mut(index) {
                    guest.eager = false;
                }
                self.ctx.life().notify();
                self.attend(index, Look::ToTheEnd);
            }
        }
    }

    fn schedule(&mut self, index: usize) {
        if let Some(deadline) = self.clients[index].client.deadline() {
            self.deadlines.set(index, deadline);
        }
    }

    fn expire(&mut self) {
        if self.deadlines.next().is_none() {
            return;
        }
        let now = self.ctx.life().now();
        while let Some(index) = self.deadlines.pop(now) {
            let Some(guest) = self.clients.get_mut(index) else { continue };
            if guest.client.expire(now, &mut self.buffers, &mut self.desk) {
                self.attend(index, Look::ToTheEnd);
            } else {
                self.schedule(index);
            }
        }
    }

    /// Closes a client's socket, which takes it out of the poll.
    fn see_off(&mut self, index: usize) {
        self.clients.remove(index);
        self.deadlines.clear(index);
    }

    fn indices(&self) -> Vec<usize> {
        self.clients.iter().map(|(index, _)| index).collect()
    }
}

/// An end of the stream is told of once, so everything before it must be read now.
fn look(event: &Event) -> Look {
    if event.is_read_closed() || event.is_error() { Look::ToTheEnd } else { Look::ToAShortRead }
}
