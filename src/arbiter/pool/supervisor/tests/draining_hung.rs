//! One thread of a worker hangs: the worker is replaced, and its other threads may finish.

use super::*;

/// When the hung thread began its unit of work, from the start.
const HANGS_FROM: Duration = SECOND;

/// When the other thread began its unit of work, from the start.
const WORKS_FROM: Duration = Duration::from_secs(15);

fn busy(pool: &mut Pool, id: u64, oldest: MonotonicTime, newest: MonotonicTime) {
    pool.busy.insert(WorkerId(id), Busy { oldest, newest });
}

/// Returns a pool 1 ns before one of the two threads of worker 1 exceeds `timeout`.
fn almost_hung(policy: Policy, target: usize) -> Pool {
    let mut pool = Pool::serving(policy, target);
    let start = pool.now;
    busy(&mut pool, 1, start.saturating_add(HANGS_FROM), start.saturating_add(WORKS_FROM));
    pool.now = start.saturating_add(HANGS_FROM + POLICY.timeout - NANO);
    assert_eq!(pool.step(), []);
    pool
}

/// Returns a pool of one whose worker 1 drains as hung while its replacement 2 boots.
fn draining_hung() -> Pool {
    let mut pool = almost_hung(POLICY, 1);
    assert_eq!(pool.pass(NANO), [drain_hung(1, Hang::RequestTimeout(POLICY.timeout)), spawn(2, 0)]);
    pool
}

#[test]
fn one_hung_thread_drains_the_worker_and_replaces_it() {
    let mut pool = draining_hung();
    assert_eq!(pool.supervisor.ready_count(), 0);
    pool.become_ready(2);
    assert_eq!(pool.step(), [], "once");
    assert_eq!(pool.serving_ids(), [2]);
}

#[test]
fn all_threads_hung_aborts_the_worker() {
    let mut pool = Pool::serving(POLICY, 1);
    let begun = pool.now;
    busy(&mut pool, 1, begun, begun);
    assert_eq!(pool.pass(POLICY.timeout), [abort(1, Hang::RequestTimeout(POLICY.timeout))]);
}

#[test]
fn hang_excludes_a_master_stall() {
    let mut pool = almost_hung(POLICY, 1);
    pool.stall(SECOND);
    assert_eq!(pool.step(), []);
}

#[test]
fn zero_timeout_never_drains_as_hung() {
    let mut pool = almost_hung(Policy { timeout: Duration::ZERO, ..POLICY }, 1);
    assert_eq!(pool.pass(YEAR), []);
}

#[test]
fn draining_hung_worker_is_checked_often() {
    let mut pool = draining_hung();
    pool.become_ready(2);
    assert_eq!(pool.supervisor.liveness_check_due(pool.now), [WorkerId(1)]);
    for _ in 0..10 {
        let next = pool.supervisor.next_deadline(pool.now);
        assert_eq!(next, Some(pool.now.saturating_add(HUNG_DRAIN_CHECK_INTERVAL)));
        assert_eq!(pool.pass(HUNG_DRAIN_CHECK_INTERVAL), []);
    }
}

#[test]
fn draining_hung_aborted_once_other_threads_finish() {
    let mut pool = draining_hung();
    let hung = pool.now.duration_since(MonotonicTime::default()) - POLICY.timeout;
    assert_eq!(pool.pass(SECOND), []);
    pool.busy.insert(WorkerId(1), single_unit(MonotonicTime::default().saturating_add(hung)));
    assert_eq!(pool.pass(SECOND), [abort(1, Hang::RequestTimeout(POLICY.timeout + 2 * SECOND))]);
    assert_eq!(pool.pass(POLICY.abort_timeout - NANO), []);
    assert_eq!(pool.pass(NANO), [kill(1, ExitReason::Hung)]);
    assert_eq!(pool.exits(1, ExitClass::KilledExternally).reason, ExitReason::Hung);
}

#[test]
fn draining_hung_aborted_when_other_threads_hang() {
    let mut pool = almost_hung(Policy { graceful_timeout: YEAR, ..POLICY }, 1);
    pool.pass(NANO);
    pool.become_ready(2);
    let left = WORKS_FROM - HANGS_FROM;
    assert_eq!(pool.pass(left - NANO), []);
    assert_eq!(pool.pass(NANO), [abort(1, Hang::RequestTimeout(POLICY.timeout + left))]);
}

#[test]
fn draining_hung_is_limited_by_graceful_timeout() {
    let mut pool = draining_hung();
    pool.become_ready(2);
    assert_eq!(pool.pass(POLICY.graceful_timeout - NANO), []);
    let age = POLICY.timeout + POLICY.graceful_timeout;
    assert_eq!(pool.pass(NANO), [abort(1, Hang::RequestTimeout(age))]);
    assert_eq!(pool.pass(POLICY.abort_timeout), [kill(1, ExitReason::Hung)]);
}

