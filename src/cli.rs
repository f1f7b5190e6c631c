//! Parses the command line: flags, variables and a file become settings, or a text and an exit code.
//! It must never print, start anything or know the meaning of an option.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::{Arg, ArgAction, ArgGroup};
use clap::error::ErrorKind;
use clap::{ArgMatches, Command};

use crate::app::Options;
use crate::os::lookups::Lookups;
use crate::settings::{
    Arity, CONFIG_VARIABLE, ConfigFile, ConfigLayer, Configuration, OPTIONS, OptionDef, Settings,
    SettingsError, Source,
};

/// Describes the program in `--help` and `--version`.
#[derive(Clone, Debug)]
pub struct ProgramInfo {
    /// The version.
    pub version: String,
    /// The app that runs if none is named; empty if there is none.
    pub default_app: String,
    /// The worker class if none is named.
    pub default_class: String,
    /// Text for the end of `--help`; may be empty.
    pub after_help: &'static str,
}

impl Default for ProgramInfo {
    fn default() -> Self {
        let Settings { app, worker_class, .. } = Settings::default();
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            default_app: app,
            default_class: worker_class,
            after_help: "",
        }
    }
}

impl ProgramInfo {
    /// Returns the settings that no source sets.
    fn default_settings(&self) -> Settings {
        Settings {
            app: self.default_app.clone(),
            worker_class: self.default_class.clone(),
            ..Settings::default()
        }
    }
}

/// What the command line requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Run the app.
    Run,
    /// Check the configuration and exit.
    CheckConfig,
    /// Print every setting with its source and exit.
    PrintConfig,
    /// List the worker classes and exit. This reads no file.
    ListClasses,
}

/// A valid command line, and its environment.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// The requested action.
    pub action: Action,
    program: String,
    info: ProgramInfo,
    config_file: Option<PathBuf>,
    variables: Vec<(OsString, OsString)>,
    flags: ConfigLayer,
    /// The pools to run; if empty, all.
    selected_pools: Vec<String>,
}

impl Invocation {
    /// Returns the name by which the program was started, for messages.
    pub fn program(&self) -> &str {
        &self.program
    }

    /// Returns the settings file, if `--config` or `OSTLER_CONFIG` names one.
    pub fn config_file(&self) -> Option<&Path> {
        self.config_file.as_deref()
    }

    /// Reads the file again at each call. Variables and flags override it, including the sections of
    /// its pools. Returns the settings, and one warning for each `OSTLER_*` variable that is no option.
    ///
    /// # Errors
    /// The first error. [`SettingsError::exit_code`] is the exit code.
    pub fn load(&self) -> Result<(Configuration, Vec<String>), SettingsError> {
        self.load_with(&Lookups::Live)
    }

    /// Does what [`load`](Self::load) does, with the answers of `lookups`.
    ///
    /// # Errors
    /// Those of [`load`](Self::load).
    pub(crate) fn load_with(
        &self,
        lookups: &Lookups,
    ) -> Result<(Configuration, Vec<String>), SettingsError> {
        let mut base = self.info.default_settings();
        let (platform, platform_errors) = ConfigLayer::from_platform_env(&self.variables);
        platform.apply(&mut base);
        let file = match &self.config_file {
            Some(file) => ConfigFile::read(file, &self.variables, lookups)?,
            None => ConfigFile::default(),
        };
        let (variables, warnings) = ConfigLayer::from_env(&self.variables)?;
        let layers = [variables, self.flags.clone()];
        let configuration = Configuration::resolve(&base, &file, &layers, &self.selected_pools)?;
        let used = platform_errors.into_iter().find(|(key, _)| configuration.uses_default(key));
        match used {
            Some((_, error)) => Err(error),
            None => Ok((configuration, warnings)),
        }
    }
}

/// The stream for the text of an [`EarlyExit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, for requested text.
    Stdout,
    /// Standard error, for error messages.
    Stderr,
}

/// A text to print before the program exits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EarlyExit {
    /// The exit code: 0 after `--help` and `--version`, 2 after an invalid command line.
    pub code: u8,
    /// Whole lines.
    pub text: String,
    /// Where to print it.
    pub stream: Stream,
}

