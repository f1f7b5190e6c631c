//! The answer to `/v1/status` as data. Pure: every text is safe to print, and a field that an older or
//! newer master does not have is absent.

use serde_json::Value;

use super::operation::Operation;
use super::text::printable;

/// The master and its pools.
#[derive(Clone, Debug, Default)]
pub(crate) struct Status {
    pub(crate) pid: u64,
    pub(crate) version: String,
    pub(crate) proc_name: String,
    pub(crate) phase: String,
    pub(crate) uptime_ms: u64,
    pub(crate) generation: u64,
    pub(crate) peer_pid: Option<u64>,
    pub(crate) is_ready: bool,
    /// What the master carries out.
    pub(crate) operation: Option<Operation>,
    /// `None` if the master has no others.
    pub(crate) leader: Option<Leader>,
    pub(crate) pools: Vec<Pool>,
}

/// Whether the master leads, among others.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leader {
    pub(crate) is_leading: bool,
    pub(crate) key: String,
    pub(crate) holder: Option<String>,
    pub(crate) ends_in_ms: Option<u64>,
    pub(crate) store_error: Option<String>,
}

/// One pool.
#[derive(Clone, Debug, Default)]
// Fields: one for each thing that is shown.
pub(crate) struct Pool {
    pub(crate) name: String,
    pub(crate) class: String,
    pub(crate) app: String,
    pub(crate) target: u64,
    pub(crate) ready: u64,
    /// `None` if the load does not decide how many workers there are.
    pub(crate) scaling: Option<Scaling>,
    /// `reloading`, `suspended`, `standby`, `drain_mode`, `stopping`.
    pub(crate) conditions: Vec<&'static str>,
    pub(crate) in_flight: u64,
    pub(crate) totals: Totals,
    pub(crate) latency: Latency,
    pub(crate) workers: Vec<Worker>,
    /// Slots that wait for their back-off, and for how many milliseconds.
    pub(crate) waiting_slots: Vec<(u64, u64)>,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) last_exits: Vec<Exit>,
}

/// How the load decides how many workers there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scaling {
    pub(crate) min: u64,
    pub(crate) max: u64,
    pub(crate) busy_percent: Option<u64>,
    /// The last change.
    pub(crate) last: Option<ScalingChange>,
}

/// A change of the number of workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ScalingChange {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) ms_ago: u64,
    pub(crate) reason: String,
}

/// What has been counted since the master started.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Totals {
    /// `None` if the workers run a program, which counts its own.
    pub(crate) units: Option<u64>,
    pub(crate) busy_seconds: Option<f64>,
    pub(crate) bytes_in: Option<u64>,
    pub(crate) bytes_out: Option<u64>,
    pub(crate) exits: Vec<(String, u64)>,
}

/// How long units of work have taken.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Latency {
    /// The 50th, 90th and 99th percentile in milliseconds.
    pub(crate) percentiles_ms: Option<[f64; 3]>,
    /// How many units took at most so many nanoseconds, and more than the bucket before.
    pub(crate) buckets: Option<Vec<(u64, u64)>>,
}

/// One worker process.
#[derive(Clone, Debug, Default)]
// Fields: one for each thing that is shown.
pub(crate) struct Worker {
    pub(crate) pool: String,
    pub(crate) slot: u64,
    pub(crate) pid: u64,
    pub(crate) generation: u64,
    pub(crate) state: String,
    pub(crate) uptime_ms: u64,
    pub(crate) units: Option<u64>,
    pub(crate) clients: u64,
    pub(crate) heartbeat_age_ms: Option<u64>,
    pub(crate) in_flight: Vec<Unit>,
    pub(crate) usage: Usage,
}

/// What a worker uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) memory_bytes: Option<u64>,
    /// User and system time since its start.
    pub(crate) cpu_ms: Option<u64>,
    pub(crate) bytes_in: Option<u64>,
    pub(crate) bytes_out: Option<u64>,
    pub(crate) accepted: Option<u64>,
    pub(crate) near_misses: Option<u64>,
    pub(crate) threads: Option<u64>,
}

