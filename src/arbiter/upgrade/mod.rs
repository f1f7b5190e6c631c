//! An upgrade: the program is started anew beside this one, on the same sockets. Both serve until
//! an operator's TERM to either decides; each learns of the other's end at once, by their line.

pub(crate) mod channel;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use slog::{error, info, warn};

use super::Arbiter;
use crate::listen::activation;
use crate::os::clock;
use crate::os::process::{self, Exit, Pid};
use crate::systemd::WATCHDOG_PID;
use crate::time::MonotonicTime;
use channel::{UpgradeChannel, UpgradeMessage};

/// What a successor may need beyond the time that its workers have to boot.
const START_ALLOWANCE: Duration = Duration::from_secs(5);

/// How this program was started, so that it can be started again.
#[derive(Debug)]
pub(crate) struct ExecArgs {
    /// The words of the command line; the first names the program.
    pub(crate) args: Vec<CString>,
    /// The folder in which it was started.
    pub(crate) dir: OwnedFd,
}

/// The other master, if there is one.
#[derive(Debug)]
pub(crate) enum UpgradePeer {
    /// None.
    None,
    /// The one that this one is to succeed.
    OldMaster { pid: Pid, channel: UpgradeChannel },
    /// The one that is to succeed this one.
    NewMaster {
        pid: Pid,
        channel: Option<UpgradeChannel>,
        state: UpgradePhase,
        ready_deadline: MonotonicTime,
    },
}

/// How far a successor has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UpgradePhase {
    Starting,
    Ready,
    /// It has failed, which has been said.
    Failed,
}

impl UpgradePeer {
    pub(super) fn is_none(&self) -> bool {
        matches!(self, UpgradePeer::None)
    }

    pub(super) fn channel(&self) -> Option<BorrowedFd<'_>> {
        match self {
            UpgradePeer::None => None,
            UpgradePeer::OldMaster { channel, .. } => Some(channel.as_fd()),
            UpgradePeer::NewMaster { channel, .. } => channel.as_ref().map(AsFd::as_fd),
        }
    }

    /// The number of the line, which no worker may keep: it would hide the end of this master.
    pub(super) fn channel_fd(&self) -> Option<RawFd> {
        self.channel().map(|line| line.as_raw_fd())
    }

    /// When a successor that is not ready is given up.
    pub(super) fn deadline(&self) -> Option<MonotonicTime> {
        match self {
            UpgradePeer::NewMaster { ready_deadline, state: UpgradePhase::Starting, .. } => {
                Some(*ready_deadline)
            }
            UpgradePeer::None | UpgradePeer::OldMaster { .. } | UpgradePeer::NewMaster { .. } => {
                None
            }
        }
    }
}

