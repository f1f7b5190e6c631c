//! The policy under random loads.

use std::time::Duration;

use proptest::prelude::*;

use super::simulation::Simulation;
use crate::scaling::{ScalingLimits, ScalingReason};

fn any_limits() -> impl Strategy<Value = ScalingLimits> {
    (1..8_usize, 0..24_usize, 20..=100_u32, 1..20_u64).prop_map(|(min, more, busy, quiet)| {
        ScalingLimits {
            min,
            max: min + more,
            scale_up_busy: f64::from(busy) / 100.0,
            scale_down_after: Duration::from_secs(quiet),
        }
    })
}

/// A load that changes at random times.
fn any_load() -> impl Strategy<Value = Vec<(Duration, f64)>> {
    let piece =
        (1..200_u64, 0.0..30.0_f64).prop_map(|(secs, load)| (Duration::from_secs(secs), load));
    proptest::collection::vec(piece, 1..40)
}

fn load_at(pieces: &[(Duration, f64)], time: Duration) -> f64 {
    let mut end = Duration::ZERO;
    let found = pieces.iter().find(|(length, _)| {
        end += *length;
        time < end
    });
    found.map_or(0.0, |(_, load)| *load)
}

proptest! {
    /// Bounds are checked by the simulation at each decision.
    #[test]
    fn any_load_is_followed_without_a_flap(
        limits in any_limits(),
        load in any_load(),
        boot in 0..10_u64,
    ) {
        let length: Duration = load.iter().map(|(length, _)| *length).sum();
        let curve = |time| load_at(&load, time);
        let mut pool = Simulation::new(limits, &curve);
        pool.boot_time = Duration::from_secs(boot);
        let run = pool.run(length + limits.scale_down_after).clone();
        let mut earlier = Duration::ZERO;
        for (at, from, to, reason) in &run.changes {
            if *reason == ScalingReason::Quiet {
                prop_assert_eq!(to + 1, *from);
                prop_assert!(*at - earlier >= limits.scale_down_after, "{:?}", run.changes);
            } else {
                prop_assert!(from < to && *to <= from * 2);
            }
            earlier = *at;
        }
        let most = 2 * (length.as_secs() / limits.scale_down_after.as_secs() + 1) + 2;
        prop_assert!(run.turns() as u64 <= most);
    }

    #[test]
    fn constant_load_settles_on_what_it_requires(
        limits in any_limits(),
        load in 0.0..30.0_f64,
        before in 0.0..0.9_f64,
        boot in 0..10_u64,
    ) {
        let change = Duration::from_secs(300);
        // Not more than the pool can serve: a long queue of then would be a load of its own.
        let before = before * limits.max as f64;
        let curve = |time| if time < change { before } else { load };
        let mut pool = Simulation::new(limits, &curve);
        pool.boot_time = Duration::from_secs(boot);
        let settled = change + Duration::from_secs(300) + limits.scale_down_after * 32 * 2;
        pool.run(settled + Duration::from_secs(900));
        prop_assert_eq!(pool.result.changes_after(settled), 0, "{:?}", pool.result.changes);
        let share = load / pool.target() as f64;
        prop_assert!(share < limits.scale_up_busy || pool.target() == limits.max);
        let fewer = load / (pool.target() - 1) as f64;
        let is_small = fewer >= limits.scale_up_busy * 2.0 / 3.0 || pool.target() == limits.min;
        prop_assert!(is_small || load == 0.0, "{} of {}", load, pool.target());
    }
}
