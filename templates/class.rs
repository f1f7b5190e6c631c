//! How it is served: a worker class of one's own.

use ostler::worker::{Buffers, WorkerClass, WorkerContext, WorkerError};
use slog::debug;

/// One client after another, each to its end.
///
/// The runtime does the rest around it: the fork, privileges, signals, the limit of a drain, exit
/// codes, the death of the master, and the replacement of a worker that dies or hangs.
pub struct Solo;

impl WorkerClass for Solo {
    fn name(&self) -> &'static str {
        "solo"
    }

    fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError> {
        let life = ctx.life();
        let mut acceptor = ctx.acceptor();
        let mut buffers = Buffers::default();
        // The one thread sits at desk 0. Each request that begins is a sign of life.
        let mut desk = life.desk(0).beating();
        let mut clients: u64 = 0;
        // From here on clients can come; without it the worker is given up after boot_timeout.
        life.ready();
        // Sleeps until somebody comes, and beats meanwhile. It ends when the worker is to leave
        // and nobody waits any more who would find no other worker.
        while let Some(mut client) = acceptor.next_client()? {
            // Heeds a request to leave, too: what is begun is finished, nothing new begins.
            client.serve_with(life, &mut buffers, &mut desk);
            clients += 1;
        }
        debug!(ctx.log(), "draining"; "slot" => ctx.place().slot, "clients" => clients);
        Ok(())
    }
}
