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

    /// Returns whether it is in drain mode, and says that it has no clients. A worker whose class has clients
    /// that the acceptor does not know of works for them.
    fn is_drained(&self) -> bool {
        let row = self.row.row();
        self.drain_mode.is_on() && row.drained_for() == self.drain_mode && !row.is_busy()
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

    /// Returns the workers in drain mode that say they have no clients.
    pub(in crate::arbiter::pool) fn drained(&self) -> Vec<WorkerId> {
        self.workers.iter().filter(|(_, worker)| worker.is_drained()).map(|(id, _)| *id).collect()
    }
}
