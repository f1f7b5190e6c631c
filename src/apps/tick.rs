//! `tick`: a job that says that it lives, to try jobs and workers with.

use std::process;
use std::thread;
use std::time::Duration;

use slog::info;

use crate::app::{App, BootError, Job, JobContext, Options, Place, Refusal};
use crate::job::{self, Schedule};

/// The app `tick`: each job writes a line to the log, again and again. One run is one unit of work.
///
/// | option | meaning |
/// |---|---|
/// | `every=DUR` | so much from run to run; the default is `1s` |
/// | `cron=EXPR` | runs at these dates instead, such as `*/5 * * * * *` |
/// | `work_ms=N` | each run takes so long, and then writes a second line |
/// | `panic_on=N` | the run of this number panics |
#[derive(Clone, Copy, Debug, Default)]
pub struct Tick;

const PERIOD: Duration = Duration::from_secs(1);

/// What the options say.
struct Wish {
    schedule: Schedule,
    work: Duration,
    panic_on: Option<u64>,
}

impl Wish {
    fn read(options: &Options) -> Result<Self, Refusal> {
        let known = ["every", "cron", "work_ms", "panic_on"];
        if let Some(odd) = options.keys().find(|key| !known.contains(&key.as_str())) {
            let why = format!("app \"tick\" has no such option; it has {}", known.join(", "));
            return Err(Refusal::of_option(odd, why));
        }
        let schedule = Schedule::from_options(options)?;
        Ok(Self {
            schedule: schedule.unwrap_or_else(|| Schedule::every(PERIOD)),
            work: Duration::from_millis(number(options, "work_ms")?.unwrap_or(0)),
            panic_on: number(options, "panic_on")?,
        })
    }
}

fn number(options: &Options, option: &str) -> Result<Option<u64>, Refusal> {
    let Some(text) = options.get(option) else { return Ok(None) };
    let number = text.parse().map(Some);
    number.map_err(|_| Refusal::of_option(option, format!("{text:?} is not a whole number")))
}

impl App for Tick {
    fn name(&self) -> &str {
        "tick"
    }

    fn check(&self, options: &Options) -> Result<(), Refusal> {
        Wish::read(options).map(|_| ())
    }

    fn is_job(&self) -> bool {
        true
    }

    fn job(&self, place: &Place, thread: usize) -> Result<Box<dyn Job>, BootError> {
        let Wish { schedule, work, panic_on } = Wish::read(&place.options)?;
        let (pid, slot, mut run) = (process::id(), place.slot, 0);
        Ok(Box::new(job::scheduled(schedule, move |ctx: &mut dyn JobContext| {
            run += 1;
            ctx.label(&format!("tick {run}"));
            info!(ctx.log(), "tick"; "pid" => pid, "slot" => slot, "thread" => thread, "run" => run);
            assert!(panic_on != Some(run), "panic_on={run} was asked for");
            if !work.is_zero() {
                thread::sleep(work);
                info!(ctx.log(), "tick worked"; "pid" => pid, "slot" => slot, "thread" => thread,
                    "run" => run);
            }
        })))
    }
}
