//! The pieces of the text: a metric, and its samples.

use std::fmt::{Display, Write};
use std::time::Duration;

use super::accept;
use crate::arbiter::snapshot::{PoolSnapshot, Snapshot, WorkerSnapshot};
use crate::scoreboard::{ACCEPT_WAIT_BOUNDS, AcceptWaits, WorkTotals};

/// A format of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::arbiter::control) enum Format {
    /// Prometheus' own.
    Text,
    OpenMetrics,
}

impl Format {
    /// Returns the format that a client prefers by its `Accept` field. OpenMetrics is sent only if the
    /// client names it.
    pub(in crate::arbiter::control) fn accepted_by(field: &[u8]) -> Self {
        let quality = |name: &str| accept::quality(field, name);
        match quality("application/openmetrics-text") {
            Some(wanted) if wanted > 0.0 && wanted >= quality("text/plain").unwrap_or(0.0) => {
                Self::OpenMetrics
            }
            _ => Self::Text,
        }
    }

    /// Returns the type of the text.
    pub(in crate::arbiter::control) fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// What a metric measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::arbiter::control) enum Kind {
    /// A total that never goes back. Its name ends in `_total`.
    Counter,
    /// A number of the present.
    Gauge,
    /// How often something has taken how long.
    Histogram,
    /// How often something has happened, and how long it has taken altogether.
    Summary,
    /// Text in labels; the number is 1. Its name ends in `_info`.
    Info,
}

impl Kind {
    /// Returns its name in the text and in the guide.
    pub(in crate::arbiter::control) fn as_str(self, format: Format) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Summary => "summary",
            Self::Info => match format {
                Format::Text => "gauge", // it has no other
                Format::OpenMetrics => "info",
            },
        }
    }
}

/// One metric: how it is called, what it means, and its samples.
pub(in crate::arbiter::control) struct Metric {
    pub(in crate::arbiter::control) name: &'static str,
    pub(in crate::arbiter::control) kind: Kind,
    pub(in crate::arbiter::control) help: &'static str,
    pub(super) samples: fn(&Snapshot, &mut Samples<'_>),
}

impl Metric {
    /// Returns the name by which its type is declared.
    pub(super) fn family(&self, format: Format) -> &'static str {
        let suffix = match (format, self.kind) {
            (Format::OpenMetrics, Kind::Counter) => "_total",
            (Format::OpenMetrics, Kind::Info) => "_info",
            _ => "",
        };
        self.name.strip_suffix(suffix).unwrap_or(self.name)
    }
}

/// Writes the samples of one metric.
pub(super) struct Samples<'t> {
    pub(super) name: &'static str,
    pub(super) text: &'t mut String,
}

type Label<'l> = (&'l str, &'l str);

