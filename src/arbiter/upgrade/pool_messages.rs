//! Sends what the other master is told of the pools while both run.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use slog::{Logger, warn};

use super::channel::UpgradeChannel;
use super::handover;
use crate::arbiter::operations::OperationCounts;
use crate::arbiter::state::MasterState;
use crate::os::clock;
use crate::time::MonotonicTime;

/// How soon a message is sent again if the other master has not read earlier ones.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// The drain modes that a new master is still to be told, since it has not read earlier messages. The last
/// one of each pool counts.
#[derive(Debug, Default)]
pub(super) struct UnsentDrainModes {
    pools: BTreeMap<String, bool>,
    retry_at: Option<MonotonicTime>,
}

/// Sends the targets of the pools, and which are in drain mode, to a new master.
pub(super) fn send_pools(
    channel: &UpgradeChannel,
    unsent: &mut UnsentDrainModes,
    state: &MasterState<'_>,
) {
    *unsent = UnsentDrainModes::default();
    for pool in state.pools.present() {
        let (name, target) = (pool.name(), pool.supervisor().target());
        let message = handover::encode_target(name, target, pool.settings().workers);
        if let Err(error) = channel.send_handover(&message) {
            warn!(state.log(), "failed to hand over worker count"; "pool" => name, "error" => %error);
        }
        if pool.is_in_drain_mode() {
            unsent.add(name, true);
        }
    }
    unsent.send(Some(channel), state.log());
}

/// Sends what was counted, since this master exits.
pub(super) fn send_totals(
    channel: &UpgradeChannel,
    state: &MasterState<'_>,
    operations: &OperationCounts,
) {
    if let Err(error) = channel.send_handover(&handover::encode_operations(operations)) {
        warn!(state.log(), "failed to hand over totals"; "error" => %error);
    }
    for pool in state.pools.iter() {
        let message = handover::encode(pool.name(), &pool.final_totals());
        if let Err(error) = channel.send_handover(&message) {
            warn!(state.log(), "failed to hand over totals"; "pool" => pool.name(), "error" => %error);
        }
    }
}

impl UnsentDrainModes {
    /// Notes whether a pool is in drain mode.
    pub(super) fn add(&mut self, pool: &str, is_on: bool) {
        self.pools.insert(pool.to_owned(), is_on);
    }

    /// Sends what is noted. What there is no room for stays.
    pub(super) fn send(&mut self, channel: Option<&UpgradeChannel>, log: &Logger) {
        self.retry_at = None;
        let Some(channel) = channel else { return self.pools.clear() };
        while let Some((pool, is_on)) = self.pools.pop_first() {
            if !try_send_drain_mode(channel, &pool, is_on, log) {
                self.retry_at = Some(clock::now().saturating_add(RETRY_INTERVAL));
                self.pools.insert(pool, is_on);
                return;
            }
        }
    }

    /// Sends again what there was no room for, if it is due.
    pub(super) fn on_turn(
        &mut self,
        channel: Option<&UpgradeChannel>,
        now: MonotonicTime,
        log: &Logger,
    ) {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.send(channel, log);
        }
    }

    /// Returns when [`on_turn`](Self::on_turn) is due.
    pub(super) fn next_deadline(&self) -> Option<MonotonicTime> {
        self.retry_at
    }
}

/// Sends whether a pool is in drain mode. Returns false if there is no room for the message now.
fn try_send_drain_mode(channel: &UpgradeChannel, pool: &str, is_on: bool, log: &Logger) -> bool {
    match channel.send_handover(&handover::encode_drain_mode(pool, is_on)) {
        Ok(_) => true,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
        Err(error) => {
            warn!(log, "failed to hand over drain mode"; "pool" => pool, "error" => %error);
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbiter::upgrade::channel::UpgradeMessage;

    #[test]
    fn last_drain_mode_arrives_although_the_channel_was_full() {
        let log = Logger::root(slog::Discard, slog::o!());
        let (channel, peer) = UpgradeChannel::pair();
        let mut unsent = UnsentDrainModes::default();
        let mut change = |pool: &str, is_on| {
            unsent.add(pool, is_on);
            unsent.send(Some(&channel), &log);
        };
        (0..2000).for_each(|number| change("web", number % 2 == 0));
        change("web", true);
        change("other", false);
        assert!(unsent.next_deadline().is_some(), "the other master has read nothing");
        let mut last = BTreeMap::new();
        while let Some(UpgradeMessage::Handover(message)) = peer.try_receive() {
            last.extend(handover::decode_drain_mode(&message));
            unsent.send(Some(&channel), &log);
        }
        assert_eq!(last, [("other".to_owned(), false), ("web".to_owned(), true)].into());
        assert_eq!(unsent.next_deadline(), None);
    }
}
