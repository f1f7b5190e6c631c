//! The drain modes. That of a pool is only reported: its workers serve as before. A worker in drain mode
//! accepts no clients, finishes those that it has, and stays.

use std::time::Duration;

use slog::info;

use super::Pool;
use super::supervisor::{DrainModeError, DrainProgress, WorkerId};
use crate::arbiter::operations::WorkerDrain;
use crate::time::MonotonicTime;

/// How often a worker in drain mode that has no clients, and still works on something, is looked at: no
/// event tells the master that it does not any more.
const WORK_CHECK_INTERVAL: Duration = Duration::from_millis(50);

impl Pool<'_> {
    /// Turns the drain mode of the pool on or off. Returns whether it was not so.
    pub(in crate::arbiter) fn set_drain_mode(&mut self, is_on: bool) -> bool {
        if self.is_in_drain_mode == is_on {
            return false;
        }
        self.is_in_drain_mode = is_on;
        if is_on {
            info!(self.log(), "drain mode started");
        } else {
            info!(self.log(), "drain mode ended");
        }
        true
    }

    /// Returns whether the pool is in drain mode.
    pub(in crate::arbiter) fn is_in_drain_mode(&self) -> bool {
        self.is_in_drain_mode
    }

    /// Turns the drain mode of the ready worker of a slot on or off.
    ///
    /// # Errors
    /// Why that cannot be, for the operator.
    pub(in crate::arbiter) fn set_worker_drain_mode(
        &mut self,
        slot: usize,
        is_on: bool,
        now: MonotonicTime,
    ) -> Result<WorkerDrain, String> {
        self.check_drainable()?;
        let supervisor = &mut self.supervisor;
        let set = match is_on {
            true => supervisor.begin_drain_mode(slot),
            false => supervisor.end_drain_mode(slot),
        };
        let (id, is_new) = set.map_err(|error| match error {
            DrainModeError::NotReady => format!("slot {slot} has no ready worker"),
            DrainModeError::LastServing if supervisor.ready_count() > 1 => {
                "the other workers of the pool that serve are being replaced or removed, or would be by a \
                 roll-back: try again later, or put the pool into drain mode"
                    .to_owned()
            }
            DrainModeError::LastServing => {
                "no other worker of the pool serves: put the pool into drain mode, or add a worker"
                    .to_owned()
            }
        })?;
        if is_new {
            self.processes.toggle_drain_mode(id);
            self.shards.on_workers_changed(); // its queues go to others, or come back
            self.scaler.on_drain_mode();
            let message =
                if is_on { "worker drain mode started" } else { "worker drain mode ended" };
            self.log_worker_drain_mode(id, message);
        }
        let pid = self.processes.pid_and_slot(id).0.as_raw();
        let pool = self.name().to_owned();
        let limit = self.settings().graceful_timeout;
        Ok(WorkerDrain::new(pool, slot, (id, pid), limit, now))
    }

    fn check_drainable(&self) -> Result<(), String> {
        let spec = &self.generation.spec;
        if spec.class.runs_command() {
            let class = spec.class.name();
            Err(format!("class {class} runs programs, which accept clients by themselves"))
        } else if self.generation.listeners.is_empty() {
            Err("the pool has no listeners, so its workers have no clients".to_owned())
        } else {
            Ok(())
        }
    }

    /// Learns from the scoreboard which workers in drain mode have no clients.
    pub(super) fn poll_drain_modes(&mut self, now: MonotonicTime) {
        self.drain_look_at = None;
        if self.supervisor.drain_mode_count() == 0 {
            return;
        }
        for (id, is_busy) in self.processes.without_clients() {
            if self.supervisor.drain_progress(id) != DrainProgress::Draining {
                continue;
            }
            if is_busy {
                self.drain_look_at = Some(now.saturating_add(WORK_CHECK_INTERVAL));
            } else if self.supervisor.on_drained(id) {
                self.log_worker_drain_mode(id, "worker drained");
            }
        }
    }

    fn log_worker_drain_mode(&self, id: WorkerId, message: &str) {
        let (pid, slot) = self.processes.pid_and_slot(id);
        info!(self.log(), "{}", message; "pid" => pid.as_raw(), "slot" => slot);
    }
}
