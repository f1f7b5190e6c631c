//! Decides what to do with the cgroup of a worker that has exited, or whose master has: which worker
//! it belongs to, whether that may still run in it, and when to try again. Pure.

use std::time::Duration;

/// Which worker a cgroup belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CgroupName {
    /// The pid of the master: two masters may share the delegated group.
    pub(super) master: i32,
    /// The pid of the worker.
    pub(super) worker: i32,
}

const PREFIX: &str = "ostler-worker-";

impl CgroupName {
    /// Returns the name of its directory.
    pub(super) fn dir_name(self) -> String {
        format!("{PREFIX}{}-{}", self.master, self.worker)
    }

    /// Parses the name of a directory. Returns `None` if it is not a worker's cgroup.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (master, worker) = name.strip_prefix(PREFIX)?.split_once('-')?;
        let parsed = Self { master: master.parse().ok()?, worker: worker.parse().ok()? };
        let is_exact = parsed.master > 0 && parsed.worker > 0 && parsed.dir_name() == name;
        is_exact.then_some(parsed)
    }
}

/// Returns the cgroups whose master has exited: it is not in `live_masters`, or it is
/// `exited_master`.
pub(super) fn orphans<'a>(
    names: impl IntoIterator<Item = &'a str>,
    live_masters: &[i32],
    exited_master: i32,
) -> Vec<CgroupName> {
    let is_alive = |master: i32| live_masters.contains(&master) && master != exited_master;
    names
        .into_iter()
        .filter_map(CgroupName::parse)
        .filter(|cgroup| !is_alive(cgroup.master))
        .collect()
}

/// What to do with a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OrphanAction {
    /// Kill the processes in it, and remove it.
    Remove,
    /// Leave it alone for now.
    Keep,
}

/// Decides on a cgroup whose master has exited, by the pids in it; 0 is a process outside this pid
/// namespace. Its worker drains and exits by itself; then the rest is killed.
pub(super) fn orphan_action(cgroup: CgroupName, members: &[i32]) -> OrphanAction {
    let is_in_use = members.iter().any(|member| *member == cgroup.worker || *member == 0);
    if is_in_use { OrphanAction::Keep } else { OrphanAction::Remove }
}

const RETRY_DELAY_MIN: Duration = Duration::from_millis(2);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(10);

/// After how many failed removals a warning is logged: 2 s after the first.
pub(super) const TRIES_BEFORE_WARNING: u32 = 11;

/// Returns how long to wait after the nth failed removal, from 1: doubling, from 2 ms to 10 s. A killed
/// process usually exits within milliseconds.
pub(super) fn retry_delay(tries: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(tries.saturating_sub(1));
    RETRY_DELAY_MIN.saturating_mul(doubled).min(RETRY_DELAY_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CGROUP: CgroupName = CgroupName { master: 7, worker: 12 };

    #[test]
    fn parse_only_accepts_what_dir_name_writes() {
        assert_eq!(CGROUP.dir_name(), "ostler-worker-7-12");
        assert_eq!(CgroupName::parse("ostler-worker-7-12"), Some(CGROUP));
        let invalid = ["ostler-worker-7", "ostler-worker-7-", "ostler-worker-+7-12", "worker-7-12"];
        let more = ["ostler-worker-07-12", "ostler-worker-7-12.scope", "ostler-worker-0-12", ""];
        for name in invalid.into_iter().chain(more).chain(["ostler-worker--7-12"]) {
            assert_eq!(CgroupName::parse(name), None, "{name}");
        }
    }

    #[test]
    fn orphans_master_alive_is_skipped() {
        let names = ["ostler-worker-7-12", "other", "ostler-worker-8-13"];
        assert_eq!(orphans(names, &[8, 9], 9), [CGROUP]);
        assert_eq!(orphans(names, &[7, 8, 9], 9), []);
    }

    #[test]
    fn orphans_master_pid_reused_is_included() {
        let names = ["ostler-worker-7-12"];
        assert_eq!(orphans(names, &[7], 7), [CGROUP]);
        assert_eq!(orphans(names, &[7], 8), []);
    }

    #[test]
    fn orphan_action_keeps_group_only_while_worker_lives() {
        assert_eq!(orphan_action(CGROUP, &[12, 30]), OrphanAction::Keep);
        assert_eq!(
            orphan_action(CGROUP, &[30, 0]),
            OrphanAction::Keep,
            "a process that cannot be named"
        );
        assert_eq!(orphan_action(CGROUP, &[30]), OrphanAction::Remove);
        assert_eq!(orphan_action(CGROUP, &[]), OrphanAction::Remove);
    }

    #[test]
    fn retry_delay_doubles_up_to_the_maximum() {
        assert_eq!(retry_delay(1), Duration::from_millis(2));
        assert_eq!(retry_delay(4), Duration::from_millis(16));
        assert_eq!(retry_delay(u32::MAX), RETRY_DELAY_MAX);
    }
}
