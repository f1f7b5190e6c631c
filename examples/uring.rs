//! A worker class on io_uring: a ring a worker, and no system call a request but the one in which it
//! sleeps.
//!
//! ```text
//! cargo run --example uring -- --worker-class uring --workers 2
//! curl http://127.0.0.1:8000/info
//! ```
//!
//! It serves whatever app the runtime has, by the same sessions as the built-in classes. Each client
//! costs a buffer of 4 KiB. Linux 5.19 or later, where nobody has forbidden it.

// The ring works on memory and descriptors behind the compiler's back: what is handed to it stays
// where it is until the ring has given it back. `Carried` sees to that.
#![expect(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::time::Duration;

use io_uring::squeue::Entry;
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode};
use ostler::Runtime;
use ostler::app::Refusal;
use ostler::apps::{Demo, Echo};
use ostler::settings::Settings;
use ostler::stamp::Stamp;
use ostler::worker::{
    Acceptor, Arrival, Buffers, Carried, Deadlines, Desk, Stop, WorkerClass, WorkerContext,
    WorkerError,
};
use slab::Slab;

const ENTRIES: u32 = 1024;
const INPUT_BYTES: usize = 4 << 10;
/// `IORING_RECVSEND_POLL_FIRST` of linux/io_uring.h: nothing is there yet in nearly all cases, so it is
/// not tried before it has come. That alone takes a tenth off what a request costs.
const POLL_FIRST: u16 = 1;

struct Uring;

impl WorkerClass for Uring {
    fn name(&self) -> &'static str {
        "uring"
    }

    /// Tries it while a person is watching.
    fn check(&self, _: &Settings) -> Result<(), Refusal> {
        let Err(error) = open_ring(8) else { return Ok(()) };
        let told = fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
        let switch = told.map_or("not there".into(), |text| text.trim().to_owned());
        Err(Refusal::new(format!(
            "io_uring cannot be had here: {error} (it needs Linux 5.19; the sysctl \
             kernel.io_uring_disabled is {switch}; a container's seccomp policy may forbid \
             io_uring_setup(2) as well); choose the class \"mio\" instead"
        )))
    }

    fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError> {
        Worker::new(ctx)?.run()
    }
}

/// A ring of one thread, if the kernel can make use of that (6.1). The other kind is as old as the
/// rest that is needed here (5.19).
fn open_ring(entries: u32) -> io::Result<IoUring> {
    let one_thread = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(entries);
    one_thread.or_else(|_| IoUring::builder().setup_coop_taskrun().build(entries))
}

/// What the ring works on; the token is in the upper bits of its user data.
#[derive(Clone, Copy)]
enum Work {
    Receive,
    Send,
    Listener,
    Signals,
    Cancel,
}

const WORKS: [Work; 5] = [Work::Receive, Work::Send, Work::Listener, Work::Signals, Work::Cancel];

fn user_data(token: usize, work: Work) -> u64 {
    (token as u64) << 3 | work as u64
}

struct Worker<'a> {
    ctx: &'a WorkerContext<'a>,
    ring: IoUring,
    acceptor: Acceptor<'a>,
    /// Which listeners the ring watches.
    watched: Vec<bool>,
    guests: Slab<Carried<'a>>,
    deadlines: Deadlines,
    buffers: Buffers,
    desk: Desk<'a>,
    draining: bool,
}

impl<'a> Worker<'a> {
    fn new(ctx: &'a WorkerContext<'a>) -> io::Result<Self> {
        Ok(Self {
            ctx,
            ring: open_ring(ENTRIES)?,
            acceptor: ctx.acceptor(),
            watched: vec![false; ctx.listeners().len()],
            guests: Slab::new(),
            deadlines: Deadlines::new(ctx.life().now()),
            buffers: Buffers::default(),
            desk: ctx.life().desk(0).beating(),
            draining: false,
        })
    }

    fn run(&mut self) -> Result<(), WorkerError> {
        let mut done = Vec::new();
        self.watch_for_signals()?;
        self.ctx.life().ready();
        loop {
            let until = match self.acceptor.poll(self.guests.len()) {
                Arrival::Client(stream, address) => {
                    let client = self.ctx.open(stream, address, true);
                    let token = self.guests.insert(client.carried(INPUT_BYTES));
                    if self.draining {
                        self.drain(token)?
                    } else {
                        self.attend(token)?
                    }
                    Some(Stamp::default()) // others may wait: no sleep
                }
                Arrival::Nobody { until } => until,
                Arrival::Over if !self.watched.contains(&true) => return Ok(()),
                Arrival::Over => None, // until the ring has let go of the listeners
            };
            self.watch_listeners()?;
            self.sleep(until)?;
            let results = self.ring.completion();
            done.extend(results.map(|entry| (entry.user_data(), entry.result())));
            for (data, result) in done.drain(..) {
                self.ctx.life().notify();
                self.take((data >> 3) as usize, WORKS[(data & 7) as usize], result)?;
            }
            self.expire()?;
        }
    }

