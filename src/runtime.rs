//! The builder: apps, classes and settings become a running master.

use std::env;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;

use slog::{Level, crit, info, warn};

use crate::app::{App, Refusal};
use crate::apps::Nothing;
use crate::arbiter::{
    self, Arbiter, Blueprint, Company, CompanyError, Crew, House, Kin, Launch, Leaves, Means,
    MemoryWatch, Outcome, Plan, Planner,
};
use crate::heartbeat;
use crate::hooks::{Hooks, NoHooks};
use crate::listen::inherit::Inheritance;
use crate::listen::{self, Access, ListenError};
use crate::log::{self, Facts, LogError};
use crate::os::daemon::Verdict;
use crate::os::identity::{self, Identity};
use crate::os::process::Pid;
use crate::os::signal::{self, Signal, SignalPipe};
use crate::os::title::TitleArea;
use crate::pidfile::{PidFile, PidFileError};
use crate::settings::{
    Configuration, LogLevel, LogTarget, Pool, Settings, SettingsError, Source, check_addresses,
};
use crate::systemd::Manager;
use crate::worker::{self, DuplicateClass, Registry, WorkerClass};
use crate::workers;

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
    apps: Vec<Box<dyn App>>,
    registry: Registry,
    hooks: Box<dyn Hooks>,
    note: &'static str,
    fault: Option<DuplicateClass>,
}

impl Default for Runtime {
    fn default() -> Self {
        Self::new()
    }
}

