//! An upgrade (SIGUSR2): the program is executed anew beside this master, on the same sockets. Both
//! serve until SIGTERM to either; each learns of the other's exit from the channel between them.

pub(crate) mod channel;
mod exec_args;
mod handover;
mod pool_messages;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use slog::{Logger, error, info, warn};

use super::operations::{Fact, OperationCounts};
use super::state::MasterState;
use crate::listen::activation;
use crate::os::clock;
use crate::os::process::{self, Exit, Pid};
use crate::os::signal::Signal;
use crate::systemd::WATCHDOG_PID;
use crate::time::MonotonicTime;
use channel::{UpgradeChannel, UpgradeMessage};
pub(crate) use exec_args::ExecArgs;
use pool_messages::UnsentDrainModes;

/// How long a new master may take to become ready, beyond the `boot_timeout` of its workers.
const STARTUP_MARGIN: Duration = Duration::from_secs(5);

/// How long a new master that has closed its end of the channel may take to exit.
const EXIT_TIME: Duration = Duration::from_secs(1);

/// How many messages are read in one turn.
const MESSAGES_MAX: usize = 1024;

/// The other master, if there is one.
#[derive(Debug)]
pub(crate) enum UpgradePeer {
    /// This is the only master.
    None,
    /// The master that has executed this one.
    OldMaster { pid: Pid, channel: UpgradeChannel },
    /// The master that this one has executed. It has no channel once it has closed its end.
    NewMaster {
        pid: Pid,
        channel: Option<UpgradeChannel>,
        phase: UpgradePhase,
        /// When it is killed: if it is not ready in time, or lives on without a channel.
        kill_at: Option<MonotonicTime>,
    },
}

impl UpgradePeer {
    fn channel(&self) -> Option<&UpgradeChannel> {
        match self {
            UpgradePeer::None => None,
            UpgradePeer::OldMaster { channel, .. } => Some(channel),
            UpgradePeer::NewMaster { channel, .. } => channel.as_ref(),
        }
    }

    /// Returns the other master, if there is one.
    pub(super) fn pid(&self) -> Option<Pid> {
        match self {
            UpgradePeer::None => None,
            UpgradePeer::OldMaster { pid, .. } | UpgradePeer::NewMaster { pid, .. } => Some(*pid),
        }
    }

    /// Returns the number of the channel's descriptor.
    pub(crate) fn channel_fd(&self) -> Option<RawFd> {
        self.channel().map(AsRawFd::as_raw_fd)
    }
}

/// How far a new master has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UpgradePhase {
    Starting,
    Ready,
    /// The upgrade has failed, which has been logged.
    Failed,
}

/// A SIGTERM, or a command to stop, that has arrived while the new master starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DeferredStop {
    None,
    /// It waits until the new master is ready or has failed.
    Waiting,
    /// The new master was stopped as well.
    Due,
}

/// The upgrades of a master: at most one at a time.
pub(super) struct Upgrade {
    pub(super) exec_args: Option<ExecArgs>,
    peer: UpgradePeer,
    deferred_stop: DeferredStop,
    /// This master is to stop once the new one is ready.
    stops_when_ready: bool,
    /// The new master was ready and has exited, and nothing has asked it to.
    has_lost_successor: bool,
    /// The old master, which has exited. The upgrade is complete once this master is ready.
    exited_old_master: Option<Pid>,
    /// Why the new master has failed, until it has exited: only then can there be another one.
    failure: Option<String>,
    /// What has happened since [`take_facts`](Self::take_facts).
    facts: Vec<Fact>,
    unsent_drain_modes: UnsentDrainModes,
    /// SIGUSR2 has arrived, and the upgrade has not begun.
    pub(super) is_pending: bool,
}

impl Upgrade {
    pub(super) fn new(exec_args: Option<ExecArgs>, peer: UpgradePeer) -> Self {
        Self {
            exec_args,
            peer,
            deferred_stop: DeferredStop::None,
            stops_when_ready: false,
            has_lost_successor: false,
            exited_old_master: None,
            failure: None,
            facts: Vec::new(),
            unsent_drain_modes: UnsentDrainModes::default(),
            is_pending: false,
        }
    }

    /// Takes what has happened since the last call.
    pub(super) fn take_facts(&mut self) -> Vec<Fact> {
        std::mem::take(&mut self.facts)
    }

    /// Returns whether there is no other master.
    pub(super) fn is_sole_master(&self) -> bool {
        matches!(self.peer, UpgradePeer::None)
    }

    /// Returns the other master.
    pub(super) fn peer(&self) -> &UpgradePeer {
        &self.peer
    }

