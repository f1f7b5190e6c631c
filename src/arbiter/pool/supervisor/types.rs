//! The types in which the supervisor receives facts and returns actions.

use std::time::Duration;

use crate::time::MonotonicTime;

/// The limits of a pool. Zero disables a limit, except in `graceful_timeout` and `abort_timeout`.
// Fields: one an option.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    /// The longest time without a heartbeat, and the longest unit of work.
    pub(crate) timeout: Duration,
    /// From fork to ready.
    pub(crate) boot_timeout: Duration,
    /// The longest drain.
    pub(crate) graceful_timeout: Duration,
    /// From SIGABRT to SIGKILL.
    pub(crate) abort_timeout: Duration,
    /// The age at which a worker is recycled.
    pub(crate) max_lifetime: Duration,
    /// The longest random extension of `max_lifetime`.
    pub(crate) max_lifetime_jitter: Duration,
    /// The units of work after which a worker requests its replacement.
    pub(crate) max_requests: u64,
    /// The largest random extension of `max_requests`.
    pub(crate) max_requests_jitter: u64,
    /// The memory (PSS) in bytes above which a worker is recycled.
    pub(crate) max_memory: u64,
    /// How many replacements may be started beyond the target.
    pub(crate) max_surge: usize,
    /// How many workers may be missing during replacement. At least 1 if `max_surge` is 0.
    pub(crate) max_unavailable: usize,
    /// How many times a slot is retried while no worker of the pool has ever been ready.
    pub(crate) boot_retries: u32,
    /// How many crashed workers are restarted at once within `restart_interval`; zero is unlimited.
    pub(crate) restart_limit: u32,
    pub(crate) restart_interval: Duration,
}

/// A worker's number, in the order of starting. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct WorkerId(pub(in crate::arbiter) u64);

/// A generation of workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Generation {
    pub(crate) number: u32,
    /// The generation is not committed: its reload is in progress, or has failed.
    pub(crate) is_uncommitted: bool,
}

/// How far a ready worker's drain mode has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum DrainProgress {
    /// It is not in drain mode.
    #[default]
    Off,
    /// It may have clients.
    Draining,
    /// It has reported that it has none.
    Drained,
}

/// Why a worker cannot be put into drain mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DrainModeError {
    /// The slot has no ready worker.
    NotReady,
    /// No other worker of the pool serves, or each that does is to be replaced or removed, at the latest by a
    /// roll-back.
    LastServing,
}

/// How far a pool's reload has come. Pools that reload together act by the smallest phase of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ReloadPhase {
    /// The new generation cannot serve: the old one is restored.
    Failed,
    /// No worker of the new generation has been ready. One is started; no old worker drains.
    Canary,
    /// A worker of the new generation has been ready: new workers replace old ones.
    Rolling,
    /// Every slot has a ready worker of the new generation: the reload can be committed.
    AllReady,
}

/// How a pool stops, from the gentlest to the hardest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ShutdownMode {
    /// SIGTERM: workers drain, for at most `graceful_timeout`.
    Graceful,
    /// SIGQUIT: workers exit immediately, or are killed after `abort_timeout`.
    Quick,
    /// SIGKILL.
    Kill,
}

/// Why a worker exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitReason {
    /// A stop of the worker or of its pool was requested.
    Requested,
    /// The pool had more workers than its target.
    ScaledDown,
    /// The worker reached `max_requests`, `max_memory` or `max_lifetime`.
    Recycled,
    /// A reload replaced the worker, or a roll-back withdrew it.
    Reload,
    /// The worker's heartbeat or its unit of work exceeded `timeout`.
    Hung,
    /// The worker exited on its own.
    Crashed,
    /// The kernel's OOM killer killed the worker.
    OomKilled,
    /// The worker exited, or was killed, before it was ready.
    BootFailed,
}

impl ExitReason {
    /// Every reason.
    pub(crate) const ALL: [Self; 8] = [
        Self::Requested,
        Self::ScaledDown,
        Self::Recycled,
        Self::Reload,
        Self::Hung,
        Self::Crashed,
        Self::OomKilled,
        Self::BootFailed,
    ];

