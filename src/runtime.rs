//! The builder: apps, classes and settings become a running master.

mod catalog;
mod error;

use std::env;
use std::path::PathBuf;
use std::rc::Rc;

use slog::{Level, crit, info, warn};

use crate::app::App;
use crate::arbiter::{
    self, Arbiter, ArbiterParts, ConfigLoader, ExecArgs, MasterContext, OomMonitor, PoolGeneration,
    PoolSpec, ResolvedConfig, RunOutcome, UpgradePeer, WorkerCgroups, WorkerEnvironment,
};
use crate::heartbeat;
use crate::hooks::{Hooks, NoHooks};
use crate::listen;
use crate::listen::activation::InheritedFds;
use crate::log::{self, Fields};
use crate::os::credentials;
use crate::os::daemon::StartupNotifier;
use crate::os::fd_table::OpenFds;
use crate::os::process::Pid;
use crate::os::signal::{self, Signal, SignalPipe};
use crate::os::title::ProcTitle;
use crate::pidfile::PidFile;
use crate::settings::{
    Configuration, LogLevel, LogTarget, Pool, Settings, check_address_conflicts,
};
use crate::systemd::ServiceManager;
use crate::worker::WorkerClass;
use catalog::{Catalog, Selection, source_label};
pub use error::RuntimeError;

/// A program in the making: the apps and classes that settings can choose from.
///
/// ```no_run
/// use std::process::ExitCode;
///
/// fn main() -> ExitCode {
///     ostler::Runtime::new().app(ostler::apps::Echo).main()
/// }
/// ```
pub struct Runtime {
    catalog: Catalog,
    hooks: Box<dyn Hooks>,
    after_help: &'static str,
}

impl Default for Runtime {
    fn default() -> Self {
        Self::new()
    }
}

impl Runtime {
    /// A runtime with the built-in classes and no app.
    pub fn new() -> Self {
        Self { catalog: Catalog::new(), hooks: Box::new(NoHooks), after_help: "" }
    }

    /// Adds an app. The first is the one that is served if nobody chooses.
    #[must_use]
    pub fn app(mut self, app: impl App + 'static) -> Self {
        self.catalog.add_app(app);
        self
    }

    /// Adds a worker class. A name that is taken is reported when the program runs.
    #[must_use]
    pub fn class(mut self, class: impl WorkerClass + 'static) -> Self {
        self.catalog.add_class(class);
        self
    }

    /// Has code run when something happens to the master or to a worker.
    #[must_use]
    pub fn hooks(mut self, hooks: impl Hooks + 'static) -> Self {
        self.hooks = Box::new(hooks);
        self
    }

    /// Has `--help` end with a paragraph of the program's own, in lines of at most 100 characters.
    #[must_use]
    pub fn after_help(mut self, text: &'static str) -> Self {
        self.after_help = text;
        self
    }

