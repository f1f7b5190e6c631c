//! What binds the pools of one master in a reload: nobody old goes anywhere before each pool has
//! tried out its new generation, no pool lets go of the old before the new is complete in each, and
//! if one fails, all go back, in the same turn. Pure.

use super::roster::{Action, ReloadPhase, Supervisor};
use crate::time::MonotonicTime;

/// A pool in what all do together.
pub(super) struct Signatory<'r> {
    pub(super) supervisor: &'r mut Supervisor,
    /// It goes for good if the reload that is under way comes to a good end.
    pub(super) goes: bool,
}

/// What is decided in one turn.
#[derive(Debug)]
pub(super) struct Turn {
    /// How the reload that was under way has ended, if it has.
    pub(super) end: Option<End>,
    /// What is to be done in each pool after that.
    pub(super) actions: Vec<Vec<Action>>,
}

/// How a reload ends, in all pools at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// All have their workers of the new generation.
    Commit,
    /// One has failed, of which this is the place.
    RollBack { culprit: usize },
}

/// Decides who comes and who goes at `now`, in all pools. Who hangs, or fails, must have been judged
/// before in each of them: a reload that one commits is committed by all.
pub(super) fn proceed(pools: Vec<Signatory<'_>>, now: MonotonicTime) -> Turn {
    let progress: Vec<Option<ReloadPhase>> =
        pools.iter().map(|pool| pool.supervisor.reload_phase(now)).collect();
    // All do what the one may that has come least far.
    let all = progress.iter().flatten().min().copied();
    let end = match all {
        Some(ReloadPhase::Complete) => Some(End::Commit),
        Some(ReloadPhase::Failed) => progress
            .iter()
            .position(|progress| *progress == Some(ReloadPhase::Failed))
            .map(|culprit| End::RollBack { culprit }),
        Some(ReloadPhase::Canary | ReloadPhase::Rolling) | None => None,
    };
    let decide = |Signatory { supervisor, goes }: Signatory<'_>| {
        if goes && end == Some(End::Commit) {
            supervisor.scale_to_zero();
        }
        supervisor.reconcile(now, all)
    };
    Turn { end, actions: pools.into_iter().map(decide).collect() }
}

#[cfg(test)]
mod tests;
