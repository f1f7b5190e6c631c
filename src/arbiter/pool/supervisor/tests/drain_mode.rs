//! A worker in drain mode: it is supervised as any ready worker, and does not count as one that serves.

use super::*;

const SLOT_0: usize = 0;

/// Returns a pool whose worker in slot 0 is in drain mode.
fn drained(policy: Policy, target: usize) -> Pool {
    let mut pool = Pool::serving(policy, target);
    assert_eq!(pool.supervisor.begin_drain_mode(SLOT_0), Ok((WorkerId(1), true)));
    assert_eq!(pool.step(), [], "it is not replaced");
    pool
}

/// Returns the shown states, by slot.
fn states(pool: &Pool) -> Vec<&'static str> {
    pool.supervisor.worker_states().map(|(_, _, state, _)| state).collect()
}

fn lowest_target(pool: &Pool) -> usize {
    *pool.supervisor.target_bounds(1..=WORKERS_MAX).start()
}

#[test]
fn worker_in_drain_mode_is_no_serving_worker() {
    let mut pool = drained(POLICY, 3);
    let supervisor = &mut pool.supervisor;
    assert_eq!((supervisor.ready_count(), supervisor.drain_mode_count()), (2, 1));
    assert!(supervisor.ready_workers().all(|id| id != WorkerId(1)));
    assert_eq!(supervisor.count_slots(), (3, 0));
    assert_eq!(states(&pool), ["draining", "ready", "ready"]);
    assert!(pool.supervisor.on_drained(WorkerId(1)) && !pool.supervisor.on_drained(WorkerId(1)));
    assert!(!pool.supervisor.on_drained(WorkerId(2)), "it has made that up");
    assert_eq!(states(&pool), ["drained", "ready", "ready"]);
    assert_eq!(pool.supervisor.begin_drain_mode(SLOT_0), Ok((WorkerId(1), false)));
    assert_eq!(pool.supervisor.end_drain_mode(SLOT_0), Ok((WorkerId(1), true)));
    assert_eq!(pool.supervisor.end_drain_mode(SLOT_0), Ok((WorkerId(1), false)));
    assert_eq!(states(&pool), ["ready"; 3]);
    assert_eq!(pool.supervisor.ready_count(), 3);
    assert_eq!(pool.step(), []);
}

#[test]
fn last_serving_worker_keeps_serving() {
    let mut pool = drained(POLICY, 2);
    assert_eq!(pool.supervisor.begin_drain_mode(1), Err(DrainModeError::LastServing));
    assert_eq!(pool.supervisor.begin_drain_mode(2), Err(DrainModeError::NotReady));
    assert_eq!(pool.supervisor.end_drain_mode(2), Err(DrainModeError::NotReady));
    let mut alone = Pool::serving(POLICY, 1);
    assert_eq!(alone.supervisor.begin_drain_mode(SLOT_0), Err(DrainModeError::LastServing));
}

/// What a reload or its roll-back removes does not count, nor what is replaced in the same slot.
#[test]
fn worker_beyond_the_kept_slots_is_no_other_that_serves() {
    for (before, after) in [(1, 2), (2, 1)] {
        let mut pool = Pool::serving(POLICY, before);
        pool.supervisor.reload(POLICY, after);
        pool.step();
        pool.all_become_ready();
        assert!(pool.supervisor.ready_count() > 1);
        assert_eq!(pool.supervisor.begin_drain_mode(SLOT_0), Err(DrainModeError::LastServing));
    }
}

#[test]
fn replacement_of_exited_worker_serves() {
    let mut pool = drained(POLICY, 2);
    let report = pool.exits(1, ExitClass::Requested);
    assert_eq!((report.reason, report.restart_in), (ExitReason::Requested, Some(Duration::ZERO)));
    assert_eq!(pool.step(), [spawn(3, 0)]);
    pool.become_ready(3);
    assert_eq!(pool.step(), []);
    assert_eq!((pool.supervisor.ready_count(), pool.supervisor.drain_mode_count()), (2, 0));
}

