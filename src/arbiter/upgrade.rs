//! An upgrade: the program is started anew beside this one, on the same sockets. Both serve until
//! an operator's TERM to either decides; each learns of the other's end at once, by their line.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use slog::{error, info, warn};

use super::Arbiter;
use crate::listen::activation::{self, UpgradeChannel, UpgradeMessage};
use crate::os::clock;
use crate::os::process::{self, Exit, Pid};
use crate::time::MonotonicTime;
use crate::systemd::WATCHDOG_PID;

/// What a successor may need beyond the time that its workers have to boot.
const START_ALLOWANCE: Duration = Duration::from_secs(5);

/// How this program was started, so that it can be started again.
#[derive(Debug)]
pub(crate) struct Launch {
    /// The words of the command line; the first names the program.
    pub(crate) words: Vec<CString>,
    /// The folder in which it was started.
    pub(crate) folder: OwnedFd,
}

/// The other master, if there is one.
#[derive(Debug)]
pub(crate) enum Kin {
    /// None.
    Alone,
    /// The one that this one is to succeed.
    Predecessor { pid: Pid, line: UpgradeChannel },
    /// The one that is to succeed this one.
    Successor { pid: Pid, line: Option<UpgradeChannel>, state: Progress, give_up_at: MonotonicTime },
}

/// How far a successor has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Starting,
    Ready,
    /// It has failed, which has been said.
    Failed,
}

impl Kin {
    pub(super) fn is_alone(&self) -> bool {
        matches!(self, Kin::Alone)
    }

    pub(super) fn line(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Kin::Alone => None,
            Kin::Predecessor { line, .. } => Some(line.as_fd()),
            Kin::Successor { line, .. } => line.as_ref().map(AsFd::as_fd),
        }
    }

    /// The number of the line, which no worker may keep: it would hide the end of this master.
    pub(super) fn line_number(&self) -> Option<RawFd> {
        self.line().map(|line| line.as_raw_fd())
    }

    /// When a successor that is not ready is given up.
    pub(super) fn deadline(&self) -> Option<MonotonicTime> {
        match self {
            Kin::Successor { give_up_at, state: Progress::Starting, .. } => Some(*give_up_at),
            Kin::Alone | Kin::Predecessor { .. } | Kin::Successor { .. } => None,
        }
    }
}

