//! Reloads: the canary, the rolling replacement, the commit, and the roll-back.

use super::*;

/// Begins a reload to `target` workers. Returns the pool and the actions of its first turn.
fn reloading(policy: Policy, before: usize, target: usize) -> (Pool, Vec<Action>) {
    let mut pool = Pool::serving(policy, before);
    assert_eq!(pool.supervisor.reload(policy, target), 2);
    assert!(pool.supervisor.is_reloading());
    let actions = pool.step();
    (pool, actions)
}

fn generations(pool: &Pool) -> Vec<u32> {
    let ready = pool.supervisor.workers().filter(|worker| worker.state == State::Ready);
    ready.map(|worker| worker.generation).collect()
}

#[test]
fn reload_begins_with_one_canary() {
    let (mut pool, actions) = reloading(Policy { max_surge: 3, ..POLICY }, 4, 4);
    assert_eq!(actions, [spawn(5, 0)]);
    assert_eq!(pool.pass(SECOND), []);
    assert_eq!(pool.supervisor.ready_count(), 4);
}

#[test]
fn reload_after_canary_is_bounded_by_max_surge() {
    let (mut pool, _) = reloading(Policy { max_surge: 2, ..POLICY }, 4, 4);
    pool.become_ready(5);
    assert_eq!(pool.step(), [drain(1, ExitReason::Reload), spawn(6, 1), spawn(7, 2)]);
    assert_eq!(pool.pass(SECOND), []);
    pool.become_ready(7);
    assert_eq!(pool.step(), [drain(3, ExitReason::Reload), spawn(8, 3)]);
    pool.become_ready(6);
    assert_eq!(pool.step(), [drain(2, ExitReason::Reload)]);
    pool.become_ready(8);
    assert_eq!(pool.step_to_commit(), [drain(4, ExitReason::Reload)]);
    assert!(!pool.supervisor.is_reloading());
    assert_eq!(pool.serving_ids(), [5, 6, 7, 8]);
}

#[test]
fn reload_drains_old_only_after_replacement_is_ready() {
    let (mut pool, _) = reloading(Policy { max_surge: 3, ..POLICY }, 7, 7);
    while pool.supervisor.is_reloading() {
        let id = pool.booting()[0];
        pool.become_ready(id.0);
        pool.turn();
        assert_eq!(pool.supervisor.ready_count(), 7);
        assert!(pool.booting().len() <= 3);
    }
    assert_eq!(pool.commits, 1);
    assert_eq!(generations(&pool), [2; 7]);
}

#[test]
fn commit_precedes_drain_of_the_last_old_worker() {
    let (mut pool, _) = reloading(POLICY, 1, 1);
    pool.become_ready(2);
    assert_eq!(pool.step_to_commit(), [drain(1, ExitReason::Reload)]);
    let report = pool.exits(1, ExitClass::Requested);
    assert_eq!((report.reason, report.generation), (ExitReason::Reload, 1));
    assert_eq!(pool.step(), []);
}

#[test]
fn failed_canary_rolls_back_without_draining_old() {
    for exit_class in [ExitClass::Crashed, ExitClass::KilledExternally, ExitClass::Requested] {
        let (mut pool, _) = reloading(POLICY, 3, 3);
        assert_eq!(pool.exits(4, exit_class).reason, ExitReason::BootFailed);
        assert_eq!(pool.step_to_roll_back(), []);
        assert_eq!(pool.supervisor.generation(), 1);
        assert_eq!(pool.run(MINUTE), []);
        assert_eq!(pool.serving_ids(), [1, 2, 3]);
    }
}

#[test]
fn canary_boot_timeout_rolls_back() {
    let (mut pool, _) = reloading(POLICY, 2, 2);
    let aborted = abort(3, Hang::BootTimeout(POLICY.boot_timeout));
    pool.advance(POLICY.boot_timeout);
    assert_eq!(pool.step_to_roll_back(), [aborted], "its exit is not awaited");
    assert_eq!(pool.supervisor.on_ready(WorkerId(3), pool.now), None, "too late");
    assert_eq!(pool.pass(POLICY.abort_timeout), [kill(3, ExitReason::BootFailed)]);
    assert_eq!(pool.serving_ids(), [1, 2]);
}

