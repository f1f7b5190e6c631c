//! A worker class made of a function that accepts and answers, and implements none of the contract.
//!
//! The worker's first thread keeps the lifecycle: it sends heartbeats, processes signals, and ends the
//! worker. The function runs in a second thread and asks for clients. Its calls tell the runtime
//! whether it is ready, idle, busy and since when, and when it has drained.

use std::io::{self, Read, Write};
use std::mem;
use std::net::TcpStream;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use super::WorkerClass;
use super::acceptor::{Acceptor, MainThread};
use super::client::Client;
use super::context::{AcceptedStream, WorkerContext};
use super::error::WorkerError;
use super::lifecycle::StopRequest;
use super::lingering::Lingering;
use super::tracker::UnitGuard;
use crate::listen::Stream;
use crate::os::{clock, file, poll, socket};
use crate::session::SHORT_OUTPUT;
use crate::settings::Settings;

/// The most clients that the function may hold at once.
const CLIENTS_MAX: usize = 64;

/// A worker class made of a function that accepts and answers.
///
/// Each client is a unit of work, from [`Incoming::next`] until its [`ClientStream`] is dropped: if it
/// takes longer than `timeout`, the worker hangs, in this unit. When the worker must stop, the iterator
/// ends, and the worker exits once the function has returned. Reads and writes time out after
/// `header_timeout` and `write_timeout`, unless the function sets other limits. The function holds at
/// most 64 clients at once; others wait in the kernel.
///
/// ```no_run
/// use std::io::{Read, Write};
/// use std::process::ExitCode;
///
/// use ostler::worker::FnClass;
///
/// fn main() -> ExitCode {
///     let class = FnClass::new("greeter", |incoming| {
///         for mut client in incoming {
///             let _ = client.write_all(b"Hello, world!\n"); // an error of one client is none
///         }
///         Ok(())
///     });
///     ostler::Runtime::new().app(ostler::apps::Echo).class(class).default_class("greeter").main()
/// }
/// ```
pub struct FnClass<F> {
    name: &'static str,
    serve: F,
}

impl<F> FnClass<F>
where
    F: Fn(Incoming<'_>) -> Result<(), WorkerError> + Sync,
{
    /// Creates a class with this name. Each worker calls the function once; it must return when the
    /// iterator ends. If it returns earlier, or with an error, the worker exits with code 1. What it does
    /// before it asks for the first client belongs to the worker's boot.
    pub fn new(name: &'static str, serve: F) -> Self {
        Self { name, serve }
    }
}

impl<F> WorkerClass for FnClass<F>
where
    F: Fn(Incoming<'_>) -> Result<(), WorkerError> + Sync,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn threads(&self, settings: &Settings) -> usize {
        settings.worker_connections.min(CLIENTS_MAX)
    }

    fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError> {
        let shared = Shared::new(ctx, self.threads(ctx.settings()))?;
        thread::scope(|scope| {
            let serve = || {
                let _return_guard = ReturnGuard(&shared);
                (self.serve)(Incoming::new(&shared))
            };
            let server =
                thread::Builder::new().name("ostler-fn".to_owned()).spawn_scoped(scope, serve)?;
            shared.run_main_loop()?;
            server.join().unwrap_or_else(|panic| resume_unwind(panic))
        })?;
        match shared.lock_state().error.take() {
            Some(error) => Err(error),
            None if ctx.lifecycle().stop_request() == StopRequest::None => {
                Err("class function returned without a stop request".into())
            }
            None => Ok(()),
        }
    }
}

/// What the two threads share.
struct Shared<'a> {
    ctx: &'a WorkerContext<'a>,
    state: Mutex<SharedState>,
    /// The first thread.
    main: MainThread,
    /// The function has returned.
    returned: AtomicBool,
}

struct SharedState {
    /// Thread entries that no client has.
    free: Vec<usize>,
    threads: usize,
    /// How many clients the function has.
    clients: usize,
    /// A thread waits for an entry.
    waits_for_thread: bool,
    /// The function has asked again after the iterator had ended.
    awaits_exit: bool,
    /// Clients that the function has dropped while their input was unread.
    unread: Vec<Client<'static>>,
    /// Why accepting has failed.
    error: Option<WorkerError>,
}

