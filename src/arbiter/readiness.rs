//! Whether the service is ready, and why it is not. Pure. A probe asks often, so the answer needs no more than
//! a few words of each pool.

/// What the master is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum MasterPhase {
    /// Its first workers are not all ready.
    #[default]
    Starting,
    Running,
    Reloading,
    /// It will stop, and accepts clients until then.
    PreStop,
    Stopping,
}

/// What decides whether a pool is ready.
pub(super) struct PoolReadiness<'p> {
    pub(super) name: &'p str,
    /// Whether a worker is ready, and does not drain.
    pub(super) has_ready: bool,
    pub(super) is_suspended: bool,
    pub(super) is_standby: bool,
    pub(super) is_in_drain_mode: bool,
    pub(super) is_stopping: bool,
}

/// Returns why the service is not ready; `None` if it is: every pool that is not on standby has a ready worker,
/// and none stops, is suspended or is in drain mode; nor are all on standby.
pub(super) fn unready_reason<'p>(
    phase: MasterPhase,
    pools: impl Iterator<Item = PoolReadiness<'p>> + Clone,
) -> Option<String> {
    match phase {
        MasterPhase::Starting => return Some("starting".to_owned()),
        MasterPhase::Stopping => return Some("stopping".to_owned()),
        MasterPhase::PreStop => {
            return Some("stopping soon, still accepting (pre_stop)".to_owned());
        }
        MasterPhase::Running | MasterPhase::Reloading => (),
    }
    let has_pools = pools.clone().next().is_some();
    if has_pools && pools.clone().all(|pool| pool.is_standby) {
        return Some("standby: another master leads, or none".to_owned());
    }
    // A pool that a reload has removed only finishes its clients.
    let mut pools = pools.filter(|pool| !pool.is_stopping);
    pools.find_map(|pool| {
        let reason = match pool {
            _ if pool.is_standby => return None,
            _ if pool.is_suspended => "is suspended",
            _ if !pool.has_ready => "has no ready worker",
            _ if pool.is_in_drain_mode => "is in drain mode",
            _ => return None,
        };
        Some(format!("pool {:?} {reason}", pool.name))
    })
}

impl MasterPhase {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Reloading => "reloading",
            Self::PreStop => "pre_stop",
            Self::Stopping => "stopping",
        }
    }
}
