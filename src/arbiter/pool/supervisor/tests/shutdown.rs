//! Stopping, scaling and suspending a pool.

use super::*;

#[test]
fn graceful_stop_drains_each_worker_once() {
    let mut pool = Pool::serving(POLICY, 2);
    pool.supervisor.stop(ShutdownMode::Graceful);
    assert_eq!(pool.step(), [drain(1, ExitReason::Requested), drain(2, ExitReason::Requested)]);
    pool.exits(1, ExitClass::Requested);
    assert_eq!(pool.pass(SECOND), []);
    assert_eq!(pool.supervisor.outcome(), None);
    let report = pool.exits(2, ExitClass::Requested);
    assert_eq!((report.reason, report.restart_in), (ExitReason::Requested, None));
    assert_eq!(pool.step(), []);
    assert_eq!(pool.supervisor.outcome(), Some(RunOutcome::Stopped));
}

#[test]
fn graceful_stop_kills_at_graceful_timeout() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.supervisor.stop(ShutdownMode::Graceful);
    pool.step();
    assert_eq!(pool.pass(POLICY.graceful_timeout - NANO), []);
    assert_eq!(pool.pass(NANO), [kill(1, ExitReason::Requested)]);
    assert_eq!(pool.exits(1, ExitClass::KilledExternally).reason, ExitReason::Requested);
    assert_eq!(pool.supervisor.outcome(), Some(RunOutcome::Stopped));
}

#[test]
fn quick_stop_kills_after_abort_timeout() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.supervisor.stop(ShutdownMode::Quick);
    assert_eq!(pool.step(), [Action::QuickStop(WorkerId(1))]);
    assert_eq!(pool.pass(POLICY.abort_timeout - NANO), []);
    assert_eq!(pool.pass(NANO), [kill(1, ExitReason::Requested)]);
}

#[test]
fn kill_mode_kills_without_draining() {
    let mut pool = Pool::serving(POLICY, 2);
    pool.supervisor.stop(ShutdownMode::Kill);
    assert_eq!(pool.step(), [kill(1, ExitReason::Requested), kill(2, ExitReason::Requested)]);
}

#[test]
fn kill_mode_after_quick_stop_kills_at_once() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.supervisor.stop(ShutdownMode::Quick);
    pool.step();
    pool.supervisor.stop(ShutdownMode::Kill);
    assert_eq!(pool.step(), [kill(1, ExitReason::Requested)]);
}

#[test]
fn quick_stop_during_a_drain_shortens_it() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.supervisor.stop(ShutdownMode::Graceful);
    pool.step();
    pool.pass(SECOND);
    pool.supervisor.stop(ShutdownMode::Quick);
    assert_eq!(pool.step(), [Action::QuickStop(WorkerId(1))]);
    assert_eq!(pool.pass(POLICY.abort_timeout), [kill(1, ExitReason::Requested)]);
}

#[test]
fn shutdown_mode_only_escalates() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.supervisor.stop(ShutdownMode::Quick);
    pool.supervisor.stop(ShutdownMode::Graceful);
    assert_eq!(pool.supervisor.stopping(), Some(ShutdownMode::Quick));
    assert_eq!(pool.step(), [Action::QuickStop(WorkerId(1))]);
}

#[test]
fn graceful_stop_drains_a_booting_worker() {
    let mut pool = Pool::new(POLICY, 1);
    pool.step();
    pool.supervisor.stop(ShutdownMode::Graceful);
    assert_eq!(pool.step(), [drain(1, ExitReason::Requested)]);
    assert_eq!(pool.supervisor.on_ready(WorkerId(1), pool.now), None);
    assert_eq!(pool.exits(1, ExitClass::Crashed).reason, ExitReason::Requested);
    assert_eq!(pool.supervisor.outcome(), Some(RunOutcome::Stopped));
}

#[test]
fn stop_without_workers_is_complete_at_once() {
    let mut pool = Pool::new(POLICY, 4);
    pool.supervisor.stop(ShutdownMode::Graceful);
    assert_eq!(pool.step(), []);
    assert_eq!(pool.supervisor.outcome(), Some(RunOutcome::Stopped));
}

#[test]
fn aborting_worker_keeps_its_deadline_during_stop() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.silent.insert(WorkerId(1));
    pool.pass(POLICY.timeout);
    pool.supervisor.stop(ShutdownMode::Graceful);
    assert_eq!(pool.step(), []);
    assert_eq!(pool.pass(POLICY.abort_timeout), [kill(1, ExitReason::Hung)]);
}

