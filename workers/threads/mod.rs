//! `threads`: a main thread that accepts and watches, and a pool that serves; or a pool that runs
//! jobs, a job a thread.
//!
//! A client is in one of three places: parked with the main thread, which watches its socket and
//! its deadline; in the queue; or out with a pool thread, which goes as far as it can without
//! waiting and parks it again. So an idle or slow client never holds a thread.

use std::io;
use std::mem;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use ::mio::event::Event;
use ::mio::unix::SourceFd;
use ::mio::{Events, Interest, Poll, Token, Waker};
use crossbeam_channel::{Receiver, SendTimeoutError, Sender, bounded};
use ostler::settings::Settings;
use ostler::stamp::Stamp;
use ostler::worker::{
    Buffers, Client, Deadlines, Desk, Gate, Look, Stop, Turn, WorkerClass, WorkerContext,
    WorkerError,
};
use slab::Slab;

use self::office::{ClosingTime, Office, lock};

mod jobs;
mod office;

/// A pool of threads a worker, for handlers that block. Slow and idle clients hold no thread. Of
/// an app that is a job, each thread runs one.
pub struct ThreadsClass;

/// The signals. Clients have the tokens from 0 on, listeners those from `FIRST_LISTENER` on.
const WAKE: Token = Token(usize::MAX);
/// A pool thread has seen a client off.
const POOL: Token = Token(usize::MAX - 1);
const FIRST_LISTENER: usize = usize::MAX / 2;
/// Events that are looked at in one turn of the loop.
const EVENTS_MAX: usize = 512;
/// Clients that are accepted before the others have their turn.
const ACCEPTS_MAX: usize = 1;
/// Clients that may wait for a thread. While there are more, nobody is let in.
const QUEUE_MAX: usize = 1024;
/// How long tasks may wait while no thread takes one, before sleeping threads are woken for them.
const STALL: Duration = Duration::from_millis(1);
/// How often the main thread looks up while the queue is full.
const QUEUE_PATIENCE: Duration = Duration::from_millis(100);

impl WorkerClass for ThreadsClass {
    fn name(&self) -> &'static str {
        "threads"
    }

    fn seats(&self, settings: &Settings) -> usize {
        settings.threads
    }

    fn runs_jobs(&self) -> bool {
        true
    }

    fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError> {
        let jobs = ctx.take_jobs();
        if !jobs.is_empty() {
            return jobs::run(ctx, jobs);
        }
        let poll = Poll::new()?;
        let wake = ctx.life().wake_fd().as_raw_fd();
        poll.registry().register(&mut SourceFd(&wake), WAKE, Interest::READABLE)?;
        let waker = Waker::new(poll.registry(), POOL)?;
        let office = Office::new(ctx.settings().threads, waker);
        let (queue, tasks) = bounded(QUEUE_MAX);
        thread::scope(|scope| {
            // In this order: the queue goes first, then whoever sleeps is woken to see that.
            let _closing_time = ClosingTime(&office);
            let queue = queue;
            for seat in 0..ctx.settings().threads {
                let (tasks, office) = (tasks.clone(), &office);
                thread::Builder::new()
                    .name(format!("ostler-{seat}"))
                    .spawn_scoped(scope, move || serve(ctx, seat, &tasks, office))?;
            }
            let gate = Gate::open(ctx, &poll, FIRST_LISTENER)?;
            ctx.life().ready();
            let reception = Reception {
                ctx,
                poll,
                gate,
                guests: Slab::new(),
                deadlines: Deadlines::new(ctx.life().now()),
                queue,
                office: &office,
                stalled: None,
                draining: false,
            };
            reception.run()
        })
    }
}

/// A client, wherever it is.
struct Guest<'a> {
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

/// A client that waits for a thread.
struct Task<'a> {
    index: usize,
    guest: Arc<Guest<'a>>,
}

/// The main thread.
struct Reception<'a> {
    ctx: &'a WorkerContext<'a>,
    poll: Poll,
    gate: Gate<'a>,
    guests: Slab<Arc<Guest<'a>>>,
    deadlines: Deadlines,
    queue: Sender<Task<'a>>,
    office: &'a Office,
    /// Since when no thread has taken a task although there are some, and how many had been taken.
    stalled: Option<(Stamp, usize)>,
    draining: bool,
}

