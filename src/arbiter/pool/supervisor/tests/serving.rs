//! A ready worker: silence, long units of work, crashes, recycling.

use super::*;

/// Returns a pool of one whose worker sends no heartbeat from now on.
fn silent() -> Pool {
    let mut pool = Pool::serving(POLICY, 1);
    pool.silent.insert(WorkerId(1));
    pool
}

#[test]
fn idle_pool_next_deadline_is_the_heartbeat_timeout() {
    let pool = Pool::serving(POLICY, 4);
    assert_eq!(
        pool.supervisor.next_deadline(pool.now),
        Some(pool.now.saturating_add(POLICY.timeout))
    );
}

#[test]
fn silent_worker_is_aborted_at_timeout_then_killed() {
    let mut pool = silent();
    assert_eq!(pool.pass(POLICY.timeout - NANO), []);
    assert_eq!(pool.pass(NANO), [abort(1, Hang::NoHeartbeat(POLICY.timeout))]);
    assert_eq!(pool.pass(POLICY.abort_timeout - NANO), []);
    assert_eq!(pool.pass(NANO), [kill(1, ExitReason::Hung), spawn(2, 0)]);
    assert_eq!(pool.pass(SECOND), [], "a kill is returned once");
}

#[test]
fn aborted_worker_that_exits_is_replaced_at_once() {
    let mut pool = silent();
    pool.pass(POLICY.timeout);
    let report = pool.exits(1, ExitClass::Crashed);
    assert_eq!(report.reason, ExitReason::Hung);
    assert_eq!(report.uptime, POLICY.timeout);
    assert_eq!(report.restart_in, Some(Duration::ZERO));
    assert_eq!(pool.step(), [spawn(2, 0)]);
}

#[test]
fn fresh_heartbeat_prevents_abort() {
    let mut pool = silent();
    pool.now = pool.now.saturating_add(POLICY.timeout);
    assert_eq!(pool.supervisor.liveness_check_due(pool.now), [WorkerId(1)]);
    let beat = pool.now;
    pool.supervisor.on_liveness(WorkerId(1), beat, None);
    assert_eq!(pool.supervisor.liveness_check_due(pool.now), []);
    assert_eq!(pool.step(), []);
    assert_eq!(pool.supervisor.next_deadline(pool.now), Some(beat.saturating_add(POLICY.timeout)));
}

#[test]
fn liveness_is_not_read_before_the_timeout() {
    let mut pool = Pool::serving(POLICY, 2);
    pool.now = pool.now.saturating_add(POLICY.timeout - NANO);
    assert_eq!(pool.supervisor.liveness_check_due(pool.now), []);
}

#[test]
fn overdue_unit_of_beating_worker_is_request_timeout() {
    let mut pool = silent();
    let begun = pool.now.saturating_add(SECOND);
    pool.now = begun.saturating_add(POLICY.timeout - NANO);
    pool.supervisor.on_liveness(WorkerId(1), pool.now, Some(single_unit(begun)));
    assert_eq!(pool.step(), []);
    pool.now = begun.saturating_add(POLICY.timeout);
    pool.supervisor.on_liveness(WorkerId(1), pool.now, Some(single_unit(begun)));
    assert_eq!(pool.step(), [abort(1, Hang::RequestTimeout(POLICY.timeout))]);
}

#[test]
fn finished_unit_prevents_abort() {
    let mut pool = silent();
    let begun = pool.now;
    pool.supervisor.on_liveness(WorkerId(1), begun, Some(single_unit(begun)));
    pool.now = begun.saturating_add(POLICY.timeout);
    assert_eq!(pool.supervisor.liveness_check_due(pool.now), [WorkerId(1)]);
    pool.supervisor.on_liveness(WorkerId(1), pool.now, None);
    assert_eq!(pool.step(), []);
}

#[test]
fn busy_silent_worker_times_out_by_its_unit() {
    let mut pool = silent();
    let beat = pool.now;
    let begun = beat.saturating_add(SECOND);
    pool.supervisor.on_liveness(WorkerId(1), beat, Some(single_unit(begun)));
    assert_eq!(pool.supervisor.next_deadline(begun), Some(begun.saturating_add(POLICY.timeout)));
    assert_eq!(pool.pass(SECOND + POLICY.timeout - NANO), []);
    assert_eq!(pool.pass(NANO), [abort(1, Hang::RequestTimeout(POLICY.timeout))]);
}

