//! A worker that serves: silence, long work, crashes, recycling.

use super::*;

/// A pool of one whose worker is silent from now on.
fn mute() -> Pool {
    let mut pool = Pool::serving(POLICY, 1);
    pool.mute.insert(WorkerId(1));
    pool
}

/// The worker that serves in the only slot crashes when it has served for so long.
fn crash_after(pool: &mut Pool, served: Duration) -> Duration {
    pool.all_ready();
    pool.pass(served);
    let id = pool.serving_ids()[0];
    let delay = pool.ends(id, ExitClass::Crashed).restart_in.expect("the slot is wished for");
    assert_eq!(pool.pass(delay), [spawn(id + 1, 0)]);
    delay
}

#[test]
fn an_idle_master_wakes_for_the_heartbeat_alone() {
    let pool = Pool::serving(POLICY, 4);
    assert_eq!(pool.roster.next_deadline(pool.now), Some(pool.now.saturating_add(POLICY.timeout)));
}

#[test]
fn a_silent_worker_is_aborted_at_exactly_the_timeout_and_killed_after_the_grace() {
    let mut pool = mute();
    assert_eq!(pool.pass(POLICY.timeout - NANO), []);
    assert_eq!(pool.pass(NANO), [abort(1, Hang::NoHeartbeat(POLICY.timeout))]);
    assert_eq!(pool.pass(POLICY.abort_timeout - NANO), []);
    assert_eq!(pool.pass(NANO), [kill(1, ExitReason::Hung), spawn(2, 0)]);
    assert_eq!(pool.pass(SECOND), [], "a kill is handed out once");
}

#[test]
fn a_worker_that_obeys_the_abort_is_replaced_at_once() {
    let mut pool = mute();
    pool.pass(POLICY.timeout);
    let report = pool.ends(1, ExitClass::Crashed);
    assert_eq!(report.reason, ExitReason::Hung);
    assert_eq!(report.uptime, POLICY.timeout);
    assert_eq!(report.restart_in, Some(Duration::ZERO));
    assert_eq!(pool.step(), [spawn(2, 0)]);
}

#[test]
fn a_fresh_heartbeat_saves_a_suspect() {
    let mut pool = mute();
    pool.now = pool.now.saturating_add(POLICY.timeout);
    assert_eq!(pool.roster.liveness_check_due(pool.now), [WorkerId(1)]);
    let beat = pool.now;
    pool.roster.on_liveness(WorkerId(1), beat, None);
    assert_eq!(pool.roster.liveness_check_due(pool.now), []);
    assert_eq!(pool.step(), []);
    assert_eq!(pool.roster.next_deadline(pool.now), Some(beat.saturating_add(POLICY.timeout)));
}

#[test]
fn nobody_is_measured_before_there_is_a_suspicion() {
    let mut pool = Pool::serving(POLICY, 2);
    pool.now = pool.now.saturating_add(POLICY.timeout - NANO);
    assert_eq!(pool.roster.liveness_check_due(pool.now), []);
}

#[test]
fn a_worker_that_beats_but_is_too_long_at_one_unit_is_told_apart() {
    let mut pool = mute();
    let begun = pool.now.saturating_add(SECOND);
    pool.now = begun.saturating_add(POLICY.timeout - NANO);
    pool.roster.on_liveness(WorkerId(1), pool.now, Some(alone(begun)));
    assert_eq!(pool.step(), []);
    pool.now = begun.saturating_add(POLICY.timeout);
    pool.roster.on_liveness(WorkerId(1), pool.now, Some(alone(begun)));
    assert_eq!(pool.step(), [abort(1, Hang::RequestTimeout(POLICY.timeout))]);
}

#[test]
fn a_unit_that_has_ended_saves_the_worker() {
    let mut pool = mute();
    let begun = pool.now;
    pool.roster.on_liveness(WorkerId(1), begun, Some(alone(begun)));
    pool.now = begun.saturating_add(POLICY.timeout);
    assert_eq!(pool.roster.liveness_check_due(pool.now), [WorkerId(1)]);
    pool.roster.on_liveness(WorkerId(1), pool.now, None);
    assert_eq!(pool.step(), []);
}