#[test]
fn hung_worker_in_drain_mode_is_aborted() {
    let mut pool = drained(POLICY, 2);
    pool.silent.insert(WorkerId(1));
    assert_eq!(pool.pass(POLICY.timeout), [abort(1, Hang::NoHeartbeat(POLICY.timeout))]);
    assert_eq!(pool.supervisor.drain_progress(WorkerId(1)), DrainProgress::Off);
    assert_eq!(states(&pool), ["aborting", "ready"]);
}

#[test]
fn worker_in_drain_mode_is_recycled_and_reloaded() {
    let mut pool = drained(POLICY, 2);
    assert_eq!(pool.supervisor.recycle(Some(SLOT_0)), [(WorkerId(1), 0)]);
    assert_eq!(pool.step(), [spawn(3, 0)]);
    pool.become_ready(3);
    assert_eq!(pool.step(), [drain(1, ExitReason::Recycled)]);
    pool.exits(1, ExitClass::Requested);
    assert_eq!(pool.supervisor.begin_drain_mode(SLOT_0), Ok((WorkerId(3), true)));
    pool.supervisor.reload(POLICY, 2);
    let actions = pool.run_until_idle();
    assert!(actions.contains(&drain(3, ExitReason::Reload)), "{actions:?}");
    assert_eq!((pool.supervisor.ready_count(), pool.supervisor.drain_mode_count()), (2, 0));
}

#[test]
fn old_worker_in_drain_mode_costs_no_unavailability() {
    let policy = Policy { max_surge: 0, max_unavailable: 1, ..POLICY };
    let mut pool = drained(policy, 3);
    assert_eq!(pool.supervisor.recycle(None).len(), 3);
    // The pool lacks a worker already, and that one serves nobody.
    assert_eq!(pool.step(), [drain(1, ExitReason::Recycled), spawn(4, 0)]);
    pool.exits(1, ExitClass::Requested);
    pool.become_ready(4);
    assert_eq!(pool.step(), [drain(2, ExitReason::Recycled), spawn(5, 1)]);
}

#[test]
fn others_are_recycled_beside_a_worker_in_drain_mode() {
    let policy = Policy { max_surge: 0, max_unavailable: 1, ..POLICY };
    let mut pool = drained(policy, 4);
    for slot in 1..4 {
        pool.supervisor.on_replacement_requested(WorkerId(slot + 1));
    }
    // An operator has taken the one in drain mode away: it is not missing.
    for slot in 1..4 {
        let old = slot as u64 + 1;
        let new = old + 3;
        assert_eq!(pool.step(), [drain(old, ExitReason::Recycled), spawn(new, slot)]);
        pool.exits(old, ExitClass::Requested);
        pool.become_ready(new);
    }
    assert_eq!(pool.step(), []);
    assert_eq!((pool.supervisor.ready_count(), pool.supervisor.drain_mode_count()), (3, 1));
}

#[test]
fn last_serving_worker_is_recycled_new_before_old() {
    let policy = Policy { max_surge: 0, max_unavailable: 1, ..POLICY };
    let mut pool = drained(policy, 2);
    pool.supervisor.on_replacement_requested(WorkerId(2));
    assert_eq!(pool.step(), [spawn(3, 1)]);
    pool.become_ready(3);
    assert_eq!(pool.step(), [drain(2, ExitReason::Recycled)]);
    assert_eq!(pool.supervisor.ready_count(), 1);
}

