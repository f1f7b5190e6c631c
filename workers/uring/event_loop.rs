//! The loop: one submission a turn for all that is sent, received and closed.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use ::mio::unix::SourceFd;
use ::mio::{Events, Interest, Poll, Token};
use ostler::worker::{
    Buffers, Client, Completion, DriveStatus, EpollAcceptor, ReadMode, Received, Ring, StopRequest,
    TimerWheel, WorkTracker, WorkerContext, WorkerError, thread_cpu_time,
};
use slab::Slab;

use super::client_entry::{ClientEntry, Receive};
use super::coalescing::{Coalescing, WAIT_MAX};

/// The tokens of the signals and of the ring in the poll. Listeners have those from 0.
const WAKE: Token = Token(usize::MAX);
const RING: Token = Token(usize::MAX - 1);
/// How many events one turn of the loop handles.
const EVENTS_MAX: usize = 64;
/// How many turns a busy loop takes between two looks at listeners and signals.
const BUSY_TURNS: u32 = 4;
/// How much memory may hold bytes that were received, in all, for clients that do not read their output.
/// If it is exceeded, the client with the most is closed.
const WAITING_BYTES_MAX: usize = 64 << 20;
/// For how long what has arrived is answered before a drain, though more arrives meanwhile: until then, and
/// until there were so many more results than clients.
const RECEIVE_DUE_MAX: Duration = Duration::from_secs(1);
const SPARE_RESULTS: usize = 16;

// Fields: those of a loop over epoll, and those of a ring.
pub(super) struct EventLoop<'a> {
    ctx: &'a WorkerContext<'a>,
    /// What the worker sleeps in: it watches the listeners with EPOLLEXCLUSIVE, the signals and the ring.
    poll: Poll,
    ring: Ring,
    acceptor: EpollAcceptor<'a>,
    clients: Slab<ClientEntry<'a>>,
    timers: TimerWheel,
    /// Clients whose output goes with the next submission.
    sending: Vec<usize>,
    /// Clients that could continue, but have yielded to others.
    ready: VecDeque<usize>,
    coalescing: Coalescing,
    results: Vec<Completion>,
    buffers: Buffers,
    tracker: WorkTracker<'a>,
    has_signals: bool,
    /// Whether listeners had clients when the loop looked last.
    listeners_ready: bool,
    /// Whether clients whose output was sent had more at once.
    has_more_output: bool,
    /// The sum of `ClientEntry::counted_bytes`.
    waiting_bytes: usize,
}

impl<'a> EventLoop<'a> {
    pub(super) fn new(ctx: &'a WorkerContext<'a>) -> io::Result<Self> {
        let (poll, ring) = (Poll::new()?, Ring::new()?);
        let wake = ctx.lifecycle().wake_fd().as_raw_fd();
        poll.registry().register(&mut SourceFd(&wake), WAKE, Interest::READABLE)?;
        ring.watch(&poll, RING.0)?;
        Ok(Self {
            ctx,
            acceptor: EpollAcceptor::register(ctx, &poll, 0)?,
            poll,
            clients: Slab::new(),
            timers: TimerWheel::new(ctx.lifecycle().now()),
            sending: Vec::new(),
            ready: VecDeque::new(),
            coalescing: Coalescing::new(ring.wakes_once()),
            ring,
            results: Vec::new(),
            buffers: Buffers::default(),
            tracker: ctx.lifecycle().tracker().with_heartbeat(),
            has_signals: false,
            listeners_ready: false,
            has_more_output: false,
            waiting_bytes: 0,
        })
    }