impl Runtime {
    /// A runtime with the built-in classes and no app.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let fault = workers::install(&mut registry).err();
        Self { apps: Vec::new(), registry, hooks: Box::new(NoHooks), note: "", fault }
    }

    /// Adds an app. The first is the one that is served if nobody chooses.
    #[must_use]
    pub fn app(mut self, app: impl App + 'static) -> Self {
        self.apps.push(Box::new(app));
        self
    }

    /// Adds a worker class. A name that is taken is reported when the program runs.
    #[must_use]
    pub fn class(mut self, class: impl WorkerClass + 'static) -> Self {
        if let Err(duplicate) = self.registry.register(class) {
            self.fault.get_or_insert(duplicate);
        }
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
    pub fn note(mut self, text: &'static str) -> Self {
        self.note = text;
        self
    }

    /// What `--help` ends with.
    pub(crate) fn last_note(&self) -> &'static str {
        self.note
    }

    /// The name of the app that is served if nobody chooses.
    pub(crate) fn default_app(&self) -> Option<&str> {
        self.apps.first().map(|app| app.name())
    }

    /// The names of the classes, in alphabetical order.
    pub fn class_names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.registry.names()
    }

    /// Finds what the settings name, and asks it whether the settings suit it. Changes nothing.
    ///
    /// # Errors
    /// An unknown class, app, user or group; a refusal of the class or the app.
    pub fn check(&self, configuration: &Configuration) -> Result<(), RuntimeError> {
        self.plan(configuration.clone()).map(|_| ())
    }

    /// The same configuration as it will hold, once it has been checked.
    pub(crate) fn settled(
        &self,
        mut configuration: Configuration,
    ) -> Result<Configuration, RuntimeError> {
        let plans = self.plan(configuration.clone())?.plans;
        for (pool, plan) in configuration.pools.iter_mut().zip(plans) {
            pool.settings = plan.settings;
        }
        if let ([pool], false) = (&configuration.pools[..], configuration.is_divided) {
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
        let again = configuration.clone();
        self.run_as(configuration, Start::default(), move || Ok(again.clone()))
    }

    /// As [`run`](Self::run), with what is known of how the program was started, and with a way to
    /// read the settings anew.
    pub(crate) fn run_as(
        &self,
        configuration: Configuration,
        start: Start,
        reread: impl Fn() -> Result<Configuration, String>,
    ) -> Result<(), RuntimeError> {
        let blueprint = self.plan(configuration)?;
        // From here on a signal is kept until the loop takes it, so whatever is made below is also
        // cleaned up.
        let signals = SignalPipe::open().map_err(RuntimeError::Kernel)?;
        signal::catch(&MASTER_SIGNALS);
        signal::unblock_all();
        let Inheritance { listeners, predecessor, mut warnings } =
            Inheritance::take().map_err(RuntimeError::Listen)?;
        let is_second = predecessor.is_some();
        let kin = match predecessor {
            Some((pid, line)) => Kin::Predecessor { pid, line },
            None => Kin::Alone,
        };
        let alone = matches!(kin, Kin::Alone);
        let confessed = |error: RuntimeError| {
            if let Kin::Predecessor { line, .. } = &kin {
                line.say_failed(&error.to_string());
            }
            error
        };
        let pidfile = create_pidfile(&blueprint.master, is_second).map_err(confessed)?;
        let (house, companies) = match arbiter::found(blueprint, &listeners, &[], alone) {
            Ok(founded) => founded,
            Err(error) => {
                if let Some(pidfile) = pidfile {
                    pidfile.remove();
                }
                return Err(confessed(error.into()));
            }
        };
        // What is not wished for is not kept open: nobody would look at its queue.
        drop(listeners);
        let (manager, warning) = Manager::find();
        warnings.extend(warning);
        introduce(&house, &companies, &warnings);
        let Start { title, launch, verdict } = start;
        let planner: Planner<'_> =
            Box::new(move || self.plan(reread()?).map_err(|error| error.to_string()));
        let (memory, leaves) = (MemoryWatch::find(), Leaves::find(house.log.logger()));
        let crews =
            companies.into_iter().map(|company| Crew::new(company, title, &memory, &leaves));
        let crews = crews.collect::<Result<Vec<_>, _>>().map_err(RuntimeError::Kernel)?;
        let means = Means {
            signals,
            house,
            memory,
            leaves,
            planner,
            title,
            launch,
            pidfile,
            manager,
            kin,
            verdict,
            hooks: self.hooks.as_ref(),
        };
        serve(Arbiter::new(crews, means))
    }

    /// Finds everything that a configuration names.
    fn plan(&self, configuration: Configuration) -> Result<Blueprint<'_>, RuntimeError> {
        let Configuration { master, mut pools, is_divided } = configuration;
        let log = log_wish(&master);
        let mut choices = Vec::new();
        for pool in &mut pools {
            let choice = self.choose(&pool.settings)?;
            settle(&choice, &mut pool.settings);
            choices.push(choice);
        }
        check_addresses(pools.iter()).map_err(RuntimeError::Settings)?;
        let plans: Vec<_> =
            pools.into_iter().zip(choices).map(|(pool, choice)| plan_pool(pool, choice)).collect();
        check_log_owner(&master, &plans)?;
        Ok(Blueprint { master, is_divided, log, plans })
    }

    fn choose(&self, settings: &Settings) -> Result<Choice<'_>, RuntimeError> {
        if let Some(fault) = &self.fault {
            return Err(RuntimeError::Duplicate(fault.clone()));
        }
        let wrong = |key: &'static str| {
            let place = place(settings, key);
            move |reason: String| RuntimeError::Setting { place, reason }
        };
        let class = self.registry.get(&settings.worker_class);
        let class = class.map_err(|error| wrong("worker_class")(error.to_string()))?;
        check_command(class, settings).map_err(|(key, reason)| wrong(key)(reason))?;
        let app = if class.runs_command() {
            &Nothing
        } else {
            self.find_app(&settings.app).map_err(wrong("app"))?
        };
        app.check(&settings.app_options).map_err(|refusal| of_app(settings, &refusal))?;
        self.check_kind(app, class).map_err(|(key, reason)| wrong(key)(reason))?;
        check_bind(app, class, settings).map_err(wrong("bind"))?;
        class.check(settings).map_err(|refusal| wrong("worker_class")(refusal.to_string()))?;
        let (user, group) = (settings.user.as_deref(), settings.group.as_deref());
        let key = if user.is_some() { "user" } else { "group" };
        Identity::find(None, group).map_err(wrong("group"))?;
        let identity = Identity::find(user, group).map_err(wrong(key))?;
        if !identity.is_within_reach() {
            let reason = "only a master that runs as root can run workers as somebody else";
            return Err(wrong(key)(reason.to_owned()));
        }
        let user = settings.socket_user.as_deref().map(identity::user_number).transpose();
        let group = settings.socket_group.as_deref().map(identity::group_number).transpose();
        let socket_access = Access {
            mode: settings.socket_mode,
            user: user.map_err(wrong("socket_user"))?,
            group: group.map_err(wrong("socket_group"))?,
        };
        Ok(Choice { app, class, identity, socket_access })
    }

    /// Whether the class can do what the app is there for. Else which key is wrong, and why.
    fn check_kind(
        &self,
        app: &dyn App,
        class: &dyn WorkerClass,
    ) -> Result<(), (&'static str, String)> {
        if app.is_job() && !class.runs_jobs() {
            let able: Vec<_> = self.registry.names_of(|class| class.runs_jobs()).collect();
            let (class, app, able) = (class.name(), app.name(), able.join(", "));
            let why =
                format!("{class:?} runs no jobs, and app {app:?} is one; those that do are: ");
            return Err(("worker_class", why + &able));
        }
        Ok(())
    }

    fn find_app(&self, name: &str) -> Result<&dyn App, String> {
        let found = self.apps.iter().find(|app| app.name() == name);
        found.map(AsRef::as_ref).ok_or_else(|| {
            let known: Vec<_> = self.apps.iter().map(|app| app.name()).collect();
            format!("there is no app {name:?}; known are: {}", known.join(", "))
        })
    }
}

