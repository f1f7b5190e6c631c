//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{Arg, ArgAction};
use clap::{ArgMatches, Command};

use super::text::parse_duration;
use super::why::Target;

const AFTER_HELP: &str = "\
The control socket is that of --socket, or of the variable OSTLER_CONTROL_SOCKET, or that of the \
running master with the name of --name. A master has one if it was started with --control-socket PATH.

Exit status: 0 if what was asked has come true, 1 if not, 2 for a bad command line.";

/// How many events are shown.
const EVENTS_SHOWN: u64 = 100;
const TOP_INTERVAL: Duration = Duration::from_secs(1);

/// A valid command line.
#[derive(Debug)]
pub(crate) struct Args {
    pub(crate) socket: Option<PathBuf>,
    /// The `proc_name` of the master; `None` if it is not given.
    pub(crate) name: Option<String>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) request: Request,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Status { json: bool },
    Workers,
    Why(Target),
    Config { json: bool },
    Operations { id: Option<u64>, json: bool },
    Events { follow: bool, last: u64, json: bool },
    Top { interval: Duration },
    Change(Change),
}

/// A change of the master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Reload {
        dry_run: bool,
    },
    Upgrade,
    /// `workers` is a number, or a difference with its sign.
    Scale {
        pool: Option<String>,
        workers: String,
    },
    Recycle {
        pool: Option<String>,
        slot: Option<u64>,
    },
    DrainMode {
        pool: Option<String>,
        slot: Option<u64>,
        is_on: bool,
    },
    Stop {
        now: bool,
    },
    Reopen,
}

/// Parses the arguments after the name of the program.
///
/// # Errors
/// A text to print, which may be that of `--help`.
pub(crate) fn parse(args: impl Iterator<Item = OsString>) -> Result<Args, clap::Error> {
    let matches = command().try_get_matches_from(args)?;
    let name = matches.get_one::<String>("name").cloned();
    let (subcommand, own) = matches.subcommand().unwrap_or(("status", &matches));
    if subcommand == "scale" {
        check_scale(own)?;
    }
    Ok(Args {
        socket: matches.get_one::<PathBuf>("socket").cloned(),
        name,
        timeout: matches.get_one::<Duration>("timeout").copied(),
        request: request(subcommand, own),
    })
}

fn request(subcommand: &str, matches: &ArgMatches) -> Request {
    let flag = |name| matches.get_flag(name);
    match subcommand {
        "workers" => Request::Workers,
        "why" => {
            Request::Why(matches.get_one::<Target>("target").cloned().unwrap_or(Target::Number(0)))
        }
        "config" => Request::Config { json: flag("json") },
        "operations" => {
            Request::Operations { id: matches.get_one::<u64>("id").copied(), json: flag("json") }
        }
        "events" => Request::Events {
            follow: flag("follow"),
            last: matches.get_one::<u64>("last").copied().unwrap_or(EVENTS_SHOWN),
            json: flag("json"),
        },
        "top" => {
            Request::Top { interval: matches.get_one("interval").copied().unwrap_or(TOP_INTERVAL) }
        }
        "reload" => Request::Change(Change::Reload { dry_run: flag("dry-run") }),
        "upgrade" => Request::Change(Change::Upgrade),
        "scale" => Request::Change(scale(matches)),
        "recycle" => {
            let (pool, slot) = place(matches);
            Request::Change(Change::Recycle { pool, slot })
        }
        "drain" | "undrain" => {
            let ((pool, slot), is_on) = (place(matches), subcommand == "drain");
            Request::Change(Change::DrainMode { pool, slot, is_on })
        }
        "stop" => Request::Change(Change::Stop { now: flag("now") }),
        "reopen" => Request::Change(Change::Reopen),
        _ => Request::Status { json: flag("json") },
    }
}

/// Returns the pool and the slot that are given.
fn place(matches: &ArgMatches) -> (Option<String>, Option<u64>) {
    let place = matches.get_one::<(Option<String>, Option<u64>)>("place");
    place.cloned().unwrap_or_default()
}