    /// Until something is done, or a deadline has come.
    fn sleep(&mut self, until: Option<Stamp>) -> io::Result<()> {
        let deadline = [self.deadlines.next(), until].into_iter().flatten().min();
        let wait = deadline.map(|at| at.since(self.ctx.life().now()));
        let time = Timespec::from(wait.unwrap_or(Duration::from_secs(3600)));
        let args = SubmitArgs::new().timespec(&time);
        match self.ring.submitter().submit_with_args(1, &args).map_err(|e| (e.raw_os_error(), e)) {
            Ok(_) | Err((Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN), _)) => {
                Ok(())
            }
            Err((_, error)) => Err(error),
        }
    }

    /// Hands work to the ring.
    ///
    /// # Safety
    /// What the entry points to stays where it is until its result has been taken.
    unsafe fn push(&mut self, entry: Entry, token: usize, work: Work) -> io::Result<()> {
        let entry = entry.user_data(user_data(token, work));
        // SAFETY: the caller's promise.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.ring.submit()?; // it is full
        }
        Ok(())
    }

    fn watch_for_signals(&mut self) -> io::Result<()> {
        let pipe = Fd(self.ctx.life().wake_fd().as_raw_fd());
        let poll = opcode::PollAdd::new(pipe, libc::POLLIN as u32).build();
        // SAFETY: it points to nothing.
        unsafe { self.push(poll, 0, Work::Signals) }
    }

    /// One worker is woken for one client. Not for good: the next time another one is.
    fn watch_listeners(&mut self) -> io::Result<()> {
        for (token, listener) in self.ctx.listeners().iter().enumerate() {
            match (self.watched[token], self.acceptor.awaits(token)) {
                (false, true) => {
                    let wish = (libc::EPOLLIN | libc::EPOLLEXCLUSIVE) as u32;
                    let poll = opcode::PollAdd::new(Fd(listener.as_raw_fd()), wish).build();
                    // SAFETY: it points to nothing, and the context keeps the listener open.
                    unsafe { self.push(poll, token, Work::Listener)? };
                    self.watched[token] = true;
                }
                (true, false) => self.cancel(token, Work::Listener)?,
                (true, true) | (false, false) => (),
            }
        }
        Ok(())
    }

    fn cancel(&mut self, token: usize, work: Work) -> io::Result<()> {
        let cancel = opcode::AsyncCancel::new(user_data(token, work)).build();
        // SAFETY: it points to nothing.
        unsafe { self.push(cancel, 0, Work::Cancel) }
    }

    /// Takes the result of some work: a number of bytes, what a poll has found, or a negative error.
    fn take(&mut self, token: usize, work: Work, result: i32) -> io::Result<()> {
        let (count, buffers, desk) =
            (usize::try_from(result).ok(), &mut self.buffers, &mut self.desk);
        match work {
            Work::Receive => self.guests[token].received(count, buffers, desk),
            Work::Send => self.guests[token].sent(count, buffers, desk),
            Work::Signals => return self.heed_signals(),
            Work::Listener => {
                self.watched[token] = false;
                if result > 0 {
                    self.acceptor.knock(token);
                }
                return Ok(());
            }
            Work::Cancel => return Ok(()),
        }
        self.attend(token)
    }

    fn heed_signals(&mut self) -> io::Result<()> {
        if self.ctx.life().stop() == Stop::Graceful && !self.draining {
            self.draining = true;
            let tokens: Vec<_> = self.guests.iter().map(|(token, _)| token).collect();
            tokens.into_iter().try_for_each(|token| self.drain(token))?;
        }
        self.watch_for_signals()
    }

    fn drain(&mut self, token: usize) -> io::Result<()> {
        self.guests[token].drain(&mut self.buffers, &mut self.desk);
        self.attend(token)
    }

    fn expire(&mut self) -> io::Result<()> {
        let now = self.ctx.life().now();
        while let Some(token) = self.deadlines.pop(now) {
            self.guests[token].expire(now, &mut self.buffers, &mut self.desk);
            self.attend(token)?;
        }
        Ok(())
    }

    /// Has the ring do what comes next for a client.
    fn attend(&mut self, token: usize) -> io::Result<()> {
        let guest = &mut self.guests[token];
        if guest.is_over() {
            self.guests.remove(token);
            self.deadlines.clear(token);
            return Ok(());
        }
        if let Some(deadline) = guest.deadline() {
            self.deadlines.set(token, deadline);
        }
        let fd = Fd(guest.as_raw_fd());
        let send = guest.send().map(|bytes| {
            let send = opcode::Send::new(fd, bytes.as_ptr(), bytes.len() as u32);
            (send.flags(libc::MSG_NOSIGNAL).build(), Work::Send)
        });
        let receive = guest.receive().map(|room| {
            let receive = opcode::Recv::new(fd, room.as_mut_ptr(), room.len() as u32);
            (receive.ioprio(POLL_FIRST).build(), Work::Receive)
        });
        for (entry, work) in send.into_iter().chain(receive) {
            // SAFETY: what is under way stays where it is, and nobody else touches it.
            unsafe { self.push(entry, token, work)? };
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    Runtime::new().app(Demo).app(Echo).class(Uring).main()
}
