//! Operations over an invented pool and clock.

use super::present::MARGIN;
use super::*;
use crate::arbiter::pool::supervisor::tests::POLICY;
use crate::arbiter::pool::supervisor::{
    Action, ExitObservation, ProcessExit, ReloadPhase, Supervisor, WorkerId,
};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// A pool whose workers are numbers, and the operations that watch it.
struct World {
    supervisor: Supervisor,
    operations: Operations,
    now: MonotonicTime,
    is_stopping: bool,
    is_pre_stop: bool,
    /// New workers do not become ready.
    boots_fail: bool,
}

impl World {
    fn new(target: usize) -> Self {
        let now = MonotonicTime::default().saturating_add(1000 * SECOND);
        let supervisor = Supervisor::new(POLICY, target, 7);
        let operations = Operations::default();
        let mut world = Self {
            supervisor,
            operations,
            now,
            is_stopping: false,
            is_pre_stop: false,
            boots_fail: false,
        };
        world.turn();
        world
    }

    /// Plays one turn, in which workers are forked and asked to drain. Returns the drained ones.
    fn turn(&mut self) -> Vec<WorkerId> {
        let mut drained = Vec::new();
        for action in self.supervisor.reconcile(self.now, None::<ReloadPhase>) {
            match action {
                Action::Spawn { id, slot, .. } => {
                    self.supervisor.on_spawned(id, slot, self.now);
                    if self.boots_fail {
                        self.exit(id, 3);
                    } else {
                        self.supervisor.on_ready(id, self.now);
                    }
                }
                Action::Drain(id, _) => drained.push(id),
                other => panic!("{other:?}"),
            }
        }
        self.look();
        drained
    }

    fn look(&mut self) {
        self.operations.set_now(self.now);
        let supervisor = &self.supervisor;
        let pool = |name: &str| {
            (name == "web").then(|| PoolView {
                supervisor,
                failure_reason: "exit code 3",
                pid_of: Box::new(|id| Some(1000 + id.0 as i32)),
            })
        };
        self.operations.on_turn(&Present {
            workers: supervisor.worker_count(),
            is_stopping: self.is_stopping,
            is_pre_stop: self.is_pre_stop,
            reload: None,
            pool: &pool,
        });
    }

    fn exit(&mut self, id: WorkerId, code: i32) {
        let observation = ExitObservation {
            exit: ProcessExit::Code(code),
            was_draining: code == 0,
            killed_by_master: false,
            oom_kill: false,
            has_worked: false,
        };
        self.supervisor.on_exit(id, observation, self.now);
    }

    fn scale(&mut self, to: usize) -> u64 {
        let from = self.supervisor.target();
        self.supervisor.scale_to(to);
        self.operations.set_now(self.now);
        let work = Scaling::new(from, to, &self.supervisor, SECOND, self.now);
        self.operations.begin(Work::Scale(work), "test", Some("web"))
    }

    fn recycle(&mut self, slot: Option<usize>) -> u64 {
        let chosen = self.supervisor.recycle(slot).into_iter();
        let workers = chosen.map(|(id, slot)| Recycled {
            pool: "web".into(),
            slot,
            id,
            pid: 1000 + id.0 as i32,
            failures: self.supervisor.slot_failures(slot),
            new_pid: None,
            has_exited: false,
        });
        let work = Recycling::new(workers.collect(), SECOND, self.now);
        self.operations.begin(Work::Recycle(work), "test", Some("web"))
    }

    /// Begins the drain mode of a worker.
    fn drain_worker(&mut self, slot: usize) -> (u64, WorkerId) {
        let (worker, _) = self.supervisor.begin_drain_mode(slot).unwrap();
        let process = (worker, 1000 + worker.0 as i32);
        let drain = WorkerDrain::new("web".into(), slot, process, 30 * SECOND, self.now);
        self.operations.set_now(self.now);
        (self.operations.begin_worker_drain(drain, "test", "web"), worker)
    }

    #[track_caller]
    fn state(&self, id: u64) -> &OperationState {
        self.operations.get(id).unwrap().state()
    }