#[test]
fn hung_ready_canary_rolls_back() {
    let (mut pool, _) = reloading(Policy { boot_timeout: Duration::ZERO, ..POLICY }, 2, 2);
    pool.become_ready(3);
    pool.step();
    pool.silent.insert(WorkerId(3));
    pool.pass(POLICY.timeout - SECOND);
    pool.advance(SECOND);
    let actions = pool.step_to_roll_back();
    assert_eq!(actions[0], abort(3, Hang::NoHeartbeat(POLICY.timeout)));
    assert_eq!(pool.exits(3, ExitClass::Crashed).reason, ExitReason::Hung);
}

#[test]
fn failure_after_canary_rolls_back_the_generation() {
    let (mut pool, _) = reloading(POLICY, 3, 3);
    pool.become_ready(4);
    assert_eq!(pool.step(), [drain(1, ExitReason::Reload), spawn(5, 1)]);
    pool.exits(1, ExitClass::Requested);
    pool.exits(5, ExitClass::Crashed);
    let actions = pool.step_to_roll_back();
    assert!(actions.contains(&spawn(6, 0)), "{actions:?}");
    pool.exits(4, ExitClass::Requested);
    pool.run_until_idle();
    assert_eq!(pool.serving_ids(), [6, 2, 3]);
    assert_eq!(generations(&pool), [1, 1, 1]);
    assert_eq!(pool.run(MINUTE), []);
}

#[test]
fn crash_of_new_generation_rolls_back() {
    let (mut pool, _) = reloading(POLICY, 2, 2);
    pool.become_ready(3);
    pool.step();
    assert_eq!(pool.exits(3, ExitClass::Crashed).reason, ExitReason::Crashed);
    pool.step_to_roll_back();
}

#[test]
fn external_kill_does_not_fail_the_reload() {
    let (mut pool, _) = reloading(POLICY, 2, 2);
    pool.become_ready(3);
    pool.step();
    pool.exits(3, ExitClass::KilledExternally);
    pool.exits(1, ExitClass::Requested);
    assert_eq!(pool.step(), [spawn(5, 0)]);
    pool.run_until_idle();
    assert_eq!(pool.commits, 1);
}

#[test]
fn old_worker_exit_does_not_fail_the_reload() {
    let (mut pool, _) = reloading(POLICY, 2, 2);
    pool.exits(2, ExitClass::Crashed);
    pool.exits(1, ExitClass::Crashed);
    assert_eq!(pool.step(), [], "only the canary starts");
    pool.become_ready(3);
    assert_eq!(pool.step(), [spawn(4, 1)]);
    pool.become_ready(4);
    assert_eq!(pool.step_to_commit(), []);
}

#[test]
fn old_worker_lost_during_canary_returns_after_roll_back() {
    let (mut pool, _) = reloading(POLICY, 2, 2);
    pool.exits(2, ExitClass::Crashed);
    pool.exits(3, ExitClass::Crashed);
    assert_eq!(pool.step_to_roll_back(), [spawn(4, 1)]);
    pool.become_ready(4);
    assert_eq!(pool.step(), []);
    assert_eq!(generations(&pool), [1, 1]);
}

#[test]
fn old_worker_booting_during_reload_is_replaced_when_ready() {
    let mut pool = Pool::new(POLICY, 2);
    pool.step();
    pool.become_ready(1);
    pool.supervisor.reload(POLICY, 2);
    assert_eq!(pool.step(), [spawn(3, 0)]);
    pool.become_ready(3);
    assert_eq!(pool.step(), [], "the last old worker stays for now");
    pool.become_ready(2);
    assert_eq!(pool.step(), [drain(1, ExitReason::Reload), spawn(4, 1)]);
    pool.become_ready(4);
    assert_eq!(pool.step_to_commit(), [drain(2, ExitReason::Reload)]);
}

#[test]
fn growing_reload_starts_canary_in_a_new_slot() {
    let (mut pool, actions) = reloading(POLICY, 1, 3);
    assert_eq!(actions, [spawn(2, 1)]);
    pool.become_ready(2);
    assert_eq!(pool.step(), [spawn(3, 2), spawn(4, 0)], "growth does not count as surge");
    pool.run_until_idle();
    assert_eq!(pool.commits, 1);
    assert_eq!(generations(&pool), [2; 3]);
}

