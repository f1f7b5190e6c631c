//! `threads`: a main thread that watches over a pool that serves; or a pool that runs jobs, a job a
//! thread.
//!
//! A client is in one of three places: parked, where the pool thread that has nothing else to do
//! looks out for it, and the main thread keeps its deadline; in the queue; or out with a pool thread,
//! which goes as far as it can without waiting and parks it again. So an idle or slow client never
//! holds a thread, and a quick request wakes one thread at most.

use std::io;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use ::mio::unix::SourceFd;
use ::mio::{Events, Interest, Poll, Token, Waker};
use crossbeam_channel::bounded;
use ostler::settings::Settings;
use ostler::time::MonotonicTime;
use ostler::worker::{
    Buffers, Client, TimerWheel, Desk, ReadMode, StopRequest, DriveStatus, WorkerClass, WorkerContext, WorkerError,
};

use self::guest::Parking;
use self::office::{ClosingTime, News, Office, Task};

mod guest;
mod jobs;
mod lookout;
mod office;

/// A pool of threads a worker, for handlers that block. Slow and idle clients hold no thread. Of
/// an app that is a job, each thread runs one.
pub struct ThreadsClass;

/// The signals.
const WAKE: Token = Token(0);
/// The pool has something to say.
const BELL: Token = Token(1);
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
        let wake = ctx.lifecycle().wake_fd().as_raw_fd();
        poll.registry().register(&mut SourceFd(&wake), WAKE, Interest::READABLE)?;
        let office = Office::open(ctx, Waker::new(poll.registry(), BELL)?)?;
        thread::scope(|scope| {
            // Nobody begins before all are there. Dropped after the office has closed, if it must.
            let (start, started) = bounded::<()>(0);
            let _closing_time = ClosingTime(&office);
            for seat in 0..ctx.settings().threads {
                let (office, started) = (&office, started.clone());
                let work = move || {
                    let _ = started.recv();
                    serve(ctx, seat, office);
                };
                thread::Builder::new().name(format!("ostler-{seat}")).spawn_scoped(scope, work)?;
            }
            ctx.lifecycle().ready();
            drop(start);
            let deadlines = TimerWheel::new(ctx.lifecycle().now());
            Steward { ctx, poll, office: &office, deadlines, progress: None, draining: false }.run()
        })
    }
}

/// The main thread: beats, heeds the signals, keeps the deadlines, and minds the pool.
struct Steward<'o, 'a> {
    ctx: &'a WorkerContext<'a>,
    poll: Poll,
    office: &'o Office<'a>,
    deadlines: TimerWheel,
    /// How the pool got on when it was looked at last.
    progress: Option<Progress>,
    draining: bool,
}

struct Progress {
    at: MonotonicTime,
    /// Tasks that had been taken.
    taken: usize,
    /// The same and those that waited.
    sent: usize,
    /// How often somebody had looked out; `None` if somebody did.
    looks: Option<usize>,
}

impl Steward<'_, '_> {
    fn run(mut self) -> Result<(), WorkerError> {
        let mut events = Events::with_capacity(2);
        loop {
            self.ctx.lifecycle().notify();
            self.sleep(&mut events)?;
            if events.iter().any(|event| event.token() == WAKE) {
                self.ctx.lifecycle().poll_stop();
                self.office.call_the_lookout(); // other workers may have come or gone, too
            }
            if self.ctx.lifecycle().stop_request() == StopRequest::Graceful && !self.draining {
                self.drain();
            }
            self.hear_the_news();
            self.expire();
            self.mind_the_pool();
            if self.ctx.lifecycle().stop_request() == StopRequest::Immediate {
                self.ctx.lifecycle().exit_now(); // without waiting for threads that may be stuck
            }
            if self.office.has_closed()? {
                return Ok(());
            }
        }
    }

