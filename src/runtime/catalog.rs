//! The apps and worker classes of a program. Checks settings with the app and the class they select.

use std::any::TypeId;
use std::fmt;
use std::path::PathBuf;

use crate::address::Address;
use crate::app::{App, ConfigError};
use crate::apps::{Demo, NoApp};
use crate::arbiter::PoolSpec;
use crate::heartbeat;
use crate::listen::Access;
use crate::os::credentials::Credentials;
use crate::os::lookups::Lookups;
use crate::settings::{Pool, Settings, Source};
use crate::worker::{self, DuplicateClass, Registry, WorkerClass};
use crate::workers;

use super::error::RuntimeError;

/// The built-in apps that need a Cargo feature: the app, the feature, and whether that is on.
const FEATURE_APPS: [(&str, &str, bool); 2] =
    [("rpc", "rpc", cfg!(feature = "rpc")), ("tick", "jobs", cfg!(feature = "jobs"))];

/// The apps and the worker classes of a program.
pub(super) struct Catalog {
    apps: Vec<Box<dyn App>>,
    registry: Registry,
    /// The first class whose name was already registered.
    duplicate_class: Option<DuplicateClass>,
    /// The name of the default app, if the program chooses it.
    default_app: Option<String>,
    /// The name of the default class, if the program chooses it.
    default_class: Option<String>,
    /// Whether the first app is the built-in [`Demo`].
    demo_is_first: bool,
}

impl Catalog {
    /// Creates a catalog with the built-in classes and no app.
    pub(super) fn new() -> Self {
        let mut registry = Registry::default();
        let duplicate_class = workers::install(&mut registry).err();
        Self {
            apps: Vec::new(),
            registry,
            duplicate_class,
            default_app: None,
            default_class: None,
            demo_is_first: false,
        }
    }

    pub(super) fn add_app<A: App + 'static>(&mut self, app: A) {
        self.demo_is_first |= self.apps.is_empty() && TypeId::of::<A>() == TypeId::of::<Demo>();
        self.apps.push(Box::new(app));
    }

    pub(super) fn set_default_app(&mut self, name: String) {
        self.default_app = Some(name);
    }

    pub(super) fn set_default_class(&mut self, name: String) {
        self.default_class = Some(name);
    }

    /// Adds a class. A duplicate name is reported by [`select`](Self::select).
    pub(super) fn add_class(&mut self, class: impl WorkerClass + 'static) {
        if let Err(duplicate) = self.registry.register(class) {
            self.duplicate_class.get_or_insert(duplicate);
        }
    }

    /// Returns the name of the app that the program chooses, or of the first.
    pub(super) fn default_app(&self) -> Option<&str> {
        self.default_app.as_deref().or_else(|| self.apps.first().map(|app| app.name()))
    }

    /// Returns the name of the class that the program chooses, or the only one of the default app.
    pub(super) fn default_class(&self) -> Option<&str> {
        self.default_class.as_deref().or_else(|| {
            let default = self.default_app()?;
            self.apps.iter().find(|app| app.name() == default)?.worker_class()
        })
    }

    /// Returns whether a pool serves the built-in demo although neither the program nor a source of
    /// settings chooses it.
    pub(super) fn serves_demo_by_default(&self, spec: &PoolSpec<'_>) -> bool {
        self.demo_is_first
            && self.default_app.is_none()
            && *spec.settings.source("app") == Source::Default
            && self.apps.first().is_some_and(|demo| demo.name() == spec.app.name())
    }

    /// Returns the names of the classes, in alphabetical order.
    pub(super) fn class_names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.registry.names()
    }

    /// Finds the app, class, user and groups that the settings of a pool name, and lets the app and the
    /// class check the settings. Removes the default address if the pool does not listen.
    ///
    /// # Errors
    /// An unknown class, app, user or group; an error of the class or the app.
    pub(super) fn select(
        &self,
        pool: &mut Pool,
        lookups: &Lookups,
    ) -> Result<PoolSpec<'_>, RuntimeError> {
        let settings = &mut pool.settings;
        if let Some(duplicate) = &self.duplicate_class {
            return Err(RuntimeError::DuplicateClass(duplicate.clone()));
        }
        let class = self.registry.get(&settings.worker_class);
        let class = class.map_err(|error| setting_error(settings, "worker_class", &error))?;
        check_command(class, settings)
            .map_err(|(key, reason)| setting_error(settings, key, &reason))?;
        let app = if needs_app(class) {
            self.find_app(&settings.app).map_err(|error| setting_error(settings, "app", &error))?
        } else {
            &NoApp
        };
        check_worker_class(app, class)
            .map_err(|reason| setting_error(settings, "worker_class", &reason))?;
        app.check(&settings.app_options).map_err(|error| app_error(settings, &error))?;
        self.check_runs_jobs(app, class)
            .map_err(|reason| setting_error(settings, "worker_class", &reason))?;
        check_bind(app, class, settings)
            .map_err(|reason| setting_error(settings, "bind", &reason))?;
        check_workers(app, class, settings, lookups)
            .map_err(|reason| setting_error(settings, "workers", &reason))?;
        class.check(settings).map_err(|error| setting_error(settings, "worker_class", &error))?;
        let credentials = find_credentials(settings, lookups)?;
        class
            .check_credentials(&credentials)
            .map_err(|error| setting_error(settings, "worker_class", &error))?;
        let socket_access = find_socket_access(settings, lookups)?;
        if not_listening_reason(app, class).is_some() {
            settings.bind.clear();
        }
        if !needs_app(class) {
            settings.app.clear();
        }
        let heartbeat_dir = find_heartbeat_dir(settings, class, &credentials)?;
        if let Some(dir) = heartbeat_dir.as_deref().filter(|_| class.runs_command()) {
            worker::check_notify_path(dir)
                .map_err(|error| setting_error(settings, "worker_tmp_dir", &error))?;
        }
        Ok(PoolSpec {
            name: pool.name.clone(),
            settings: settings.clone(),
            app,
            class,
            credentials,
            socket_access,
            heartbeat_dir,
            is_led: settings.led && settings.has_leader(),
        })
    }

    /// Checks that the class runs jobs if the app is one.
    fn check_runs_jobs(&self, app: &dyn App, class: &dyn WorkerClass) -> Result<(), String> {
        if app.is_job() && !class.runs_jobs() {
            let job_classes: Vec<_> = self.registry.names_of(|class| class.runs_jobs()).collect();
            return Err(format!(
                "{:?} does not run jobs, and app {:?} is a job; available: {}",
                class.name(),
                app.name(),
                job_classes.join(", ")
            ));
        }
        Ok(())
    }

    fn find_app(&self, name: &str) -> Result<&dyn App, String> {
        if self.apps.is_empty() {
            return Err("this program has no app: choose a worker class that needs none".into());
        }
        let found = self.apps.iter().find(|app| app.name() == name);
        found.map(AsRef::as_ref).ok_or_else(|| {
            let known: Vec<_> = self.apps.iter().map(|app| app.name()).collect();
            let known = known.join(", ");
            match FEATURE_APPS.iter().find(|(app, _, enabled)| *app == name && !enabled) {
                Some((_, feature, _)) => {
                    format!("app {name:?} needs the Cargo feature {feature:?}; available: {known}")
                }
                None => format!("unknown app {name:?}; available: {known}"),
            }
        })
    }
}

