//! Who is overdue is looked at before it is judged, and what is found makes a difference.

use super::*;

const LOOK: Duration = Duration::from_millis(20);

/// A pool whose worker 1 is silent and overdue, and is being looked at.
fn examined() -> Pool {
    let mut pool = Pool::serving(POLICY, 1);
    pool.mute.insert(WorkerId(1));
    pool.now = pool.now.saturating_add(POLICY.timeout);
    assert_eq!(pool.roster.liveness_check_due(pool.now), [WorkerId(1)]);
    assert_eq!(pool.roster.overdue(pool.now), [WorkerId(1)]);
    pool.roster.defer_verdict(WorkerId(1), pool.now.saturating_add(LOOK));
    assert_eq!(pool.step(), []);
    assert_eq!(pool.roster.next_deadline(pool.now), Some(pool.now.saturating_add(LOOK)));
    pool.now = pool.now.saturating_add(LOOK);
    assert_eq!(pool.roster.overdue(pool.now), [WorkerId(1)]);
    pool
}

#[test]
fn who_is_stuck_is_aborted_as_soon_as_that_is_known() {
    assert_eq!(examined().step(), [abort(1, Hang::NoHeartbeat(POLICY.timeout + LOOK))]);
}

#[test]
fn who_has_come_back_meanwhile_is_left_alone() {
    let mut pool = examined();
    pool.mute.clear();
    assert_eq!(pool.step(), []);
    assert_eq!(pool.roster.overdue(pool.now), []);
}

#[test]
fn who_could_not_run_begins_anew() {
    let mut pool = examined();
    pool.roster.extend_timeout(WorkerId(1), pool.now);
    assert_eq!(pool.pass(POLICY.timeout - NANO), []);
    assert_eq!(pool.roster.overdue(pool.now), []);
    pool.now = pool.now.saturating_add(NANO);
    assert_eq!(pool.roster.overdue(pool.now), [WorkerId(1)]);
    assert!(matches!(pool.step()[..], [Action::Abort(..)]));
}

#[test]
fn who_hears_nothing_is_killed_once_and_replaced_at_once() {
    let mut pool = examined();
    pool.roster.mark_unresponsive(WorkerId(1));
    let end = Action::KillHung(WorkerId(1), Hang::NoHeartbeat(POLICY.timeout + LOOK));
    assert_eq!(pool.step(), [end, spawn(2, 0)]);
    pool.ready(2);
    assert_eq!(pool.run(MINUTE), [], "no storm, however long it takes to die");
    assert_eq!(pool.ends(1, ExitClass::KilledExternally).reason, ExitReason::Hung);
}

#[test]
fn who_dumps_a_core_gets_time_for_it_and_a_successor() {
    let mut pool = examined();
    assert!(pool.roster.on_core_dump(WorkerId(1), pool.now));
    assert!(!pool.roster.on_core_dump(WorkerId(1), pool.now), "once");
    assert_eq!(pool.step(), [spawn(2, 0)]);
    pool.ready(2);
    assert_eq!(pool.pass(CORE_DUMP_TIMEOUT - NANO), []);
    assert_eq!(pool.pass(NANO), [kill(1, ExitReason::Crashed)]);
}

#[test]
fn who_dumps_a_core_when_aborted_gets_time_for_it_too() {
    let mut pool = examined();
    assert!(matches!(pool.step()[..], [Action::Abort(..)]));
    pool.now = pool.now.saturating_add(POLICY.abort_timeout);
    assert_eq!(pool.roster.kill_candidates(pool.now), [WorkerId(1)]);
    assert!(pool.roster.on_core_dump(WorkerId(1), pool.now));
    assert_eq!(pool.step(), [spawn(2, 0)]);
    pool.ready(2);
    assert_eq!(pool.pass(CORE_DUMP_TIMEOUT), [kill(1, ExitReason::Hung)]);
}

#[test]
fn who_dumps_a_core_while_it_drains_gets_time_for_it_once() {
    let mut pool = Pool::serving(POLICY, 2);
    pool.roster.on_replacement_requested(WorkerId(1));
    assert_eq!(pool.step(), [spawn(3, 0)]);
    pool.ready(3);
    assert_eq!(pool.step(), [drain(1, ExitReason::Recycled)]);
    assert_eq!(pool.roster.kill_candidates(pool.now), []);
    pool.now = pool.now.saturating_add(POLICY.graceful_timeout);
    assert_eq!(pool.roster.kill_candidates(pool.now), [WorkerId(1)]);
    assert!(pool.roster.on_core_dump(WorkerId(1), pool.now));
    assert_eq!(pool.pass(CORE_DUMP_TIMEOUT - NANO), []);
    pool.now = pool.now.saturating_add(NANO);
    assert_eq!(pool.roster.kill_candidates(pool.now), []);
    assert!(!pool.roster.on_core_dump(WorkerId(1), pool.now), "once");
    assert_eq!(pool.step(), [kill(1, ExitReason::Recycled)]);
}

#[test]
fn who_stops_with_all_others_gets_no_time_for_a_core() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.roster.stop(ShutdownMode::Graceful);
    assert_eq!(pool.step(), [drain(1, ExitReason::Requested)]);
    pool.now = pool.now.saturating_add(POLICY.graceful_timeout);
    assert_eq!(pool.roster.kill_candidates(pool.now), []);
    assert_eq!(pool.step(), [kill(1, ExitReason::Requested)]);
}

#[test]
fn the_time_to_die_begins_when_the_abort_was_sent() {
    let mut pool = examined();
    assert!(matches!(pool.step()[..], [Action::Abort(..)]));
    pool.now = pool.now.saturating_add(SECOND); // for so long a hook has taken
    pool.roster.on_aborted(WorkerId(1), pool.now);
    assert_eq!(pool.pass(POLICY.abort_timeout - NANO), []);
    assert_eq!(pool.pass(NANO), [kill(1, ExitReason::Hung), spawn(2, 0)]);
}

#[test]
fn a_worker_has_the_patience_of_what_it_is_at() {
    let mut pool = Pool::new(POLICY, 1);
    pool.step();
    assert_eq!(pool.roster.current_timeout(WorkerId(1)), POLICY.boot_timeout);
    pool.ready(1);
    assert_eq!(pool.roster.current_timeout(WorkerId(1)), POLICY.timeout);
}

#[test]
fn a_boot_that_takes_too_long_is_looked_at_too() {
    let mut pool = Pool::new(POLICY, 1);
    pool.step();
    pool.now = pool.now.saturating_add(POLICY.boot_timeout);
    assert_eq!(pool.roster.overdue(pool.now), [WorkerId(1)]);
    pool.roster.extend_timeout(WorkerId(1), pool.now);
    assert_eq!(pool.step(), []);
    pool.now = pool.now.saturating_add(POLICY.boot_timeout);
    pool.roster.mark_unresponsive(WorkerId(1));
    let end = Action::KillHung(WorkerId(1), Hang::BootTimeout(2 * POLICY.boot_timeout));
    assert_eq!(pool.step(), [end, spawn(2, 0)]);
}
