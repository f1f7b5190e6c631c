//! `mio`: one edge-triggered event loop for very many clients.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use ::mio::event::Event;
use ::mio::unix::SourceFd;
use ::mio::{Events, Interest, Poll, Token};
use ostler::worker::{
    Buffers, Client, DriveStatus, EpollAcceptor, ReadMode, StopRequest, TimerWheel, WorkTracker,
    WorkerClass, WorkerContext, WorkerError,
};
use slab::Slab;

/// Runs one thread and one event loop per worker. A handler that blocks stalls all clients of its
/// worker, so this class suits fast handlers; slow and idle clients cost only memory.
pub struct MioClass;

/// The token of the signals. Clients have the tokens from 0, listeners those from `FIRST_LISTENER`.
const WAKE: Token = Token(usize::MAX);
const FIRST_LISTENER: usize = usize::MAX / 2;
/// How many events one turn of the loop handles.
const EVENTS_MAX: usize = 512;
/// How many clients are accepted before the others have their turn.
const ACCEPTS_MAX: usize = 1;

impl WorkerClass for MioClass {
    fn name(&self) -> &'static str {
        "mio"
    }

    fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError> {
        let mut event_loop = EventLoop::new(ctx)?;
        ctx.lifecycle().ready();
        event_loop.run()
    }
}

struct EventLoop<'a> {
    ctx: &'a WorkerContext<'a>,
    poll: Poll,
    acceptor: EpollAcceptor<'a>,
    clients: Slab<ClientEntry<'a>>,
    timers: TimerWheel,
    /// Clients that could continue, but have yielded to others.
    ready: VecDeque<usize>,
    buffers: Buffers,
    tracker: WorkTracker<'a>,
    draining: bool,
}

struct ClientEntry<'a> {
    client: Client<'a>,
    /// Whether it is in `EventLoop::ready`.
    ready: bool,
    /// Whether the poll reports room for output too.
    wants_writable: bool,
}

impl<'a> EventLoop<'a> {
    fn new(ctx: &'a WorkerContext<'a>) -> io::Result<Self> {
        let poll = Poll::new()?;
        let wake = ctx.lifecycle().wake_fd().as_raw_fd();
        poll.registry().register(&mut SourceFd(&wake), WAKE, Interest::READABLE)?;
        let acceptor = EpollAcceptor::register(ctx, &poll, FIRST_LISTENER)?;
        Ok(Self {
            ctx,
            poll,
            acceptor,
            clients: Slab::new(),
            timers: TimerWheel::new(ctx.lifecycle().now()),
            ready: VecDeque::new(),
            buffers: Buffers::default(),
            tracker: ctx.lifecycle().tracker().with_heartbeat().with_record_buffer(),
            draining: false,
        })
    }

