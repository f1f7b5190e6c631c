//! What the control interface shows of the master at one instant. Pure: plain data, and its JSON.

mod totals;

use std::fmt::Write;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::leader::LeaderSnapshot;
use super::operations::OperationCounts;
pub(super) use super::readiness::MasterPhase;
use super::readiness::{self, PoolReadiness};
use crate::duration::as_millis;
use crate::log::EventRing;
use crate::scoreboard::{Histogram, WorkCounts, WorkTotals};
pub(super) use totals::PoolTotals;

/// The master and its pools.
#[derive(Clone, Debug, Default)]
// Fields: one for each thing that is shown.
pub(super) struct Snapshot {
    pub(super) pid: i32,
    pub(super) proc_name: String,
    pub(super) uptime: Duration,
    pub(super) phase: MasterPhase,
    pub(super) generation: u32,
    /// The other master, during an upgrade.
    pub(super) peer_pid: Option<i32>,
    pub(super) pools: Vec<PoolSnapshot>,
    /// `None` if no pool is led.
    pub(super) leader: Option<LeaderSnapshot>,
    /// The last records of the log.
    pub(super) events: Option<Arc<EventRing>>,
    /// Log records of the master that were dropped.
    pub(super) records_dropped: u64,
    /// The clients that TCP listeners of the network namespace have lost: since an accept queue was full,
    /// and for any reason. `None` if not known yet.
    pub(super) listen_drops: Option<(u64, u64)>,
    /// The operation that has begun last and runs; null if there is none.
    pub(super) operation: Value,
    pub(super) operation_counts: OperationCounts,
    /// The settings that are in use, as JSON.
    pub(super) config: Arc<[u8]>,
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
    /// Whether its workers run a program, whose units of work the master does not know.
    pub(super) has_program: bool,
    /// How many workers it should have.
    pub(super) target: usize,
    /// How many are ready and do not drain.
    pub(super) ready: usize,
    /// The bounds between which the load decides on the target.
    pub(super) workers_range: Option<RangeInclusive<usize>>,
    pub(super) scaling: ScalingSnapshot,
    pub(super) is_reloading: bool,
    pub(super) is_suspended: bool,
    pub(super) is_in_drain_mode: bool,
    /// It is led, and this master does not lead.
    pub(super) is_standby: bool,
    pub(super) is_stopping: bool,
    pub(super) workers: Vec<WorkerSnapshot>,
    /// The slots that wait before their next worker is started.
    pub(super) waiting_slots: Vec<(usize, Duration)>,
    pub(super) listeners: Vec<ListenerSnapshot>,
    pub(super) totals: PoolTotals,
    /// What of that other masters have counted, before this one or beside it.
    pub(super) earlier_totals: PoolTotals,
    pub(super) last_exits: Vec<ExitSnapshot>,
}

/// How a pool scales with load.
#[derive(Clone, Debug, Default)]
pub(super) struct ScalingSnapshot {
    /// How busy its workers are, on average; `None` if unknown.
    pub(super) busy_percent: Option<u8>,
    /// The last change of the target, by load or by a command.
    pub(super) last: Option<LastScalingSnapshot>,
}

/// A change of the target.
#[derive(Clone, Debug, Default)]
pub(super) struct LastScalingSnapshot {
    pub(super) age: Duration,
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) reason: &'static str,
    pub(super) busy_percent: Option<u8>,
    pub(super) queue: Option<u64>,
}

/// One worker process.
#[derive(Clone, Debug, Default)]
pub(super) struct WorkerSnapshot {
    pub(super) pid: i32,
    pub(super) slot: usize,
    pub(super) generation: u32,
    pub(super) state: &'static str,
    pub(super) uptime: Duration,
    /// How many threads work on units of work.
    pub(super) threads: usize,
    pub(super) counts: WorkCounts,
    pub(super) clients: u64,
    /// The age of its last heartbeat; `None` if it cannot be read.
    pub(super) heartbeat_age: Option<Duration>,
    pub(super) in_flight: Vec<UnitSnapshot>,
    /// Whether it only supervises a program.
    pub(super) has_program: bool,
    pub(super) usage: ProcessUsage,
}