    /// Returns the other master if it goes on when this one exits: it has not failed, and lives.
    pub(super) fn successor(&self) -> Option<Pid> {
        match self.peer {
            UpgradePeer::None
            | UpgradePeer::NewMaster { phase: UpgradePhase::Failed, .. }
            | UpgradePeer::NewMaster { channel: None, .. } => None,
            UpgradePeer::NewMaster { pid, .. } | UpgradePeer::OldMaster { pid, .. } => Some(pid),
        }
    }

    /// Returns the descriptor that is readable when the other master has sent a message or exited.
    pub(super) fn channel_fd(&self) -> Option<BorrowedFd<'_>> {
        self.peer.channel().map(AsFd::as_fd)
    }

    /// Returns when the new master is killed, or told again what it had no room for.
    pub(super) fn next_deadline(&self) -> Option<MonotonicTime> {
        self.kill_at().into_iter().chain(self.unsent_drain_modes.next_deadline()).min()
    }

    fn kill_at(&self) -> Option<MonotonicTime> {
        let UpgradePeer::NewMaster { kill_at, .. } = self.peer else { return None };
        kill_at
    }

    /// Reports why no new master is executed.
    pub(super) fn reject(&mut self, reason: String, log: &Logger) {
        error!(log, "upgrade rejected"; "error" => &reason);
        self.facts.push(Fact::UpgradeRejected(reason));
    }

    /// Executes a new master, which inherits the listeners and the channel, in which the targets and
    /// drain modes of the pools wait, and nothing else. Returns whether it is started.
    pub(super) fn start(&mut self, state: &MasterState<'_>) -> bool {
        let (log, boot_timeout) = (state.log(), state.pools.max_boot_timeout());
        match self.exec_new_master(state) {
            Ok((pid, channel)) => {
                info!(log, "upgrade started"; "pid" => pid.as_raw());
                self.facts.push(Fact::UpgradeStarted(pid.as_raw()));
                let (channel, phase) = (Some(channel), UpgradePhase::Starting);
                let kill_at = Some(clock::now().saturating_add(boot_timeout + STARTUP_MARGIN));
                self.peer = UpgradePeer::NewMaster { pid, channel, phase, kill_at };
                true
            }
            Err(reason) => {
                self.reject(reason, log);
                false
            }
        }
    }

    fn exec_new_master(
        &mut self,
        state: &MasterState<'_>,
    ) -> Result<(Pid, UpgradeChannel), String> {
        match &self.peer {
            UpgradePeer::None => (),
            UpgradePeer::NewMaster { pid, .. } => {
                return Err(format!("upgrade to process {pid} already in progress"));
            }
            UpgradePeer::OldMaster { pid, .. } => {
                return Err(format!("upgrade from process {pid} not complete"));
            }
        }
        let unknown = "command line or working directory of this program unknown";
        let exec_args = self.exec_args.as_ref().ok_or(unknown)?;
        let (channel, peer_end) = UpgradeChannel::new()
            .map_err(|error| format!("failed to create upgrade channel: {error}"))?;
        // Before the new master runs: it decides by them how many workers it starts with.
        pool_messages::send_pools(&channel, &mut self.unsent_drain_modes, state);
        let listeners: Vec<_> = state.pools.open_listeners().collect();
        let sockets = listeners.iter().map(|listener| listener.as_raw_fd());
        // The new master finds the channel behind the sockets.
        let inherited_fds: Vec<RawFd> = sockets.chain([peer_end.as_raw_fd()]).collect();
        let channel_fd = process::LISTEN_FDS_START + listeners.len() as RawFd;
        let old_master = Pid::this();
        let forked = process::fork(|| {
            let vars = activation::listen_env_vars(&listeners);
            for (name, value) in vars.into_iter().chain([channel::env_var(channel_fd, old_master)])
            {
                process::set_env(&name, &value);
            }
            if std::env::var_os(WATCHDOG_PID).is_some() {
                process::set_env(WATCHDOG_PID, Pid::this().to_string());
            }
            let report = channel::report_exec_failure;
            match exec_args.enter_dir() {
                Ok(()) => process::exec_with_fds(&exec_args.args, &inherited_fds, report),
                Err(error) => report(peer_end.as_fd(), &error),
            }
            1
        });
        let pid = forked.map_err(|error| format!("failed to fork: {error}"))?;
        Ok((pid, channel))
    }

    /// Tells a new master, if there is one, that a drain mode was turned on or off.
    pub(super) fn send_drain_mode(&mut self, pool: &str, is_on: bool, log: &Logger) {
        if matches!(self.peer, UpgradePeer::NewMaster { .. }) {
            self.unsent_drain_modes.add(pool, is_on);
            self.unsent_drain_modes.send(self.peer.channel(), log);
        }
    }

    /// Reads what the other master has sent. Returns the pid of an old master that has exited: this
    /// is the only master then.
    pub(super) fn read_channel(&mut self, state: &mut MasterState<'_>) -> Option<Pid> {
        for _ in 0..MESSAGES_MAX {
            let message = self.peer.channel()?.try_receive()?;
            if let Some(old_master) = self.on_message(message, state) {
                return Some(old_master);
            }
        }
        None
    }

    fn on_message(&mut self, message: UpgradeMessage, state: &mut MasterState<'_>) -> Option<Pid> {
        let log = state.context.log.logger();
        match (&mut self.peer, message) {
            (peer, UpgradeMessage::Handover(message)) => {
                if matches!(peer, UpgradePeer::OldMaster { .. }) {
                    if let Some((pool, target, workers)) = handover::decode_target(&message) {
                        state.pools.inherit_target((&pool, target, &workers));
                    } else if let Some((pool, is_on)) = handover::decode_drain_mode(&message) {
                        state.pools.set_drain_mode(&pool, is_on);
                    }
                }
                state.pools.add_earlier(handover::decode(&message));
                let operations = handover::decode_operations(&message);
                self.facts.extend(operations.map(Fact::EarlierOperations));
            }
            (UpgradePeer::OldMaster { pid, .. }, UpgradeMessage::PeerExited) => {
                let pid = *pid;
                self.peer = UpgradePeer::None;
                self.exited_old_master = Some(pid);
                return Some(pid);
            }
            (UpgradePeer::NewMaster { pid, phase, kill_at, .. }, UpgradeMessage::Ready) => {
                (*phase, *kill_at) = (UpgradePhase::Ready, None);
                info!(log, "new master ready"; "pid" => pid.as_raw());
                self.facts.push(Fact::NewMasterReady);
            }
            (UpgradePeer::NewMaster { phase, .. }, UpgradeMessage::ExecFailed(errno)) => {
                *phase = UpgradePhase::Failed;
                let error = io::Error::from_raw_os_error(errno).to_string();
                error!(log, "upgrade failed: exec failed"; "error" => &error);
                self.failure = Some(format!("exec failed: {error}"));
            }
            (UpgradePeer::NewMaster { phase, .. }, UpgradeMessage::Failed(reason)) => {
                *phase = UpgradePhase::Failed;
                error!(log, "upgrade failed"; "error" => &reason);
                self.failure = Some(reason);
            }
            // A new master that has exited is handled when it is reaped. One that has closed its end
            // and lives would never learn that it is the only master.
            (UpgradePeer::NewMaster { channel, kill_at, .. }, UpgradeMessage::PeerExited) => {
                let last = clock::now().saturating_add(EXIT_TIME);
                (*channel, *kill_at) = (None, Some(kill_at.map_or(last, |at| at.min(last))));
            }
            (UpgradePeer::None | UpgradePeer::OldMaster { .. }, _) => (),
        }
        None
    }

    /// Hands what was counted to the other master, if there is one: this one exits.
    pub(super) fn hand_over(&self, state: &MasterState<'_>, operations: &OperationCounts) {
        if let Some(channel) = self.peer.channel() {
            pool_messages::send_totals(channel, state, operations);
        }
    }

    /// Handles the exit of a child. Returns whether it was the new master, whose last message has been
    /// read: this is the only master again.
    pub(super) fn on_child_exit(&mut self, child: Pid, exit: Exit, log: &Logger) -> bool {
        let UpgradePeer::NewMaster { pid, phase, .. } = &self.peer else { return false };
        if *pid != child {
            return false;
        }
        let was_asked = was_stopped(exit);
        if self.deferred_stop == DeferredStop::Waiting && was_asked {
            self.deferred_stop = DeferredStop::Due;
        }
        let (pid, exit) = (child.as_raw(), exit.to_string());
        match phase {
            UpgradePhase::Ready => {
                self.has_lost_successor = !was_asked;
                warn!(log, "new master exited"; "pid" => pid, "exit" => &exit);
                self.facts.push(Fact::UpgradeFailed(format!("the new master has exited: {exit}")));
            }
            UpgradePhase::Failed => {
                info!(log, "new master exited"; "pid" => pid, "exit" => exit);
                self.facts.extend(self.failure.take().map(Fact::UpgradeFailed));
            }
            UpgradePhase::Starting => {
                error!(log, "upgrade failed: new master exited during startup";
                    "pid" => pid, "exit" => &exit);
                let reason = format!(
                    "the new master has exited during startup ({exit}): its log has the reason"
                );
                self.facts.push(Fact::UpgradeFailed(reason));
            }
        }
        self.peer = UpgradePeer::None;
        true
    }

    /// Kills a new master that is late, or closed its channel and lives on, and sends it what is unsent.
    pub(super) fn on_turn(&mut self, now: MonotonicTime, log: &Logger) {
        self.unsent_drain_modes.on_turn(self.peer.channel(), now, log);
        if self.kill_at().is_none_or(|deadline| now < deadline) {
            return;
        }
        if let UpgradePeer::NewMaster { pid, phase, kill_at, channel } = &mut self.peer {
            *kill_at = None;
            if channel.is_some() && *phase == UpgradePhase::Starting {
                *phase = UpgradePhase::Failed;
                error!(log, "upgrade failed: new master not ready in time"; "pid" => pid.as_raw());
                self.failure = Some("the new master was not ready in time".to_owned());
            }
            process::send_sigkill(*pid);
        }
    }

    /// Has this master stop once the new one, which is started, is ready.
    pub(super) fn stop_when_ready(&mut self) {
        self.stops_when_ready = true;
    }

    /// Decides whether a signal that stops the master waits for the new one: only the first SIGTERM
    /// does, while the new master starts. If that fails, this master must go on serving.
    pub(super) fn defers_stop(&mut self, signal: Signal, log: &Logger) -> bool {
        let earlier = std::mem::replace(&mut self.deferred_stop, DeferredStop::None);
        let UpgradePeer::NewMaster { pid, phase: UpgradePhase::Starting, .. } = self.peer else {
            return false;
        };
        if signal != Signal::Term || earlier != DeferredStop::None {
            return false;
        }
        info!(log, "stop deferred: new master not ready"; "pid" => pid.as_raw());
        self.deferred_stop = DeferredStop::Waiting;
        true
    }

    /// Returns why this master is to stop now, if it is: a deferred stop is due, or this is the upgrade
    /// of a command, and the new master is ready. A deferred stop is due too if the new master was
    /// stopped as well. If the new master has failed, the stop is cancelled.
    pub(super) fn take_due_stop(&mut self, log: &Logger) -> Option<&'static str> {
        let is_ready = match self.peer {
            UpgradePeer::NewMaster { phase: UpgradePhase::Starting, .. }
                if self.deferred_stop != DeferredStop::Due =>
            {
                return None;
            }
            UpgradePeer::NewMaster { phase, .. } => phase == UpgradePhase::Ready,
            UpgradePeer::None | UpgradePeer::OldMaster { .. } => false,
        };
        let replaces = std::mem::take(&mut self.stops_when_ready);
        match std::mem::replace(&mut self.deferred_stop, DeferredStop::None) {
            DeferredStop::Due => Some("deferred stop"),
            DeferredStop::None => (replaces && is_ready).then_some("upgrade"),
            DeferredStop::Waiting if is_ready => Some("deferred stop"),
            DeferredStop::Waiting => {
                self.report_cancelled_stop(log);
                None
            }
        }
    }

    /// Returns once whether a new master that was ready has been lost.
    pub(super) fn take_lost_successor(&mut self) -> bool {
        std::mem::take(&mut self.has_lost_successor)
    }

    /// Reports that this master does not stop.
    pub(super) fn report_cancelled_stop(&mut self, log: &Logger) {
        error!(log, "stop cancelled: new master failed";
            "error" => "this master serves on; send TERM again to stop it");
        self.facts.push(Fact::StopCancelled);
    }

    /// Reports once that this master has replaced the old one: that has exited, and this one is ready.
    pub(super) fn report_complete(&mut self, is_ready: bool, log: &Logger) {
        if is_ready && let Some(old_master) = self.exited_old_master.take() {
            info!(log, "upgrade complete"; "pid" => Pid::this().as_raw(),
                "old_master_pid" => old_master.as_raw());
        }
    }

    /// Tells the old master that this one is ready.
    pub(super) fn report_ready(&self) {
        if let UpgradePeer::OldMaster { channel, .. } = &self.peer {
            channel.send_ready();
        }
    }
}

/// Returns whether a process exited because a signal asked it to.
fn was_stopped(exit: Exit) -> bool {
    match exit {
        Exit::Code(code) => code == 0,
        Exit::Signal { number, .. } => {
            process::is_termination_signal(number) && !process::is_sigkill(number)
        }
    }
}
