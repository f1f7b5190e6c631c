//! A worker class of one's own, registered in code and chosen by name.
//!
//! ```text
//! cargo run --example custom_class -- --worker-class batch --workers 2
//! curl http://127.0.0.1:8000/info
//! ```
//!
//! `batch` accepts every client that waits, serves them side by side in one thread each, and then
//! accepts the next batch. This suits work that is cheapest for many clients at a time.

use std::io;
use std::process::ExitCode;
use std::thread;

use ostler::Runtime;
use ostler::apps::Demo;
use ostler::settings::Settings;
use ostler::worker::{Accept, Buffers, Client, WorkerClass, WorkerContext, WorkerError};
use slog::debug;

const BATCH_MAX: usize = 64;

struct Batch;

impl WorkerClass for Batch {
    fn name(&self) -> &'static str {
        "batch"
    }

    /// One for each client of a batch, and one for the main thread's own work.
    fn threads(&self, _: &Settings) -> usize {
        1 + BATCH_MAX
    }

    fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError> {
        let mut acceptor = ctx.acceptor();
        ctx.lifecycle().ready();
        while let Some(first) = acceptor.next_client()? {
            let mut batch = vec![first];
            while batch.len() < BATCH_MAX
                && let Accept::Client(stream, address) = acceptor.poll(batch.len())
            {
                batch.push(ctx.new_client(stream, address, false));
            }
            serve(ctx, batch)?;
        }
        Ok(())
    }
}

/// Serves a batch, in one thread for each client. They send the heartbeats meanwhile.
fn serve(ctx: &WorkerContext<'_>, batch: Vec<Client<'_>>) -> Result<(), WorkerError> {
    let size = batch.len();
    thread::scope(|scope| {
        for mut client in batch {
            let serve = move || {
                let mut tracker = ctx.lifecycle().tracker();
                client.serve_with(ctx.lifecycle(), &mut Buffers::default(), &mut tracker);
            };
            thread::Builder::new().spawn_scoped(scope, serve)?;
        }
        Ok::<(), io::Error>(())
    })?;
    // Work of the class itself, besides the units that the protocol marks. If it takes longer than
    // `timeout`, the worker counts as hung, and the log names this label.
    let _work = ctx.lifecycle().begin_work("bookkeeping");
    debug!(ctx.log(), "batch served"; "clients" => size);
    Ok(())
}

fn main() -> ExitCode {
    Runtime::new().app(Demo).class(Batch).main()
}
