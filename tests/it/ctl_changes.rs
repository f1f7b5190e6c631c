//! The commands of `ostlerctl` that change the master: what they ask, show, and exit with. Here a
//! server stands in that answers as a master may.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::DEADLINE;
use crate::ctl::{FakeServer, Outcome, ostlerctl, run};
use crate::ctl_top::Screen;
use crate::launch::Launch;
use crate::proc::wait_until;
use crate::support::Exit;

const STREAM: &str = "HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";

/// Returns an event about operation 7.
fn event(kind: &str, state: &str, rest: &str) -> String {
    format!(
        "event: {kind}\ndata: {{\"id\":7,\"command\":\"reload\",\"state\":\"{state}\",\
         \"duration_ms\":1500{rest}}}\n\n"
    )
}

fn progress(phase: &str, done: u32) -> String {
    let progress = format!(",\"progress\":{{\"phase\":\"{phase}\",\"done\":{done},\"total\":4}}");
    event("progress", "running", &progress)
}

fn answering(answer: String, stays: bool) -> FakeServer {
    FakeServer::start(answer.into_bytes(), 1, stays)
}

#[test]
fn progress_is_shown_in_lines_and_success_is_zero() {
    let stream = [
        STREAM,
        &progress("canary", 0),
        ": keep-alive\n\n",
        &progress("rolling", 1),
        &progress("rolling", 1),
        &progress("rolling", 3),
        &event("done", "done", ""),
    ];
    let outcome = answering(stream.concat(), false).ctl(&["reload"]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(0), "reload done in 1.5s\n"));
    let lines = "reload: canary, 0 of 4\nreload: rolling, 1 of 4\nreload: rolling, 3 of 4\n";
    assert_eq!(outcome.stderr, lines);
}

#[test]
fn failure_and_refusal_exit_with_one() {
    let failed = event("failed", "failed", ",\"error\":\"worker failed to boot \\u001b\"");
    let stream = format!("{STREAM}{failed}");
    answering(stream, false)
        .ctl(&["reload"])
        .failure("reload failed in 1.5s: worker failed to boot \\u{1b}");
    let json = failed.split_once("data: ").unwrap().1.trim().to_owned();
    answering(format!("HTTP/1.0 422 x\r\n\r\n{json}"), false)
        .ctl(&["reload"])
        .failure("failed to boot");
    let refused = "HTTP/1.0 409 x\r\n\r\n{\"error\":\"an upgrade is under way\"}".to_owned();
    answering(refused, false).ctl(&["upgrade"]).failure("ostlerctl: an upgrade is under way");
    let denied = "HTTP/1.0 403 x\r\n\r\nrequests from other origins are refused".to_owned();
    answering(denied, false).ctl(&["stop"]).failure("requests from other origins are refused");
    // An operation that only began has not come true.
    let begun = "HTTP/1.0 202 x\r\n\r\n{\"id\":7,\"command\":\"reload\",\"state\":\"running\"}";
    answering(begun.to_owned(), false).ctl(&["reload"]).failure("reload");
}

#[test]
fn lost_and_endless_waits_name_the_operation() {
    let stream = format!("{STREAM}{}", progress("rolling", 1));
    let goes_on = "operation 7 (reload) goes on; see ostlerctl operations 7";
    let outcome = answering(stream.clone(), false).ctl(&["reload"]);
    outcome.failure(&format!("the master has closed the connection: {goes_on}"));
    let outcome = answering(stream, true).ctl(&["reload", "--timeout", "500ms"]);
    outcome.failure(&format!("not done within the time of --timeout: {goes_on}"));
    let silent = answering(String::new(), true).ctl(&["reload", "--timeout", "300ms"]);
    silent.failure("no answer within 300ms");
    let garbage = format!("{STREAM}event: done\ndata: [7\n\n");
    answering(garbage, false).ctl(&["reload"]).failure("its event is no operation");
    // A state that contradicts the event is no success.
    let contradiction = format!("{STREAM}{}", event("done", "failed", ""));
    answering(contradiction, false).ctl(&["reload"]).failure("goes on");
    let endless = [STREAM.as_bytes(), &vec![b'x'; 2 << 20]].concat();
    FakeServer::start(endless, 1, false).ctl(&["reload"]).failure("too large");
}

