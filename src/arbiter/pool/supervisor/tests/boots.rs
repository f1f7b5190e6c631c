//! Before a worker is ready: forks, timeouts, back-off, exhausted retries.

use proptest::prelude::{ProptestConfig, any, proptest};

use super::*;

/// Fails every boot of the only slot. Returns the delays, for at most `attempts` attempts.
fn delays_of_failing_boots(pool: &mut Pool, attempts: u64) -> Vec<Duration> {
    assert_eq!(pool.step(), [spawn(1, 0)]);
    (1..=attempts)
        .map_while(|id| {
            let delay = pool.exits(id, ExitClass::Crashed).restart_in?;
            assert_eq!(pool.step(), []);
            assert_eq!(pool.pass(delay - NANO), []);
            assert_eq!(pool.pass(NANO), [spawn(id + 1, 0)]);
            Some(delay)
        })
        .collect()
}

#[test]
fn first_step_spawns_a_worker_for_each_slot() {
    let mut pool = Pool::new(POLICY, 3);
    assert_eq!(pool.step(), [spawn(1, 0), spawn(2, 1), spawn(3, 2)]);
}

#[test]
fn spawn_is_issued_once_until_its_result_is_known() {
    let mut supervisor = Supervisor::new(POLICY, 1, 7);
    let now = MonotonicTime::from_nanos(1);
    assert_eq!(supervisor.actions_due(now), [spawn(1, 0)]);
    assert_eq!(supervisor.actions_due(now.saturating_add(YEAR)), []);
    assert_eq!(supervisor.next_deadline(now), None);
}

#[test]
fn new_clamps_the_target() {
    assert_eq!(Supervisor::new(POLICY, 0, 7).target(), 1);
    assert_eq!(Supervisor::new(POLICY, usize::MAX, 7).target(), WORKERS_MAX);
}

#[test]
fn on_ready_returns_uptime_only_once() {
    let mut pool = Pool::new(POLICY, 1);
    pool.step();
    pool.pass(SECOND);
    assert_eq!(pool.supervisor.ready_count(), 0);
    assert_eq!(pool.supervisor.on_ready(WorkerId(1), pool.now), Some(SECOND));
    assert_eq!(pool.supervisor.on_ready(WorkerId(1), pool.now), None);
    assert_eq!(pool.supervisor.on_ready(WorkerId(9), pool.now), None);
    assert_eq!(pool.supervisor.ready_count(), 1);
}

#[test]
fn failed_fork_is_retried_after_a_delay() {
    let mut supervisor = Supervisor::new(POLICY, 1, 7);
    let now = MonotonicTime::from_nanos(1);
    assert_eq!(supervisor.actions_due(now), [spawn(1, 0)]);
    let delay = supervisor.on_spawn_failed(0, now);
    assert!((600 * MILLI..=800 * MILLI).contains(&delay), "{delay:?}");
    assert_eq!(supervisor.next_deadline(now), Some(now.saturating_add(delay)));
    assert_eq!(supervisor.actions_due(now.saturating_add(delay - NANO)), []);
    assert_eq!(supervisor.actions_due(now.saturating_add(delay)), [spawn(2, 0)]);
}

#[test]
fn failed_forks_never_fail_the_pool() {
    let mut supervisor = Supervisor::new(Policy { boot_retries: 0, ..POLICY }, 1, 7);
    let mut now = MonotonicTime::from_nanos(1);
    for id in 1..100 {
        assert_eq!(supervisor.actions_due(now), [spawn(id, 0)]);
        now = now.saturating_add(supervisor.on_spawn_failed(0, now));
    }
    assert_eq!(supervisor.outcome(), None);
}

