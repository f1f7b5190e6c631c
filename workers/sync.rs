//! `sync`: one client at a time, from start to finish; or one job.

use ostler::worker::{Buffers, WorkerClass, WorkerContext, WorkerError};

/// One client at a time; a protocol that can say so, such as HTTP, closes after each answer. A
/// handler may block: the whole worker waits for it, and is replaced if that takes longer than
/// `timeout`. Of an app that is a job, it runs one.
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
        let (mut buffers, mut tracker) =
            (Buffers::default(), lifecycle.tracker(0).with_heartbeat());
        lifecycle.ready();
        while let Some(mut client) = acceptor.next_client()? {
            client.serve_with(lifecycle, &mut buffers, &mut tracker);
        }
        Ok(())
    }
}