#[test]
fn interrupt_ends_the_wait_and_not_the_operation() {
    let server = answering(format!("{STREAM}{}", progress("rolling", 1)), true);
    let mut command = ostlerctl(&["reload", "--socket", server.path().to_str().unwrap()]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    assert_eq!(line, "reload: rolling, 1 of 4\n");
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert_eq!(
        rest,
        "ostlerctl: interrupted: operation 7 (reload) goes on; see ostlerctl operations 7\n"
    );
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

/// The number of such a master is that of another process here.
#[test]
fn stop_of_a_master_in_another_pid_namespace_succeeds() {
    let unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let can_run = Command::new(unshare[0]).args(&unshare[1..]).arg("true").output();
    if !can_run.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no PID namespace can be made");
        return;
    }
    let launch = Launch::by(&[&unshare[..], &[env!("CARGO_BIN_EXE_ostler")]].concat(), &[]);
    let socket = launch.path("control");
    let server = launch.arg("--control-socket").arg(&socket).start();
    let outcome = run(&["stop", "--socket", &socket]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(outcome.stdout.starts_with("stop done in "), "{outcome:?}");
    assert_eq!(server.wait_exit(), Exit::Code(0));
}

/// On a terminal, a bar is drawn in one line, and Ctrl-C is told there.
#[test]
fn progress_is_a_bar_on_a_terminal() {
    let stream = [STREAM, &progress("canary", 0), &progress("rolling", 1)].concat();
    let server = answering(stream, true);
    let args = ["reload", "--socket", server.path().to_str().unwrap()];
    let mut screen = Screen::run(&args, &[]);
    screen.wait_shown("[#####---------------] reload: rolling, 1 of 4, ");
    // Time passes in the same line.
    let before = screen.contents();
    wait_until("the time goes on", || screen.contents() != before);
    assert_eq!(screen.contents().lines().count(), 1, "{}", screen.contents());
    screen.press("\x03");
    screen.wait_shown("ostlerctl: interrupted: operation 7 (reload) goes on");
    assert!(!screen.contents().contains("[#####"), "{}", screen.contents());
    assert_eq!(screen.wait().code(), Some(1));
    let mut dumb = Screen::run(&args, &[("TERM", "dumb")]);
    dumb.wait_shown("reload: canary, 0 of 4\nreload: rolling, 1 of 4");
    dumb.press("\x03");
    assert_eq!(dumb.wait().code(), Some(1));
}

/// A server that notes the first line of each request.
struct Recorder {
    _dir: TempDir,
    socket: PathBuf,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Recorder {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("control");
        let listener = UnixListener::bind(&socket).unwrap();
        let (sender, lines) = std::sync::mpsc::channel();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let mut line = String::new();
                BufReader::new(&client).read_line(&mut line).unwrap();
                sender.send(line.trim_end().to_owned()).unwrap();
                let _ = (&client).write_all(b"HTTP/1.0 409 x\r\n\r\n{\"error\":\"noted\"}");
            }
        });
        Self { _dir: dir, socket, lines }
    }

    fn request(&self, args: &[&str]) -> String {
        let outcome: Outcome = run(&[&["--socket", self.socket.to_str().unwrap()], args].concat());
        outcome.failure("noted");
        self.lines.recv_timeout(DEADLINE).unwrap()
    }
}

#[test]
fn parameters_reach_the_master() {
    let recorder = Recorder::start();
    for (args, expected) in [
        (&["reload"][..], "POST /v1/reload"),
        (&["reload", "--dry-run"], "POST /v1/reload?dry_run=1"),
        (&["upgrade"], "POST /v1/upgrade"),
        (&["scale", "4"], "POST /v1/scale?workers=4"),
        (&["scale", "-1"], "POST /v1/scale?workers=-1"),
        (&["scale", "a b", "+2"], "POST /v1/scale?pool=a%20b&workers=%2B2"),
        (&["recycle"], "POST /v1/recycle"),
        (&["recycle", "web"], "POST /v1/recycle?pool=web"),
        (&["recycle", "web/3"], "POST /v1/recycle?pool=web&slot=3"),
        (&["recycle", "3"], "POST /v1/recycle?slot=3"),
        (&["drain"], "POST /v1/drain"),
        (&["drain", "web"], "POST /v1/drain?pool=web"),
        (&["drain", "web/3"], "POST /v1/drain?pool=web&slot=3"),
        (&["undrain", "3"], "POST /v1/undrain?slot=3"),
        (&["undrain", "a b"], "POST /v1/undrain?pool=a%20b"),
        (&["reopen"], "POST /v1/reopen"),
        (&["stop"], "GET /v1/status"),
        (&["config"], "GET /v1/config"),
        (&["operations"], "GET /v1/operations"),
        (&["operations", "7"], "GET /v1/operations/7"),
        (&["events"], "GET /v1/events?follow=0&last=100"),
        (&["events", "-f", "--last", "5"], "GET /v1/events?follow=1&last=5"),
    ] {
        assert_eq!(recorder.request(args), format!("{expected} HTTP/1.0"), "{args:?}");
    }
}

#[test]
fn outcome_of_one_operation_is_the_exit_status() {
    let operation = |state: &str| {
        let json = format!(
            "{{\"id\":7,\"command\":\"scale\",\"state\":\"{state}\",\
                            \"result\":{{\"from\":2,\"to\":4}}}}"
        );
        answering(format!("HTTP/1.0 200 OK\r\n\r\n{json}"), false).ctl(&["operations", "7"])
    };
    assert_eq!(operation("done").success(), "scale done\nworkers: 2 -> 4\n");
    assert!(operation("running").failure("operation 7 goes on").starts_with("scale\n"));
    operation("failed").failure("operation 7 has failed");
}

#[test]
fn events_are_lines() {
    let stream = format!(
        "{}id: 4\nevent: record\ndata: {{\"seq\":4,\"time\":\"T\",\"level\":\"INFO\",\"message\":\
         \"worker ready\\u001b\",\"pid\":12}}\n\n: keep-alive\n\nevent: gap\ndata: {{\"from\":5,\"to\":9}}\n\n",
        STREAM
    );
    let shown = answering(stream.clone(), false).ctl(&["events"]).success();
    assert_eq!(shown, "T INFO worker ready\\u{1b}, pid: 12\n(events 5 to 9 are lost)\n");
    let json = answering(stream, false).ctl(&["events", "--json"]).success();
    assert_eq!(json.lines().count(), 2);
    answering("HTTP/1.0 404 x\r\n\r\nno such path".to_owned(), false)
        .ctl(&["events"])
        .failure("no such path");
}