#[test]
fn impossible_spawns_fail_the_pool_like_boots() {
    let mut supervisor = Supervisor::new(Policy { boot_retries: 2, ..POLICY }, 2, 7);
    let mut now = MonotonicTime::from_nanos(1);
    let mut attempts = 0;
    while supervisor.outcome().is_none() {
        for action in supervisor.actions_due(now) {
            let Action::Spawn { slot, .. } = action else { panic!("{action:?}") };
            supervisor.on_spawn_impossible(slot, now);
            attempts += 1;
        }
        now = supervisor.next_deadline(now).unwrap_or(now);
        assert!(attempts <= 6, "never given up");
    }
    assert_eq!((supervisor.outcome(), attempts), (Some(RunOutcome::NeverReady), 6));
}

#[test]
fn impossible_spawns_are_retried_once_a_worker_was_ready() {
    let mut pool = Pool::serving(Policy { boot_retries: 0, ..POLICY }, 1);
    pool.exits(1, ExitClass::KilledExternally);
    for id in 2..100 {
        assert_eq!(pool.supervisor.actions_due(pool.now), [spawn(id, 0)]);
        let delay = pool.supervisor.on_spawn_impossible(0, pool.now);
        assert!(delay >= 600 * MILLI);
        pool.now = pool.now.saturating_add(delay);
    }
    assert_eq!(pool.supervisor.outcome(), None);
}

#[test]
fn overdue_boot_is_aborted_then_killed() {
    let mut pool = Pool::new(POLICY, 1);
    pool.step();
    assert_eq!(
        pool.supervisor.next_deadline(pool.now),
        Some(pool.now.saturating_add(POLICY.boot_timeout))
    );
    assert_eq!(pool.pass(POLICY.boot_timeout - NANO), []);
    assert_eq!(pool.pass(NANO), [abort(1, Hang::BootTimeout(POLICY.boot_timeout))]);
    assert_eq!(pool.pass(SECOND - NANO), []);
    assert_eq!(pool.pass(NANO)[0], kill(1, ExitReason::BootFailed));
    assert_eq!(pool.exits(1, ExitClass::KilledExternally).reason, ExitReason::BootFailed);
}

#[test]
fn boot_just_in_time_is_not_aborted() {
    let mut pool = Pool::new(POLICY, 1);
    pool.step();
    pool.pass(POLICY.boot_timeout - NANO);
    pool.become_ready(1);
    assert_eq!(pool.pass(NANO), []);
}

#[test]
fn zero_boot_timeout_never_aborts() {
    let mut pool = Pool::new(Policy { boot_timeout: Duration::ZERO, ..POLICY }, 1);
    pool.step();
    assert_eq!(pool.supervisor.next_deadline(pool.now), None);
    assert_eq!(pool.pass(YEAR), []);
}

#[test]
fn boot_timeout_excludes_a_master_stall() {
    let mut pool = Pool::new(POLICY, 1);
    pool.step();
    pool.stall(MINUTE);
    assert_eq!(pool.step(), []);
    assert_eq!(pool.pass(POLICY.boot_timeout - NANO), []);
    let age = MINUTE + POLICY.boot_timeout;
    assert_eq!(pool.pass(NANO), [abort(1, Hang::BootTimeout(age))]);
}

#[test]
fn failed_boots_back_off_up_to_30_seconds() {
    let mut pool = Pool::new(Policy { boot_retries: 30, ..POLICY }, 1);
    let delays = delays_of_failing_boots(&mut pool, 20);
    assert!((75 * MILLI..=100 * MILLI).contains(&delays[0]), "{delays:?}");
    assert!(delays[..9].is_sorted_by(|a, b| a < b), "{delays:?}");
    assert!(delays.iter().all(|delay| *delay <= BACKOFF_MAX), "{delays:?}");
    assert!(delays[9..].iter().all(|delay| BACKOFF_MAX.mul_f64(0.75) <= *delay), "{delays:?}");
}

