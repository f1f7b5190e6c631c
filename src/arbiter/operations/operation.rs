//! One operation: what it does, how far it is, and how it has ended. Pure.

use std::time::Duration;

use serde_json::{Value, json};

use super::command::drain_command;
use super::counts::OperationCounts;
use super::present::{Present, Progress, Verdict};
use super::recycling::Recycling;
use super::scaling::Scaling;
use super::worker_drain::WorkerDrain;
use crate::duration::as_millis;
use crate::time::MonotonicTime;

/// One operation.
pub(in crate::arbiter) struct Operation {
    pub(super) id: u64,
    by: String,
    pool: Option<String>,
    pub(super) work: Work,
    started: MonotonicTime,
    pub(super) ended: Option<MonotonicTime>,
    is_counted: bool,
    state: OperationState,
    progress: Progress,
}

/// What an operation does, and what it knows of that.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::arbiter) enum Work {
    Reload(ReloadStage),
    DryRun,
    /// `replaces` means that this master exits once the new one is ready.
    Upgrade {
        replaces: bool,
        old_pid: i32,
        new_pid: Option<i32>,
        is_ready: bool,
    },
    Scale(Scaling),
    Recycle(Recycling),
    /// Ends as soon as it has begun.
    DrainMode {
        is_on: bool,
    },
    /// Begins the drain mode of a worker.
    DrainWorker(WorkerDrain),
    Stop {
        workers: usize,
    },
    Reopen,
}

/// How far a reload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::arbiter) enum ReloadStage {
    /// An earlier one is in progress.
    Requested,
    Planning,
    /// Workers of this generation are started.
    Rolling(u32),
    /// The generation is committed; older workers may still accept clients.
    Committed(u32),
}

#[derive(Clone, Debug, PartialEq)]
pub(in crate::arbiter) enum OperationState {
    Running,
    Done(Value),
    Failed(String),
}

/// What has happened to a reload, an upgrade or a stop.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::arbiter) enum Fact {
    ReloadPlanned,
    /// It is planned again later.
    ReloadDeferred,
    ReloadRejected(String),
    ReloadStarted(u32),
    ReloadRolledBack(String),
    ReloadCommitted(u32),
    /// No worker of an older generation accepts clients.
    ReloadComplete(u32),
    DryRunEnded(Result<Value, String>),
    UpgradeStarted(i32),
    /// No new master was executed.
    UpgradeRejected(String),
    UpgradeFailed(String),
    NewMasterReady,
    /// The new master has failed, for which a stop has waited.
    StopCancelled,
    /// What another master, which exits, has counted.
    EarlierOperations(OperationCounts),
}

impl Operation {
    /// Begins at `now`.
    pub(super) fn new(
        id: u64,
        by: &str,
        pool: Option<&str>,
        work: Work,
        now: MonotonicTime,
    ) -> Self {
        let phase = match work {
            Work::Reload(_) | Work::Upgrade { .. } => "waiting",
            Work::DryRun => "planning",
            Work::Scale(_) | Work::Recycle(_) => "booting",
            Work::DrainWorker(_) | Work::Stop { .. } => "draining",
            Work::DrainMode { .. } => "changing",
            Work::Reopen => "reopening",
        };
        Self {
            id,
            by: by.to_owned(),
            pool: pool.map(str::to_owned),
            work,
            started: now,
            ended: None,
            is_counted: false,
            state: OperationState::Running,
            progress: Progress { done: 0, total: 0, phase },
        }
    }

    /// Returns the command, the result and the duration of a reload or an upgrade, once, when it has
    /// ended.
    pub(super) fn take_end(&mut self) -> Option<(&'static str, &'static str, Duration)> {
        let ended = self.ended.filter(|_| !self.is_counted)?;
        self.is_counted = true;
        let command = match self.work {
            Work::Reload(_) => "reload",
            Work::Upgrade { .. } => "upgrade",
            _ => return None,
        };
        let result = if matches!(self.state, OperationState::Done(_)) { "done" } else { "failed" };
        Some((command, result, ended.duration_since(self.started)))
    }

    /// Returns its state.
    pub(in crate::arbiter) fn state(&self) -> &OperationState {
        &self.state
    }

    /// Sets how far it is.
    pub(super) fn set_progress(&mut self, progress: Progress) {
        self.progress = progress;
    }

    /// Returns how far it is.
    pub(in crate::arbiter) fn progress(&self) -> Progress {
        self.progress
    }

    pub(super) fn end(&mut self, result: Result<Value, String>, now: MonotonicTime) {
        if self.ended.is_some() {
            return;
        }
        self.ended = Some(now);
        self.state = match result {
            Ok(value) => {
                self.progress.done = self.progress.total;
                OperationState::Done(value)
            }
            Err(reason) => OperationState::Failed(reason),
        };
    }

