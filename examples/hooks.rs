//! Hooks: a program that writes the events of its workers to a file.
//!
//! ```text
//! cargo run --example hooks -- --workers 2 &
//! tail -f hooks.txt &
//! pkill -KILL -f 'ostler: worker'
//! ```

use std::env;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::process::ExitCode;

use ostler::Runtime;
use ostler::apps::Demo;
use ostler::hooks::{HookResult, Hooks, WorkerExit, WorkerRef};

/// Writes a line to a file for each event.
struct HookLog {
    /// Workers have it too, since it is open before the runtime runs.
    file: File,
}

impl HookLog {
    fn write(&self, line: &str) -> HookResult {
        (&self.file).write_all(format!("{line}\n").as_bytes())?;
        Ok(())
    }
}

impl Hooks for HookLog {
    fn on_starting(&self) -> HookResult {
        self.write("starting")
    }

    fn when_ready(&self) -> HookResult {
        self.write("ready")
    }

    fn pre_fork(&self, _pool: &str, slot: usize, generation: u32) -> HookResult {
        self.write(&format!("fork {slot} of generation {generation}"))
    }

    fn post_fork(&self, worker: &WorkerRef) -> HookResult {
        self.write(&format!("forked {}", worker.pid))
    }

    fn worker_ready(&self, worker: &WorkerRef) -> HookResult {
        self.write(&format!("ready {}", worker.pid))
    }

    fn worker_hung(&self, worker: &WorkerRef, work: Option<&str>) -> HookResult {
        self.write(&format!("hung {} in {}", worker.pid, work.unwrap_or("nothing that is known")))
    }

    fn child_exit(&self, end: &WorkerExit) -> HookResult {
        let how = end.signal.clone().unwrap_or_else(|| format!("code {:?}", end.code));
        self.write(&format!("end {}: {}, {how}, {} units", end.worker.pid, end.reason, end.units))
    }

    fn on_reload(&self, generation: u32) -> HookResult {
        self.write(&format!("reload to generation {generation}"))?;
        Err("this one fails, which costs nothing".into())
    }

    fn on_exit(&self) -> HookResult {
        self.write("exit")?;
        panic!("this one panics, which costs nothing");
    }
}

fn main() -> io::Result<ExitCode> {
    let path = env::var_os("DIARY").unwrap_or_else(|| "hooks.txt".into());
    let file = OpenOptions::new().append(true).create(true).open(path)?;
    Ok(Runtime::new().app(Demo).hooks(HookLog { file }).main())
}
