//! What settings can choose from, and whether they suit what they have chosen.

use crate::app::{App, ConfigError};
use crate::apps::NoApp;
use crate::listen::Access;
use crate::os::credentials::{self, Credentials};
use crate::settings::{Settings, Source};
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
    /// The first class whose name was taken.
    duplicate_class: Option<DuplicateClass>,
}

/// What the settings have chosen.
pub(super) struct Selection<'a> {
    pub(super) app: &'a dyn App,
    pub(super) class: &'a dyn WorkerClass,
    pub(super) identity: Credentials,
    pub(super) socket_access: Access,
}

impl Selection<'_> {
    /// The settings as they hold: the default address only for who listens.
    pub(super) fn finalize_settings(&self, settings: &mut Settings) {
        if not_listening_reason(self.app, self.class).is_some() {
            settings.bind.clear();
        }
    }
}

impl Catalog {
    /// The built-in classes, and no app.
    pub(super) fn new() -> Self {
        let mut registry = Registry::default();
        let duplicate_class = workers::install(&mut registry).err();
        Self { apps: Vec::new(), registry, duplicate_class }
    }

    pub(super) fn add_app(&mut self, app: impl App + 'static) {
        self.apps.push(Box::new(app));
    }

    /// Adds a class. That its name is taken comes to light when something is chosen.
    pub(super) fn add_class(&mut self, class: impl WorkerClass + 'static) {
        if let Err(duplicate) = self.registry.register(class) {
            self.duplicate_class.get_or_insert(duplicate);
        }
    }

    /// The name of the first app.
    pub(super) fn default_app(&self) -> Option<&str> {
        self.apps.first().map(|app| app.name())
    }

    /// The names of the classes, in alphabetical order.
    pub(super) fn class_names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.registry.names()
    }

    /// Finds what these settings name, and asks it whether they suit it.
    ///
    /// # Errors
    /// An unknown class, app, user or group; a refusal of the class or the app.
    pub(super) fn select(&self, settings: &Settings) -> Result<Selection<'_>, RuntimeError> {
        if let Some(duplicate) = &self.duplicate_class {
            return Err(RuntimeError::DuplicateClass(duplicate.clone()));
        }
        let setting_error = |key: &'static str| {
            let label = source_label(settings, key);
            move |reason: String| RuntimeError::Setting { source_label: label, reason }
        };
        let class = self.registry.get(&settings.worker_class);
        let class = class.map_err(|error| setting_error("worker_class")(error.to_string()))?;
        check_command(class, settings).map_err(|(key, reason)| setting_error(key)(reason))?;
        let app = if class.runs_command() {
            &NoApp
        } else {
            self.find_app(&settings.app).map_err(setting_error("app"))?
        };
        app.check(&settings.app_options).map_err(|error| app_error(settings, &error))?;
        self.check_runs_jobs(app, class).map_err(|(key, reason)| setting_error(key)(reason))?;
        check_bind(app, class, settings).map_err(setting_error("bind"))?;
        class.check(settings).map_err(|error| setting_error("worker_class")(error.to_string()))?;
        let (user, group) = (settings.user.as_deref(), settings.group.as_deref());
        let key = if user.is_some() { "user" } else { "group" };
        Credentials::lookup(None, group).map_err(setting_error("group"))?;
        let identity = Credentials::lookup(user, group).map_err(setting_error(key))?;
        if !identity.can_apply() {
            let reason = "user/group require the master to run as root";
            return Err(setting_error(key)(reason.to_owned()));
        }
        let user = settings.socket_user.as_deref().map(credentials::lookup_uid).transpose();
        let group = settings.socket_group.as_deref().map(credentials::lookup_gid).transpose();
        let socket_access = Access {
            mode: settings.socket_mode,
            user: user.map_err(setting_error("socket_user"))?,
            group: group.map_err(setting_error("socket_group"))?,
        };
        Ok(Selection { app, class, identity, socket_access })
    }

    /// Whether the class can do what the app is there for. Else which key is wrong, and why.
    fn check_runs_jobs(
        &self,
        app: &dyn App,
        class: &dyn WorkerClass,
    ) -> Result<(), (&'static str, String)> {
        if app.is_job() && !class.runs_jobs() {
            let job_classes: Vec<_> = self.registry.names_of(|class| class.runs_jobs()).collect();
            let (class, app, able) = (class.name(), app.name(), job_classes.join(", "));
            let reason =
                format!("{class:?} does not run jobs, and app {app:?} is a job; available: ");
            return Err(("worker_class", reason + &able));
        }
        Ok(())
    }

    fn find_app(&self, name: &str) -> Result<&dyn App, String> {
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

/// Whether a command, an app and addresses are given where they are of use; otherwise the key, and
/// why not.
fn check_command(
    class: &dyn WorkerClass,
    settings: &Settings,
) -> Result<(), (&'static str, String)> {
    let name = class.name();
    if class.runs_command() {
        if !matches!(settings.source("app"), Source::Default) {
            let reason = format!(
                "worker class {name} runs a COMMAND and serves no app: remove {:?}",
                settings.app
            );
            return Err(("app", reason));
        }
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

/// Whether there is an address for who needs one, and none that somebody chose for who does not.
fn check_bind(app: &dyn App, class: &dyn WorkerClass, settings: &Settings) -> Result<(), String> {
    let (is_empty, name) = (settings.bind.is_empty(), class.name());
    match not_listening_reason(app, class) {
        Some(subject) if !is_empty && *settings.source("bind") != Source::Default => {
            Err(format!("{subject} does not listen: remove bind"))
        }
        None if is_empty && !class.runs_command() => {
            Err(format!("is empty, but worker class {name} serves clients: give an address"))
        }
        Some(_) | None => Ok(()),
    }
}

/// Who sees to it that nothing is bound, if anybody does: an app that is a job, or a class that takes
/// no clients.
fn not_listening_reason(app: &dyn App, class: &dyn WorkerClass) -> Option<String> {
    if app.is_job() {
        return Some(format!("app {:?} is a job and", app.name()));
    }
    (!class.listens()).then(|| format!("class {:?}", class.name()))
}

/// What an app refuses, with the place of the option that is to blame.
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

/// Where a person set this key, in words that a message can begin with.
pub(super) fn source_label(settings: &Settings, key: &str) -> String {
    match settings.source(key) {
        Source::Default => key.to_owned(),
        source @ Source::File { .. } => format!("{source}: {key}"),
        source @ (Source::Env { .. } | Source::Flag { .. }) => source.to_string(),
    }
}