impl Samples<'_> {
    pub(super) fn add(&mut self, labels: &[Label<'_>], value: impl Display) {
        self.add_part("", labels, value);
    }

    /// Adds a sample whose name has a suffix.
    fn add_part(&mut self, suffix: &str, labels: &[Label<'_>], value: impl Display) {
        self.text.push_str(self.name);
        self.text.push_str(suffix);
        for (index, (label, text)) in labels.iter().enumerate() {
            self.text.push(if index == 0 { '{' } else { ',' });
            self.text.push_str(label);
            self.text.push_str("=\"");
            push_escaped(self.text, text);
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}"); // writing to a string cannot fail
    }

    /// Adds one sample a pool.
    pub(super) fn each_pool<V: Display>(
        &mut self,
        snapshot: &Snapshot,
        value: impl Fn(&PoolSnapshot) -> V,
    ) {
        for pool in &snapshot.pools {
            self.add(&[("pool", &pool.name)], value(pool));
        }
    }

    /// Adds one sample a pool whose units of work are counted.
    pub(super) fn each_counted_pool<V: Display>(
        &mut self,
        snapshot: &Snapshot,
        value: impl Fn(&PoolSnapshot) -> V,
    ) {
        for pool in snapshot.counted_pools() {
            self.add(&[("pool", &pool.name)], value(pool));
        }
    }

    /// Adds how often something has happened, and how long it has taken.
    pub(super) fn summary(&mut self, labels: &[Label<'_>], count: u64, time: Duration) {
        self.add_part("_sum", labels, seconds(time));
        self.add_part("_count", labels, count);
    }

    /// Adds how often operations of this command have ended, by result.
    pub(super) fn operations(&mut self, snapshot: &Snapshot, command: &str) {
        for (_, result, ended) in snapshot.operation_counts.iter().filter(|it| it.0 == command) {
            self.add(&[("result", result)], ended.count);
        }
    }

    /// Adds how long operations of this command have taken, by result.
    pub(super) fn operation_durations(&mut self, snapshot: &Snapshot, command: &str) {
        for (_, result, ended) in snapshot.operation_counts.iter().filter(|it| it.0 == command) {
            self.summary(&[("result", result)], ended.count, ended.time);
        }
    }

    /// Adds one sample a worker for which there is a value.
    pub(super) fn each_worker<V: Display>(
        &mut self,
        snapshot: &Snapshot,
        value: impl Fn(&WorkerSnapshot) -> Option<V>,
    ) {
        // There may be thousands of lines: what is common to those of a pool is made once.
        let (mut head, text) = (String::new(), &mut *self.text);
        for pool in &snapshot.pools {
            head.clear();
            head.push_str(self.name);
            head.push_str("{pool=\"");
            push_escaped(&mut head, &pool.name);
            head.push_str("\",slot=\"");
            for worker in &pool.workers {
                let Some(value) = value(worker) else { continue };
                text.push_str(&head);
                text.push_str(itoa::Buffer::new().format(worker.slot));
                text.push_str("\",pid=\"");
                text.push_str(itoa::Buffer::new().format(worker.pid));
                let _ = writeln!(text, "\"}} {value}");
            }
        }
    }

    /// Adds how long clients have waited before they were accepted.
    pub(super) fn accept_waits(&mut self, labels: &[Label<'_>], waits: &AcceptWaits) {
        let mut count = 0u64;
        let bounds = ACCEPT_WAIT_TEXTS.into_iter().chain(["+Inf"]);
        for (bound, more) in bounds.zip(waits.counts) {
            count = count.saturating_add(more);
            self.add_part("_bucket", &[labels, &[("le", bound)]].concat(), count);
        }
        self.add_part("_sum", labels, seconds(waits.time));
        self.add_part("_count", labels, count);
    }

    /// Adds how long units of work have taken.
    pub(super) fn histogram(&mut self, labels: &[Label<'_>], work: &WorkTotals) {
        let count = work.durations.count();
        let bounds = DURATION_BOUNDS.iter();
        let bounded = bounds.map(|(text, bound)| (*text, work.durations.count_up_to(*bound)));
        for (bound, count) in bounded.chain([("+Inf", count)]) {
            self.add_part("_bucket", &[labels, &[("le", bound)]].concat(), count);
        }
        self.add_part("_sum", labels, seconds(work.counts.unit_time));
        self.add_part("_count", labels, count);
    }
}

/// The bounds of the buckets of a wait, each with the text that OpenMetrics prescribes.
const ACCEPT_WAIT_TEXTS: [&str; ACCEPT_WAIT_BOUNDS.len()] =
    ["0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1.0", "2.5", "5.0", "10.0"];

/// The bounds of the buckets of a duration, which are bounds on the scoreboard too. Each has the text
/// that OpenMetrics prescribes.
const DURATION_BOUNDS: [(&str, Duration); 20] = [
    ("1e-05", Duration::from_micros(10)),
    ("5e-05", Duration::from_micros(50)),
    ("0.0001", Duration::from_micros(100)),
    ("0.00025", Duration::from_micros(250)),
    ("0.0005", Duration::from_micros(500)),
    ("0.001", Duration::from_millis(1)),
    ("0.0025", Duration::from_micros(2500)),
    ("0.005", Duration::from_millis(5)),
    ("0.01", Duration::from_millis(10)),
    ("0.025", Duration::from_millis(25)),
    ("0.05", Duration::from_millis(50)),
    ("0.1", Duration::from_millis(100)),
    ("0.25", Duration::from_millis(250)),
    ("0.5", Duration::from_millis(500)),
    ("1.0", Duration::from_secs(1)),
    ("2.5", Duration::from_millis(2500)),
    ("5.0", Duration::from_secs(5)),
    ("10.0", Duration::from_secs(10)),
    ("30.0", Duration::from_secs(30)),
    ("60.0", Duration::from_secs(60)),
];

pub(super) fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

/// Appends the value of a label.
fn push_escaped(text: &mut String, value: &str) {
    if !value.contains(['\\', '"', '\n']) {
        return text.push_str(value);
    }
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            _ => text.push(character),
        }
    }
}