/// Parses a command line, whose first word is the name of the program. `OSTLER_*` variables are
/// settings; a settings file may use any variable. Reads no file.
///
/// # Errors
/// The text of `--help` or `--version`, or one message about an invalid argument.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    info: ProgramInfo,
) -> Result<Invocation, EarlyExit> {
    let mut args = args.into_iter();
    let program = program_name(args.next());
    let mut arg_texts = vec![program.clone()];
    for (at, arg) in args.enumerate() {
        let arg_text = arg.into_string().map_err(|arg| {
            usage_error(&program, &format!("argument {} is not UTF-8: {arg:?}", at + 1))
        })?;
        arg_texts.push(arg_text);
    }
    let matches = command(&program, &info)
        .try_get_matches_from(arg_texts)
        .map_err(|error| clap_exit(&program, &error))?;
    let flags = flag_layer(&matches).map_err(|error| EarlyExit {
        code: error.exit_code(),
        ..usage_error(&program, &error.to_string())
    })?;
    let variables: Vec<(OsString, OsString)> = variables.into_iter().collect();
    let flag = matches.get_one::<String>("config");
    if flag.is_some_and(String::is_empty) {
        return Err(usage_error(&program, "--config: the empty path names no file: leave it out"));
    }
    let file = flag.map(PathBuf::from).or_else(|| {
        let variable =
            variables.iter().find(|(name, value)| name == CONFIG_VARIABLE && !value.is_empty());
        variable.map(|(_, value)| value.into())
    });
    let pools = matches.get_many::<String>("pool").into_iter().flatten().cloned().collect();
    Ok(Invocation {
        action: selected_action(&matches),
        program,
        info,
        config_file: file,
        variables,
        flags,
        selected_pools: pools,
    })
}

/// Returns the file name of the path by which the program was started.
fn program_name(first: Option<OsString>) -> String {
    let path = PathBuf::from(first.unwrap_or_default());
    path.file_name().map_or("ostler".into(), |name| name.to_string_lossy().into_owned())
}

fn usage_error(program: &str, reason: &str) -> EarlyExit {
    EarlyExit { code: 2, text: format!("{program}: {reason}\n"), stream: Stream::Stderr }
}

fn clap_exit(program: &str, error: &clap::Error) -> EarlyExit {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            EarlyExit { code: 0, text, stream: Stream::Stdout }
        }
        _ => {
            // The usage is long. The tip to put -- before a misspelt flag is misleading.
            let lines: Vec<&str> = text
                .lines()
                .map(|line| line.strip_prefix("error: ").unwrap_or(line))
                .filter(|line| !line.is_empty() && !line.starts_with("Usage:"))
                .filter(|line| !line.starts_with("  tip: to pass"))
                .collect();
            usage_error(program, &lines.join("\n"))
        }
    }
}

fn selected_action(matches: &ArgMatches) -> Action {
    if matches.get_flag("check-config") {
        Action::CheckConfig
    } else if matches.get_flag("print-config") {
        Action::PrintConfig
    } else if matches.get_flag("list-classes") {
        Action::ListClasses
    } else {
        Action::Run
    }
}

/// Parses the values of flags and words, so that an invalid one is an error of the command line.
fn flag_layer(matches: &ArgMatches) -> Result<ConfigLayer, SettingsError> {
    let mut layer = ConfigLayer::default();
    for option in OPTIONS {
        if let Some(texts) = matches.get_many::<String>(option.name) {
            let source = Source::Flag { flag: format!("--{}", option.flag()) };
            layer.set_option(option, &texts.cloned().collect::<Vec<_>>(), source)?;
        }
    }
    let source = Source::Flag { flag: "APP".into() };
    let invalid_app = |value: &str, reason: &str| SettingsError::InvalidValue {
        source: source.clone(),
        key: "app".into(),
        value: Some(value.to_owned()),
        reason: reason.to_owned(),
    };
    if let Some(command) = matches.get_many::<String>("words") {
        set_command(&mut layer, matches, &command.cloned().collect::<Vec<_>>())?;
    }
    if let Some(app) = matches.get_one::<String>("app") {
        let mut options = Options::new();
        for pair in matches.get_many::<String>("option").into_iter().flatten() {
            let Some((name, value)) = pair.split_once('=') else {
                return Err(invalid_app(pair, "is not an option of the app: give KEY=VALUE"));
            };
            if options.insert(name.to_owned(), value.to_owned()).is_some() {
                return Err(invalid_app(pair, "is a duplicate option"));
            }
        }
        layer.set_app(app.clone(), options, source.clone())?;
    }
    Ok(layer)
}

/// Sets the command to the words after `--`.
fn set_command(
    layer: &mut ConfigLayer,
    matches: &ArgMatches,
    words: &[String],
) -> Result<(), SettingsError> {
    let source = Source::Flag { flag: "COMMAND".into() };
    let option = OPTIONS.iter().find(|option| option.name == "command").expect("a row of it");
    if matches.contains_id(option.name) {
        let reason = "is given both after -- and by --command: give it once".into();
        return Err(SettingsError::Conflict { source, key: option.name, reason });
    }
    layer.set_option(option, words, source)
}

const ABOUT: &str = "Runs an app or a program in supervised worker processes.";

/// One line for each paragraph: clap wraps it to the width of the terminal.
const AFTER_HELP: &str = "\
Precedence, highest first: flag, environment variable, pool's section of the file, top level of the \
file, default. A list replaces the list of a lower source.

