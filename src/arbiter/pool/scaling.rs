//! Samples the load of a pool whose number of workers is a range, and applies what the scaling policy
//! decides. Believes little of what it reads: a worker can lie its pool to the bounds of the range.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use slog::{error, info};

use super::processes::{ProcessTable, WorkerProcess};
use super::supervisor::{Supervisor, WorkerId};
use super::unix_queues::UnixQueues;
use crate::arbiter::generation::PoolGeneration;
use crate::arbiter::snapshot::{LastScalingSnapshot, ScalingSnapshot};
use crate::heartbeat::SILENT_AFTER;
use crate::log::Fields;
use crate::os::{clock, listening, network_stats, process};
use crate::scaling::{LoadSample, SAMPLE_INTERVAL, ScalingLimits, ScalingPolicy};
use crate::settings::Settings;
use crate::time::MonotonicTime;

/// More busy time than this, relative to the time that the threads had, is that of overlapping units of
/// an asynchronous class: they say nothing of how busy the worker is.
const PLAUSIBLE_SHARE: f64 = 1.1;

/// Scales one pool.
pub(super) struct Scaler {
    policy: Box<dyn ScalingPolicy>,
    /// When the load is sampled next; `None` if it is not.
    due: Option<MonotonicTime>,
    readings: HashMap<WorkerId, Reading>,
    unix_queues: UnixQueues,
    last_sample: Option<LoadSample>,
    last_change: Option<Change>,
}

/// What a ready worker has used until a time.
#[derive(Clone, Copy)]
struct Reading {
    at: MonotonicTime,
    /// The time of its units of work.
    busy: Duration,
    /// Its CPU time.
    cpu: Duration,
}

/// A change of the target.
#[derive(Clone, Copy)]
struct Change {
    at: MonotonicTime,
    from: usize,
    to: usize,
    reason: &'static str,
    sample: Option<LoadSample>,
}

impl Scaler {
    pub(super) fn new(policy: Box<dyn ScalingPolicy>) -> Self {
        Self {
            policy,
            due: None,
            readings: HashMap::new(),
            unix_queues: UnixQueues::default(),
            last_sample: None,
            last_change: None,
        }
    }

    /// Returns when the load is sampled next.
    pub(super) fn next_deadline(&self) -> Option<MonotonicTime> {
        self.due
    }

    /// Records that a command has changed the target: it stays until the load moves it.
    pub(super) fn on_command(&mut self, from: usize, to: usize) {
        if from != to {
            let (at, reason, sample) = (clock::now(), "requested", None);
            self.last_change = Some(Change { at, from, to, reason, sample });
            self.policy.restart();
        }
    }

    /// Records that a worker has begun or ended its drain mode.
    pub(super) fn on_drain_mode(&mut self) {
        self.restart();
    }

    /// Forgets what was sampled.
    fn restart(&mut self) {
        self.readings.clear();
        self.last_sample = None;
        self.policy.restart();
    }

    /// Returns whether a sample is due, and when the next one is.
    fn begin_sample(&mut self, now: MonotonicTime) -> bool {
        let is_due = self.due.is_some_and(|due| due <= now);
        if is_due || self.due.is_none() {
            self.due = Some(now + SAMPLE_INTERVAL);
        }
        is_due
    }

    /// Returns what is shown of it.
    pub(super) fn snapshot(&self, now: MonotonicTime) -> ScalingSnapshot {
        let change = self.last_change.map(|change| LastScalingSnapshot {
            age: now.duration_since(change.at),
            from: change.from,
            to: change.to,
            reason: change.reason,
            busy_percent: change.sample.and_then(|sample| busy_percent(&sample)),
            queue: change.sample.map(|sample| sample.queue),
        });
        ScalingSnapshot {
            busy_percent: self.last_sample.and_then(|sample| busy_percent(&sample)),
            last: change,
        }
    }
}

/// The pool that a [`Scaler`] scales.
pub(super) struct Scaled<'p, 'a> {
    pub(super) generation: &'p PoolGeneration<'a>,
    pub(super) supervisor: &'p mut Supervisor,
    pub(super) processes: &'p ProcessTable<'a>,
    /// Nothing else changes its workers.
    pub(super) is_steady: bool,
    /// It stops, or is removed.
    pub(super) is_ending: bool,
}

impl Scaler {
    /// Samples the load if that is due, and changes the target if the policy wants it. While the pool is
    /// not steady, the target stays.
    pub(super) fn scale(&mut self, pool: Scaled<'_, '_>, now: MonotonicTime) {
        let limits = scaling_limits(&pool.generation.spec.settings);
        let limits = limits.filter(|limits| limits.min < limits.max && !pool.is_ending);
        let Some(limits) = limits else {
            self.due = None;
            return;
        };
        if !self.begin_sample(now) {
            return;
        }
        if !pool.is_steady {
            self.restart();
            return;
        }
        let sample = self.sample_load(&pool, now);
        let log = pool.generation.log.logger();
        let policy = &mut self.policy;
        // Workers in drain mode are neither load nor capacity.
        let held = pool.supervisor.drain_mode_count();
        let max = limits.max.saturating_sub(held).max(1);
        let serving_limits = ScalingLimits { min: limits.min.min(max), max, ..limits };
        let decided = catch_unwind(AssertUnwindSafe(|| policy.decide(&sample, &serving_limits)));
        let Ok(decision) = decided else {
            error!(log, "scaling policy panicked");
            return;
        };
        let Some(decision) = decision else { return };
        let from = pool.supervisor.target();
        let bounds = pool.supervisor.target_bounds(limits.min..=limits.max);
        let to = decision.target.saturating_add(held).clamp(*bounds.start(), *bounds.end());
        if from == to {
            return;
        }
        let to = pool.supervisor.scale_to(to);
        let reason = decision.reason.as_str();
        self.last_change = Some(Change { at: now, from, to, reason, sample: Some(sample) });
        let fields = Fields::new().number("from", from).number("to", to).text("reason", reason);
        let busy = busy_percent(&sample);
        let fields = fields.optional(busy, |fields, busy| fields.number("busy_percent", busy));
        info!(log, "workers scaled"; fields.number("queue", sample.queue));
    }