#[test]
fn a_silent_worker_at_work_is_judged_by_its_work_alone() {
    let mut pool = mute();
    let beat = pool.now;
    let begun = beat.saturating_add(SECOND);
    pool.roster.on_liveness(WorkerId(1), beat, Some(alone(begun)));
    assert_eq!(pool.roster.next_deadline(begun), Some(begun.saturating_add(POLICY.timeout)));
    assert_eq!(pool.pass(SECOND + POLICY.timeout - NANO), []);
    assert_eq!(pool.pass(NANO), [abort(1, Hang::RequestTimeout(POLICY.timeout))]);
}

#[test]
fn nobody_is_blamed_for_silence_in_which_the_master_did_not_run() {
    let mut pool = mute();
    let begun = pool.now;
    pool.oversleep(MINUTE);
    pool.roster.on_liveness(WorkerId(1), begun, Some(alone(begun)));
    assert_eq!(pool.step(), []);
    assert_eq!(pool.pass(POLICY.timeout - NANO), []);
    let age = MINUTE + POLICY.timeout;
    assert_eq!(pool.pass(NANO), [abort(1, Hang::RequestTimeout(age))]);
}

#[test]
fn a_timeout_of_zero_is_never() {
    let mut pool = Pool::serving(Policy { timeout: Duration::ZERO, ..POLICY }, 1);
    pool.mute.insert(WorkerId(1));
    assert_eq!(pool.roster.next_deadline(pool.now), None);
    assert_eq!(pool.pass(YEAR), []);
}

#[test]
fn a_grace_of_zero_kills_on_the_next_turn_of_the_same_moment() {
    let mut pool = Pool::serving(Policy { abort_timeout: Duration::ZERO, ..POLICY }, 1);
    let now = pool.now.saturating_add(POLICY.timeout);
    assert_eq!(pool.roster.due(now), [abort(1, Hang::NoHeartbeat(POLICY.timeout))]);
    assert_eq!(pool.roster.next_deadline(now), Some(now));
    assert_eq!(pool.roster.due(now), [kill(1, ExitReason::Hung), spawn(2, 0)]);
}

#[test]
fn a_healthy_worker_that_crashes_is_replaced_at_once() {
    let mut pool = Pool::serving(POLICY, 2);
    let report = pool.ends(2, ExitClass::Crashed);
    assert_eq!(report.reason, ExitReason::Crashed);
    assert_eq!((report.slot, report.generation), (1, 1));
    assert_eq!(report.restart_in, Some(Duration::ZERO));
    assert_eq!(pool.step(), [spawn(3, 1)]);
}

#[test]
fn quick_crashes_back_off_longer_and_longer_up_to_half_a_minute() {
    let mut pool = Pool::serving(POLICY, 1);
    let delays: Vec<_> = (0..20).map(|_| crash_after(&mut pool, SECOND)).collect();
    assert_eq!(delays[0], Duration::ZERO);
    assert!(delays[..10].is_sorted_by(|a, b| a < b), "{delays:?}");
    assert!(delays.iter().all(|delay| *delay <= BACKOFF_MAX), "{delays:?}");
    assert!(BACKOFF_MAX.mul_f64(0.75) <= delays[19], "{delays:?}");
}

#[test]
fn a_stable_minute_resets_the_back_off() {
    let mut pool = Pool::serving(POLICY, 1);
    crash_after(&mut pool, SECOND);
    crash_after(&mut pool, SECOND);
    assert_ne!(crash_after(&mut pool, MINUTE - NANO), Duration::ZERO);
    assert_eq!(crash_after(&mut pool, MINUTE), Duration::ZERO);
    assert_ne!(crash_after(&mut pool, SECOND), Duration::ZERO);
}

#[test]
fn a_kill_from_outside_never_backs_off() {
    let mut pool = Pool::serving(POLICY, 1);
    for id in 1..50 {
        let report = pool.ends(id, ExitClass::KilledExternally);
        assert_eq!(report.reason, ExitReason::Crashed);
        assert_eq!(report.restart_in, Some(Duration::ZERO));
        assert_eq!(pool.step(), [spawn(id + 1, 0)]);
        pool.ready(id + 1);
    }
}

#[test]
fn a_worker_that_leaves_obediently_on_its_own_is_replaced_without_back_off() {
    let mut pool = Pool::serving(POLICY, 1);
    for id in 1..20 {
        let report = pool.ends(id, ExitClass::Requested);
        assert_eq!(report.reason, ExitReason::Requested);
        assert_eq!(pool.step(), [spawn(id + 1, 0)]);
        pool.ready(id + 1);
    }
}