    pub(super) fn run(&mut self) -> Result<(), WorkerError> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        let mut busy_turns = 0;
        self.handle_signals()?; // from now on this class polls for a stop
        loop {
            self.acceptor.update(self.clients.len(), &self.poll)?;
            if self.ctx.lifecycle().stop_request() == StopRequest::Immediate || self.is_done() {
                return Ok(());
            }
            self.ctx.lifecycle().notify();
            let awaited = if self.may_wait() { self.coalescing.results() } else { 0 };
            let results = self.turn(awaited)?;
            self.coalescing.note_turn(awaited, results, thread_cpu_time);
            if std::mem::take(&mut self.has_signals) {
                self.handle_signals()?;
                continue; // the worker may have drained
            }
            self.send_ready()?;
            self.expire_clients()?;
            busy_turns = if results > 0 { busy_turns + 1 } else { BUSY_TURNS };
            if busy_turns >= BUSY_TURNS {
                busy_turns = 0;
                self.wait(&mut events)?;
            }
        }
    }

    /// Returns whether a wait for results would delay nothing else.
    fn may_wait(&self) -> bool {
        let has_other = self.listeners_ready || self.has_more_output || self.has_signals;
        self.ready.is_empty() && !has_other
    }

    /// Sleeps, unless there is something to do, and accepts clients.
    fn wait(&mut self, events: &mut Events) -> Result<(), WorkerError> {
        let sleeps = self.ready.is_empty() && self.sending.is_empty() && self.ring.begin_sleep();
        let timeout = if sleeps { self.poll_timeout() } else { Some(Duration::ZERO) };
        let polled = self.poll.poll(events, timeout);
        if sleeps {
            self.coalescing.note_sleep();
            self.ring.end_sleep();
        }
        match polled {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error.into()),
            _ => (),
        }
        self.listeners_ready = false;
        for event in events.iter() {
            match event.token() {
                WAKE => self.has_signals = true,
                RING => (),
                Token(listener) => {
                    self.listeners_ready = true;
                    let clients = self.clients.len();
                    if let Some(client) = self.acceptor.accept(listener, clients, &self.poll)? {
                        self.add_client(client)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Returns the time until the next deadline or heartbeat.
    fn poll_timeout(&self) -> Option<Duration> {
        let deadline = [self.timers.next(), self.acceptor.deadline()].into_iter().flatten().min();
        let wait = deadline.map(|at| at.duration_since(self.ctx.lifecycle().now()));
        [wait, self.ctx.lifecycle().heartbeat_interval()].into_iter().flatten().min()
    }

    fn handle_signals(&mut self) -> io::Result<()> {
        let lifecycle = self.ctx.lifecycle();
        if lifecycle.poll_stop() == StopRequest::Graceful {
            self.acceptor.drain(&self.poll)?;
        }
        if lifecycle.drains_clients() && !self.undrained().is_empty() {
            self.receive_due()?;
        }
        // Another signal may have ended the drain mode by now.
        if lifecycle.drains_clients() {
            for index in self.undrained() {
                let Some(entry) = self.clients.get_mut(index) else { continue };
                entry.client.drain(&mut self.buffers, &mut self.tracker);
                self.advance(index)?;
            }
        }
        Ok(())
    }

    /// Receives and answers what has arrived until now. Reads signals meanwhile.
    fn receive_due(&mut self) -> io::Result<()> {
        let lifecycle = self.ctx.lifecycle();
        let end = lifecycle.now().saturating_add(RECEIVE_DUE_MAX);
        let mut spare_results = self.clients.len() + SPARE_RESULTS;
        loop {
            // A turn without results may have sent answers, whose clients are received from next.
            let results = self.turn(0)?;
            self.send_ready()?;
            spare_results = spare_results.saturating_sub(results.max(1));
            let is_quiet = results == 0 && self.ready.is_empty() && !self.ring.has_work();
            let is_late = spare_results == 0 && lifecycle.now() >= end;
            if is_quiet || is_late || lifecycle.poll_stop() == StopRequest::Immediate {
                return Ok(());
            }
        }
    }

    /// Returns whether the worker has drained: it has no client, and none can be lost.
    fn is_done(&self) -> bool {
        let stops = self.ctx.lifecycle().stop_request() == StopRequest::Graceful;
        stops && self.clients.is_empty() && !self.acceptor.may_receive_more()
    }

    fn add_client(&mut self, mut client: Client<'a>) -> io::Result<()> {
        if self.ctx.lifecycle().drains_clients() {
            // Answer what it has already sent.
            let mode = ReadMode::UntilWouldBlock;
            let mut status = client.drive(mode, &mut self.buffers, &mut self.tracker);
            if status != DriveStatus::Closed {
                client.drain(&mut self.buffers, &mut self.tracker);
                status = client.drive(mode, &mut self.buffers, &mut self.tracker);
            }
            if status == DriveStatus::Closed {
                return Ok(());
            }
        }
        let index = self.clients.insert(ClientEntry::new(client.into_completion()));
        self.advance(index)
    }

    /// Submits what is queued, waits a moment for so many results, and handles those that are there.
    /// Returns their number.
    fn turn(&mut self, awaited: usize) -> io::Result<usize> {
        let all_submitted = self.ring.turn_with_results(awaited, WAIT_MAX)?;
        let has_sent = all_submitted && !self.sending.is_empty();
        self.has_more_output = false;
        if has_sent {
            self.complete_sends()?;
        }
        let mut results = std::mem::take(&mut self.results);
        self.ring.take_completions(&mut results);
        let count = results.len();
        for result in results.drain(..) {
            // Many fast clients together may take longer than `timeout`.
            self.ctx.lifecycle().notify();
            self.handle(result)?;
        }
        self.results = results;
        Ok(count)
    }

    /// Reports to the clients what was sent.
    fn complete_sends(&mut self) -> io::Result<()> {
        for failed in self.ring.failed_sends() {
            let entry = &mut self.clients[failed.token];
            match failed.sent {
                Some(count) => {
                    entry.client.complete_send(count, &mut self.buffers, &mut self.tracker)
                }
                None => entry.client.abort(&mut self.buffers, &mut self.tracker),
            }
            entry.sending = 0;
        }
        let mut sending = std::mem::take(&mut self.sending);
        for index in sending.drain(..) {
            // It may have been closed because of its input.
            let Some(entry) = self.clients.get_mut(index) else { continue };
            let count = std::mem::take(&mut entry.sending);
            if count > 0 {
                entry.client.complete_send(count, &mut self.buffers, &mut self.tracker);
                self.advance(index)?;
            } else {
                self.send_output(index)?; // the socket's buffer is full, or the connection is broken
            }
        }
        // New output is in the vector that was swapped in.
        std::mem::swap(&mut sending, &mut self.sending);
        self.has_more_output = !sending.is_empty();
        self.sending.append(&mut sending);
        Ok(())
    }

    fn handle(&mut self, result: Completion) -> io::Result<()> {
        let index = match result {
            Completion::Received { token, received, is_last } => {
                let Some(entry) = self.clients.get_mut(token) else {
                    if let Received::Bytes(input) = received {
                        self.ring.release(input);
                    }
                    return Ok(());
                };
                if is_last {
                    entry.receive = Receive::None;
                }
                self.coalescing.note_client(&mut entry.seen);
                let (buffers, tracker) = (&mut self.buffers, &mut self.tracker);
                match received {
                    Received::Bytes(input) => {
                        entry.client.complete_recv(self.ring.bytes(&input), buffers, tracker);
                        self.ring.release(input);
                        if entry.client.waiting_bytes() > 0 {
                            entry.stop_receiving(&mut self.ring, token)?;
                        }
                    }
                    Received::End => entry.client.complete_recv(&[], buffers, tracker),
                    Received::Broken => entry.client.abort(buffers, tracker),
                    Received::Nothing => (),
                }
                token
            }
            Completion::Writable { token } => {
                let Some(entry) = self.clients.get_mut(token) else { return Ok(()) };
                (entry.waits_for_room, entry.stops_waiting) = (false, false);
                return self.send_output(token);
            }
            Completion::NotCancelled { token } => {
                let Some(entry) = self.clients.get_mut(token) else { return Ok(()) };
                if entry.receive == Receive::Cancelling {
                    self.ring.cancel_receive(token)?;
                }
                if entry.stops_waiting {
                    self.ring.cancel_poll(token)?;
                }
                return Ok(());
            }
        };
        self.advance(index)
    }

    /// Starts what a client waits for.
    fn advance(&mut self, index: usize) -> io::Result<()> {
        let Some(entry) = self.clients.get(index) else { return Ok(()) };
        if entry.client.waiting_bytes() != entry.counted_bytes {
            self.count_waiting(index)?;
        }
        let entry = &mut self.clients[index];
        match entry.client.status() {
            DriveStatus::Closed => return self.close(index),
            _ if entry.is_sending() => (),
            DriveStatus::WantWrite => {
                let output = entry.client.output();
                let length = output.len();
                if !self.ring.send(entry.client.as_fd(), output, index)? {
                    return self.send_output(index);
                }
                entry.sending = length;
                self.sending.push(index);
                return Ok(()); // the next submission ends it, and its deadline is set then
            }
            DriveStatus::WantRead | DriveStatus::Yield => {
                entry.start_receiving(&mut self.ring, index)?;
            }
        }
        self.schedule(index);
        Ok(())
    }

    /// Sends output by system calls: more than the ring copies, or what is left when the socket's buffer
    /// was full.
    fn send_output(&mut self, index: usize) -> io::Result<()> {
        let Some(entry) = self.clients.get_mut(index) else { return Ok(()) };
        let status = entry.client.send_output(&mut self.buffers, &mut self.tracker);
        match status {
            DriveStatus::WantWrite => {
                if !std::mem::replace(&mut entry.waits_for_room, true) {
                    self.ring.poll_writable(entry.client.as_fd(), index)?;
                }
                // A client that does not read its output can send no more than this.
                entry.stop_receiving(&mut self.ring, index)?;
            }
            DriveStatus::Yield => {
                if !std::mem::replace(&mut entry.is_ready, true) {
                    self.ready.push_back(index);
                }
            }
            DriveStatus::WantRead | DriveStatus::Closed => (),
        }
        self.advance(index)
    }

    /// Counts the bytes that wait for a client's output. While there are too many in all, closes the
    /// client with the most.
    #[cold]
    fn count_waiting(&mut self, index: usize) -> io::Result<()> {
        let entry = &mut self.clients[index];
        let bytes = entry.client.waiting_bytes();
        let before = std::mem::replace(&mut entry.counted_bytes, bytes);
        self.waiting_bytes = self.waiting_bytes + bytes - before;
        while self.waiting_bytes > WAITING_BYTES_MAX {
            let most = self.clients.iter_mut().max_by_key(|(_, entry)| entry.counted_bytes);
            let Some((greediest, entry)) = most else { break };
            self.waiting_bytes -= std::mem::take(&mut entry.counted_bytes);
            entry.client.abort(&mut self.buffers, &mut self.tracker);
            if greediest != index {
                self.advance(greediest)?;
            }
        }
        Ok(())
    }

    fn send_ready(&mut self) -> io::Result<()> {
        for _ in 0..self.ready.len() {
            if let Some(index) = self.ready.pop_front() {
                if let Some(entry) = self.clients.get_mut(index) {
                    entry.is_ready = false;
                }
                self.ctx.lifecycle().notify();
                self.send_output(index)?;
            }
        }
        Ok(())
    }

    fn schedule(&mut self, index: usize) {
        if let Some(deadline) = self.clients[index].client.deadline() {
            self.timers.set(index, deadline);
        }
    }

    fn expire_clients(&mut self) -> io::Result<()> {
        if self.timers.next().is_none() {
            return Ok(());
        }
        let now = self.ctx.lifecycle().now();
        while let Some(index) = self.timers.pop(now) {
            let Some(entry) = self.clients.get_mut(index) else { continue };
            if entry.sending > 0 || self.ring.has_completion_of(index) {
                // The output is sent first, and what was received in time is handled first. Not before
                // `now`, or it would be popped again in this turn.
                if let Some(deadline) = entry.client.deadline() {
                    self.timers.set(index, deadline.max(now));
                }
            } else {
                entry.client.expire(now, &mut self.buffers, &mut self.tracker);
                self.advance(index)?;
            }
        }
        Ok(())
    }

    /// Closes a client's socket once nothing is in progress, unless it lingers.
    fn close(&mut self, index: usize) -> io::Result<()> {
        let entry = &mut self.clients[index];
        entry.stop_receiving(&mut self.ring, index)?;
        if entry.waits_for_room && !std::mem::replace(&mut entry.stops_waiting, true) {
            self.ring.cancel_poll(index)?;
        }
        if entry.receive != Receive::None || entry.is_sending() {
            return Ok(()); // its result follows
        }
        if !entry.client.try_close(&mut self.buffers, &mut self.tracker) {
            return self.advance(index);
        }
        let entry = self.clients.remove(index);
        self.waiting_bytes -= entry.counted_bytes;
        self.timers.clear(index);
        self.ring.close(OwnedFd::from(entry.client))
    }

    /// Returns the clients that have not been told that the worker drains.
    fn undrained(&self) -> Vec<usize> {
        let undrained = self.clients.iter().filter(|(_, entry)| !entry.client.is_drained());
        undrained.map(|(index, _)| index).collect()
    }
}
