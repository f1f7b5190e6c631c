//! The policy over load curves.

use std::time::Duration;

use super::simulation::{Run, Simulation};
use super::{LIMITS, secs};
use crate::scaling::{ScalingLimits, ScalingReason};

const HOUR: Duration = Duration::from_secs(3600);

/// The load of a web service over a day, by the hour, relative to its highest: a peak at noon and one in
/// the evening.
const DAY: [f64; 25] = [
    0.22, 0.14, 0.09, 0.07, 0.06, 0.08, 0.15, 0.33, 0.55, 0.72, 0.84, 0.93, 0.96, 0.85, 0.74, 0.70,
    0.68, 0.70, 0.80, 0.94, 1.00, 0.88, 0.62, 0.38, 0.22,
];

/// Returns the load of a day with a peak of `peak` workers, with noise from second to second.
fn day(peak: f64) -> impl Fn(Duration) -> f64 {
    move |time| {
        let hours = time.as_secs_f64() / 3600.0 % 24.0;
        let (hour, part) = (hours as usize, hours.fract());
        let mean = DAY[hour] * (1.0 - part) + DAY[hour + 1] * part;
        peak * mean * (1.0 + 0.3 * noise(time.as_secs()))
    }
}

/// Returns a number from -1 to 1 that depends on the second.
fn noise(second: u64) -> f64 {
    let mixed = second.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed >> 40) as f64 / f64::from(1 << 23) - 1.0
}

/// Prints what a run was like: `cargo test --lib scaling -- --nocapture`.
#[allow(clippy::print_stdout)]
fn report(name: &str, run: &Run, fixed: usize, time: Duration) {
    let share = run.worker_secs / (fixed as f64 * time.as_secs_f64());
    println!(
        "{name}: {} changes, {} turns, longest wait {:.1} s, late {:.3} %, {:.0} % of {fixed} workers",
        run.changes.len(),
        run.turns(),
        run.longest_wait,
        100.0 * run.late_work / run.all_work,
        100.0 * share,
    );
}

#[test]
fn day_with_two_peaks_is_followed() {
    let curve = day(10.0);
    let mut pool = Simulation::new(LIMITS, &curve);
    let days = 2;
    let run = pool.run(HOUR * 24 * days);
    report("days", run, LIMITS.max, HOUR * 24 * days);
    assert!(run.late_work / run.all_work < 0.001, "{} of {}", run.late_work, run.all_work);
    assert!(run.longest_wait < 3.0, "{}", run.longest_wait);
    assert!(run.worker_secs < 0.75 * 16.0 * f64::from(days) * 86_400.0, "{}", run.worker_secs);
    let most = run.changes.iter().map(|(_, _, to, _)| *to).max().unwrap();
    assert!((13..=16).contains(&most), "{most}");
    assert!(run.turns() < 10, "{}", run.turns());
}

#[test]
fn step_is_reached_within_seconds_and_held() {
    let begin = secs(100);
    let curve = move |time: Duration| if time < begin { 0.3 } else { 8.5 };
    let mut pool = Simulation::new(LIMITS, &curve);
    let run = pool.run(HOUR).clone();
    report("step", &run, LIMITS.max, HOUR);
    assert_eq!(run.changes_after(secs(600)), 0, "{:?}", run.changes);
    let reached = run.changes.iter().find(|(_, _, to, _)| *to >= 12).unwrap().0;
    assert!(reached - begin < secs(12), "{reached:?}");
    assert_eq!(run.turns(), 0);
    let pool = pool.target();
    assert!((12..=16).contains(&pool), "{pool}");
}

#[test]
fn step_down_is_followed_slowly() {
    let end = secs(100);
    let curve = move |time: Duration| if time < end { 8.5 } else { 0.3 };
    let mut pool = Simulation::new(LIMITS, &curve);
    let run = pool.run(HOUR).clone();
    report("step down", &run, LIMITS.max, HOUR);
    let downs: Vec<_> =
        run.changes.iter().filter(|(.., reason)| *reason == ScalingReason::Quiet).collect();
    assert!(downs.iter().all(|(_, from, to, _)| to + 1 == *from), "one by one");
    assert!(downs.windows(2).all(|pair| pair[1].0 - pair[0].0 >= LIMITS.scale_down_after));
    assert_eq!((run.turns(), pool.target()), (1, 1));
}

#[test]
fn short_burst_is_served_by_more_and_forgotten() {
    let curve = |time: Duration| if (secs(60)..secs(70)).contains(&time) { 12.0 } else { 0.5 };
    let mut pool = Simulation::new(ScalingLimits { min: 2, ..LIMITS }, &curve);
    let run = pool.run(HOUR).clone();
    report("burst", &run, LIMITS.max, HOUR);
    assert!(run.longest_wait < 10.0, "{}", run.longest_wait);
    assert_eq!((run.turns(), pool.target()), (1, 2));
}

#[test]
fn sawtooth_is_learned() {
    // Twice a minute, from nothing to six workers.
    let curve = |time: Duration| 6.0 * (time.as_secs_f64() / 30.0).fract();
    let limits = ScalingLimits { scale_down_after: secs(5), ..LIMITS };
    let mut pool = Simulation::new(limits, &curve);
    let run = pool.run(HOUR);
    report("sawtooth", run, LIMITS.max, HOUR);
    // Without learning, there would be two turns in each half minute: 240.
    assert!(run.turns() < 40, "{}", run.turns());
}

#[test]
fn slow_boots_do_not_overshoot() {
    let curve = |_| 5.0;
    let mut pool = Simulation::new(LIMITS, &curve);
    pool.boot_time = secs(20);
    let run = pool.run(HOUR).clone();
    report("slow boots", &run, LIMITS.max, HOUR);
    assert!(pool.target() >= 7);
    assert_eq!(run.changes_after(secs(1200)), 0, "{:?}", run.changes);
}