/// `scale N` has one word, `scale POOL N` two.
fn scale(matches: &ArgMatches) -> Change {
    let mut words = matches.get_many::<String>("words").into_iter().flatten().cloned();
    match (words.next(), words.next()) {
        (Some(pool), Some(workers)) => Change::Scale { pool: Some(pool), workers },
        (first, _) => Change::Scale { pool: None, workers: first.unwrap_or_default() },
    }
}

/// Checks the number of workers of `scale`, which clap does not know to be the last word.
fn check_scale(matches: &ArgMatches) -> Result<(), clap::Error> {
    let Change::Scale { workers, .. } = scale(matches) else { return Ok(()) };
    let digits = workers.strip_prefix(['+', '-']).unwrap_or(&workers);
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(());
    }
    let message = format!("invalid number of workers: {workers:?}; give N, +N or -N");
    Err(command().error(clap::error::ErrorKind::InvalidValue, message))
}

/// Parses `POOL` or `POOL/SLOT`, or `SLOT` of the only pool.
fn parse_place(text: &str) -> Result<(Option<String>, Option<u64>), String> {
    match Target::parse(text) {
        Ok(Target::Slot { pool, slot }) => Ok((Some(pool), Some(slot))),
        Ok(Target::Number(slot)) => Ok((None, Some(slot))),
        Err(_) if text.is_empty() || text.contains('/') => {
            Err("give a pool, or a pool and a slot, such as web/0".to_owned())
        }
        Err(_) => Ok((Some(text.to_owned()), None)),
    }
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text)?;
    let is_valid = interval >= Duration::from_millis(100);
    is_valid.then_some(interval).ok_or_else(|| "the minimum is 100ms".to_owned())
}

fn command() -> Command {
    let subcommand = |name: &'static str, about: &'static str| Command::new(name).about(about);
    let json = || flag("json", "Print JSON, as the master has sent it");
    let place = |help: &'static str| {
        let place = Arg::new("place").value_name("POOL|POOL/SLOT").value_parser(parse_place);
        place.help(help)
    };
    Command::new("ostlerctl")
        .about("Shows what a running Ostler master does, and changes it")
        .version(env!("CARGO_PKG_VERSION"))
        .after_help(AFTER_HELP)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .args([
            option("socket", 's', "PATH", "Path of the control socket")
                .value_parser(clap::value_parser!(PathBuf)),
            option("name", 'n', "NAME", "Name of the master (proc_name) [default: ostler]"),
            option("timeout", 't', "DURATION", "How long to wait [default: 10s for an answer]")
                .value_parser(parse_duration),
        ])
        .subcommands([
            subcommand("status", "Show the master, its pools and their workers").arg(json()),
            subcommand("workers", "Show every worker"),
            subcommand("why", "Show what is known of a worker and of its last exit").arg(
                Arg::new("target")
                    .value_name("PID|SLOT|POOL/SLOT")
                    .required(true)
                    .help("A worker, or a slot")
                    .value_parser(Target::parse),
            ),
            subcommand("config", "Show each setting with its source").arg(json()),
            subcommand("events", "Show the latest log records of the master")
                .arg(flag("follow", "Go on with each new one").short('f'))
                .arg(
                    Arg::new("last")
                        .long("last")
                        .value_name("N")
                        .help(format!("How many of those there are [default: {EVENTS_SHOWN}]"))
                        .value_parser(clap::value_parser!(u64)),
                )
                .arg(flag("json", "Print a line of JSON an event")),
            subcommand("operations", "Show the latest changes and their outcome")
                .arg(
                    Arg::new("id")
                        .value_name("ID")
                        .help("Only this one: exit with 1 unless it is done")
                        .value_parser(clap::value_parser!(u64)),
                )
                .arg(json()),
            subcommand("top", "Show load and workers, full-screen").arg(
                Arg::new("interval")
                    .long("interval")
                    .short('i')
                    .value_name("DURATION")
                    .help("Time between two updates [default: 1s]")
                    .value_parser(parse_interval),
            ),
            subcommand("reload", "Read the settings again and replace all workers")
                .arg(flag("dry-run", "Only show what would change")),
            subcommand("upgrade", "Replace the master by a new one of its binary"),
            subcommand("scale", "Change the number of workers of a pool")
                .override_usage("ostlerctl scale [OPTIONS] [POOL] <N|+N|-N>")
                .arg(
                    Arg::new("words")
                        .value_name("N|+N|-N")
                        .help("The number of workers, after the pool unless there is only one")
                        .required(true)
                        .num_args(1..=2)
                        .allow_negative_numbers(true),
                ),
            subcommand("recycle", "Replace a worker, those of a pool, or all")
                .arg(place("Whose workers [default: all]")),
            subcommand(
                "drain",
                "Have a worker accept no clients, or report pools as not ready, while they serve",
            )
            .arg(place("A worker, or a pool [default: all pools]")),
            subcommand(
                "undrain",
                "End the drain mode of one worker, or that of pools, but not of their workers",
            )
            .arg(place("A worker, or a pool [default: all pools]")),
            subcommand("stop", "Stop the master and its workers")
                .arg(flag("now", "Do not wait for requests in progress")),
            subcommand("reopen", "Reopen the log files"),
        ])
}

