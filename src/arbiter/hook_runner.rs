//! Runs the program's hooks. A hook that fails or panics is logged, and changes nothing.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use slog::{Logger, error};

use crate::hooks::{HookResult, Hooks, WorkerRef};
use crate::log::error_chain;
use crate::os::process::Pid;

/// Calls a hook, and logs its failure.
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

/// Returns what a hook is told of a worker.
pub(super) fn make_worker_ref(pool: &str, pid: Pid, slot: usize, generation: u32) -> WorkerRef {
    WorkerRef { pool: pool.to_owned(), pid: pid.as_raw(), slot, generation }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("(no message)")
}
