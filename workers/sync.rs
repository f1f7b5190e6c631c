//! `sync`: serves one client at a time, or runs one job.

use ostler::worker::{Buffers, WorkerClass, WorkerContext, WorkerError};

/// Serves one client at a time. A protocol that can announce it, such as HTTP, closes the connection
/// after each answer. A handler may block its worker, which is replaced if that takes longer than
/// `timeout`. If the app is a job, each worker runs one.
pub struct SyncClass;

impl WorkerClass for SyncClass {
    fn name(&self) -> &'static str {
        "sync"
    }

    fn runs_jobs(&self) -> bool {
        true
    }

    fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError> {
        if let Some(job) = ctx.take_jobs().pop() {
            ctx.lifecycle().ready();
            return job.run_alone();
        }
        let (lifecycle, mut acceptor) = (ctx.lifecycle(), ctx.acceptor());
        let (mut buffers, mut tracker) = (Buffers::default(), lifecycle.tracker().with_heartbeat());
        lifecycle.ready();
        while let Some(client) = acceptor.next_client()? {
            acceptor.serve(client, &mut buffers, &mut tracker);
        }
        Ok(())
    }
}
