//! A worker class with its own event loop: it serves one client after another, and sleeps in a poll
//! that can watch other descriptors too.
//!
//! ```text
//! cargo run --example own_loop -- --workers 2
//! curl http://127.0.0.1:8000/info
//! ```

use std::io;
use std::os::fd::AsRawFd;
use std::process::ExitCode;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use ostler::Runtime;
use ostler::apps::Demo;
use ostler::worker::{Accept, Acceptor, WorkerClass, WorkerContext, WorkerError};

const WAKE: Token = Token(usize::MAX);

struct OwnLoop;

impl WorkerClass for OwnLoop {
    fn name(&self) -> &'static str {
        "patient"
    }

    fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError> {
        let (lifecycle, mut acceptor) = (ctx.lifecycle(), ctx.acceptor());
        let (mut poll, mut events) = (Poll::new()?, Events::with_capacity(8));
        let wake = lifecycle.wake_fd().as_raw_fd();
        poll.registry().register(&mut SourceFd(&wake), WAKE, Interest::READABLE)?;
        let mut watched = vec![false; ctx.listeners().len()];
        lifecycle.poll_stop(); // from now on this class polls for a stop
        lifecycle.ready();
        loop {
            let until = match acceptor.poll(0) {
                Accept::Client(stream, address) => {
                    ctx.new_client(stream, address, false).serve(ctx);
                    lifecycle.poll_stop(); // while clients keep coming, this loop does not sleep
                    continue;
                }
                Accept::Pending { deadline: until } => until,
                Accept::Finished => return Ok(()),
            };
            watch(ctx, &acceptor, &poll, &mut watched)?;
            let wait = until.map(|at| at.duration_since(lifecycle.now()));
            match poll.poll(&mut events, wait) {
                // EINTR; signals that concern the worker also make `wake_fd` readable.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                result => result?,
            }
            for event in &events {
                match event.token() {
                    WAKE => _ = lifecycle.poll_stop(),
                    Token(listener) => acceptor.mark_readable(listener),
                }
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

fn main() -> ExitCode {
    Runtime::new().app(Demo).class(OwnLoop).default_class("patient").main()
}
