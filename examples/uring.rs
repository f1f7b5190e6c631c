//! A worker class on io_uring: a ring a worker, and one system call for all that is sent and
//! received in a turn of its loop.
//!
//! ```text
//! cargo run --example uring -- --workers 2
//! curl http://127.0.0.1:8000/info
//! ```
//!
//! It serves any app, through the same sessions as the built-in classes. Each client costs a buffer
//! of 4 KiB. It needs Linux 5.19 or later with io_uring permitted.

// The ring accesses memory and descriptors without the compiler's knowledge: a buffer handed to it
// stays in place until the ring has returned it. `CompletionClient` ensures that.
#![expect(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::process::ExitCode;
use std::time::Duration;

use io_uring::squeue::Entry;
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode};
use ostler::Runtime;
use ostler::app::ConfigError;
use ostler::apps::{Demo, Echo};
use ostler::settings::Settings;
use ostler::time::MonotonicTime;
use ostler::worker::{
    Accept, Acceptor, Buffers, CompletionClient, StopRequest, TimerWheel, WorkTracker, WorkerClass,
    WorkerContext, WorkerError,
};
use slab::Slab;

/// The signals, and the cancellation of a poll. Listener n has `FIRST_LISTENER` + n. The client
/// with token n has twice n for receiving, and one more for sending.
const SIGNALS: u64 = u64::MAX;
const CANCEL: u64 = u64::MAX - 1;
const FIRST_LISTENER: u64 = u64::MAX / 2;
const ENTRIES: u32 = 1024;
const INPUT_BYTES: usize = 4 << 10;
/// `IORING_RECVSEND_POLL_FIRST` of linux/io_uring.h: in nearly all cases no data is there yet, so
/// the kernel polls before it tries. That alone saves a tenth of a request's cost.
const POLL_FIRST: u16 = 1;

struct Uring;

impl WorkerClass for Uring {
    fn name(&self) -> &'static str {
        "uring"
    }

    /// Tries io_uring in the master, so that its absence is an error at start.
    fn check(&self, _: &Settings) -> Result<(), ConfigError> {
        let Err(error) = open_ring(8) else { return Ok(()) };
        let told = fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
        let switch = told.map_or("not there".into(), |text| text.trim().to_owned());
        Err(ConfigError::new(format!(
            "io_uring cannot be had here: {error} (it needs Linux 5.19; the sysctl \
             kernel.io_uring_disabled is {switch}; a container's seccomp policy may forbid \
             io_uring_setup(2) as well); choose the class \"mio\" instead"
        )))
    }

    fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError> {
        let (lifecycle, ring) = (ctx.lifecycle(), open_ring(ENTRIES)?);
        let worker = Worker {
            ctx,
            ring,
            acceptor: ctx.acceptor(),
            watched: vec![false; ctx.listeners().len()],
            clients: Slab::new(),
            timers: TimerWheel::new(lifecycle.now()),
            buffers: Buffers::default(),
            tracker: lifecycle.tracker().with_heartbeat(),
        };
        worker.run()
    }
}

/// Opens a ring for one thread, if the kernel supports that (6.1), or an ordinary one (5.19, as all
/// else here).
fn open_ring(entries: u32) -> io::Result<IoUring> {
    let one_thread = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(entries);
    one_thread.or_else(|_| IoUring::builder().setup_coop_taskrun().build(entries))
}

struct Worker<'a> {
    ctx: &'a WorkerContext<'a>,
    ring: IoUring,
    acceptor: Acceptor<'a>,
    /// Which listeners the ring polls.
    watched: Vec<bool>,
    clients: Slab<CompletionClient<'a>>,
    timers: TimerWheel,
    buffers: Buffers,
    tracker: WorkTracker<'a>,
}