/// A unit of work in progress.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unit {
    pub(crate) thread: u64,
    pub(crate) label: String,
    pub(crate) age_ms: u64,
}

/// One listening address.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listener {
    pub(crate) address: String,
    pub(crate) queue_length: Option<u64>,
}

/// How the last worker of a slot ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Exit {
    pub(crate) slot: u64,
    pub(crate) pid: u64,
    pub(crate) reason: String,
    pub(crate) exit: String,
    pub(crate) note: String,
    pub(crate) uptime_ms: u64,
    pub(crate) age_ms: u64,
}

impl Status {
    pub(crate) fn parse(json: &Value) -> Self {
        Self {
            pid: number(json, "pid").unwrap_or(0),
            version: text(json, "version"),
            proc_name: text(json, "proc_name"),
            phase: text(json, "phase"),
            uptime_ms: number(json, "uptime_ms").unwrap_or(0),
            generation: number(json, "generation").unwrap_or(0),
            peer_pid: number(json, "peer_pid"),
            is_ready: flag(json, "ready"),
            operation: Some(&json["operation"]).filter(|it| it.is_object()).map(Operation::parse),
            leader: Some(&json["leader"]).filter(|it| it.is_object()).map(Leader::parse),
            pools: each(json, "pools").map(Pool::parse).collect(),
        }
    }

    pub(crate) fn workers(&self) -> impl Iterator<Item = &Worker> {
        self.pools.iter().flat_map(|pool| &pool.workers)
    }
}

impl Leader {
    fn parse(json: &Value) -> Self {
        Self {
            is_leading: flag(json, "leading"),
            key: text(json, "key"),
            holder: Some(text(json, "holder")).filter(|it| !it.is_empty()),
            ends_in_ms: number(json, "ends_in_ms"),
            store_error: Some(text(json, "store_error")).filter(|it| !it.is_empty()),
        }
    }
}

impl Pool {
    fn parse(json: &Value) -> Self {
        let name = text(json, "name");
        let conditions = ["reloading", "suspended", "standby", "drain_mode", "stopping"];
        Self {
            class: text(json, "class"),
            app: text(json, "app"),
            target: number(json, "target").unwrap_or(0),
            ready: number(json, "ready").unwrap_or(0),
            scaling: Scaling::parse(json),
            conditions: conditions.into_iter().filter(|key| flag(json, key)).collect(),
            in_flight: number(json, "in_flight").unwrap_or(0),
            totals: Totals::parse(json),
            latency: Latency::parse(json),
            workers: each(json, "workers").map(|worker| Worker::parse(worker, &name)).collect(),
            waiting_slots: each(json, "waiting_slots")
                .filter_map(|it| Some((number(it, "slot")?, number(it, "restart_in_ms")?)))
                .collect(),
            listeners: each(json, "listeners")
                .map(|it| Listener {
                    address: text(it, "address"),
                    queue_length: number(it, "queue_length"),
                })
                .collect(),
            last_exits: each(json, "last_exits").map(Exit::parse).collect(),
            name,
        }
    }
}

impl Scaling {
    fn parse(json: &Value) -> Option<Self> {
        let scaling = &json["scaling"];
        let last = &scaling["last"];
        Some(Self {
            min: number(json, "workers_min")?,
            max: number(json, "workers_max")?,
            busy_percent: number(scaling, "busy_percent"),
            last: last.is_object().then(|| ScalingChange {
                from: number(last, "from").unwrap_or(0),
                to: number(last, "to").unwrap_or(0),
                ms_ago: number(last, "at_ms_ago").unwrap_or(0),
                reason: text(last, "reason"),
            }),
        })
    }
}

