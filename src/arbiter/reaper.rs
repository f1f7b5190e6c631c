//! Finds children that have exited, and reaps them. A kernel that refuses to reap is reported once,
//! and does not make the master spin.

use std::io;

use slog::{Logger, error};

use crate::os::process::{self, Exit, Pid};

/// Reaps the children of the master.
pub(super) struct Reaper {
    /// A child may have exited. To look is expensive: the kernel goes through all children.
    is_due: bool,
    reported_error: bool,
}

impl Reaper {
    /// Returns a reaper that looks in the first turn.
    pub(super) fn new() -> Self {
        Self { is_due: true, reported_error: false }
    }

    /// Records a SIGCHLD, or that one may have been lost.
    pub(super) fn on_sigchld(&mut self) {
        self.is_due = true;
    }

    /// Returns a child that has exited. Until it is reaped, its pid cannot be reused.
    pub(super) fn next_exited(&mut self, log: &Logger) -> Option<(Pid, Exit)> {
        if !self.is_due {
            return None;
        }
        let found = process::next_exited_child();
        self.is_due = matches!(found, Ok(Some(_)));
        found.inspect_err(|error| self.report(error, log)).ok().flatten()
    }

    /// Reaps this child. If that fails, no other one is found before the next SIGCHLD.
    pub(super) fn reap(&mut self, child: Pid, log: &Logger) {
        if let Err(error) = process::reap(child) {
            self.is_due = false;
            self.report(&error, log);
        }
    }

    fn report(&mut self, error: &io::Error, log: &Logger) {
        if !std::mem::replace(&mut self.reported_error, true) {
            error!(log, "failed to reap children"; "error" => error.to_string());
        }
    }
}
