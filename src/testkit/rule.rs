//! The rules of the contract between the runtime and a worker class.

use super::workload::Task;

/// A kind of work, without its duration.
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

/// A rule of the contract between the runtime and a worker class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Rule {
    /// All workers become ready.
    Ready,
    /// A worker that says that it is ready takes work at once.
    ReadyInTime,
    /// Signals that belong to the runtime reach it.
    Signals,
    /// Workers complete work.
    Work,
    /// No unit of work waits for another event.
    WakeUps,
    /// A worker has at most `worker_connections` clients.
    ClientLimit,
    /// An idle worker sends its heartbeat.
    IdleHeartbeat,
    /// A busy worker sends its heartbeat.
    BusyHeartbeat,
    /// An idle worker sleeps.
    Quiet,
    /// A hung worker is detected.
    Hang,
    /// A hung thread is detected while other threads work.
    HangAmongOthers,
    /// A stopped worker is replaced.
    Stopped,
    /// A killed worker is replaced.
    Killed,
    /// A drain finishes the units of work in progress.
    Drain,
    /// A drain empties the accept queue.
    Queue,
    /// A draining worker takes no new work that other workers can take.
    StopsAccepting,
    /// A drain does not wait for idle clients.
    IdleClients,
    /// A drain ends at `graceful_timeout`.
    DrainLimit,
    /// A single worker drains while the others serve.
    DrainSingleWorker,
    /// An immediate stop is immediate.
    QuickStop,
    /// An immediate stop waits for no hung thread.
    QuickStopHung,
    /// `max_requests` recycles workers without losing work.
    RecycleByUnits,
    /// `max_lifetime` recycles workers without losing work.
    RecycleByAge,
    /// A reload loses no work.
    Reload,
    /// Idle workers exit after the death of the master.
    OrphanIdle,
    /// Busy workers finish their work after the death of the master, and exit.
    OrphanBusy,
    /// Hung workers are terminated after the death of the master.
    OrphanHung,
    /// Clients leak no descriptor.
    Descriptors,
    /// Replacements leak no descriptor and no process.
    Replacements,
    /// Workers leave no process behind.
    Processes,
}

impl Rule {
    /// All rules, in the order of a report.
    pub const ALL: [Rule; 30] = [
        Rule::Ready,
        Rule::ReadyInTime,
        Rule::Signals,
        Rule::Work,
        Rule::WakeUps,
        Rule::ClientLimit,
        Rule::IdleHeartbeat,
        Rule::BusyHeartbeat,
        Rule::Quiet,
        Rule::Hang,
        Rule::HangAmongOthers,
        Rule::Stopped,
        Rule::Killed,
        Rule::Drain,
        Rule::Queue,
        Rule::StopsAccepting,
        Rule::IdleClients,
        Rule::DrainLimit,
        Rule::DrainSingleWorker,
        Rule::QuickStop,
        Rule::QuickStopHung,
        Rule::RecycleByUnits,
        Rule::RecycleByAge,
        Rule::Reload,
        Rule::OrphanIdle,
        Rule::OrphanBusy,
        Rule::OrphanHung,
        Rule::Descriptors,
        Rule::Replacements,
        Rule::Processes,
    ];