fn plan_pool<'a>(pool: Pool, choice: Choice<'a>) -> Plan<'a> {
    let Pool { name, settings, .. } = pool;
    let Choice { app, class, identity, socket_access } = choice;
    let folder = settings.worker_tmp_dir.clone();
    let heartbeat_folder = folder.unwrap_or_else(heartbeat::default_folder);
    Plan { pool: name, settings, app, class, identity, socket_access, heartbeat_folder }
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
            let why = format!(
                "class {name} runs a COMMAND and serves no app: leave out {:?}",
                settings.app
            );
            return Err(("app", why));
        }
        if settings.command.is_empty() {
            let why =
                format!("class {name} runs a COMMAND: give one, with its arguments, after --");
            return Err(("command", why));
        }
        return worker::program::find(settings).map_err(|refusal| ("command", refusal.to_string()));
    }
    if let Some(word) = settings.command.first() {
        let why = format!("class {name} runs no command: leave out {word:?}, or take class exec");
        return Err(("command", why));
    }
    Ok(())
}

/// Whether there is an address for who needs one, and none that somebody chose for who does not.
fn check_bind(app: &dyn App, class: &dyn WorkerClass, settings: &Settings) -> Result<(), String> {
    let (is_empty, name) = (settings.bind.is_empty(), class.name());
    match listens_nowhere(app, class) {
        Some(who) if !is_empty && *settings.source("bind") != Source::Default => {
            Err(format!("{who} listens nowhere: leave bind out"))
        }
        None if is_empty && !class.runs_command() => {
            Err(format!("is empty, but class {name} serves clients: give an address"))
        }
        Some(_) | None => Ok(()),
    }
}

/// Who sees to it that nothing is bound, if anybody does: an app that is a job, or a class that takes
/// no clients.
fn listens_nowhere(app: &dyn App, class: &dyn WorkerClass) -> Option<String> {
    if app.is_job() {
        return Some(format!("app {:?} is a job, which", app.name()));
    }
    (!class.listens()).then(|| format!("class {:?}", class.name()))
}

