//! Rates, from the differences between two statuses. Pure: the master's uptime is the clock.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::super::status::{Pool, Status};

/// How many points are kept: more than a screen has columns.
const POINTS_MAX: usize = 512;

/// What happened between two statuses; `None` if it is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Point {
    /// Units of work a second.
    pub(super) rate: Option<f64>,
    /// The share of the workers' threads that was busy, from 0 to 1.
    pub(super) busy: Option<f64>,
    pub(super) p50_ms: Option<f64>,
    pub(super) p99_ms: Option<f64>,
}

/// What a worker did between two statuses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct WorkerRates {
    pub(super) rate: Option<f64>,
    /// CPU seconds a second.
    pub(super) cpu: Option<f64>,
}

/// The numbers of a status that only grow.
#[derive(Clone, Debug, Default)]
struct Counters {
    pid: u64,
    uptime_ms: u64,
    units: u64,
    busy_seconds: Option<f64>,
    /// Units by the upper bound of their time in nanoseconds.
    buckets: Option<BTreeMap<u64, u64>>,
    /// Units and CPU milliseconds by pid.
    workers: HashMap<u64, (u64, Option<u64>)>,
}

/// The points of the last minutes.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    last: Option<Counters>,
    points: VecDeque<Point>,
    workers: HashMap<u64, WorkerRates>,
}

impl History {
    /// Adds the next status. The first one of a master gives no point.
    pub(super) fn add(&mut self, status: &Status) {
        let counters = Counters::of(status);
        let threads = status
            .workers()
            .try_fold(0u64, |sum, worker| Some(sum.saturating_add(worker.usage.threads?)));
        let last = self.last.as_ref().filter(|last| last.pid == counters.pid);
        let elapsed = last.and_then(|last| counters.uptime_ms.checked_sub(last.uptime_ms));
        match (last, elapsed) {
            // The master renders a status once for all clients of an instant.
            (Some(_), Some(0)) => return,
            (Some(last), Some(elapsed)) => {
                let seconds = elapsed as f64 / 1000.0;
                let point = point(last, &counters, seconds, threads);
                self.workers = worker_rates(last, &counters, seconds);
                self.points.push_back(point);
                if self.points.len() > POINTS_MAX {
                    self.points.pop_front();
                }
            }
            _ => self.workers.clear(),
        }
        self.last = Some(counters);
    }

    /// Returns the latest points, newest last.
    pub(super) fn points(&self) -> impl DoubleEndedIterator<Item = &Point> + ExactSizeIterator {
        self.points.iter()
    }

    pub(super) fn worker(&self, pid: u64) -> WorkerRates {
        self.workers.get(&pid).copied().unwrap_or_default()
    }
}

impl Counters {
    fn of(status: &Status) -> Self {
        let counted = || status.pools.iter().filter(|pool| pool.totals.units.is_some());
        let each = |number: fn(&Pool) -> Option<f64>| counted().map(number).sum();
        let mut buckets = Some(BTreeMap::new());
        for pool in counted() {
            match (&mut buckets, &pool.latency.buckets) {
                (Some(sums), Some(more)) => more.iter().for_each(|(bound, count)| {
                    let sum: &mut u64 = sums.entry(*bound).or_default();
                    *sum = sum.saturating_add(*count);
                }),
                _ => buckets = None,
            }
        }
        Self {
            pid: status.pid,
            uptime_ms: status.uptime_ms,
            units: counted().filter_map(|pool| pool.totals.units).fold(0, u64::saturating_add),
            busy_seconds: each(|pool| pool.totals.busy_seconds),
            buckets,
            workers: status
                .workers()
                .map(|worker| (worker.pid, (worker.units.unwrap_or(0), worker.usage.cpu_ms)))
                .collect(),
        }
    }
}

