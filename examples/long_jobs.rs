//! A worker class without clients: jobs that take longer than `timeout`, and extend their deadline.
//!
//! ```text
//! cargo run --example long_jobs -- --timeout 1
//! ```
//!
//! A job extends its deadline as it makes progress. A job that makes none is found hung after
//! `timeout`: try it with `--env STANDSTILL=1`.

use std::env;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use ostler::Runtime;
use ostler::worker::{StopRequest, WorkerClass, WorkerContext, WorkerError};
use slog::info;

const PARTS: u32 = 10;
const PART: Duration = Duration::from_millis(300);

/// A step that takes longer than this is no progress.
const EXTENSION: Duration = Duration::from_secs(5);

struct Jobs;

impl WorkerClass for Jobs {
    fn name(&self) -> &'static str {
        "jobs"
    }

    fn needs_app(&self) -> bool {
        false
    }

    fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError> {
        let (lifecycle, stands_still) = (ctx.lifecycle(), env::var_os("STANDSTILL").is_some());
        lifecycle.ready();
        while lifecycle.poll_stop() == StopRequest::None {
            lifecycle.notify();
            let work = lifecycle.begin_work("rebuild");
            for _ in 0..PARTS {
                if !stands_still {
                    work.extend_deadline(EXTENSION);
                }
                thread::sleep(PART);
            }
            info!(ctx.log(), "job run finished"; "slot" => ctx.worker().slot);
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    Runtime::new().class(Jobs).default_class("jobs").main()
}