#[test]
fn silence_during_a_master_stall_does_not_count() {
    let mut pool = silent();
    let begun = pool.now;
    pool.stall(MINUTE);
    pool.supervisor.on_liveness(WorkerId(1), begun, Some(single_unit(begun)));
    assert_eq!(pool.step(), []);
    assert_eq!(pool.pass(POLICY.timeout - NANO), []);
    let age = MINUTE + POLICY.timeout;
    assert_eq!(pool.pass(NANO), [abort(1, Hang::RequestTimeout(age))]);
}

#[test]
fn repeated_master_stalls_do_not_hide_a_hang() {
    let mut pool = silent();
    for _ in 0..3 {
        pool.stall(MINUTE);
        assert_eq!(pool.step(), []);
    }
    pool.stall(MINUTE);
    assert_eq!(pool.step(), [abort(1, Hang::NoHeartbeat(4 * MINUTE))]);
}

#[test]
fn progress_allows_further_master_stalls() {
    let mut pool = silent();
    for _ in 0..10 {
        pool.stall(MINUTE);
        assert_eq!(pool.step(), []);
        pool.supervisor.on_liveness(WorkerId(1), pool.now, None);
    }
}

#[test]
fn zero_timeout_never_aborts() {
    let mut pool = Pool::serving(Policy { timeout: Duration::ZERO, ..POLICY }, 1);
    pool.silent.insert(WorkerId(1));
    assert_eq!(pool.supervisor.next_deadline(pool.now), None);
    assert_eq!(pool.pass(YEAR), []);
}

#[test]
fn zero_abort_timeout_kills_on_the_next_step() {
    let mut pool = Pool::serving(Policy { abort_timeout: Duration::ZERO, ..POLICY }, 1);
    let now = pool.now.saturating_add(POLICY.timeout);
    assert_eq!(pool.supervisor.actions_due(now), [abort(1, Hang::NoHeartbeat(POLICY.timeout))]);
    assert_eq!(pool.supervisor.next_deadline(now), Some(now));
    assert_eq!(pool.supervisor.actions_due(now), [kill(1, ExitReason::Hung), spawn(2, 0)]);
}

#[test]
fn external_kill_never_backs_off() {
    let mut pool = Pool::serving(POLICY, 1);
    for id in 1..50 {
        let report = pool.exits(id, ExitClass::KilledExternally);
        assert_eq!(report.reason, ExitReason::Crashed);
        assert_eq!(report.restart_in, Some(Duration::ZERO));
        assert_eq!(pool.step(), [spawn(id + 1, 0)]);
        pool.become_ready(id + 1);
    }
}

#[test]
fn unrequested_clean_exit_is_replaced_without_back_off() {
    let mut pool = Pool::serving(POLICY, 1);
    for id in 1..20 {
        assert_eq!(pool.pass(SECOND), []);
        let report = pool.exits(id, ExitClass::Requested);
        assert_eq!(report.reason, ExitReason::Requested);
        assert_eq!(pool.step(), [spawn(id + 1, 0)]);
        pool.become_ready(id + 1);
    }
}

#[test]
fn workers_that_drain_before_they_have_served_back_off_from_the_second_on() {
    let mut pool = Pool::serving(POLICY, 1);
    assert_eq!(pool.exits(1, ExitClass::Requested).restart_in, Some(Duration::ZERO));
    let mut last = Duration::ZERO;
    for id in 2..6 {
        assert_eq!(pool.step(), [spawn(id, 0)]);
        pool.become_ready(id);
        let delay = pool.exits(id, ExitClass::Requested).restart_in.expect("it is replaced");
        assert!(delay > last, "{delay:?} after {last:?}");
        last = delay;
        pool.advance(delay);
    }
}

#[test]
fn workers_that_drain_before_they_have_served_are_replaced_up_to_a_limit() {
    let mut pool = Pool::serving(POLICY, 1);
    for id in 1..4 {
        assert!(pool.supervisor.on_draining(WorkerId(id), pool.now));
        assert_eq!(pool.step(), [spawn(id + 1, 0)]);
        pool.become_ready(id + 1);
    }
    assert!(pool.supervisor.on_draining(WorkerId(4), pool.now));
    assert_eq!(pool.step(), []);
    assert_eq!(pool.pass(SECOND), []);
    pool.exits(1, ExitClass::Requested);
    assert_eq!(pool.step(), [spawn(5, 0)]);
}