#[test]
fn failed_growing_reload_restores_the_target() {
    let (mut pool, _) = reloading(POLICY, 1, 3);
    pool.become_ready(2);
    pool.step();
    pool.exits(3, ExitClass::Crashed);
    let withdrawn = [drain(4, ExitReason::Reload), drain(2, ExitReason::ScaledDown)];
    assert_eq!(pool.step_to_roll_back(), withdrawn);
    assert_eq!(pool.supervisor.target(), 1);
    assert_eq!(pool.serving_ids(), [1]);
}

#[test]
fn shrinking_reload_drains_nothing_before_canary_ready() {
    let (mut pool, actions) = reloading(POLICY, 3, 1);
    assert_eq!(actions, [spawn(4, 0)]);
    assert_eq!(pool.supervisor.ready_count(), 3);
    pool.become_ready(4);
    let drained = [
        drain(2, ExitReason::ScaledDown),
        drain(3, ExitReason::ScaledDown),
        drain(1, ExitReason::Reload),
    ];
    assert_eq!(pool.step_to_commit(), drained);
}

#[test]
fn shrinking_reload_failed_canary_keeps_all_workers() {
    let (mut pool, _) = reloading(POLICY, 3, 1);
    pool.exits(4, ExitClass::Crashed);
    assert_eq!(pool.step_to_roll_back(), []);
    assert_eq!(pool.supervisor.target(), 3);
    assert_eq!(pool.serving_ids(), [1, 2, 3]);
}

#[test]
fn stop_during_reload_drains_both_generations() {
    let (mut pool, _) = reloading(POLICY, 2, 2);
    pool.become_ready(3);
    assert_eq!(pool.step(), [drain(1, ExitReason::Reload), spawn(4, 1)]);
    pool.supervisor.stop(ShutdownMode::Graceful);
    assert!(!pool.supervisor.is_reloading());
    let mut actions = pool.step();
    actions.sort_by_key(|action| format!("{action:?}"));
    assert_eq!(actions, [2, 3, 4].map(|id| drain(id, ExitReason::Requested)));
    for id in 1..=4 {
        pool.exits(id, ExitClass::Requested);
    }
    assert_eq!(pool.step(), []);
    assert_eq!(pool.supervisor.outcome(), Some(RunOutcome::Stopped));
}

#[test]
fn failure_during_stop_does_not_roll_back() {
    let (mut pool, _) = reloading(POLICY, 1, 1);
    pool.exits(2, ExitClass::Crashed);
    pool.supervisor.stop(ShutdownMode::Graceful);
    assert_eq!(pool.step(), [drain(1, ExitReason::Requested)]);
}

#[test]
fn generation_numbers_are_never_reused() {
    let (mut pool, _) = reloading(POLICY, 1, 1);
    pool.exits(2, ExitClass::Crashed);
    pool.step_to_roll_back();
    assert_eq!(pool.supervisor.generation(), 1);
    assert_eq!(pool.supervisor.reload(POLICY, 1), 3);
    assert_eq!(pool.run_until_idle(), [spawn(3, 0), drain(1, ExitReason::Reload)]);
    assert_eq!(pool.commits, 1);
    assert_eq!(generations(&pool), [3]);
}

#[test]
fn policy_switches_at_reload_and_back_at_roll_back() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.supervisor.reload(Policy { boot_timeout: SECOND, ..POLICY }, 1);
    assert_eq!(pool.step(), [spawn(2, 0)]);
    pool.advance(SECOND);
    assert_eq!(pool.step_to_roll_back(), [abort(2, Hang::BootTimeout(SECOND))]);
    pool.exits(2, ExitClass::Crashed);
    pool.step();
    assert_eq!(pool.supervisor.desired.policy.boot_timeout, POLICY.boot_timeout);
}

#[test]
fn reload_resets_exhausted_slots() {
    let mut pool = Pool::new(Policy { boot_retries: 0, ..POLICY }, 2);
    pool.step();
    pool.exits(1, ExitClass::Crashed);
    assert_eq!(pool.pass(MINUTE).iter().filter(|action| is_spawn(action)).count(), 0);
    pool.supervisor.reload(POLICY, 2);
    assert_eq!(pool.step()[0], spawn(3, 0));
}

