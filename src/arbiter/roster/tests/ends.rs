//! The whole stops, or changes its size.

use super::*;

#[test]
fn a_graceful_stop_asks_everybody_once_and_ends_when_all_have_left() {
    let mut pool = Pool::serving(POLICY, 2);
    pool.roster.stop(ShutdownMode::Graceful);
    assert_eq!(pool.step(), [drain(1, ExitReason::Requested), drain(2, ExitReason::Requested)]);
    pool.ends(1, ExitClass::Requested);
    assert_eq!(pool.pass(SECOND), []);
    assert_eq!(pool.roster.outcome(), None);
    let report = pool.ends(2, ExitClass::Requested);
    assert_eq!((report.reason, report.restart_in), (ExitReason::Requested, None));
    assert_eq!(pool.step(), []);
    assert_eq!(pool.roster.outcome(), Some(RunOutcome::Stopped));
}

#[test]
fn a_worker_that_does_not_drain_is_killed_at_the_limit() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.roster.stop(ShutdownMode::Graceful);
    pool.step();
    assert_eq!(pool.pass(POLICY.graceful_timeout - NANO), []);
    assert_eq!(pool.pass(NANO), [kill(1, ExitReason::Requested)]);
    assert_eq!(pool.ends(1, ExitClass::KilledExternally).reason, ExitReason::Requested);
    assert_eq!(pool.roster.outcome(), Some(RunOutcome::Stopped));
}

#[test]
fn a_quick_stop_kills_what_does_not_obey_after_the_grace() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.roster.stop(ShutdownMode::Quick);
    assert_eq!(pool.step(), [Action::QuickStop(WorkerId(1))]);
    assert_eq!(pool.pass(POLICY.abort_timeout - NANO), []);
    assert_eq!(pool.pass(NANO), [kill(1, ExitReason::Requested)]);
}

#[test]
fn a_kill_asks_nobody() {
    let mut pool = Pool::serving(POLICY, 2);
    pool.roster.stop(ShutdownMode::Kill);
    assert_eq!(pool.step(), [kill(1, ExitReason::Requested), kill(2, ExitReason::Requested)]);
}

#[test]
fn a_kill_after_a_quick_stop_waits_for_no_grace() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.roster.stop(ShutdownMode::Quick);
    pool.step();
    pool.roster.stop(ShutdownMode::Kill);
    assert_eq!(pool.step(), [kill(1, ExitReason::Requested)]);
}

#[test]
fn a_quick_stop_during_a_drain_shortens_it() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.roster.stop(ShutdownMode::Graceful);
    pool.step();
    pool.pass(SECOND);
    pool.roster.stop(ShutdownMode::Quick);
    assert_eq!(pool.step(), [Action::QuickStop(WorkerId(1))]);
    assert_eq!(pool.pass(POLICY.abort_timeout), [kill(1, ExitReason::Requested)]);
}

#[test]
fn a_stop_never_becomes_softer() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.roster.stop(ShutdownMode::Quick);
    pool.roster.stop(ShutdownMode::Graceful);
    assert_eq!(pool.roster.stopping(), Some(ShutdownMode::Quick));
    assert_eq!(pool.step(), [Action::QuickStop(WorkerId(1))]);
}

#[test]
fn a_worker_that_boots_is_asked_to_leave_like_any_other() {
    let mut pool = Pool::new(POLICY, 1);
    pool.step();
    pool.roster.stop(ShutdownMode::Graceful);
    assert_eq!(pool.step(), [drain(1, ExitReason::Requested)]);
    assert_eq!(pool.roster.on_ready(WorkerId(1), pool.now), None);
    assert_eq!(pool.ends(1, ExitClass::Crashed).reason, ExitReason::Requested);
    assert_eq!(pool.roster.outcome(), Some(RunOutcome::Stopped));
}

#[test]
fn a_stop_before_the_first_worker_ends_at_once() {
    let mut pool = Pool::new(POLICY, 4);
    pool.roster.stop(ShutdownMode::Graceful);
    assert_eq!(pool.step(), []);
    assert_eq!(pool.roster.outcome(), Some(RunOutcome::Stopped));
}

#[test]
fn a_worker_that_is_aborted_during_a_stop_keeps_its_own_deadline() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.mute.insert(WorkerId(1));
    pool.pass(POLICY.timeout);
    pool.roster.stop(ShutdownMode::Graceful);
    assert_eq!(pool.step(), []);
    assert_eq!(pool.pass(POLICY.abort_timeout), [kill(1, ExitReason::Hung)]);
}

#[test]
fn time_in_which_the_master_did_not_run_is_no_time_to_leave() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.roster.stop(ShutdownMode::Graceful);
    pool.step();
    pool.pass(SECOND);
    pool.oversleep(MINUTE);
    assert_eq!(pool.step(), []);
    assert_eq!(pool.pass(POLICY.graceful_timeout - SECOND - NANO), []);
    assert_eq!(pool.pass(NANO), [kill(1, ExitReason::Requested)]);
}

#[test]
fn a_drain_without_time_kills_at_once() {
    let mut pool = Pool::serving(Policy { graceful_timeout: Duration::ZERO, ..POLICY }, 1);
    pool.roster.stop(ShutdownMode::Graceful);
    assert_eq!(pool.step(), [drain(1, ExitReason::Requested), kill(1, ExitReason::Requested)]);
}