impl Worker<'_> {
    fn run(mut self) -> Result<(), WorkerError> {
        let (lifecycle, mut done) = (self.ctx.lifecycle(), Vec::new());
        self.poll(lifecycle.wake_fd(), libc::EPOLLIN, SIGNALS)?;
        lifecycle.poll_stop(); // from now on this class polls for a stop
        lifecycle.ready();
        loop {
            let until = match self.acceptor.poll(self.clients.len()) {
                Accept::Client(stream, address) => {
                    let client = self.ctx.new_client(stream, address, true);
                    let token = self.clients.insert(client.into_completion(INPUT_BYTES));
                    self.drive(token)?;
                    Some(MonotonicTime::default()) // `accept` may have more clients: no sleep
                }
                Accept::Pending { deadline: until } => until,
                Accept::Finished if !self.watched.contains(&true) => return Ok(()),
                Accept::Finished => None, // until the ring has released the listeners
            };
            self.watch()?;
            self.wait(until)?;
            let results = self.ring.completion();
            done.extend(results.map(|entry| (entry.user_data(), entry.result())));
            for (data, result) in done.drain(..) {
                lifecycle.notify();
                self.take(data, result)?;
            }
            let now = lifecycle.now();
            while let Some(token) = self.timers.pop(now) {
                self.clients[token].expire(now, &mut self.buffers, &mut self.tracker);
                self.drive(token)?;
            }
        }
    }

    /// Waits until an operation completes, or a deadline passes.
    fn wait(&mut self, until: Option<MonotonicTime>) -> io::Result<()> {
        let deadline = [self.timers.next(), until].into_iter().flatten().min();
        let wait = deadline.map(|at| at.duration_since(self.ctx.lifecycle().now()));
        let time = Timespec::from(wait.unwrap_or(Duration::from_secs(3600)));
        let args = SubmitArgs::new().timespec(&time);
        match self.ring.submitter().submit_with_args(1, &args).map_err(|e| (e.raw_os_error(), e)) {
            Ok(_) | Err((Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN), _)) => {
                Ok(())
            }
            Err((_, error)) => Err(error),
        }
    }

    /// Submits an operation to the ring.
    ///
    /// # Safety
    ///
    /// The memory that the entry points to must stay in place until its result has been taken.
    unsafe fn push(&mut self, entry: Entry, data: u64) -> io::Result<()> {
        let entry = entry.user_data(data);
        // SAFETY: guaranteed by the caller.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.ring.submit()?; // the queue is full
        }
        Ok(())
    }

    fn poll(&mut self, fd: BorrowedFd<'_>, events: i32, data: u64) -> io::Result<()> {
        let poll = opcode::PollAdd::new(Fd(fd.as_raw_fd()), events as u32).build();
        // SAFETY: it points to nothing.
        unsafe { self.push(poll, data) }
    }

    /// Polls the listeners of interest, so that one worker wakes for one client. Each poll fires
    /// once: the next client wakes another worker.
    fn watch(&mut self) -> io::Result<()> {
        for (index, listener) in self.ctx.listeners().iter().enumerate() {
            let data = FIRST_LISTENER + index as u64;
            match (self.watched[index], self.acceptor.is_interested(index)) {
                (false, true) => {
                    self.watched[index] = true;
                    self.poll(listener.as_fd(), libc::EPOLLIN | libc::EPOLLEXCLUSIVE, data)?;
                }
                (true, false) => {
                    let cancel = opcode::AsyncCancel::new(data).build();
                    // SAFETY: it points to nothing.
                    unsafe { self.push(cancel, CANCEL)? };
                }
                (true, true) | (false, false) => (),
            }
        }
        Ok(())
    }

    /// Handles an operation's result: a number of bytes, a poll's events, or a negative error.
    fn take(&mut self, data: u64, result: i32) -> io::Result<()> {
        match data {
            SIGNALS => {
                self.poll(self.ctx.lifecycle().wake_fd(), libc::EPOLLIN, SIGNALS)?;
                self.ctx.lifecycle().poll_stop();
                let everybody: Vec<_> = self.clients.iter().map(|(token, _)| token).collect();
                everybody.into_iter().try_for_each(|token| self.drive(token))
            }
            CANCEL => Ok(()),
            FIRST_LISTENER.. => {
                let index = (data - FIRST_LISTENER) as usize;
                self.watched[index] = false;
                if result > 0 {
                    self.acceptor.mark_readable(index);
                }
                Ok(())
            }
            _ => {
                let (token, count) = ((data >> 1) as usize, usize::try_from(result).ok());
                let (client, buffers) = (&mut self.clients[token], &mut self.buffers);
                match data & 1 {
                    0 => client.complete_recv(count, buffers, &mut self.tracker),
                    _ => client.complete_send(count, buffers, &mut self.tracker),
                }
                self.drive(token)
            }
        }
    }

    /// Submits a client's next operation.
    fn drive(&mut self, token: usize) -> io::Result<()> {
        let client = &mut self.clients[token];
        if self.ctx.lifecycle().stop_request() == StopRequest::Graceful {
            client.drain(&mut self.buffers, &mut self.tracker);
        }
        if client.is_finished() {
            self.clients.remove(token);
            self.timers.clear(token);
            return Ok(());
        }
        if let Some(deadline) = client.deadline() {
            self.timers.set(token, deadline);
        }
        let (fd, data) = (Fd(client.as_raw_fd()), (token as u64) << 1);
        let receive = client.next_recv().map(|room| {
            let receive = opcode::Recv::new(fd, room.as_mut_ptr(), room.len() as u32);
            (receive.ioprio(POLL_FIRST).build(), data)
        });
        let send = client.next_send().map(|bytes| {
            let send = opcode::Send::new(fd, bytes.as_ptr(), bytes.len() as u32);
            (send.flags(libc::MSG_NOSIGNAL).build(), data | 1)
        });
        for (entry, data) in send.into_iter().chain(receive) {
            // SAFETY: the buffer of a pending operation stays in place, and nothing else uses it.
            unsafe { self.push(entry, data)? };
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    Runtime::new().app(Demo).app(Echo).class(Uring).default_class("uring").main()
}