    /// What `--help` ends with.
    pub(crate) fn after_help_text(&self) -> &'static str {
        self.after_help
    }

    /// The name of the app that is served if nobody chooses.
    pub(crate) fn default_app(&self) -> Option<&str> {
        self.catalog.default_app()
    }

    /// The names of the classes, in alphabetical order.
    pub fn class_names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.catalog.class_names()
    }

    /// Finds what the settings name, and asks it whether the settings suit it. Changes nothing.
    ///
    /// # Errors
    /// An unknown class, app, user or group; a refusal of the class or the app.
    pub fn check(&self, configuration: &Configuration) -> Result<(), RuntimeError> {
        self.resolve(configuration.clone()).map(|_| ())
    }

    /// The same configuration as it will hold, once it has been checked.
    pub(crate) fn finalize(
        &self,
        mut configuration: Configuration,
    ) -> Result<Configuration, RuntimeError> {
        let plans = self.resolve(configuration.clone())?.pool_specs;
        for (pool, plan) in configuration.pools.iter_mut().zip(plans) {
            pool.settings = plan.settings;
        }
        if let ([pool], false) = (&configuration.pools[..], configuration.has_named_pools) {
            configuration.master = pool.settings.clone();
        }
        Ok(configuration)
    }

    /// Serves until a signal ends it. A reload finds the same settings again.
    ///
    /// # Errors
    /// Whatever keeps the master from starting: nothing that it made is left behind then.
    pub fn run(&self, settings: impl Into<Configuration>) -> Result<(), RuntimeError> {
        let configuration = settings.into();
        let configuration_copy = configuration.clone();
        self.run_as(
            configuration,
            StartupContext {
                program_fds: OpenFds::snapshot(),
                title: None,
                exec_args: None,
                startup_notifier: None,
            },
            move || Ok(configuration_copy.clone()),
        )
    }

    /// As [`run`](Self::run), with what is known of how the program was started, and with a way to
    /// read the settings anew.
    pub(crate) fn run_as(
        &self,
        configuration: Configuration,
        context: StartupContext,
        reload_config: impl Fn() -> Result<Configuration, String>,
    ) -> Result<(), RuntimeError> {
        let resolved = self.resolve(configuration)?;
        // From here on a signal is kept until the loop takes it, so whatever is made below is also
        // cleaned up.
        let signals = SignalPipe::open().map_err(RuntimeError::Os)?;
        signal::catch(&MASTER_SIGNALS);
        signal::unblock_all();
        let predecessor = arbiter::upgrade_channel::UpgradeChannel::take_from_env();
        let InheritedFds { listeners, mut warnings } =
            InheritedFds::take_from_env().map_err(RuntimeError::Listen)?;
        let is_upgrade = predecessor.is_some();
        let upgrade_peer = match predecessor {
            Some((pid, line)) => UpgradePeer::OldMaster { pid, channel: line },
            None => UpgradePeer::None,
        };
        let is_sole_master = matches!(upgrade_peer, UpgradePeer::None);
        let report_to_old_master = |error: RuntimeError| {
            if let UpgradePeer::OldMaster { channel: line, .. } = &upgrade_peer {
                line.send_failure(&error.to_string());
            }
            error
        };
        let pidfile = create_pidfile(&resolved.master, is_upgrade).map_err(report_to_old_master)?;
        let (master_context, generations) =
            match arbiter::prepare_generations(resolved, &listeners, &[], is_sole_master) {
                Ok(prepared) => prepared,
                Err(error) => {
                    if let Some(pidfile) = pidfile {
                        pidfile.remove();
                    }
                    return Err(report_to_old_master(error.into()));
                }
            };
        // What is not wished for is not kept open: nobody would look at its queue.
        drop(listeners);
        let (service_manager, warning) = ServiceManager::from_env();
        warnings.extend(warning);
        log_startup(&master_context, &generations, &warnings);
        let StartupContext { program_fds, title, exec_args: launch, startup_notifier: verdict } =
            context;
        program_fds.exclude(upgrade_peer.channel_fd());
        let planner: ConfigLoader<'_> =
            Box::new(move || self.resolve(reload_config()?).map_err(|error| error.to_string()));
        let cgroups = WorkerCgroups::find(master_context.log.logger());
        let (hooks, oom) = (self.hooks.as_ref(), OomMonitor::find());
        let environment = WorkerEnvironment { title, hooks, oom, cgroups, program_fds };
        let parts = ArbiterParts {
            signals,
            context: master_context,
            environment,
            config_loader: planner,
            exec_args: launch,
            pidfile,
            service_manager,
            upgrade_peer,
            startup_notifier: verdict,
        };
        serve(Arbiter::new(generations, parts).map_err(RuntimeError::Os)?)
    }

    /// Finds everything that a configuration names.
    fn resolve(&self, configuration: Configuration) -> Result<ResolvedConfig<'_>, RuntimeError> {
        let Configuration { master, mut pools, has_named_pools: is_divided } = configuration;
        let log = log_config(&master);
        let mut selections = Vec::new();
        for pool in &mut pools {
            let selection = self.catalog.select(&pool.settings)?;
            selection.finalize_settings(&mut pool.settings);
            selections.push(selection);
        }
        check_address_conflicts(pools.iter()).map_err(RuntimeError::PoolConflict)?;
        let plans: Vec<_> = pools
            .into_iter()
            .zip(selections)
            .map(|(pool, choice)| pool_spec(pool, choice))
            .collect();
        check_log_owner(&master, &plans)?;
        Ok(ResolvedConfig { master, has_named_pools: is_divided, log, pool_specs: plans })
    }
}

fn pool_spec<'a>(pool: Pool, selection: Selection<'a>) -> PoolSpec<'a> {
    let Pool { name, settings, .. } = pool;
    let Selection { app, class, identity, socket_access } = selection;
    let folder = settings.worker_tmp_dir.clone();
    let heartbeat_folder = folder.unwrap_or_else(heartbeat::default_dir);
    PoolSpec {
        name,
        settings,
        app,
        class,
        credentials: identity,
        socket_access,
        heartbeat_dir: heartbeat_folder,
    }
}

/// How a program was started.
pub(crate) struct StartupContext {
    /// The descriptors that it had open then: workers inherit them.
    pub(crate) program_fds: OpenFds,
    /// Where the title goes that `ps` shows.
    pub(crate) title: Option<ProcTitle>,
    /// How to start it again.
    pub(crate) exec_args: Option<ExecArgs>,
    /// Whom to tell when the workers are ready, if this is a daemon.
    pub(crate) startup_notifier: Option<Rc<StartupNotifier>>,
}