#[test]
fn failed_canary_fork_is_retried() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.supervisor.reload(POLICY, 1);
    assert_eq!(pool.supervisor.actions_due(pool.now), [spawn(2, 0)]);
    let delay = pool.supervisor.on_spawn_failed(0, pool.now);
    assert_eq!(pool.supervisor.next_deadline(pool.now), Some(pool.now.saturating_add(delay)));
    assert_eq!(pool.step(), []);
    assert_eq!(pool.pass(delay), [spawn(3, 0)]);
    assert!(pool.supervisor.is_reloading());
    pool.pass(POLICY.boot_timeout - NANO);
    assert!(pool.supervisor.is_reloading(), "a successful fork resets the fork deadline");
}

/// Fails every fork, at each deadline, until the reload fails; forks succeed after that. Returns how
/// many forks failed.
fn fail_every_fork(pool: &mut Pool) -> usize {
    let mut attempts = 0;
    loop {
        for action in pool.supervisor.actions_due(pool.now) {
            match action {
                Action::Spawn { slot, .. } if pool.supervisor.is_reloading() => {
                    pool.supervisor.on_spawn_failed(slot, pool.now);
                    attempts += 1;
                }
                Action::Spawn { id, slot, .. } => pool.supervisor.on_spawned(id, slot, pool.now),
                other => panic!("{other:?}"),
            }
        }
        if !pool.supervisor.is_reloading() {
            return attempts;
        }
        let next = pool.supervisor.next_deadline(pool.now).expect("a retry");
        assert!(pool.now < next, "the master spins");
        pool.now = next;
        assert!(pool.booting().is_empty());
        for id in pool.supervisor.liveness_check_due(pool.now) {
            pool.supervisor.on_liveness(id, pool.now, None);
        }
    }
}

#[test]
fn unforkable_canary_fails_reload_after_boot_timeout() {
    let mut pool = Pool::serving(POLICY, 2);
    let begun = pool.now;
    pool.supervisor.reload(POLICY, 2);
    let attempts = fail_every_fork(&mut pool);
    assert_eq!(pool.now, begun.saturating_add(POLICY.boot_timeout));
    assert!((6..=12).contains(&attempts), "{attempts} attempts");
    assert_eq!(pool.serving_ids(), [1, 2]);
    assert_eq!((pool.supervisor.generation(), pool.run(MINUTE)), (1, vec![]));
}

#[test]
fn impossible_canary_fails_reload_at_once() {
    let mut pool = Pool::serving(POLICY, 2);
    pool.supervisor.reload(POLICY, 2);
    assert_eq!(pool.supervisor.actions_due(pool.now), [spawn(3, 0)]);
    pool.supervisor.on_spawn_impossible(0, pool.now);
    assert_eq!(pool.supervisor.actions_due(pool.now), []);
    assert!(!pool.supervisor.is_reloading());
    assert_eq!((pool.serving_ids(), pool.supervisor.generation()), (vec![1, 2], 1));
}

#[test]
fn unforkable_later_worker_fails_the_reload() {
    let (mut pool, _) = reloading(POLICY, 3, 3);
    pool.become_ready(4);
    assert_eq!(pool.supervisor.actions_due(pool.now), [drain(1, ExitReason::Reload), spawn(5, 1)]);
    pool.supervisor.on_spawn_failed(1, pool.now);
    pool.exits(1, ExitClass::Requested);
    fail_every_fork(&mut pool);
    assert_eq!(pool.serving_ids(), [4, 2, 3], "new workers serve until an old one is ready");
    assert_eq!(
        pool.booting(),
        [pool.supervisor.last_worker_id].map(WorkerId),
        "one of the old generation"
    );
    assert!(!pool.run_until_idle().is_empty());
    assert_eq!(generations(&pool), [1; 3]);
}

#[test]
fn repeated_master_stalls_do_not_prolong_failing_forks() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.supervisor.reload(POLICY, 1);
    pool.supervisor.actions_due(pool.now);
    pool.supervisor.on_spawn_failed(0, pool.now);
    for _ in 0..3 {
        pool.stall(MINUTE);
        assert_eq!(pool.supervisor.reload_phase(pool.now), Some(ReloadPhase::Canary));
    }
    pool.stall(MINUTE);
    assert_eq!(pool.supervisor.reload_phase(pool.now), Some(ReloadPhase::Failed));
}