#[test]
fn nobody_is_hired_during_a_stop() {
    let mut pool = Pool::serving(POLICY, 2);
    pool.roster.on_replacement_requested(WorkerId(1));
    pool.roster.stop(ShutdownMode::Graceful);
    pool.step();
    pool.ends(2, ExitClass::Crashed);
    assert_eq!(pool.run(POLICY.graceful_timeout), [kill(1, ExitReason::Requested)]);
}

#[test]
fn one_worker_more_is_spawned_at_once() {
    let mut pool = Pool::serving(POLICY, 1);
    assert_eq!(pool.roster.scale_to(2), 2);
    assert_eq!(pool.step(), [spawn(2, 1)]);
}

#[test]
fn one_worker_fewer_is_drained_from_the_last_slot_and_not_replaced() {
    let mut pool = Pool::serving(POLICY, 3);
    assert_eq!(pool.roster.scale_to(2), 2);
    assert_eq!(pool.step(), [drain(3, ExitReason::ScaledDown)]);
    let report = pool.ends(3, ExitClass::Requested);
    assert_eq!((report.reason, report.restart_in), (ExitReason::ScaledDown, None));
    assert_eq!(pool.step(), []);
}

#[test]
fn there_is_never_less_than_one_worker_nor_more_than_the_most() {
    let mut pool = Pool::serving(POLICY, 1);
    assert_eq!(pool.roster.scale_to(0), 1);
    assert_eq!(pool.step(), []);
    assert_eq!(pool.roster.scale_to(usize::MAX), WORKERS_MAX);
    assert_eq!(pool.step().len(), WORKERS_MAX - 1);
}

#[test]
fn a_slot_that_is_wished_for_again_does_not_wait_for_the_one_that_drains() {
    let mut pool = Pool::serving(POLICY, 2);
    pool.roster.scale_to(1);
    pool.step();
    pool.roster.scale_to(2);
    assert_eq!(pool.step(), [spawn(3, 1)]);
}

#[test]
fn a_crash_in_a_slot_that_is_not_wished_for_any_more_is_not_repaired() {
    let mut pool = Pool::serving(POLICY, 2);
    pool.roster.scale_to(1);
    assert_eq!(pool.ends(2, ExitClass::Crashed).restart_in, None);
    assert_eq!(pool.run(MINUTE), []);
}

#[test]
fn workers_that_are_let_go_are_asked_once_and_followed_by_nobody() {
    let mut pool = Pool::serving(POLICY, 2);
    pool.roster.suspend();
    assert_eq!(pool.step(), [drain(1, ExitReason::Requested), drain(2, ExitReason::Requested)]);
    assert_eq!(pool.ends(1, ExitClass::Requested).restart_in, None);
    assert_eq!(pool.ends(2, ExitClass::Crashed).restart_in, None);
    assert_eq!(pool.run(MINUTE), []);
    assert_eq!(pool.roster.outcome(), None, "the master stays");
}

#[test]
fn workers_that_are_let_go_come_back_when_they_are_wished_for_again() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.roster.suspend();
    pool.step();
    assert!(pool.roster.resume());
    assert!(!pool.roster.resume(), "news once");
    assert_eq!(pool.step(), [spawn(2, 0)], "the old one may still be draining");
}

#[test]
fn a_stop_ends_a_pool_that_was_let_go() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.roster.suspend();
    pool.step();
    pool.ends(1, ExitClass::Requested);
    pool.roster.stop(ShutdownMode::Graceful);
    assert_eq!(pool.step(), []);
    assert_eq!(pool.roster.outcome(), Some(RunOutcome::Stopped));
}

#[test]
fn a_worker_that_fails_to_boot_after_it_was_let_go_ends_nothing() {
    let mut pool = Pool::new(Policy { boot_retries: 0, ..POLICY }, 1);
    pool.step();
    pool.roster.suspend();
    pool.step();
    pool.ends(1, ExitClass::Crashed);
    assert_eq!(pool.roster.outcome(), None);
}

#[test]
fn a_quick_stop_asks_again_however_late_in_the_drain_it_comes() {
    for left in [POLICY.abort_timeout, POLICY.abort_timeout / 2, NANO] {
        let mut pool = Pool::serving(POLICY, 1);
        pool.roster.stop(ShutdownMode::Graceful);
        pool.step();
        pool.pass(POLICY.graceful_timeout - left);
        pool.roster.stop(ShutdownMode::Quick);
        assert_eq!(pool.step(), [Action::QuickStop(WorkerId(1))]);
        assert_eq!(pool.pass(left), [kill(1, ExitReason::Requested)], "a stop never gives more time");
    }
}

#[test]
fn surplus_without_time_to_drain_is_killed_on_the_next_turn_of_the_same_moment() {
    let mut pool = Pool::serving(Policy { graceful_timeout: Duration::ZERO, ..POLICY }, 2);
    pool.roster.scale_to(1);
    assert_eq!(pool.roster.due(pool.now), [drain(2, ExitReason::ScaledDown)]);
    assert_eq!(pool.roster.next_deadline(pool.now), Some(pool.now));
    assert_eq!(pool.step(), [kill(2, ExitReason::ScaledDown)]);
}
