use super::*;
use crate::settings::{LogTarget, Workers};
use std::fs;
use std::os::unix::ffi::OsStringExt;

fn invoke(args: &[&str], variables: &[(&str, &str)]) -> Result<Invocation, Exit> {
    let args = std::iter::once("/usr/bin/web").chain(args.iter().copied());
    let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
    parse(args.map(OsString::from), variables, Identity::default())
}

#[track_caller]
fn good(args: &[&str]) -> Settings {
    load(&invoke(args, &[]).expect("a good command line"))
}

fn load(invocation: &Invocation) -> Settings {
    invocation.load().expect("good settings").0.master
}

#[track_caller]
fn bad(args: &[&str], expected: &str) {
    let exit = invoke(args, &[]).expect_err(expected);
    assert_eq!((exit.code, exit.stream), (2, Stream::Stderr));
    assert!(exit.text.starts_with(&format!("web: {expected}")), "{}", exit.text);
    assert!(exit.text.ends_with('\n'));
}

#[test]
fn clap_has_no_objections() {
    command("web", &Identity::default()).debug_assert();
}

#[test]
fn without_words_the_defaults_are_served() {
    assert_eq!(invoke(&[], &[]).expect("a good command line").action, Action::Run);
    assert_eq!(good(&[]), Settings::default());
}

#[test]
fn words_name_an_app_and_its_options() {
    let settings = good(&["-w", "3", "echo", "a=1", "b=", "-b", ":1", "c=x=y", "-b=:2"]);
    let options = [("a", "1"), ("b", ""), ("c", "x=y")];
    let options = options.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!((settings.app.as_str(), settings.app_options.clone()), ("echo", options.into()));
    assert_eq!((settings.workers, settings.bind.len()), (Workers::Fixed(3), 2));
    assert_eq!(settings.source("app").to_string(), "APP");
}

#[test]
fn aliases_and_dashes_work() {
    let settings = good(&["--keepalive", "3", "--pidfile", "a", "--error-logfile", "-"]);
    assert_eq!(settings.keepalive.as_secs(), 3);
    assert_eq!(settings.pidfile, Some("a".into()));
    assert_eq!(settings.log_file, LogTarget::Stderr);
    assert_eq!(settings.source("pidfile").to_string(), "--pid");
}

#[test]
fn the_last_of_two_words_for_one_value_counts() {
    assert_eq!(good(&["-w", "1", "--workers", "2"]).workers, Workers::Fixed(2));
}

#[test]
fn a_switch_needs_no_value_and_takes_one_behind_an_equals_sign() {
    assert!(!good(&[]).daemon);
    assert!(good(&["-D"]).daemon && good(&["--daemon"]).daemon && good(&["-D=yes"]).daemon);
    assert!(!good(&["--daemon", "--daemon=false"]).daemon);
    assert!(good(&["-D=0", "--no-new-privs", "-D"]).daemon);
    let settings = good(&["-Dw", "3", "--single-instance", "echo"]);
    assert_eq!((settings.app.as_str(), settings.workers), ("echo", Workers::Fixed(3)));
    assert!(settings.daemon && settings.single_instance);
    bad(&["--daemon=perhaps"], "--daemon: \"perhaps\" is neither yes nor no: give true or false");
    let invocation = invoke(&["-D=no"], &[("OSTLER_DAEMON", "1")]).expect("a good line");
    assert!(!load(&invocation).daemon);
}

#[test]
fn numbers_below_zero_are_values() {
    let settings = good(&["--nice", "-5", "--oom-score-adj=-1000"]);
    assert_eq!((settings.nice, settings.oom_score_adj), (Some(-5), Some(-1000)));
    bad(&["--nice", "-21"], "--nice: \"-21\" is not a nice value: give a number from -20 to 19");
}

#[test]
fn bad_words_are_errors_of_the_command_line() {
    bad(&["--workers", "x"], "--workers: \"x\" is not a number of workers: ");
    bad(&["-w", "-1"], "--workers: \"-1\" is not a number of workers: ");
    bad(&["--wokers", "1"], "unexpected argument '--wokers' found\n  tip: a similar");
    bad(&["-b", ":1", "-b", ":1"], "--bind: \":1\" repeats \":1\"");
    bad(&["a=1"], "APP: \"a=1\" is an option, not an app");
    bad(&["demo", "x"], "APP: \"x\" is not an option of the app: give KEY=VALUE");
    bad(&["demo", "a=1", "a=2"], "APP: \"a=2\" gives an option a second time");
    bad(&["demo", "name=x"], "APP: \"name\" cannot be an option");
    bad(&["--check-config", "--list-classes"], "the argument '--check-config' cannot be used");
    let odd = OsString::from_vec(b"a\xff".to_vec());
    let exit = parse(["web".into(), odd], [], Identity::default()).expect_err("not UTF-8");
    assert_eq!(exit.text, "web: argument 1 is not UTF-8: \"a\\xFF\"\n");
}

#[test]
fn words_after_two_dashes_are_the_command() {
    let settings = good(&["-k", "exec", "--", "python3", "-u", "a b", "-u", "--", ""]);
    assert_eq!(settings.command, ["python3", "-u", "a b", "-u", "--", ""]);
    assert_eq!(settings.source("command").to_string(), "COMMAND");
    assert_eq!(good(&["--command", "a", "--command=-b"]).command, ["a", "-b"]);
    assert_eq!(good(&["-b", "none"]).bind, []);
    bad(&["--command", "a", "--", "b"], "COMMAND: is given after -- and by --command");
}

#[test]
fn help_and_version_are_answers() {
    let help = invoke(&["--help"], &[]).expect_err("the help");
    assert_eq!((help.code, help.stream), (0, Stream::Stdout));
    for key in OPTIONS {
        let (flag, value) = (key.flag(), key.value_name);
        let shown = match key.arity {
            Arity::Flag => format!("--{flag}[=<{value}>]"),
            Arity::Single | Arity::Optional | Arity::List | Arity::PairList => format!("--{flag} <{value}>"),
        };
        assert!(help.text.contains(&shown), "{shown}");
    }
    assert!(help.text.contains("Usage: web [OPTIONS]") && help.text.contains("[default: 16K]"));
    let identity = Identity { version: "7.1".into(), app: "shop".into(), note: "" };
    let version = parse(["shop".into(), "-V".into()], [], identity).expect_err("the version");
    assert_eq!((version.code, version.text.as_str()), (0, "shop 7.1\n"));
}

#[test]
fn a_binary_of_ones_own_serves_its_own_app() {
    let identity = Identity { app: "shop".into(), ..Identity::default() };
    let invocation = parse(["shop".into()], [], identity).expect("a good command line");
    assert_eq!(load(&invocation).app, "shop");
}

#[test]
fn a_file_is_read_anew_by_each_load_and_flags_are_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x.yaml");
    let name = path.to_str().expect("UTF-8");
    for variables in [&[][..], &[("OSTLER_CONFIG", name)]] {
        let args = if variables.is_empty() { vec!["-c", name, "-w", "9"] } else { vec!["-w", "9"] };
        let invocation = invoke(&args, variables).expect("a good command line");
        assert_eq!(invocation.file(), Some(path.as_path()));
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
fn variables_warn_or_fail_when_loaded() {
    let invocation = invoke(&[], &[("OSTLER_X", "1"), ("X", "1")]).expect("a good command line");
    assert_eq!(invocation.load().expect("good settings").1.len(), 1);
    let invocation = invoke(&[], &[("OSTLER_WORKERS", "x")]).expect("a good command line");
    assert_eq!(invocation.load().expect_err("a bad value").exit_code(), 1);
}
