//! A snapshot as Prometheus text (exposition format 0.0.4). Pure.
//!
//! Source: <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::fmt::Write;
use std::time::Duration;

use crate::arbiter::snapshot::{PoolSnapshot, Snapshot};

/// The type of the text.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// One metric: how it is called, what it means, and its samples.
pub(super) struct Metric {
    pub(super) name: &'static str,
    pub(super) kind: &'static str,
    pub(super) help: &'static str,
    samples: fn(&Snapshot, &mut Samples<'_>),
}

/// Writes the samples of one metric.
struct Samples<'t> {
    name: &'static str,
    text: &'t mut String,
}

impl Samples<'_> {
    fn add(&mut self, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.text.push_str(self.name);
        for (index, (label, text)) in labels.iter().enumerate() {
            self.text.push(if index == 0 { '{' } else { ',' });
            // Writing to a string cannot fail.
            let _ = write!(self.text, "{label}=\"{}\"", escape(text));
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }

    /// Adds one sample a pool.
    fn each_pool<V: std::fmt::Display>(
        &mut self,
        snapshot: &Snapshot,
        value: impl Fn(&PoolSnapshot) -> V,
    ) {
        for pool in &snapshot.pools {
            self.add(&[("pool", &pool.name)], value(pool));
        }
    }
}

/// The states that a worker may be in, so that a count of zero is a sample too.
const WORKER_STATES: [&str; 6] = ["booting", "ready", "draining", "hung", "aborting", "killed"];

/// Every metric, in the order of the text.
pub(super) const METRICS: &[Metric] = &[
    Metric {
        name: "ostler_build_info",
        kind: "gauge",
        help: "Always 1; the version is a label.",
        samples: |_, out| out.add(&[("version", env!("CARGO_PKG_VERSION"))], 1),
    },
    Metric {
        name: "ostler_uptime_seconds",
        kind: "gauge",
        help: "Time since the master started.",
        samples: |snapshot, out| out.add(&[], seconds(snapshot.uptime)),
    },
    Metric {
        name: "ostler_ready",
        kind: "gauge",
        help: "1 if every pool has a ready worker and none stops or is suspended, otherwise 0.",
        samples: |snapshot, out| out.add(&[], u8::from(snapshot.unready_reason().is_none())),
    },
    Metric {
        name: "ostler_generation",
        kind: "gauge",
        help: "Number of the generation of the pool's new workers.",
        samples: |snapshot, out| out.each_pool(snapshot, |pool| pool.generation),
    },
    Metric {
        name: "ostler_workers_target",
        kind: "gauge",
        help: "Number of workers that the pool should have.",
        samples: |snapshot, out| out.each_pool(snapshot, |pool| pool.target),
    },
    Metric {
        name: "ostler_workers",
        kind: "gauge",
        help: "Number of workers by state.",
        samples: |snapshot, out| {
            for pool in &snapshot.pools {
                for state in WORKER_STATES {
                    let count = pool.workers.iter().filter(|it| it.state == state).count();
                    out.add(&[("pool", &pool.name), ("state", state)], count);
                }
            }
        },
    },
    Metric {
        name: "ostler_slots_waiting",
        kind: "gauge",
        help: "Number of slots that wait before their next worker is started.",
        samples: |snapshot, out| out.each_pool(snapshot, |pool| pool.waiting_slots.len()),
    },
    Metric {
        name: "ostler_requests_total",
        kind: "counter",
        help: "Units of work that are done: requests, calls, runs of a job.",
        samples: |snapshot, out| out.each_pool(snapshot, |pool| pool.totals.units),
    },
    Metric {
        name: "ostler_in_flight",
        kind: "gauge",
        help: "Units of work in progress.",
        samples: |snapshot, out| out.each_pool(snapshot, PoolSnapshot::in_flight),
    },
    Metric {
        name: "ostler_in_flight_age_max_seconds",
        kind: "gauge",
        help: "Age of the oldest unit of work in progress; 0 if there is none.",
        samples: |snapshot, out| {
            out.each_pool(snapshot, |pool| {
                let units = pool.workers.iter().flat_map(|worker| &worker.in_flight);
                seconds(units.map(|unit| unit.age).max().unwrap_or_default())
            });
        },
    },
    Metric {
        name: "ostler_connections",
        kind: "gauge",
        help: "Connected clients, as far as the worker class reports them.",
        samples: |snapshot, out| {
            out.each_pool(snapshot, |pool| {
                pool.workers.iter().map(|worker| worker.clients).fold(0, u64::saturating_add)
            });
        },
    },
    Metric {
        name: "ostler_heartbeat_age_seconds",
        kind: "gauge",
        help: "Time since the last heartbeat of the worker in a slot.",
        samples: |snapshot, out| {
            for pool in &snapshot.pools {
                for worker in &pool.workers {
                    let Some(age) = worker.heartbeat_age else { continue };
                    let (slot, pid) = (worker.slot.to_string(), worker.pid.to_string());
                    let labels = [("pool", &*pool.name), ("slot", &slot), ("pid", &pid)];
                    out.add(&labels, seconds(age));
                }
            }
        },
    },
    Metric {
        name: "ostler_accept_queue_length",
        kind: "gauge",
        help: "Clients that wait in the kernel's accept queue of an address (Linux).",
        samples: |snapshot, out| {
            for pool in &snapshot.pools {
                for listener in &pool.listeners {
                    let Some(length) = listener.queue_length else { continue };
                    out.add(&[("pool", &pool.name), ("address", &listener.address)], length);
                }
            }
        },
    },
    Metric {
        name: "ostler_workers_started_total",
        kind: "counter",
        help: "Workers that were started.",
        samples: |snapshot, out| out.each_pool(snapshot, |pool| pool.totals.workers_started),
    },
    Metric {
        name: "ostler_worker_exits_total",
        kind: "counter",
        help: "Workers that have exited, by reason.",
        samples: |snapshot, out| {
            for pool in &snapshot.pools {
                for (reason, count) in &pool.totals.exits {
                    out.add(&[("pool", &pool.name), ("reason", reason)], count);
                }
            }
        },
    },
];

/// Returns all metrics as text.
pub(super) fn render(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    for Metric { name, kind, help, samples } in METRICS {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        samples(snapshot, &mut Samples { name, text: &mut text });
    }
    text
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

/// Escapes the value of a label.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
