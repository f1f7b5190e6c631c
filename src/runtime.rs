//! The builder: makes a running master from apps, classes and settings.

mod catalog;
mod error;
mod instance_lock;
mod preflight;
mod startup_log;

use std::rc::Rc;

use slog::{Level, crit, info, warn};

use crate::app::App;
use crate::arbiter::{
    self, Arbiter, ArbiterParts, ConfigLoader, ControlServer, ControlService, ExecArgs, OomMonitor,
    PoolGeneration, PoolSpec, ResolvedConfig, RunOutcome, UpgradePeer, WorkerCgroups,
    WorkerEnvironment, upgrade_channel,
};
use crate::hooks::{Hooks, NoHooks};
use crate::listen::activation::{InheritedFds, fd_name};
use crate::log;
use crate::os::daemon::StartupNotifier;
use crate::os::fd_table::OpenFds;
use crate::os::lookups::Lookups;
use crate::os::process::Pid;
use crate::os::signal::{self, SignalPipe};
use crate::os::title::ProcTitle;
use crate::os::{passed_fds, proc_dir};
use crate::pidfile::PidFile;
use crate::scaling::{LoadPolicy, PolicyFactory, ScalingPolicy};
use crate::settings::{Configuration, LogLevel, LogTarget, Settings, check_address_conflicts};
use crate::systemd::ServiceManager;
use crate::worker::WorkerClass;
use catalog::{Catalog, source_label};
pub use error::RuntimeError;
use startup_log::log_startup;

/// What the master misses where /proc shows other processes than its workers.
const OTHER_PROC_WARNING: &str = "/proc shows the processes of another PID namespace: the causes of \
    hangs are unknown, and max_memory is not enforced; mount the /proc of this namespace (unshare \
    --mount-proc)";

/// What to do if nothing chooses the demo and it is served all the same.
const DEMO_WARNING: &str = "nothing names an app, and any client can crash or hang a worker of this \
    one: name the app (argument APP, key app, or OSTLER_APP), or give the program a default app and \
    class";

/// Builds a program: registers the apps, worker classes and hooks that settings can select.
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
    scaling_policy: Box<PolicyFactory>,
    after_help: &'static str,
}

impl Default for Runtime {
    fn default() -> Self {
        Self::new()
    }
}

impl Runtime {
    /// Creates a runtime with the built-in classes and no app.
    pub fn new() -> Self {
        let scaling_policy = Box::new(|| Box::new(LoadPolicy::new()) as Box<dyn ScalingPolicy>);
        Self { catalog: Catalog::new(), hooks: Box::new(NoHooks), scaling_policy, after_help: "" }
    }

    /// Adds an app. The first is the default app, unless [`default_app`](Self::default_app) names
    /// another.
    #[must_use]
    pub fn app(mut self, app: impl App + 'static) -> Self {
        self.catalog.add_app(app);
        self
    }

    /// Adds a worker class. A duplicate name is reported when the program runs.
    #[must_use]
    pub fn class(mut self, class: impl WorkerClass + 'static) -> Self {
        self.catalog.add_class(class);
        self
    }

    /// Sets the app that [`main`](Self::main) serves if no flag, variable or file names one. An unknown
    /// name is reported when the program runs.
    #[must_use]
    pub fn default_app(mut self, name: impl Into<String>) -> Self {
        self.catalog.set_default_app(name.into());
        self
    }

    /// Sets the worker class that [`main`](Self::main) uses if no flag, variable or file names one. The
    /// default is `sync`. An unknown name is reported when the program runs.
    #[must_use]
    pub fn default_class(mut self, name: impl Into<String>) -> Self {
        self.catalog.set_default_class(name.into());
        self
    }

    /// Sets the hooks, which run at events of the master and of workers.
    #[must_use]
    pub fn hooks(mut self, hooks: impl Hooks + 'static) -> Self {
        self.hooks = Box::new(hooks);
        self
    }

    /// Sets how pools whose number of workers is a range scale with load. Each pool has a policy of its
    /// own, which `make` makes. The default is [`LoadPolicy`].
    #[must_use]
    pub fn scaling_policy(mut self, make: impl Fn() -> Box<dyn ScalingPolicy> + 'static) -> Self {
        self.scaling_policy = Box::new(make);
        self
    }