#[test]
fn failing_slot_is_retried_boot_retries_times() {
    let mut pool = Pool::new(POLICY, 1);
    assert_eq!(delays_of_failing_boots(&mut pool, 99).len(), POLICY.boot_retries as usize);
    assert_eq!(pool.supervisor.outcome(), Some(RunOutcome::NeverReady));
    assert_eq!(pool.pass(YEAR), []);
}

#[test]
fn zero_boot_retries_fails_after_one_boot() {
    let mut pool = Pool::new(Policy { boot_retries: 0, ..POLICY }, 1);
    pool.step();
    assert_eq!(pool.exits(1, ExitClass::Crashed).restart_in, None);
    assert_eq!(pool.supervisor.outcome(), Some(RunOutcome::NeverReady));
}

#[test]
fn pool_fails_only_after_every_slot_is_exhausted() {
    let mut pool = Pool::new(Policy { boot_retries: 2, ..POLICY }, 3);
    let mut spawns = 0;
    while pool.supervisor.outcome().is_none() {
        spawns += pool.run(BACKOFF_MAX.min(10 * SECOND)).iter().filter(|a| is_spawn(a)).count();
        for id in pool.booting() {
            pool.exits(id.0, ExitClass::Crashed);
        }
    }
    assert_eq!(spawns, 9);
    assert_eq!(pool.supervisor.outcome(), Some(RunOutcome::NeverReady));
}

#[test]
fn pool_never_fails_once_a_worker_was_ready() {
    let mut pool = Pool::new(Policy { boot_retries: 0, ..POLICY }, 1);
    pool.step();
    pool.become_ready(1);
    pool.exits(1, ExitClass::Crashed);
    for id in 2..50 {
        assert_eq!(pool.pass(BACKOFF_MAX), [spawn(id, 0)]);
        assert!(pool.exits(id, ExitClass::Crashed).restart_in.is_some());
    }
    assert_eq!(pool.supervisor.outcome(), None);
}

#[test]
fn one_exhausted_slot_never_fails_the_pool() {
    let mut pool = Pool::new(Policy { boot_retries: 0, ..POLICY }, 2);
    pool.step();
    assert_eq!(pool.exits(1, ExitClass::Crashed).restart_in, None);
    assert_eq!(pool.pass(SECOND), []);
    assert_eq!(pool.supervisor.outcome(), None);
    pool.become_ready(2);
    assert_eq!(pool.step(), [spawn(3, 0)], "a ready worker resets the limit");
}

#[test]
fn on_exit_of_unknown_worker_is_none() {
    let mut pool = Pool::serving(POLICY, 1);
    assert_eq!(
        pool.supervisor.on_exit(WorkerId(9), observation(ExitClass::Crashed), pool.now),
        None
    );
    assert_eq!(pool.step(), []);
}

#[test]
fn scaling_down_to_exhausted_slots_fails_the_pool() {
    let mut pool = Pool::new(Policy { boot_retries: 1, ..POLICY }, 2);
    pool.step();
    pool.exits(1, ExitClass::Crashed);
    assert_eq!(pool.pass(SECOND), [spawn(3, 0)]);
    pool.exits(3, ExitClass::Crashed); // the first slot is exhausted
    pool.exits(2, ExitClass::Crashed); // the second slot has one retry left
    assert_eq!(pool.supervisor.outcome(), None);
    pool.supervisor.scale_to(1);
    assert_eq!(pool.supervisor.outcome(), Some(RunOutcome::NeverReady));
    assert_eq!(pool.run(MINUTE), []);
}

#[test]
fn scaling_down_during_fork_retry_can_fail_the_pool() {
    let mut pool = Pool::new(Policy { boot_retries: 0, ..POLICY }, 2);
    assert_eq!(pool.supervisor.actions_due(pool.now), [spawn(1, 0), spawn(2, 1)]);
    pool.supervisor.on_spawned(WorkerId(1), 0, pool.now);
    pool.supervisor.on_spawn_failed(1, pool.now);
    pool.exits(1, ExitClass::Crashed);
    pool.supervisor.scale_to(1);
    assert_eq!(pool.supervisor.outcome(), Some(RunOutcome::NeverReady));
}