#[test]
fn draining_hung_exit_is_hung_without_back_off() {
    for exit_class in [ExitClass::Crashed, ExitClass::KilledExternally, ExitClass::Requested] {
        let mut pool = draining_hung();
        pool.exits(2, ExitClass::KilledExternally);
        pool.pass(SECOND);
        let report = pool.exits(1, exit_class);
        assert_eq!((report.reason, report.restart_in), (ExitReason::Hung, None), "{exit_class:?}");
        assert_eq!(pool.supervisor.slots[0].failures, 0);
        pool.become_ready(3);
        assert_eq!(pool.step(), []);
    }
}

#[test]
fn draining_hung_in_surplus_slot_is_not_replaced() {
    let mut pool = almost_hung(POLICY, 1);
    pool.supervisor.suspend();
    assert_eq!(pool.pass(NANO), [drain_hung(1, Hang::RequestTimeout(POLICY.timeout))]);
}

#[test]
fn on_draining_of_draining_hung_is_false() {
    let mut pool = draining_hung();
    assert!(!pool.supervisor.on_draining(WorkerId(1), pool.now));
    assert_eq!(pool.supervisor.on_ready(WorkerId(1), pool.now), None);
}

#[test]
fn graceful_stop_keeps_draining_hung_deadline() {
    let mut pool = draining_hung();
    pool.pass(SECOND);
    pool.supervisor.stop(ShutdownMode::Graceful);
    assert_eq!(pool.step(), [drain(2, ExitReason::Requested)], "worker 1 drains already");
    let age = POLICY.timeout + POLICY.graceful_timeout;
    assert_eq!(pool.pass(POLICY.graceful_timeout - SECOND), [abort(1, Hang::RequestTimeout(age))]);
}

#[test]
fn quick_stop_signals_a_draining_hung_worker() {
    let mut pool = draining_hung();
    pool.become_ready(2);
    pool.supervisor.stop(ShutdownMode::Quick);
    assert_eq!(pool.step(), [Action::QuickStop(WorkerId(1)), Action::QuickStop(WorkerId(2))]);
    let killed = [kill(1, ExitReason::Hung), kill(2, ExitReason::Requested)];
    assert_eq!(pool.pass(POLICY.abort_timeout), killed);
}

#[test]
fn kill_mode_kills_a_draining_hung_worker() {
    let mut pool = draining_hung();
    pool.supervisor.stop(ShutdownMode::Kill);
    assert_eq!(pool.step(), [kill(1, ExitReason::Hung), kill(2, ExitReason::Requested)]);
}

#[test]
fn hung_canary_fails_the_reload() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.supervisor.reload(Policy { boot_timeout: Duration::ZERO, ..POLICY }, 2);
    assert_eq!(pool.step(), [spawn(2, 1)]);
    pool.become_ready(2);
    assert_eq!(pool.step(), [spawn(3, 0)]);
    let begun = pool.now;
    busy(&mut pool, 2, begun, begun.saturating_add(SECOND));
    pool.advance(POLICY.timeout);
    let actions = pool.step_to_roll_back();
    assert_eq!(actions[0], drain_hung(2, Hang::RequestTimeout(POLICY.timeout)));
    assert_eq!(pool.serving_ids(), [1]);
}

#[test]
fn draining_hung_recovered_thread_drains_normally() {
    let mut pool = draining_hung();
    pool.become_ready(2);
    pool.busy.remove(&WorkerId(1));
    assert_eq!(pool.pass(SECOND), [], "no unit of work is overdue");
    assert_eq!(pool.pass(POLICY.graceful_timeout - SECOND), [kill(1, ExitReason::Hung)]);
}

#[test]
fn draining_hung_busy_worker_needs_no_heartbeat() {
    let mut pool = almost_hung(Policy { graceful_timeout: YEAR, ..POLICY }, 1);
    pool.pass(NANO);
    pool.become_ready(2);
    pool.silent.insert(WorkerId(1));
    let left = WORKS_FROM - HANGS_FROM;
    assert_eq!(pool.pass(left - NANO), []);
    assert_eq!(pool.pass(NANO), [abort(1, Hang::RequestTimeout(POLICY.timeout + left))]);
}

#[test]
fn draining_hung_recovered_at_deadline_is_killed() {
    let mut pool = draining_hung();
    pool.become_ready(2);
    pool.pass(POLICY.graceful_timeout - NANO);
    pool.busy.remove(&WorkerId(1));
    assert_eq!(pool.pass(NANO), [kill(1, ExitReason::Hung)]);
}