#[test]
fn workers_that_have_served_and_drain_are_all_replaced() {
    let mut pool = Pool::serving(POLICY, 1);
    for id in 1..8 {
        assert_eq!(pool.pass(SECOND), []);
        assert!(pool.supervisor.on_draining(WorkerId(id), pool.now));
        assert_eq!(pool.step(), [spawn(id + 1, 0)]);
        pool.become_ready(id + 1);
    }
}

#[test]
fn externally_stopped_worker_is_replaced_while_draining() {
    let mut pool = Pool::serving(POLICY, 1);
    assert!(pool.supervisor.on_draining(WorkerId(1), pool.now));
    assert!(!pool.supervisor.on_draining(WorkerId(1), pool.now), "true once");
    assert_eq!(pool.supervisor.ready_count(), 0);
    assert_eq!(pool.step(), [spawn(2, 0)]);
    pool.become_ready(2);
    assert_eq!(pool.pass(POLICY.graceful_timeout - NANO), []);
    assert_eq!(pool.pass(NANO), [kill(1, ExitReason::Requested)]);
}

#[test]
fn on_draining_of_requested_drain_is_false() {
    let mut pool = Pool::serving(POLICY, 2);
    pool.supervisor.scale_to(1);
    assert_eq!(pool.step(), [drain(2, ExitReason::ScaledDown)]);
    assert!(!pool.supervisor.on_draining(WorkerId(2), pool.now));
}

#[test]
fn recycled_worker_drains_once_replacement_is_ready() {
    let mut pool = Pool::serving(POLICY, 2);
    pool.supervisor.on_replacement_requested(WorkerId(2));
    assert_eq!(pool.step(), [spawn(3, 1)]);
    assert_eq!(pool.pass(SECOND), []);
    assert_eq!(pool.supervisor.ready_count(), 2);
    pool.become_ready(3);
    assert_eq!(pool.step(), [drain(2, ExitReason::Recycled)]);
    assert_eq!(pool.exits(2, ExitClass::Requested).reason, ExitReason::Recycled);
    assert_eq!(pool.step(), []);
    assert_eq!(pool.serving_ids(), [1, 3]);
}

#[test]
fn failed_replacement_keeps_the_old_worker_serving() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.supervisor.on_replacement_requested(WorkerId(1));
    assert_eq!(pool.step(), [spawn(2, 0)]);
    assert_eq!(pool.exits(2, ExitClass::Crashed).restart_in, None, "the slot is served");
    assert_eq!(pool.step(), []);
    let next = pool.supervisor.next_deadline(pool.now).expect("a retry");
    let delay = next.duration_since(pool.now);
    assert!((75 * MILLI..=100 * MILLI).contains(&delay), "{delay:?}");
    assert_eq!(pool.pass(delay - NANO), []);
    assert_eq!(pool.pass(NANO), [spawn(3, 0)]);
    assert_eq!(pool.serving_ids(), [1]);
}

#[test]
fn crash_of_recycled_worker_uses_pending_replacement() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.supervisor.on_replacement_requested(WorkerId(1));
    assert_eq!(pool.step(), [spawn(2, 0)]);
    pool.exits(1, ExitClass::Crashed);
    assert_eq!(pool.pass(SECOND), []);
    pool.become_ready(2);
    assert_eq!(pool.step(), []);
}

#[test]
fn simultaneous_recycling_is_bounded_by_max_surge() {
    let mut pool = Pool::serving(Policy { max_surge: 2, ..POLICY }, 5);
    (1..=5).for_each(|id| pool.supervisor.on_replacement_requested(WorkerId(id)));
    assert_eq!(pool.step(), [spawn(6, 0), spawn(7, 1)]);
    pool.become_ready(7);
    assert_eq!(pool.step(), [drain(2, ExitReason::Recycled), spawn(8, 2)]);
    pool.become_ready(6);
    pool.become_ready(8);
    let next = [spawn(9, 3), spawn(10, 4)];
    assert_eq!(pool.step()[2..], next);
    assert_eq!(pool.run_until_idle().len(), 2);
    assert_eq!(pool.serving_ids(), [6, 7, 8, 9, 10]);
}

