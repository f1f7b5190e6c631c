//! Before a worker is ready: forks, time-outs, back-off, hopelessness.

use super::*;

/// The delays before each try of the only slot, for as long as it is tried.
fn delays_of_failing_boots(pool: &mut Pool, tries: u64) -> Vec<Duration> {
    assert_eq!(pool.step(), [spawn(1, 0)]);
    (1..=tries)
        .map_while(|id| {
            let delay = pool.ends(id, ExitClass::Crashed).restart_in?;
            assert_eq!(pool.step(), []);
            assert_eq!(pool.pass(delay - NANO), []);
            assert_eq!(pool.pass(NANO), [spawn(id + 1, 0)]);
            Some(delay)
        })
        .collect()
}

#[test]
fn the_first_step_spawns_a_worker_for_each_slot() {
    let mut pool = Pool::new(POLICY, 3);
    assert_eq!(pool.step(), [spawn(1, 0), spawn(2, 1), spawn(3, 2)]);
}

#[test]
fn a_spawn_is_handed_out_once_while_its_fate_is_unknown() {
    let mut supervisor = Supervisor::new(POLICY, 1, 7);
    let now = MonotonicTime::from_nanos(1);
    assert_eq!(supervisor.due(now), [spawn(1, 0)]);
    assert_eq!(supervisor.due(now.saturating_add(YEAR)), []);
    assert_eq!(supervisor.next_deadline(now), None);
}

#[test]
fn the_number_of_workers_is_held_between_one_and_the_most() {
    assert_eq!(Supervisor::new(POLICY, 0, 7).target(), 1);
    assert_eq!(Supervisor::new(POLICY, usize::MAX, 7).target(), WORKERS_MAX);
}

#[test]
fn ready_is_news_once_and_tells_the_age() {
    let mut pool = Pool::new(POLICY, 1);
    pool.step();
    pool.pass(SECOND);
    assert_eq!(pool.roster.ready_count(), 0);
    assert_eq!(pool.roster.on_ready(WorkerId(1), pool.now), Some(SECOND));
    assert_eq!(pool.roster.on_ready(WorkerId(1), pool.now), None);
    assert_eq!(pool.roster.on_ready(WorkerId(9), pool.now), None);
    assert_eq!(pool.roster.ready_count(), 1);
}

#[test]
fn a_fork_that_fails_is_tried_again_after_a_moment() {
    let mut supervisor = Supervisor::new(POLICY, 1, 7);
    let now = MonotonicTime::from_nanos(1);
    assert_eq!(supervisor.due(now), [spawn(1, 0)]);
    let delay = supervisor.on_spawn_failed(0, now);
    assert!((600 * MILLI..=800 * MILLI).contains(&delay), "{delay:?}");
    assert_eq!(supervisor.next_deadline(now), Some(now.saturating_add(delay)));
    assert_eq!(supervisor.due(now.saturating_add(delay - NANO)), []);
    assert_eq!(supervisor.due(now.saturating_add(delay)), [spawn(2, 0)]);
}

#[test]
fn forks_that_fail_never_end_the_whole() {
    let mut supervisor = Supervisor::new(Policy { boot_retries: 0, ..POLICY }, 1, 7);
    let mut now = MonotonicTime::from_nanos(1);
    for id in 1..100 {
        assert_eq!(supervisor.due(now), [spawn(id, 0)]);
        now = now.saturating_add(supervisor.on_spawn_failed(0, now));
    }
    assert_eq!(supervisor.outcome(), None);
}

#[test]
fn a_worker_that_is_not_ready_in_time_is_aborted_then_killed() {
    let mut pool = Pool::new(POLICY, 1);
    pool.step();
    assert_eq!(pool.roster.next_deadline(pool.now), Some(pool.now.saturating_add(POLICY.boot_timeout)));
    assert_eq!(pool.pass(POLICY.boot_timeout - NANO), []);
    assert_eq!(pool.pass(NANO), [abort(1, Hang::BootTimeout(POLICY.boot_timeout))]);
    assert_eq!(pool.pass(SECOND - NANO), []);
    assert_eq!(pool.pass(NANO)[0], kill(1, ExitReason::BootFailed));
    assert_eq!(pool.ends(1, ExitClass::KilledExternally).reason, ExitReason::BootFailed);
}

