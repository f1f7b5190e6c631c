//! Running hooks: whatever they do, the master goes on.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use slog::{Logger, error};

use super::Arbiter;
use super::pool::Pool;
use super::pool::supervisor::WorkerId;
use crate::hooks::{HookResult, Hooks, WorkerRef};
use crate::log::error_chain;
use crate::os::process::Pid;

impl Arbiter<'_> {
    /// What happens to the whole.
    pub(super) fn hook(&self, name: &str, call: impl FnOnce(&dyn Hooks) -> HookResult) {
        run_hook(name, self.log(), self.hooks, call);
    }
}

impl Pool<'_> {
    /// What happens to a worker.
    pub(super) fn hook(&self, name: &str, call: impl FnOnce(&dyn Hooks) -> HookResult) {
        run_hook(name, self.log(), self.hooks, call);
    }

    /// What hooks are told of a worker that lives.
    pub(super) fn worker_ref(&self, id: WorkerId) -> WorkerRef {
        let (pid, slot) = self.processes.pid_and_slot(id);
        make_worker_ref(self.name(), pid, slot, self.processes.generation(id).unwrap_or(0))
    }
}

pub(super) fn make_worker_ref(pool: &str, pid: Pid, slot: usize, generation: u32) -> WorkerRef {
    WorkerRef { pool: pool.to_owned(), pid: pid.as_raw(), slot, generation }
}

/// Calls a hook, and says so if it fails.
pub(super) fn run_hook(
    name: &str,
    log: &Logger,
    hooks: &dyn Hooks,
    call: impl FnOnce(&dyn Hooks) -> HookResult,
) {
    let failure = match catch_unwind(AssertUnwindSafe(|| call(hooks))) {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error_chain(error.as_ref()),
        Err(panic) => format!("hook panicked: {}", panic_message(panic.as_ref())),
    };
    error!(log, "hook failed"; "hook" => name, "error" => failure);
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("(no message)")
}
