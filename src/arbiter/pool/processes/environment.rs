//! What the workers of all pools and generations have in common.

use crate::arbiter::cgroup::WorkerCgroups;
use crate::arbiter::oom::OomMonitor;
use crate::hooks::Hooks;
use crate::os::fd_table::OpenFds;
use crate::os::memory::PublishedMemory;
use crate::os::title::ProcTitle;

/// What the workers of all pools and generations have in common.
pub(crate) struct WorkerEnvironment<'a> {
    pub(crate) title: Option<ProcTitle>,
    pub(crate) hooks: &'a dyn Hooks,
    pub(crate) oom: OomMonitor,
    pub(crate) cgroups: WorkerCgroups,
    /// Descriptors that the program had opened before the master began: workers keep them.
    pub(crate) program_fds: OpenFds,
    /// Makes the scaling policy of a pool.
    pub(crate) scaling_policy: &'a crate::scaling::PolicyFactory,
    /// Where the end of the master's term is, if its pools are led.
    pub(crate) term_end: Option<&'static PublishedMemory>,
}
