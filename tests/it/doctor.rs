//! `doctor`: what it finds on this machine, and that it changes nothing.

use std::fs;
use std::process::Command;

use nix::sys::resource::{Resource, getrlimit};
use serde_json::Value;

use crate::launch::Launch;
use crate::support::{Exit, Outcome, Server};

const PROGRAM: &str = env!("CARGO_BIN_EXE_ostler");

/// Runs `doctor` after these commands of a shell.
fn doctor_after(setup: &str, flags: &[&str]) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let script = format!("{setup}; exec \"$0\" doctor \"$@\"");
    let output = Command::new("sh")
        .args(["-c", &script, PROGRAM])
        .args(flags)
        .current_dir(dir.path())
        .env_remove("OSTLER_CONFIG")
        .output()
        .unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "doctor has left files behind");
    Outcome {
        exit: Exit::from(output.status),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

pub(crate) fn doctor(flags: &[&str]) -> Outcome {
    doctor_after("true", flags)
}

/// Returns the findings of this check in a report as JSON.
pub(crate) fn findings(outcome: &Outcome, check: &str) -> Vec<Value> {
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let all = report["findings"].as_array().unwrap();
    all.iter().filter(|finding| finding["check"] == check).cloned().collect()
}

const FREE: [&str; 2] = ["--bind", "127.0.0.1:0"];

#[test]
fn report_names_checks_levels_and_advice() {
    let outcome = doctor(&[&FREE[..], &["--json"]].concat());
    assert_eq!(outcome.stderr, "");
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let all = report["findings"].as_array().unwrap();
    assert!(all.len() >= 6, "{report:#}");
    let count = |level: &str| all.iter().filter(|finding| finding["level"] == level).count();
    assert_eq!(
        (&report["errors"], &report["warnings"]),
        (&count("error").into(), &count("warning").into())
    );
    assert_eq!(outcome.exit, Exit::Code(i32::from(count("error") > 0)));
    let text = doctor(&FREE).stdout;
    for check in ["nofile", "backlog", "heartbeat", "start"] {
        assert!(text.lines().any(|line| line.split_whitespace().nth(1) == Some(check)), "{text}");
    }
}

#[test]
fn low_limit_of_open_files_is_an_error_if_connections_were_asked_for() {
    let asked = [&FREE[..], &["--json", "--worker-connections", "5000"]].concat();
    for (flags, limits, exit, level) in [
        (&asked[..], "ulimit -Sn 256; ulimit -Hn 1024", 1, "error"),
        (&[&FREE[..], &["--json"]].concat()[..], "ulimit -n 1024", 0, "warning"),
        (&asked[..], "ulimit -Sn 256; ulimit -Hn 8192", 0, "ok"),
    ] {
        let outcome = doctor_after(limits, flags);
        let found = findings(&outcome, "nofile");
        assert_eq!(found[0]["level"], level, "{outcome:?}");
        // Another check may find an error of this machine.
        assert!(exit == 0 || outcome.exit == Exit::Code(exit), "{outcome:?}");
    }
}

#[test]
fn what_prevents_a_start_is_an_error() {
    for (flags, words) in [
        (&["--bind", "192.0.2.1:80"][..], "192.0.2.1:80"),
        (&["--chdir", "/no/such/dir"], "/no/such/dir"),
        (&["--user", "nobody-of-this-name"], "nobody-of-this-name"),
        (&["-k", "gevent"], "gevent"),
        (&["-c", "none.yaml"], "none.yaml"),
    ] {
        let outcome = doctor(&[flags, &["--json"]].concat());
        assert_eq!(outcome.exit, Exit::Code(1), "{outcome:?}");
        let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
        let first = &report["findings"][0];
        assert_eq!(first["level"], "error", "{report:#}");
        assert!(first["text"].as_str().unwrap().contains(words), "{report:#}");
    }
    assert_eq!(doctor(&["--no-such-flag"]).exit, Exit::Code(2));
    let help = doctor(&["--help"]);
    assert!(help.exit == Exit::Code(0) && help.stdout.contains("--json"), "{help:?}");
}

#[test]
fn running_master_is_examined_and_not_disturbed() {
    let launch = Launch::new(&["-k", "mio"]);
    let pid = launch.path("pid");
    let server = launch.arg("--pid").arg(&pid).start();
    let (mark, bind) = (server.mark(), server.address().to_string());
    let outcome = doctor(&["--json", "--pid", &pid, "--bind", &bind]);
    assert_eq!(findings(&outcome, "start")[0]["level"], "ok", "{outcome:?}");
    assert_eq!(server.mark(), mark);
    server.finish();
}

/// Returns the soft limit of open files of a process.
fn soft_limit(server: &Server) -> u64 {
    let worker = server.wait_workers(1)[0].pid;
    let text = fs::read_to_string(format!("/proc/{worker}/limits")).unwrap();
    let line = text.lines().find(|line| line.starts_with("Max open files")).unwrap();
    line.split_whitespace().nth(3).unwrap().parse().unwrap()
}

#[test]
fn workers_raise_their_soft_limit_and_say_so() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if hard < 2000 {
        return;
    }
    let words = ["sh", "-c", "ulimit -Sn 200; exec \"$0\" \"$@\"", PROGRAM];
    let start = |flags: &[&str]| Launch::by(&words, flags).start();
    let server = start(&["-k", "mio", "--worker-connections", "1000"]);
    assert_eq!(soft_limit(&server), 1128);
    let record = server.wait_for("the record", |record| {
        record.message() == "workers raise their limit of open files"
    });
    assert_eq!((record.number("from"), record.number("to")), (Some(200), Some(1128)));
    // Of more clients than the old limit, each is let in.
    let clients: Vec<_> = (0..300).map(|_| server.begin("/")).collect();
    drop(clients);
    server.finish();
    let server = start(&["-k", "mio", "--worker-connections", "20"]);
    assert_eq!(soft_limit(&server), 200, "it suffices");
    server.finish();
    let server = start(&["-k", "mio", "--rlimit-nofile", "300"]);
    assert_eq!(soft_limit(&server), 300, "it was set");
    server.finish();
    let beyond = (hard + 1000).to_string();
    let server = start(&["-k", "mio", "--worker-connections", &beyond]);
    assert_eq!(soft_limit(&server), hard);
    let message = "limit of open files too low";
    server.wait_for("the warning", |record| record.message() == message);
    server.finish();
}