    /// Sets a text for the end of `--help`. Each line of the text is wrapped to the width of the terminal.
    #[must_use]
    pub fn after_help(mut self, text: &'static str) -> Self {
        self.after_help = text;
        self
    }

    /// Returns the text for the end of `--help`.
    pub(crate) fn after_help_text(&self) -> &'static str {
        self.after_help
    }

    /// Returns the name of the default app; `None` if there is no app.
    pub(crate) fn default_app_name(&self) -> Option<&str> {
        self.catalog.default_app()
    }

    /// Returns the name of the default class, if one is set.
    pub(crate) fn default_class_name(&self) -> Option<&str> {
        self.catalog.default_class()
    }

    /// Returns the names of the classes, in alphabetical order.
    pub fn class_names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.catalog.class_names()
    }

    /// Finds everything that the settings name, and lets the apps and classes check the settings.
    /// Checks each path and each address. Changes nothing.
    ///
    /// # Errors
    /// An unknown class, app, user or group; an error of a class or an app; a path that cannot be
    /// written; an address that is not of this machine.
    pub fn check(&self, configuration: &Configuration) -> Result<(), RuntimeError> {
        self.check_start(configuration).map(|_| ())
    }

    /// Does what [`check`](Self::check) does, and returns warnings.
    ///
    /// # Errors
    /// Those of [`check`](Self::check).
    pub(crate) fn check_start(
        &self,
        configuration: &Configuration,
    ) -> Result<Vec<String>, RuntimeError> {
        control_users(&configuration.master, &Lookups::Live)?;
        preflight::check(&self.resolve(configuration.clone(), &Lookups::Live)?)
    }

    /// Checks the configuration and returns it as the master will use it.
    pub(crate) fn finalize(
        &self,
        mut configuration: Configuration,
    ) -> Result<Configuration, RuntimeError> {
        let specs = self.resolve(configuration.clone(), &Lookups::Live)?.pool_specs;
        for (pool, spec) in configuration.pools.iter_mut().zip(specs) {
            pool.settings = spec.settings;
        }
        if let ([pool], false) = (&configuration.pools[..], configuration.has_named_pools) {
            configuration.master = pool.settings.clone();
        } else if configuration.pools.iter().any(|pool| pool.settings.app.is_empty()) {
            // A pool without an app must not inherit one. The others have their own.
            configuration.master.app.clear();
        }
        Ok(configuration)
    }

    /// Runs the master until a signal stops it. A reload uses the same settings again.
    ///
    /// Workers keep the descriptors that this process has opened before, if they have `FD_CLOEXEC`, as
    /// the standard library sets it. A descriptor without it counts as inherited by mistake: workers
    /// close it.
    ///
    /// # Errors
    /// The master cannot start; it then removes everything that it has created. Or no worker became
    /// ready.
    pub fn run(&self, settings: impl Into<Configuration>) -> Result<(), RuntimeError> {
        let configuration = settings.into();
        let reload_config = |_: &Lookups| Ok(configuration.clone());
        self.run_as(configuration.clone(), StartupContext::now(), reload_config)
    }

    /// Runs the master until a signal stops it, with a function that loads the settings for a reload.
    pub(crate) fn run_as(
        &self,
        configuration: Configuration,
        context: StartupContext,
        reload_config: impl Fn(&Lookups) -> Result<Configuration, String>,
    ) -> Result<(), RuntimeError> {
        let lookups = Lookups::Live;
        let users = control_users(&configuration.master, &lookups)?;
        let control_service = ControlService::new(&configuration.master, users);
        let resolved = self.resolve(configuration, &lookups)?;
        // From here on, signals wait until the loop handles them, so everything created below is also
        // cleaned up.
        let signals = SignalPipe::open().map_err(RuntimeError::Os)?;
        signal::catch_in_master();
        let old_master = upgrade_channel::UpgradeChannel::take_from_env();
        let InheritedFds { listeners, ended, mut warnings } =
            InheritedFds::take_from_env().map_err(RuntimeError::Listen)?;
        preflight::check_led_sockets(&resolved, &listeners)?;
        let is_sole_master = old_master.is_none();
        let upgrade_peer = match old_master {
            Some((pid, channel)) => UpgradePeer::OldMaster { pid, channel },
            None => UpgradePeer::None,
        };
        let report_to_old_master = |error: RuntimeError| {
            if let UpgradePeer::OldMaster { channel, .. } = &upgrade_peer {
                channel.send_failure(&error.to_string());
            }
            error
        };
        let pidfiles = create_pidfiles(&resolved.master, !is_sole_master, &mut warnings)
            .map_err(report_to_old_master)?;
        let control = ControlServer::open(&control_service, is_sole_master);
        let prepared = control.map_err(RuntimeError::Listen).and_then(|control| {
            match arbiter::prepare_generations(resolved, &listeners, &[], is_sole_master, &lookups)
            {
                Ok((context, generations)) => Ok((control, context, generations)),
                Err(error) => {
                    control.iter().for_each(ControlServer::remove_paths);
                    Err(error.into())
                }
            }
        });
        let (control, master_context, generations) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                pidfiles.into_iter().for_each(PidFile::remove);
                return Err(report_to_old_master(error));
            }
        };
        let (service_manager, warning) = ServiceManager::from_env();
        warnings.extend(warning);
        if proc_dir::is_of_other_namespace() {
            warnings.push(OTHER_PROC_WARNING.to_owned());
        }
        if is_sole_master {
            let unused = listeners.iter().filter(|it| !generations.iter().any(|its| its.has(it)));
            let names = ended.into_iter().chain(unused.map(|it| fd_name(it)));
            names.for_each(|name| service_manager.remove_stored_fd(&name));
        }
        // Closes inherited listeners that no pool uses: their queues would never be served.
        drop(listeners);
        log_startup(&master_context, &generations, &warnings);
        for PoolGeneration { spec, log, .. } in &generations {
            if self.catalog.serves_demo_by_default(spec) {
                warn!(log.logger(), "serving the built-in demo app"; "error" => DEMO_WARNING);
            }
        }
        if let Some(control) = &control {
            control.log_addresses(master_context.log.logger());
        }
        let StartupContext { program_fds, title, exec_args, startup_notifier } = context;
        program_fds.exclude(upgrade_peer.channel_fd());
        let config_loader: ConfigLoader<'_> = Box::new(move |lookups: &Lookups| {
            let configuration = reload_config(lookups)?;
            self.resolve(configuration, lookups).map_err(|error| error.to_string())
        });
        let (hooks, oom) = (self.hooks.as_ref(), OomMonitor::find());
        let cgroups = WorkerCgroups::find(master_context.log.logger());
        let parts = ArbiterParts {
            signals,
            context: master_context,
            environment: WorkerEnvironment {
                title,
                hooks,
                oom,
                cgroups,
                program_fds,
                scaling_policy: self.scaling_policy.as_ref(),
                term_end: None,
            },
            config_loader,
            exec_args,
            pidfiles,
            service_manager,
            upgrade_peer,
            startup_notifier,
            control,
        };
        run_arbiter(Arbiter::new(generations, parts).map_err(RuntimeError::Os)?)
    }

    /// Finds everything that a configuration names.
    fn resolve(
        &self,
        configuration: Configuration,
        lookups: &Lookups,
    ) -> Result<ResolvedConfig<'_>, RuntimeError> {
        let Configuration { master, mut pools, has_named_pools } = configuration;
        let pool_specs = pools.iter_mut().map(|pool| self.catalog.select(pool, lookups));
        let pool_specs = pool_specs.collect::<Result<Vec<_>, _>>()?;
        check_address_conflicts(pools.iter()).map_err(RuntimeError::PoolConflict)?;
        check_log_owner(&master, &pool_specs)?;
        check_access_log_owner(&pool_specs)?;
        let log = log_config(&master);
        Ok(ResolvedConfig { master, has_named_pools, log, pool_specs })
    }
}