Key: the flag with _ for -, unless the help names the key. Variable: OSTLER_ and the key in \
capitals, such as OSTLER_WORKER_CLASS; commas separate the items of a list.

File: a YAML map of keys. The key app is a name, or a map of name and the app's options. The key \
pools maps each pool's name to its own keys. The key vars maps names to values, which ${name} \
inserts. ${env:NAME} inserts an environment variable.

PORT and WEB_CONCURRENCY replace the defaults of bind (0.0.0.0:$PORT) and workers.

DUR: 30, 1.5, 500ms, 30s, 2m, 1h. SIZE: 65536, 64K, 64M, 1G.

Exit codes: 0 stopped on request; 1 invalid configuration, address in use or pid file locked; 2 \
invalid command line; 3 no worker became ready; 70 internal error.";

fn command(program: &str, info: &ProgramInfo) -> Command {
    let defaults = info.default_settings();
    let default_app = if info.default_app.is_empty() { "none" } else { &info.default_app };
    Command::new(program.to_owned())
        .bin_name(program.to_owned())
        .version(info.version.clone())
        .about(ABOUT)
        .after_help(format!("{AFTER_HELP}\n\n{}", info.after_help).trim_end().to_owned())
        .override_usage(format!("{program} [OPTIONS] [APP [KEY=VALUE]...] [-- COMMAND...]"))
        .disable_help_flag(true)
        .disable_version_flag(true)
        .max_term_width(100)
        .arg(Arg::new("app").value_name("APP").help(format!("App to run [default: {default_app}]")))
        .arg(
            Arg::new("option")
                .value_name("KEY=VALUE")
                .action(ArgAction::Append)
                .num_args(0..)
                .requires("app")
                .help("Options of the app"),
        )
        .arg(
            Arg::new("words")
                .value_name("COMMAND")
                .last(true)
                .num_args(0..)
                .help("Program for the exec worker class, and its arguments"),
        )
        .args(OPTIONS.iter().map(|option| option_arg(option, &defaults)))
        .args(action_args())
        .group(ArgGroup::new("action").args(["check-config", "print-config", "list-classes"]))
}

/// Converts an option to an argument of clap.
fn option_arg(option: &OptionDef, defaults: &Settings) -> Arg {
    let flag = option.flag();
    let mut help = option.doc();
    if help.ends_with('.') && !help.contains(". ") {
        help.pop();
    }
    let default_text = option.format(defaults).join(",");
    help.push_str(&format!(
        " [default: {}]",
        if default_text.is_empty() { "none" } else { &default_text }
    ));
    if flag.replace('-', "_") != option.name {
        help.push_str(&format!(" [key: {}]", option.name));
    }
    let arg = Arg::new(option.name)
        .long(flag)
        .value_name(option.value_name)
        .help(help)
        .help_heading(option.group)
        .allow_negative_numbers(true)
        .action(match option.arity {
            Arity::Single | Arity::Flag | Arity::Optional => ArgAction::Set,
            Arity::List | Arity::PairList => ArgAction::Append,
        })
        .overrides_with_all(match option.arity {
            // The last one counts, so that a script can override the flags of another.
            Arity::Single | Arity::Flag | Arity::Optional => Some(option.name),
            Arity::List | Arity::PairList => None,
        })
        .visible_aliases(option.aliases.iter().copied());
    let arg = match option.arity {
        // The value must follow =, so that the next word is not taken for it.
        Arity::Flag => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        Arity::Single | Arity::Optional | Arity::List | Arity::PairList => arg,
    };
    match option.short {
        Some(short) => arg.short(short),
        None => arg,
    }
}

/// Returns the flags that are no options of the table.
fn action_args() -> [Arg; 7] {
    let flag_arg = |name: &'static str, action: ArgAction, help: &'static str| {
        Arg::new(name).long(name).action(action).help(help).help_heading("Actions")
    };
    [
        Arg::new("config")
            .short('c')
            .long("config")
            .value_name("FILE")
            .help("YAML configuration file [env: OSTLER_CONFIG]"),
        Arg::new("pool")
            .long("pool")
            .value_name("NAME")
            .action(ArgAction::Append)
            .help("Run only this pool of the configuration file. May be repeated"),
        flag_arg("check-config", ArgAction::SetTrue, "Check the configuration and exit"),
        flag_arg(
            "print-config",
            ArgAction::SetTrue,
            "Print every setting with its source and exit",
        ),
        flag_arg("list-classes", ArgAction::SetTrue, "List the worker classes and exit"),
        flag_arg("help", ArgAction::Help, "Print help and exit").short('h'),
        flag_arg("version", ArgAction::Version, "Print version and exit")
            .short('V')
            .short_alias('v'),
    ]
}

#[cfg(test)]
mod tests;
