//! Sends what the other master is told of the pools while both run.

use slog::{Logger, warn};

use super::channel::UpgradeChannel;
use super::handover;
use crate::arbiter::state::MasterState;

/// Sends the targets of the pools, and which are in drain mode, to a new master.
pub(super) fn send_pools(channel: &UpgradeChannel, state: &MasterState<'_>) {
    for pool in state.pools.present() {
        let (name, target) = (pool.name(), pool.supervisor().target());
        let message = handover::encode_target(name, target, pool.settings().workers);
        if let Err(error) = channel.send_handover(&message) {
            warn!(state.log(), "failed to hand over worker count"; "pool" => name, "error" => %error);
        }
        if pool.is_in_drain_mode() {
            send_drain_mode(channel, name, true, state.log());
        }
    }
}

/// Sends whether a pool is in drain mode.
pub(super) fn send_drain_mode(channel: &UpgradeChannel, pool: &str, is_on: bool, log: &Logger) {
    if let Err(error) = channel.send_handover(&handover::encode_drain_mode(pool, is_on)) {
        warn!(log, "failed to hand over drain mode"; "pool" => pool, "error" => %error);
    }
}
