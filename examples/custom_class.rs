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

    /// The main thread has seat 0, for work of its own.
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

/// Serves a batch. While the main thread waits for the others, they beat for it.
fn serve(ctx: &WorkerContext<'_>, batch: Vec<Client<'_>>) -> Result<(), WorkerError> {
    let size = batch.len();
    thread::scope(|scope| {
        for (mut client, thread_index) in batch.into_iter().zip(1..) {
            let serve = move || {
                let mut tracker = ctx.lifecycle().tracker(thread_index);
                client.serve_with(ctx.lifecycle(), &mut Buffers::default(), &mut tracker);
            };
            thread::Builder::new().spawn_scoped(scope, serve)?;
        }
        Ok::<(), io::Error>(())
    })?;
    // A unit of the class's own, beside those that the protocol marks: longer than `timeout` in it
    // would mean that the worker hangs, in this.
    let _work = ctx.lifecycle().begin_work("bookkeeping");
    debug!(ctx.log(), "batch served"; "clients" => size);
    Ok(())
}

fn main() -> ExitCode {
    Runtime::new().app(Demo).class(Batch).main()
}