    fn sleep(&mut self, events: &mut Events) -> io::Result<()> {
        let wait = self.deadlines.next().map(|at| at.duration_since(self.ctx.lifecycle().now()));
        let stall = self.office.is_vigilant().then_some(STALL);
        let timeout = [wait, stall, self.ctx.lifecycle().heartbeat_interval()].into_iter().flatten().min();
        match self.poll.poll(events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    fn drain(&mut self) {
        self.draining = true; // patience is short from now on
        self.hear_the_news();
        for index in self.office.drain() {
            self.plan_look(index);
        }
    }

    fn hear_the_news(&mut self) {
        for news in self.office.news() {
            match news {
                News::Came(index) | News::Impatient(index) => self.plan_look(index),
                News::Went(index) => self.deadlines.clear(index),
            }
        }
    }

    /// Has sleeping threads woken if those that are awake do not get on with their tasks.
    fn mind_the_pool(&mut self) {
        if !self.office.is_vigilant() {
            self.progress = None;
            return;
        }
        let (now, taken) = (self.ctx.lifecycle().now(), self.office.taken());
        let (waiting, looks) = (self.office.waiting(), self.office.looks());
        let present = Progress { at: now, taken, sent: taken + waiting, looks };
        let Some(earlier) = &self.progress else {
            self.progress = Some(present);
            return;
        };
        if now.duration_since(earlier.at) < STALL {
            return;
        }
        if taken == earlier.taken {
            self.office.relieve(waiting.max(1));
        } else if taken < earlier.sent || looks.is_some() && looks == earlier.looks {
            self.office.relieve(1); // who waited then waits still, or nobody has looked out since
        }
        self.progress = Some(present);
    }

    /// Looks after the clients whose deadline may have come.
    fn expire(&mut self) {
        let now = self.ctx.lifecycle().now();
        while let Some(index) = self.deadlines.pop(now) {
            let Some(guest) = self.office.guest(index) else { continue };
            if guest.is_due(now) {
                self.office.dispatch(index); // the thread will find that it has expired
            }
            self.plan_look(index);
        }
    }

    /// Plans the next look at a client: at its deadline, or, since that is not known while a thread
    /// has it, when the shortest patience that is usual ends.
    fn plan_look(&mut self, index: usize) {
        if let Some(guest) = self.office.guest(index) {
            self.deadlines.set(index, guest.plan_look(self.next_look()));
        }
    }

    /// When a client is looked at that says nothing of a deadline.
    fn next_look(&self) -> MonotonicTime {
        let settings = self.ctx.settings();
        let limits = self.ctx.worker().limits;
        let shortest = [
            limits.keepalive,
            limits.header_timeout,
            limits.body_timeout,
            settings.write_timeout,
            if self.draining { limits.drain_idle_timeout } else { Duration::MAX },
        ];
        let shortest = shortest.into_iter().filter(|limit| !limit.is_zero()).min();
        let shortest = shortest.unwrap_or(Duration::MAX).min(Duration::from_secs(60));
        self.ctx.lifecycle().now().saturating_add(shortest)
    }
}

/// A pool thread: serves until it is sent home.
fn serve<'a>(ctx: &'a WorkerContext<'a>, seat: usize, office: &Office<'a>) {
    let (mut buffers, mut desk) = (Buffers::default(), ctx.lifecycle().desk(seat));
    while let Some(task) = office.next_task() {
        if let Some(client) = task.guest.take() {
            attend(ctx, client, task, office, &mut buffers, &mut desk);
        }
    }
}

/// Takes a client as far as it can go, and parks it; or back into the queue, if it has had its share.
fn attend<'a>(
    ctx: &WorkerContext<'a>,
    mut client: Client<'a>,
    mut task: Task<'a>,
    office: &Office<'a>,
    buffers: &mut Buffers,
    desk: &mut Desk<'_>,
) {
    client.expire(ctx.lifecycle().now(), buffers, desk);
    loop {
        let look = if task.guest.has_ended() { ReadMode::UntilWouldBlock } else { ReadMode::UntilShortRead };
        let turn = client.drive(look, buffers, desk);
        let leaves = ctx.lifecycle().stop_request() == StopRequest::Graceful;
        if leaves && !client.is_drained() && turn != DriveStatus::Closed {
            client.drain(buffers, desk); // only now: what it had sent already is answered
            continue;
        }
        match turn {
            DriveStatus::Yield => {
                task.guest.requeue(client);
                return office.enqueue(task);
            }
            DriveStatus::WantRead | DriveStatus::WantWrite => {
                if task.is_newcomer && office.watch(&client, task.index).is_err() {
                    break;
                }
                task.is_newcomer = false;
                match task.guest.park(client, turn) {
                    Parking::Patient => return,
                    Parking::Impatient => return office.hurry(task.index),
                    Parking::Stirred(stirred) => client = stirred,
                }
            }
            DriveStatus::Closed => break,
        }
    }
    task.guest.leave(client);
    office.sign_off(task.index);
}