fn option(name: &'static str, short: char, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).short(short).value_name(value).help(help).global(true)
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).help(help).action(ArgAction::SetTrue)
}

#[cfg(test)]
mod manual;
#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Args, clap::Error> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn command_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn options_are_valid_before_and_after_the_command() {
        for line in
            ["ostlerctl -s /x -n shop status --json", "ostlerctl status --json -n shop -s /x"]
        {
            let args = parsed(line).expect("valid");
            assert_eq!(args.socket, Some("/x".into()));
            assert_eq!(args.name.as_deref(), Some("shop"));
            assert_eq!(args.request, Request::Status { json: true });
        }
        let args = parsed("ostlerctl why web/0 --timeout 500ms").expect("valid");
        assert_eq!(args.timeout, Some(Duration::from_millis(500)));
        assert_eq!(args.request, Request::Why(Target::Slot { pool: "web".into(), slot: 0 }));
    }

    #[test]
    fn changes_are_parsed() {
        let change = |line: &str| match parsed(&format!("ostlerctl {line}")).expect(line).request {
            Request::Change(change) => change,
            other => panic!("{other:?}"),
        };
        let scale = |pool: Option<&str>, workers: &str| Change::Scale {
            pool: pool.map(str::to_owned),
            workers: workers.to_owned(),
        };
        assert_eq!(change("scale 4"), scale(None, "4"));
        assert_eq!(change("scale +1"), scale(None, "+1"));
        assert_eq!(change("scale -1"), scale(None, "-1"));
        assert_eq!(change("scale web -2 -t 5s"), scale(Some("web"), "-2"));
        let recycle =
            |pool: Option<&str>, slot| Change::Recycle { pool: pool.map(str::to_owned), slot };
        assert_eq!(change("recycle"), recycle(None, None));
        assert_eq!(change("recycle web"), recycle(Some("web"), None));
        assert_eq!(change("recycle web/3"), recycle(Some("web"), Some(3)));
        assert_eq!(change("recycle 3"), recycle(None, Some(3)));
        let drain_mode = |pool: Option<&str>, slot, is_on| Change::DrainMode {
            pool: pool.map(str::to_owned),
            slot,
            is_on,
        };
        assert_eq!(change("drain"), drain_mode(None, None, true));
        assert_eq!(change("drain web"), drain_mode(Some("web"), None, true));
        assert_eq!(change("drain web/3"), drain_mode(Some("web"), Some(3), true));
        assert_eq!(change("undrain web"), drain_mode(Some("web"), None, false));
        assert_eq!(change("undrain 2"), drain_mode(None, Some(2), false));
        assert_eq!(change("stop --now"), Change::Stop { now: true });
        assert_eq!(change("reload --dry-run"), Change::Reload { dry_run: true });
    }

    #[test]
    fn bad_command_lines_are_rejected() {
        for line in [
            "scale",
            "scale x",
            "scale web",
            "scale 1 2 3",
            "scale web 1.5",
            "recycle a/b",
            "top -i 1ms",
            "operations x",
            "events --last -1",
            "reload now",
            "",
            "nothing",
            "why",
            "why x",
            "status x",
            "status --timeout 1d",
            "why 1 2",
        ] {
            let error = parsed(&format!("ostlerctl {line}")).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
