//! What the master and the child that keeps the lease have in common.

use std::time::Duration;

use crate::os::host;
use crate::os::process::Pid;
use crate::settings::Settings;

/// Says to the child that its last report was read.
pub(super) const ACKNOWLEDGE: u8 = b'a';
/// Says to the child that no led worker is left, and that it ends the lease.
pub(super) const RELEASE: u8 = b'r';

/// The lease that the settings ask for.
#[cfg_attr(not(feature = "leader"), expect(dead_code, reason = "the child reads it"))]
pub(super) struct LeaseConfig {
    pub(super) urls: Vec<String>,
    pub(super) key: String,
    pub(super) ttl: Duration,
    /// How this master is called in the store.
    pub(super) name: String,
}

impl LeaseConfig {
    pub(super) fn new(settings: &Settings) -> Option<Self> {
        let key = settings.leader_key.clone().filter(|_| !settings.leader_etcd.is_empty())?;
        let name = format!("{}/{}", host::name().unwrap_or_default(), Pid::this().as_raw());
        let (urls, ttl) = (settings.leader_etcd.clone(), settings.leader_ttl);
        Some(Self { urls, key, ttl, name })
    }
}
