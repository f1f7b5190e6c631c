//! Finds children that have exited, and reaps them: a bounded number in a turn. A kernel that refuses to
//! reap is reported once, and does not make the master spin.
//!
//! A worker can make children of its master (clone(2), `CLONE_PARENT`), faster than they are reaped.

use std::io;

use slog::{Logger, error};

use crate::os::process::{self, Exit, Pid};

/// How many children are reaped in one turn. The kernel returns the oldest ones first.
const REAPED_MAX: usize = 256;

/// Reaps the children of the master.
pub(super) struct Reaper {
    /// A child may have exited. To look is expensive: the kernel goes through all children.
    is_due: bool,
    /// How many more may be found in this turn.
    left: usize,
    reported_error: bool,
}

impl Reaper {
    /// Returns a reaper that looks in the first turn.
    pub(super) fn new() -> Self {
        Self { is_due: true, left: 0, reported_error: false }
    }

    /// Records a SIGCHLD, or that one may have been lost.
    pub(super) fn on_sigchld(&mut self) {
        self.is_due = true;
    }

    /// Begins a turn.
    pub(super) fn begin_turn(&mut self) {
        self.left = REAPED_MAX;
    }

    /// Whether this turn has left children to the next one, which must follow at once.
    pub(super) fn has_more(&self) -> bool {
        self.is_due
    }

    /// Returns a child that has exited. Until it is reaped, its pid cannot be reused.
    pub(super) fn next_exited(&mut self, log: &Logger) -> Option<(Pid, Exit)> {
        self.find(process::next_exited_child, log)
    }

    fn find(
        &mut self,
        look: impl FnOnce() -> io::Result<Option<(Pid, Exit)>>,
        log: &Logger,
    ) -> Option<(Pid, Exit)> {
        if !self.is_due || self.left == 0 {
            return None;
        }
        self.left -= 1;
        let found = look();
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

#[cfg(test)]
mod tests {
    use super::*;
    use slog::{Discard, o};

    #[test]
    fn endless_children_are_found_over_many_turns() {
        let (mut reaper, log) = (Reaper::new(), Logger::root(Discard, o!()));
        let child = (Pid::from_raw(7), Exit::Code(0));
        for _ in 0..3 {
            reaper.begin_turn();
            let mut found = 0;
            while reaper.find(|| Ok(Some(child)), &log).is_some() {
                found += 1;
            }
            assert_eq!((found, reaper.has_more()), (REAPED_MAX, true));
        }
        reaper.begin_turn();
        assert_eq!(reaper.find(|| Ok(None), &log), None);
        assert!(!reaper.has_more());
    }
}