/// What a process uses, with its program; `None` if not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ProcessUsage {
    /// As PSS, or RSS where the kernel does not tell that.
    pub(super) memory_bytes: Option<u64>,
    /// Since its start, in user mode and in the kernel.
    pub(super) cpu_time: Option<Duration>,
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
    /// The number of a unix listener in the kernel, which tells its queue by that.
    pub(super) unix_inode: Option<u64>,
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
    /// Returns the pools whose units of work are counted: those without a program.
    pub(super) fn counted_pools(&self) -> impl Iterator<Item = &PoolSnapshot> {
        self.pools.iter().filter(|pool| !pool.has_program)
    }

    /// Returns why the service is not ready; `None` if it is.
    pub(super) fn unready_reason(&self) -> Option<String> {
        readiness::unready_reason(self.phase, self.pools.iter().map(PoolSnapshot::readiness))
    }

    /// Returns all of it as JSON, with a newline. Durations are in milliseconds.
    pub(super) fn to_json(&self) -> String {
        let unready_reason = self.unready_reason();
        let master = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": self.pid,
            "proc_name": self.proc_name,
            "uptime_ms": as_millis(self.uptime),
            "phase": self.phase.as_str(),
            "generation": self.generation,
            "peer_pid": self.peer_pid,
            "last_event": self.events.as_ref().map(|events| events.last()),
            "ready": unready_reason.is_none(),
            "unready_reason": unready_reason,
            "operation": self.operation,
            "leader": self.leader.as_ref().map(LeaderSnapshot::to_json),
        });
        let workers: usize = self.pools.iter().map(|pool| pool.workers.len()).sum();
        let mut text = String::with_capacity(4096 * (1 + self.pools.len()) + 512 * workers);
        push_with_list(&mut text, &master, "pools", &self.pools, PoolSnapshot::push_json);
        text.push('\n');
        text
    }
}

/// Appends an object, with a further member: a list. There may be thousands of workers, and a
/// `serde_json::Value` of each costs ten times as much as its text.
fn push_with_list<T>(
    text: &mut String,
    object: &Value,
    name: &str,
    list: &[T],
    push: impl Fn(&T, &mut String),
) {
    let _ = write!(text, "{object}"); // writing to a string cannot fail
    text.pop();
    let _ = write!(text, ",\"{name}\":[");
    for (index, item) in list.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        push(item, text);
    }
    text.push_str("]}");
}

impl PoolSnapshot {
    fn readiness(&self) -> PoolReadiness<'_> {
        PoolReadiness {
            name: &self.name,
            has_ready: self.ready > 0,
            is_suspended: self.is_suspended,
            is_standby: self.is_standby,
            is_in_drain_mode: self.is_in_drain_mode,
            is_stopping: self.is_stopping,
        }
    }

    /// Returns a number of units of work, clients or bytes; `None` if they are not counted.
    pub(super) fn if_counted<T>(&self, number: T) -> Option<T> {
        (!self.has_program).then_some(number)
    }

    /// Returns how many units of work are in progress.
    pub(super) fn in_flight(&self) -> usize {
        self.workers.iter().map(|worker| worker.in_flight.len()).sum()
    }

    fn push_json(&self, text: &mut String) {
        let exits = self.totals.exits.iter().map(|(reason, count)| (*reason, *count));
        let waiting = self.waiting_slots.iter();
        let WorkTotals { counts, durations } = &self.totals.work;
        let pool = json!({
            "name": self.name,
            "class": self.class,
            "app": self.app,
            "generation": self.generation,
            "timeout_ms": as_millis(self.timeout),
            "target": self.target,
            "ready": self.ready,
            "workers_min": self.workers_range.as_ref().map(RangeInclusive::start),
            "workers_max": self.workers_range.as_ref().map(RangeInclusive::end),
            "scaling": self.workers_range.as_ref().map(|_| self.scaling.to_json()),
            "reloading": self.is_reloading,
            "suspended": self.is_suspended,
            "drain_mode": self.is_in_drain_mode,
            "standby": self.is_standby,
            "stopping": self.is_stopping,
            "in_flight": self.if_counted(self.in_flight()),
            "units_total": self.if_counted(counts.units),
            "busy_seconds_total": self.if_counted(counts.busy.as_secs_f64()),
            "near_misses_total": self.if_counted(counts.near_misses),
            "bytes_in_total": self.if_counted(counts.bytes_in),
            "bytes_out_total": self.if_counted(counts.bytes_out),
            "accepted_total": self.if_counted(counts.accepted),
            "refused_total": self.if_counted(counts.refused),
            "access_log_dropped_total": self.if_counted(counts.access_records_dropped),
            "latency_ms": self.if_counted(()).map(|()| quantiles_json(durations)),
            "latency": self.if_counted(()).map(|()| buckets_json(durations)),
            "workers_started_total": self.totals.workers_started,
            "exits_total": exits.collect::<std::collections::BTreeMap<_, _>>(),
            "waiting_slots": waiting
                .map(|(slot, left)| json!({ "slot": slot, "restart_in_ms": as_millis(*left) }))
                .collect::<Vec<_>>(),
            "listeners": self.listeners.iter().map(ListenerSnapshot::to_json).collect::<Vec<_>>(),
            "last_exits": self.last_exits.iter().map(ExitSnapshot::to_json).collect::<Vec<_>>(),
        });
        push_with_list(text, &pool, "workers", &self.workers, WorkerSnapshot::push_json);
    }
}

