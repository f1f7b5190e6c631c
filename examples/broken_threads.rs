//! Worker classes with threads that break the contract, each in one way, as test cases of the contract
//! kit. `broken_class` has those with one thread.
//!
//! ```text
//! cargo run --example broken_threads -- --worker-class marks-for-all --timeout 2
//! ```

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{self, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::{self, Scope};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use ostler::Runtime;
use ostler::apps::Demo;
use ostler::listen::Stream;
use ostler::settings::Settings;
use ostler::worker::{
    Accept, Acceptor, Buffers, Client, StopRequest, WorkerClass, WorkerContext, WorkerError,
};

const WAKE: Token = Token(usize::MAX);
const CLIENT_DONE: Token = Token(usize::MAX - 1);
const STOP: Token = Token(usize::MAX - 2);
const THREADS_MAX: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Violation {
    None,
    /// The main thread marks one unit of work for the clients of all threads.
    MarksForAll,
    /// A client that is queued while the thread goes to sleep waits for the next one.
    LosesWakeups,
    IgnoresTheLimit,
    /// On an immediate stop, waits for threads that may be stuck.
    JoinsStuckThreads,
    /// Reserves one thread entry for many threads.
    ReservesOneEntry,
}

const VIOLATIONS: [(&str, Violation); 6] = [
    ("correct", Violation::None),
    ("marks-for-all", Violation::MarksForAll),
    ("loses-wakeups", Violation::LosesWakeups),
    ("ignores-the-limit", Violation::IgnoresTheLimit),
    ("joins-stuck-threads", Violation::JoinsStuckThreads),
    ("reserves-one-entry", Violation::ReservesOneEntry),
];

/// Serves each client in a thread of its own, with one violation.
struct Broken(&'static str, Violation);

/// What the threads share.
struct Shared<'a> {
    clients: AtomicUsize,
    queue: Mutex<VecDeque<Client<'a>>>,
    queued: Condvar,
    done: Waker,
}

impl WorkerClass for Broken {
    fn name(&self) -> &'static str {
        self.0
    }

    fn threads(&self, _: &Settings) -> usize {
        if self.1 == Violation::ReservesOneEntry { 1 } else { THREADS_MAX }
    }

    fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError> {
        let poll = Poll::new()?;
        // Threads that serve process signals too: the main thread watches for their result.
        for (fd, token) in [(ctx.lifecycle().wake_fd(), WAKE), (ctx.lifecycle().stop_fd(), STOP)] {
            poll.registry().register(&mut SourceFd(&fd.as_raw_fd()), token, Interest::READABLE)?;
        }
        let shared = Shared {
            clients: AtomicUsize::new(0),
            queue: Mutex::default(),
            queued: Condvar::new(),
            done: Waker::new(poll.registry(), CLIENT_DONE)?,
        };
        thread::scope(|scope| run(ctx, scope, self.1, poll, &shared))
    }
}

fn run<'scope, 'a: 'scope>(
    ctx: &'a WorkerContext<'a>,
    scope: &'scope Scope<'scope, '_>,
    violation: Violation,
    mut poll: Poll,
    shared: &'scope Shared<'a>,
) -> Result<(), WorkerError> {
    let (lifecycle, mut acceptor) = (ctx.lifecycle(), ctx.acceptor());
    let (mut events, mut watched) = (Events::with_capacity(8), vec![false; ctx.listeners().len()]);
    if violation == Violation::LosesWakeups {
        thread::Builder::new().spawn_scoped(scope, || serve_queue(ctx, shared))?;
    }
    lifecycle.poll_stop(); // from now on this class polls for a stop
    lifecycle.ready();
    let mut work = None;
    loop {
        if lifecycle.stop_request() == StopRequest::Immediate {
            match violation {
                Violation::JoinsStuckThreads => return Ok(()),
                _ => lifecycle.exit_now(),
            }
        }
        let clients = shared.clients.load(Ordering::Acquire);
        if violation == Violation::MarksForAll {
            drop(work.take());
            work = (clients > 0).then(|| lifecycle.begin_work("a client"));
        }
        let counted = if violation == Violation::IgnoresTheLimit { 0 } else { clients };
        let until = match acceptor.poll(counted) {
            Accept::Client(stream, address) => {
                shared.clients.fetch_add(1, Ordering::AcqRel);
                if violation == Violation::MarksForAll {
                    spawn(scope, shared, move || _ = answer(stream))?;
                    continue;
                }
                let client = ctx.new_client(stream, address, false);
                if violation == Violation::LosesWakeups {
                    shared.push(client);
                } else {
                    spawn(scope, shared, move || serve(ctx, client))?;
                }
                continue;
            }
            Accept::Pending { deadline } => deadline,
            // It waits for the clients, whose threads are told by the lifecycle.
            Accept::Finished if clients == 0 => {
                lifecycle.exit_now() // the thread of the queue has no other end
            }
            Accept::Finished => lifecycle.next_heartbeat(),
        };
        watch(ctx, &acceptor, &poll, &mut watched)?;
        let wait = until.map(|at| at.duration_since(lifecycle.now()));
        match poll.poll(&mut events, wait) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            result => result?,
        }
        for event in &events {
            match event.token() {
                WAKE => _ = lifecycle.poll_stop(),
                CLIENT_DONE | STOP => (),
                Token(listener) => acceptor.mark_readable(listener),
            }
        }
    }
}