/// The settings as they hold: the default address only for who listens.
fn settle(choice: &Choice<'_>, settings: &mut Settings) {
    if listens_nowhere(choice.app, choice.class).is_some() {
        settings.bind.clear();
    }
}

/// What an app refuses, with the place of the option that is to blame.
fn of_app(settings: &Settings, refusal: &Refusal) -> RuntimeError {
    let place = match refusal.option() {
        None => place(settings, "app"),
        Some(option) => match settings.option_source(option) {
            source @ Source::File { .. } => format!("{source}: app.{option}"),
            source => format!("{source}: {option}"),
        },
    };
    RuntimeError::Setting { place, reason: refusal.to_string() }
}

/// Where a person set this key, in words that a message can begin with.
fn place(settings: &Settings, key: &str) -> String {
    match settings.source(key) {
        Source::Default => key.to_owned(),
        source @ Source::File { .. } => format!("{source}: {key}"),
        source @ (Source::Env { .. } | Source::Flag { .. }) => source.to_string(),
    }
}

/// How a program was started.
#[derive(Default)]
pub(crate) struct Start {
    /// Where the title goes that `ps` shows.
    pub(crate) title: Option<TitleArea>,
    /// How to start it again.
    pub(crate) launch: Option<Launch>,
    /// Whom to tell when the workers are ready, if this is a daemon.
    pub(crate) verdict: Option<Rc<Verdict>>,
}

fn create_pidfile(settings: &Settings, second: bool) -> Result<Option<PidFile>, RuntimeError> {
    let create = if second { PidFile::create_second } else { PidFile::create };
    let lone = settings.single_instance.then(|| {
        let folder = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).unwrap_or_else(|| {
            if identity::is_root() { PathBuf::from("/run") } else { env::temp_dir() }
        });
        folder.join(format!("ostler-{}.pid", settings.proc_name.replace('/', "_")))
    });
    let path = settings.pidfile.clone().or(lone);
    path.as_deref().map(create).transpose().map_err(RuntimeError::PidFile)
}

