//! Code of one's own that runs when something happens to the master or to a worker.

use std::error::Error;
use std::time::Duration;

/// How a hook ends. An error is logged, and changes nothing.
pub type HookResult = Result<(), Box<dyn Error + Send + Sync>>;

/// Which worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerRef {
    /// Its pool.
    pub pool: String,
    /// Its process.
    pub pid: i32,
    /// Its place in the pool, from 0.
    pub slot: usize,
    /// Its generation, from 1.
    pub generation: u32,
}

/// How a worker ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerExit {
    /// Which worker.
    pub worker: WorkerRef,
    /// Why, in the words of the log, such as `requested`, `recycled`, `hung` or `crashed`.
    pub reason: &'static str,
    /// Its exit code, if it ended by itself.
    pub code: Option<i32>,
    /// The signal that ended it, such as `SIGKILL`.
    pub signal: Option<String>,
    /// How long it lived.
    pub uptime: Duration,
    /// How many units of work it did.
    pub units: u64,
}

/// Runs in the master when something happens, but for [`post_fork`](Self::post_fork). Every method
/// does nothing unless it is written.
///
/// The master waits for a hook and looks after nobody meanwhile, so hooks must be quick: they may
/// not start threads, and should not wait for anything. One that fails or panics is logged, and
/// costs nothing else.
pub trait Hooks {
    /// The master has bound its addresses, and forks its first worker next.
    fn on_starting(&self) -> HookResult {
        Ok(())
    }

    /// All of the first workers are ready, in all pools.
    fn when_ready(&self) -> HookResult {
        Ok(())
    }

    /// A worker is about to be forked; its process has no number yet.
    fn pre_fork(&self, _pool: &str, _slot: usize, _generation: u32) -> HookResult {
        Ok(())
    }

    /// In the worker, before its app boots, with the worker's own user, folder and environment.
    fn post_fork(&self, _worker: &WorkerRef) -> HookResult {
        Ok(())
    }

    /// A worker can serve.
    fn worker_ready(&self, _worker: &WorkerRef) -> HookResult {
        Ok(())
    }

    /// A worker hangs and is about to be ended. `work` is what it was at, as far as that is known.
    fn worker_hung(&self, _worker: &WorkerRef, _work: Option<&str>) -> HookResult {
        Ok(())
    }

    /// A worker has ended.
    fn child_exit(&self, _exit: &WorkerExit) -> HookResult {
        Ok(())
    }

    /// A reload begins, of which this is the new generation.
    fn on_reload(&self, _generation: u32) -> HookResult {
        Ok(())
    }

    /// All workers have left, and the master is about to.
    fn on_exit(&self) -> HookResult {
        Ok(())
    }
}

/// No hooks.
pub(crate) struct NoHooks;

impl Hooks for NoHooks {}