/// Polls exactly the listeners from which clients may be accepted now.
fn watch(
    ctx: &WorkerContext<'_>,
    acceptor: &Acceptor<'_>,
    poll: &Poll,
    watched: &mut [bool],
) -> io::Result<()> {
    for (index, listener) in ctx.listeners().iter().enumerate() {
        let (registry, fd) = (poll.registry(), listener.as_raw_fd());
        match (watched[index], acceptor.is_interested(index)) {
            (false, true) => {
                registry.register(&mut SourceFd(&fd), Token(index), Interest::READABLE)?;
            }
            (true, false) => registry.deregister(&mut SourceFd(&fd))?,
            (true, true) | (false, false) => continue,
        }
        watched[index] = !watched[index];
    }
    Ok(())
}

/// Serves one client in a thread of its own.
fn spawn<'scope>(
    scope: &'scope Scope<'scope, '_>,
    shared: &'scope Shared<'_>,
    serve: impl FnOnce() + Send + 'scope,
) -> io::Result<()> {
    thread::Builder::new().spawn_scoped(scope, move || {
        serve();
        shared.on_client_done();
    })?;
    Ok(())
}

fn serve(ctx: &WorkerContext<'_>, mut client: Client<'_>) {
    let mut tracker = ctx.lifecycle().tracker();
    client.serve_with(ctx.lifecycle(), &mut Buffers::default(), &mut tracker);
}

impl<'a> Shared<'a> {
    fn push(&self, client: Client<'a>) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(client);
        self.queued.notify_one();
    }

    fn pop(&self) -> Option<Client<'a>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn on_client_done(&self) {
        self.clients.fetch_sub(1, Ordering::AcqRel);
        let _ = self.done.wake();
    }
}

/// Serves the queue, and does not look at it again before it sleeps.
fn serve_queue<'a>(ctx: &WorkerContext<'a>, shared: &Shared<'a>) {
    loop {
        let mut served = false;
        while let Some(client) = shared.pop() {
            serve(ctx, client);
            shared.on_client_done();
            served = true;
        }
        if served {
            thread::sleep(Duration::from_millis(15)); // a client that arrives now is not noticed
        }
        let queue = shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        drop(shared.queued.wait(queue));
    }
}

/// Reads one request, and does what its path names, as the app `demo` does.
fn answer(stream: Stream) -> io::Result<()> {
    let stream = TcpStream::from(OwnedFd::from(stream));
    stream.set_nonblocking(false)?;
    let mut lines = BufReader::new(&stream).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let path = request.split(' ').nth(1).unwrap_or_default();
    let (work, number) = path.split_once('=').unwrap_or((path, "0"));
    match work {
        "/hang" => thread::sleep(Duration::MAX),
        _ => thread::sleep(Duration::from_millis(number.parse().map_err(io::Error::other)?)),
    }
    let body = process::id().to_string();
    let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length:";
    write!(&stream, "{head} {}\r\n\r\n{body}", body.len())
}

fn main() -> ExitCode {
    let runtime = Runtime::new().app(Demo);
    let classes = VIOLATIONS.into_iter().map(|(name, violation)| Broken(name, violation));
    classes.fold(runtime, Runtime::class).main()
}
