//! Listeners that a worker has spoiled. They are shared: shutdown(2) by one process, such as a program
//! that closes its server so, takes the address from all, and so does many an option.

use slog::{error, warn};

use super::Pool;
use crate::listen::Listener;
use crate::os::process::Pid;

impl Pool<'_> {
    /// Has listeners that do not listen any more listen again, and restores the options and the backlog
    /// of all, after a process has exited that may have spoiled them: a worker in `slot`, or another master.
    pub(in crate::arbiter) fn restore_listeners(&self, pid: Pid, slot: Option<usize>) {
        let mut restored = false;
        let backlog = self.settings().backlog;
        for listener in &self.generation.listeners {
            let was_shut_down = listener.was_shut_down();
            self.restore_options(listener, pid, slot);
            if !was_shut_down {
                listener.restore_backlog(backlog);
                continue;
            }
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

    fn restore_options(&self, listener: &Listener, pid: Pid, slot: Option<usize>) {
        let restored = listener.restore_options();
        let (address, pid) = (listener.name(), pid.as_raw());
        if !restored.names.is_empty() {
            let names = restored.names.join(", ");
            warn!(self.log(), "listener options restored";
                "address" => address, "pid" => pid, "slot" => slot,
                "error" => format!("a worker changed {names}, probably this one"));
        }
        if !restored.failures.is_empty() {
            let failures = restored.failures.join("; ");
            error!(self.log(), "listener options not restored, clients may be lost";
                "address" => address, "pid" => pid, "slot" => slot,
                "error" => format!("a worker changed them; restart: {failures}"));
        }
    }
}