#[test]
fn a_worker_that_is_ready_in_time_is_left_alone() {
    let mut pool = Pool::new(POLICY, 1);
    pool.step();
    pool.pass(POLICY.boot_timeout - NANO);
    pool.ready(1);
    assert_eq!(pool.pass(NANO), []);
}

#[test]
fn a_boot_timeout_of_zero_is_never() {
    let mut pool = Pool::new(Policy { boot_timeout: Duration::ZERO, ..POLICY }, 1);
    pool.step();
    assert_eq!(pool.roster.next_deadline(pool.now), None);
    assert_eq!(pool.pass(YEAR), []);
}

#[test]
fn a_boot_is_not_blamed_for_time_in_which_the_master_did_not_run() {
    let mut pool = Pool::new(POLICY, 1);
    pool.step();
    pool.oversleep(MINUTE);
    assert_eq!(pool.step(), []);
    assert_eq!(pool.pass(POLICY.boot_timeout - NANO), []);
    let age = MINUTE + POLICY.boot_timeout;
    assert_eq!(pool.pass(NANO), [abort(1, Hang::BootTimeout(age))]);
}

#[test]
fn failing_boots_back_off_longer_and_longer_up_to_half_a_minute() {
    let mut pool = Pool::new(Policy { boot_retries: 30, ..POLICY }, 1);
    let delays = delays_of_failing_boots(&mut pool, 20);
    assert!((75 * MILLI..=100 * MILLI).contains(&delays[0]), "{delays:?}");
    assert!(delays[..9].is_sorted_by(|a, b| a < b), "{delays:?}");
    assert!(delays.iter().all(|delay| *delay <= BACKOFF_MAX), "{delays:?}");
    assert!(delays[9..].iter().all(|delay| BACKOFF_MAX.mul_f64(0.75) <= *delay), "{delays:?}");
}

#[test]
fn a_slot_is_tried_once_and_as_often_again_as_the_retries_say() {
    let mut pool = Pool::new(POLICY, 1);
    assert_eq!(delays_of_failing_boots(&mut pool, 99).len(), POLICY.boot_retries as usize);
    assert_eq!(pool.roster.outcome(), Some(RunOutcome::NeverReady));
    assert_eq!(pool.pass(YEAR), []);
}

#[test]
fn without_retries_one_failure_ends_it() {
    let mut pool = Pool::new(Policy { boot_retries: 0, ..POLICY }, 1);
    pool.step();
    assert_eq!(pool.ends(1, ExitClass::Crashed).restart_in, None);
    assert_eq!(pool.roster.outcome(), Some(RunOutcome::NeverReady));
}

#[test]
fn the_whole_gives_up_only_after_every_slot() {
    let mut pool = Pool::new(Policy { boot_retries: 2, ..POLICY }, 3);
    let mut spawns = 0;
    while pool.roster.outcome().is_none() {
        spawns += pool.run(BACKOFF_MAX.min(10 * SECOND)).iter().filter(|a| is_spawn(a)).count();
        for id in pool.booting() {
            pool.ends(id.0, ExitClass::Crashed);
        }
    }
    assert_eq!(spawns, 9);
    assert_eq!(pool.roster.outcome(), Some(RunOutcome::NeverReady));
}

#[test]
fn the_whole_never_gives_up_once_one_was_ready() {
    let mut pool = Pool::new(Policy { boot_retries: 0, ..POLICY }, 1);
    pool.step();
    pool.ready(1);
    pool.ends(1, ExitClass::Crashed);
    for id in 2..50 {
        assert_eq!(pool.pass(BACKOFF_MAX), [spawn(id, 0)]);
        assert!(pool.ends(id, ExitClass::Crashed).restart_in.is_some());
    }
    assert_eq!(pool.roster.outcome(), None);
}

