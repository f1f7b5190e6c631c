//! The rules of the contract between the runtime and a class, each with the sentence that it is.

use super::workload::Task;

/// The sorts of work that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TaskKind {
    Quick,
    Slow,
    Hang,
}

impl TaskKind {
    pub(super) fn of(task: Task) -> Self {
        match task {
            Task::Quick => Self::Quick,
            Task::Slow(_) => Self::Slow,
            Task::Hang => Self::Hang,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Slow => "slow",
            Self::Hang => "hanging",
        }
    }
}

/// A rule of the contract that the kit checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Rule {
    /// All workers get ready.
    Ready,
    /// Work is done.
    Work,
    /// An idle worker beats.
    IdleHeartbeat,
    /// A worker that works beats.
    BusyHeartbeat,
    /// An idle worker sleeps.
    Quiet,
    /// A worker that hangs is found.
    Hang,
    /// A stopped worker is replaced.
    Stopped,
    /// A killed worker is replaced.
    Killed,
    /// A drain finishes what is begun.
    Drain,
    /// A drain empties the queue.
    Queue,
    /// A drain does not wait for idle clients.
    IdleClients,
    /// A drain has an end.
    DrainLimit,
    /// One worker can leave alone.
    DrainSingleWorker,
    /// A quick end is quick.
    QuickStop,
    /// Recycling by units of work.
    RecycleByUnits,
    /// Recycling by age.
    RecycleByAge,
    /// A reload loses nothing.
    Reload,
    /// Idle workers follow a master that is dead.
    OrphanIdle,
    /// Busy workers finish for a master that is dead.
    OrphanBusy,
    /// Hung workers follow a master that is dead.
    OrphanHung,
    /// Clients leave no descriptor behind.
    Descriptors,
    /// Replacements leave nothing behind.
    Replacements,
}

impl Rule {
    /// All rules, in the order of a report.
    pub const ALL: [Rule; 22] = [
        Rule::Ready,
        Rule::Work,
        Rule::IdleHeartbeat,
        Rule::BusyHeartbeat,
        Rule::Quiet,
        Rule::Hang,
        Rule::Stopped,
        Rule::Killed,
        Rule::Drain,
        Rule::Queue,
        Rule::IdleClients,
        Rule::DrainLimit,
        Rule::DrainSingleWorker,
        Rule::QuickStop,
        Rule::RecycleByUnits,
        Rule::RecycleByAge,
        Rule::Reload,
        Rule::OrphanIdle,
        Rule::OrphanBusy,
        Rule::OrphanHung,
        Rule::Descriptors,
        Rule::Replacements,
    ];

    /// Its name in a report.
    pub fn name(self) -> &'static str {
        self.words().0
    }

    /// The rule in a sentence.
    pub fn contract(self) -> &'static str {
        self.words().1
    }

    /// The work without which it cannot be tried.
    pub(super) fn needs(self) -> &'static [TaskKind] {
        match self {
            Rule::Ready | Rule::IdleHeartbeat | Rule::Replacements => &[],
            Rule::Work
            | Rule::BusyHeartbeat
            | Rule::Quiet
            | Rule::Stopped
            | Rule::Killed
            | Rule::IdleClients
            | Rule::RecycleByUnits
            | Rule::RecycleByAge
            | Rule::Reload
            | Rule::OrphanIdle
            | Rule::Descriptors => &[TaskKind::Quick],
            Rule::Drain | Rule::QuickStop | Rule::OrphanBusy => &[TaskKind::Slow],
            Rule::Queue | Rule::DrainSingleWorker => &[TaskKind::Quick, TaskKind::Slow],
            Rule::Hang => &[TaskKind::Quick, TaskKind::Hang],
            Rule::DrainLimit | Rule::OrphanHung => &[TaskKind::Hang],
        }
    }

    fn words(self) -> (&'static str, &'static str) {
        match self {
            Rule::Ready => (
                "ready",
                "A class calls `ready()` as soon as it can take work, within `boot_timeout`, and \
                 nothing of it runs in the master.",
            ),
            Rule::Work => ("work", "Work is done, by whichever worker takes it."),
            Rule::IdleHeartbeat => (
                "idle beat",
                "A class never sleeps for longer than `pulse()` without calling `notify()`, also if \
                 there is nothing to do.",
            ),
            Rule::BusyHeartbeat => (
                "busy beat",
                "A class calls `notify()` on each turn of its loop, also if there is always \
                 something to do.",
            ),
            Rule::Quiet => (
                "quiet",
                "A class with nothing to do sleeps, until `wake_fd()` or a descriptor of its own is \
                 readable or a beat is due.",
            ),
            Rule::Hang => (
                "hang",
                "A unit of work that holds its thread for longer than `timeout` ends its worker: \
                 the class marks units of work, or beats in the thread that does them.",
            ),
            Rule::Stopped => (
                "stopped",
                "Only a worker that runs beats: a beat comes from the worker itself, and from \
                 nothing that outlives or replaces it.",
            ),
            Rule::Killed => (
                "killed",
                "A class leaves nothing behind, whenever it ends, that keeps a successor from \
                 working.",
            ),
            Rule::Drain => (
                "drain",
                "When `stop()` says `Graceful`, a class finishes what is begun and returns.",
            ),
            Rule::Queue => (
                "queue",
                "A class that leaves also serves who waits at a listener for which \
                 `must_empty()` is true.",
            ),
            Rule::IdleClients => (
                "idle clients",
                "A class that leaves does not wait for clients who have asked for nothing.",
            ),
            Rule::DrainLimit => (
                "drain limit",
                "Whatever a class does, a drain ends at `graceful_timeout`: it keeps TERM, KILL and \
                 the exit to the runtime.",
            ),
            Rule::DrainSingleWorker => (
                "leave alone",
                "A single worker that is asked to leave finishes what is begun and leaves with 0, \
                 and others do the work that comes.",
            ),
            Rule::QuickStop => {
                ("quick end", "When `stop()` says `Now`, a class returns, or leaves, at once.")
            }
            Rule::RecycleByUnits => (
                "recycle by units",
                "A class counts its units of work, so that `max_requests` replaces a worker, new \
                 before old, and nothing is lost.",
            ),
            Rule::RecycleByAge => (
                "recycle by age",
                "`max_lifetime` replaces a worker, new before old, and nothing is lost.",
            ),
            Rule::Reload => {
                ("reload", "A reload under load replaces every worker, and nothing is lost.")
            }
            Rule::OrphanIdle => (
                "orphan, idle",
                "When the master has died, `stop()` says `Graceful`, and a class with nothing to do \
                 returns at once.",
            ),
            Rule::OrphanBusy => (
                "orphan, busy",
                "When the master has died, a class finishes what is begun and returns.",
            ),
            Rule::OrphanHung => (
                "orphan, hung",
                "When the master has died, a worker that hangs is gone at `graceful_timeout`: a \
                 class keeps ALRM and PWR to the runtime.",
            ),
            Rule::Descriptors => {
                ("descriptors", "A unit of work that is done leaves no descriptor open.")
            }
            Rule::Replacements => (
                "replacements",
                "A worker has descriptors of its own and shared listeners, and none of a sibling; \
                 its successors have no more than it had, and nobody is left when all is over.",
            ),
        }
    }
}
