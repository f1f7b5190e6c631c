//! A worker class on io_uring: a ring a worker, and no system call but the one in which it sleeps.
//!
//! ```text
//! cargo run --example uring -- --worker-class uring --workers 2
//! curl http://127.0.0.1:8000/info
//! ```
//!
//! It serves whatever app the runtime has, by the same sessions as the built-in classes. Each client
//! costs a buffer of 4 KiB. Linux 5.19 or later, where nobody has forbidden it.

// The ring works on memory and descriptors behind the compiler's back: what is handed to it stays
// where it is until the ring has given it back. That is what `Guest::busy` is for.
#![expect(unsafe_code)]

use std::fs;
use std::io;
use std::mem::ManuallyDrop;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::ExitCode;
use std::ptr::null_mut;
use std::time::Duration;

use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode};
use ostler::Runtime;
use ostler::app::{Peer, Refusal};
use ostler::apps::{Demo, Echo};
use ostler::session::{Session, Wants};
use ostler::settings::Settings;
use ostler::stamp::Stamp;
use ostler::worker::{Deadlines, Desk, Stop, WorkerClass, WorkerContext, WorkerError};
use slab::Slab;

const ENTRIES: u32 = 1024;
const INPUT_BYTES: usize = 4 << 10;
const OUTPUT_BYTES: usize = 64 << 10;
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
    /// To wait for somebody at a listener, which tells nothing: the accepting that follows does.
    Knock,
    Accept,
    Wake,
    /// To take back a knock or an accepting.
    Cancel,
}

const WORKS: [Work; 6] =
    [Work::Receive, Work::Send, Work::Knock, Work::Accept, Work::Wake, Work::Cancel];

fn user_data(token: usize, work: Work) -> u64 {
    (token as u64) << 3 | work as u64
}

struct Guest<'a> {
    socket: TcpStream,
    session: Session<'a>,
    input: Box<[u8]>,
    /// How many bytes of `input` have come and wait for their turn; 0 is the end.
    come: Option<usize>,
    output: Vec<u8>,
    receiving: bool,
    sending: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    Idle,
    /// Somebody is waited for.
    Watched,
    /// It has ended listening.
    Ended,
}

struct Worker<'a> {
    ctx: &'a WorkerContext<'a>,
    ring: IoUring,
    doors: Vec<Door>,
    paused_until: Option<Stamp>,
    /// Never freed as a whole, also if this unwinds: the ring may be working on their buffers.
    guests: ManuallyDrop<Slab<Guest<'a>>>,
    deadlines: Deadlines,
    desk: Desk<'a>,
    spare: Vec<u8>,
    draining: bool,
}

impl<'a> Worker<'a> {
    fn new(ctx: &'a WorkerContext<'a>) -> io::Result<Self> {
        Ok(Self {
            ctx,
            ring: open_ring(ENTRIES)?,
            doors: vec![Door::Idle; ctx.listeners().len()],
            paused_until: None,
            guests: ManuallyDrop::new(Slab::new()),
            deadlines: Deadlines::new(ctx.life().now()),
            desk: ctx.life().desk(0).beating(),
            spare: Vec::new(),
            draining: false,
        })
    }

    fn run(&mut self) -> Result<(), WorkerError> {
        let life = self.ctx.life();
        let mut done = Vec::new();
        self.watch_for_signals()?;
        life.ready();
        loop {
            life.notify();
            // Asked first: who comes while the queues are looked at must be looked for once more.
            let expects = self.ctx.expects_until().is_some();
            let idle = self.draining && self.guests.is_empty();
            let over = idle && !self.let_in_the_last()? && !expects;
            self.watch_doors(over)?;
            if over && !self.doors.contains(&Door::Watched) {
                return Ok(()); // and nothing that was begun may still let somebody in
            }
            self.sleep()?;
            let results = self.ring.completion();
            done.extend(results.map(|entry| (entry.user_data(), entry.result())));
            for (data, result) in done.drain(..) {
                life.notify();
                self.take(data >> 3, WORKS[(data & 7) as usize], result)?;
            }
            self.expire()?;
            if life.stopping() == Stop::Now {
                return Ok(());
            }
        }
    }