    #[track_caller]
    fn assert_failed(&self, id: u64, part: &str) {
        match self.state(id) {
            OperationState::Failed(reason) => assert!(reason.contains(part), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
}

fn done(result: Value) -> OperationState {
    OperationState::Done(result)
}

#[test]
fn scale_up_is_done_when_all_are_ready() {
    let mut world = World::new(2);
    let id = world.scale(4);
    assert_eq!(*world.state(id), OperationState::Running);
    world.turn();
    assert_eq!(*world.state(id), done(json!({ "from": 2, "to": 4 })));
}

#[test]
fn scale_down_is_done_when_the_others_have_exited() {
    let mut world = World::new(4);
    let id = world.scale(2);
    let drained = world.turn();
    assert_eq!(drained.len(), 2);
    world.exit(drained[0], 0);
    world.turn();
    let progress = world.operations.get(id).unwrap().progress();
    assert_eq!(progress, Progress { done: 1, total: 2, phase: "draining" });
    world.exit(drained[1], 0);
    world.turn();
    assert_eq!(*world.state(id), done(json!({ "from": 4, "to": 2 })));
}

#[test]
fn scale_up_fails_when_a_new_worker_fails_to_boot() {
    let mut world = World::new(1);
    world.boots_fail = true;
    let id = world.scale(2);
    world.turn();
    world.assert_failed(id, "exit code 3");
}

#[test]
fn scale_fails_when_it_is_superseded_or_late() {
    let mut world = World::new(4);
    let (first, second) = (world.scale(3), world.scale(2));
    world.turn();
    world.assert_failed(first, "superseded");
    assert_eq!(world.operations.next_deadline(), Some(world.now.saturating_add(SECOND + MARGIN)));
    world.now = world.now.saturating_add(SECOND + MARGIN);
    world.look();
    world.assert_failed(second, "2 others have not exited");
    assert_eq!(world.operations.next_deadline(), None);
}

#[test]
fn recycle_is_done_when_each_is_replaced_and_has_exited() {
    let mut world = World::new(2);
    let id = world.recycle(None);
    for exited in [1, 2] {
        let drained = std::iter::repeat_with(|| world.turn()).find(|drained| !drained.is_empty());
        assert_eq!(drained.unwrap(), [WorkerId(exited)], "one at a time, the new one first");
        assert_eq!(*world.state(id), OperationState::Running);
        world.exit(WorkerId(exited), 0);
    }
    world.turn();
    let replaced = |slot, old_pid, new_pid| json!({ "pool": "web", "slot": slot, "old_pid": old_pid, "new_pid": new_pid });
    let all = [replaced(0, 1001, 1003), replaced(1, 1002, 1004)];
    assert_eq!(*world.state(id), done(json!({ "replaced": all })));
}

#[test]
fn recycle_of_a_slot_replaces_no_other() {
    let mut world = World::new(3);
    let id = world.recycle(Some(1));
    world.turn();
    let drained = world.turn();
    assert_eq!(drained, [WorkerId(2)]);
    world.exit(drained[0], 0);
    assert_eq!(world.turn(), []);
    assert!(matches!(world.state(id), OperationState::Done(_)));
    assert_eq!(world.supervisor.recycle(Some(3)), [], "there is no such slot");
}

#[test]
fn recycle_fails_when_the_new_worker_fails_to_boot() {
    let mut world = World::new(1);
    world.boots_fail = true;
    let id = world.recycle(None);
    world.turn();
    world.assert_failed(id, "exit code 3");
    assert_eq!(world.supervisor.ready_count(), 1, "the old one serves on");
}

#[test]
fn reload_follows_the_facts_of_its_own_generation() {
    let mut operations = Operations::default();
    let reload = |operations: &mut Operations| {
        operations.begin(Work::Reload(ReloadStage::Requested), "test", None)
    };
    let first = reload(&mut operations);
    operations.on_fact(Fact::ReloadPlanned);
    let second = reload(&mut operations);
    operations.on_fact(Fact::ReloadStarted(2));
    operations.on_fact(Fact::ReloadCommitted(2));
    operations.on_fact(Fact::ReloadPlanned);
    operations.on_fact(Fact::ReloadStarted(3));
    operations.on_fact(Fact::ReloadComplete(2));
    let state = |operations: &Operations, id| operations.get(id).unwrap().state().clone();
    assert_eq!(state(&operations, first), done(json!({ "generation": 2 })));
    assert_eq!(state(&operations, second), OperationState::Running);
    operations.on_fact(Fact::ReloadRolledBack("x".into()));
    assert_eq!(state(&operations, second), OperationState::Failed("x".into()));
}

#[test]
fn upgrade_is_done_when_the_new_master_is_ready_or_goes_on() {
    for replaces in [false, true] {
        let mut operations = Operations::default();
        let work = Work::Upgrade { replaces, old_pid: 1, new_pid: None, is_ready: false };
        let id = operations.begin(work, "test", None);
        operations.on_fact(Fact::UpgradeStarted(2));
        operations.on_fact(Fact::NewMasterReady);
        let is_done = |operations: &Operations| {
            *operations.get(id).unwrap().state() == done(json!({ "old_pid": 1, "new_pid": 2 }))
        };
        assert_eq!(is_done(&operations), !replaces);
        operations.on_exit(Some(2));
        assert!(is_done(&operations));
    }
}

#[test]
fn early_stop_says_which_master_goes_on() {
    for (successor, has_failed) in [(Some(2), false), (None, true), (Some(3), true)] {
        let mut operations = Operations::default();
        let work = Work::Upgrade { replaces: true, old_pid: 1, new_pid: None, is_ready: false };
        let upgrade = operations.begin(work, "test", None);
        operations.on_fact(Fact::UpgradeStarted(2));
        let stop = operations.begin(Work::Stop { workers: 2 }, "test", None);
        operations.on_exit(successor);
        let state = |id| operations.get(id).unwrap().state();
        assert_eq!(matches!(state(upgrade), OperationState::Failed(_)), has_failed);
        let expected = successor.map_or(json!({}), |pid| json!({ "serving_pid": pid }));
        assert_eq!(*state(stop), done(expected));
    }
}

#[test]
fn rejected_upgrade_is_the_one_without_a_new_master() {
    let mut operations = Operations::default();
    let begin = |operations: &mut Operations| {
        let work = Work::Upgrade { replaces: true, old_pid: 1, new_pid: None, is_ready: false };
        operations.begin(work, "test", None)
    };
    let first = begin(&mut operations);
    operations.on_fact(Fact::UpgradeStarted(2));
    let second = begin(&mut operations);
    operations.on_fact(Fact::UpgradeRejected("x".into()));
    let state = |operations: &Operations, id| operations.get(id).unwrap().state().clone();
    assert_eq!(state(&operations, first), OperationState::Running);
    assert_eq!(state(&operations, second), OperationState::Failed("x".into()));
    let third = begin(&mut operations);
    operations.on_fact(Fact::UpgradeFailed("y".into()));
    assert_eq!(state(&operations, first), OperationState::Failed("y".into()));
    assert_eq!(state(&operations, third), OperationState::Running);
}

#[test]
fn stop_ends_all_other_operations() {
    let mut world = World::new(2);
    let (scale, stop) = {
        let scale = world.scale(1);
        (scale, world.operations.begin(Work::Stop { workers: 2 }, "test", None))
    };
    world.is_stopping = true;
    world.look();
    world.assert_failed(scale, "stops");
    assert_eq!(*world.state(stop), OperationState::Running);
    world.operations.on_exit(None);
    assert_eq!(*world.state(stop), done(json!({})));
}

#[test]
fn delayed_stop_ends_reloads_that_have_not_begun() {
    let mut world = World::new(2);
    let begin = |world: &mut World, work| world.operations.begin(work, "test", None);
    let requested = begin(&mut world, Work::Reload(ReloadStage::Requested));
    let rolling = begin(&mut world, Work::Reload(ReloadStage::Rolling(2)));
    let stop = begin(&mut world, Work::Stop { workers: 2 });
    world.is_pre_stop = true;
    world.look();
    world.assert_failed(requested, "stops");
    assert_eq!(*world.state(rolling), OperationState::Running);
    let progress = world.operations.get(stop).expect("it runs").progress();
    assert_eq!(progress.phase, "pre_stop");
}

#[test]
fn running_operations_are_never_forgotten() {
    let mut operations = Operations::default();
    let begin = |operations: &mut Operations| {
        operations.begin(Work::Reload(ReloadStage::Requested), "test", None)
    };
    let running: Vec<_> = (0..KEPT_MAX).map(|_| begin(&mut operations)).collect();
    assert_eq!(begin(&mut operations), 0);
    let stop = operations.begin(Work::Stop { workers: 0 }, "test", None);
    assert!(running.iter().chain([&stop]).all(|id| operations.get(*id).is_some()));
    assert_eq!(operations.get(0).map(|it| it.id), None);
}

#[test]
fn last_64_operations_are_kept_and_running_ones_first() {
    let mut operations = Operations::default();
    let running = operations.begin(Work::Stop { workers: 0 }, "test", None);
    for _ in 0..KEPT_MAX {
        let id = operations.begin(Work::Reopen, "test", None);
        operations.end(id, Ok(json!({})));
    }
    assert!(operations.get(running).is_some() && operations.get(running + 1).is_none());
    assert_eq!(operations.list_json()["operations"].as_array().unwrap().len(), KEPT_MAX);
    assert!(!operations.is_full());
}

#[test]
fn drain_of_a_worker_is_done_when_it_has_no_clients() {
    let mut world = World::new(2);
    let (id, worker) = world.drain_worker(1);
    world.turn();
    let progress = Progress { done: 0, total: 1, phase: "draining" };
    assert_eq!(world.operations.get(id).unwrap().progress(), progress);
    assert_eq!(world.operations.json(id).unwrap()["command"], "drain");
    world.supervisor.on_drained(worker);
    world.turn();
    let result = json!({"drain_mode": true, "pool": "web", "slot": 1, "pid": 1000 + worker.0});
    assert_eq!(*world.state(id), done(result.clone()));
    let (again, _) = world.drain_worker(1);
    world.turn();
    assert_eq!(*world.state(again), done(result));
}

#[test]
fn drain_of_a_draining_worker_is_one_operation() {
    let mut world = World::new(3);
    let (first, _) = world.drain_worker(0);
    for _ in 0..KEPT_MAX {
        assert_eq!(world.drain_worker(0).0, first);
    }
    assert_ne!(world.drain_worker(1).0, first);
    world.supervisor.end_drain_mode(0).unwrap();
    world.turn();
    assert_ne!(world.drain_worker(0).0, first, "that one has failed");
}

#[test]
fn end_of_a_drain_mode_gets_past_a_full_list() {
    let mut operations = Operations::default();
    let running: Vec<u64> = (0..KEPT_MAX)
        .map(|_| operations.begin(Work::Reload(ReloadStage::Requested), "test", None))
        .collect();
    for _ in 0..3 {
        let id = operations.begin(Work::DrainMode { is_on: false }, "test", None);
        operations.end(id, Ok(json!({})));
        assert_eq!(*operations.get(id).unwrap().state(), done(json!({})));
    }
    assert!(running.iter().all(|id| operations.get(*id).is_some()));
    let length = operations.list_json()["operations"].as_array().unwrap().len();
    assert_eq!(length, KEPT_MAX + 1);
}

#[test]
fn drain_of_a_worker_fails_if_it_stops_is_undrained_or_lasts() {
    let mut world = World::new(3);
    let (undrained, _) = world.drain_worker(0);
    world.supervisor.end_drain_mode(0).unwrap();
    let (exited, worker) = world.drain_worker(1);
    world.exit(worker, 0);
    world.turn();
    world.assert_failed(undrained, "its drain mode was ended");
    world.assert_failed(exited, "worker 1002 stops");
    let (lasting, _) = world.drain_worker(2);
    world.now = world.now.saturating_add(30 * SECOND);
    world.turn();
    assert_eq!(*world.state(lasting), OperationState::Running);
    assert_eq!(world.operations.next_deadline(), Some(world.now.saturating_add(MARGIN)));
    world.now = world.now.saturating_add(MARGIN);
    world.turn();
    world.assert_failed(lasting, "has not finished its clients");
    let (stopped, _) = world.drain_worker(2);
    world.is_stopping = true;
    world.turn();
    world.assert_failed(stopped, "the master stops");
}
