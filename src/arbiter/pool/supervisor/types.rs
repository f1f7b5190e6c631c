//! The words in which the roster is told facts and answers with actions.

use std::time::Duration;

use crate::time::MonotonicTime;

/// The rules of a pool. In every duration, zero is "never", but for `graceful` and `abort_timeout`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    /// The longest silence, and the longest unit of work.
    pub(crate) timeout: Duration,
    /// From the fork to ready.
    pub(crate) boot_timeout: Duration,
    /// The longest drain.
    pub(crate) graceful_timeout: Duration,
    /// From ABRT to KILL.
    pub(crate) abort_timeout: Duration,
    /// The age at which a worker is replaced.
    pub(crate) max_lifetime: Duration,
    /// By how much it is longer at most, which is left to chance.
    pub(crate) max_lifetime_jitter: Duration,
    /// How many replacements may be under way beyond the wished number of workers.
    pub(crate) max_surge: usize,
    /// How many workers may be missing while others are replaced. Not zero if `max_surge` is.
    pub(crate) max_unavailable: usize,
    /// How many times a slot is tried again before anything was ever ready.
    pub(crate) boot_retries: u32,
}

/// A worker, by the order of its hiring. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct WorkerId(pub(in crate::arbiter) u64);

/// A generation of workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Generation {
    pub(crate) number: u32,
    /// A reload tries it out, or has tried it out in vain.
    pub(crate) is_canary: bool,
}

/// How far a pool has come with a reload. Pools that reload together all do what the one may that
/// has come least far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ReloadPhase {
    /// The new generation cannot serve: back to the old.
    Failed,
    /// Nobody of the new generation has been ready: it has one worker, and nobody old goes.
    Canary,
    /// Somebody has: worker by worker, the new replace the old.
    Rolling,
    /// All have their workers of the new generation: the old can go for good.
    Complete,
}

/// How the whole is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ShutdownMode {
    /// Drain, for at most `graceful`.
    Graceful,
    /// At once; what does not obey is killed after `abort_timeout`.
    Quick,
    /// Kill.
    Kill,
}

/// Why a worker left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitReason {
    /// Somebody asked it, or the whole, to stop.
    Requested,
    /// There were more workers than wished for.
    ScaledDown,
    /// It had served its time.
    Recycled,
    /// A reload has replaced it, or a failed one has taken it back.
    Reload,
    /// It was silent, or at one unit of work, for too long.
    Hung,
    /// It ended by itself.
    Crashed,
    /// The kernel has killed it for lack of memory.
    OomKilled,
    /// It ended, or was ended, before it was ready.
    BootFailed,
}

impl ExitReason {
    /// The word for it in the log.
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

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Fork a worker; then say `spawned` or `on_spawn_failed`.
    Spawn { id: WorkerId, slot: usize },
    /// All workers of the new generation are ready, here and in all other pools: what only the old
    /// one needed can go, before the last of the old one is asked to.
    Commit,
    /// The new generation cannot serve, here or in another pool: back to the old rules, before
    /// anything else is forked.
    RollBack,
    /// Ask a worker to drain and leave.
    Drain(WorkerId, ExitReason),
    /// Ask a worker to leave at once.
    QuickStop(WorkerId),
    /// Ask a worker to drain of whose threads one hangs: the others may finish.
    DrainHung(WorkerId, Hang),
    /// Abort a worker that hangs, for so long now.
    Abort(WorkerId, Hang),
    /// Kill a worker that hangs where no other signal reaches it.
    KillHung(WorkerId, Hang),
    /// Kill a worker that has not obeyed.
    KillOverdue(WorkerId, ExitReason),
}

/// What the threads of a worker are working on: when the oldest and the youngest unit began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Busy {
    pub(crate) oldest: MonotonicTime,
    pub(crate) newest: MonotonicTime,
}

/// What a worker that hangs has failed to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hang {
    /// To get ready.
    BootTimeout(Duration),
    /// To beat.
    NoHeartbeat(Duration),
    /// To finish a unit of work.
    RequestTimeout(Duration),
}

/// What is left to do before the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunOutcome {
    /// All have left, as asked.
    Stopped,
    /// No worker was ever ready, and the retries are used up.
    NeverReady,
}

/// How a worker that has ended is to be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitClass {
    /// It left with code 0 after it had begun to drain.
    Requested,
    /// Somebody else killed it.
    KilledExternally,
    /// The kernel has killed it for lack of memory.
    OomKilled,
    /// Anything else: a code, a fault, an abort.
    Crashed,
}

/// What is known of a worker that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExitReport {
    pub(crate) slot: usize,
    pub(crate) generation: u32,
    pub(crate) reason: ExitReason,
    /// From the fork to the end.
    pub(crate) uptime: Duration,
    /// When the slot is filled again, if it is.
    pub(crate) restart_in: Option<Duration>,
}
