//! A class made of a plain function that accepts and answers, and knows nothing of a worker's life.
//!
//! The worker's first thread keeps the life: it beats, hears signals, and ends the worker. The
//! function runs in a second one and asks for clients; from how it asks all is known that the
//! runtime must know: whether it is ready, idle, busy and since when, and when it has drained.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use super::acceptor::{Acceptor, AcceptedStream};
use super::context::WorkerContext;
use super::lifecycle::Stop;
use super::tracker::Work;
use super::{WorkerClass, WorkerError};
use crate::os::{file, poll};
use crate::settings::Settings;

/// The most clients that the function may hold at once.
const VISITORS_MAX: usize = 64;

/// A worker class made of a function that accepts and answers.
///
/// Each client is a unit of work, from [`Visitors::next`] until its [`Visitor`] is dropped: one that
/// takes longer than `timeout` means that the worker hangs, in this. When the worker is to leave,
/// nobody comes any more, and it leaves once the function has returned. What is read and written
/// has the settings' `header_timeout` and `write_timeout`, unless the function chooses others. The
/// function holds at most 64 clients at once; others wait in the kernel.
///
/// ```no_run
/// use std::io::{Read, Write};
/// use std::process::ExitCode;
///
/// use ostler::worker::Plain;
///
/// fn main() -> ExitCode {
///     let class = Plain::new("plain", |visitors| {
///         for mut visitor in visitors {
///             let _ = visitor.write_all(b"Hello, world!\n"); // a fault of one client is no fault
///         }
///         Ok(())
///     });
///     ostler::Runtime::new().app(ostler::apps::Echo).class(class).main()
/// }
/// ```
pub struct Plain<F> {
    name: &'static str,
    serve: F,
}

impl<F> Plain<F>
where
    F: Fn(Visitors<'_>) -> Result<(), WorkerError> + Sync,
{
    /// A class of this name. The function is called once in each worker, and is to go on until there
    /// are no more visitors; if it returns before, or with an error, the worker ends with exit code
    /// 1. What it does before it asks for the first visitor belongs to the worker's boot.
    pub fn new(name: &'static str, serve: F) -> Self {
        Self { name, serve }
    }
}

impl<F> WorkerClass for Plain<F>
where
    F: Fn(Visitors<'_>) -> Result<(), WorkerError> + Sync,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn seats(&self, settings: &Settings) -> usize {
        settings.worker_connections.min(VISITORS_MAX)
    }

    fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError> {
        let house = House::new(ctx, self.seats(ctx.settings()))?;
        thread::scope(|scope| {
            let serve = || {
                let _bell = ClosingBell(&house);
                (self.serve)(Visitors::of(&house))
            };
            let server = thread::Builder::new()
                .name("ostler-plain".to_owned())
                .spawn_scoped(scope, serve)?;
            house.keep()?;
            server.join().unwrap_or_else(|panic| resume_unwind(panic))
        })?;
        match house.rooms().fault.take() {
            Some(fault) => Err(fault),
            None if ctx.life().stopping() == Stop::None => {
                Err("the class's function has returned, though nobody asked it to".into())
            }
            None => Ok(()),
        }
    }
}

/// What the two threads share.
struct House<'a> {
    ctx: &'a WorkerContext<'a>,
    rooms: Mutex<Rooms>,
    /// A byte in it: the first thread should look at the rooms.
    news: (OwnedFd, OwnedFd),
    /// A byte in it: who waits for a client, or for a seat, should look again.
    nudges: (OwnedFd, OwnedFd),
    /// The function has returned.
    over: AtomicBool,
}

struct Rooms {
    /// Seats that nobody has.
    free: Vec<usize>,
    seats: usize,
    /// Somebody waits for a seat.
    full: bool,
    /// The function goes on asking, though it was told that nobody comes any more.
    is_deaf: bool,
    /// Why no client can be had.
    fault: Option<WorkerError>,
}

impl<'a> House<'a> {
    fn new(ctx: &'a WorkerContext<'a>, seats: usize) -> io::Result<Self> {
        let free = (0..seats).rev().collect();
        let rooms = Rooms { free, seats, full: false, is_deaf: false, fault: None };
        let (news, nudges) = (file::pipe()?, file::pipe()?);
        Ok(Self { ctx, rooms: Mutex::new(rooms), news, nudges, over: AtomicBool::new(false) })
    }

    /// What the first thread does: it lives the worker's life until the function has returned.
    fn keep(&self) -> io::Result<()> {
        let life = self.ctx.life();
        while !self.over.load(Ordering::Acquire) {
            life.notify();
            let stop = life.stop();
            let rooms = self.rooms();
            // The function may be stuck, or never return.
            if stop == Stop::Now || (rooms.is_deaf && rooms.free.len() == rooms.seats) {
                life.leave();
            }
            drop(rooms);
            // A signal ends a sleep with nothing ready, so any turn may have heard one.
            ring(&self.nudges.1);
            poll::wait_readable(&[life.wake_fd(), self.news.0.as_fd()], life.next_beat())?;
            file::drain_pipe(&self.news.0);
        }
        Ok(())
    }

