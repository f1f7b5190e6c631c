//! The worker class `solo`: how a worker serves its clients.

use ostler::worker::{Buffers, WorkerClass, WorkerContext, WorkerError};
use slog::debug;

/// Serves one client after another, each until its connection closes.
///
/// The runtime does the rest: fork, privileges, signals, the limit of a drain, exit codes, the
/// death of the master, and the replacement of a worker that crashes or hangs.
pub struct Solo;

impl WorkerClass for Solo {
    fn name(&self) -> &'static str {
        "solo"
    }

    fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError> {
        let lifecycle = ctx.lifecycle();
        let mut acceptor = ctx.acceptor();
        let mut buffers = Buffers::default();
        // The tracker of this thread. Each request that begins also sends the heartbeat.
        let mut tracker = lifecycle.tracker().with_heartbeat();
        let mut clients: u64 = 0;
        // Clients may connect from here on. A worker that does not call this within boot_timeout
        // is killed.
        lifecycle.ready();
        // Sleeps until a client connects, and sends the heartbeat meanwhile. Returns `None` when
        // the worker should exit and its queues are empty.
        while let Some(mut client) = acceptor.next_client()? {
            // During a drain, this finishes the current request and starts no other.
            client.serve_with(lifecycle, &mut buffers, &mut tracker);
            clients += 1;
        }
        debug!(ctx.log(), "draining"; "slot" => ctx.worker().slot, "clients" => clients);
        Ok(())
    }
}
