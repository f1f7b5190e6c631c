//! What binds the pools of one master in a reload: nobody old goes anywhere before each pool has
//! tried out its new generation, no pool lets go of the old before the new is complete in each, and
//! if one fails, all go back, in the same turn. Pure.

use super::pool::supervisor::{Action, ReloadPhase, Supervisor};
use crate::time::MonotonicTime;

/// A pool in what all do together.
pub(super) struct ReloadParticipant<'r> {
    pub(super) supervisor: &'r mut Supervisor,
    /// It goes for good if the reload that is under way comes to a good end.
    pub(super) is_removing: bool,
}

/// What is decided in one turn.
#[derive(Debug)]
pub(super) struct ReconcileOutcome {
    /// How the reload that was under way has ended, if it has.
    pub(super) result: Option<ReloadResult>,
    /// What is to be done in each pool after that.
    pub(super) actions: Vec<Vec<Action>>,
}

/// How a reload ends, in all pools at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReloadResult {
    /// All have their workers of the new generation.
    Commit,
    /// One has failed, of which this is the place.
    RollBack { failed_pool: usize },
}

/// Decides who comes and who goes at `now`, in all pools. Who hangs, or fails, must have been judged
/// before in each of them: a reload that one commits is committed by all.
pub(super) fn reconcile_all(
    pools: Vec<ReloadParticipant<'_>>,
    now: MonotonicTime,
) -> ReconcileOutcome {
    let phases: Vec<Option<ReloadPhase>> =
        pools.iter().map(|pool| pool.supervisor.reload_phase(now)).collect();
    // All do what the one may that has come least far.
    let overall_phase = phases.iter().flatten().min().copied();
    let result = match overall_phase {
        Some(ReloadPhase::Complete) => Some(ReloadResult::Commit),
        Some(ReloadPhase::Failed) => phases
            .iter()
            .position(|phase| *phase == Some(ReloadPhase::Failed))
            .map(|failed_pool| ReloadResult::RollBack { failed_pool }),
        Some(ReloadPhase::Canary | ReloadPhase::Rolling) | None => None,
    };
    let decide = |ReloadParticipant { supervisor, is_removing }: ReloadParticipant<'_>| {
        if is_removing && result == Some(ReloadResult::Commit) {
            supervisor.scale_to_zero();
        }
        supervisor.reconcile(now, overall_phase)
    };
    ReconcileOutcome { result, actions: pools.into_iter().map(decide).collect() }
}

#[cfg(test)]
mod tests;