/// Checks that the class can serve the app.
fn check_worker_class(app: &dyn App, class: &dyn WorkerClass) -> Result<(), String> {
    let (app_name, class_name) = (app.name(), class.name());
    match app.worker_class() {
        Some(only) if only != class_name => {
            Err(format!("app {app_name:?} runs under worker class {only} only, not {class_name}"))
        }
        None if class.serves_own_apps_only() && needs_app(class) => Err(format!(
            "worker class {class_name} serves only apps that are made for it, and app {app_name:?} \
             is not"
        )),
        Some(_) | None => Ok(()),
    }
}

/// Finds the user and group of the workers, and checks that the master can assume them.
fn find_credentials(settings: &Settings, lookups: &Lookups) -> Result<Credentials, RuntimeError> {
    let (user, group) = (settings.user.as_deref(), settings.group.as_deref());
    let key = if user.is_some() { "user" } else { "group" };
    lookups.credentials(None, group).map_err(|error| setting_error(settings, "group", &error))?;
    let credentials =
        lookups.credentials(user, group).map_err(|error| setting_error(settings, key, &error))?;
    if !credentials.can_apply() {
        let reason = "user/group require the master to run as root";
        return Err(setting_error(settings, key, &reason));
    }
    Ok(credentials)
}

/// Finds the directory of the heartbeat files, and checks that they can be created there. Without one they
/// are in memory; the notification sockets of programs need one.
fn find_heartbeat_dir(
    settings: &Settings,
    class: &dyn WorkerClass,
    credentials: &Credentials,
) -> Result<Option<PathBuf>, RuntimeError> {
    let found = settings.worker_tmp_dir.clone().or_else(heartbeat::default_dir);
    let Some(dir) = found.or_else(|| class.runs_command().then(std::env::temp_dir)) else {
        return Ok(None);
    };
    heartbeat::check_dir(&dir, credentials.user(), credentials.group()).map_err(|error| {
        let reason = format!("cannot create heartbeat files in {dir:?}: {error}");
        setting_error(settings, "worker_tmp_dir", &reason)
    })?;
    Ok(Some(dir))
}

