//! `uring`: one event loop for very many clients, in which the kernel receives and sends.

mod client_entry;
mod coalescing;
mod event_loop;
mod trial;

use ostler::app::ConfigError;
use ostler::worker::{Credentials, WorkerClass, WorkerContext, WorkerError, check_ring};

use event_loop::EventLoop;

/// Runs one thread and one ring of io_uring(7) per worker. As with `mio`, a handler that blocks stalls
/// all clients of its worker. It needs Linux 6.1.
pub struct UringClass;

impl WorkerClass for UringClass {
    fn name(&self) -> &'static str {
        "uring"
    }

    /// Tries io_uring in the master, so that its absence is an error at start.
    fn check_credentials(&self, credentials: &Credentials) -> Result<(), ConfigError> {
        check_ring(credentials)
    }

    fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError> {
        let mut event_loop = EventLoop::new(ctx)?;
        ctx.lifecycle().ready();
        event_loop.run()
    }
}
