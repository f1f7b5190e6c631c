//! Workers that are overdue are looked at, twice and from outside, before anybody judges them. It
//! never waits: it says when it wants to look again.

use std::collections::HashMap;
use std::time::Duration;

use super::roster::WorkerId;
use crate::diagnosis::{Diagnosis, Look, Verdict, diagnose};
use crate::os::cgroup::Cgroups;
use crate::os::inspect;
use crate::os::process::Pid;
use crate::stamp::Stamp;

/// A first look that is older says nothing any more.
const STALE: Duration = Duration::from_secs(1);

/// The examinations.
#[derive(Default)]
pub(super) struct Examiner {
    begun: HashMap<WorkerId, Look>,
    diagnoses: HashMap<WorkerId, Diagnosis>,
    /// When it was last said that a worker cannot run.
    excused: HashMap<WorkerId, Stamp>,
}

/// What an examination has led to.
pub(super) enum Finding {
    /// It wants to look again then.
    LookAgain(Stamp),
    /// This.
    Verdict(Verdict),
}

impl Examiner {
    /// Looks at a worker and at the thread that is overdue.
    pub(super) fn examine(
        &mut self,
        id: WorkerId,
        pid: Pid,
        thread: u64,
        cgroups: &Cgroups,
    ) -> Finding {
        let look = inspect::look(pid, thread, cgroups);
        let first = self.begun.remove(&id).filter(|first| look.at.since(first.at) < STALE);
        match first {
            Some(first) if first.again_at() <= look.at => {
                let diagnosis = diagnose(&first, look);
                let verdict = diagnosis.verdict;
                self.diagnoses.insert(id, diagnosis);
                Finding::Verdict(verdict)
            }
            first => {
                let first = first.unwrap_or(look);
                let again = first.again_at();
                self.begun.insert(id, first);
                Finding::LookAgain(again)
            }
        }
    }

    /// What was found last.
    pub(super) fn diagnosis(&self, id: WorkerId) -> Option<&Diagnosis> {
        self.diagnoses.get(&id)
    }

    /// A worker cannot run. Returns whether that is news: it has beaten since it was last said.
    pub(super) fn excuse(&mut self, id: WorkerId, beat: Stamp, now: Stamp) -> bool {
        self.excused.insert(id, now).is_none_or(|said| said < beat)
    }

    /// A worker has ended.
    pub(super) fn forget(&mut self, id: WorkerId) {
        self.begun.remove(&id);
        self.diagnoses.remove(&id);
        self.excused.remove(&id);
    }
}
