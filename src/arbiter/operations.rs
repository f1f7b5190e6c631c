//! The operations of a master: what a signal or a command has begun, how far it is, and how it has
//! ended. Pure: it is told facts, and what the pools are like in each turn.

mod command;
mod counts;
mod operation;
mod present;
mod recycling;
mod scaling;
#[cfg(test)]
mod tests;
mod worker_drain;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde_json::{Value, json};

use crate::time::MonotonicTime;
pub(super) use command::{Command, Refusal, ScaleTo};
pub(super) use counts::{Ended, OperationCounts};
use operation::upgrade_result;
pub(super) use operation::{Fact, Operation, OperationState, ReloadStage, Work};
use present::Verdict;
pub(super) use present::{PoolView, Present, Progress};
pub(super) use recycling::{Recycled, Recycling};
pub(super) use scaling::Scaling;
pub(super) use worker_drain::WorkerDrain;

/// How many operations are remembered, and how many may run at a time.
pub(super) const KEPT_MAX: usize = 64;

/// What the loop of the master and the control interface share.
#[derive(Clone, Default)]
pub(super) struct SharedOperations(Arc<Mutex<Operations>>);

impl SharedOperations {
    /// Returns the operations. The master has one thread, so this never waits.
    pub(super) fn lock(&self) -> MutexGuard<'_, Operations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the answer to a command is put: the number of its operation, or why there is none.
pub(super) type Reply = Arc<OnceLock<Result<u64, Refusal>>>;

/// A command that the master has not taken up yet.
pub(super) struct Asked {
    pub(super) command: Command,
    /// Which client has asked.
    pub(super) by: String,
    pub(super) reply: Reply,
}

/// The operations, the oldest first.
#[derive(Default)]
pub(super) struct Operations {
    list: VecDeque<Operation>,
    last_id: u64,
    asked: Vec<Asked>,
    now: MonotonicTime,
    counts: OperationCounts,
    /// When a client is to be told what was held back.
    look_again_at: Option<MonotonicTime>,
}

/// Commands.
impl Operations {
    /// Puts a command where the loop finds it. The answer comes in the next turn.
    pub(super) fn ask(&mut self, command: Command, by: String) -> Reply {
        let reply = Reply::default();
        self.asked.push(Asked { command, by, reply: Arc::clone(&reply) });
        reply
    }

    /// Returns whether there are commands to take up.
    pub(super) fn any_asked(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Takes the commands that were asked for.
    pub(super) fn take_asked(&mut self) -> Vec<Asked> {
        std::mem::take(&mut self.asked)
    }

    /// Begins an operation. Returns its number. If as many run as may, none begins, and the number is
    /// 0, which no operation has: a signal takes effect without one. A stop always begins one, and so
    /// does a drain mode that ends at once.
    pub(super) fn begin(&mut self, work: Work, by: &str, pool: Option<&str>) -> u64 {
        self.count_ended();
        let ended = self.list.iter().position(|it| it.ended.is_some());
        if self.is_full() && !matches!(work, Work::Stop { .. } | Work::DrainMode { .. }) {
            return 0;
        }
        if let Some(oldest) = ended.filter(|_| self.list.len() >= KEPT_MAX) {
            self.list.remove(oldest);
        }
        self.last_id += 1;
        self.list.push_back(Operation::new(self.last_id, by, pool, work, self.now));
        self.last_id
    }

    /// Begins to wait until a worker is drained. Returns the number of the operation: that of the running
    /// one, if one waits for this worker.
    pub(super) fn begin_worker_drain(&mut self, drain: WorkerDrain, by: &str, pool: &str) -> u64 {
        let is_same = |work: &Work| matches!(work, Work::DrainWorker(it) if it.is_same(&drain));
        let running = self.running(is_same);
        running.unwrap_or_else(|| self.begin(Work::DrainWorker(drain), by, Some(pool)))
    }

    /// Ends an operation, unless it has ended.
    pub(super) fn end(&mut self, id: u64, result: Result<Value, String>) {
        let now = self.now;
        if let Some(operation) = self.list.iter_mut().find(|it| it.id == id) {
            operation.end(result, now);
        }
    }
}

/// Facts.
impl Operations {
    /// Sets the time of this turn.
    pub(super) fn set_now(&mut self, now: MonotonicTime) {
        self.now = now;
        self.look_again_at = self.look_again_at.filter(|at| now < *at);
    }