impl Arbiter<'_> {
    /// Begins an upgrade, if one is wished for and nothing stands against it.
    pub(super) fn upgrade_if_wished(&mut self) {
        if !self.upgrade_wished || self.is_reloading() {
            return;
        }
        self.upgrade_wished = false;
        match self.start_successor() {
            Ok((pid, kin)) => {
                info!(self.log(), "upgrade begins"; "pid" => pid.as_raw());
                self.kin = kin;
            }
            Err(reason) => error!(self.log(), "upgrade refused"; "error" => reason),
        }
    }

    fn start_successor(&self) -> Result<(Pid, Kin), String> {
        if self.stopping().is_some() {
            return Err("this master is stopping".to_owned());
        }
        match &self.kin {
            Kin::Alone => (),
            Kin::Successor { pid, .. } => {
                return Err(format!("an upgrade is under way, to process {pid}"));
            }
            Kin::Predecessor { pid, .. } => {
                return Err(format!("this master has not taken over from process {pid} yet"));
            }
        }
        let launch = self.launch.as_ref().ok_or("how this program was started is not known")?;
        let (line, other) = UpgradeChannel::new().map_err(|error| format!("cannot make a line: {error}"))?;
        let listeners = self.pools.iter().flat_map(|pool| pool.current_generation().open_listeners());
        let listeners: Vec<_> = listeners.collect();
        let sockets = listeners.iter().map(|listener| listener.as_raw_fd());
        let descriptors: Vec<RawFd> = sockets.chain([other.as_raw_fd()]).collect();
        let predecessor = Pid::this();
        let forked = process::fork(|| {
            for (name, value) in activation::listen_env_vars(&listeners, predecessor) {
                process::set_env(&name, &value);
            }
            if std::env::var_os(WATCHDOG_PID).is_some() {
                process::set_env(WATCHDOG_PID, Pid::this().to_string());
            }
            match process::change_dir(launch.folder.as_fd()) {
                Ok(()) => process::exec_with_fds(
                    &launch.words,
                    &descriptors,
                    activation::report_exec_failure,
                ),
                Err(error) => activation::report_exec_failure(other.as_fd(), &error),
            }
            1
        });
        let pid = forked.map_err(|error| format!("cannot fork: {error}"))?;
        let give_up_at = clock::now().saturating_add(self.max_boot_timeout() + START_ALLOWANCE);
        let (line, state) = (Some(line), Progress::Starting);
        Ok((pid, Kin::Successor { pid, line, state, give_up_at }))
    }

    /// Hears what the other master has to say, if anything.
    pub(super) fn hear_the_kin(&mut self) {
        let word = match &self.kin {
            Kin::Alone => None,
            Kin::Predecessor { line, .. } => line.try_receive(),
            Kin::Successor { line, .. } => line.as_ref().and_then(UpgradeChannel::try_receive),
        };
        match (&mut self.kin, word) {
            (Kin::Predecessor { .. }, Some(UpgradeMessage::PeerExited)) => self.take_over(),
            (Kin::Successor { pid, state, .. }, Some(UpgradeMessage::Ready)) => {
                *state = Progress::Ready;
                let pid = pid.as_raw();
                info!(self.log(), "successor is ready"; "pid" => pid);
            }
            (Kin::Successor { state, .. }, Some(UpgradeMessage::ExecFailed(errno))) => {
                *state = Progress::Failed;
                let error = io::Error::from_raw_os_error(errno).to_string();
                error!(self.log(), "upgrade failed: the program cannot be started";
                    "error" => error);
            }
            (Kin::Successor { state, .. }, Some(UpgradeMessage::Failed(reason))) => {
                *state = Progress::Failed;
                error!(self.log(), "upgrade failed"; "error" => reason);
            }
            // One that has gone is mourned when it is reaped. One that has hung up and lives would
            // never learn that it is alone.
            (Kin::Successor { pid, line, .. }, Some(UpgradeMessage::PeerExited)) => {
                *line = None;
                process::send_sigkill(*pid);
            }
            (Kin::Alone | Kin::Predecessor { .. } | Kin::Successor { .. }, _) => (),
        }
    }

    /// The predecessor has gone: this is the only master now.
    fn take_over(&mut self) {
        let Kin::Predecessor { pid, .. } = std::mem::replace(&mut self.kin, Kin::Alone) else {
            return;
        };
        if let Some(pidfile) = &mut self.pidfile
            && let Err(error) = pidfile.promote()
        {
            warn!(self.context.log.logger(), "pid file keeps its second name";
                "error" => error.to_string());
        }
        self.cgroups.find_orphans(pid);
        self.service_manager.main_pid(Pid::this());
        if self.stopping().is_some() {
            self.close_the_house(); // the stop came when there was still another master
        }
        info!(self.log(), "promoted"; "pid" => Pid::this().as_raw(),
            "predecessor" => pid.as_raw());
    }

    /// If a process that has ended was the successor, whose last words have been heard, everything
    /// is as before.
    pub(super) fn mourn_successor(&mut self, ended: Pid, exit: Exit) {
        let Kin::Successor { pid, state, .. } = &self.kin else { return };
        if *pid != ended {
            return;
        }
        let state = *state;
        self.kin = Kin::Alone;
        self.cgroups.find_orphans(ended);
        if self.stopping().is_some() {
            self.close_the_house();
        }
        let (pid, how) = (ended.as_raw(), exit.to_string());
        match state {
            Progress::Ready => {
                warn!(self.log(), "successor has ended"; "pid" => pid, "exit" => how)
            }
            Progress::Failed => {
                info!(self.log(), "successor has ended"; "pid" => pid, "exit" => how)
            }
            Progress::Starting => {
                error!(self.log(), "upgrade failed: the successor was never ready";
                    "pid" => pid, "exit" => how);
            }
        }
        self.resume();
    }

    /// Workers that were let go come back.
    pub(super) fn resume(&mut self) {
        let resumed = self.pools.iter_mut().map(|pool| pool.supervisor.resume());
        if resumed.fold(false, |any, news| any | news) {
            info!(self.log(), "workers come back");
        }
    }

    /// Ends a successor that has not got ready in time.
    pub(super) fn give_up_the_late(&mut self, now: MonotonicTime) {
        if self.kin.deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        if let Kin::Successor { pid, state, .. } = &mut self.kin {
            *state = Progress::Failed;
            let pid = *pid;
            error!(self.log(), "upgrade failed: the successor is not ready in time";
                "pid" => pid.as_raw());
            process::send_sigkill(pid); // its workers follow it
        }
    }

    /// WINCH: the workers go, the master stays.
    pub(super) fn let_workers_go(&mut self) {
        if !self.context.settings.daemon && self.kin.is_alone() {
            // A terminal that changes its size sends it too.
            warn!(self.log(), "signal has no effect outside a daemon"; "signal" => "WINCH");
            return;
        }
        info!(self.log(), "workers are let go");
        for pool in &mut self.pools {
            if pool.supervisor.is_reloading() {
                pool.failure_reason = "the workers were let go".to_owned();
            }
            pool.supervisor.suspend();
        }
    }
}