#[test]
fn recycling_in_place_is_bounded_by_max_unavailable() {
    let policy = Policy { max_surge: 0, max_unavailable: 2, ..POLICY };
    let mut pool = Pool::serving(policy, 5);
    (1..=5).for_each(|id| pool.supervisor.on_replacement_requested(WorkerId(id)));
    let drained = [1, 2].map(|id| drain(id, ExitReason::Recycled));
    assert_eq!(pool.step(), [&drained[..], &[spawn(6, 0), spawn(7, 1)]].concat());
    assert_eq!(pool.supervisor.ready_count(), 3);
    pool.exits(6, ExitClass::Crashed);
    assert_eq!(pool.pass(SECOND), [spawn(8, 0)], "no other worker drains while one is missing");
    pool.become_ready(7);
    assert_eq!(pool.step(), [drain(3, ExitReason::Recycled), spawn(9, 2)]);
    pool.run_until_idle();
    assert_eq!(pool.serving_ids(), [8, 7, 9, 10, 11]);
}

#[test]
fn max_lifetime_reached_recycles_the_worker() {
    let mut pool = Pool::serving(Policy { max_lifetime: 20 * SECOND, ..POLICY }, 1);
    assert_eq!(pool.supervisor.next_deadline(pool.now), Some(pool.now.saturating_add(20 * SECOND)));
    assert_eq!(pool.pass(20 * SECOND - NANO), []);
    assert_eq!(pool.pass(NANO), [spawn(2, 0)]);
    pool.pass(SECOND);
    pool.become_ready(2);
    assert_eq!(pool.step(), [drain(1, ExitReason::Recycled)]);
    pool.exits(1, ExitClass::Requested);
    assert_eq!(pool.pass(20 * SECOND), [spawn(3, 0)]);
}

#[test]
fn expired_lifetime_awaiting_surge_sets_no_deadline() {
    let mut pool = Pool::serving(Policy { max_lifetime: 20 * SECOND, ..POLICY }, 3);
    assert_eq!(pool.pass(20 * SECOND), [spawn(4, 0)]);
    assert_eq!(pool.supervisor.next_deadline(pool.now), Some(pool.now.saturating_add(10 * SECOND)));
}

#[test]
fn lifetime_jitter_spreads_and_never_shortens() {
    let life = 20 * SECOND;
    let jitter = 10 * SECOND;
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
fn zero_lifetime_never_recycles() {
    let mut pool = Pool::serving(POLICY, 1);
    assert_eq!(pool.pass(YEAR), []);
}

#[test]
fn aborting_replacement_still_counts_against_surge() {
    let mut pool = Pool::serving(POLICY, 2);
    pool.supervisor.on_replacement_requested(WorkerId(1));
    pool.supervisor.on_replacement_requested(WorkerId(2));
    assert_eq!(pool.step(), [spawn(3, 0)]);
    assert_eq!(pool.pass(POLICY.boot_timeout), [abort(3, Hang::BootTimeout(POLICY.boot_timeout))]);
}

#[test]
fn restart_in_is_none_where_replacement_serves() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.supervisor.on_replacement_requested(WorkerId(1));
    pool.step();
    pool.become_ready(2);
    pool.step();
    assert_eq!(pool.exits(1, ExitClass::Requested).restart_in, None);
}

#[test]
fn restart_in_includes_earlier_fork_back_off() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.supervisor.on_replacement_requested(WorkerId(1));
    assert_eq!(pool.supervisor.actions_due(pool.now), [spawn(2, 0)]);
    let delay = pool.supervisor.on_spawn_failed(0, pool.now);
    assert_eq!(pool.exits(1, ExitClass::KilledExternally).restart_in, Some(delay));
    assert_eq!(pool.pass(delay - NANO), []);
    assert_eq!(pool.pass(NANO), [spawn(3, 0)]);
}

#[test]
fn oom_kill_during_boot_is_boot_failed() {
    let mut pool = Pool::new(POLICY, 1);
    pool.step();
    assert_eq!(pool.exits(1, ExitClass::OomKilled).reason, ExitReason::BootFailed);
}