impl<'a> Reception<'a> {
    fn run(mut self) -> Result<(), WorkerError> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        loop {
            self.ctx.life().notify();
            self.sleep(&mut events)?;
            for event in &events {
                match event.token() {
                    WAKE => self.heed_signals()?,
                    POOL => (),
                    Token(listener) if listener >= FIRST_LISTENER => {
                        self.accept(listener - FIRST_LISTENER)?;
                    }
                    Token(index) => self.stir(index, event),
                }
            }
            if self.ctx.life().stopping() == Stop::Graceful && !self.draining {
                self.heed_signals()?; // the signal came while the queue was full
            }
            self.expire();
            self.mind_the_queue();
            self.see_off();
            self.gate.reconsider(self.guests.len(), &self.poll)?;
            if self.ctx.life().stopping() == Stop::Now {
                self.ctx.life().leave(); // without waiting for threads that may be stuck
            }
            if self.is_done()? {
                return Ok(());
            }
        }
    }

    fn sleep(&mut self, events: &mut Events) -> io::Result<()> {
        let deadline = [self.deadlines.next(), self.gate.deadline()].into_iter().flatten().min();
        let wait = deadline.map(|at| at.since(self.ctx.life().now()));
        let stalls = !self.queue.is_empty() && !lock(&self.office.idle).is_empty();
        let stall = stalls.then_some(STALL);
        let timeout = [wait, stall, self.ctx.life().pulse()].into_iter().flatten().min();
        let awaits = self.draining || self.gate.holds_back();
        self.office.awaits_departures.store(awaits, Ordering::Release);
        if awaits && !lock(&self.office.departed).is_empty() {
            events.clear(); // those of the last turn
            return Ok(()); // somebody went before the office knew that it matters
        }
        match self.poll.poll(events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    fn heed_signals(&mut self) -> io::Result<()> {
        if self.ctx.life().stop() == Stop::Graceful && !self.draining {
            self.draining = true;
            self.gate.drain(&self.poll)?;
            let everybody: Vec<usize> = self.guests.iter().map(|(index, _)| index).collect();
            for index in everybody {
                self.deadlines.set(index, self.next_look()); // patience is short from now on
                self.dispatch(index);
            }
        }
        Ok(())
    }

    fn is_done(&mut self) -> io::Result<bool> {
        if !self.draining || !self.guests.is_empty() {
            return Ok(false);
        }
        // Asked first: who comes between a look at the queues and the end of the time in which
        // somebody may come must be looked for once more.
        let expects = self.gate.expects();
        for listener in 0..self.gate.listeners() {
            self.accept(listener)?;
        }
        Ok(self.guests.is_empty() && !expects && !self.gate.expects())
    }

    fn accept(&mut self, listener: usize) -> io::Result<()> {
        for _ in 0..ACCEPTS_MAX {
            match self.gate.admit(listener, self.guests.len(), &self.poll)? {
                Some(client) => self.welcome(client),
                None => break,
            }
        }
        Ok(())
    }

    fn welcome(&mut self, client: Client<'a>) {
        let fd = client.as_raw_fd();
        let whereabouts = Whereabouts::Parked(client, Turn::Read);
        let place = Place { whereabouts, stirred: false, ended: false };
        let index = self.guests.insert(Arc::new(Guest { place: Mutex::new(place) }));
        // Both at once and for good: an event that is of no use costs less than a system call.
        let both = Interest::READABLE | Interest::WRITABLE;
        if self.poll.registry().register(&mut SourceFd(&fd), Token(index), both).is_err() {
            self.guests.remove(index); // no memory to watch it: this client is given up
            return;
        }
        self.deadlines.set(index, self.next_look());
        if self.draining {
            self.dispatch(index);
        }
    }

    /// Something happened to a client's socket.
    fn stir(&mut self, index: usize, event: &Event) {
        let Some(guest) = self.guests.get(index) else { return };
        let mut place = lock(&guest.place);
        place.ended |= event.is_read_closed() || event.is_error();
        let of_use = match &place.whereabouts {
            Whereabouts::Parked(_, Turn::Write) => event.is_writable() || place.ended,
            Whereabouts::Parked(..) => event.is_readable() || place.ended,
            Whereabouts::Queued(_) | Whereabouts::Out | Whereabouts::Gone => {
                place.stirred = true;
                false
            }
        };
        drop(place);
        if of_use {
            self.dispatch(index);
        }
    }

    /// Puts a parked client into the queue. While the queue is full nobody is let in, no event is
    /// looked at, and the main thread goes on beating: whether the pool hangs is seen by the
    /// master from the age of its work.
    fn dispatch(&mut self, index: usize) {
        let Some(guest) = self.guests.get(index) else { return };
        let mut place = lock(&guest.place);
        match mem::replace(&mut place.whereabouts, Whereabouts::Gone) {
            Whereabouts::Parked(client, _) => place.whereabouts = Whereabouts::Queued(client),
            elsewhere => {
                place.whereabouts = elsewhere;
                place.stirred = true;
                return;
            }
        }
        drop(place);
        let mut task = Task { index, guest: Arc::clone(guest) };
        loop {
            match self.queue.send_timeout(task, QUEUE_PATIENCE) {
                Ok(()) => return self.office.call_if_needed(self.queue.len()),
                Err(SendTimeoutError::Timeout(unsent)) => task = unsent,
                Err(SendTimeoutError::Disconnected(_)) => return, // the pool has gone: see `run`
            }
            self.ctx.life().notify();
            if self.ctx.life().stop() == Stop::Now {
                self.ctx.life().leave();
            }
        }
    }

    /// Wakes sleeping threads if those that are awake take no tasks: they may be blocked.
    fn mind_the_queue(&mut self) {
        if self.queue.is_empty() {
            self.stalled = None;
            return;
        }
        let (now, taken) = (self.ctx.life().now(), self.office.taken.load(Ordering::Relaxed));
        match self.stalled {
            Some((since, earlier)) if earlier == taken => {
                if now.since(since) >= STALL {
                    self.office.call(self.queue.len());
                }
            }
            Some(_) | None => self.stalled = Some((now, taken)),
        }
    }

    /// Looks after the clients whose deadline may have come. A client is looked at as often as its
    /// shortest patience asks for, since its deadline is not known while a thread has it.
    fn expire(&mut self) {
        let now = self.ctx.life().now();
        while let Some(index) = self.deadlines.pop(now) {
            let Some(guest) = self.guests.get(index) else { continue };
            let next_look = self.next_look();
            let deadline = match &lock(&guest.place).whereabouts {
                Whereabouts::Parked(client, _) => client.deadline(),
                Whereabouts::Queued(_) | Whereabouts::Out => None,
                Whereabouts::Gone => continue,
            };
            if deadline.is_some_and(|deadline| deadline <= now) {
                self.dispatch(index); // the thread will find that it has expired
            }
            let soon = deadline.filter(|deadline| now < *deadline);
            self.deadlines.set(index, soon.map_or(next_look, |soon| soon.min(next_look)));
        }
    }

    /// No deadline that a client gets from now on is earlier than this.
    fn next_look(&self) -> Stamp {
        let settings = self.ctx.settings();
        let limits = self.ctx.place().limits;
        let shortest = [
            limits.keepalive,
            limits.header_timeout,
            limits.body_timeout,
            settings.write_timeout,
            if self.draining { limits.linger } else { Duration::MAX },
        ];
        let shortest = shortest.into_iter().filter(|limit| !limit.is_zero()).min();
        let shortest = shortest.unwrap_or(Duration::MAX).min(Duration::from_secs(60));
        self.ctx.life().now().after(shortest)
    }

    /// Forgets the clients that are gone.
    fn see_off(&mut self) {
        for index in mem::take(&mut *lock(&self.office.departed)) {
            self.guests.remove(index);
            self.deadlines.clear(index);
        }
    }
}

/// A pool thread: serves until the queue is no more.
fn serve<'a>(ctx: &'a WorkerContext<'a>, seat: usize, tasks: &Receiver<Task<'a>>, office: &Office) {
    let (mut buffers, mut desk) = (Buffers::default(), ctx.life().desk(seat));
    while let Some(Task { index, guest }) = office.next_task(tasks) {
        let client = {
            let mut place = lock(&guest.place);
            match mem::replace(&mut place.whereabouts, Whereabouts::Out) {
                Whereabouts::Queued(client) => client,
                elsewhere => {
                    place.whereabouts = elsewhere;
                    continue;
                }
            }
        };
        if attend(ctx, client, &guest, &mut buffers, &mut desk) == Turn::Gone {
            office.sign_off(index);
        }
    }
}

/// Takes a client as far as it can go, and parks it. Returns where that was.
fn attend<'a>(
    ctx: &WorkerContext<'a>,
    mut client: Client<'a>,
    guest: &Guest<'a>,
    buffers: &mut Buffers,
    desk: &mut Desk<'_>,
) -> Turn {
    client.expire(ctx.life().now(), buffers, desk);
    loop {
        if ctx.life().stopping() == Stop::Graceful {
            client.drain(buffers, desk);
        }
        let ended = lock(&guest.place).ended;
        let look = if ended { Look::ToTheEnd } else { Look::ToAShortRead };
        let turn = client.turn(look, buffers, desk);
        if turn == Turn::Again {
            continue;
        }
        let mut place = lock(&guest.place);
        let stirred = mem::take(&mut place.stirred);
        if turn == Turn::Gone {
            // Before the number is given back, so that no event can mean another client.
            drop(client);
            place.whereabouts = Whereabouts::Gone;
            return turn;
        }
        let told_meanwhile = ctx.life().stopping() == Stop::Graceful && !client.is_drained();
        if !stirred && !told_meanwhile {
            place.whereabouts = Whereabouts::Parked(client, turn);
            return turn;
        }
    }
}
