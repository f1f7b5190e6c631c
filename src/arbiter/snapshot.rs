//! What the control interface shows of the master at one instant. Pure: plain data, and its JSON.

use std::time::Duration;

use serde_json::{Value, json};

use crate::duration::as_millis;

/// The master and its pools.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    pub(super) pid: i32,
    pub(super) proc_name: String,
    pub(super) uptime: Duration,
    pub(super) phase: MasterPhase,
    pub(super) generation: u32,
    /// The other master, during an upgrade.
    pub(super) peer_pid: Option<i32>,
    pub(super) pools: Vec<PoolSnapshot>,
}

/// What the master is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum MasterPhase {
    /// Its first workers are not all ready.
    #[default]
    Starting,
    Running,
    Reloading,
    Stopping,
}

/// One pool.
#[derive(Clone, Debug, Default)]
// Fields: one for each thing that is shown.
pub(super) struct PoolSnapshot {
    pub(super) name: String,
    pub(super) class: String,
    pub(super) app: String,
    pub(super) generation: u32,
    /// `timeout`; zero means none.
    pub(super) timeout: Duration,
    /// How many workers it should have.
    pub(super) target: usize,
    /// How many are ready and do not drain.
    pub(super) ready: usize,
    pub(super) is_reloading: bool,
    pub(super) is_suspended: bool,
    pub(super) is_stopping: bool,
    pub(super) workers: Vec<WorkerSnapshot>,
    /// The slots that wait before their next worker is started.
    pub(super) waiting_slots: Vec<(usize, Duration)>,
    pub(super) listeners: Vec<ListenerSnapshot>,
    pub(super) totals: PoolTotals,
    pub(super) last_exits: Vec<ExitSnapshot>,
}

/// What has been counted since the master started.
#[derive(Clone, Debug, Default)]
pub(super) struct PoolTotals {
    /// Units of work that are done, of workers past and present.
    pub(super) units: u64,
    pub(super) workers_started: u64,
    /// A reason and how many workers have exited for it.
    pub(super) exits: Vec<(&'static str, u64)>,
}

/// One worker process.
#[derive(Clone, Debug, Default)]
pub(super) struct WorkerSnapshot {
    pub(super) pid: i32,
    pub(super) slot: usize,
    pub(super) generation: u32,
    pub(super) state: &'static str,
    pub(super) uptime: Duration,
    pub(super) units: u64,
    pub(super) clients: u64,
    /// The age of its last heartbeat; `None` if it cannot be read.
    pub(super) heartbeat_age: Option<Duration>,
    pub(super) in_flight: Vec<UnitSnapshot>,
}

/// A unit of work in progress.
#[derive(Clone, Debug, Default)]
pub(super) struct UnitSnapshot {
    /// The thread's index in its worker.
    pub(super) thread: usize,
    pub(super) label: String,
    pub(super) age: Duration,
}

/// One listening address.
#[derive(Clone, Debug, Default)]
pub(super) struct ListenerSnapshot {
    pub(super) address: String,
    /// How many clients wait in the kernel's queue; `None` if the kernel does not say.
    pub(super) queue_length: Option<u32>,
}

/// How the last worker of a slot ended.
#[derive(Clone, Debug, Default)]
pub(super) struct ExitSnapshot {
    pub(super) pid: i32,
    pub(super) slot: usize,
    pub(super) reason: &'static str,
    /// The exit code or the signal.
    pub(super) exit: String,
    /// What the worker has said of it; empty if nothing.
    pub(super) note: String,
    pub(super) uptime: Duration,
    pub(super) age: Duration,
}

impl Snapshot {
    /// Returns why the service is not ready; `None` if it is: every pool has a ready worker, and none
    /// stops or is suspended.
    pub(super) fn unready_reason(&self) -> Option<String> {
        if self.phase == MasterPhase::Starting {
            return Some("starting".to_owned());
        }
        if self.phase == MasterPhase::Stopping {
            return Some("stopping".to_owned());
        }
        let unready = |pool: &&PoolSnapshot| pool.ready == 0 || pool.is_suspended;
        let pool = self.pools.iter().find(unready)?;
        let reason = if pool.is_suspended { "is suspended" } else { "has no ready worker" };
        Some(format!("pool {:?} {reason}", pool.name))
    }

    /// Returns all of it as JSON. Durations are in milliseconds.
    pub(super) fn to_json(&self) -> Value {
        let unready_reason = self.unready_reason();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": self.pid,
            "proc_name": self.proc_name,
            "uptime_ms": as_millis(self.uptime),
            "phase": self.phase.as_str(),
            "generation": self.generation,
            "peer_pid": self.peer_pid,
            "ready": unready_reason.is_none(),
            "unready_reason": unready_reason,
            "pools": self.pools.iter().map(PoolSnapshot::to_json).collect::<Vec<_>>(),
        })
    }
}

impl MasterPhase {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Reloading => "reloading",
            Self::Stopping => "stopping",
        }
    }
}

impl PoolSnapshot {
    /// Returns how many units of work are in progress.
    pub(super) fn in_flight(&self) -> usize {
        self.workers.iter().map(|worker| worker.in_flight.len()).sum()
    }

    fn to_json(&self) -> Value {
        let exits = self.totals.exits.iter().map(|(reason, count)| (*reason, *count));
        let waiting = self.waiting_slots.iter();
        json!({
            "name": self.name,
            "class": self.class,
            "app": self.app,
            "generation": self.generation,
            "timeout_ms": as_millis(self.timeout),
            "target": self.target,
            "ready": self.ready,
            "reloading": self.is_reloading,
            "suspended": self.is_suspended,
            "stopping": self.is_stopping,
            "in_flight": self.in_flight(),
            "units_total": self.totals.units,
            "workers_started_total": self.totals.workers_started,
            "exits_total": exits.collect::<std::collections::BTreeMap<_, _>>(),
            "workers": self.workers.iter().map(WorkerSnapshot::to_json).collect::<Vec<_>>(),
            "waiting_slots": waiting
                .map(|(slot, left)| json!({ "slot": slot, "restart_in_ms": as_millis(*left) }))
                .collect::<Vec<_>>(),
            "listeners": self.listeners.iter().map(ListenerSnapshot::to_json).collect::<Vec<_>>(),
            "last_exits": self.last_exits.iter().map(ExitSnapshot::to_json).collect::<Vec<_>>(),
        })
    }
}

impl WorkerSnapshot {
    fn to_json(&self) -> Value {
        let in_flight = self.in_flight.iter().map(|unit| {
            json!({ "thread": unit.thread, "label": unit.label, "age_ms": as_millis(unit.age) })
        });
        json!({
            "pid": self.pid,
            "slot": self.slot,
            "generation": self.generation,
            "state": self.state,
            "uptime_ms": as_millis(self.uptime),
            "units": self.units,
            "clients": self.clients,
            "heartbeat_age_ms": self.heartbeat_age.map(as_millis),
            "in_flight": in_flight.collect::<Vec<_>>(),
        })
    }
}

impl ListenerSnapshot {
    fn to_json(&self) -> Value {
        json!({ "address": self.address, "queue_length": self.queue_length })
    }
}

impl ExitSnapshot {
    fn to_json(&self) -> Value {
        json!({
            "pid": self.pid,
            "slot": self.slot,
            "reason": self.reason,
            "exit": self.exit,
            "note": self.note,
            "uptime_ms": as_millis(self.uptime),
            "age_ms": as_millis(self.age),
        })
    }
}