fn point(last: &Counters, now: &Counters, seconds: f64, threads: Option<u64>) -> Point {
    let busy = || {
        let busy = now.busy_seconds? - last.busy_seconds?;
        let available = threads.filter(|threads| *threads > 0)? as f64 * seconds;
        Some((busy / available).clamp(0.0, 1.0))
    };
    let percentile = |share| {
        let mut counts = now.buckets.clone()?;
        for (bound, count) in last.buckets.as_ref()? {
            counts.entry(*bound).and_modify(|now| *now = now.saturating_sub(*count));
        }
        percentile_ms(&counts, share)
    };
    Point {
        rate: Some(now.units.saturating_sub(last.units) as f64 / seconds),
        busy: busy(),
        p50_ms: percentile(0.5),
        p99_ms: percentile(0.99),
    }
}

fn worker_rates(last: &Counters, now: &Counters, seconds: f64) -> HashMap<u64, WorkerRates> {
    let rates = |(pid, (units, cpu_ms)): (&u64, &(u64, Option<u64>))| {
        let (last_units, last_cpu_ms) = last.workers.get(pid)?;
        let rate = units.saturating_sub(*last_units) as f64 / seconds;
        let cpu = cpu_ms.zip(*last_cpu_ms).map(|(now, last)| now.saturating_sub(last));
        let cpu = cpu.map(|millis| millis as f64 / 1000.0 / seconds);
        Some((*pid, WorkerRates { rate: Some(rate), cpu }))
    };
    now.workers.iter().filter_map(rates).collect()
}

/// Returns the upper bound, in milliseconds, under which this share of the units lies.
fn percentile_ms(counts: &BTreeMap<u64, u64>, share: f64) -> Option<f64> {
    let total: f64 = counts.values().map(|count| *count as f64).sum();
    let mut below = 0.0;
    counts.iter().find_map(|(bound, count)| {
        below += *count as f64;
        (total > 0.0 && below >= total * share).then_some(*bound as f64 / 1e6)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status(pid: u64, uptime_ms: u64, units: u64) -> Status {
        let worker =
            json!({"pid": 5, "slot": 0, "units": units, "cpu_ms": units * 2, "threads": 4});
        Status::parse(&json!({"pid": pid, "uptime_ms": uptime_ms, "pools": [{
            "units_total": units, "busy_seconds_total": units as f64 / 10.0,
            "latency": [[1000.0, units / 2], [9000.0, units / 2]], "workers": [worker]}]}))
    }

    #[test]
    fn point_is_the_difference_of_two_statuses() {
        let mut history = History::default();
        history.add(&status(1, 1000, 100));
        assert_eq!(history.points().len(), 0);
        history.add(&status(1, 3000, 140));
        let expected =
            Point { rate: Some(20.0), busy: Some(0.5), p50_ms: Some(1.0), p99_ms: Some(9.0) };
        assert_eq!(history.points().last(), Some(&expected));
        assert_eq!(history.worker(5), WorkerRates { rate: Some(20.0), cpu: Some(0.04) });
        assert_eq!(history.worker(6), WorkerRates::default());
        // The same instant again adds nothing.
        history.add(&status(1, 3000, 140));
        assert_eq!(history.points().len(), 1);
        // Nothing was done: there is no latency.
        history.add(&status(1, 4000, 140));
        let last = history.points().last().expect("a point");
        assert_eq!((last.rate, last.p50_ms), (Some(0.0), None));
    }

    #[test]
    fn another_master_begins_anew() {
        let mut history = History::default();
        history.add(&status(1, 1000, 100));
        history.add(&status(2, 2000, 0));
        history.add(&status(2, 1000, 50));
        assert_eq!(history.points().len(), 0);
        history.add(&status(2, 2000, 10));
        // A counter that has gone back does not give a huge rate.
        assert_eq!(history.points().last().and_then(|point| point.rate), Some(0.0));
    }

    #[test]
    fn absent_fields_give_no_values() {
        let bare = |uptime| {
            Status::parse(&json!({"pid": 1, "uptime_ms": uptime, "pools": [{"units_total": 1,
                "workers": [{"pid": 5}]}]}))
        };
        let mut history = History::default();
        (1..=POINTS_MAX as u64 + 9).for_each(|uptime| history.add(&bare(uptime)));
        assert_eq!(history.points().len(), POINTS_MAX);
        let expected = Point { rate: Some(0.0), ..Point::default() };
        assert_eq!(history.points().last(), Some(&expected));
    }
}