    /// Returns its name in a report.
    pub fn name(self) -> &'static str {
        self.texts().0
    }

    /// Returns the duty of a class, as an imperative sentence.
    pub fn contract(self) -> &'static str {
        self.texts().1
    }

    /// Returns the kinds of work that the rule needs.
    pub(super) fn needs(self) -> &'static [TaskKind] {
        match self {
            Rule::Ready | Rule::Signals | Rule::IdleHeartbeat | Rule::Replacements => &[],
            Rule::ReadyInTime
            | Rule::Work
            | Rule::WakeUps
            | Rule::ClientLimit
            | Rule::BusyHeartbeat
            | Rule::Quiet
            | Rule::Stopped
            | Rule::Killed
            | Rule::IdleClients
            | Rule::RecycleByUnits
            | Rule::RecycleByAge
            | Rule::Reload
            | Rule::OrphanIdle
            | Rule::Descriptors
            | Rule::Processes => &[TaskKind::Quick],
            Rule::Drain | Rule::QuickStop | Rule::OrphanBusy => &[TaskKind::Slow],
            Rule::Queue | Rule::StopsAccepting | Rule::DrainSingleWorker => {
                &[TaskKind::Quick, TaskKind::Slow]
            }
            Rule::Hang | Rule::HangAmongOthers | Rule::QuickStopHung => {
                &[TaskKind::Quick, TaskKind::Hang]
            }
            Rule::DrainLimit | Rule::OrphanHung => &[TaskKind::Hang],
        }
    }

    /// The name and the duty.
    fn texts(self) -> (&'static str, &'static str) {
        match self {
            Rule::Ready => (
                "ready",
                "Call `ready()` as soon as the worker can take work, within `boot_timeout`. Start \
                 nothing in the master.",
            ),
            Rule::ReadyInTime => (
                "ready in time",
                "Call `ready()` only when the worker can take work: the first unit waits no longer than later ones.",
            ),
            Rule::Signals => (
                "signals",
                "Leave signals to the runtime: block and ignore none of those that a worker handles, and install no handler for them.",
            ),
            Rule::Work => ("work", "Complete work in any worker that takes it."),
            Rule::WakeUps => (
                "wake-ups",
                "Take each unit of work as soon as it arrives, without a heartbeat or another unit that wakes the thread.",
            ),
            Rule::ClientLimit => (
                "client limit",
                "Accept a client only while the worker has fewer than `worker_connections`.",
            ),
            Rule::IdleHeartbeat => (
                "idle heartbeat",
                "Never sleep longer than `heartbeat_interval()` without a call of `notify()`, \
                 even with nothing to do.",
            ),
            Rule::BusyHeartbeat => (
                "busy heartbeat",
                "Call `notify()` in each iteration of the loop, even under constant load.",
            ),
            Rule::Quiet => (
                "quiet",
                "With nothing to do, sleep until `wake_fd()` or a descriptor of the class is \
                 readable, or a heartbeat is due.",
            ),
            Rule::Hang => (
                "hang",
                "Mark units of work, or send the heartbeat from the thread that does the work, so \
                 that a unit that holds its thread longer than `timeout` ends its worker.",
            ),
            Rule::HangAmongOthers => (
                "hang among others",
                "Mark the units of each thread with a tracker of its own, so that a unit that holds its thread is found while other threads complete theirs.",
            ),
            Rule::Stopped => (
                "stopped",
                "Send the heartbeat from the worker itself, and from nothing that outlives or \
                 replaces it.",
            ),
            Rule::Killed => (
                "killed",
                "Leave nothing behind that prevents the replacement from working, however the \
                 worker exits.",
            ),
            Rule::Drain => (
                "drain",
                "On `StopRequest::Graceful`, finish the units of work in progress and return.",
            ),
            Rule::Queue => (
                "queue",
                "While draining, also serve the clients in the accept queue of each listener for \
                 which `must_drain_backlog()` is true.",
            ),
            Rule::StopsAccepting => (
                "stops accepting",
                "While draining, accept no client from a listener for which `must_drain_backlog()` is false: other workers serve it.",
            ),
            Rule::IdleClients => {
                ("idle clients", "While draining, do not wait for clients without a request.")
            }
            Rule::DrainLimit => (
                "drain limit",
                "Leave SIGTERM, SIGKILL and the exit to the runtime, so that a drain ends at \
                 `graceful_timeout`, whatever the class does.",
            ),
            Rule::DrainSingleWorker => (
                "drain single worker",
                "If a single worker gets SIGTERM, finish its units of work and exit with code 0, \
                 while the other workers take the new work.",
            ),
            Rule::QuickStop => {
                ("quick stop", "On `StopRequest::Immediate`, return or exit at once.")
            }
            Rule::QuickStopHung => (
                "quick stop, hung",
                "On `StopRequest::Immediate`, wait for no thread that may be stuck: call `exit_now()`.",
            ),
            Rule::RecycleByUnits => (
                "recycle by units",
                "Count units of work, so that `max_requests` replaces a worker, new before old, \
                 without losing work.",
            ),
            Rule::RecycleByAge => (
                "recycle by age",
                "Let `max_lifetime` replace a worker, new before old, without losing work.",
            ),
            Rule::Reload => {
                ("reload", "Let a reload under load replace every worker without losing work.")
            }
            Rule::OrphanIdle => (
                "orphan, idle",
                "After the death of the master, `poll_stop()` returns `StopRequest::Graceful`: \
                 with nothing to do, return at once.",
            ),
            Rule::OrphanBusy => (
                "orphan, busy",
                "After the death of the master, finish the units of work in progress and return.",
            ),
            Rule::OrphanHung => (
                "orphan, hung",
                "Leave SIGALRM and SIGPWR to the runtime, so that a hung worker is terminated \
                 `graceful_timeout` after the death of the master.",
            ),
            Rule::Descriptors => {
                ("descriptors", "Close every descriptor of a completed unit of work.")
            }
            Rule::Replacements => (
                "replacements",
                "Share the listeners with other workers, and no other descriptor. Give a \
                 replacement no more descriptors than its predecessor had, and leave no process \
                 behind at the end.",
            ),
            Rule::Processes => {
                ("processes", "Leave no process behind, not even one in a session of its own.")
            }
        }
    }
}