impl Arbiter<'_> {
    /// Begins an upgrade, if one is wished for and nothing stands against it.
    pub(super) fn start_pending_upgrade(&mut self) {
        if !self.upgrade_pending || self.is_reloading() {
            return;
        }
        self.upgrade_pending = false;
        match self.exec_new_master() {
            Ok((pid, kin)) => {
                info!(self.log(), "upgrade started"; "pid" => pid.as_raw());
                self.upgrade_peer = kin;
            }
            Err(reason) => error!(self.log(), "upgrade rejected"; "error" => reason),
        }
    }

    fn exec_new_master(&self) -> Result<(Pid, UpgradePeer), String> {
        if self.stopping().is_some() {
            return Err("master is stopping".to_owned());
        }
        match &self.upgrade_peer {
            UpgradePeer::None => (),
            UpgradePeer::NewMaster { pid, .. } => {
                return Err(format!("upgrade to process {pid} already in progress"));
            }
            UpgradePeer::OldMaster { pid, .. } => {
                return Err(format!("upgrade from process {pid} not complete"));
            }
        }
        let exec_args = self
            .exec_args
            .as_ref()
            .ok_or("command line or working directory of this program unknown")?;
        let (channel, peer_end) = UpgradeChannel::new()
            .map_err(|error| format!("failed to create upgrade channel: {error}"))?;
        let listeners =
            self.pools.iter().flat_map(|pool| pool.current_generation().open_listeners());
        let listeners: Vec<_> = listeners.collect();
        let sockets = listeners.iter().map(|listener| listener.as_raw_fd());
        let inherited_fds: Vec<RawFd> = sockets.chain([peer_end.as_raw_fd()]).collect();
        let old_master = Pid::this();
        let forked = process::fork(|| {
            let channel_fd = process::LISTEN_FDS_START + listeners.len() as RawFd;
            let vars = activation::listen_env_vars(&listeners);
            for (name, value) in vars.into_iter().chain([channel::env_var(channel_fd, old_master)])
            {
                process::set_env(&name, &value);
            }
            if std::env::var_os(WATCHDOG_PID).is_some() {
                process::set_env(WATCHDOG_PID, Pid::this().to_string());
            }
            match process::change_dir(exec_args.dir.as_fd()) {
                Ok(()) => process::exec_with_fds(
                    &exec_args.args,
                    &inherited_fds,
                    channel::report_exec_failure,
                ),
                Err(error) => channel::report_exec_failure(peer_end.as_fd(), &error),
            }
            1
        });
        let pid = forked.map_err(|error| format!("failed to fork: {error}"))?;
        let ready_deadline = clock::now().saturating_add(self.max_boot_timeout() + START_ALLOWANCE);
        let (channel, state) = (Some(channel), UpgradePhase::Starting);
        Ok((pid, UpgradePeer::NewMaster { pid, channel, state, ready_deadline }))
    }

    /// Hears what the other master has to say, if anything.
    pub(super) fn read_upgrade_channel(&mut self) {
        let message = match &self.upgrade_peer {
            UpgradePeer::None => None,
            UpgradePeer::OldMaster { channel, .. } => channel.try_receive(),
            UpgradePeer::NewMaster { channel, .. } => {
                channel.as_ref().and_then(UpgradeChannel::try_receive)
            }
        };
        match (&mut self.upgrade_peer, message) {
            (UpgradePeer::OldMaster { .. }, Some(UpgradeMessage::PeerExited)) => self.promote(),
            (UpgradePeer::NewMaster { pid, state, .. }, Some(UpgradeMessage::Ready)) => {
                *state = UpgradePhase::Ready;
                let pid = pid.as_raw();
                info!(self.log(), "new master ready"; "pid" => pid);
            }
            (UpgradePeer::NewMaster { state, .. }, Some(UpgradeMessage::ExecFailed(errno))) => {
                *state = UpgradePhase::Failed;
                let error = io::Error::from_raw_os_error(errno).to_string();
                error!(self.log(), "upgrade failed: exec failed";
                    "error" => error);
            }
            (UpgradePeer::NewMaster { state, .. }, Some(UpgradeMessage::Failed(reason))) => {
                *state = UpgradePhase::Failed;
                error!(self.log(), "upgrade failed"; "error" => reason);
            }
            // One that has gone is mourned when it is reaped. One that has hung up and lives would
            // never learn that it is alone.
            (
                UpgradePeer::NewMaster { pid, channel: line, .. },
                Some(UpgradeMessage::PeerExited),
            ) => {
                *line = None;
                process::send_sigkill(*pid);
            }
            (
                UpgradePeer::None | UpgradePeer::OldMaster { .. } | UpgradePeer::NewMaster { .. },
                _,
            ) => (),
        }
    }

    /// The predecessor has gone: this is the only master now.
    fn promote(&mut self) {
        let UpgradePeer::OldMaster { pid, .. } =
            std::mem::replace(&mut self.upgrade_peer, UpgradePeer::None)
        else {
            return;
        };
        if let Some(pidfile) = &mut self.pidfile
            && let Err(error) = pidfile.promote()
        {
            warn!(self.context.log.logger(), "failed to rename pid file";
                "error" => error.to_string());
        }
        self.cgroups.find_orphans(pid);
        self.service_manager.main_pid(Pid::this());
        if self.stopping().is_some() {
            self.begin_shutdown(); // the stop came when there was still another master
        }
        info!(self.log(), "upgrade complete"; "pid" => Pid::this().as_raw(),
            "old_master_pid" => pid.as_raw());
    }

    /// If a process that has ended was the successor, whose last words have been heard, everything
    /// is as before.
    pub(super) fn on_new_master_exit(&mut self, ended: Pid, exit: Exit) {
        let UpgradePeer::NewMaster { pid, state, .. } = &self.upgrade_peer else { return };
        if *pid != ended {
            return;
        }
        let state = *state;
        self.upgrade_peer = UpgradePeer::None;
        self.cgroups.find_orphans(ended);
        if self.stopping().is_some() {
            self.begin_shutdown();
        }
        let (pid, how) = (ended.as_raw(), exit.to_string());
        match state {
            UpgradePhase::Ready => {
                warn!(self.log(), "new master exited"; "pid" => pid, "exit" => how)
            }
            UpgradePhase::Failed => {
                info!(self.log(), "new master exited"; "pid" => pid, "exit" => how)
            }
            UpgradePhase::Starting => {
                error!(self.log(), "upgrade failed: new master exited during startup";
                    "pid" => pid, "exit" => how);
            }
        }
        self.resume_workers();
    }

    /// Workers that were let go come back.
    pub(super) fn resume_workers(&mut self) {
        let resumed = self.pools.iter_mut().map(|pool| pool.supervisor.resume());
        if resumed.fold(false, |any, news| any | news) {
            info!(self.log(), "resuming workers");
        }
    }

    /// Ends a successor that has not got ready in time.
    pub(super) fn enforce_upgrade_timeout(&mut self, now: MonotonicTime) {
        if self.upgrade_peer.deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        if let UpgradePeer::NewMaster { pid, state, .. } = &mut self.upgrade_peer {
            *state = UpgradePhase::Failed;
            let pid = *pid;
            error!(self.log(), "upgrade failed: new master not ready in time";
                "pid" => pid.as_raw());
            process::send_sigkill(pid); // its workers follow it
        }
    }

    /// WINCH: the workers go, the master stays.
    pub(super) fn suspend_workers(&mut self) {
        if !self.context.settings.daemon && self.upgrade_peer.is_none() {
            // A terminal that changes its size sends it too.
            warn!(self.log(), "signal ignored: not a daemon"; "signal" => "WINCH");
            return;
        }
        info!(self.log(), "suspending workers");
        for pool in &mut self.pools {
            if pool.supervisor.is_reloading() {
                pool.failure_reason = "workers were suspended".to_owned();
            }
            pool.supervisor.suspend();
        }
    }
}
