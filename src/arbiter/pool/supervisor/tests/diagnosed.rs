//! An overdue worker is diagnosed before a timeout is enforced, and the cause matters.

use super::*;

const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);

/// Returns a pool whose worker 1 is silent, overdue and due for its second sample.
fn under_diagnosis() -> Pool {
    let mut pool = Pool::serving(POLICY, 1);
    pool.silent.insert(WorkerId(1));
    pool.now = pool.now.saturating_add(POLICY.timeout);
    assert_eq!(pool.supervisor.liveness_check_due(pool.now), [WorkerId(1)]);
    assert_eq!(pool.supervisor.overdue(pool.now), [WorkerId(1)]);
    pool.supervisor.defer_verdict(WorkerId(1), pool.now.saturating_add(SAMPLE_INTERVAL));
    assert_eq!(pool.step(), []);
    assert_eq!(
        pool.supervisor.next_deadline(pool.now),
        Some(pool.now.saturating_add(SAMPLE_INTERVAL))
    );
    pool.now = pool.now.saturating_add(SAMPLE_INTERVAL);
    assert_eq!(pool.supervisor.overdue(pool.now), [WorkerId(1)]);
    pool
}

#[test]
fn blocked_worker_is_aborted_after_second_sample() {
    assert_eq!(
        under_diagnosis().step(),
        [abort(1, Hang::NoHeartbeat(POLICY.timeout + SAMPLE_INTERVAL))]
    );
}

#[test]
fn recovered_worker_is_not_aborted() {
    let mut pool = under_diagnosis();
    pool.silent.clear();
    assert_eq!(pool.step(), []);
    assert_eq!(pool.supervisor.overdue(pool.now), []);
}

#[test]
fn extend_timeout_restarts_the_timeout() {
    let mut pool = under_diagnosis();
    pool.supervisor.extend_timeout(WorkerId(1), pool.now);
    assert_eq!(pool.pass(POLICY.timeout - NANO), []);
    assert_eq!(pool.supervisor.overdue(pool.now), []);
    pool.now = pool.now.saturating_add(NANO);
    assert_eq!(pool.supervisor.overdue(pool.now), [WorkerId(1)]);
    assert!(matches!(pool.step()[..], [Action::Abort(..)]));
}

#[test]
fn unresponsive_worker_is_killed_once_and_replaced() {
    let mut pool = under_diagnosis();
    pool.supervisor.mark_unresponsive(WorkerId(1));
    let kill = Action::KillHung(WorkerId(1), Hang::NoHeartbeat(POLICY.timeout + SAMPLE_INTERVAL));
    assert_eq!(pool.step(), [kill, spawn(2, 0)]);
    pool.become_ready(2);
    assert_eq!(pool.run(MINUTE), [], "one replacement, however long the exit takes");
    assert_eq!(pool.exits(1, ExitClass::KilledExternally).reason, ExitReason::Hung);
}

#[test]
fn core_dump_gets_time_and_a_replacement() {
    let mut pool = under_diagnosis();
    assert!(pool.supervisor.on_core_dump(WorkerId(1), pool.now));
    assert!(!pool.supervisor.on_core_dump(WorkerId(1), pool.now), "once");
    assert_eq!(pool.step(), [spawn(2, 0)]);
    pool.become_ready(2);
    assert_eq!(pool.pass(CORE_DUMP_TIMEOUT - NANO), []);
    assert_eq!(pool.pass(NANO), [kill(1, ExitReason::Crashed)]);
}

#[test]
fn core_dump_after_abort_gets_time() {
    let mut pool = under_diagnosis();
    assert!(matches!(pool.step()[..], [Action::Abort(..)]));
    pool.now = pool.now.saturating_add(POLICY.abort_timeout);
    assert_eq!(pool.supervisor.kill_candidates(pool.now), [WorkerId(1)]);
    assert!(pool.supervisor.on_core_dump(WorkerId(1), pool.now));
    assert_eq!(pool.step(), [spawn(2, 0)]);
    pool.become_ready(2);
    assert_eq!(pool.pass(CORE_DUMP_TIMEOUT), [kill(1, ExitReason::Hung)]);
}

#[test]
fn core_dump_while_draining_gets_time_once() {
    let mut pool = Pool::serving(POLICY, 2);
    pool.supervisor.on_replacement_requested(WorkerId(1));
    assert_eq!(pool.step(), [spawn(3, 0)]);
    pool.become_ready(3);
    assert_eq!(pool.step(), [drain(1, ExitReason::Recycled)]);
    assert_eq!(pool.supervisor.kill_candidates(pool.now), []);
    pool.now = pool.now.saturating_add(POLICY.graceful_timeout);
    assert_eq!(pool.supervisor.kill_candidates(pool.now), [WorkerId(1)]);
    assert!(pool.supervisor.on_core_dump(WorkerId(1), pool.now));
    assert_eq!(pool.pass(CORE_DUMP_TIMEOUT - NANO), []);
    pool.now = pool.now.saturating_add(NANO);
    assert_eq!(pool.supervisor.kill_candidates(pool.now), []);
    assert!(!pool.supervisor.on_core_dump(WorkerId(1), pool.now), "once");
    assert_eq!(pool.step(), [kill(1, ExitReason::Recycled)]);
}

#[test]
fn core_dump_during_quick_stop_gets_no_time() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.supervisor.stop(ShutdownMode::Graceful);
    assert_eq!(pool.step(), [drain(1, ExitReason::Requested)]);
    pool.now = pool.now.saturating_add(POLICY.graceful_timeout);
    assert_eq!(pool.supervisor.kill_candidates(pool.now), []);
    assert_eq!(pool.step(), [kill(1, ExitReason::Requested)]);
}

#[test]
fn abort_timeout_starts_when_the_signal_was_sent() {
    let mut pool = under_diagnosis();
    assert!(matches!(pool.step()[..], [Action::Abort(..)]));
    pool.now = pool.now.saturating_add(SECOND); // a hook took that long
    pool.supervisor.on_aborted(WorkerId(1), pool.now);
    assert_eq!(pool.pass(POLICY.abort_timeout - NANO), []);
    assert_eq!(pool.pass(NANO), [kill(1, ExitReason::Hung), spawn(2, 0)]);
}

#[test]
fn current_timeout_depends_on_the_state() {
    let mut pool = Pool::new(POLICY, 1);
    pool.step();
    assert_eq!(pool.supervisor.current_timeout(WorkerId(1)), POLICY.boot_timeout);
    pool.become_ready(1);
    assert_eq!(pool.supervisor.current_timeout(WorkerId(1)), POLICY.timeout);
}

#[test]
fn overdue_boot_is_diagnosed() {
    let mut pool = Pool::new(POLICY, 1);
    pool.step();
    pool.now = pool.now.saturating_add(POLICY.boot_timeout);
    assert_eq!(pool.supervisor.overdue(pool.now), [WorkerId(1)]);
    pool.supervisor.extend_timeout(WorkerId(1), pool.now);
    assert_eq!(pool.step(), []);
    pool.now = pool.now.saturating_add(POLICY.boot_timeout);
    pool.supervisor.mark_unresponsive(WorkerId(1));
    let kill = Action::KillHung(WorkerId(1), Hang::BootTimeout(2 * POLICY.boot_timeout));
    assert_eq!(pool.step(), [kill, spawn(2, 0)]);
}