fn create_pidfile(settings: &Settings, is_upgrade: bool) -> Result<Option<PidFile>, RuntimeError> {
    let create = if is_upgrade { PidFile::create_for_upgrade } else { PidFile::create };
    let instance_lock_path = settings.single_instance.then(|| {
        let dir = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).unwrap_or_else(|| {
            if credentials::is_root() { PathBuf::from("/run") } else { env::temp_dir() }
        });
        dir.join(format!("ostler-{}.pid", settings.proc_name.replace('/', "_")))
    });
    let path = settings.pidfile.clone().or(instance_lock_path);
    path.as_deref().map(create).transpose().map_err(RuntimeError::PidFile)
}

/// A log file is given to the workers, so that they can reopen it, and there is one for all pools.
fn check_log_owner(master: &Settings, plans: &[PoolSpec<'_>]) -> Result<(), RuntimeError> {
    let owner = |plan: &PoolSpec<'_>| (plan.credentials.user(), plan.credentials.group());
    let [first, others @ ..] = plans else { return Ok(()) };
    match others.iter().find(|plan| owner(plan) != owner(first)) {
        Some(other) if master.log_file != LogTarget::Stderr => {
            let reason = format!(
                "workers of pools {:?} and {:?} run as different users, and only one of them could reopen log_file: use the same user and group, or log to -",
                first.name, other.name
            );
            Err(RuntimeError::Setting { source_label: source_label(master, "log_file"), reason })
        }
        Some(_) | None => Ok(()),
    }
}

/// The first records of the log.
fn log_startup(context: &MasterContext, generations: &[PoolGeneration<'_>], warnings: &[String]) {
    let log = context.log.logger();
    let (pid, version) = (Pid::this().as_raw(), env!("CARGO_PKG_VERSION"));
    match generations {
        [PoolGeneration { spec: plan, .. }] if !context.has_named_pools => {
            info!(log, "master started"; "pid" => pid, "version" => version,
                "app" => plan.app.name(), "class" => plan.class.name(),
                "workers" => plan.settings.workers.count(), command_fields(plan));
        }
        pools => {
            info!(log, "master started"; "pid" => pid, "version" => version,
                "pools" => pools.len());
            for PoolGeneration { spec: plan, log, .. } in pools {
                info!(log.logger(), "pool prepared"; "app" => plan.app.name(),
                    "class" => plan.class.name(), "workers" => plan.settings.workers.count(),
                    command_fields(plan));
            }
        }
    }
    for warning in warnings {
        warn!(log, "startup warning"; "error" => warning);
    }
    for generation in generations {
        for listener in listen::one_per_address(generation.listeners.iter().map(AsRef::as_ref)) {
            info!(generation.log.logger(), "listening"; "address" => listener.name());
        }
    }
}

fn command_fields(plan: &PoolSpec<'_>) -> Fields {
    let command = plan.class.runs_command().then(|| plan.settings.command.join(" "));
    Fields::new().optional(command, |facts, command| facts.text("command", command))
}

/// Serves to the end, and cleans up.
fn serve(mut arbiter: Arbiter<'_>) -> Result<(), RuntimeError> {
    let outcome = arbiter.run();
    arbiter.clean_up();
    match outcome.map_err(RuntimeError::Os)? {
        RunOutcome::Stopped => {
            info!(arbiter.log(), "stopped"; "pid" => Pid::this().as_raw());
            Ok(())
        }
        RunOutcome::NeverReady => {
            let (log, reason) = arbiter.failure_reason();
            crit!(log, "giving up: no worker became ready"; "error" => &reason);
            Err(RuntimeError::NeverReady(reason))
        }
    }
}

/// What the master heeds.
const MASTER_SIGNALS: [Signal; 11] = [
    Signal::Hup,
    Signal::Int,
    Signal::Quit,
    Signal::Term,
    Signal::Chld,
    Signal::Usr1,
    Signal::Usr2,
    Signal::Ttin,
    Signal::Ttou,
    Signal::Winch,
    Signal::Cont,
];

fn log_config(settings: &Settings) -> log::LogConfig {
    let level = match settings.log_level {
        LogLevel::Trace => Level::Trace,
        LogLevel::Debug => Level::Debug,
        LogLevel::Info => Level::Info,
        LogLevel::Warning => Level::Warning,
        LogLevel::Error => Level::Error,
        LogLevel::Critical => Level::Critical,
    };
    let (target, flight_recorder_file) =
        (settings.log_file.clone(), settings.flight_recorder_file.clone());
    log::LogConfig {
        target,
        level,
        format: settings.log_format,
        flight_recorder: flight_recorder_file,
    }
}
