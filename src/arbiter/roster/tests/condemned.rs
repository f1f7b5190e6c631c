//! One of a worker's threads hangs: it is replaced, and the others may finish.

use super::*;

/// When the hanging thread and the other one took up their work, from the start.
const HANGS_FROM: Duration = SECOND;
const WORKS_FROM: Duration = Duration::from_secs(15);

fn busy(pool: &mut Pool, id: u64, oldest: MonotonicTime, newest: MonotonicTime) {
    pool.busy.insert(WorkerId(id), Busy { oldest, newest });
}

/// A pool one nanosecond before its worker 1 hangs with one of its two threads.
fn about_to_hang(policy: Policy, target: usize) -> Pool {
    let mut pool = Pool::serving(policy, target);
    let start = pool.now;
    busy(&mut pool, 1, start.saturating_add(HANGS_FROM), start.saturating_add(WORKS_FROM));
    pool.now = start.saturating_add(HANGS_FROM + POLICY.timeout - NANO);
    assert_eq!(pool.step(), []);
    pool
}

/// A pool of one whose worker 1 has just been condemned; its successor 2 boots.
fn condemned() -> Pool {
    let mut pool = about_to_hang(POLICY, 1);
    assert_eq!(pool.pass(NANO), [condemn(1, Hang::RequestTimeout(POLICY.timeout)), spawn(2, 0)]);
    pool
}

#[test]
fn a_worker_of_whose_threads_one_hangs_is_condemned_and_succeeded_at_once() {
    let mut pool = condemned();
    assert_eq!(pool.roster.ready_count(), 0);
    pool.ready(2);
    assert_eq!(pool.step(), [], "once");
    assert_eq!(pool.serving_ids(), [2]);
}

#[test]
fn a_worker_all_of_whose_threads_hang_is_aborted() {
    let mut pool = Pool::serving(POLICY, 1);
    let begun = pool.now;
    busy(&mut pool, 1, begun, begun);
    assert_eq!(pool.pass(POLICY.timeout), [abort(1, Hang::RequestTimeout(POLICY.timeout))]);
}

#[test]
fn nobody_is_condemned_for_time_in_which_the_master_did_not_run() {
    let mut pool = about_to_hang(POLICY, 1);
    pool.oversleep(SECOND);
    assert_eq!(pool.step(), []);
}

#[test]
fn nobody_is_condemned_without_a_limit() {
    let mut pool = about_to_hang(Policy { timeout: Duration::ZERO, ..POLICY }, 1);
    assert_eq!(pool.pass(YEAR), []);
}

#[test]
fn a_condemned_worker_is_looked_at_often() {
    let mut pool = condemned();
    pool.ready(2);
    assert_eq!(pool.roster.liveness_check_due(pool.now), [WorkerId(1)]);
    for _ in 0..10 {
        let next = pool.roster.next_deadline(pool.now);
        assert_eq!(next, Some(pool.now.saturating_add(HUNG_DRAIN_CHECK_INTERVAL)));
        assert_eq!(pool.pass(HUNG_DRAIN_CHECK_INTERVAL), []);
    }
}

#[test]
fn a_condemned_worker_is_aborted_when_the_others_are_done_and_killed_after_the_grace() {
    let mut pool = condemned();
    let hung = pool.now.duration_since(MonotonicTime::default()) - POLICY.timeout;
    assert_eq!(pool.pass(SECOND), []);
    pool.busy.insert(WorkerId(1), alone(MonotonicTime::default().saturating_add(hung)));
    assert_eq!(pool.pass(SECOND), [abort(1, Hang::RequestTimeout(POLICY.timeout + 2 * SECOND))]);
    assert_eq!(pool.pass(POLICY.abort_timeout - NANO), []);
    assert_eq!(pool.pass(NANO), [kill(1, ExitReason::Hung)]);
    assert_eq!(pool.ends(1, ExitClass::KilledExternally).reason, ExitReason::Hung);
}

#[test]
fn a_condemned_worker_is_aborted_when_the_others_hang_too() {
    let mut pool = about_to_hang(Policy { graceful_timeout: YEAR, ..POLICY }, 1);
    pool.pass(NANO);
    pool.ready(2);
    let left = WORKS_FROM - HANGS_FROM;
    assert_eq!(pool.pass(left - NANO), []);
    assert_eq!(pool.pass(NANO), [abort(1, Hang::RequestTimeout(POLICY.timeout + left))]);
}

#[test]
fn a_condemned_worker_has_no_longer_than_a_drain() {
    let mut pool = condemned();
    pool.ready(2);
    assert_eq!(pool.pass(POLICY.graceful_timeout - NANO), []);
    let age = POLICY.timeout + POLICY.graceful_timeout;
    assert_eq!(pool.pass(NANO), [abort(1, Hang::RequestTimeout(age))]);
    assert_eq!(pool.pass(POLICY.abort_timeout), [kill(1, ExitReason::Hung)]);
}

