//! A job: several workers process a spool directory. No entry is lost, and each has one result,
//! although workers are killed or replaced meanwhile.
//!
//! ```text
//! mkdir -p spool/new && cp *.md spool/new/
//! cargo run --example spool_job -- --workers 3 spool dir=spool
//! ```
//!
//! A producer writes an entry elsewhere and renames it into `new/`. A job claims an entry by a
//! rename into a directory of its own, which succeeds for one claimer only. It writes the result
//! beside the entry, renames the result into `done/`, and removes the claim. A rename is atomic,
//! and to repeat it is harmless. So an entry whose worker was killed may be processed twice, but
//! has one result.
//!
//! A claimer holds a lock on its directory, which the kernel releases when it dies. The next
//! claimer that gets the lock puts the claims back. (A power failure would need fsync.)

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

/// An incomplete result, beside the claim.
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
                Err(ConfigError::for_option("dir", format!("{dir:?} has no folder new")))
            }
            _ => Err(ConfigError::new("spool has one option: give dir=FOLDER")),
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
        // The directory is locked before the rename, so that it is not taken for a dead claimer's.
        let (unborn, own) = (spool.join(format!(".{name}")), spool.join("claimed").join(name));
        fs::create_dir(&unborn)?;
        let lock = File::open(&unborn)?;
        lock.lock()?;
        fs::rename(&unborn, &own)?;
        Ok(Self { spool, own, _lock: lock })
    }

    /// Processes an entry, if there is one that no other worker claims.
    fn work(&self, ctx: &mut dyn JobContext) -> io::Result<bool> {
        for entry in fs::read_dir(self.spool.join("new"))? {
            let (waiting, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
            let (claim, result) = (self.own.join(&name), self.own.join(RESULT));
            match fs::rename(waiting, &claim) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // another worker claimed it
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
            let folder = claimer?.path();
            // Skips directories that are removed or locked: another worker recovers them, or their
            // owner lives.
            let Ok(lock) = File::open(&folder) else { continue };
            let (true, Ok(claims)) = (lock.try_lock().is_ok(), fs::read_dir(&folder)) else {
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
            fs::remove_dir(&folder)?;
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

/// The work itself, which takes some time.
fn transform(text: &[u8]) -> Vec<u8> {
    thread::sleep(Duration::from_millis(5));
    text.to_ascii_uppercase()
}

fn main() -> ExitCode {
    ostler::main(Spool)
}