    /// Has the loop turn at this time, for a client that is told later.
    pub(super) fn look_again_at(&mut self, at: MonotonicTime) {
        self.look_again_at = Some(self.look_again_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Records what has happened.
    pub(super) fn on_fact(&mut self, fact: Fact) {
        let now = self.now;
        let fact = &fact;
        if let Fact::EarlierOperations(counts) = fact {
            self.counts.add_all(counts);
        }
        for operation in self.list.iter_mut().filter(|it| it.ended.is_none()) {
            operation.on_fact(fact, now);
        }
    }

    /// Looks which operations have come true, or cannot any more.
    pub(super) fn on_turn(&mut self, present: &Present<'_>) {
        let now = self.now;
        for operation in self.list.iter_mut().filter(|it| it.ended.is_none()) {
            match operation.look(present, now) {
                Verdict::Running(progress) => operation.set_progress(progress),
                Verdict::Done(result) => operation.end(Ok(result), now),
                Verdict::Failed(reason) => operation.end(Err(reason), now),
            }
        }
    }

    /// Records that all workers have exited, and the master is about to. `successor` is the other
    /// master, which goes on.
    pub(super) fn on_exit(&mut self, successor: Option<i32>) {
        let now = self.now;
        for operation in self.list.iter_mut().filter(|it| it.ended.is_none()) {
            let result = match (&operation.work, successor) {
                (Work::Stop { .. }, None) => Ok(json!({})),
                (Work::Stop { .. }, Some(pid)) => Ok(json!({ "serving_pid": pid })),
                (Work::Upgrade { old_pid, new_pid: Some(new_pid), .. }, Some(pid))
                    if *new_pid == pid =>
                {
                    Ok(upgrade_result(*old_pid, pid))
                }
                _ => Err("the master has stopped".to_owned()),
            };
            operation.end(result, now);
        }
    }
}

/// Counts.
impl Operations {
    /// Counts the operations that have ended since the last call.
    fn count_ended(&mut self) {
        for operation in &mut self.list {
            if let Some((command, result, time)) = operation.take_end() {
                self.counts.add(command, result, Ended { count: 1, time });
            }
        }
    }

    /// Returns how many reloads and upgrades have ended, also those of earlier masters.
    pub(super) fn counts(&mut self) -> OperationCounts {
        self.count_ended();
        self.counts.clone()
    }
}

/// Queries.
impl Operations {
    /// Returns the time of this turn.
    pub(super) fn now(&self) -> MonotonicTime {
        self.now
    }

    /// Returns an operation by its number.
    pub(super) fn get(&self, id: u64) -> Option<&Operation> {
        self.list.iter().find(|it| it.id == id)
    }

    /// Returns the newest operation that runs and does such work.
    pub(super) fn running(&self, is_such: impl Fn(&Work) -> bool) -> Option<u64> {
        let mut running = self.list.iter().rev().filter(|it| it.ended.is_none());
        running.find(|it| is_such(&it.work)).map(|it| it.id)
    }

    /// Returns whether no further operation may begin.
    pub(super) fn is_full(&self) -> bool {
        self.list.iter().filter(|it| it.ended.is_none()).count() >= KEPT_MAX
    }

    /// Returns when [`on_turn`](Self::on_turn) is due if nothing happens before.
    pub(super) fn next_deadline(&self) -> Option<MonotonicTime> {
        if self.any_asked() {
            return Some(self.now);
        }
        let running = self.list.iter().filter(|it| it.ended.is_none());
        let deadlines = running.filter_map(|it| match &it.work {
            Work::Scale(scaling) => Some(scaling.deadline()),
            Work::Recycle(recycling) => Some(recycling.deadline()),
            Work::DrainWorker(drain) => Some(drain.deadline()),
            _ => None,
        });
        deadlines.chain(self.look_again_at).min()
    }

    /// Returns the operation that has begun last and runs, as JSON; null if there is none.
    pub(super) fn running_json(&self) -> Value {
        let running = self.running(|_| true).and_then(|id| self.json(id));
        running.unwrap_or_default()
    }

    /// Returns an operation as JSON.
    pub(super) fn json(&self, id: u64) -> Option<Value> {
        self.get(id).map(|it| it.to_json(self.now))
    }

    /// Returns all operations as JSON, the newest first.
    pub(super) fn list_json(&self) -> Value {
        let all = self.list.iter().rev().map(|it| it.to_json(self.now));
        json!({ "operations": all.collect::<Vec<_>>() })
    }
}