/// A log file is given to the workers, so that they can reopen it, and there is one for all pools.
fn check_log_owner(master: &Settings, plans: &[Plan<'_>]) -> Result<(), RuntimeError> {
    let owner = |plan: &Plan<'_>| (plan.identity.user(), plan.identity.group());
    let [first, others @ ..] = plans else { return Ok(()) };
    match others.iter().find(|plan| owner(plan) != owner(first)) {
        Some(other) if master.log_file != LogTarget::Stderr => {
            let reason = format!(
                "the workers of pools {:?} and {:?} run as different users, of which only one could \
                 reopen the file: give both the same, or log to -",
                first.pool, other.pool
            );
            Err(RuntimeError::Setting { place: place(master, "log_file"), reason })
        }
        Some(_) | None => Ok(()),
    }
}

/// The first records of the log.
fn introduce(house: &House, companies: &[Company<'_>], warnings: &[String]) {
    let log = house.log.logger();
    let (pid, version) = (Pid::this().as_raw(), env!("CARGO_PKG_VERSION"));
    match companies {
        [Company { plan, .. }] if !house.is_divided => {
            info!(log, "master started"; "pid" => pid, "version" => version,
                "app" => plan.app.name(), "class" => plan.class.name(),
                "workers" => plan.settings.workers.count(), command_of(plan));
        }
        several => {
            info!(log, "master started"; "pid" => pid, "version" => version,
                "pools" => several.len());
            for Company { plan, log, .. } in several {
                info!(log.logger(), "pool prepared"; "app" => plan.app.name(),
                    "class" => plan.class.name(), "workers" => plan.settings.workers.count(),
                    command_of(plan));
            }
        }
    }
    for warning in warnings {
        warn!(log, "ignored"; "error" => warning);
    }
    for company in companies {
        for listener in listen::one_an_address(company.listeners.iter().map(AsRef::as_ref)) {
            info!(company.log.logger(), "listening"; "address" => listener.name());
        }
    }
}

fn command_of(plan: &Plan<'_>) -> Facts {
    let command = plan.class.runs_command().then(|| plan.settings.command.join(" "));
    Facts::new().maybe(command, |facts, command| facts.text("command", command))
}

/// Serves to the end, and cleans up.
fn serve(mut arbiter: Arbiter<'_>) -> Result<(), RuntimeError> {
    let outcome = arbiter.run();
    arbiter.clean_up();
    match outcome.map_err(RuntimeError::Kernel)? {
        Outcome::Stopped => {
            info!(arbiter.log(), "stopped"; "pid" => Pid::this().as_raw());
            Ok(())
        }
        Outcome::NeverReady => {
            let (log, reason) = arbiter.last_words();
            crit!(log, "giving up: no worker was ever ready"; "error" => &reason);
            Err(RuntimeError::NeverReady(reason))
        }
    }
}

/// What the settings have chosen.
struct Choice<'a> {
    app: &'a dyn App,
    class: &'a dyn WorkerClass,
    identity: Identity,
    socket_access: Access,
}

/// What the master heeds.
const MASTER_SIGNALS: [Signal; 11] = [
    Signal::Hangup,
    Signal::Interrupt,
    Signal::Quit,
    Signal::Terminate,
    Signal::Child,
    Signal::ReopenLogs,
    Signal::Upgrade,
    Signal::OneMore,
    Signal::OneFewer,
    Signal::LetGo,
    Signal::Continued,
];

fn log_wish(settings: &Settings) -> log::Wish {
    let level = match settings.log_level {
        LogLevel::Trace => Level::Trace,
        LogLevel::Debug => Level::Debug,
        LogLevel::Info => Level::Info,
        LogLevel::Warning => Level::Warning,
        LogLevel::Error => Level::Error,
        LogLevel::Critical => Level::Critical,
    };
    let (target, events) = (settings.log_file.clone(), settings.events_file.clone());
    log::Wish { target, level, format: settings.log_format, events }
}

impl From<CompanyError> for RuntimeError {
    fn from(error: CompanyError) -> Self {
        match error {
            CompanyError::Listen(error) => Self::Listen(error),
            CompanyError::Log(error) => Self::Log(error),
            CompanyError::Board(error) => Self::Kernel(error),
        }
    }
}

/// Why the master did not start, or ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum RuntimeError {
    /// Two worker classes have the same name.
    Duplicate(DuplicateClass),
    /// A setting names what does not exist, or what the app or the class refuses.
    Setting {
        /// Where it was set.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Pools that cannot be in one master.
    Settings(SettingsError),
    /// An address cannot be listened on.
    Listen(ListenError),
    /// The log cannot be opened.
    Log(LogError),
    /// The pid file cannot be had.
    #[allow(private_interfaces)]
    PidFile(PidFileError),
    /// The kernel refuses the little that a master needs.
    Kernel(io::Error),
    /// No worker was ever ready; with what the last one had to say.
    NeverReady(String),
}

impl RuntimeError {
    /// The exit code by which the program tells of it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NeverReady(_) => 3,
            Self::Duplicate(_) => 70,
            Self::Settings(error) => error.exit_code(),
            _ => 1,
        }
    }
}

impl fmt::Display for RuntimeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Duplicate(error) => error.fmt(f),
            Self::Setting { place, reason } => write!(f, "{place}: {reason}"),
            Self::Settings(error) => error.fmt(f),
            Self::Listen(error) => f.write_str(&log::chain(error)),
            Self::Log(error) => f.write_str(&log::chain(error)),
            Self::PidFile(error) => f.write_str(&log::chain(error)),
            Self::Kernel(error) => write!(f, "the kernel refuses what a master needs: {error}"),
            Self::NeverReady(words) if words.is_empty() => {
                f.write_str("giving up: no worker was ever ready")
            }
            Self::NeverReady(words) => write!(f, "giving up: no worker was ever ready: {words}"),
        }
    }
}

impl std::error::Error for RuntimeError {}
