//! The barrier that keeps the pools of a master in lockstep during a reload. Pure.
//!
//! No old worker drains before every pool's canary is ready. No pool drops its old generation before
//! the new one is complete in every pool. If one pool fails, all roll back in the same turn.

use super::pool::supervisor::{Action, ReloadPhase, Supervisor};
use crate::time::MonotonicTime;

/// One pool's part in a reload.
pub(super) struct ReloadParticipant<'r> {
    pub(super) supervisor: &'r mut Supervisor,
    /// The pool is removed if the reload in progress commits.
    pub(super) is_removing: bool,
}

/// The decisions of one turn.
#[derive(Debug)]
pub(super) struct ReconcileOutcome {
    /// The result of the reload, if it has ended in this turn.
    pub(super) result: Option<ReloadResult>,
    /// The actions of each pool. Apply them after the result.
    pub(super) actions: Vec<Vec<Action>>,
}

/// How a reload ends, in all pools at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReloadResult {
    /// The new generation is complete in every pool.
    Commit,
    /// The pool with this index has failed.
    RollBack { failed_pool: usize },
}

/// Reconciles all pools at `now`. A reload commits or rolls back in all of them at once, so call
/// [`Supervisor::enforce_limits`] on every pool before.
pub(super) fn reconcile_all(
    pools: Vec<ReloadParticipant<'_>>,
    now: MonotonicTime,
) -> ReconcileOutcome {
    let phases: Vec<Option<ReloadPhase>> =
        pools.iter().map(|pool| pool.supervisor.reload_phase(now)).collect();
    // The phase of the slowest pool, or `Failed` if one has failed.
    let overall_phase = phases.iter().flatten().min().copied();
    let result = match overall_phase {
        Some(ReloadPhase::AllReady) => Some(ReloadResult::Commit),
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