#[test]
fn fork_deadline_excludes_a_master_stall() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.supervisor.reload(POLICY, 1);
    pool.supervisor.actions_due(pool.now);
    pool.supervisor.on_spawn_failed(0, pool.now);
    pool.stall(MINUTE);
    pool.supervisor.on_liveness(WorkerId(1), pool.now, None);
    assert_eq!(pool.step(), [spawn(3, 0)]);
    assert!(pool.supervisor.is_reloading());
}

#[test]
#[should_panic(expected = "one reload at a time")]
fn begin_reload_during_a_reload_panics() {
    let (mut pool, _) = reloading(POLICY, 1, 1);
    pool.supervisor.reload(POLICY, 1);
}

#[test]
fn reload_of_4000_workers_replaces_all() {
    const WORKERS: usize = 4000;
    const SURGE: usize = 100;
    let mut pool = Pool::serving(Policy { max_surge: SURGE, ..POLICY }, WORKERS);
    pool.supervisor.reload(pool.supervisor.desired.policy, WORKERS);
    let mut spawned = 0;
    let mut drained = 0;
    while pool.supervisor.is_reloading() {
        for action in pool.turn().0 {
            match action {
                Action::Spawn { .. } => spawned += 1,
                Action::Drain(id, ExitReason::Reload) => {
                    drained += 1;
                    pool.exits(id.0, ExitClass::Requested);
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(pool.supervisor.ready_count(), WORKERS);
        assert!(pool.booting().len() <= SURGE);
        pool.all_become_ready();
    }
    assert_eq!((spawned, drained, pool.commits), (WORKERS, WORKERS, 1));
    assert_eq!(generations(&pool), [2; WORKERS]);
}

#[test]
fn last_old_worker_stays_until_growing_reload_completes() {
    let (mut pool, _) = reloading(POLICY, 1, 3);
    pool.become_ready(2);
    assert_eq!(pool.step(), [spawn(3, 2), spawn(4, 0)]);
    pool.become_ready(4);
    assert_eq!(pool.step(), [], "it may be the only one that listens on an old address");
    assert_eq!(generations(&pool), [1, 2, 2]);
    pool.become_ready(3);
    assert_eq!(pool.step_to_commit(), [drain(1, ExitReason::Reload)]);
}

#[test]
fn last_old_worker_stays_while_a_new_one_is_replaced() {
    let (mut pool, _) = reloading(POLICY, 2, 2);
    pool.become_ready(3);
    assert_eq!(pool.step(), [drain(1, ExitReason::Reload), spawn(4, 1)]);
    pool.exits(3, ExitClass::KilledExternally);
    assert_eq!(pool.step(), [spawn(5, 0)]);
    pool.become_ready(4);
    assert_eq!(pool.step(), []);
    pool.become_ready(5);
    assert_eq!(pool.step_to_commit(), [drain(2, ExitReason::Reload)]);
}

#[test]
fn scaling_during_a_reload_survives_roll_back() {
    let (mut pool, _) = reloading(POLICY, 2, 2);
    pool.supervisor.scale_to(3);
    pool.exits(3, ExitClass::Crashed);
    assert_eq!(pool.step_to_roll_back(), [spawn(4, 2)]);
    assert_eq!(pool.supervisor.target(), 3);
}

#[test]
fn roll_back_drains_new_workers_once_old_are_ready() {
    let (mut pool, _) = reloading(POLICY, 3, 3);
    pool.become_ready(4);
    assert_eq!(pool.step(), [drain(1, ExitReason::Reload), spawn(5, 1)]);
    pool.become_ready(5);
    assert_eq!(pool.step(), [drain(2, ExitReason::Reload), spawn(6, 2)]);
    pool.exits(1, ExitClass::Requested);
    pool.exits(2, ExitClass::Requested);
    pool.exits(6, ExitClass::Crashed);
    assert_eq!(pool.step_to_roll_back(), [spawn(7, 0)], "one at a time");
    assert_eq!(pool.supervisor.ready_count(), 3);
    pool.become_ready(7);
    assert_eq!(pool.step(), [drain(4, ExitReason::Reload), spawn(8, 1)]);
    assert_eq!(pool.supervisor.ready_count(), 3);
    pool.become_ready(8);
    assert_eq!(pool.step(), [drain(5, ExitReason::Reload)]);
    assert_eq!(generations(&pool), [1, 1, 1]);
}

#[test]
fn roll_back_drains_surplus_new_workers_at_once() {
    let (mut pool, _) = reloading(POLICY, 2, 3);
    pool.become_ready(3);
    assert_eq!(pool.step(), [spawn(4, 0)]);
    pool.become_ready(4);
    assert_eq!(pool.step(), [drain(1, ExitReason::Reload), spawn(5, 1)]);
    pool.exits(5, ExitClass::Crashed);
    assert_eq!(pool.step_to_roll_back(), [drain(3, ExitReason::ScaledDown), spawn(6, 0)]);
    assert_eq!(generations(&pool), [2, 1]);
}

#[test]
fn scaled_down_roll_back_keeps_an_old_worker_until_another_serves() {
    let (mut pool, _) = reloading(POLICY, 3, 3);
    pool.become_ready(4);
    assert_eq!(pool.step(), [drain(1, ExitReason::Reload), spawn(5, 1)]);
    pool.supervisor.scale_to(1);
    pool.exits(1, ExitClass::Requested);
    pool.exits(4, ExitClass::Crashed);
    let withdrawn = [drain(5, ExitReason::Reload), drain(3, ExitReason::ScaledDown)];
    assert_eq!(pool.step_to_roll_back(), [&withdrawn[..], &[spawn(6, 0)]].concat());
    assert_eq!(pool.serving_ids(), [2]);
    pool.become_ready(6);
    assert_eq!(pool.step(), [drain(2, ExitReason::ScaledDown)]);
}

/// The new worker within the target may not listen on the old address.
#[test]
fn scaled_down_roll_back_keeps_an_old_worker_beside_a_new_one() {
    let (mut pool, _) = reloading(POLICY, 3, 3);
    pool.become_ready(4);
    assert_eq!(pool.step(), [drain(1, ExitReason::Reload), spawn(5, 1)]);
    pool.supervisor.scale_to(1);
    pool.exits(5, ExitClass::Crashed);
    let actions = [drain(3, ExitReason::ScaledDown), spawn(6, 0)];
    assert_eq!(pool.step_to_roll_back(), actions);
    assert_eq!(generations(&pool), [2, 1]);
    pool.become_ready(6);
    let replaced = [drain(2, ExitReason::ScaledDown), drain(4, ExitReason::Reload)];
    assert_eq!(pool.step(), replaced);
    assert_eq!(generations(&pool), [1]);
}

#[test]
fn old_workers_keep_their_own_policy() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.silent.insert(WorkerId(1));
    pool.supervisor.reload(Policy { timeout: SECOND, abort_timeout: MILLI, ..POLICY }, 1);
    assert_eq!(pool.step(), [spawn(2, 0)]);
    assert_eq!(pool.pass(POLICY.boot_timeout - NANO), []);
    pool.become_ready(2);
    assert_eq!(pool.step_to_commit(), [drain(1, ExitReason::Reload)]);
    assert_eq!(pool.pass(POLICY.graceful_timeout), [kill(1, ExitReason::Reload)]);
}

#[test]
fn longer_new_timeout_does_not_apply_to_old_workers() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.silent.insert(WorkerId(1));
    pool.supervisor.reload(Policy { timeout: YEAR, boot_timeout: YEAR, ..POLICY }, 1);
    assert_eq!(pool.step(), [spawn(2, 0)]);
    assert_eq!(pool.pass(POLICY.timeout), [abort(1, Hang::NoHeartbeat(POLICY.timeout))]);
    assert_eq!(pool.pass(POLICY.abort_timeout), [kill(1, ExitReason::Hung)]);
}

#[test]
fn roll_back_does_not_make_new_workers_overdue() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.supervisor.reload(Policy { timeout: 2 * MINUTE, boot_timeout: 2 * MINUTE, ..POLICY }, 1);
    assert_eq!(pool.step(), [spawn(2, 0)]);
    pool.pass(MINUTE);
    pool.exits(2, ExitClass::Crashed);
    assert_eq!(pool.step_to_roll_back(), []);
}

