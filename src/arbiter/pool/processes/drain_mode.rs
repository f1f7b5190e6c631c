//! The drain modes of the worker processes: how a worker learns of its own, and how it answers.

use super::{ProcessTable, WorkerProcess};
use crate::arbiter::pool::supervisor::WorkerId;
use crate::os::process;

impl WorkerProcess {
    /// Begins or ends its drain mode. It reads that when it processes the signal.
    fn toggle_drain_mode(&mut self) {
        self.drain_mode = self.drain_mode.next();
        self.row.scoreboard().set_drain_mode(self.row.index(), self.drain_mode);
        process::send_sigurg(self.pid);
    }

    /// Returns whether it is in drain mode, and says that it has no clients.
    fn has_no_clients(&self) -> bool {
        self.drain_mode.is_on() && self.row.row().drained_for() == self.drain_mode
    }
}

impl ProcessTable<'_> {
    /// Begins or ends the drain mode of a worker.
    pub(in crate::arbiter::pool) fn toggle_drain_mode(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.toggle_drain_mode();
            self.wakeups.on_drain_mode();
        }
    }

    /// Returns the workers in drain mode that say they have no clients, each with whether it still works
    /// on something.
    pub(in crate::arbiter::pool) fn without_clients(&self) -> Vec<(WorkerId, bool)> {
        let without = self.workers.iter().filter(|(_, worker)| worker.has_no_clients());
        without.map(|(id, worker)| (*id, worker.row.row().is_busy())).collect()
    }
}