    fn run(&mut self) -> Result<(), WorkerError> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        self.handle_signals()?; // from now on this class polls for a stop
        loop {
            self.acceptor.update(self.clients.len(), &self.poll)?;
            if self.ctx.lifecycle().stop_request() == StopRequest::Immediate || self.is_done() {
                return Ok(());
            }
            self.ctx.lifecycle().notify();
            self.wait(&mut events)?;
            for event in &events {
                // Many fast clients together may take longer than `timeout`.
                self.ctx.lifecycle().notify();
                match event.token() {
                    WAKE => self.handle_signals()?,
                    Token(listener) if listener >= FIRST_LISTENER => {
                        self.accept(listener - FIRST_LISTENER)?;
                    }
                    Token(client) => self.drive(client, read_mode(event)),
                }
            }
            self.drive_ready();
            self.expire_clients();
        }
    }

    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        let timeout =
            if self.ready.is_empty() { self.poll_timeout() } else { Some(Duration::ZERO) };
        self.tracker.flush_records();
        match self.poll.poll(events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    /// Returns the time until the next deadline or heartbeat.
    fn poll_timeout(&self) -> Option<Duration> {
        let deadline = [self.timers.next(), self.acceptor.deadline()].into_iter().flatten().min();
        let wait = deadline.map(|at| at.duration_since(self.ctx.lifecycle().now()));
        [wait, self.ctx.lifecycle().heartbeat_interval()].into_iter().flatten().min()
    }

    fn handle_signals(&mut self) -> io::Result<()> {
        if self.ctx.lifecycle().poll_stop() == StopRequest::Graceful && !self.draining {
            self.draining = true;
            self.acceptor.drain(&self.poll)?;
        }
        if self.ctx.lifecycle().drains_clients() {
            for index in self.undrained() {
                self.drain_client(index);
            }
        }
        Ok(())
    }

    /// Returns whether the worker has drained: it has no client, and none can be lost.
    fn is_done(&self) -> bool {
        self.draining && self.clients.is_empty() && !self.acceptor.may_receive_more()
    }

    fn accept(&mut self, listener: usize) -> io::Result<()> {
        for _ in 0..ACCEPTS_MAX {
            match self.acceptor.accept(listener, self.clients.len(), &self.poll)? {
                Some(client) => self.add_client(client),
                None => break,
            }
        }
        Ok(())
    }

    fn add_client(&mut self, client: Client<'a>) {
        let fd = client.as_raw_fd();
        let index =
            self.clients.insert(ClientEntry { client, ready: false, wants_writable: false });
        let registry = self.poll.registry();
        if registry.register(&mut SourceFd(&fd), Token(index), Interest::READABLE).is_err() {
            self.clients.remove(index); // no memory to watch it: close this client
            self.ctx.lifecycle().count_refused_client();
            return;
        }
        self.schedule(index);
        if self.ctx.lifecycle().drains_clients() {
            self.drain_client(index);
        }
    }

    /// Tells a client that the worker drains, after what it has already sent is answered.
    fn drain_client(&mut self, index: usize) {
        self.drive(index, ReadMode::UntilWouldBlock);
        if let Some(entry) = self.clients.get_mut(index) {
            entry.client.drain(&mut self.buffers, &mut self.tracker);
            self.drive(index, ReadMode::UntilWouldBlock);
        }
    }

    /// Drives a client as far as possible without waiting.
    fn drive(&mut self, index: usize, mode: ReadMode) {
        let Some(entry) = self.clients.get_mut(index) else { return };
        match entry.client.drive(mode, &mut self.buffers, &mut self.tracker) {
            DriveStatus::WantRead => self.schedule(index),
            DriveStatus::WantWrite => {
                if !entry.wants_writable {
                    entry.wants_writable = true;
                    let both = Interest::READABLE | Interest::WRITABLE;
                    let fd = entry.client.as_raw_fd();
                    let registry = self.poll.registry();
                    if registry.reregister(&mut SourceFd(&fd), Token(index), both).is_err() {
                        return self.remove_client(index);
                    }
                }
                self.schedule(index);
            }
            DriveStatus::Yield => {
                if !std::mem::replace(&mut entry.ready, true) {
                    self.ready.push_back(index);
                }
                self.schedule(index);
            }
            DriveStatus::Closed => self.remove_client(index),
        }
    }

    fn drive_ready(&mut self) {
        for _ in 0..self.ready.len() {
            if let Some(index) = self.ready.pop_front() {
                if let Some(entry) = self.clients.get_mut(index) {
                    entry.ready = false;
                }
                self.ctx.lifecycle().notify();
                self.drive(index, ReadMode::UntilWouldBlock);
            }
        }
    }

    fn schedule(&mut self, index: usize) {
        if let Some(deadline) = self.clients[index].client.deadline() {
            self.timers.set(index, deadline);
        }
    }

    fn expire_clients(&mut self) {
        if self.timers.next().is_none() {
            return;
        }
        let now = self.ctx.lifecycle().now();
        while let Some(index) = self.timers.pop(now) {
            let Some(entry) = self.clients.get_mut(index) else { continue };
            if entry.client.expire(now, &mut self.buffers, &mut self.tracker) {
                self.drive(index, ReadMode::UntilWouldBlock);
            } else {
                self.schedule(index);
            }
        }
    }

    /// Closes a client's socket, which removes it from the poll.
    fn remove_client(&mut self, index: usize) {
        self.clients.remove(index);
        self.timers.clear(index);
    }

    /// Returns the clients that have not been told that the worker drains.
    fn undrained(&self) -> Vec<usize> {
        let undrained = self.clients.iter().filter(|(_, entry)| !entry.client.is_drained());
        undrained.map(|(index, _)| index).collect()
    }
}

/// Returns how to read after an event. The end of the stream is reported once, so everything before it
/// must be read now.
fn read_mode(event: &Event) -> ReadMode {
    if event.is_read_closed() || event.is_error() {
        ReadMode::UntilWouldBlock
    } else {
        ReadMode::UntilShortRead
    }
}
