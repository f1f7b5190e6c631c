//! A job that runs in one place at a time: a lock per slot and thread, held until the process exits.
//! While a worker is replaced, its successor waits for the lock.
//!
//! ```text
//! mkdir -p lease && LEASE=lease cargo run --example leased_job -- --workers 2
//! ```
//!
//! Each run appends a line when it begins and one when it ends.

use std::env;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::thread;
use std::time::Duration;

use ostler::job::{self, JobContext, NextRun};
use slog::{info, warn};

/// How often a worker tries the lock that its predecessor still holds.
const LEASE_RETRY: Duration = Duration::from_millis(50);

fn main() -> ExitCode {
    ostler::main(job::app("leased", |worker, thread| {
        let dir = PathBuf::from(env::var_os("LEASE").ok_or("LEASE must name a directory")?);
        let name = format!("{}-{thread}", worker.slot);
        let lease = File::create(dir.join(format!("{name}.lock")))?;
        Ok(move |ctx: &mut dyn JobContext| {
            match lease.try_lock() {
                Ok(()) => (), // to take a lock that this process has changes nothing
                Err(TryLockError::WouldBlock) => return NextRun::After(LEASE_RETRY),
                Err(TryLockError::Error(error)) => {
                    warn!(ctx.log(), "failed to lock"; "error" => %error);
                    return NextRun::After(LEASE_RETRY * 20);
                }
            }
            if let Err(error) = run(&dir.join(&name)) {
                warn!(ctx.log(), "run failed"; "error" => %error);
            }
            info!(ctx.log(), "run finished"; "name" => &name, "pid" => process::id());
            NextRun::After(Duration::from_millis(10))
        })
    }))
}

/// The work itself.
fn run(journal: &Path) -> io::Result<()> {
    let mut journal = OpenOptions::new().create(true).append(true).open(journal)?;
    writeln!(journal, "begin {}", process::id())?;
    thread::sleep(Duration::from_millis(20));
    writeln!(journal, "end {}", process::id())
}