#[test]
fn stop_uses_each_workers_own_graceful_timeout() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.supervisor.reload(Policy { graceful_timeout: SECOND, ..POLICY }, 1);
    pool.step();
    pool.supervisor.stop(ShutdownMode::Graceful);
    assert_eq!(pool.step().len(), 2);
    assert_eq!(pool.pass(SECOND), [kill(2, ExitReason::Requested)]);
    assert_eq!(pool.pass(POLICY.graceful_timeout - SECOND), [kill(1, ExitReason::Requested)]);
}

#[test]
fn suspend_during_reload_rolls_back_at_once() {
    let (mut pool, _) = reloading(POLICY, 1, 1);
    pool.supervisor.suspend();
    let drained = [drain(1, ExitReason::Requested), drain(2, ExitReason::Requested)];
    assert_eq!(pool.step_to_roll_back(), drained);
    assert!(!pool.supervisor.is_reloading());
    pool.exits(1, ExitClass::Requested);
    pool.exits(2, ExitClass::Requested);
    assert_eq!(pool.run(MINUTE), []);
    assert!(pool.supervisor.resume());
    assert_eq!(pool.run_until_idle(), [spawn(3, 0)]);
    assert_eq!(generations(&pool), [1]);
}

#[test]
fn failed_canary_before_first_ready_resets_attempts() {
    let mut pool = Pool::new(POLICY, 1);
    pool.step();
    pool.exits(1, ExitClass::Crashed);
    pool.supervisor.reload(Policy { boot_retries: 0, ..POLICY }, 1);
    assert_eq!(pool.step(), [spawn(2, 0)]);
    pool.exits(2, ExitClass::Crashed);
    assert_eq!(pool.step_to_roll_back(), [spawn(3, 0)]);
    assert_eq!(pool.supervisor.outcome(), None);
}