#[test]
fn a_worker_that_somebody_else_asked_to_leave_is_replaced_while_it_drains() {
    let mut pool = Pool::serving(POLICY, 1);
    assert!(pool.roster.on_draining(WorkerId(1), pool.now));
    assert!(!pool.roster.on_draining(WorkerId(1), pool.now), "news once");
    assert_eq!(pool.roster.ready_count(), 0);
    assert_eq!(pool.step(), [spawn(2, 0)]);
    pool.ready(2);
    assert_eq!(pool.pass(POLICY.graceful_timeout - NANO), []);
    assert_eq!(pool.pass(NANO), [kill(1, ExitReason::Requested)]);
}

#[test]
fn what_the_master_asked_to_leave_is_no_news() {
    let mut pool = Pool::serving(POLICY, 2);
    pool.roster.scale_to(1);
    assert_eq!(pool.step(), [drain(2, ExitReason::ScaledDown)]);
    assert!(!pool.roster.on_draining(WorkerId(2), pool.now));
}

#[test]
fn a_spent_worker_is_asked_to_go_once_its_successor_is_ready() {
    let mut pool = Pool::serving(POLICY, 2);
    pool.roster.on_replacement_requested(WorkerId(2));
    assert_eq!(pool.step(), [spawn(3, 1)]);
    assert_eq!(pool.pass(SECOND), []);
    assert_eq!(pool.roster.ready_count(), 2);
    pool.ready(3);
    assert_eq!(pool.step(), [drain(2, ExitReason::Recycled)]);
    assert_eq!(pool.ends(2, ExitClass::Requested).reason, ExitReason::Recycled);
    assert_eq!(pool.step(), []);
    assert_eq!(pool.serving_ids(), [1, 3]);
}

#[test]
fn a_successor_that_cannot_boot_leaves_the_spent_worker_serving() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.roster.on_replacement_requested(WorkerId(1));
    assert_eq!(pool.step(), [spawn(2, 0)]);
    assert_eq!(pool.ends(2, ExitClass::Crashed).restart_in, None, "the slot is not empty");
    assert_eq!(pool.step(), []);
    let next = pool.roster.next_deadline(pool.now).expect("it is tried again");
    let delay = next.duration_since(pool.now);
    assert!((75 * MILLI..=100 * MILLI).contains(&delay), "{delay:?}");
    assert_eq!(pool.pass(delay - NANO), []);
    assert_eq!(pool.pass(NANO), [spawn(3, 0)]);
    assert_eq!(pool.serving_ids(), [1]);
}

#[test]
fn a_spent_worker_that_crashes_is_replaced_by_the_successor_on_its_way() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.roster.on_replacement_requested(WorkerId(1));
    assert_eq!(pool.step(), [spawn(2, 0)]);
    pool.ends(1, ExitClass::Crashed);
    assert_eq!(pool.pass(SECOND), []);
    pool.ready(2);
    assert_eq!(pool.step(), []);
}

#[test]
fn workers_that_are_spent_at_once_are_replaced_a_few_at_a_time() {
    let mut pool = Pool::serving(Policy { max_surge: 2, ..POLICY }, 5);
    (1..=5).for_each(|id| pool.roster.on_replacement_requested(WorkerId(id)));
    assert_eq!(pool.step(), [spawn(6, 0), spawn(7, 1)]);
    pool.ready(7);
    assert_eq!(pool.step(), [drain(2, ExitReason::Recycled), spawn(8, 2)]);
    pool.ready(6);
    pool.ready(8);
    let next = [spawn(9, 3), spawn(10, 4)];
    assert_eq!(pool.step()[2..], next);
    assert_eq!(pool.settle().len(), 2);
    assert_eq!(pool.serving_ids(), [6, 7, 8, 9, 10]);
}

#[test]
fn spent_workers_may_be_replaced_in_place() {
    let policy = Policy { max_surge: 0, max_unavailable: 2, ..POLICY };
    let mut pool = Pool::serving(policy, 5);
    (1..=5).for_each(|id| pool.roster.on_replacement_requested(WorkerId(id)));
    let gone = [1, 2].map(|id| drain(id, ExitReason::Recycled));
    assert_eq!(pool.step(), [&gone[..], &[spawn(6, 0), spawn(7, 1)]].concat());
    assert_eq!(pool.roster.ready_count(), 3);
    pool.ends(6, ExitClass::Crashed);
    assert_eq!(pool.pass(SECOND), [spawn(8, 0)], "nobody else goes while one is missing");
    pool.ready(7);
    assert_eq!(pool.step(), [drain(3, ExitReason::Recycled), spawn(9, 2)]);
    pool.settle();
    assert_eq!(pool.serving_ids(), [8, 7, 9, 10, 11]);
}