    /// Until something is done, or a deadline or a beat is due.
    fn sleep(&mut self) -> io::Result<()> {
        let (life, now) = (self.ctx.life(), self.ctx.life().now());
        let stamps = [self.deadlines.next(), self.paused_until, self.ctx.expects_until()];
        let wait = stamps.into_iter().flatten().min().map(|at| at.since(now));
        let wait = [wait, life.pulse()].into_iter().flatten().min();
        let time = Timespec::from(wait.unwrap_or(Duration::from_secs(3600)));
        let args = SubmitArgs::new().timespec(&time);
        match self.ring.submitter().submit_with_args(1, &args).map_err(|e| (e.raw_os_error(), e)) {
            Ok(_) | Err((Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN), _)) => {
                Ok(())
            }
            Err((_, error)) => Err(error),
        }
    }

    /// Hands work to the ring: all of it, or nothing.
    ///
    /// # Safety
    /// What the entries point to stays where it is until their results have been taken.
    unsafe fn push(&mut self, entries: &[Entry]) -> io::Result<()> {
        // SAFETY: the caller's promise.
        while unsafe { self.ring.submission().push_multiple(entries) }.is_err() {
            self.ring.submit()?; // it is full
        }
        Ok(())
    }

    fn watch_for_signals(&mut self) -> io::Result<()> {
        let pipe = Fd(self.ctx.life().wake_fd().as_raw_fd());
        let poll = opcode::PollAdd::new(pipe, libc::POLLIN as u32).build();
        // SAFETY: it points to nothing.
        unsafe { self.push(&[poll.user_data(user_data(0, Work::Wake))]) }
    }

    /// Waits for clients at the listeners that are this worker's concern, as long as there is room,
    /// until all is `over`.
    fn watch_doors(&mut self, over: bool) -> io::Result<()> {
        let full = self.guests.len() >= self.ctx.settings().worker_connections;
        let paused = self.paused_until.is_some_and(|until| self.ctx.life().now() < until);
        if !paused {
            self.paused_until = None;
        }
        for (token, listener) in self.ctx.listeners().iter().enumerate() {
            let is_ours = if self.draining {
                self.ctx.must_empty(listener) && !over
            } else {
                self.ctx.attends(listener) && !full && !paused
            };
            if is_ours && self.doors[token] == Door::Idle {
                self.doors[token] = Door::Watched;
                let fd = Fd(listener.as_raw_fd());
                // One worker is woken for one client. Not for good: the next time another one is.
                let wish = (libc::EPOLLIN | libc::EPOLLEXCLUSIVE) as u32;
                let knock = opcode::PollAdd::new(fd, wish).build().flags(Flags::IO_LINK);
                let accept = opcode::Accept::new(fd, null_mut(), null_mut());
                let accept = accept.flags(libc::SOCK_CLOEXEC).build();
                let knock = knock.user_data(user_data(token, Work::Knock));
                let accept = accept.user_data(user_data(token, Work::Accept));
                // SAFETY: they point to nothing, and the context keeps the listener open.
                unsafe { self.push(&[knock, accept])? };
            } else if !is_ours && self.doors[token] == Door::Watched {
                // The knocking may be over, and the accepting wait for whom another took. Between
                // the two neither is found, so it is tried until one is.
                for work in [Work::Knock, Work::Accept] {
                    let cancel = opcode::AsyncCancel::new(user_data(token, work)).build();
                    let cancel = cancel.user_data(user_data(token, Work::Cancel));
                    // SAFETY: it points to nothing.
                    unsafe { self.push(&[cancel])? };
                }
            }
        }
        Ok(())
    }

    /// Takes the result of some work: a number of bytes, a descriptor, or a negative error.
    fn take(&mut self, token: u64, work: Work, result: i32) -> io::Result<()> {
        let token = token as usize;
        match work {
            Work::Knock | Work::Cancel => Ok(()),
            Work::Wake => self.heed_signals(),
            Work::Accept => self.welcome(token, result),
            Work::Receive => {
                let guest = &mut self.guests[token];
                guest.receiving = false;
                match usize::try_from(result) {
                    Ok(count) => guest.come = Some(count),
                    Err(_) => guest.session.broken(),
                }
                self.attend(token)
            }
            Work::Send => {
                let guest = &mut self.guests[token];
                guest.sending = false;
                if guest.output.capacity() > INPUT_BYTES {
                    guest.output = Vec::new(); // a client who waits does not keep that much
                }
                let now = self.ctx.life().now();
                match usize::try_from(result) {
                    Ok(count) => guest.session.sent(count, &mut self.spare, &mut self.desk, now),
                    Err(_) => guest.session.broken(),
                }
                self.attend(token)
            }
        }
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
        let (guest, now) = (&mut self.guests[token], self.ctx.life().now());
        guest.session.drain(&mut self.spare, &mut self.desk, now);
        self.attend(token)
    }

    fn welcome(&mut self, door: usize, result: i32) -> io::Result<()> {
        self.doors[door] = Door::Idle;
        match -result {
            // Somebody else was quicker; or it was taken back.
            libc::EAGAIN | libc::ECANCELED | libc::EINTR | libc::ECONNABORTED => Ok(()),
            libc::EINVAL => {
                self.doors[door] = Door::Ended;
                Ok(())
            }
            error if error > 0 => {
                self.ctx.warn_of_pause(&io::Error::from_raw_os_error(error));
                self.paused_until = Some(self.ctx.end_of_pause());
                Ok(())
            }
            // SAFETY: the kernel has just made this descriptor, and nobody else has seen it.
            _ => self.admit(unsafe { OwnedFd::from_raw_fd(result) }),
        }
    }

    fn admit(&mut self, socket: OwnedFd) -> io::Result<()> {
        let socket = TcpStream::from(socket); // or a unix socket: nothing is asked that differs
        let peer = Peer { address: socket.peer_addr().ok(), reusable: true };
        let connection = self.ctx.service().connect(&peer);
        let (limit, now) = (self.ctx.settings().write_timeout, self.ctx.life().now());
        let token = self.guests.insert(Guest {
            socket,
            session: Session::new(connection, limit, now),
            input: vec![0; INPUT_BYTES].into(),
            come: None,
            output: Vec::new(),
            receiving: false,
            sending: false,
        });
        self.attend(token)?;
        if self.draining && self.guests.contains(token) { self.drain(token) } else { Ok(()) }
    }

    /// Who waits at a listener when all others have left. Returns whether somebody did.
    fn let_in_the_last(&mut self) -> io::Result<bool> {
        for listener in self.ctx.listeners() {
            if self.ctx.must_empty(listener)
                && let Ok(Some((stream, _))) = listener.accept()
            {
                let socket = TcpStream::from(OwnedFd::from(stream));
                socket.set_nonblocking(false)?; // the ring waits, the socket does not refuse
                self.admit(socket.into())?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Lets a client go as far as it can, and has the ring do what comes next.
    fn attend(&mut self, token: usize) -> io::Result<()> {
        let (guest, now) = (&mut self.guests[token], self.ctx.life().now());
        while matches!(guest.session.wants(), Wants::Read | Wants::Linger)
            && let Some(count) = guest.come.take()
        {
            let input = &guest.input[..count];
            guest.session.received(input, &mut self.spare, &mut self.desk, now);
        }
        match guest.session.wants() {
            Wants::Gone if guest.receiving || guest.sending => {
                // What the ring is still at comes to its end then.
                let _ = guest.socket.shutdown(Shutdown::Both);
                return Ok(());
            }
            Wants::Gone => {
                self.guests.remove(token);
                self.deadlines.clear(token);
                return Ok(());
            }
            Wants::Linger => drop(guest.socket.shutdown(Shutdown::Write)),
            Wants::Read | Wants::Write => (),
        }
        if let Some(deadline) = guest.session.deadline() {
            self.deadlines.set(token, deadline);
        }
        let fd = Fd(guest.socket.as_raw_fd());
        let mut next = [None, None];
        if guest.session.wants() == Wants::Write && !guest.sending {
            guest.sending = true;
            let unsent = guest.session.unsent();
            // The session may change its own while the ring is at it.
            guest.output.clear();
            guest.output.extend_from_slice(&unsent[..unsent.len().min(OUTPUT_BYTES)]);
            let (bytes, count) = (guest.output.as_ptr(), guest.output.len() as u32);
            let send = opcode::Send::new(fd, bytes, count).flags(libc::MSG_NOSIGNAL).build();
            next[0] = Some(send.user_data(user_data(token, Work::Send)));
        }
        if guest.come.is_none() && !guest.receiving {
            guest.receiving = true;
            let receive = opcode::Recv::new(fd, guest.input.as_mut_ptr(), INPUT_BYTES as u32);
            let receive = receive.ioprio(POLL_FIRST);
            next[1] = Some(receive.build().user_data(user_data(token, Work::Receive)));
        }
        for entry in next.into_iter().flatten() {
            // SAFETY: the buffers belong to the guest, who is neither removed while `receiving` or
            // `sending`, nor freed with the worker; and until then nobody touches them.
            unsafe { self.push(&[entry])? };
        }
        Ok(())
    }

    fn expire(&mut self) -> io::Result<()> {
        let now = self.ctx.life().now();
        while let Some(token) = self.deadlines.pop(now) {
            let Some(guest) = self.guests.get_mut(token) else { continue };
            if guest.session.deadline().is_some_and(|deadline| deadline <= now) {
                guest.session.expired(&mut self.spare, &mut self.desk, now);
            }
            self.attend(token)?;
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    Runtime::new().app(Demo).app(Echo).class(Uring).main()
}