impl<'a> Shared<'a> {
    fn new(ctx: &'a WorkerContext<'a>, threads: usize) -> io::Result<Self> {
        let free = (0..threads).rev().collect();
        let state = SharedState {
            free,
            threads,
            clients: 0,
            waits_for_thread: false,
            awaits_exit: false,
            unread: Vec::new(),
            error: None,
        };
        Ok(Self {
            ctx,
            state: Mutex::new(state),
            main: MainThread::new()?,
            returned: AtomicBool::new(false),
        })
    }

    /// Keeps the lifecycle in the first thread until the function has returned and no client lingers.
    fn run_main_loop(&self) -> io::Result<()> {
        let (lifecycle, mut lingering) = (self.ctx.lifecycle(), Lingering::default());
        loop {
            lifecycle.notify();
            let stop = lifecycle.poll_stop();
            let has_returned = self.returned.load(Ordering::Acquire);
            let mut state = self.lock_state();
            mem::take(&mut state.unread).into_iter().for_each(|client| lingering.add(client));
            if !lingering.is_empty() {
                lingering.update(clock::now());
            }
            if has_returned && lingering.is_empty() {
                return Ok(());
            }
            if !lifecycle.is_in_drain_mode() {
                self.main.is_drained.store(false, Ordering::Release); // it may accept clients now
            }
            let is_drained = self.main.is_drained.load(Ordering::Acquire);
            lifecycle.report_drained(is_drained && state.clients == 0 && lingering.is_empty());
            // The function may be stuck, or never return.
            if stop == StopRequest::Immediate
                || (state.awaits_exit && state.free.len() == state.threads && lingering.is_empty())
            {
                lifecycle.exit_now();
            }
            drop(state);
            // A signal ends a sleep with nothing ready, so one may have come in any turn.
            wake(&self.main.accept_wakeup.1);
            let mut fds = vec![lifecycle.wake_fd(), self.main.wakeup.0.as_fd()];
            fds.extend(lingering.fds());
            let deadlines = [lifecycle.next_heartbeat(), lingering.deadline()];
            poll::wait_readable(&fds, deadlines.into_iter().flatten().min())?;
            file::drain_pipe(&self.main.wakeup.0);
        }
    }

    /// Takes a thread entry, once one is free.
    fn acquire_thread(&self) -> io::Result<usize> {
        loop {
            let mut state = self.lock_state();
            let thread = state.free.pop();
            state.waits_for_thread = thread.is_none();
            drop(state);
            if let Some(thread) = thread {
                return Ok(thread);
            }
            poll::wait_readable(&[self.main.accept_wakeup.0.as_fd()], None)?;
            file::drain_pipe(&self.main.accept_wakeup.0);
        }
    }

    fn release_thread(&self, thread: usize) {
        let mut state = self.lock_state();
        state.free.push(thread);
        let SharedState { waits_for_thread, awaits_exit, .. } = *state;
        drop(state);
        if waits_for_thread {
            wake(&self.main.accept_wakeup.1);
        }
        if awaits_exit {
            wake(&self.main.wakeup.1);
        }
    }

    fn add_client(&self) {
        self.lock_state().clients += 1;
    }

    /// Takes in that the function has dropped a client, which may be read on.
    fn remove_client(&self, unread: Option<Client<'static>>) {
        let mut state = self.lock_state();
        state.clients -= 1;
        let is_last = state.clients == 0 && self.ctx.lifecycle().is_in_drain_mode();
        let concerns_main = unread.is_some() || is_last;
        state.unread.extend(unread);
        drop(state);
        if concerns_main {
            wake(&self.main.wakeup.1);
        }
    }

    /// Holds a function that asks again after the iterator has ended, until the worker exits.
    fn park_until_exit(&self) -> ! {
        self.lock_state().awaits_exit = true;
        wake(&self.main.wakeup.1);
        loop {
            thread::park();
        }
    }

    fn lock_state(&self) -> MutexGuard<'_, SharedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes the thread that reads this pipe. A full pipe wakes it as well.
fn wake(pipe: &OwnedFd) {
    let _ = file::wake_pipe(pipe);
}

/// Tells the first thread that the function has returned or panicked.
struct ReturnGuard<'h>(&'h Shared<'h>);

impl Drop for ReturnGuard<'_> {
    fn drop(&mut self) {
        self.0.returned.store(true, Ordering::Release);
        wake(&self.0.main.wakeup.1);
    }
}