#[test]
fn drain_deadline_excludes_a_master_stall() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.supervisor.stop(ShutdownMode::Graceful);
    pool.step();
    pool.pass(SECOND);
    pool.stall(MINUTE);
    assert_eq!(pool.step(), []);
    assert_eq!(pool.pass(POLICY.graceful_timeout - SECOND - NANO), []);
    assert_eq!(pool.pass(NANO), [kill(1, ExitReason::Requested)]);
}

#[test]
fn repeated_master_stalls_do_not_prolong_a_drain() {
    let mut pool = Pool::serving(POLICY, 1);
    for _ in 0..3 {
        pool.stall(MINUTE); // before the drain
    }
    pool.supervisor.stop(ShutdownMode::Graceful);
    pool.step();
    for _ in 0..3 {
        pool.stall(MINUTE);
        assert_eq!(pool.step(), []);
    }
    pool.stall(MINUTE);
    assert_eq!(pool.step(), [kill(1, ExitReason::Requested)]);
}

#[test]
fn zero_graceful_timeout_kills_at_once() {
    let mut pool = Pool::serving(Policy { graceful_timeout: Duration::ZERO, ..POLICY }, 1);
    pool.supervisor.stop(ShutdownMode::Graceful);
    assert_eq!(pool.step(), [drain(1, ExitReason::Requested), kill(1, ExitReason::Requested)]);
}

#[test]
fn no_worker_starts_during_a_stop() {
    let mut pool = Pool::serving(POLICY, 2);
    pool.supervisor.on_replacement_requested(WorkerId(1));
    pool.supervisor.stop(ShutdownMode::Graceful);
    pool.step();
    pool.exits(2, ExitClass::Crashed);
    assert_eq!(pool.run(POLICY.graceful_timeout), [kill(1, ExitReason::Requested)]);
}

#[test]
fn scaling_up_spawns_at_once() {
    let mut pool = Pool::serving(POLICY, 1);
    assert_eq!(pool.supervisor.scale_to(2), 2);
    assert_eq!(pool.step(), [spawn(2, 1)]);
}

#[test]
fn scaling_down_drains_the_last_slot() {
    let mut pool = Pool::serving(POLICY, 3);
    assert_eq!(pool.supervisor.scale_to(2), 2);
    assert_eq!(pool.step(), [drain(3, ExitReason::ScaledDown)]);
    let report = pool.exits(3, ExitClass::Requested);
    assert_eq!((report.reason, report.restart_in), (ExitReason::ScaledDown, None));
    assert_eq!(pool.step(), []);
}

#[test]
fn scaling_down_keeps_a_worker_until_another_serves() {
    let mut pool = Pool::serving(POLICY, 3);
    pool.exits(1, ExitClass::KilledExternally);
    assert_eq!(pool.step(), [spawn(4, 0)]);
    pool.supervisor.scale_to(1);
    assert_eq!(pool.step(), [drain(3, ExitReason::ScaledDown)]);
    assert_eq!(pool.serving_ids(), [2]);
    pool.become_ready(4);
    assert_eq!(pool.step(), [drain(2, ExitReason::ScaledDown)]);
}

/// Returns a pool scaled down to a slot whose workers never become ready: worker 2 serves.
fn unbootable_beside_surplus() -> Pool {
    let mut pool = Pool::serving(POLICY, 2);
    pool.exits(1, ExitClass::Crashed);
    pool.supervisor.scale_to(1);
    for _ in 0..20 {
        let actions = pool.run(POLICY.boot_timeout - SECOND);
        assert!(actions.iter().all(is_spawn), "{actions:?}");
        for id in pool.booting() {
            pool.exits(id.0, ExitClass::Crashed);
        }
        assert_eq!(pool.serving_ids(), [2]);
    }
    pool
}

#[test]
fn surplus_worker_beside_an_unbootable_slot_stops() {
    let mut pool = unbootable_beside_surplus();
    pool.supervisor.suspend();
    assert_eq!(pool.step(), [drain(2, ExitReason::Requested)]);
    let mut pool = unbootable_beside_surplus();
    pool.supervisor.stop(ShutdownMode::Graceful);
    assert_eq!(pool.step(), [drain(2, ExitReason::Requested)]);
    let mut pool = unbootable_beside_surplus();
    pool.supervisor.stop(ShutdownMode::Quick);
    assert_eq!(pool.step(), [Action::QuickStop(WorkerId(2))]);
}

#[test]
fn reload_commits_beside_a_surplus_worker() {
    let mut pool = unbootable_beside_surplus();
    pool.supervisor.reload(POLICY, 1);
    assert!(pool.step().iter().all(is_spawn));
    pool.all_become_ready();
    assert_eq!(pool.step_to_commit(), [drain(2, ExitReason::ScaledDown)]);
    assert_eq!(pool.supervisor.ready_count(), 1);
}

