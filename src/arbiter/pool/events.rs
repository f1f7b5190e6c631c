//! What has happened to the worker processes of a pool: tells the supervisor, the log and the hooks.

use slog::info;

use super::Pool;
use super::exit_log;
use super::status_change::StatusChange;
use super::supervisor::{ExitReason, ExitReport, WorkerId};
use crate::arbiter::hook_runner::make_worker_ref;
use crate::duration::as_millis;
use crate::hooks::WorkerExit;
use crate::os::clock;
use crate::os::process::{Exit, Pid};

impl Pool<'_> {
    /// Learns from the scoreboard which workers are ready, drain, or request their replacement.
    pub(in crate::arbiter) fn poll_worker_status(&mut self) {
        let now = clock::now();
        let changes = self.processes.take_status_changes(now);
        self.on_status_changes(changes);
        self.poll_drain_modes(now);
    }

    fn on_status_changes(&mut self, changes: Vec<(WorkerId, StatusChange)>) {
        let now = clock::now();
        for (id, change) in changes {
            self.shards.on_workers_changed();
            match change {
                StatusChange::Ready => {
                    if let Some(uptime) = self.supervisor.on_ready(id, now) {
                        let (pid, slot) = self.processes.pid_and_slot(id);
                        info!(self.log(), "worker ready"; "pid" => pid.as_raw(), "slot" => slot,
                            "uptime_ms" => as_millis(uptime));
                        self.exits.on_ready(uptime);
                        let worker = self.worker_ref(id);
                        self.hook("worker_ready", |hooks| hooks.worker_ready(&worker));
                    }
                }
                StatusChange::ReplacementRequested => self.supervisor.on_replacement_requested(id),
                StatusChange::Draining => {
                    if self.supervisor.on_draining(id, now) {
                        self.log_draining(id, ExitReason::Requested);
                    }
                }
            }
        }
    }

    /// Handles the exit of one of its workers, which has been reaped.
    pub(in crate::arbiter) fn on_worker_exit(&mut self, pid: Pid, exit: Exit) {
        // It may have become ready since the last reading.
        let changes = self.processes.take_status_changes_of(pid);
        self.on_status_changes(changes);
        let Some(reaped) = self.processes.remove(pid, exit) else { return };
        self.health.on_worker_exit(reaped.id);
        self.shards.on_worker_exit(matches!(exit, Exit::Signal { .. }));
        let now = clock::now();
        let Some(report) = self.supervisor.on_exit(reaped.id, reaped.observation, now) else {
            return;
        };
        let is_uncommitted = self.supervisor.describe_generation(report.generation).is_uncommitted;
        if exit_log::is_boot_failure(report.reason, is_uncommitted) {
            if !reaped.note.is_empty() {
                self.failure_reason = format!("last worker exited with {exit}: {}", reaped.note);
            } else if self.failure_reason.is_empty() {
                self.failure_reason = format!("last worker exited with {exit}: no error reported");
            }
        }
        self.exits.on_exit((pid, exit), &report, (&reaped.note, &reaped.work), now);
        exit_log::log_exit(self.log(), pid, exit, &report, &reaped, is_uncommitted);
        let ExitReport { slot, generation, uptime, reason, .. } = report;
        let (code, signal) = match exit {
            Exit::Code(code) => (Some(code), None),
            Exit::Signal { .. } => (None, Some(exit.to_string())),
        };
        let worker = make_worker_ref(self.name(), pid, slot, generation);
        let (reason, units) = (reason.as_str(), reaped.work.counts.units);
        let worker_exit = WorkerExit { worker, reason, code, signal, uptime, units };
        self.hook("child_exit", |hooks| hooks.child_exit(&worker_exit));
        self.restore_listeners(pid, Some(slot));
    }
}
