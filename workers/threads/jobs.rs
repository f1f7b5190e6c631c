//! A pool that runs one job per thread, while the main thread sends heartbeats and polls for a stop.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;

use ::mio::unix::SourceFd;
use ::mio::{Events, Interest, Poll, Token};
use crossbeam_channel::bounded;
use ostler::worker::{StopRequest, ThreadJob, WorkerContext, WorkerError};
use slog::error;

const WAKE: Token = Token(0);
/// All threads have ended.
const END: Token = Token(1);

/// Runs each job in a thread of its own, until the worker must stop and the last run has ended.
pub(super) fn run(ctx: &WorkerContext<'_>, jobs: Vec<ThreadJob<'_>>) -> Result<(), WorkerError> {
    let mut poll = Poll::new()?;
    // The last thread that ends closes the pipe.
    let (end, alive) = io::pipe()?;
    for (fd, token) in [(ctx.lifecycle().wake_fd().as_raw_fd(), WAKE), (end.as_raw_fd(), END)] {
        poll.registry().register(&mut SourceFd(&fd), token, Interest::READABLE)?;
    }
    thread::scope(|scope| {
        // No job begins before all threads exist: if one cannot be created, the others end.
        let (start, started) = bounded::<()>(jobs.len());
        let (alive, mut threads) = (Arc::new(alive), Vec::new());
        for (index, job) in jobs.into_iter().enumerate() {
            let (alive, started) = (Arc::clone(&alive), started.clone());
            let work = move || {
                let _alive = alive;
                started.recv().map_or(Ok(()), |()| job.run_in_pool())
            };
            let thread = thread::Builder::new().name(format!("ostler-{index}"));
            threads.push(thread.spawn_scoped(scope, work)?);
        }
        drop(alive);
        threads.iter().try_for_each(|_| start.send(()))?;
        ctx.lifecycle().ready();
        if let Err(error) = watch(ctx, &mut poll) {
            error!(ctx.log(), "failed to monitor jobs"; "error" => %error);
            ctx.lifecycle().exit_now(); // no other thread would send their heartbeats
        }
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err("job thread panicked between two runs".into()))
        })
    })
}

/// Sends heartbeats and polls for a stop, until the last thread has ended.
fn watch(ctx: &WorkerContext<'_>, poll: &mut Poll) -> io::Result<()> {
    let mut events = Events::with_capacity(2);
    loop {
        ctx.lifecycle().notify();
        if ctx.lifecycle().poll_stop() == StopRequest::Immediate {
            ctx.lifecycle().exit_now(); // without waiting for runs that may be stuck
        }
        match poll.poll(&mut events, ctx.lifecycle().heartbeat_interval()) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            Err(_) => (),
            Ok(()) if events.iter().any(|event| event.token() == END) => return Ok(()),
            Ok(()) => (),
        }
    }
}
