use super::*;
use crate::settings::Arity;
use crate::settings::{LogTarget, Workers};
use std::fs;
use std::os::unix::ffi::OsStringExt;

fn invoke(args: &[&str], variables: &[(&str, &str)]) -> Result<Invocation, EarlyExit> {
    let args = std::iter::once("/usr/bin/web").chain(args.iter().copied());
    let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
    parse(args.map(OsString::from), variables, ProgramInfo::default())
}

#[track_caller]
fn parse_settings(args: &[&str]) -> Settings {
    load(&invoke(args, &[]).expect("a valid command line"))
}

fn load(invocation: &Invocation) -> Settings {
    invocation.load().expect("valid settings").0.master
}

#[track_caller]
fn assert_usage_error(args: &[&str], expected: &str) {
    let exit = invoke(args, &[]).expect_err(expected);
    assert_eq!((exit.code, exit.stream), (2, Stream::Stderr));
    assert!(exit.text.starts_with(&format!("web: {expected}")), "{}", exit.text);
    assert!(exit.text.ends_with('\n'));
}

#[test]
fn clap_command_is_consistent() {
    command("web", &ProgramInfo::default()).debug_assert();
}

#[test]
fn parse_no_args_yields_defaults() {
    assert_eq!(invoke(&[], &[]).expect("a valid command line").action, Action::Run);
    assert_eq!(parse_settings(&[]), Settings::default());
}

#[test]
fn parse_no_args_yields_defaults_of_the_program() {
    let info = ProgramInfo {
        default_app: "shop".into(),
        default_class: "queue".into(),
        ..ProgramInfo::default()
    };
    let parse =
        |args: &[&str], info| parse(["shop"].iter().chain(args).map(OsString::from), [], info);
    let settings = load(&parse(&[], info.clone()).expect("a valid command line"));
    assert_eq!((settings.app.as_str(), settings.worker_class.as_str()), ("shop", "queue"));
    assert_eq!(*settings.source("worker_class"), Source::Default);
    let settings = load(&parse(&["-k", "mio"], info.clone()).expect("a valid command line"));
    assert_eq!(settings.worker_class, "mio");
    let help = parse(&["--help"], info.clone()).expect_err("help").text;
    assert!(help.contains("App to run [default: shop]") && help.contains("[default: queue]"));
    let info = ProgramInfo { default_app: String::new(), ..info };
    assert!(
        parse(&["--help"], info).expect_err("help").text.contains("App to run [default: none]")
    );
}

#[test]
fn parse_positional_args_set_app_and_options() {
    let settings = parse_settings(&["-w", "3", "echo", "a=1", "b=", "-b", ":1", "c=x=y", "-b=:2"]);
    let options = [("a", "1"), ("b", ""), ("c", "x=y")];
    let options = options.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!((settings.app.as_str(), settings.app_options.clone()), ("echo", options.into()));
    assert_eq!((settings.workers, settings.bind.len()), (Workers::Fixed(3), 2));
    assert_eq!(settings.source("app").to_string(), "APP");
}

#[test]
fn parse_flag_aliases_are_accepted() {
    let settings = parse_settings(&["--keepalive", "3", "--pidfile", "a", "--error-logfile", "-"]);
    assert_eq!(settings.keepalive.as_secs(), 3);
    assert_eq!(settings.pidfile, Some("a".into()));
    assert_eq!(settings.log_file, LogTarget::Stderr);
    assert_eq!(settings.source("pidfile").to_string(), "--pid");
}

#[test]
fn parse_repeated_flag_last_one_counts() {
    assert_eq!(parse_settings(&["-w", "1", "--workers", "2"]).workers, Workers::Fixed(2));
}

#[test]
fn parse_bool_flag_value_needs_equals_sign() {
    assert!(!parse_settings(&[]).daemon);
    assert!(
        parse_settings(&["-D"]).daemon
            && parse_settings(&["--daemon"]).daemon
            && parse_settings(&["-D=yes"]).daemon
    );
    assert!(!parse_settings(&["--daemon", "--daemon=false"]).daemon);
    assert!(parse_settings(&["-D=0", "--no-new-privs", "-D"]).daemon);
    let settings = parse_settings(&["-Dw", "3", "--single-instance", "echo"]);
    assert_eq!((settings.app.as_str(), settings.workers), ("echo", Workers::Fixed(3)));
    assert!(settings.daemon && settings.single_instance);
    assert_usage_error(
        &["--daemon=perhaps"],
        "--daemon: \"perhaps\" is not a boolean: give true or false",
    );
    let invocation = invoke(&["-D=no"], &[("OSTLER_DAEMON", "1")]).expect("a valid command line");
    assert!(!load(&invocation).daemon);
}

#[test]
fn parse_negative_number_is_a_value() {
    let settings = parse_settings(&["--nice", "-5", "--oom-score-adj=-1000"]);
    assert_eq!((settings.nice, settings.oom_score_adj), (Some(-5), Some(-1000)));
    assert_usage_error(
        &["--nice", "-21"],
        "--nice: \"-21\" is not a nice value: give a number from -20 to 19",
    );
}

