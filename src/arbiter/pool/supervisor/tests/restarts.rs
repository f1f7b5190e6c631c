//! When an exited worker is restarted: at once, within the budget, after a back-off, in an outage.

use super::*;
use crate::arbiter::pool::supervisor::restarts::OUTAGE_RETRY_INTERVAL;

/// The time after which the budget of [`POLICY`] allows one more restart.
const RATE: Duration = Duration::from_secs(15);

/// Fails before it has served.
fn crashes_unserved(pool: &mut Pool, id: u64) -> Option<Duration> {
    pool.exits(id, ExitClass::Crashed).restart_in
}

/// Crashes at a unit of work.
fn crashes_at_work(pool: &mut Pool, id: u64) -> Option<Duration> {
    let crash = ExitObservation { has_worked: true, ..observation(ExitClass::Crashed) };
    let report = pool.exits_as(id, crash);
    assert_eq!(report.reason, ExitReason::Crashed);
    report.restart_in
}

/// Returns a pool of `target` slots, each with a worker, whose budget is used up. Returns the number
/// of the last worker.
fn without_budget(target: usize) -> (Pool, u64) {
    let mut pool = Pool::serving(POLICY, target);
    let mut last = target as u64;
    for _ in 0..POLICY.restart_limit.max(target as u32) {
        assert_eq!(crashes_at_work(&mut pool, last), Some(Duration::ZERO));
        last += 1;
        assert_eq!(pool.step(), [spawn(last, target - 1)]);
        pool.become_ready(last);
    }
    (pool, last)
}

#[test]
fn crash_at_work_restarts_at_once() {
    let mut pool = Pool::serving(POLICY, 2);
    assert_eq!(crashes_at_work(&mut pool, 2), Some(Duration::ZERO));
    assert_eq!(pool.step(), [spawn(3, 1)]);
}

#[test]
fn crash_after_a_second_of_readiness_restarts_at_once() {
    for (uptime, is_immediate) in [(SECOND - NANO, false), (SECOND, true)] {
        let mut pool = Pool::serving(POLICY, 2);
        pool.pass(uptime);
        let report = pool.exits(2, ExitClass::Crashed);
        assert_eq!((report.slot, report.generation), (1, 1));
        assert_eq!(report.restart_in == Some(Duration::ZERO), is_immediate, "{uptime:?}");
    }
}

#[test]
fn crashes_before_serving_back_off_up_to_30_seconds() {
    let mut pool = Pool::serving(POLICY, 2);
    let mut delays = Vec::new();
    for id in 2..22 {
        let delay = crashes_unserved(&mut pool, id).expect("the slot is refilled");
        assert_eq!(pool.pass(delay - NANO), []);
        assert_eq!(pool.pass(NANO), [spawn(id + 1, 1)]);
        pool.become_ready(id + 1);
        delays.push(delay);
    }
    assert!((75 * MILLI..=100 * MILLI).contains(&delays[0]), "{delays:?}");
    assert!(delays[..9].is_sorted_by(|a, b| a < b), "{delays:?}");
    assert!(delays.iter().all(|delay| *delay <= BACKOFF_MAX), "{delays:?}");
    assert!(delays[9..].iter().all(|delay| BACKOFF_MAX.mul_f64(0.75) <= *delay), "{delays:?}");
}

#[test]
fn worker_that_has_served_resets_the_back_off() {
    let mut pool = Pool::serving(POLICY, 2);
    for id in 2..8 {
        let delay = crashes_unserved(&mut pool, id).expect("the slot is refilled");
        assert_eq!(pool.pass(delay), [spawn(id + 1, 1)]);
        pool.become_ready(id + 1);
    }
    assert_eq!(crashes_at_work(&mut pool, 8), Some(Duration::ZERO));
    pool.step();
    pool.become_ready(9);
    assert!(crashes_unserved(&mut pool, 9) <= Some(100 * MILLI), "the first step again");
}

#[test]
fn crashes_beyond_the_budget_wait_for_its_rate() {
    let (mut pool, last) = without_budget(2);
    assert_eq!(crashes_at_work(&mut pool, last), Some(RATE));
    assert_eq!(pool.pass(RATE - NANO), []);
    assert_eq!(pool.pass(NANO), [spawn(last + 1, 1)]);
}

#[test]
fn budget_is_refilled_in_restart_interval() {
    let (mut pool, mut last) = without_budget(2);
    pool.run(POLICY.restart_interval);
    for _ in 0..POLICY.restart_limit {
        assert_eq!(crashes_at_work(&mut pool, last), Some(Duration::ZERO));
        last += 1;
        assert_eq!(pool.step(), [spawn(last, 1)]);
        pool.become_ready(last);
    }
    assert_eq!(crashes_at_work(&mut pool, last), Some(RATE));
}

#[test]
fn budget_allows_one_restart_for_each_worker() {
    let mut pool = Pool::serving(POLICY, 50);
    for id in 1..=50 {
        assert_eq!(crashes_at_work(&mut pool, id), Some(Duration::ZERO));
    }
    assert_eq!(pool.step().len(), 50);
}

