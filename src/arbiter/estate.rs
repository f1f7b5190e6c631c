//! What becomes of the control group of a worker that has ended, or whose master has: whose it is, by
//! its name, whether somebody lives in it who has a right to, and when to try again. Pure.

use std::time::Duration;

/// Whose a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    /// The number of the master's process: two masters may have one group between them.
    pub(super) master: i32,
    /// The number of the worker's process.
    pub(super) worker: i32,
}

const PREFIX: &str = "ostler-worker-";

impl Owner {
    /// What its group is called.
    pub(super) fn name(self) -> String {
        format!("{PREFIX}{}-{}", self.master, self.worker)
    }

    /// Whose group has that name; `None` if it is none of a worker's.
    pub(super) fn of(name: &str) -> Option<Self> {
        let (master, worker) = name.strip_prefix(PREFIX)?.split_once('-')?;
        let owner = Self { master: master.parse().ok()?, worker: worker.parse().ok()? };
        let is_exact = owner.master > 0 && owner.worker > 0 && owner.name() == name;
        is_exact.then_some(owner)
    }
}

/// The groups, by their names, whose master is no more: it is not among those who live beside them, or
/// it is the one of whom it is known that it has gone.
pub(super) fn orphans<'a>(
    names: impl IntoIterator<Item = &'a str>,
    beside: &[i32],
    gone: i32,
) -> Vec<Owner> {
    let lives = |master: i32| beside.contains(&master) && master != gone;
    names.into_iter().filter_map(Owner::of).filter(|owner| !lives(owner.master)).collect()
}

/// What becomes of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes, with whoever is in it.
    Ends,
    /// It is left alone for now.
    Stays,
}

/// What becomes of a group whose master has died, by who is in it, 0 for somebody who cannot be named
/// from here. Its worker leaves by itself; what it leaves behind is nobody's.
pub(super) fn fate_of_orphan(owner: Owner, members: &[i32]) -> Fate {
    let has_right = members.iter().any(|member| *member == owner.worker || *member == 0);
    if has_right { Fate::Stays } else { Fate::Ends }
}

const PATIENCE_MIN: Duration = Duration::from_millis(2);
const PATIENCE_MAX: Duration = Duration::from_secs(10);

/// At how many tries in vain it is worth a word: two seconds after the first.
pub(super) const TRIES_TOLD: u32 = 11;

/// How long to wait after so many tries in vain to remove a group, from 1: who was killed is gone in a
/// moment, unless the kernel holds it.
pub(super) fn patience(tries: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(tries.saturating_sub(1));
    PATIENCE_MIN.saturating_mul(doubled).min(PATIENCE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner = Owner { master: 7, worker: 12 };

    #[test]
    fn a_name_tells_whose_it_is() {
        assert_eq!(OWNER.name(), "ostler-worker-7-12");
        assert_eq!(Owner::of("ostler-worker-7-12"), Some(OWNER));
        let strange = ["ostler-worker-7", "ostler-worker-7-", "ostler-worker-+7-12", "worker-7-12"];
        let more = ["ostler-worker-07-12", "ostler-worker-7-12.scope", "ostler-worker-0-12", ""];
        for name in strange.into_iter().chain(more).chain(["ostler-worker--7-12"]) {
            assert_eq!(Owner::of(name), None, "{name}");
        }
    }

    #[test]
    fn only_those_are_orphans_whose_master_is_no_more() {
        let names = ["ostler-worker-7-12", "other", "ostler-worker-8-13"];
        assert_eq!(orphans(names, &[8, 9], 9), [OWNER]);
        assert_eq!(orphans(names, &[7, 8, 9], 9), []);
    }

    #[test]
    fn a_master_that_begins_is_not_the_one_that_had_its_number() {
        let names = ["ostler-worker-7-12"];
        assert_eq!(orphans(names, &[7], 7), [OWNER]);
        assert_eq!(orphans(names, &[7], 8), []);
    }

    #[test]
    fn a_worker_without_a_master_is_left_alone_and_what_it_leaves_behind_is_not() {
        assert_eq!(fate_of_orphan(OWNER, &[12, 30]), Fate::Stays);
        assert_eq!(fate_of_orphan(OWNER, &[30, 0]), Fate::Stays, "who knows who that is");
        assert_eq!(fate_of_orphan(OWNER, &[30]), Fate::Ends);
        assert_eq!(fate_of_orphan(OWNER, &[]), Fate::Ends);
    }

    #[test]
    fn the_wait_is_doubled_and_bounded() {
        assert_eq!(patience(1), Duration::from_millis(2));
        assert_eq!(patience(4), Duration::from_millis(16));
        assert_eq!(patience(u32::MAX), PATIENCE_MAX);
    }
}