#[test]
fn outdated_pair_in_a_slot_drains_the_older() {
    let mut pool = Pool::serving(POLICY, 2);
    pool.supervisor.on_replacement_requested(WorkerId(1));
    assert_eq!(pool.step(), [spawn(3, 0)]);
    pool.become_ready(3);
    pool.supervisor.reload(POLICY, 2);
    let actions = pool.step();
    assert!(actions.contains(&drain(1, ExitReason::Reload)), "{actions:?}");
    assert_eq!(pool.serving_ids(), [3, 2]);
}

#[test]
fn old_boot_failure_does_not_count_for_the_canary() {
    let policy = Policy { boot_retries: 0, ..POLICY };
    let mut pool = Pool::new(policy, 1);
    assert_eq!(pool.step(), [spawn(1, 0)]);
    pool.supervisor.reload(policy, 1);
    pool.exits(1, ExitClass::Crashed);
    assert!(pool.step().iter().any(is_spawn), "the only slot is not exhausted");
    pool.all_become_ready();
    pool.step_to_commit();
    assert_eq!(pool.supervisor.ready_count(), 1);
}

/// A policy that replaces workers in place: no surge, and `missing` workers unavailable.
fn in_place(missing: usize) -> Policy {
    Policy { max_surge: 0, max_unavailable: missing, ..POLICY }
}

#[test]
fn in_place_reload_drains_only_after_canary_ready() {
    let (mut pool, actions) = reloading(in_place(2), 4, 4);
    assert_eq!(actions, [spawn(5, 0)], "the canary is an extra worker");
    assert_eq!(pool.pass(SECOND), []);
    pool.become_ready(5);
    let drained = [1, 2, 3].map(|id| drain(id, ExitReason::Reload));
    let spawned = [spawn(6, 1), spawn(7, 2), spawn(8, 3)];
    assert_eq!(pool.step(), [&drained[..], &spawned].concat());
    assert_eq!(pool.supervisor.ready_count(), 2, "5, and the last old worker");
    pool.become_ready(8);
    assert_eq!(pool.step(), [], "the last old worker stays until all are ready");
    pool.all_become_ready();
    assert_eq!(pool.step_to_commit(), [drain(4, ExitReason::Reload)]);
    assert_eq!(generations(&pool), [2; 4]);
}

#[test]
fn max_surge_and_max_unavailable_add_up() {
    let (mut pool, _) = reloading(Policy { max_unavailable: 1, ..POLICY }, 4, 4);
    pool.become_ready(5);
    let actions = pool.step();
    let drained = [1, 2].map(|id| drain(id, ExitReason::Reload));
    assert_eq!(actions, [&drained[..], &[spawn(6, 1), spawn(7, 2)]].concat());
    assert_eq!(pool.supervisor.ready_count(), 3, "5, 3 and 4");
}