/// How a program was started.
pub(crate) struct StartupContext {
    /// The descriptors that it had opened before: workers keep them.
    pub(crate) program_fds: OpenFds,
    /// The memory of the process title that `ps` shows.
    pub(crate) title: Option<ProcTitle>,
    /// The arguments for starting the program again.
    pub(crate) exec_args: Option<ExecArgs>,
    /// Tells the launching process of a daemon when the workers are ready.
    pub(crate) startup_notifier: Option<Rc<StartupNotifier>>,
}

impl StartupContext {
    /// Returns the context of a program that has no command line of ours. Call it before the master
    /// opens anything.
    fn now() -> Self {
        let program_fds = OpenFds::snapshot();
        Self { program_fds, title: None, exec_args: None, startup_notifier: None }
    }
}

/// Creates the pid file, and the one that makes the master the only one of its name.
fn create_pidfiles(
    settings: &Settings,
    is_upgrade: bool,
    warnings: &mut Vec<String>,
) -> Result<Vec<PidFile>, RuntimeError> {
    let create = if is_upgrade { PidFile::create_for_upgrade } else { PidFile::create };
    let lock_path = instance_lock::path(settings, warnings)?;
    let mut created: Vec<PidFile> = Vec::new();
    let lock_path = lock_path.filter(|path| settings.pidfile.as_ref() != Some(path));
    for path in settings.pidfile.iter().chain(&lock_path) {
        match create(path) {
            Ok(pidfile) => created.push(pidfile),
            Err(error) => {
                created.into_iter().for_each(PidFile::remove);
                return Err(RuntimeError::PidFile(error));
            }
        }
    }
    Ok(created)
}