/// An iterator over the clients: it waits for the next one, and ends when the worker has drained its
/// queues.
pub struct Incoming<'a> {
    shared: &'a Shared<'a>,
    acceptor: Acceptor<'a>,
    /// It was asked for a client, so the worker is ready.
    ready_reported: bool,
    /// It has ended.
    finished: bool,
}

impl<'a> Incoming<'a> {
    fn new(shared: &'a Shared<'a>) -> Self {
        let acceptor = shared.ctx.acceptor().with_main_thread(&shared.main);
        Self { shared, acceptor, ready_reported: false, finished: false }
    }

    fn accept(&mut self) -> Result<Option<ClientStream<'a>>, WorkerError> {
        let thread = self.shared.acquire_thread()?;
        let accepted = self.acceptor.next_stream();
        let client = accepted.and_then(|accepted| {
            accepted.map(|stream| self.shared.new_client(thread, stream)).transpose()
        });
        if !matches!(client, Ok(Some(_))) {
            self.shared.release_thread(thread);
        }
        client
    }
}

impl<'a> Shared<'a> {
    fn new_client(
        &'a self,
        thread: usize,
        accepted: AcceptedStream,
    ) -> Result<ClientStream<'a>, WorkerError> {
        let (stream, address) = accepted;
        let stream = TcpStream::from(OwnedFd::from(stream));
        stream.set_nonblocking(false)?;
        let settings = self.ctx.settings();
        stream.set_read_timeout(Some(settings.header_timeout))?;
        stream.set_write_timeout(Some(settings.write_timeout))?;
        let label = address.map_or_else(|| "client".to_owned(), |peer| format!("client {peer}"));
        let work = Some(self.ctx.lifecycle().begin_work_on(thread, &label, address));
        self.add_client();
        Ok(ClientStream { stream, work, thread, shared: self })
    }
}

impl<'a> Iterator for Incoming<'a> {
    type Item = ClientStream<'a>;

    /// Waits for the next client, until the worker must stop.
    fn next(&mut self) -> Option<ClientStream<'a>> {
        if self.finished {
            self.shared.park_until_exit();
        }
        if !mem::replace(&mut self.ready_reported, true) {
            self.shared.ctx.lifecycle().ready();
        }
        let client = self.accept().unwrap_or_else(|error| {
            self.shared.lock_state().error = Some(error);
            None
        });
        self.finished = client.is_none();
        client
    }
}

/// An accepted client: a blocking socket. Dropping it closes the connection and ends the unit of work.
/// If the client has sent bytes that were not read, the runtime ends the output, and reads on for up to
/// `lingering_timeout` before it closes: otherwise the kernel would cut off what was sent.
/// A client of a unix listener has the same type, since it is read and written in the same way.
pub struct ClientStream<'a> {
    stream: TcpStream,
    work: Option<UnitGuard<'a>>,
    thread: usize,
    shared: &'a Shared<'a>,
}

impl ClientStream<'_> {
    /// Returns a client with the same socket if closing it now could cut off what was sent.
    fn take_unread(&self) -> Option<Client<'static>> {
        let fd = self.stream.as_fd();
        let is_cut_off =
            socket::unread_bytes(fd) > 0 || socket::unacknowledged_bytes(fd) > SHORT_OUTPUT;
        // If there are no descriptors, it is cut off.
        let stream = is_cut_off.then(|| fd.try_clone_to_owned()).and_then(Result::ok)?;
        Some(Client::lingering(Stream::new(stream), self.shared.ctx.settings()))
    }
}

impl Deref for ClientStream<'_> {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        if let Some(work) = &self.work {
            work.move_to_current_thread();
        }
        &self.stream
    }
}

impl Read for ClientStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = (&**self).read(buffer)?;
        self.work.iter().for_each(|work| work.count_received(length));
        Ok(length)
    }
}

impl Write for ClientStream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = (&**self).write(bytes)?;
        self.work.iter().for_each(|work| work.count_sent(length));
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&**self).flush()
    }
}

impl Drop for ClientStream<'_> {
    fn drop(&mut self) {
        self.work = None; // ended and counted before another client gets the entry
        self.shared.remove_client(self.take_unread());
        self.shared.release_thread(self.thread);
    }
}