#[test]
fn parse_invalid_args_exit_with_2() {
    assert_usage_error(&["--workers", "x"], "--workers: \"x\" is not a number of workers: ");
    assert_usage_error(&["-w", "-1"], "--workers: \"-1\" is not a number of workers: ");
    assert_usage_error(
        &["--wokers", "1"],
        "unexpected argument '--wokers' found\n  tip: a similar",
    );
    assert_usage_error(&["-b", ":1", "-b", ":1"], "--bind: \":1\" repeats \":1\"");
    assert_usage_error(&["a=1"], "APP: \"a=1\" is an option, not an app");
    assert_usage_error(&["demo", "x"], "APP: \"x\" is not an option of the app: give KEY=VALUE");
    assert_usage_error(&["demo", "a=1", "a=2"], "APP: \"a=2\" is a duplicate option");
    assert_usage_error(&["demo", "name=x"], "APP: \"name\" cannot be an option");
    assert_usage_error(
        &["--check-config", "--list-classes"],
        "the argument '--check-config' cannot be used",
    );
    let odd = OsString::from_vec(b"a\xff".to_vec());
    let exit = parse(["web".into(), odd], [], ProgramInfo::default()).expect_err("not UTF-8");
    assert_eq!(exit.text, "web: argument 1 is not UTF-8: \"a\\xFF\"\n");
}

#[test]
fn parse_args_after_dashes_set_command() {
    let settings = parse_settings(&["-k", "exec", "--", "python3", "-u", "a b", "-u", "--", ""]);
    assert_eq!(settings.command, ["python3", "-u", "a b", "-u", "--", ""]);
    assert_eq!(settings.source("command").to_string(), "COMMAND");
    assert_eq!(parse_settings(&["--command", "a", "--command=-b"]).command, ["a", "-b"]);
    assert_eq!(parse_settings(&["-b", "none"]).bind, []);
    assert_usage_error(
        &["--command", "a", "--", "b"],
        "COMMAND: is given both after -- and by --command",
    );
}

#[test]
fn parse_help_and_version_exit_with_0() {
    let help = invoke(&["--help"], &[]).expect_err("the help");
    assert_eq!((help.code, help.stream), (0, Stream::Stdout));
    for option in OPTIONS {
        let (flag, value) = (option.flag(), option.value_name);
        let shown = match option.arity {
            Arity::Flag => format!("--{flag}[=<{value}>]"),
            Arity::Single | Arity::Optional | Arity::List | Arity::PairList => {
                format!("--{flag} <{value}>")
            }
        };
        assert!(help.text.contains(&shown), "{shown}");
    }
    assert!(help.text.contains("Usage: web [OPTIONS]") && help.text.contains("[default: 16K]"));
    let info =
        ProgramInfo { version: "7.1".into(), default_app: "shop".into(), ..ProgramInfo::default() };
    let version = parse(["shop".into(), "-V".into()], [], info).expect_err("the version");
    assert_eq!((version.code, version.text.as_str()), (0, "shop 7.1\n"));
}

#[test]
fn parse_uses_default_app_of_program() {
    let info = ProgramInfo { default_app: "shop".into(), ..ProgramInfo::default() };
    let invocation = parse(["shop".into()], [], info).expect("a valid command line");
    assert_eq!(load(&invocation).app, "shop");
}

#[test]
fn load_rereads_file_and_keeps_flags() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("x.yaml");
    let name = path.to_str().expect("UTF-8");
    for variables in [&[][..], &[("OSTLER_CONFIG", name)]] {
        let args = if variables.is_empty() { vec!["-c", name, "-w", "9"] } else { vec!["-w", "9"] };
        let invocation = invoke(&args, variables).expect("a valid command line");
        assert_eq!(invocation.config_files(), std::slice::from_ref(&path));
        fs::write(&path, "threads: 2\nworkers: 2\n").expect("written");
        assert_eq!(load(&invocation).threads, 2);
        fs::write(&path, "threads: 3\n").expect("written");
        let settings = load(&invocation);
        assert_eq!((settings.threads, settings.workers), (3, Workers::Fixed(9)));
        fs::remove_file(&path).expect("removed");
        assert_eq!(invocation.load().expect_err("no file").exit_code(), 1);
    }
    let list = invoke(&["--list-classes", "-c", "/nowhere"], &[]).expect("no file is read");
    assert_eq!(list.action, Action::ListClasses);
}

#[test]
fn load_checks_environment_variables() {
    let invocation = invoke(&[], &[("OSTLER_X", "1"), ("X", "1")]).expect("a valid command line");
    assert_eq!(invocation.load().expect("valid settings").1.len(), 1);
    let invocation = invoke(&[], &[("OSTLER_WORKERS", "x")]).expect("a valid command line");
    assert_eq!(invocation.load().expect_err("an invalid value").exit_code(), 1);
}

#[test]
fn platform_variables_replace_defaults_only() {
    let load = |args: &[&str], variables: &[(&str, &str)]| {
        invoke(args, variables).expect("a valid command line").load().map(|(loaded, _)| loaded)
    };
    let shown = |args: &[&str], variables: &[(&str, &str)]| {
        let settings = load(args, variables).expect("valid settings").master;
        (settings.bind[0].to_string(), settings.workers.to_string())
    };
    let both = [("PORT", "5000"), ("WEB_CONCURRENCY", "3")];
    assert_eq!(shown(&[], &both), ("0.0.0.0:5000".to_owned(), "3".to_owned()));
    let empty = [("PORT", ""), ("WEB_CONCURRENCY", "")];
    assert_eq!(shown(&[], &empty), ("127.0.0.1:8000".to_owned(), "1".to_owned()));
    assert_eq!(shown(&["-b", ":80", "-w", "2"], &both).1, "2");
    let higher = [both[0], both[1], ("OSTLER_BIND", "127.0.0.1:1"), ("OSTLER_WORKERS", "5")];
    assert_eq!(shown(&[], &higher), ("127.0.0.1:1".to_owned(), "5".to_owned()));
    let error = load(&[], &[("PORT", "tcp://10.0.0.1:80")]).expect_err("no port");
    assert!(error.to_string().starts_with("PORT: \"tcp://10.0.0.1:80\""), "{error}");
    assert_eq!(error.exit_code(), 1);
    assert_eq!(shown(&["-b", "127.0.0.1:9"], &[("PORT", "no")]).0, "127.0.0.1:9");
}