/// Looks up the users of the control interface.
fn control_users(master: &Settings, lookups: &Lookups) -> Result<Vec<u32>, RuntimeError> {
    let uid = |user: &String| {
        lookups.uid(user).map_err(|reason| RuntimeError::Setting {
            source_label: source_label(master, "control_users"),
            reason,
        })
    };
    master.control_users.iter().map(uid).collect()
}

/// Rejects pools with different users if there is a log file: workers reopen it, and it has one owner.
fn check_log_owner(master: &Settings, specs: &[PoolSpec<'_>]) -> Result<(), RuntimeError> {
    let owner = |spec: &PoolSpec<'_>| (spec.credentials.user(), spec.credentials.group());
    let [first, others @ ..] = specs else { return Ok(()) };
    match others.iter().find(|spec| owner(spec) != owner(first)) {
        Some(other) if master.log_file != LogTarget::Stderr => Err(RuntimeError::Setting {
            source_label: source_label(master, "log_file"),
            reason: format!(
                "workers of pools {:?} and {:?} run as different users, and only one of them could \
                 reopen log_file: use the same user and group, or log to -",
                first.name, other.name
            ),
        }),
        Some(_) | None => Ok(()),
    }
}

/// Rejects pools with different users that share an access log file.
fn check_access_log_owner(specs: &[PoolSpec<'_>]) -> Result<(), RuntimeError> {
    let owner = |spec: &PoolSpec<'_>| (spec.credentials.user(), spec.credentials.group());
    for (at, spec) in specs.iter().enumerate() {
        let file = spec.settings.access_log.as_ref().filter(|log| **log != LogTarget::Stdout);
        let shares_file =
            |other: &&PoolSpec<'_>| file.is_some() && other.settings.access_log.as_ref() == file;
        let mut others = specs[..at].iter().filter(shares_file);
        if let Some(other) = others.find(|other| owner(other) != owner(spec)) {
            return Err(RuntimeError::Setting {
                source_label: source_label(&spec.settings, "access_log"),
                reason: format!(
                    "workers of pools {:?} and {:?} run as different users, and only one of them \
                     could reopen the file: give each pool its own",
                    other.name, spec.name
                ),
            });
        }
    }
    Ok(())
}

/// Runs the master to its end, and cleans up.
fn run_arbiter(arbiter: Arbiter<'_>) -> Result<(), RuntimeError> {
    let (_keeping, mut arbiter) = (passed_fds::begin_to_keep(), arbiter); // the second is dropped first
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

fn log_config(settings: &Settings) -> log::LogConfig {
    let level = match settings.log_level {
        LogLevel::Trace => Level::Trace,
        LogLevel::Debug => Level::Debug,
        LogLevel::Info => Level::Info,
        LogLevel::Warning => Level::Warning,
        LogLevel::Error => Level::Error,
        LogLevel::Critical => Level::Critical,
    };
    log::LogConfig {
        target: settings.log_file.clone(),
        level,
        format: settings.log_format,
        flight_recorder: settings.flight_recorder_file.clone(),
    }
}