#[test]
fn scaling_up_gives_a_failing_pool_more_attempts() {
    let mut pool = Pool::new(Policy { boot_retries: 0, ..POLICY }, 2);
    pool.step();
    pool.exits(1, ExitClass::Crashed);
    pool.supervisor.scale_to(3);
    assert_eq!(pool.step(), [spawn(3, 2)]);
    pool.exits(2, ExitClass::Crashed);
    assert_eq!(pool.supervisor.outcome(), None);
    pool.exits(3, ExitClass::Crashed);
    assert_eq!(pool.supervisor.outcome(), Some(RunOutcome::NeverReady));
}

#[test]
fn failed_pool_kills_remaining_workers() {
    let mut pool = Pool::new(Policy { boot_retries: 0, ..POLICY }, 3);
    pool.step();
    pool.supervisor.scale_to(2);
    assert_eq!(pool.step(), [drain(3, ExitReason::ScaledDown)]);
    pool.exits(1, ExitClass::Crashed);
    pool.supervisor.scale_to(1);
    assert_eq!(pool.step(), [kill(2, ExitReason::Requested), kill(3, ExitReason::ScaledDown)]);
    assert_eq!(pool.supervisor.outcome(), None, "not all have exited");
    pool.exits(2, ExitClass::KilledExternally);
    assert_eq!(pool.exits(3, ExitClass::KilledExternally).restart_in, None);
    assert_eq!(pool.supervisor.outcome(), Some(RunOutcome::NeverReady));
}

fn spawned_max_units(policy: Policy, count: usize) -> Vec<u64> {
    let actions = Pool::new(policy, count).step();
    let max_units = actions.iter().map(|action| match action {
        Action::Spawn { max_units, .. } => *max_units,
        other => panic!("{other:?}"),
    });
    max_units.collect()
}

#[test]
fn max_units_without_max_requests_is_zero() {
    let policy = Policy { max_requests_jitter: 50, ..POLICY };
    assert_eq!(spawned_max_units(policy, 9), [0; 9]);
}

#[test]
fn max_units_without_jitter_is_max_requests() {
    let policy = Policy { max_requests: 100, ..POLICY };
    assert_eq!(spawned_max_units(policy, 9), [100; 9]);
}

#[test]
fn max_units_are_spread_over_the_jitter() {
    let policy = Policy { max_requests: 100, max_requests_jitter: 9, ..POLICY };
    let drawn: BTreeSet<u64> = spawned_max_units(policy, 1000).into_iter().collect();
    assert_eq!(drawn, (100..=109).collect());
}

#[test]
fn max_units_of_a_retried_fork_are_drawn_again() {
    let policy = Policy { max_requests: 1, max_requests_jitter: u64::MAX - 2, ..POLICY };
    let mut supervisor = Supervisor::new(policy, 1, 7);
    let now = MonotonicTime::from_nanos(1);
    let first = supervisor.actions_due(now);
    let delay = supervisor.on_spawn_failed(0, now);
    let second = supervisor.actions_due(now.saturating_add(delay));
    let [Action::Spawn { max_units: first, .. }] = first[..] else { panic!("{first:?}") };
    let [Action::Spawn { max_units: second, .. }] = second[..] else { panic!("{second:?}") };
    assert_ne!(first, second);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn max_units_random_settings_stay_within_the_jitter(
        max_requests in any::<u64>(),
        max_requests_jitter in any::<u64>(),
    ) {
        let policy = Policy { max_requests, max_requests_jitter, ..POLICY };
        let highest = match max_requests {
            0 => 0,
            _ => max_requests.saturating_add(max_requests_jitter),
        };
        for max_units in spawned_max_units(policy, 5) {
            assert!((max_requests..=highest).contains(&max_units), "{max_units}");
        }
    }
}