#[test]
fn reload_keeps_the_last_old_worker_that_serves() {
    for policy in [POLICY, Policy { max_surge: 0, max_unavailable: 1, ..POLICY }] {
        let mut pool = Pool::serving(policy, 3);
        assert_eq!(pool.supervisor.begin_drain_mode(2), Ok((WorkerId(3), true)));
        pool.supervisor.reload(policy, 3);
        let mut drained = Vec::new();
        while pool.commits == 0 {
            let actions = pool.turn().0;
            if pool.commits == 0 {
                let is_old = |worker: &&Worker| worker.is_old(2) && worker.is_serving();
                assert!(pool.supervisor.workers().any(|worker| is_old(&worker)), "{actions:?}");
            }
            drained.extend(actions.iter().filter_map(|action| match action {
                Action::Drain(id, ExitReason::Reload) => Some(id.0),
                _ => None,
            }));
            pool.all_become_ready();
        }
        assert!(drained.contains(&3) && drained.len() == 3, "{drained:?}");
        assert_eq!((pool.supervisor.ready_count(), pool.supervisor.drain_mode_count()), (3, 0));
    }
}

#[test]
fn pool_without_serving_worker_tries_a_slot_at_once() {
    let mut pool = drained(POLICY, 2);
    // So many crashes in a row that the back-off would be long.
    for id in 2..12 {
        pool.exits(id, ExitClass::Crashed);
        let actions = pool.run(2 * SECOND);
        assert_eq!(actions, [spawn(id + 1, 1)], "while no worker serves");
        pool.become_ready(id + 1);
    }
}

#[test]
fn scaling_keeps_workers_in_drain_mode_and_one_that_serves() {
    let mut pool = Pool::serving(POLICY, 4);
    assert_eq!(lowest_target(&pool), 1);
    let mut lowest_with = |slots: &[usize]| {
        let supervisor = &mut pool.supervisor;
        slots.iter().for_each(|slot| assert!(supervisor.begin_drain_mode(*slot).is_ok()));
        let lowest = *supervisor.target_bounds(1..=9).start();
        slots.iter().for_each(|slot| assert!(supervisor.end_drain_mode(*slot).is_ok()));
        lowest
    };
    assert_eq!(lowest_with(&[0]), 2, "the other slot serves");
    assert_eq!(lowest_with(&[0, 1]), 3);
    assert_eq!(lowest_with(&[1]), 2);
    assert_eq!(lowest_with(&[2]), 3);
    assert_eq!(lowest_with(&[0, 3]), 4);
}

/// Until the canary of another pool is ready, a new worker stands beside an old one in drain mode, and
/// yields to it in a roll-back.
fn reloading_beside_drained(target: usize) -> Pool {
    let mut pool = drained(POLICY, target);
    pool.supervisor.begin_reload(POLICY, target, 2);
    let canary = target as u64 + 1;
    assert_eq!(pool.supervisor.reconcile(pool.now, Some(ReloadPhase::Canary)), [spawn(canary, 0)]);
    pool.supervisor.on_spawned(WorkerId(canary), SLOT_0, pool.now);
    pool.become_ready(canary);
    assert_eq!(pool.supervisor.reconcile(pool.now, Some(ReloadPhase::Canary)), []);
    pool
}

#[test]
fn scaling_during_a_reload_leaves_a_worker_that_serves_after_its_roll_back() {
    let mut pool = reloading_beside_drained(3);
    assert_eq!(lowest_target(&pool), 1, "the new worker serves");
    assert_eq!(pool.supervisor.scale_to(1), 1);
    pool.supervisor.suspend();
    pool.supervisor.resume();
    let both = [drain(3, ExitReason::ScaledDown), drain(4, ExitReason::Reload)];
    let mut actions = pool.step_to_roll_back();
    actions.sort_by_key(|action| format!("{action:?}"));
    assert_eq!(actions, both);
    assert_eq!(pool.supervisor.target(), 2);
    assert_eq!(states(&pool), ["draining", "draining", "ready", "draining"]);
}

#[test]
fn last_old_worker_that_serves_gets_no_drain_mode_beside_a_new_one() {
    let mut pool = reloading_beside_drained(2);
    assert_eq!(pool.supervisor.ready_count(), 2);
    assert_eq!(pool.supervisor.begin_drain_mode(1), Err(DrainModeError::LastServing));
}