#[test]
fn a_worker_that_has_lived_long_enough_is_recycled() {
    let mut pool = Pool::serving(Policy { max_lifetime: 20 * SECOND, ..POLICY }, 1);
    assert_eq!(pool.roster.next_deadline(pool.now), Some(pool.now.saturating_add(20 * SECOND)));
    assert_eq!(pool.pass(20 * SECOND - NANO), []);
    assert_eq!(pool.pass(NANO), [spawn(2, 0)]);
    pool.pass(SECOND);
    pool.ready(2);
    assert_eq!(pool.step(), [drain(1, ExitReason::Recycled)]);
    pool.ends(1, ExitClass::Requested);
    assert_eq!(pool.pass(20 * SECOND), [spawn(3, 0)]);
}

#[test]
fn a_lifetime_that_waits_for_room_does_not_wake_the_master() {
    let mut pool = Pool::serving(Policy { max_lifetime: 20 * SECOND, ..POLICY }, 3);
    assert_eq!(pool.pass(20 * SECOND), [spawn(4, 0)]);
    assert_eq!(pool.roster.next_deadline(pool.now), Some(pool.now.saturating_add(10 * SECOND)));
}

#[test]
fn lifetimes_are_spread_by_their_jitter_and_never_shorter() {
    let (life, jitter) = (20 * SECOND, 10 * SECOND);
    let policy =
        Policy { max_lifetime: life, max_lifetime_jitter: jitter, max_surge: 50, ..POLICY };
    let mut pool = Pool::serving(policy, 50);
    assert_eq!(pool.pass(life - NANO), []);
    let half = pool.run(jitter / 2).iter().filter(|action| is_spawn(action)).count();
    assert!((10..=40).contains(&half), "{half} of 50 in the first half");
    let all = half + pool.run(jitter / 2 + NANO).iter().filter(|action| is_spawn(action)).count();
    assert_eq!(all, 50);
}

#[test]
fn a_lifetime_of_zero_is_never() {
    let mut pool = Pool::serving(POLICY, 1);
    assert_eq!(pool.pass(YEAR), []);
}

#[test]
fn a_successor_that_is_being_aborted_counts_as_one_on_its_way() {
    let mut pool = Pool::serving(POLICY, 2);
    pool.roster.on_replacement_requested(WorkerId(1));
    pool.roster.on_replacement_requested(WorkerId(2));
    assert_eq!(pool.step(), [spawn(3, 0)]);
    assert_eq!(pool.pass(POLICY.boot_timeout), [abort(3, Hang::BootTimeout(POLICY.boot_timeout))]);
}

#[test]
fn nobody_is_promised_where_the_successor_already_serves() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.roster.on_replacement_requested(WorkerId(1));
    pool.step();
    pool.ready(2);
    pool.step();
    assert_eq!(pool.ends(1, ExitClass::Requested).restart_in, None);
}

#[test]
fn the_wait_that_is_promised_is_kept_though_an_earlier_failure_set_it() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.roster.on_replacement_requested(WorkerId(1));
    assert_eq!(pool.roster.due(pool.now), [spawn(2, 0)]);
    let wait = pool.roster.on_spawn_failed(0, pool.now);
    assert_eq!(pool.ends(1, ExitClass::KilledExternally).restart_in, Some(wait));
    assert_eq!(pool.pass(wait - NANO), []);
    assert_eq!(pool.pass(NANO), [spawn(3, 0)]);
}

#[test]
fn who_is_killed_for_lack_of_memory_is_no_murder_victim() {
    let mut pool = Pool::serving(POLICY, 1);
    for (id, forgiven) in [(1, true), (2, false)] {
        let report = pool.ends(id, ExitClass::OomKilled);
        assert_eq!(report.reason, ExitReason::OomKilled);
        assert_eq!(report.restart_in.is_some_and(|delay| delay.is_zero()), forgiven);
        pool.run(SECOND);
        pool.all_ready();
    }
}

#[test]
fn a_boot_that_ends_for_lack_of_memory_is_a_failed_boot() {
    let mut pool = Pool::new(POLICY, 1);
    pool.step();
    assert_eq!(pool.ends(1, ExitClass::OomKilled).reason, ExitReason::BootFailed);
}
