//! `threads`: a main thread that accepts and watches, and a pool that serves; or a pool that runs
//! jobs, a job a thread.
//!
//! A client is in one of three places: parked, which is watched by the pool thread that has nothing
//! else to do, and whose deadline the main thread keeps; in the queue; or out with a pool thread,
//! which goes as far as it can without waiting and parks it again. So an idle or slow client never
//! holds a thread, and a quick request wakes one thread at most.

use std::io;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use ::mio::unix::SourceFd;
use ::mio::{Events, Interest, Poll, Token, Waker};
use ostler::settings::Settings;
use ostler::stamp::Stamp;
use ostler::worker::{
    Buffers, Client, Deadlines, Desk, Gate, Look, Stop, Turn, WorkerClass, WorkerContext,
    WorkerError,
};

use self::guest::Guest;
use self::office::{ClosingTime, Office, Task};

mod guest;
mod jobs;
mod office;

/// A pool of threads a worker, for handlers that block. Slow and idle clients hold no thread. Of
/// an app that is a job, each thread runs one.
pub struct ThreadsClass;

/// The signals. Listeners have the tokens from 0 on.
const WAKE: Token = Token(usize::MAX);
/// The pool has something to say.
const POOL: Token = Token(usize::MAX - 1);
/// Events that are looked at in one turn of the loop.
const EVENTS_MAX: usize = 64;
/// How long nobody may take a task before sleeping threads are woken: who is awake may be blocked.
const STALL: Duration = Duration::from_millis(1);

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
        let bell = Waker::new(poll.registry(), POOL)?;
        let office = Office::new(ctx.settings().threads, bell)?;
        thread::scope(|scope| {
            let _closing_time = ClosingTime(&office);
            for seat in 0..ctx.settings().threads {
                let office = &office;
                thread::Builder::new()
                    .name(format!("ostler-{seat}"))
                    .spawn_scoped(scope, move || serve(ctx, seat, office))?;
            }
            let gate = Gate::open(ctx, &poll, 0)?;
            ctx.life().ready();
            let reception = Reception {
                ctx,
                poll,
                gate,
                present: 0,
                deadlines: Deadlines::new(ctx.life().now()),
                office: &office,
                stalled: None,
                draining: false,
            };
            reception.run()
        })
    }
}

/// The main thread.
struct Reception<'o, 'a> {
    ctx: &'a WorkerContext<'a>,
    poll: Poll,
    gate: Gate<'a>,
    office: &'o Office<'a>,
    /// How many clients there are, as far as is known.
    present: usize,
    deadlines: Deadlines,
    /// Since when nobody has taken a task, and how many had been taken.
    stalled: Option<(Stamp, usize)>,
    draining: bool,
}

impl<'a> Reception<'_, 'a> {
    fn run(mut self) -> Result<(), WorkerError> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        loop {
            self.ctx.life().notify();
            self.sleep(&mut events)?;
            for event in &events {
                match event.token() {
                    WAKE => self.heed_signals()?,
                    POOL => (),
                    Token(listener) => self.accept(listener)?,
                }
            }
            if let Some(error) = self.office.trouble() {
                return Err(error.into());
            }
            self.expire();
            self.mind_the_pool();
            self.see_off();
            self.gate.reconsider(self.present, &self.poll)?;
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
        let stall = self.office.is_vigilant().then_some(STALL);
        let timeout = [wait, stall, self.ctx.life().pulse()].into_iter().flatten().min();
        if self.office.await_departures(self.draining || self.gate.holds_back()) {
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
            for index in self.office.indices() {
                self.deadlines.set(index, self.next_look()); // patience is short from now on
                self.office.dispatch(index);
            }
        }
        Ok(())
    }

    fn is_done(&mut self) -> io::Result<bool> {
        if !self.draining || self.present > 0 {
            return Ok(false);
        }
        // Asked first: who comes between a look at the queues and the end of the time in which
        // somebody may come must be looked for once more.
        let expects = self.gate.expects();
        for listener in 0..self.gate.listeners() {
            self.accept(listener)?;
        }
        Ok(self.present == 0 && !expects && !self.gate.expects())
    }

    /// Lets in one client, before the others have their turn.
    fn accept(&mut self, listener: usize) -> io::Result<()> {
        if let Some(client) = self.gate.admit(listener, self.present, &self.poll)? {
            let fd = client.as_raw_fd();
            // If there is no memory to watch it, this client is given up.
            if let Ok(index) = self.office.let_in(client, fd) {
                self.present += 1;
                self.deadlines.set(index, self.next_look());
                if self.draining {
                    self.office.dispatch(index);
                }
            }
        }
        Ok(())
    }

    /// Has sleeping threads woken if those that are awake take no tasks.
    fn mind_the_pool(&mut self) {
        if !self.office.is_vigilant() {
            self.stalled = None;
            return;
        }
        let (now, taken) = (self.ctx.life().now(), self.office.taken());
        match self.stalled {
            Some((since, earlier)) if earlier == taken => {
                if now.since(since) >= STALL {
                    self.office.relieve();
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
            let Some(guest) = self.office.guest(index) else { continue };
            let next_look = self.next_look();
            let deadline = guest.deadline();
            if deadline.is_some_and(|deadline| deadline <= now) {
                self.office.dispatch(index); // the thread will find that it has expired
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
        for index in self.office.see_off() {
            self.present -= 1;
            self.deadlines.clear(index);
        }
    }
}

/// A pool thread: serves until it is sent home.
fn serve<'a>(ctx: &'a WorkerContext<'a>, seat: usize, office: &Office<'a>) {
    let (mut buffers, mut desk) = (Buffers::default(), ctx.life().desk(seat));
    while let Some(Task { index, guest }) = office.next_task() {
        if let Some(client) = guest.take()
            && attend(ctx, client, &guest, &mut buffers, &mut desk) == Turn::Gone
        {
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
        let look = if guest.has_ended() { Look::ToTheEnd } else { Look::ToAShortRead };
        match client.turn(look, buffers, desk) {
            Turn::Again => (),
            Turn::Gone => {
                guest.leave(client);
                return Turn::Gone;
            }
            turn @ (Turn::Read | Turn::Write) => match guest.park(client, turn) {
                Some(stirred) => client = stirred,
                None => return turn,
            },
        }
    }
}