    /// Returns the reason as logs and metrics write it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            ExitReason::Requested => "requested",
            ExitReason::ScaledDown => "scaled_down",
            ExitReason::Recycled => "recycled",
            ExitReason::Reload => "reload",
            ExitReason::Hung => "hung",
            ExitReason::Crashed => "crashed",
            ExitReason::OomKilled => "oom_killed",
            ExitReason::BootFailed => "boot_failed",
        }
    }
}

/// What the pool must do next. Each action is returned once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Fork a worker, then call `on_spawned` or `on_spawn_failed`. The worker requests its
    /// replacement after `max_units` units of work; zero is never.
    Spawn { id: WorkerId, slot: usize, max_units: u64 },
    /// Send SIGTERM: drain and exit.
    Drain(WorkerId, ExitReason),
    /// Send SIGQUIT: exit immediately.
    QuickStop(WorkerId),
    /// Send SIGTERM to a worker with one hung thread, so that its other threads can finish.
    DrainHung(WorkerId, Hang),
    /// Send SIGABRT to a hung worker.
    Abort(WorkerId, Hang),
    /// Send SIGKILL to a hung worker that no other signal reaches.
    KillHung(WorkerId, Hang),
    /// Send SIGKILL to a worker that has exceeded its drain or abort deadline, or whose pool is killed.
    Kill(WorkerId, ExitReason),
}

/// When the oldest and the newest unit of work in progress began, over a worker's threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Busy {
    pub(crate) oldest: MonotonicTime,
    pub(crate) newest: MonotonicTime,
}

/// Which limit a hung worker has exceeded, and the age that was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hang {
    /// The worker is not ready; age since the fork.
    BootTimeout(Duration),
    /// The worker is idle and silent; age of its last heartbeat.
    NoHeartbeat(Duration),
    /// A unit of work is not finished; its age.
    RequestTimeout(Duration),
}

/// How a pool's run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunOutcome {
    /// All workers have exited after a requested stop.
    Stopped,
    /// No worker was ever ready, and `boot_retries` is exhausted in every slot.
    NeverReady,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProcessExit {
    /// With this exit code.
    Code(i32),
    /// By SIGKILL, SIGTERM, SIGINT, SIGQUIT or SIGHUP.
    TerminationSignal,
    /// By another signal, such as SIGSEGV or SIGABRT.
    FaultSignal,
}

/// What the process table observed when it reaped a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExitObservation {
    pub(crate) exit: ProcessExit,
    /// The scoreboard showed that the worker had begun to drain.
    pub(crate) was_draining: bool,
    /// The master had sent SIGKILL.
    pub(crate) killed_by_master: bool,
    /// The control group counted an OOM kill that no other worker explains.
    pub(crate) oom_kill: bool,
    /// The worker had finished a unit of work, or worked for a client.
    pub(crate) has_worked: bool,
}

/// The class of an exit, which decides its reason and its back-off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExitClass {
    /// Exit code 0 after the worker had begun to drain.
    Requested,
    /// A termination signal that the master did not send.
    KilledExternally,
    /// A SIGKILL of the kernel's OOM killer.
    OomKilled,
    /// Any other exit code or signal.
    Crashed,
}

impl From<ExitObservation> for ExitClass {
    fn from(observation: ExitObservation) -> Self {
        match observation.exit {
            _ if observation.oom_kill => ExitClass::OomKilled,
            ProcessExit::Code(0) if observation.was_draining => ExitClass::Requested,
            ProcessExit::TerminationSignal if !observation.killed_by_master => {
                ExitClass::KilledExternally
            }
            ProcessExit::Code(_) | ProcessExit::TerminationSignal | ProcessExit::FaultSignal => {
                ExitClass::Crashed
            }
        }
    }
}

/// What the supervisor knows of a worker that has exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExitReport {
    pub(crate) slot: usize,
    pub(crate) generation: u32,
    pub(crate) reason: ExitReason,
    /// From fork to exit.
    pub(crate) uptime: Duration,
    /// When the slot is refilled, if it is.
    pub(crate) restart_in: Option<Duration>,
}

/// What the pool is to become.
#[derive(Clone, Copy, Debug)]
pub(super) struct Desired {
    pub(super) policy: Policy,
    /// The number of workers.
    pub(super) target: usize,
    pub(super) generation: u32,
}