#[test]
fn a_condemned_worker_that_ends_by_itself_hung_and_its_slot_does_not_back_off() {
    for how in [ExitClass::Crashed, ExitClass::KilledExternally, ExitClass::Requested] {
        let mut pool = condemned();
        pool.ends(2, ExitClass::KilledExternally);
        pool.pass(SECOND);
        let strikes = pool.roster.slots[0].crashes;
        let report = pool.ends(1, how);
        assert_eq!((report.reason, report.restart_in), (ExitReason::Hung, None), "{how:?}");
        assert_eq!(pool.roster.slots[0].crashes, strikes);
        pool.ready(3);
        assert_eq!(pool.step(), []);
    }
}

#[test]
fn a_condemned_worker_that_is_not_wished_for_is_not_succeeded() {
    let mut pool = about_to_hang(POLICY, 1);
    pool.roster.suspend();
    assert_eq!(pool.pass(NANO), [condemn(1, Hang::RequestTimeout(POLICY.timeout))]);
}

#[test]
fn that_a_condemned_worker_leaves_is_no_news() {
    let mut pool = condemned();
    assert!(!pool.roster.on_draining(WorkerId(1), pool.now));
    assert_eq!(pool.roster.on_ready(WorkerId(1), pool.now), None);
}

#[test]
fn a_graceful_stop_gives_a_condemned_worker_no_more_time() {
    let mut pool = condemned();
    pool.pass(SECOND);
    pool.roster.stop(ShutdownMode::Graceful);
    assert_eq!(pool.step(), [drain(2, ExitReason::Requested)], "it has been asked");
    let age = POLICY.timeout + POLICY.graceful_timeout;
    assert_eq!(pool.pass(POLICY.graceful_timeout - SECOND), [abort(1, Hang::RequestTimeout(age))]);
}

#[test]
fn a_quick_stop_asks_a_condemned_worker_like_any_other() {
    let mut pool = condemned();
    pool.ready(2);
    pool.roster.stop(ShutdownMode::Quick);
    assert_eq!(pool.step(), [Action::QuickStop(WorkerId(1)), Action::QuickStop(WorkerId(2))]);
    let killed = [kill(1, ExitReason::Hung), kill(2, ExitReason::Requested)];
    assert_eq!(pool.pass(POLICY.abort_timeout), killed);
}

#[test]
fn a_kill_does_not_spare_a_condemned_worker() {
    let mut pool = condemned();
    pool.roster.stop(ShutdownMode::Kill);
    assert_eq!(pool.step(), [kill(1, ExitReason::Hung), kill(2, ExitReason::Requested)]);
}

#[test]
fn a_canary_that_is_condemned_fails_the_reload() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.roster.reload(Policy { boot_timeout: Duration::ZERO, ..POLICY }, 2);
    assert_eq!(pool.step(), [spawn(2, 1)]);
    pool.ready(2);
    assert_eq!(pool.step(), [spawn(3, 0)]);
    let begun = pool.now;
    busy(&mut pool, 2, begun, begun.saturating_add(SECOND));
    let actions = pool.pass(POLICY.timeout);
    assert_eq!(actions[..2], [condemn(2, Hang::RequestTimeout(POLICY.timeout)), Action::RollBack]);
    assert_eq!(pool.serving_ids(), [1]);
}

#[test]
fn a_condemned_worker_whose_thread_comes_back_may_leave_as_asked() {
    let mut pool = condemned();
    pool.ready(2);
    pool.busy.remove(&WorkerId(1));
    assert_eq!(pool.pass(SECOND), [], "nothing is overdue: what would it be aborted for?");
    assert_eq!(pool.pass(POLICY.graceful_timeout - SECOND), [kill(1, ExitReason::Hung)]);
}

#[test]
fn a_condemned_worker_need_not_beat_while_it_works() {
    let mut pool = about_to_hang(Policy { graceful_timeout: YEAR, ..POLICY }, 1);
    pool.pass(NANO);
    pool.ready(2);
    pool.mute.insert(WorkerId(1));
    let left = WORKS_FROM - HANGS_FROM;
    assert_eq!(pool.pass(left - NANO), []);
    assert_eq!(pool.pass(NANO), [abort(1, Hang::RequestTimeout(POLICY.timeout + left))]);
}

#[test]
fn a_condemned_worker_whose_thread_comes_back_at_the_last_moment_is_killed_at_once() {
    let mut pool = condemned();
    pool.ready(2);
    pool.pass(POLICY.graceful_timeout - NANO);
    pool.busy.remove(&WorkerId(1));
    assert_eq!(pool.pass(NANO), [kill(1, ExitReason::Hung)]);
}
