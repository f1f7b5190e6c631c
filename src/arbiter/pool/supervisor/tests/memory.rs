//! Memory samples against `max_memory`.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{ProptestConfig, proptest};

use super::*;

const LIMIT: u64 = 100 << 20;
const LIMITED: Policy = Policy { max_memory: LIMIT, ..POLICY };
const ABOVE: Option<u64> = Some(LIMIT + 1);

/// Reports the samples of worker 1. Returns the answers.
fn samples<const N: usize>(pool: &mut Pool, samples: [Option<u64>; N]) -> [Option<u64>; N] {
    samples.map(|bytes| pool.supervisor.on_memory_sample(WorkerId(1), bytes))
}

#[test]
fn memory_third_sample_above_limit_recycles_the_worker() {
    let mut pool = Pool::serving(LIMITED, 1);
    assert_eq!(samples(&mut pool, [ABOVE, ABOVE]), [None, None]);
    assert_eq!(pool.step(), []);
    assert_eq!(samples(&mut pool, [Some(LIMIT + 7)]), [Some(LIMIT + 7)]);
    assert_eq!(pool.step(), [spawn(2, 0)]);
    pool.become_ready(2);
    assert_eq!(pool.step(), [drain(1, ExitReason::Recycled)]);
}

#[test]
fn memory_at_the_limit_is_not_above_it() {
    let mut pool = Pool::serving(LIMITED, 1);
    assert_eq!(samples(&mut pool, [Some(LIMIT); 4]), [None; 4]);
}

#[test]
fn memory_sample_below_limit_restarts_the_count() {
    let mut pool = Pool::serving(LIMITED, 1);
    let peaks = [ABOVE, ABOVE, Some(LIMIT), ABOVE, ABOVE];
    assert_eq!(samples(&mut pool, peaks), [None; 5]);
    assert_eq!(samples(&mut pool, [ABOVE]), [ABOVE]);
}

#[test]
fn memory_unreadable_sample_restarts_the_count() {
    let mut pool = Pool::serving(LIMITED, 1);
    assert_eq!(samples(&mut pool, [ABOVE, ABOVE, None, ABOVE]), [None; 4]);
}

#[test]
fn memory_above_limit_is_reported_once() {
    let mut pool = Pool::serving(LIMITED, 1);
    assert_eq!(samples(&mut pool, [ABOVE; 5]), [None, None, ABOVE, None, None]);
    assert_eq!(pool.supervisor.memory_checks(), []);
}

#[test]
fn memory_without_limit_is_not_sampled() {
    let mut pool = Pool::serving(POLICY, 1);
    assert_eq!(pool.supervisor.memory_checks(), []);
    assert!(!pool.supervisor.any_memory_limited());
    assert_eq!(samples(&mut pool, [Some(u64::MAX); 3]), [None; 3]);
}

#[test]
fn memory_is_sampled_only_of_ready_workers() {
    let mut pool = Pool::new(LIMITED, 3);
    pool.step();
    pool.become_ready(1);
    pool.become_ready(2);
    pool.supervisor.on_draining(WorkerId(2), pool.now);
    assert_eq!(pool.supervisor.memory_checks(), [(WorkerId(1), LIMIT)]);
    assert!(pool.supervisor.any_memory_limited());
}

#[test]
fn memory_limit_of_old_workers_survives_a_reload() {
    let mut pool = Pool::serving(LIMITED, 1);
    pool.supervisor.reload(Policy { max_memory: 2 * LIMIT, ..POLICY }, 1);
    assert_eq!(pool.step(), [spawn(2, 0)]);
    assert_eq!(pool.supervisor.memory_checks(), [(WorkerId(1), LIMIT)]);
    pool.become_ready(2);
    pool.step_to_commit();
    assert_eq!(pool.supervisor.memory_checks(), [(WorkerId(2), 2 * LIMIT)]);
}

#[test]
fn memory_sample_of_unknown_worker_is_ignored() {
    let mut pool = Pool::serving(LIMITED, 1);
    for _ in 0..4 {
        assert_eq!(pool.supervisor.on_memory_sample(WorkerId(9), ABOVE), None);
    }
    assert_eq!(pool.step(), []);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the samples, the first run of three above the limit is reported, and nothing else.
    #[test]
    fn memory_random_samples_report_the_first_run_of_three(
        series in vec(option::weighted(0.95, 0..2 * LIMIT), 0..40)
    ) {
        let mut pool = Pool::serving(LIMITED, 1);
        let is_above = |bytes: &Option<u64>| bytes.is_some_and(|bytes| bytes > LIMIT);
        let first = series.windows(3).position(|run| run.iter().all(is_above));
        for (index, bytes) in series.iter().enumerate() {
            let is_third = first.is_some_and(|first| first + 2 == index);
            let expected = bytes.filter(|_| is_third);
            assert_eq!(pool.supervisor.on_memory_sample(WorkerId(1), *bytes), expected);
        }
        assert_eq!(!pool.step().is_empty(), first.is_some());
    }
}
