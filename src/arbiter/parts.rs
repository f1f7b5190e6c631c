//! What a master is made from.

use std::rc::Rc;

use super::control::ControlServer;
use super::generation::MasterContext;
use super::pool::processes::WorkerEnvironment;
use super::reload::ConfigLoader;
use super::upgrade::{ExecArgs, UpgradePeer};
use crate::os::daemon::StartupNotifier;
use crate::os::signal::SignalPipe;
use crate::pidfile::PidFile;
use crate::systemd::ServiceManager;

/// What a master is made from, besides its pools.
pub(crate) struct ArbiterParts<'a> {
    /// Open since before anything was created, so that no signal is lost.
    pub(crate) signals: SignalPipe,
    pub(crate) context: MasterContext,
    pub(crate) environment: WorkerEnvironment<'a>,
    pub(crate) config_loader: ConfigLoader<'a>,
    /// `None` if it is not known how this program was started: it cannot be upgraded.
    pub(crate) exec_args: Option<ExecArgs>,
    pub(crate) pidfiles: Vec<PidFile>,
    pub(crate) service_manager: ServiceManager,
    pub(crate) upgrade_peer: UpgradePeer,
    pub(crate) startup_notifier: Option<Rc<StartupNotifier>>,
    /// `None` if the settings ask for none.
    pub(crate) control: Option<ControlServer<'a>>,
}