    pub(super) fn on_fact(&mut self, fact: &Fact, now: MonotonicTime) {
        use ReloadStage::{Committed, Planning, Requested, Rolling};
        match (&mut self.work, fact) {
            (Work::Reload(stage @ Requested), Fact::ReloadPlanned) => *stage = Planning,
            (Work::Reload(stage @ Planning), Fact::ReloadDeferred) => *stage = Requested,
            (Work::Reload(Planning), Fact::ReloadRejected(reason))
            | (Work::Reload(Rolling(_)), Fact::ReloadRolledBack(reason))
            | (Work::Upgrade { new_pid: None, .. }, Fact::UpgradeRejected(reason))
            | (Work::Upgrade { new_pid: Some(_), .. }, Fact::UpgradeFailed(reason)) => {
                self.end(Err(reason.clone()), now);
            }
            (Work::Reload(stage @ Planning), Fact::ReloadStarted(generation)) => {
                *stage = Rolling(*generation);
            }
            (Work::Reload(stage), Fact::ReloadCommitted(generation))
                if *stage == Rolling(*generation) =>
            {
                *stage = Committed(*generation);
            }
            (Work::Reload(Committed(mine)), Fact::ReloadComplete(generation))
                if *mine <= *generation =>
            {
                let result = json!({ "generation": mine });
                self.end(Ok(result), now);
            }
            (Work::DryRun, Fact::DryRunEnded(result)) => self.end(result.clone(), now),
            (Work::Upgrade { new_pid: new_pid @ None, .. }, Fact::UpgradeStarted(pid)) => {
                *new_pid = Some(*pid);
            }
            (
                Work::Upgrade { replaces, old_pid, new_pid: Some(new_pid), is_ready },
                Fact::NewMasterReady,
            ) => {
                *is_ready = true;
                if !*replaces {
                    let result = upgrade_result(*old_pid, *new_pid);
                    self.end(Ok(result), now);
                }
            }
            (Work::Stop { .. }, Fact::StopCancelled) => {
                self.end(Err("the new master has failed, so this one serves on".into()), now);
            }
            _ => (),
        }
    }

    pub(super) fn look(&mut self, present: &Present<'_>, now: MonotonicTime) -> Verdict {
        let phase = |phase| Verdict::Running(Progress { done: 0, total: 0, phase });
        let stops = "the master stops";
        match &mut self.work {
            Work::Stop { workers } => {
                let total = (*workers).max(present.workers);
                let done = total - present.workers;
                let phase = match (present.is_stopping, present.is_pre_stop) {
                    (true, _) => "draining",
                    (false, true) => "pre_stop",
                    (false, false) => "waiting",
                };
                Verdict::Running(Progress { done, total, phase })
            }
            Work::Upgrade { is_ready: true, .. } => phase("draining"),
            Work::Upgrade { new_pid: Some(_), .. } => phase("booting"),
            Work::Upgrade { .. } => phase("waiting"),
            Work::Reload(_)
            | Work::DryRun
            | Work::Scale(_)
            | Work::Recycle(_)
            | Work::DrainMode { .. }
            | Work::DrainWorker(_)
            | Work::Reopen
                if present.is_stopping =>
            {
                Verdict::Failed(stops.to_owned())
            }
            Work::Reload(ReloadStage::Requested | ReloadStage::Planning) if present.is_pre_stop => {
                Verdict::Failed(stops.to_owned())
            }
            Work::Reload(ReloadStage::Requested) => phase("waiting"),
            Work::Reload(ReloadStage::Planning) | Work::DryRun => phase("planning"),
            Work::Reload(ReloadStage::Rolling(_)) => {
                Verdict::Running(present.reload.unwrap_or(self.progress))
            }
            Work::Reload(ReloadStage::Committed(_)) => {
                Verdict::Running(Progress { phase: "draining", ..self.progress })
            }
            Work::Scale(scaling) => scaling.look(self.pool.as_deref(), present, now),
            Work::Recycle(recycling) => recycling.look(present, now),
            Work::DrainWorker(drain) => drain.look(present, now),
            Work::DrainMode { .. } | Work::Reopen => Verdict::Running(self.progress),
        }
    }

    fn command(&self) -> &'static str {
        match self.work {
            Work::Reload(_) | Work::DryRun => "reload",
            Work::Upgrade { .. } => "upgrade",
            Work::Scale(_) => "scale",
            Work::Recycle(_) => "recycle",
            Work::DrainMode { is_on } => drain_command(is_on),
            Work::DrainWorker(_) => drain_command(true),
            Work::Stop { .. } => "stop",
            Work::Reopen => "reopen",
        }
    }

    pub(super) fn to_json(&self, now: MonotonicTime) -> Value {
        let Progress { done, total, phase } = self.progress;
        let mut json = json!({
            "id": self.id,
            "command": self.command(),
            "by": self.by,
            "state": match self.state {
                OperationState::Running => "running",
                OperationState::Done(_) => "done",
                OperationState::Failed(_) => "failed",
            },
            "started_ms_ago": as_millis(now.duration_since(self.started)),
            "duration_ms": as_millis(self.ended.unwrap_or(now).duration_since(self.started)),
            "progress": { "done": done, "total": total, "phase": phase },
        });
        if self.work == Work::DryRun {
            json["dry_run"] = true.into();
        }
        if let Some(pool) = &self.pool {
            json["pool"] = pool.as_str().into();
        }
        match &self.state {
            OperationState::Running => (),
            OperationState::Done(result) => json["result"] = result.clone(),
            OperationState::Failed(reason) => json["error"] = reason.as_str().into(),
        }
        json
    }
}

pub(super) fn upgrade_result(old_pid: i32, new_pid: i32) -> Value {
    json!({ "old_pid": old_pid, "new_pid": new_pid })
}