#[test]
fn in_place_reload_of_one_worker_has_no_gap() {
    let (mut pool, actions) = reloading(in_place(1), 1, 1);
    assert_eq!(actions, [spawn(2, 0)]);
    pool.become_ready(2);
    assert_eq!(pool.step_to_commit(), [drain(1, ExitReason::Reload)]);
}

#[test]
fn failed_canary_in_place_keeps_all_workers() {
    let (mut pool, _) = reloading(in_place(3), 3, 3);
    pool.exits(4, ExitClass::Crashed);
    assert_eq!(pool.step_to_roll_back(), []);
    assert_eq!(pool.serving_ids(), [1, 2, 3]);
}

#[test]
fn dead_worker_counts_as_unavailable() {
    let (mut pool, _) = reloading(in_place(1), 5, 5);
    pool.exits(5, ExitClass::Crashed);
    pool.become_ready(6);
    assert_eq!(pool.step(), [drain(1, ExitReason::Reload), spawn(7, 4)]);
    pool.become_ready(7);
    assert_eq!(pool.step(), [drain(2, ExitReason::Reload), spawn(8, 1)]);
}

#[test]
fn failed_in_place_reload_restores_all_workers() {
    let (mut pool, _) = reloading(in_place(1), 4, 4);
    pool.become_ready(5);
    assert_eq!(
        pool.step(),
        [drain(1, ExitReason::Reload), drain(2, ExitReason::Reload), spawn(6, 1)]
    );
    pool.exits(6, ExitClass::Crashed);
    assert_eq!(pool.step_to_roll_back(), [spawn(7, 1)], "5 still serves");
    pool.become_ready(7);
    assert_eq!(pool.step(), [drain(5, ExitReason::Reload), spawn(8, 0)]);
    pool.become_ready(8);
    assert_eq!(pool.step(), []);
    assert_eq!(generations(&pool), [1; 4]);
}

#[test]
fn in_place_reload_of_4000_workers_replaces_all() {
    const WORKERS: usize = 4000;
    const MISSING: usize = 100;
    let mut pool = Pool::serving(in_place(MISSING), WORKERS);
    pool.supervisor.reload(in_place(MISSING), WORKERS);
    let mut rounds = 0;
    while pool.supervisor.is_reloading() {
        for action in pool.turn().0 {
            if let Action::Drain(id, ExitReason::Reload) = action {
                pool.exits(id.0, ExitClass::Requested);
            }
        }
        assert!(pool.supervisor.ready_count() >= WORKERS - MISSING);
        assert!(pool.supervisor.workers().count() <= WORKERS + 1);
        pool.all_become_ready();
        rounds += 1;
    }
    assert!(rounds <= WORKERS / MISSING + 3, "{rounds} rounds");
    assert_eq!(generations(&pool), [2; WORKERS]);
}

#[test]
fn worker_of_a_failed_generation_serves_until_the_next_reload_commits() {
    let (mut pool, _) = reloading(POLICY, 3, 3);
    pool.become_ready(4);
    assert_eq!(pool.step(), [drain(1, ExitReason::Reload), spawn(5, 1)]);
    pool.exits(1, ExitClass::Requested);
    pool.exits(5, ExitClass::Crashed);
    assert_eq!(pool.step_to_roll_back(), [spawn(6, 0)]);
    pool.exits(2, ExitClass::KilledExternally);
    pool.exits(3, ExitClass::KilledExternally);
    assert_eq!(pool.step(), [spawn(7, 1), spawn(8, 2)]);
    // The committed generation does not boot any more.
    for id in 6..=8 {
        pool.exits(id, ExitClass::Crashed);
    }
    assert_eq!(pool.serving_ids(), [4]);
    let generation = pool.supervisor.reload(POLICY, 3);
    for _ in 0..8 {
        let (actions, end) = pool.turn();
        let is_drained = actions.contains(&drain(4, ExitReason::Reload));
        assert_eq!(is_drained, end == Some(ReloadEnd::Commit), "{actions:?}");
        if is_drained {
            return;
        }
        // The lowest slot first, which has the old worker.
        let boots = |it: &&Worker| it.generation == generation && it.state != State::Ready;
        let mut workers = pool.supervisor.slots.iter().flat_map(|slot| &slot.workers);
        let booting = workers.find(boots).map(|it| it.id.0);
        booting.into_iter().for_each(|id| pool.become_ready(id));
    }
    panic!("the reload does not commit");
}