    fn sample_load(&mut self, pool: &Scaled<'_, '_>, now: MonotonicTime) -> LoadSample {
        let has_program = pool.generation.spec.class.runs_command();
        let busy = (!has_program).then(|| self.sample_workers(pool, now));
        let sample = LoadSample {
            at: now,
            target: pool.supervisor.target().saturating_sub(pool.supervisor.drain_mode_count()),
            ready: pool.supervisor.ready_count(),
            busy,
            queue: self.sample_queues(pool),
        };
        self.last_sample = Some(sample);
        sample
    }

    /// Returns how many clients wait at the listeners.
    fn sample_queues(&mut self, pool: &Scaled<'_, '_>) -> u64 {
        let (mut length, mut unix) = (0, Vec::new());
        for listener in pool.generation.open_listeners() {
            match listening::accept_queue_length(listener.as_fd()) {
                Ok(queue) => length += u64::from(queue),
                Err(_) => unix.extend(network_stats::inode(listener)),
            }
        }
        length + self.unix_queues.length(&unix)
    }

    /// Returns the shares of time in which the ready workers were busy since the last sample, summed.
    fn sample_workers(&mut self, pool: &Scaled<'_, '_>, now: MonotonicTime) -> f64 {
        let mut earlier = std::mem::take(&mut self.readings);
        let sends_heartbeat = !pool.generation.spec.settings.timeout.is_zero();
        let mut busy = 0.0;
        for id in pool.supervisor.ready_workers() {
            let Some(worker) = pool.processes.worker(id) else { continue };
            let reading = Reading::take(worker, now);
            let threads = worker.row.row().thread_count();
            let share = earlier.remove(&id).map_or(0.0, |it| reading.busy_share(&it, threads));
            let is_stuck = sends_heartbeat && is_silent(worker, now);
            busy += if is_stuck { 1.0 } else { share };
            self.readings.insert(id, reading);
        }
        busy
    }
}

impl Reading {
    fn take(worker: &WorkerProcess, at: MonotonicTime) -> Self {
        let busy = worker.row.row().counts(at).busy;
        Self { at, busy, cpu: process::cpu_time(worker.pid).unwrap_or_default() }
    }

    /// Returns the share of the time since `earlier` in which the worker was busy, 0 to 1. It has this
    /// many threads. A class with an event loop works on a unit for a small part of what a request costs
    /// it, so its CPU time counts too.
    fn busy_share(&self, earlier: &Self, threads: usize) -> f64 {
        let time = self.at.duration_since(earlier.at).as_secs_f64() * threads.max(1) as f64;
        let share = |now: Duration, earlier| match now.saturating_sub(earlier).as_secs_f64() / time
        {
            share if share.is_finite() => share,
            _ => 0.0,
        };
        let units = Some(share(self.busy, earlier.busy)).filter(|share| *share < PLAUSIBLE_SHARE);
        units.unwrap_or(0.0).max(share(self.cpu, earlier.cpu)).min(1.0)
    }
}

/// Returns whether a worker has sent no heartbeat for some time.
fn is_silent(worker: &WorkerProcess, now: MonotonicTime) -> bool {
    worker.heartbeat.last_beat().is_ok_and(|beat| now.duration_since(beat) >= SILENT_AFTER)
}

/// Returns what the policy decides by, if the number of workers is a range.
fn scaling_limits(settings: &Settings) -> Option<ScalingLimits> {
    let range = settings.workers.range()?;
    Some(ScalingLimits {
        min: *range.start(),
        max: *range.end(),
        scale_up_busy: settings.scale_up_busy as f64 / 100.0,
        scale_down_after: settings.scale_down_after,
    })
}

fn busy_percent(sample: &LoadSample) -> Option<u8> {
    let percent = sample.busy? / sample.ready.max(1) as f64 * 100.0;
    Some(percent.round() as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(millis: u64, busy: u64, cpu: u64) -> Reading {
        let at = MonotonicTime::from_nanos(0) + Duration::from_millis(millis);
        Reading { at, busy: Duration::from_millis(busy), cpu: Duration::from_millis(cpu) }
    }

    #[test]
    fn busy_share_is_the_larger_of_unit_time_and_cpu_time() {
        let earlier = reading(1000, 500, 70);
        let share = |busy, cpu, threads| reading(1250, busy, cpu).busy_share(&earlier, threads);
        assert_eq!(share(500, 70, 1), 0.0);
        assert_eq!(share(750, 70, 1), 1.0);
        assert_eq!(share(550, 195, 1), 0.5);
        assert_eq!(share(1000, 70, 4), 0.5, "four threads have four times as much time");
    }

    #[test]
    fn busy_share_of_absurd_readings_is_bounded() {
        let earlier = reading(1000, 500, 70);
        let max = Reading { busy: Duration::MAX, ..reading(1250, 0, 195) };
        assert_eq!(max.busy_share(&earlier, 1), 0.5, "overlapping units say nothing");
        assert_eq!(reading(1250, 0, 0).busy_share(&earlier, 1), 0.0, "it goes back");
        assert_eq!(reading(1000, 900, 900).busy_share(&earlier, 1), 0.0, "no time has passed");
        assert_eq!(reading(1250, 0, 900).busy_share(&earlier, 0), 1.0);
    }
}
