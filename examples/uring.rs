//! A worker class on io_uring: one ring per worker, and one system call for all that a turn of its loop
//! sends and receives.
//!
//! ```text
//! cargo run --example uring -- --worker-class uring --workers 2
//! curl http://127.0.0.1:8000/info
//! ```
//!
//! It serves any app, by the same sessions as the built-in classes. Each client costs a buffer of 4 KiB. It
//! needs Linux 5.19 or later, and permission to use io_uring.

// The ring works on memory and descriptors behind the compiler's back: a buffer keeps its address until
// the ring has completed the operation. `CompletionClient` ensures that.
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

/// The user data of the signals, and of an operation that cancels a poll. The nth listener has
/// `FIRST_LISTENER` + n, the client with index n has 2 n for receiving and 2 n + 1 for sending.
const SIGNALS: u64 = u64::MAX;
const CANCEL: u64 = u64::MAX - 1;
const FIRST_LISTENER: u64 = u64::MAX / 2;
const ENTRIES: u32 = 1024;
const INPUT_BYTES: usize = 4 << 10;
/// `IORING_RECVSEND_POLL_FIRST` of linux/io_uring.h: in nearly all cases no input is there yet, so do not
/// try to receive before it is. That alone takes a tenth off the cost of a request.
const POLL_FIRST: u16 = 1;

struct Uring;

impl WorkerClass for Uring {
    fn name(&self) -> &'static str {
        "uring"
    }

    /// Tries io_uring in the master, before any fork.
    fn check(&self, _: &Settings) -> Result<(), ConfigError> {
        let Err(error) = open_ring(8) else { return Ok(()) };
        let sysctl = fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
        let value = sysctl.map_or("not there".into(), |text| text.trim().to_owned());
        Err(ConfigError::new(format!(
            "io_uring is not available: {error} (it needs Linux 5.19; the sysctl \
             kernel.io_uring_disabled is {value}; a container's seccomp policy may forbid \
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
            tracker: lifecycle.tracker(0).with_heartbeat(),
        };
        worker.run()
    }
}

/// Opens a ring for one thread if the kernel supports that (6.1), or else one that Linux 5.19 supports, as
/// all other operations here.
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
            let deadline = match self.acceptor.poll(self.clients.len()) {
                Accept::Client(stream, address) => {
                    let client = self.ctx.new_client(stream, address, true);
                    let token = self.clients.insert(client.into_completion(INPUT_BYTES));
                    self.drive(token)?;
                    Some(MonotonicTime::default()) // others may wait: no sleep
                }
                Accept::Pending { deadline } => deadline,
                Accept::Finished if !self.watched.contains(&true) => return Ok(()),
                Accept::Finished => None, // until the ring has cancelled all polls of listeners
            };
            self.watch()?;
            self.wait(deadline)?;
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

    /// Waits until an operation completes or a deadline has come.
    fn wait(&mut self, deadline: Option<MonotonicTime>) -> io::Result<()> {
        let deadline = [self.timers.next(), deadline].into_iter().flatten().min();
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
    /// The memory that the entry points to must stay valid until its result has been taken.
    unsafe fn push(&mut self, entry: Entry, data: u64) -> io::Result<()> {
        let entry = entry.user_data(data);
        // SAFETY: the caller's promise.
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

    /// Makes the ring poll the listeners in which the acceptor is interested. Each poll is exclusive and for
    /// one event: the kernel wakes one worker for one client, and another for the next.
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

    /// Handles the result of an operation: a number of bytes, the events of a poll, or a negative error.
    fn take(&mut self, data: u64, result: i32) -> io::Result<()> {
        match data {
            SIGNALS => {
                self.poll(self.ctx.lifecycle().wake_fd(), libc::EPOLLIN, SIGNALS)?;
                self.ctx.lifecycle().poll_stop();
                let all: Vec<_> = self.clients.iter().map(|(token, _)| token).collect();
                all.into_iter().try_for_each(|token| self.drive(token))
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

    /// Starts the next operations of a client.
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
        let receive = client.next_recv().map(|buffer| {
            let receive = opcode::Recv::new(fd, buffer.as_mut_ptr(), buffer.len() as u32);
            (receive.ioprio(POLL_FIRST).build(), data)
        });
        let send = client.next_send().map(|bytes| {
            let send = opcode::Send::new(fd, bytes.as_ptr(), bytes.len() as u32);
            (send.flags(libc::MSG_NOSIGNAL).build(), data | 1)
        });
        for (entry, data) in send.into_iter().chain(receive) {
            // SAFETY: a buffer in progress keeps its address, and only the ring uses it.
            unsafe { self.push(entry, data)? };
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    Runtime::new().app(Demo).app(Echo).class(Uring).main()
}