/// A range of 1-2 workers becomes larger, and a signal adds a worker. The pool scales back after the roll-back.
#[test]
fn roll_back_to_a_smaller_range_leaves_a_worker_that_serves() {
    let mut pool = drained(POLICY, 2);
    pool.supervisor.begin_reload(POLICY, 2, 2);
    pool.supervisor.scale_to(3);
    assert_eq!(pool.supervisor.reconcile(pool.now, Some(ReloadPhase::Canary)), [spawn(3, 2)]);
    pool.supervisor.on_spawned(WorkerId(3), 2, pool.now);
    pool.become_ready(3);
    let second = pool.supervisor.begin_drain_mode(1);
    pool.supervisor.suspend();
    pool.supervisor.resume();
    pool.step_to_roll_back();
    pool.supervisor.scale_to(*pool.supervisor.target_bounds(1..=2).end());
    pool.run(MINUTE);
    assert!(pool.supervisor.ready_count() > 0, "without end");
    assert_eq!(second, Err(DrainModeError::LastServing));
    assert_eq!((pool.serving_ids(), pool.supervisor.ready_count()), (vec![1, 2], 1));
}

/// Until it has ended, each old worker that serves may be the last after a roll-back.
#[test]
fn worker_of_an_uncommitted_generation_is_no_other_that_serves() {
    let mut pool = Pool::serving(POLICY, 2);
    pool.supervisor.reload(POLICY, 2);
    pool.step();
    pool.become_ready(3);
    assert_eq!(pool.step(), [drain(1, ExitReason::Reload), spawn(4, 1)]);
    assert_eq!(pool.supervisor.begin_drain_mode(1), Err(DrainModeError::LastServing));
    pool.exits(4, ExitClass::Crashed);
    assert_eq!(pool.step_to_roll_back(), [spawn(5, 0)]);
    assert_eq!(pool.supervisor.begin_drain_mode(1), Err(DrainModeError::LastServing));
    pool.become_ready(5);
    assert_eq!(pool.step(), [drain(3, ExitReason::Reload)]);
    assert_eq!(pool.supervisor.begin_drain_mode(1), Ok((WorkerId(2), true)));
}

#[test]
fn roll_back_keeps_the_only_serving_worker_beside_one_in_drain_mode() {
    let mut pool = reloading_beside_drained(2);
    pool.exits(2, ExitClass::KilledExternally);
    pool.supervisor.suspend();
    pool.supervisor.resume();
    assert_eq!(pool.step_to_roll_back(), [spawn(4, 1)]);
    assert_eq!(pool.supervisor.ready_count(), 1);
    pool.become_ready(4);
    assert_eq!(pool.step(), [drain(3, ExitReason::Reload)]);
    assert_eq!((pool.supervisor.ready_count(), pool.supervisor.drain_mode_count()), (1, 1));
}

#[test]
fn drain_mode_ends_also_beside_a_newer_worker_that_serves() {
    let mut pool = reloading_beside_drained(2);
    pool.exits(2, ExitClass::KilledExternally);
    pool.supervisor.suspend();
    pool.supervisor.resume();
    assert_eq!(pool.step_to_roll_back(), [spawn(4, 1)]);
    assert_eq!(pool.supervisor.recycle(Some(0)), [(WorkerId(1), 0)], "it is kept");
    assert_eq!(pool.supervisor.end_drain_mode(0), Ok((WorkerId(1), true)));
    assert_eq!(pool.step(), [drain(3, ExitReason::Reload), spawn(5, 0)]);
    assert_eq!(pool.supervisor.end_drain_mode(0), Ok((WorkerId(1), false)));
}

#[test]
fn stop_drains_a_worker_in_drain_mode() {
    let mut pool = drained(POLICY, 2);
    pool.supervisor.stop(ShutdownMode::Graceful);
    let both = [drain(1, ExitReason::Requested), drain(2, ExitReason::Requested)];
    assert_eq!(pool.step(), both);
    assert_eq!(states(&pool), ["draining", "draining"]);
    assert_eq!(pool.supervisor.drain_mode_count(), 0);
}
