//! What the control interface shows of a pool: its workers, its queues, and what has been counted.

use std::os::fd::AsFd;

use super::Pool;
use crate::arbiter::readiness::PoolReadiness;
use crate::arbiter::snapshot::{
    ListenerSnapshot, PoolSnapshot, PoolTotals, ProcessUsage, UnitSnapshot, WorkerSnapshot,
};
use crate::listen;
use crate::os::{listening, network_stats};
use crate::scoreboard::{COUNT_MAX, WorkTotals};
use crate::time::MonotonicTime;

impl Pool<'_> {
    /// Returns what decides whether it is ready, without a look at any worker's memory.
    pub(in crate::arbiter) fn readiness(&self) -> PoolReadiness<'_> {
        PoolReadiness {
            name: &self.generation.spec.name,
            has_ready: self.supervisor.ready_workers().next().is_some(),
            is_suspended: self.supervisor.is_suspended(),
            is_standby: self.supervisor.is_standby(),
            is_in_drain_mode: self.is_in_drain_mode,
            is_stopping: self.is_stopping(),
        }
    }

    fn is_stopping(&self) -> bool {
        self.supervisor.stopping().is_some() || self.is_retired
    }

    /// Returns what is shown of it now.
    pub(in crate::arbiter) fn snapshot(&self, now: MonotonicTime) -> PoolSnapshot {
        let spec = &self.generation.spec;
        let mut work = WorkTotals::default();
        let workers: Vec<_> = self.worker_snapshots(now, &mut work).collect();
        let waiting = self.supervisor.waiting_slots(now);
        PoolSnapshot {
            name: spec.name.clone(),
            class: spec.class.name().to_owned(),
            app: spec.app.name().to_owned(),
            generation: self.supervisor.generation(),
            timeout: spec.settings.timeout,
            has_program: spec.class.runs_command(),
            target: self.supervisor.target(),
            ready: self.supervisor.ready_count(),
            workers_range: self.workers_range(),
            scaling: self.scaler.snapshot(now),
            is_reloading: self.supervisor.is_reloading(),
            is_in_drain_mode: self.is_in_drain_mode,
            is_suspended: self.supervisor.is_suspended() && !self.supervisor.is_standby(),
            is_standby: self.supervisor.is_standby(),
            is_stopping: self.is_stopping(),
            totals: self.exits.totals(work),
            earlier_totals: self.exits.earlier().clone(),
            workers,
            waiting_slots: waiting.map(|(slot, until)| (slot, until.duration_since(now))).collect(),
            listeners: self.listener_snapshots(),
            last_exits: self.exits.last_exits(now),
        }
    }

    /// Returns what has been counted of it, once its workers have exited.
    pub(in crate::arbiter) fn final_totals(&self) -> PoolTotals {
        self.exits.totals(WorkTotals::default())
    }

    /// Adds what the workers of another master had done.
    pub(in crate::arbiter) fn add_earlier(&mut self, earlier: &PoolTotals) {
        self.exits.add_earlier(earlier);
    }

    /// Returns what is shown of each worker, and adds to `work` what they have counted.
    fn worker_snapshots(
        &self,
        now: MonotonicTime,
        work: &mut WorkTotals,
    ) -> impl Iterator<Item = WorkerSnapshot> {
        self.supervisor.worker_states().filter_map(move |(id, slot, state, started)| {
            let worker = self.processes.worker(id)?;
            let row = worker.row.row();
            let counts = row.counts(now);
            work.counts.add(&counts);
            row.add_durations_to(&mut work.durations);
            let in_flight = row.units_in_progress(now).map(|unit| UnitSnapshot {
                thread: unit.thread_index,
                label: unit.label,
                age: now.duration_since(unit.started_at),
            });
            Some(WorkerSnapshot {
                pid: worker.pid.as_raw(),
                slot,
                generation: worker.generation,
                state,
                uptime: now.duration_since(started),
                threads: row.thread_count(),
                counts,
                clients: row.clients().min(COUNT_MAX),
                heartbeat_age: worker
                    .heartbeat
                    .last_beat()
                    .ok()
                    .map(|beat| now.duration_since(beat)),
                in_flight: in_flight.collect(),
                has_program: self.processes.has_program(id),
                usage: ProcessUsage::default(),
            })
        })
    }

    fn listener_snapshots(&self) -> Vec<ListenerSnapshot> {
        let listeners = self.generation.listeners.iter().map(AsRef::as_ref);
        let length = |name: &str| {
            let queues = self.generation.listeners.iter().filter(|it| it.name() == name);
            queues.map(|it| listening::accept_queue_length(it.as_fd()).ok()).sum::<Option<u32>>()
        };
        let shown = listen::one_per_address(listeners).into_iter().map(|listener| {
            let address = listener.name().to_owned();
            let queue_length = length(&address);
            // A reuse_port socket is not a unix one, so this is the only one at its address.
            let unix_inode = match queue_length {
                None => network_stats::inode(listener),
                Some(_) => None,
            };
            ListenerSnapshot { address, queue_length, unix_inode }
        });
        shown.collect()
    }
}