#[test]
fn wait_for_the_budget_is_at_most_30_seconds() {
    let policy = Policy { restart_limit: 1, ..POLICY };
    let mut pool = Pool::serving(policy, 2);
    let mut longest = Duration::ZERO;
    for id in 2..20 {
        longest = longest.max(crashes_at_work(&mut pool, id).expect("the slot is refilled"));
        pool.run(longest);
        pool.become_ready(id + 1);
    }
    assert_eq!(longest, BACKOFF_MAX);
}

#[test]
fn zero_restart_limit_is_no_limit() {
    let mut pool = Pool::serving(Policy { restart_limit: 0, ..POLICY }, 1);
    for id in 1..1000 {
        assert_eq!(crashes_at_work(&mut pool, id), Some(Duration::ZERO));
        assert_eq!(pool.step(), [spawn(id + 1, 0)]);
        pool.become_ready(id + 1);
    }
}

#[test]
fn external_kills_use_no_budget() {
    let (mut pool, last) = without_budget(1);
    let killed = ExitObservation { has_worked: true, ..observation(ExitClass::KilledExternally) };
    assert_eq!(pool.exits_as(last, killed).restart_in, Some(Duration::ZERO));
}

#[test]
fn oom_kills_use_the_budget() {
    let (mut pool, last) = without_budget(2);
    let killed = ExitObservation { has_worked: true, ..observation(ExitClass::OomKilled) };
    let report = pool.exits_as(last, killed);
    assert_eq!((report.reason, report.restart_in), (ExitReason::OomKilled, Some(RATE)));
}

#[test]
fn outage_beyond_the_budget_retries_one_slot_within_a_second() {
    let (mut pool, last) = without_budget(2);
    assert_eq!(crashes_at_work(&mut pool, last), Some(RATE));
    assert_eq!(pool.step(), []);
    pool.advance(MILLI);
    assert_eq!(crashes_at_work(&mut pool, 1), Some(2 * RATE - MILLI), "the other slot is first");
    assert_eq!(pool.step(), []);
    assert_eq!(pool.pass(OUTAGE_RETRY_INTERVAL - NANO), []);
    assert_eq!(pool.pass(NANO), [spawn(last + 1, 1)]);
    assert_eq!(pool.pass(OUTAGE_RETRY_INTERVAL), [], "one worker is starting");
    pool.become_ready(last + 1);
    assert_eq!(pool.pass(OUTAGE_RETRY_INTERVAL), [], "one worker is ready");
}

#[test]
fn outage_of_failing_boots_retries_every_second() {
    let mut pool = Pool::serving(POLICY, 3);
    (1..=3).for_each(|id| _ = pool.exits(id, ExitClass::KilledExternally));
    let begun = pool.now;
    let mut attempts: Vec<(MonotonicTime, usize)> = Vec::new();
    while pool.now.duration_since(begun) < 5 * MINUTE {
        for action in pool.turn().0 {
            let Action::Spawn { id, slot, .. } = action else { panic!("{action:?}") };
            attempts.push((pool.now, slot));
            pool.exits(id.0, ExitClass::Crashed);
        }
        pool.now = pool.supervisor.next_deadline(pool.now).expect("a retry");
    }
    let gaps: Vec<_> =
        attempts.windows(2).map(|pair| pair[1].0.duration_since(pair[0].0)).collect();
    assert!(gaps.iter().all(|gap| *gap <= OUTAGE_RETRY_INTERVAL), "{gaps:?}");
    let late = attempts.iter().filter(|(at, _)| at.duration_since(begun) > MINUTE).count();
    assert!(late <= 4 * 60 + 60, "{late} attempts in four minutes");
    let slots: BTreeSet<usize> = attempts.iter().rev().take(60).map(|(_, slot)| *slot).collect();
    assert_eq!(slots.len(), 3, "every slot is tried");
}

#[test]
fn restart_in_of_an_outage_is_that_of_its_retry() {
    let mut pool = Pool::serving(POLICY, 1);
    for id in 1..20 {
        let delay = crashes_unserved(&mut pool, id).expect("the slot is refilled");
        assert!(delay <= OUTAGE_RETRY_INTERVAL, "{delay:?}");
        assert_eq!(pool.pass(delay - NANO), []);
        assert_eq!(pool.pass(NANO), [spawn(id + 1, 0)]);
        pool.become_ready(id + 1);
    }
}

#[test]
fn suspended_pool_has_no_outage() {
    let mut pool = Pool::serving(POLICY, 1);
    pool.supervisor.suspend();
    assert_eq!(pool.step(), [drain(1, ExitReason::Requested)]);
    crashes_unserved(&mut pool, 1);
    assert_eq!(pool.run(MINUTE), []);
    pool.supervisor.resume();
    assert_eq!(pool.step(), [spawn(2, 0)]);
}

#[test]
fn forty_poison_requests_restart_at_once() {
    let mut pool = Pool::serving(Policy { restart_limit: 100, ..POLICY }, 2);
    let begun = pool.now;
    for _ in 0..40 {
        let victim = pool.serving_ids()[0];
        assert_eq!(crashes_at_work(&mut pool, victim), Some(Duration::ZERO));
        assert_eq!(pool.pass(MILLI).len(), 1);
        pool.all_become_ready();
    }
    assert_eq!(pool.supervisor.ready_count(), 2);
    assert_eq!(pool.now.duration_since(begun), 40 * MILLI);
}