/// Returns how long units of work have taken: quantiles, which are exact to 10 %.
fn quantiles_json(durations: &Histogram) -> Value {
    let millis = |found: Option<Duration>| found.map(|it| it.as_secs_f64() * 1e3);
    let quantile = |share: f64| millis(durations.quantile(share));
    json!({
        "p50": quantile(0.5),
        "p90": quantile(0.9),
        "p99": quantile(0.99),
        "p999": quantile(0.999),
        "max": millis(durations.longest()),
    })
}

/// Returns the buckets that are not empty, each with its bound in microseconds. The last one has none.
fn buckets_json(durations: &Histogram) -> Value {
    let micros = |bound: Option<Duration>| bound.map(|it| it.as_secs_f64() * 1e6);
    durations.buckets().map(|(bound, count)| json!([micros(bound), count])).collect()
}

impl ScalingSnapshot {
    fn to_json(&self) -> Value {
        let last = self.last.as_ref().map(|last| {
            json!({
                "at_ms_ago": as_millis(last.age),
                "from": last.from,
                "to": last.to,
                "reason": last.reason,
                "busy_percent": last.busy_percent,
                "queue": last.queue,
            })
        });
        json!({ "busy_percent": self.busy_percent, "last": last })
    }
}

impl WorkerSnapshot {
    fn push_json(&self, text: &mut String) {
        let number = |text: &mut String, name: &str, value: Option<u64>| {
            text.push_str(name);
            match value {
                Some(value) => text.push_str(itoa::Buffer::new().format(value)),
                None => text.push_str("null"),
            }
        };
        let counted = |number: u64| (!self.has_program).then_some(number);
        text.push_str("{\"pid\":");
        text.push_str(itoa::Buffer::new().format(self.pid));
        for (name, value) in [
            (",\"slot\":", Some(self.slot as u64)),
            (",\"generation\":", Some(u64::from(self.generation))),
            (",\"uptime_ms\":", Some(as_millis(self.uptime))),
            (",\"threads\":", Some(self.threads as u64)),
            (",\"units\":", counted(self.counts.units)),
            (",\"near_misses\":", counted(self.counts.near_misses)),
            (",\"bytes_in\":", counted(self.counts.bytes_in)),
            (",\"bytes_out\":", counted(self.counts.bytes_out)),
            (",\"accepted\":", counted(self.counts.accepted)),
            (",\"clients\":", Some(self.clients)),
            (",\"memory_bytes\":", self.usage.memory_bytes),
            (",\"cpu_ms\":", self.usage.cpu_time.map(as_millis)),
            (",\"heartbeat_age_ms\":", self.heartbeat_age.map(as_millis)),
        ] {
            number(text, name, value);
        }
        let _ = write!(text, ",\"state\":\"{}\",\"in_flight\":[", self.state);
        for (index, unit) in self.in_flight.iter().enumerate() {
            let UnitSnapshot { thread, label, age } = unit;
            let unit = json!({ "thread": thread, "label": label, "age_ms": as_millis(*age) });
            let _ = write!(text, "{}{unit}", if index == 0 { "" } else { "," });
        }
        text.push_str("]}");
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
