//! The command line as clap has it, made from the table of options.

use clap::Command;
use clap::builder::{Arg, ArgAction, ArgGroup};

use super::program_info::ProgramInfo;
use crate::settings::{Arity, OPTIONS, OptionDef, Settings};

/// The first argument that asks for `doctor`. It is never an app.
pub(super) const DOCTOR: &str = "doctor";

const DOCTOR_ABOUT: &str = "\
Looks for what breaks a service with these settings on this machine, and says what to do. Changes \
nothing. Exits with 1 if something will break.";

const ABOUT: &str = "Runs an app or a program in supervised worker processes.";

/// One line for each paragraph: clap wraps it to the width of the terminal.
pub(super) const AFTER_HELP: &str = "\
Precedence, highest first: flag, environment variable, pool's section of the file, top level of the \
file, default. A list replaces the list of a lower source.

Key: the flag with _ for -, unless the help names the key. Variable: OSTLER_ and the key in \
capitals, such as OSTLER_WORKER_CLASS; commas separate the items of a list.

File: a YAML map of keys. The key app is a name, or a map of name and the app's options. The key \
pools maps each pool's name to its own keys. The key vars maps names to values, which ${name} \
inserts. ${env:NAME} inserts an environment variable. The key include names further files, or \
directories of *.yaml files, which are laid over this one.

PORT and WEB_CONCURRENCY replace the defaults of bind (0.0.0.0:$PORT) and workers.

DUR: 30, 1.5, 500ms, 30s, 2m, 1h. SIZE: 65536, 64K, 64M, 1G.

doctor as the first argument looks for what breaks a service with these settings in production: see \
doctor --help.

Exit codes: 0 stopped on request; 1 invalid configuration, address in use or pid file locked; 2 \
invalid command line; 3 no worker became ready; 70 internal error.";

pub(super) fn command(program: &str, info: &ProgramInfo) -> Command {
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
        .group(ArgGroup::new("action").args([
            "check-config",
            "print-config",
            "print-schema",
            "list-classes",
        ]))
}

/// Returns the command line after `doctor`: the same settings, and no other action.
pub(super) fn doctor_command(program: &str, info: &ProgramInfo) -> Command {
    let json = Arg::new("json").long("json").action(ArgAction::SetTrue);
    command(program, info)
        .about(DOCTOR_ABOUT)
        .override_usage(format!("{program} {DOCTOR} [--json] [OPTIONS] [APP [KEY=VALUE]...]"))
        .arg(json.help("Print the findings as JSON").help_heading("Actions"))
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
fn action_args() -> [Arg; 9] {
    let flag_arg = |name: &'static str, action: ArgAction, help: &'static str| {
        Arg::new(name).long(name).action(action).help(help).help_heading("Actions")
    };
    [
        Arg::new("config")
            .short('c')
            .long("config")
            .value_name("FILE")
            .action(ArgAction::Append)
            .help(
                "YAML configuration file. May be repeated: a later file wins, key by key [env: \
                 OSTLER_CONFIG]",
            ),
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
        flag_arg(
            "diff-default",
            ArgAction::SetTrue,
            "With --print-config: print only the settings that differ from their defaults",
        )
        .requires("print-config"),
        flag_arg(
            "print-schema",
            ArgAction::SetTrue,
            "Print the JSON Schema of the configuration file and exit",
        ),
        flag_arg("list-classes", ArgAction::SetTrue, "List the worker classes and exit"),
        flag_arg("help", ArgAction::Help, "Print help and exit").short('h'),
        flag_arg("version", ArgAction::Version, "Print version and exit")
            .short('V')
            .short_alias('v'),
    ]
}