impl Totals {
    fn parse(json: &Value) -> Self {
        let exits = json["exits_total"].as_object().into_iter().flatten();
        Self {
            units: number(json, "units_total"),
            busy_seconds: json["busy_seconds_total"].as_f64(),
            bytes_in: number(json, "bytes_in_total"),
            bytes_out: number(json, "bytes_out_total"),
            exits: exits
                .filter_map(|(reason, count)| Some((printable(reason), count.as_u64()?)))
                .collect(),
        }
    }
}

/// What is shown of units beyond the last bound, in microseconds. The page shows the same.
const BEYOND_LAST_BOUND: f64 = 4e9;

impl Latency {
    fn parse(json: &Value) -> Self {
        let percentile = |key| json["latency_ms"][key].as_f64();
        let percentiles = [percentile("p50"), percentile("p90"), percentile("p99")];
        // The conversion saturates.
        let nanos = |micros: f64| (micros * 1000.0) as u64;
        let bound = |value: &Value| match value {
            Value::Null => Some(BEYOND_LAST_BOUND),
            value => value.as_f64(),
        };
        let bucket = |pair: &Value| Some((nanos(bound(&pair[0])?), pair[1].as_u64()?));
        let buckets = json["latency"].as_array();
        Self {
            percentiles_ms: match percentiles {
                [Some(p50), Some(p90), Some(p99)] => Some([p50, p90, p99]),
                _ => None,
            },
            buckets: buckets.map(|pairs| pairs.iter().filter_map(bucket).collect()),
        }
    }
}

impl Worker {
    fn parse(json: &Value, pool: &str) -> Self {
        let unit = |it: &Value| Unit {
            thread: number(it, "thread").unwrap_or(0),
            label: text(it, "label"),
            age_ms: number(it, "age_ms").unwrap_or(0),
        };
        Self {
            pool: pool.to_owned(),
            slot: number(json, "slot").unwrap_or(0),
            pid: number(json, "pid").unwrap_or(0),
            generation: number(json, "generation").unwrap_or(0),
            state: text(json, "state"),
            uptime_ms: number(json, "uptime_ms").unwrap_or(0),
            units: number(json, "units"),
            clients: number(json, "clients").unwrap_or(0),
            heartbeat_age_ms: number(json, "heartbeat_age_ms"),
            in_flight: each(json, "in_flight").map(unit).collect(),
            usage: Usage {
                memory_bytes: number(json, "memory_bytes"),
                cpu_ms: number(json, "cpu_ms"),
                bytes_in: number(json, "bytes_in"),
                bytes_out: number(json, "bytes_out"),
                accepted: number(json, "accepted"),
                near_misses: number(json, "near_misses"),
                threads: number(json, "threads"),
            },
        }
    }

    /// Returns its place, such as `default/0`.
    pub(crate) fn place(&self) -> String {
        format!("{}/{}", self.pool, self.slot)
    }

    /// Returns the unit of work that has taken the longest.
    pub(crate) fn oldest_unit(&self) -> Option<&Unit> {
        self.in_flight.iter().max_by_key(|unit| unit.age_ms)
    }
}

impl Exit {
    fn parse(json: &Value) -> Self {
        Self {
            slot: number(json, "slot").unwrap_or(0),
            pid: number(json, "pid").unwrap_or(0),
            reason: text(json, "reason"),
            exit: text(json, "exit"),
            note: text(json, "note"),
            uptime_ms: number(json, "uptime_ms").unwrap_or(0),
            age_ms: number(json, "age_ms").unwrap_or(0),
        }
    }
}

pub(crate) fn number(json: &Value, key: &str) -> Option<u64> {
    let value = &json[key];
    // A conversion from a floating-point number saturates.
    value.as_u64().or_else(|| value.as_f64().map(|number| number as u64))
}

pub(crate) fn text(json: &Value, key: &str) -> String {
    json[key].as_str().map(printable).unwrap_or_default()
}

fn flag(json: &Value, key: &str) -> bool {
    json[key] == true
}

pub(crate) fn each<'a>(json: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    json[key].as_array().into_iter().flatten()
}
