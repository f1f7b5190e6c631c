//! The builder: apps, classes and settings become a running master.

use std::env;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;

use slog::{Level, crit, info, warn};

use crate::app::App;
use crate::arbiter::{
    Arbiter, Company, CompanyError, Crew, Kin, Launch, Means, Outcome, Plan, Planner,
};
use crate::heartbeat;
use crate::hooks::{Hooks, NoHooks};
use crate::listen::inherit::Inheritance;
use crate::listen::{self, Access, ListenError};
use crate::log::{self, LogError};
use crate::os::daemon::Verdict;
use crate::os::identity::{self, Identity};
use crate::os::process::Pid;
use crate::os::signal::{self, Signal, SignalPipe};
use crate::os::title::TitleArea;
use crate::pidfile::{PidFile, PidFileError};
use crate::settings::{LogLevel, Settings, Source};
use crate::systemd::Manager;
use crate::worker::{DuplicateClass, Registry, WorkerClass};
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
    pub fn check(&self, settings: &Settings) -> Result<(), RuntimeError> {
        self.choose(settings).map(|_| ())
    }

    /// Serves until a signal ends it. A reload finds the same settings again.
    ///
    /// # Errors
    /// Whatever keeps the master from starting: nothing that it made is left behind then.
    pub fn run(&self, settings: Settings) -> Result<(), RuntimeError> {
        let again = settings.clone();
        self.run_as(settings, Start::default(), move || Ok(again.clone()))
    }

    /// As [`run`](Self::run), with what is known of how the program was started, and with a way to
    /// read the settings anew.
    pub(crate) fn run_as(
        &self,
        settings: Settings,
        start: Start,
        reread: impl Fn() -> Result<Settings, String>,
    ) -> Result<(), RuntimeError> {
        let plan = self.plan(settings)?;
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
        let pidfile = create_pidfile(&plan.settings, is_second).map_err(confessed)?;
        let company = match Company::found(plan, &listeners, None, alone) {
            Ok(company) => company,
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
        introduce(&company, &warnings);
        let Start { title, launch, verdict } = start;
        let planner: Planner<'_> =
            Box::new(move || self.plan(reread()?).map_err(|error| error.to_string()));
        let crew = Crew::new(company, title).map_err(RuntimeError::Kernel)?;
        let hooks = self.hooks.as_ref();
        let means =
            Means { signals, planner, title, launch, pidfile, manager, kin, verdict, hooks };
        serve(Arbiter::new(crew, means))
    }

    /// Finds everything that the settings name.
    fn plan(&self, settings: Settings) -> Result<Plan<'_>, RuntimeError> {
        let Choice { app, class, identity, socket_access } = self.choose(&settings)?;
        let folder = settings.worker_tmp_dir.clone();
        let heartbeat_folder = folder.unwrap_or_else(heartbeat::default_folder);
        let log = log_wish(&settings);
        Ok(Plan { settings, app, class, identity, socket_access, heartbeat_folder, log })
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
        let app = self.find_app(&settings.app).map_err(wrong("app"))?;
        let options = app.check(&settings.app_options);
        options.map_err(|refusal| wrong("app")(refusal.to_string()))?;
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

    fn find_app(&self, name: &str) -> Result<&dyn App, String> {
        let found = self.apps.iter().find(|app| app.name() == name);
        found.map(AsRef::as_ref).ok_or_else(|| {
            let known: Vec<_> = self.apps.iter().map(|app| app.name()).collect();
            format!("there is no app {name:?}; known are: {}", known.join(", "))
        })
    }
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

/// The first records of the log.
fn introduce(company: &Company<'_>, warnings: &[String]) {
    let log = company.log.logger();
    let Plan { settings, app, class, .. } = &company.plan;
    info!(log, "master started"; "pid" => Pid::this().as_raw(),
        "version" => env!("CARGO_PKG_VERSION"), "app" => app.name(),
        "class" => class.name(), "workers" => settings.workers.count());
    for warning in warnings {
        warn!(log, "ignored"; "error" => warning);
    }
    for listener in listen::one_an_address(company.listeners.iter().map(AsRef::as_ref)) {
        info!(log, "listening"; "address" => listener.name());
    }
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
            let reason = arbiter.last_words().to_owned();
            crit!(arbiter.log(), "giving up: no worker was ever ready"; "error" => &reason);
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
            _ => 1,
        }
    }
}

impl fmt::Display for RuntimeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Duplicate(error) => error.fmt(f),
            Self::Setting { place, reason } => write!(f, "{place}: {reason}"),
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
