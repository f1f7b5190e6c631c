//! Listeners that a worker has shut down. They are shared, so shutdown(2) by one process, such as a
//! program that closes its server so, takes the address from all.

use slog::{error, warn};

use super::Pool;
use crate::os::process::Pid;

impl Pool<'_> {
    /// Has listeners that do not listen any more listen again, after the worker has exited that may
    /// have shut them down.
    pub(super) fn restore_listeners(&self, pid: Pid, slot: usize) {
        let mut restored = false;
        let backlog = self.settings().backlog;
        let (ended, open): (Vec<_>, Vec<_>) =
            self.generation.listeners.iter().partition(|it| it.was_shut_down());
        open.iter().for_each(|listener| listener.lift_restrictions());
        for listener in ended {
            let (address, pid) = (listener.name(), pid.as_raw());
            match listener.listen_again(backlog) {
                Ok(()) => {
                    restored = true;
                    warn!(self.log(), "listener was shut down, listening again";
                        "address" => address, "pid" => pid, "slot" => slot,
                        "error" => "a worker called shutdown or setsockopt on it, probably this one");
                }
                Err(error) => {
                    error!(self.log(), "listener was shut down, no client can connect";
                        "address" => address, "pid" => pid, "slot" => slot,
                        "error" => error.to_string());
                }
            }
        }
        if restored {
            self.processes.recheck_listeners();
        }
    }
}
