//! A job: several workers process the files of a directory. No entry is lost or has two results, also if
//! workers are killed or replaced meanwhile.
//!
//! ```text
//! mkdir -p spool/new && cp *.md spool/new/
//! cargo run --example spool_job -- --workers 3 spool dir=spool
//! ```
//!
//! A producer writes an entry elsewhere and renames it into `new/`. A job claims an entry by a rename into
//! a directory of its own, which succeeds for one job only. It writes the result beside it, renames the
//! result into `done/`, and removes the claim. A rename is atomic and can be repeated: if a worker is
//! killed in between, an entry is processed twice, but has one result.
//!
//! A job holds a lock on its directory, which the kernel releases when the worker dies: the job that gets
//! the lock puts the claims back. (A power cut would take an fsync or two.)

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ostler::app::{App, BootError, ConfigError, Job, JobContext, NextRun, Options, WorkerInfo};
use slog::{info, warn};

/// How often an empty spool is read.
const PAUSE: Duration = Duration::from_millis(100);

/// The name of an incomplete result, beside the claim.
const RESULT: &str = ".result";

struct Spool;

impl App for Spool {
    fn name(&self) -> &str {
        "spool"
    }

    fn is_job(&self) -> bool {
        true
    }

    fn check(&self, options: &Options) -> Result<(), ConfigError> {
        match (options.get("dir"), options.len()) {
            (Some(dir), 1) if Path::new(dir).join("new").is_dir() => Ok(()),
            (Some(dir), 1) => {
                Err(ConfigError::for_option("dir", format!("{dir:?} has no directory new")))
            }
            _ => Err(ConfigError::new("spool has one option: give dir=DIRECTORY")),
        }
    }

    fn job(&self, worker: &WorkerInfo, thread: usize) -> Result<Box<dyn Job>, BootError> {
        let spool = PathBuf::from(worker.options.get("dir").ok_or("dir is missing")?);
        Ok(Box::new(Claimer::new(spool, thread)?))
    }
}

struct Claimer {
    spool: PathBuf,
    /// The directory of its claims.
    own: PathBuf,
    /// The lock on that directory, held for as long as this process lives.
    _lock: File,
}

impl Claimer {
    fn new(spool: PathBuf, thread: usize) -> Result<Self, BootError> {
        fs::create_dir_all(spool.join("claimed"))?;
        fs::create_dir_all(spool.join("done"))?;
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        let name = format!("{}-{thread}-{nanos}", process::id());
        // Renamed once it is locked, so that no other job takes it for that of a dead worker.
        let (unlocked, own) = (spool.join(format!(".{name}")), spool.join("claimed").join(name));
        fs::create_dir(&unlocked)?;
        let lock = File::open(&unlocked)?;
        lock.lock()?;
        fs::rename(&unlocked, &own)?;
        Ok(Self { spool, own, _lock: lock })
    }

    /// Processes one entry, if this job can claim one. Returns whether it did.
    fn work(&self, ctx: &mut dyn JobContext) -> io::Result<bool> {
        for entry in fs::read_dir(self.spool.join("new"))? {
            let (waiting, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
            let (claim, result) = (self.own.join(&name), self.own.join(RESULT));
            match fs::rename(waiting, &claim) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // another was faster
                claimed => claimed?,
            }
            ctx.label(&format!("spool {}", name.display()));
            fs::write(&result, transform(&fs::read(&claim)?))?;
            fs::rename(&result, self.spool.join("done").join(&name))?;
            fs::remove_file(&claim)?;
            info!(ctx.log(), "entry processed"; "pid" => process::id(), "entry" => %name.display());
            return Ok(true);
        }
        Ok(false)
    }

    /// Puts back the claims of dead workers.
    fn recover(&self) -> io::Result<()> {
        for claimer in fs::read_dir(self.spool.join("claimed"))? {
            let dir = claimer?.path();
            // A directory that is gone was another job's, and one that is locked has a living owner.
            let Ok(lock) = File::open(&dir) else { continue };
            let (true, Ok(claims)) = (lock.try_lock().is_ok(), fs::read_dir(&dir)) else {
                continue;
            };
            for claim in claims {
                let (claimed, name) = claim.map(|claim| (claim.path(), claim.file_name()))?;
                if name == RESULT {
                    fs::remove_file(claimed)?;
                } else {
                    fs::rename(claimed, self.spool.join("new").join(name))?;
                }
            }
            fs::remove_dir(&dir)?;
        }
        Ok(())
    }
}

impl Job for Claimer {
    fn run(&mut self, ctx: &mut dyn JobContext) -> NextRun {
        match self.work(ctx) {
            Ok(true) => return NextRun::Now,
            Ok(false) => (),
            Err(error) => warn!(ctx.log(), "failed to process entry"; "error" => %error),
        }
        if let Err(error) = self.recover() {
            warn!(ctx.log(), "failed to return claims"; "error" => %error);
        }
        NextRun::After(PAUSE)
    }
}

/// Does the work, which takes 5 ms.
fn transform(text: &[u8]) -> Vec<u8> {
    thread::sleep(Duration::from_millis(5));
    text.to_ascii_uppercase()
}

fn main() -> ExitCode {
    ostler::main(Spool)
}
