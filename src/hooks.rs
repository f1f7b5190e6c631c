//! Hooks: callbacks for events of the master and of its workers.

use std::error::Error;
use std::time::Duration;

/// The result of a hook. An error is logged, and has no other effect.
pub type HookResult = Result<(), Box<dyn Error + Send + Sync>>;

/// Identifies a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerRef {
    /// Its pool.
    pub pool: String,
    /// Its process number.
    pub pid: i32,
    /// Its slot in the pool, from 0.
    pub slot: usize,
    /// Its generation, from 1.
    pub generation: u32,
}

/// How a worker exited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerExit {
    /// The worker.
    pub worker: WorkerRef,
    /// The reason, as in the log: `requested`, `scaled_down`, `recycled`, `reload`, `hung`,
    /// `crashed`, `oom_killed` or `boot_failed`.
    pub reason: &'static str,
    /// Its exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it, such as `SIGKILL`.
    pub signal: Option<String>,
    /// How long it ran.
    pub uptime: Duration,
    /// How many units of work it completed.
    pub units: u64,
}

/// Callbacks that run in the master, except [`post_fork`](Self::post_fork). By default each does
/// nothing.
///
/// The master runs a hook in its loop and supervises no worker meanwhile. Keep hooks quick: start
/// no threads and wait for nothing. A hook's error or panic is logged, and has no other effect.
///
/// A worker closes the descriptors that a hook has opened in the master, as it does with all that are
/// not its own. To give workers a descriptor, open it in `post_fork`, or before
/// [`Runtime::run`](crate::Runtime::run) or [`Runtime::main`](crate::Runtime::main) with `FD_CLOEXEC`,
/// as the standard library does.
pub trait Hooks {
    /// Runs after the master has bound its addresses, before it forks the first worker.
    fn on_starting(&self) -> HookResult {
        Ok(())
    }

    /// Runs when all first workers of all pools are ready.
    fn when_ready(&self) -> HookResult {
        Ok(())
    }

    /// Runs before a worker is forked. Its process has no number yet. A descriptor that this opens is
    /// closed in the worker.
    fn pre_fork(&self, _pool: &str, _slot: usize, _generation: u32) -> HookResult {
        Ok(())
    }

    /// Runs in the worker before its app boots, with the worker's own user, directory and
    /// environment.
    fn post_fork(&self, _worker: &WorkerRef) -> HookResult {
        Ok(())
    }

    /// Runs when a worker is ready.
    fn worker_ready(&self, _worker: &WorkerRef) -> HookResult {
        Ok(())
    }

    /// Runs before the master ends a hung worker. `work` is the label of its overdue unit of work,
    /// if that is known.
    fn worker_hung(&self, _worker: &WorkerRef, _work: Option<&str>) -> HookResult {
        Ok(())
    }

    /// Runs after a worker has exited.
    fn child_exit(&self, _exit: &WorkerExit) -> HookResult {
        Ok(())
    }

    /// Runs when a reload begins, with the number of the new generation.
    fn on_reload(&self, _generation: u32) -> HookResult {
        Ok(())
    }

    /// Runs after all workers have exited, before the master exits.
    fn on_exit(&self) -> HookResult {
        Ok(())
    }
}

/// No hooks.
pub(crate) struct NoHooks;

impl Hooks for NoHooks {}
