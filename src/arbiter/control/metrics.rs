//! A snapshot as text for Prometheus: exposition format 0.0.4, or OpenMetrics 1.0. Pure.
//!
//! Sources: <https://prometheus.io/docs/instrumenting/exposition_formats/>,
//! <https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md>.

mod accept;
mod table;
#[cfg(test)]
mod tests;
mod text;

use std::fmt::Write;

use crate::arbiter::snapshot::Snapshot;
pub(super) use table::METRICS;
pub(super) use text::Format;
use text::Samples;

/// About how many bytes the metrics of one pool take, and those of one worker.
const POOL_BYTES: usize = 8 << 10;
const WORKER_BYTES: usize = 300;

/// Returns all metrics as text.
pub(super) fn render(snapshot: &Snapshot, format: Format) -> String {
    let workers: usize = snapshot.pools.iter().map(|pool| pool.workers.len()).sum();
    let bytes = POOL_BYTES * (1 + snapshot.pools.len()) + WORKER_BYTES * workers;
    let mut text = String::with_capacity(bytes);
    for metric in METRICS {
        let (family, kind) = (metric.family(format), metric.kind.as_str(format));
        let _ = writeln!(text, "# HELP {family} {}\n# TYPE {family} {kind}", metric.help);
        (metric.samples)(snapshot, &mut Samples { name: metric.name, text: &mut text });
    }
    if format == Format::OpenMetrics {
        text.push_str("# EOF\n");
    }
    text
}
