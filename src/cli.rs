//! Parses the command line: flags, variables and a file become settings, or a text and an exit code.
//! It must never print, start anything or know the meaning of an option.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::ArgMatches;
use clap::error::ErrorKind;

use crate::app::Options;
use crate::os::lookups::Lookups;
use crate::settings::{
    CONFIG_VARIABLE, ConfigFile, ConfigLayer, Configuration, OPTIONS, Settings, SettingsError,
    Source,
};
use command::{DOCTOR, command, doctor_command};

mod command;
mod program_info;

pub use program_info::ProgramInfo;

/// What the command line requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Run the app.
    Run,
    /// Check the configuration and exit.
    CheckConfig,
    /// Print every setting with its source and exit.
    PrintConfig,
    /// Print the settings that differ from their defaults, with their sources, and exit.
    PrintChangedConfig,
    /// List the worker classes and exit. This reads no file.
    ListClasses,
    /// Look for what breaks a service in production, and exit.
    Doctor {
        /// Print JSON.
        json: bool,
    },
    /// Print the JSON Schema of the settings file and exit. This reads no file.
    PrintSchema,
}

/// A valid command line, and its environment.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// The requested action.
    pub action: Action,
    program: String,
    info: ProgramInfo,
    config_files: Vec<PathBuf>,
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

    /// Returns the settings files that `--config` or `OSTLER_CONFIG` names. A later one wins.
    pub fn config_files(&self) -> &[PathBuf] {
        &self.config_files
    }

    /// Returns the settings that no source sets.
    pub(crate) fn default_settings(&self) -> Settings {
        self.info.default_settings()
    }

    /// Reads the files again at each call. Variables and flags override it, including the sections of
    /// their pools. Returns the settings, and one warning for each `OSTLER_*` variable that is no option.
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
        let file = ConfigFile::read(&self.config_files, &self.variables, lookups)?;
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
    let is_doctor = arg_texts.get(1).is_some_and(|word| word == DOCTOR);
    let clap_command = if is_doctor {
        arg_texts.remove(1);
        doctor_command(&program, &info)
    } else {
        command(&program, &info)
    };
    let matches = clap_command
        .try_get_matches_from(arg_texts)
        .map_err(|error| clap_exit(&program, &error))?;
    let flags = flag_layer(&matches).map_err(|error| EarlyExit {
        code: error.exit_code(),
        ..usage_error(&program, &error.to_string())
    })?;
    let variables: Vec<(OsString, OsString)> = variables.into_iter().collect();
    let flags_of_files = matches.get_many::<String>("config").unwrap_or_default();
    if flags_of_files.clone().any(String::is_empty) {
        return Err(usage_error(&program, "--config: the empty path names no file: leave it out"));
    }
    let mut config_files: Vec<PathBuf> = flags_of_files.map(PathBuf::from).collect();
    if config_files.is_empty() {
        let variable =
            variables.iter().find(|(name, value)| name == CONFIG_VARIABLE && !value.is_empty());
        config_files.extend(variable.map(|(_, value)| PathBuf::from(value)));
    }
    let pools = matches.get_many::<String>("pool").into_iter().flatten().cloned().collect();
    Ok(Invocation {
        action: match is_doctor {
            true => Action::Doctor { json: matches.get_flag("json") },
            false => selected_action(&matches),
        },
        program,
        info,
        config_files,
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
    } else if matches.get_flag("diff-default") {
        Action::PrintChangedConfig
    } else if matches.get_flag("print-config") {
        Action::PrintConfig
    } else if matches.get_flag("list-classes") {
        Action::ListClasses
    } else if matches.get_flag("print-schema") {
        Action::PrintSchema
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

#[cfg(test)]
mod manual;
#[cfg(test)]
mod tests;