    /// A seat, once one is free.
    fn seat(&self) -> io::Result<usize> {
        loop {
            let mut rooms = self.rooms();
            let seat = rooms.free.pop();
            rooms.full = seat.is_none();
            drop(rooms);
            if let Some(seat) = seat {
                return Ok(seat);
            }
            poll::wait_readable(&[self.nudges.0.as_fd()], None)?;
            file::drain_pipe(&self.nudges.0);
        }
    }

    fn give_back(&self, seat: usize) {
        let mut rooms = self.rooms();
        rooms.free.push(seat);
        let (awaited, told) = (rooms.full, rooms.is_deaf);
        drop(rooms);
        if awaited {
            ring(&self.nudges.1);
        }
        if told {
            ring(&self.news.1);
        }
    }

    /// The function asks again, though it was told that nobody comes any more.
    fn detain(&self) -> ! {
        self.rooms().is_deaf = true;
        ring(&self.news.1);
        loop {
            thread::park();
        }
    }

    fn rooms(&self) -> MutexGuard<'_, Rooms> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A full pipe is as good: whoever is meant has not looked yet.
fn ring(pipe: &OwnedFd) {
    let _ = file::wake_pipe(pipe);
}

/// Tells the first thread that the function has returned, however that came about.
struct ClosingBell<'h>(&'h House<'h>);

impl Drop for ClosingBell<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Release);
        ring(&self.0.news.1);
    }
}

/// Those who come, one after the other: an iterator that waits, and ends when the worker is to
/// leave.
pub struct Visitors<'a> {
    house: &'a House<'a>,
    acceptor: Acceptor<'a>,
    /// It has been asked for somebody.
    asked: bool,
    /// It has said that nobody comes any more.
    ended: bool,
}

impl<'a> Visitors<'a> {
    fn of(house: &'a House<'a>) -> Self {
        let acceptor = house.ctx.acceptor().with_wakeup(&house.nudges.0);
        Self { house, acceptor, asked: false, ended: false }
    }

    fn admit(&mut self) -> Result<Option<Visitor<'a>>, WorkerError> {
        let seat = self.house.seat()?;
        let admitted = self.acceptor.next_stream();
        let visitor = admitted
            .and_then(|newcomer| newcomer.map(|who| self.house.receive(seat, who)).transpose());
        if !matches!(visitor, Ok(Some(_))) {
            self.house.give_back(seat);
        }
        visitor
    }
}

impl<'a> House<'a> {
    fn receive(&'a self, seat: usize, newcomer: AcceptedStream) -> Result<Visitor<'a>, WorkerError> {
        let (stream, address) = newcomer;
        let stream = TcpStream::from(OwnedFd::from(stream));
        stream.set_nonblocking(false)?;
        let settings = self.ctx.settings();
        stream.set_read_timeout(Some(settings.header_timeout))?;
        stream.set_write_timeout(Some(settings.write_timeout))?;
        let label = address.map_or_else(|| "client".to_owned(), |peer| format!("client {peer}"));
        let work = Some(self.ctx.life().begin_at(seat, &label));
        Ok(Visitor { stream, work, seat, house: self })
    }
}

impl<'a> Iterator for Visitors<'a> {
    type Item = Visitor<'a>;

    /// The next client. Waits for one as long as the worker is to serve.
    fn next(&mut self) -> Option<Visitor<'a>> {
        if self.ended {
            self.house.detain();
        }
        if !std::mem::replace(&mut self.asked, true) {
            self.house.ctx.life().ready();
        }
        let visitor = self.admit().unwrap_or_else(|fault| {
            self.house.rooms().fault = Some(fault);
            None
        });
        self.ended = visitor.is_none();
        visitor
    }
}

/// A client that has been let in, until this is dropped: a socket that blocks. It may be one of a
/// unix listener, which is no TCP but reads and writes all the same.
pub struct Visitor<'a> {
    stream: TcpStream,
    work: Option<Work<'a>>,
    seat: usize,
    house: &'a House<'a>,
}

impl Deref for Visitor<'_> {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        if let Some(work) = &self.work {
            work.passes_to_this_thread();
        }
        &self.stream
    }
}

impl Read for Visitor<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&**self).read(buffer)
    }
}

impl Write for Visitor<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&**self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&**self).flush()
    }
}

impl Drop for Visitor<'_> {
    fn drop(&mut self) {
        self.work = None; // done and counted before the seat is another's
        self.house.give_back(self.seat);
    }
}
