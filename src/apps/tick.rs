//! `tick`: a job that logs each run, for trying out jobs and workers.

use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use slog::info;

use crate::app::{App, BootError, ConfigError, Job, JobContext, Options, WorkerInfo};
use crate::job::{self, Schedule};

/// The app `tick`: each run writes a line to the log. A run is a unit of work. Runs are numbered from 1
/// in each worker, across its threads.
///
/// | option | meaning |
/// |---|---|
/// | `every=DUR` | the period of each thread's runs; the default is `1s` |
/// | `cron=EXPR` | each thread runs at these dates instead, such as `*/5 * * * * *` |
/// | `work_ms=N` | each run takes N milliseconds, and then writes a second line |
/// | `hang_on=N` | run number N sleeps forever |
/// | `panic_on=N` | run number N panics |
#[derive(Clone, Debug, Default)]
pub struct Tick {
    /// The number of runs that this worker has begun.
    runs: Arc<AtomicU64>,
}

const PERIOD: Duration = Duration::from_secs(1);

/// The parsed options.
struct TickOptions {
    schedule: Schedule,
    work: Duration,
    hang_on: Option<u64>,
    panic_on: Option<u64>,
}

impl TickOptions {
    fn read(options: &Options) -> Result<Self, ConfigError> {
        let known = ["every", "cron", "work_ms", "hang_on", "panic_on"];
        if let Some(unknown) = options.keys().find(|key| !known.contains(&key.as_str())) {
            let reason =
                format!("app \"tick\" does not have this option; available: {}", known.join(", "));
            return Err(ConfigError::for_option(unknown, reason));
        }
        let schedule = Schedule::from_options(options)?;
        Ok(Self {
            schedule: schedule.unwrap_or_else(|| Schedule::every(PERIOD)),
            work: Duration::from_millis(number(options, "work_ms")?.unwrap_or(0)),
            hang_on: number(options, "hang_on")?,
            panic_on: number(options, "panic_on")?,
        })
    }
}

fn number(options: &Options, option: &str) -> Result<Option<u64>, ConfigError> {
    let Some(text) = options.get(option) else { return Ok(None) };
    let number = text.parse().map(Some);
    number.map_err(|_| ConfigError::for_option(option, format!("{text:?} is not a whole number")))
}

impl App for Tick {
    fn name(&self) -> &str {
        "tick"
    }

    fn check(&self, options: &Options) -> Result<(), ConfigError> {
        TickOptions::read(options).map(|_| ())
    }

    fn is_job(&self) -> bool {
        true
    }

    fn job(&self, worker: &WorkerInfo, thread: usize) -> Result<Box<dyn Job>, BootError> {
        let TickOptions { schedule, work, hang_on, panic_on } = TickOptions::read(&worker.options)?;
        let pid = process::id();
        let slot = worker.slot;
        let runs = Arc::clone(&self.runs);
        Ok(Box::new(job::scheduled(schedule, move |ctx: &mut dyn JobContext| {
            let run = runs.fetch_add(1, Ordering::Relaxed) + 1;
            ctx.label(&format!("tick {run}"));
            info!(ctx.log(), "tick"; "pid" => pid, "slot" => slot, "thread_index" => thread, "run" => run);
            assert!(panic_on != Some(run), "requested by panic_on={run}");
            while hang_on == Some(run) {
                thread::sleep(Duration::from_secs(3600));
            }
            if !work.is_zero() {
                thread::sleep(work);
                info!(ctx.log(), "tick finished"; "pid" => pid, "slot" => slot, "thread_index" => thread,
                    "run" => run);
            }
        })))
    }
}