/// Finds the owner and group of the paths of unix sockets.
fn find_socket_access(settings: &Settings, lookups: &Lookups) -> Result<Access, RuntimeError> {
    let user = settings.socket_user.as_deref().map(|user| lookups.uid(user)).transpose();
    let group = settings.socket_group.as_deref().map(|group| lookups.gid(group)).transpose();
    Ok(Access {
        mode: settings.socket_mode,
        user: user.map_err(|error| setting_error(settings, "socket_user", &error))?,
        group: group.map_err(|error| setting_error(settings, "socket_group", &error))?,
    })
}

/// Returns whether workers of the class boot an app.
fn needs_app(class: &dyn WorkerClass) -> bool {
    class.needs_app() && !class.runs_command()
}

/// Checks that the pool has a command or an app, as the class requires. On error, returns the key and
/// the reason.
fn check_command(
    class: &dyn WorkerClass,
    settings: &Settings,
) -> Result<(), (&'static str, String)> {
    let name = class.name();
    if !needs_app(class) && !matches!(settings.source("app"), Source::Default) {
        let subject = if class.runs_command() { "runs a COMMAND and serves" } else { "serves" };
        let reason = format!("worker class {name} {subject} no app: remove {:?}", settings.app);
        return Err(("app", reason));
    }
    if class.runs_command() {
        if settings.command.is_empty() {
            let reason = format!(
                "worker class {name} requires a COMMAND: give it with its arguments after --"
            );
            return Err(("command", reason));
        }
        return worker::program::check_command(settings)
            .map_err(|error| ("command", error.to_string()));
    }
    if let Some(word) = settings.command.first() {
        let reason = format!(
            "worker class {name} does not run a command: remove {word:?}, or use worker class exec"
        );
        return Err(("command", reason));
    }
    Ok(())
}

/// Checks that there is an address if the pool listens, and no explicit one if it does not.
fn check_bind(app: &dyn App, class: &dyn WorkerClass, settings: &Settings) -> Result<(), String> {
    let (is_empty, name) = (settings.bind.is_empty(), class.name());
    match not_listening_reason(app, class) {
        Some(subject) if !is_empty && !settings.source("bind").is_default() => {
            Err(format!("{subject} does not listen: remove bind"))
        }
        None if is_empty && !class.runs_command() => {
            Err(format!("is empty, but worker class {name} serves clients: give an address"))
        }
        Some(_) | None => Ok(()),
    }
}

/// Checks that the load of the pool is known if its number of workers is a range.
fn check_workers(
    app: &dyn App,
    class: &dyn WorkerClass,
    settings: &Settings,
    lookups: &Lookups,
) -> Result<(), String> {
    if settings.workers.range().is_none() {
        return Ok(());
    }
    let fixed = "give one number";
    if app.is_job() {
        let name = app.name();
        return Err(format!(
            "app {name:?} is a job: each worker runs it on its own schedule, so that no load calls for \
             more of them; {fixed} instead of a range"
        ));
    }
    let has_queue = |address: &Address| match address {
        Address::Unix(_) | Address::Abstract(_) => lookups.has_unix_queues(),
        _ => true,
    };
    if class.runs_command() && !settings.bind.iter().any(has_queue) {
        return Err(format!(
            "the load of a program is known by its accept queues alone, and the kernel tells none; {fixed} \
             instead of a range"
        ));
    }
    Ok(())
}

/// Returns the reason why the pool does not listen: its app is a job, or its class takes no clients.
/// Returns `None` if it listens.
fn not_listening_reason(app: &dyn App, class: &dyn WorkerClass) -> Option<String> {
    if app.is_job() {
        return Some(format!("app {:?} is a job and", app.name()));
    }
    (!class.listens()).then(|| format!("class {:?}", class.name()))
}

/// Converts an error of an app, and adds the source of the option.
fn app_error(settings: &Settings, error: &ConfigError) -> RuntimeError {
    let label = match error.option() {
        None => source_label(settings, "app"),
        Some(option) => match settings.option_source(option) {
            source @ Source::File { .. } => format!("{source}: app.{option}"),
            source => format!("{source}: {option}"),
        },
    };
    RuntimeError::Setting { source_label: label, reason: error.to_string() }
}

/// Creates an error with the source of a key.
fn setting_error(settings: &Settings, key: &str, reason: &dyn fmt::Display) -> RuntimeError {
    RuntimeError::Setting { source_label: source_label(settings, key), reason: reason.to_string() }
}

/// Returns the source of a key for the beginning of a message.
pub(super) fn source_label(settings: &Settings, key: &str) -> String {
    match settings.source(key) {
        Source::Default => key.to_owned(),
        source @ Source::File { .. } => format!("{source}: {key}"),
        source @ (Source::PlatformEnv { .. } | Source::Env { .. } | Source::Flag { .. }) => {
            source.to_string()
        }
    }
}