#[test]
fn one_slot_that_fails_never_ends_the_whole() {
    let mut pool = Pool::new(Policy { boot_retries: 0, ..POLICY }, 2);
    pool.step();
    assert_eq!(pool.ends(1, ExitClass::Crashed).restart_in, None);
    assert_eq!(pool.pass(SECOND), []);
    assert_eq!(pool.roster.outcome(), None);
    pool.ready(2);
    assert_eq!(pool.step(), [spawn(3, 0)], "where one can serve, another can");
}

#[test]
fn a_stranger_that_ends_is_nobodys_concern() {
    let mut pool = Pool::serving(POLICY, 1);
    assert_eq!(pool.roster.on_exit(WorkerId(9), ExitClass::Crashed, pool.now), None);
    assert_eq!(pool.step(), []);
}

#[test]
fn fewer_workers_than_slots_that_still_have_a_try_can_mean_giving_up() {
    let mut pool = Pool::new(Policy { boot_retries: 1, ..POLICY }, 2);
    pool.step();
    pool.ends(1, ExitClass::Crashed);
    assert_eq!(pool.pass(SECOND), [spawn(3, 0)]);
    pool.ends(3, ExitClass::Crashed); // the first slot is used up
    pool.ends(2, ExitClass::Crashed); // the second waits for its other try
    assert_eq!(pool.roster.outcome(), None);
    pool.roster.scale_to(1);
    assert_eq!(pool.roster.outcome(), Some(RunOutcome::NeverReady));
    assert_eq!(pool.run(MINUTE), []);
}

#[test]
fn fewer_workers_while_a_fork_is_to_be_tried_again_can_mean_giving_up() {
    let mut pool = Pool::new(Policy { boot_retries: 0, ..POLICY }, 2);
    assert_eq!(pool.roster.due(pool.now), [spawn(1, 0), spawn(2, 1)]);
    pool.roster.on_spawned(WorkerId(1), 0, pool.now);
    pool.roster.on_spawn_failed(1, pool.now);
    pool.ends(1, ExitClass::Crashed);
    pool.roster.scale_to(1);
    assert_eq!(pool.roster.outcome(), Some(RunOutcome::NeverReady));
}

#[test]
fn more_workers_give_a_whole_that_fails_more_tries() {
    let mut pool = Pool::new(Policy { boot_retries: 0, ..POLICY }, 2);
    pool.step();
    pool.ends(1, ExitClass::Crashed);
    pool.roster.scale_to(3);
    assert_eq!(pool.step(), [spawn(3, 2)]);
    pool.ends(2, ExitClass::Crashed);
    assert_eq!(pool.roster.outcome(), None);
    pool.ends(3, ExitClass::Crashed);
    assert_eq!(pool.roster.outcome(), Some(RunOutcome::NeverReady));
}

#[test]
fn a_whole_that_gives_up_kills_whoever_is_left() {
    let mut pool = Pool::new(Policy { boot_retries: 0, ..POLICY }, 3);
    pool.step();
    pool.roster.scale_to(2);
    assert_eq!(pool.step(), [drain(3, ExitReason::ScaledDown)]);
    pool.ends(1, ExitClass::Crashed);
    pool.roster.scale_to(1);
    assert_eq!(pool.step(), [kill(2, ExitReason::Requested), kill(3, ExitReason::ScaledDown)]);
    assert_eq!(pool.roster.outcome(), None, "they are still there");
    pool.ends(2, ExitClass::KilledExternally);
    assert_eq!(pool.ends(3, ExitClass::KilledExternally).restart_in, None);
    assert_eq!(pool.roster.outcome(), Some(RunOutcome::NeverReady));
}
