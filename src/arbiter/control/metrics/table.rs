//! The metrics: how each is called, what it means, and its samples.

use super::text::{Kind, Metric, seconds};
use crate::arbiter::snapshot::{PoolSnapshot, PoolTotals};

/// The states that a worker may be in, so that a count of zero is a sample too.
const WORKER_STATES: [&str; 7] =
    ["booting", "ready", "draining", "drained", "hung", "aborting", "killed"];

/// Every metric, in the order of the text.
pub(in crate::arbiter::control) const METRICS: &[Metric] = &[
    Metric {
        name: "ostler_build_info",
        kind: Kind::Info,
        help: "Always 1; the version is a label.",
        samples: |_, out| out.add(&[("version", env!("CARGO_PKG_VERSION"))], 1),
    },
    Metric {
        name: "ostler_pool_info",
        kind: Kind::Info,
        help: "Always 1; the worker class and the app of a pool are labels.",
        samples: |snapshot, out| {
            for pool in &snapshot.pools {
                let labels = [("pool", &*pool.name), ("class", &pool.class), ("app", &pool.app)];
                out.add(&labels, 1);
            }
        },
    },
    Metric {
        name: "ostler_uptime_seconds",
        kind: Kind::Gauge,
        help: "Time since the master started.",
        samples: |snapshot, out| out.add(&[], seconds(snapshot.uptime)),
    },
    Metric {
        name: "ostler_ready",
        kind: Kind::Gauge,
        help: "1 if every pool has a ready worker and none stops, is suspended or is in drain mode, otherwise 0.",
        samples: |snapshot, out| out.add(&[], u8::from(snapshot.unready_reason().is_none())),
    },
    Metric {
        name: "ostler_drain_mode",
        kind: Kind::Gauge,
        help: "1 if the pool is in drain mode, otherwise 0.",
        samples: |snapshot, out| {
            out.each_pool(snapshot, |pool| u8::from(pool.is_in_drain_mode));
        },
    },
    Metric {
        name: "ostler_leader",
        kind: Kind::Gauge,
        help: "If pools are led: 1 if this master leads, otherwise 0.",
        samples: |snapshot, out| {
            snapshot.leader.iter().for_each(|it| out.add(&[], u8::from(it.is_leading)));
        },
    },
    Metric {
        name: "ostler_leader_transitions_total",
        kind: Kind::Counter,
        help: "If pools are led: how often this master has begun or ceased to lead.",
        samples: |snapshot, out| {
            snapshot.leader.iter().for_each(|it| out.add(&[], it.transitions));
        },
    },
    Metric {
        name: "ostler_generation",
        kind: Kind::Gauge,
        help: "Number of the generation of the pool's new workers.",
        samples: |snapshot, out| out.each_pool(snapshot, |pool| pool.generation),
    },
    Metric {
        name: "ostler_workers_target",
        kind: Kind::Gauge,
        help: "Number of workers that the pool should have.",
        samples: |snapshot, out| out.each_pool(snapshot, |pool| pool.target),
    },
    Metric {
        name: "ostler_workers",
        kind: Kind::Gauge,
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
        name: "ostler_threads",
        kind: Kind::Gauge,
        help: "Number of threads of all workers that can work on units.",
        samples: |snapshot, out| {
            out.each_counted_pool(snapshot, |pool| {
                pool.workers.iter().map(|it| it.threads).sum::<usize>()
            });
        },
    },
    Metric {
        name: "ostler_slots_waiting",
        kind: Kind::Gauge,
        help: "Number of slots that wait before their next worker is started.",
        samples: |snapshot, out| out.each_pool(snapshot, |pool| pool.waiting_slots.len()),
    },
    Metric {
        name: "ostler_requests_total",
        kind: Kind::Counter,
        help: "Units of work that are done: requests, calls, runs of a job.",
        samples: |snapshot, out| {
            out.each_counted_pool(snapshot, |pool| pool.totals.work.counts.units)
        },
    },
    Metric {
        name: "ostler_request_duration_seconds",
        kind: Kind::Histogram,
        help: "How long units of work have taken.",
        samples: |snapshot, out| {
            for pool in snapshot.counted_pools() {
                out.histogram(&[("pool", &pool.name)], &pool.totals.work);
            }
        },
    },
    Metric {
        name: "ostler_busy_seconds_total",
        kind: Kind::Counter,
        help: "Time that threads have spent on units of work, also on those in progress.",
        samples: |snapshot, out| {
            out.each_counted_pool(snapshot, |pool| seconds(pool.totals.work.counts.busy))
        },
    },
    Metric {
        name: "ostler_near_misses_total",
        kind: Kind::Counter,
        help: "Units of work that have taken more than half of their time limit.",
        samples: |snapshot, out| {
            out.each_counted_pool(snapshot, |pool| pool.totals.work.counts.near_misses)
        },
    },
    Metric {
        name: "ostler_received_bytes_total",
        kind: Kind::Counter,
        help: "Bytes received from clients.",
        samples: |snapshot, out| {
            out.each_counted_pool(snapshot, |pool| pool.totals.work.counts.bytes_in)
        },
    },
    Metric {
        name: "ostler_sent_bytes_total",
        kind: Kind::Counter,
        help: "Bytes sent to clients.",
        samples: |snapshot, out| {
            out.each_counted_pool(snapshot, |pool| pool.totals.work.counts.bytes_out)
        },
    },
    Metric {
        name: "ostler_connections_accepted_total",
        kind: Kind::Counter,
        help: "Clients that were accepted.",
        samples: |snapshot, out| {
            out.each_counted_pool(snapshot, |pool| pool.totals.work.counts.accepted)
        },
    },
    Metric {
        name: "ostler_connections_refused_total",
        kind: Kind::Counter,
        help: "Clients that were accepted, and closed without being served for lack of resources.",
        samples: |snapshot, out| {
            out.each_counted_pool(snapshot, |pool| pool.totals.work.counts.refused)
        },
    },
    Metric {
        name: "ostler_access_log_records_dropped_total",
        kind: Kind::Counter,
        help: "Access log records that could not be written.",
        samples: |snapshot, out| {
            out.each_counted_pool(snapshot, |pool| pool.totals.work.counts.access_records_dropped);
        },
    },
    Metric {
        name: "ostler_in_flight",
        kind: Kind::Gauge,
        help: "Units of work in progress.",
        samples: |snapshot, out| out.each_counted_pool(snapshot, PoolSnapshot::in_flight),
    },
    Metric {
        name: "ostler_in_flight_age_max_seconds",
        kind: Kind::Gauge,
        help: "Age of the oldest unit of work in progress; 0 if there is none.",
        samples: |snapshot, out| {
            out.each_counted_pool(snapshot, |pool| {
                let units = pool.workers.iter().flat_map(|worker| &worker.in_flight);
                seconds(units.map(|unit| unit.age).max().unwrap_or_default())
            });
        },
    },
    Metric {
        name: "ostler_connections",
        kind: Kind::Gauge,
        help: "Connected clients, as far as the worker class reports them.",
        samples: |snapshot, out| {
            out.each_counted_pool(snapshot, |pool| {
                pool.workers.iter().map(|worker| worker.clients).fold(0, u64::saturating_add)
            });
        },
    },
    Metric {
        name: "ostler_heartbeat_age_seconds",
        kind: Kind::Gauge,
        help: "Time since the last heartbeat of the worker in a slot.",
        samples: |snapshot, out| out.each_worker(snapshot, |it| it.heartbeat_age.map(seconds)),
    },
    Metric {
        name: "ostler_worker_memory_bytes",
        kind: Kind::Gauge,
        help: "Memory of the worker in a slot, with its program (PSS, as of an earlier request).",
        samples: |snapshot, out| out.each_worker(snapshot, |it| it.usage.memory_bytes),
    },
    Metric {
        name: "ostler_worker_cpu_seconds_total",
        kind: Kind::Counter,
        help: "CPU time of the worker in a slot, with its program (as of an earlier request).",
        samples: |snapshot, out| out.each_worker(snapshot, |it| it.usage.cpu_time.map(seconds)),
    },
    Metric {
        name: "ostler_accept_queue",
        kind: Kind::Gauge,
        help: "Clients that wait in the kernel's accept queue of an address.",
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
        name: "ostler_accept_wait_seconds",
        kind: Kind::Histogram,
        help: "How long TCP clients have waited before they were accepted, of one in 61 (steps of up to 10 ms).",
        samples: |snapshot, out| {
            for pool in snapshot.counted_pools() {
                out.accept_waits(&[("pool", &pool.name)], &pool.totals.work.counts.accept_waits);
            }
        },
    },
    Metric {
        name: "ostler_tcp_listen_overflows_total",
        kind: Kind::Counter,
        help: "Clients that TCP listeners of the network namespace have lost since a queue was full.",
        samples: |snapshot, out| {
            snapshot.listen_drops.into_iter().for_each(|(overflows, _)| out.add(&[], overflows));
        },
    },
    Metric {
        name: "ostler_tcp_listen_drops_total",
        kind: Kind::Counter,
        help: "Clients that TCP listeners of the network namespace have lost for any reason.",
        samples: |snapshot, out| {
            snapshot.listen_drops.into_iter().for_each(|(_, drops)| out.add(&[], drops));
        },
    },
    Metric {
        name: "ostler_workers_started_total",
        kind: Kind::Counter,
        help: "Workers that were started.",
        samples: |snapshot, out| out.each_pool(snapshot, |pool| pool.totals.workers_started),
    },
    Metric {
        name: "ostler_worker_boot_seconds",
        kind: Kind::Summary,
        help: "How long workers have taken from their start until they were ready.",
        samples: |snapshot, out| {
            for pool in &snapshot.pools {
                let PoolTotals { boots, boot_time, .. } = pool.totals;
                out.summary(&[("pool", &pool.name)], boots, boot_time);
            }
        },
    },
    Metric {
        name: "ostler_worker_exits_total",
        kind: Kind::Counter,
        help: "Workers that have exited, by reason.",
        samples: |snapshot, out| {
            for pool in &snapshot.pools {
                for (reason, count) in &pool.totals.exits {
                    out.add(&[("pool", &pool.name), ("reason", reason)], count);
                }
            }
        },
    },
    Metric {
        name: "ostler_reloads_total",
        kind: Kind::Counter,
        help: "Reloads that have ended, by result: done or failed.",
        samples: |snapshot, out| out.operations(snapshot, "reload"),
    },
    Metric {
        name: "ostler_reload_duration_seconds",
        kind: Kind::Summary,
        help: "How long reloads have taken until they ended, by result.",
        samples: |snapshot, out| out.operation_durations(snapshot, "reload"),
    },
    Metric {
        name: "ostler_upgrades_total",
        kind: Kind::Counter,
        help: "Upgrades that have ended, by result: done or failed.",
        samples: |snapshot, out| out.operations(snapshot, "upgrade"),
    },
    Metric {
        name: "ostler_upgrade_duration_seconds",
        kind: Kind::Summary,
        help: "How long upgrades have taken until they ended, by result.",
        samples: |snapshot, out| out.operation_durations(snapshot, "upgrade"),
    },
    Metric {
        name: "ostler_log_records_dropped_total",
        kind: Kind::Counter,
        help: "Log records that workers have dropped, since the log never waits.",
        samples: |snapshot, out| {
            out.each_pool(snapshot, |pool| pool.totals.work.counts.records_dropped);
        },
    },
    Metric {
        name: "ostler_master_log_records_dropped_total",
        kind: Kind::Counter,
        help: "Log records that the master has dropped since it has opened its log.",
        samples: |snapshot, out| out.add(&[], snapshot.records_dropped),
    },
];