#[test]
fn removed_pool_keeps_no_surplus_worker() {
    let mut pool = Pool::serving(POLICY, 2);
    pool.supervisor.scale_to_zero();
    assert_eq!(pool.step(), [1, 2].map(|id| drain(id, ExitReason::Reload)));
}

#[test]
fn scaling_a_running_pool_clamps_the_target() {
    let mut pool = Pool::serving(POLICY, 1);
    assert_eq!(pool.supervisor.scale_to(0), 1);
    assert_eq!(pool.step(), []);
    assert_eq!(pool.supervisor.scale_to(usize::MAX), WORKERS_MAX);
    assert_eq!(pool.step().len(), WORKERS_MAX - 1);
}

#[test]
fn scaling_up_again_does_not_wait_for_draining_worker() {
    let mut pool = Pool::serving(POLICY, 2);
    pool.supervisor.scale_to(1);
    pool.step();
    pool.supervisor.scale_to(2);
    assert_eq!(pool.step(), [spawn(3, 1)]);
}

#[test]
fn crash_in_a_scaled_down_slot_is_not_replaced() {
    let mut pool = Pool::serving(POLICY, 2);
    pool.supervisor.scale_to(1);
    assert_eq!(pool.exits(2, ExitClass::Crashed).restart_in, None);
    assert_eq!(pool.run(MINUTE), []);
}

#[test]
fn suspended_workers_drain_once_without_replacement() {
    let mut pool = Pool::serving(POLICY, 2);
    pool.supervisor.suspend();
    assert_eq!(pool.step(), [drain(1, ExitReason::Requested), drain(2, ExitReason::Requested)]);
    assert_eq!(pool.exits(1, ExitClass::Requested).restart_in, None);
    assert_eq!(pool.exits(2, ExitClass::Crashed).restart_in, None);
    assert_eq!(pool.run(MINUTE), []);
    assert_eq!(pool.supervisor.outcome(), None, "the master keeps running");
}

#[test]
fn resume_after_suspend_starts_workers() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.supervisor.suspend();
    pool.step();
    assert!(pool.supervisor.resume());
    assert!(!pool.supervisor.resume(), "true once");
    assert_eq!(pool.step(), [spawn(2, 0)], "the old one may still be draining");
}

#[test]
fn cancelled_graceful_stop_starts_workers() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.supervisor.stop(ShutdownMode::Graceful);
    assert_eq!(pool.step(), [drain(1, ExitReason::Requested)]);
    pool.supervisor.cancel_stop();
    assert_eq!(pool.step(), [spawn(2, 0)], "the old one may still be draining");
    pool.supervisor.stop(ShutdownMode::Quick);
    pool.supervisor.cancel_stop();
    assert_eq!(pool.supervisor.stopping(), Some(ShutdownMode::Quick));
}

#[test]
fn stop_ends_a_suspended_pool() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.supervisor.suspend();
    pool.step();
    pool.exits(1, ExitClass::Requested);
    pool.supervisor.stop(ShutdownMode::Graceful);
    assert_eq!(pool.step(), []);
    assert_eq!(pool.supervisor.outcome(), Some(RunOutcome::Stopped));
}

#[test]
fn boot_failure_after_suspend_does_not_fail_the_pool() {
    let mut pool = Pool::new(Policy { boot_retries: 0, ..POLICY }, 1);
    pool.step();
    pool.supervisor.suspend();
    pool.step();
    pool.exits(1, ExitClass::Crashed);
    assert_eq!(pool.supervisor.outcome(), None);
}

#[test]
fn quick_stop_signals_workers_already_draining() {
    for left in [POLICY.abort_timeout, POLICY.abort_timeout / 2, NANO] {
        let mut pool = Pool::serving(POLICY, 1);
        pool.supervisor.stop(ShutdownMode::Graceful);
        pool.step();
        pool.pass(POLICY.graceful_timeout - left);
        pool.supervisor.stop(ShutdownMode::Quick);
        assert_eq!(pool.step(), [Action::QuickStop(WorkerId(1))]);
        assert_eq!(
            pool.pass(left),
            [kill(1, ExitReason::Requested)],
            "a stop never gives more time"
        );
    }
}

#[test]
fn surplus_with_zero_graceful_timeout_dies_next_step() {
    let mut pool = Pool::serving(Policy { graceful_timeout: Duration::ZERO, ..POLICY }, 2);
    pool.supervisor.scale_to(1);
    assert_eq!(pool.supervisor.actions_due(pool.now), [drain(2, ExitReason::ScaledDown)]);
    assert_eq!(pool.supervisor.next_deadline(pool.now), Some(pool.now));
    assert_eq!(pool.step(), [kill(2, ExitReason::ScaledDown)]);
}
