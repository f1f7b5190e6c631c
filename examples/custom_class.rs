//! A worker class of one's own, registered in code and chosen by name.
//!
//! ```text
//! cargo run --example custom_class -- --worker-class batch --workers 2
//! curl http://127.0.0.1:8000/info
//! ```
//!
//! `batch` lets in everybody who waits, serves them side by side, a thread each, and then goes for
//! the next ones: a shape for work that is cheapest when it is done for many at a time.

use std::io;
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use ostler::Runtime;
use ostler::apps::Demo;
use ostler::settings::Settings;
use ostler::worker::{Buffers, Client, Stop, WorkerClass, WorkerContext, WorkerError};
use slog::debug;

const BATCH_MAX: usize = 64;
const WAKE: Token = Token(BATCH_MAX);

struct Batch;

impl WorkerClass for Batch {
    fn name(&self) -> &'static str {
        "batch"
    }

    /// The main thread has seat 0, for work of its own.
    fn seats(&self, _: &Settings) -> usize {
        1 + BATCH_MAX
    }

    fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError> {
        let (life, mut poll) = (ctx.life(), Poll::new()?);
        let wake = life.wake_fd().as_raw_fd();
        poll.registry().register(&mut SourceFd(&wake), WAKE, Interest::READABLE)?;
        for (token, listener) in ctx.listeners().iter().enumerate() {
            listener.watch(&poll, token)?;
        }
        let mut events = Events::with_capacity(8);
        life.ready();
        loop {
            life.notify();
            let stop = life.stop();
            let batch = if stop == Stop::Now { Vec::new() } else { gather(ctx, stop) };
            if !batch.is_empty() {
                serve(ctx, batch)?;
            } else if stop != Stop::None && ctx.expects_until().is_none() {
                return Ok(());
            } else if let Err(error) = poll.poll(&mut events, patience(ctx))
                && error.kind() != io::ErrorKind::Interrupted
            {
                return Err(error.into());
            }
        }
    }
}

/// How long it may sleep: until the next beat, or until nobody can come any more.
fn patience(ctx: &WorkerContext<'_>) -> Option<Duration> {
    let expectation = ctx.expects_until().map(|until| until.since(ctx.life().now()));
    [expectation, ctx.life().pulse()].into_iter().flatten().min()
}

/// Everybody who waits, up to a limit; while draining, only where nobody serves after this worker.
fn gather<'a>(ctx: &WorkerContext<'a>, stop: Stop) -> Vec<Client<'a>> {
    let open = ctx.listeners().iter().filter(|door| stop == Stop::None || ctx.must_empty(door));
    let newcomers = open.flat_map(|listener| {
        // Out of descriptors: those who are in are served first, and the others go on waiting.
        std::iter::from_fn(|| listener.accept().inspect_err(|e| ctx.warn_of_pause(e)).ok()?)
    });
    newcomers.take(BATCH_MAX).map(|(stream, from)| ctx.open(stream, from, false)).collect()
}

/// Serves a batch. While the main thread waits for the others, they beat for it.
fn serve(ctx: &WorkerContext<'_>, batch: Vec<Client<'_>>) -> Result<(), WorkerError> {
    let size = batch.len();
    thread::scope(|scope| {
        for (mut client, seat) in batch.into_iter().zip(1..) {
            let serve = move || {
                let mut desk = ctx.life().desk(seat);
                client.serve_with(ctx.life(), &mut Buffers::default(), &mut desk);
            };
            thread::Builder::new().spawn_scoped(scope, serve)?;
        }
        Ok::<(), io::Error>(())
    })?;
    // A unit of the class's own, beside those that the protocol marks: longer than `timeout` in it
    // would mean that the worker hangs, in this.
    let _work = ctx.life().begin("bookkeeping");
    debug!(ctx.log(), "batch served"; "clients" => size);
    Ok(())
}

fn main() -> ExitCode {
    Runtime::new().app(Demo).class(Batch).main()
}
