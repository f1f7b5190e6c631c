//! `ostlerctl` beside a real master, and beside servers that are none.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::{Pid, Uid};
use serde_json::Value;
use tempfile::TempDir;

use crate::DEADLINE;
use crate::launch::Launch;
use crate::proc::wait_until;
use crate::support::Server;

/// A user without privileges: `nobody`, or none that is known.
const UNPRIVILEGED: u32 = 65_534;

/// How `ostlerctl` ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
        Self {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

impl Outcome {
    /// Asserts success, and returns the output.
    #[track_caller]
    pub(crate) fn success(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{self:?}");
        self.stdout
    }

    /// Asserts that it failed with exit status 1, and that its message has these words.
    #[track_caller]
    pub(crate) fn failure(self, words: &str) -> String {
        assert_eq!(self.code, Some(1), "{self:?}");
        assert!(self.stderr.lines().any(|line| line.starts_with("ostlerctl: ")), "{self:?}");
        assert!(self.stderr.contains(words), "{self:?} lacks {words}");
        self.stdout
    }
}

/// Returns the command, without settings from the environment of the tests.
pub(crate) fn ostlerctl(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ostlerctl"));
    command.args(args).stdin(Stdio::null()).env_remove("OSTLER_CONTROL_SOCKET");
    command
}

pub(crate) fn run(args: &[&str]) -> Outcome {
    ostlerctl(args).output().unwrap().into()
}

/// A master with a control socket.
pub(crate) struct Controlled {
    pub(crate) server: Server,
    pub(crate) socket: PathBuf,
}

impl Controlled {
    pub(crate) fn start(flags: &[&str]) -> Self {
        let launch = Launch::new(flags);
        let socket = launch.path("control");
        let server = launch.arg("--control-socket").arg(&socket).start();
        Self { server, socket: socket.into() }
    }

    /// Runs `ostlerctl` on this master.
    pub(crate) fn ctl(&self, args: &[&str]) -> Outcome {
        run(&[&["--socket", self.socket.to_str().unwrap()], args].concat())
    }

    /// Waits until the output of a command has these words.
    #[track_caller]
    pub(crate) fn wait_shown(&self, args: &[&str], words: &str) -> String {
        let mut shown = String::new();
        wait_until(words, || {
            shown = self.ctl(args).success();
            shown.contains(words)
        });
        shown
    }
}

/// A name that no other master has.
fn unique_name(word: &str) -> String {
    format!("{word}-{}", std::process::id())
}

#[test]
fn status_shows_pools_and_workers() {
    let it = Controlled::start(&["-k", "mio", "-w", "2", "-n", "shop"]);
    let mut busy = it.server.begin("/sleep?ms=1500");
    let shown = it.wait_shown(&["status"], "GET /sleep for ");
    assert!(shown.starts_with("shop: running, ready\n"), "{shown}");
    assert!(shown.contains("pool default: 2 of 2 workers ready, class mio, app demo"), "{shown}");
    let rows = it.ctl(&["workers"]).success();
    for worker in it.server.workers() {
        let row = format!("default/{}  {}  ready", worker.slot, worker.pid);
        assert!(shown.contains(&row) && rows.contains(&row), "{shown}{rows} lack {row}");
    }
    let json: Value = serde_json::from_str(&it.ctl(&["status", "--json"]).success()).unwrap();
    assert_eq!(json["pid"].as_i64().unwrap(), i64::from(it.server.pid.as_raw()));
    assert_eq!(busy.answer().status(), 200);
    it.server.finish();
}

#[test]
fn why_explains_the_last_exit() {
    let it = Controlled::start(&["-k", "mio", "-w", "2"]);
    let victim = it.server.wait_workers(2)[0];
    kill(victim.pid, Signal::SIGKILL).unwrap();
    it.server.wait_replaced(victim);
    let (pid, slot) = (victim.pid.to_string(), victim.slot.to_string());
    let place = format!("default/{slot}");
    for target in [&pid, &slot, &place] {
        let report = it.ctl(&["why", target]).success();
        let expected = format!("last exit: worker {pid}, ");
        for words in [&expected, "reason: crashed\n", "exit: SIGKILL\n", "  idle\n"] {
            assert!(report.contains(words), "{report} lacks {words}");
        }
        let pid_field = format!("pid: {pid}");
        let is_exit = |line: &str| line.contains("worker exited, ") && line.contains(&pid_field);
        assert!(report.lines().any(is_exit), "{report}");
    }
    let mut busy = it.server.begin("/sleep?ms=1500");
    let worker = it.server.workers().into_iter().map(|worker| worker.pid.to_string());
    let reports: Vec<_> = worker.map(|pid| it.ctl(&["why", &pid]).success()).collect();
    assert!(reports.concat().contains("works on GET /sleep for "), "{reports:?}");
    assert_eq!(busy.answer().status(), 200);
    it.ctl(&["why", "4000000000"]).failure("4000000000 is no slot, no worker");
    it.ctl(&["why", "web/0"]).failure("there is no pool web");
    it.server.finish();
}

#[test]
fn socket_is_found_by_variable_and_by_name() {
    let name = unique_name("found");
    let it = Controlled::start(&["-k", "mio", "-n", &name]);
    let first_line = format!("{name}: running, ready\n");
    let by_variable: Outcome =
        ostlerctl(&["status"]).env("OSTLER_CONTROL_SOCKET", &it.socket).output().unwrap().into();
    assert!(by_variable.success().starts_with(&first_line));
    // A name on the command line comes before the variable.
    let mut command = ostlerctl(&["status", "-n", &name]);
    let by_name: Outcome =
        command.env("OSTLER_CONTROL_SOCKET", "/nowhere").output().unwrap().into();
    assert!(by_name.success().starts_with(&first_line));
    it.server.finish();
    run(&["status", "-n", &name]).failure("found no running master with the name");
}

#[test]
fn socket_with_a_relative_path_is_found_by_name() {
    let name = unique_name("relative");
    let launch = Launch::new(&["-k", "mio", "-n", &name, "--control-socket", "control.sock"]);
    let dir = launch.path("");
    let server = launch.arg("--chdir").arg(dir).start();
    assert!(
        run(&["status", "-n", &name]).success().starts_with(&format!("{name}: running, ready\n"))
    );
    server.finish();
}

/// The app's own sockets and the read-only one are not taken for it.
#[test]
fn other_sockets_of_the_master_are_not_taken() {
    let name = unique_name("others");
    let launch = Launch::new(&["-k", "mio", "-n", &name, "--socket-mode", "600", "-b", "unix:app"]);
    let metrics = format!("unix:{}", launch.path("metrics"));
    let server = launch.unbound().arg("--metrics-bind").arg(metrics).start();
    run(&["status", "-n", &name]).failure("has no control socket that only its user can open");
    server.finish();
}

#[test]
fn several_masters_with_one_name_are_listed() {
    let name = unique_name("twice");
    let (one, other) = (
        Controlled::start(&["-k", "mio", "-n", &name]),
        Controlled::start(&["-k", "mio", "-n", &name]),
    );
    let outcome = run(&["status", "-n", &name]);
    for it in [&one, &other] {
        for words in [&it.server.pid.to_string(), it.socket.to_str().unwrap()] {
            assert!(outcome.stderr.contains(words), "{outcome:?}");
        }
    }
    outcome.failure("give --socket PATH");
    one.server.finish();
    other.server.finish();
}

/// Both masters of an upgrade have the name; one of them has the socket.
#[test]
fn socket_is_found_by_name_during_an_upgrade() {
    let name = unique_name("upgrade");
    let it = Controlled::start(&["-k", "mio", "-n", &name]);
    it.server.signal(Signal::SIGUSR2);
    it.server.wait_for("the new master", |record| record.message() == "new master ready");
    let shown = run(&["status", "-n", &name]).success();
    assert!(shown.contains("upgrade: the other master is "), "{shown}");
    it.server.signal(Signal::SIGTERM);
    it.server.wait_for("the take-over", |record| record.message() == "upgrade complete");
    wait_until("the new master is found", || run(&["status", "-n", &name]).code == Some(0));
    let status: Value = serde_json::from_str(&it.ctl(&["status", "--json"]).success()).unwrap();
    let new = i32::try_from(status["pid"].as_i64().unwrap()).unwrap();
    kill(Pid::from_raw(new), Signal::SIGTERM).unwrap();
    it.server.wait_no_survivors();
}

#[test]
fn events_are_followed_over_an_upgrade() {
    let it = Controlled::start(&["-k", "mio"]);
    let last = it.ctl(&["events", "--last", "1"]).success();
    assert!(last.contains(" INFO all workers ready, "), "{last}");
    let mut command = ostlerctl(&["events", "-f", "--last", "1"]);
    command.env("OSTLER_CONTROL_SOCKET", &it.socket).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)).ok();
    });
    let wait_line = |words: &str| {
        let is_it = |line: &String| line.contains(words);
        while !is_it(&lines.recv_timeout(DEADLINE).expect(words)) {}
    };
    wait_line("all workers ready");
    it.server.signal(Signal::SIGUSR2);
    wait_line("new master ready");
    it.server.signal(Signal::SIGTERM);
    wait_line("here begin the events of another master");
    wait_line("upgrade complete");
    child.kill().unwrap();
    child.wait().unwrap();
    let status: Value = serde_json::from_str(&it.ctl(&["status", "--json"]).success()).unwrap();
    let new = i32::try_from(status["pid"].as_i64().unwrap()).unwrap();
    kill(Pid::from_raw(new), Signal::SIGTERM).unwrap();
    it.server.wait_no_survivors();
}

#[test]
fn bad_command_lines_exit_with_two() {
    for args in [&[][..], &["nothing"], &["why"], &["status", "--timeout", "1d"], &["status", "x"]]
    {
        let outcome = run(args);
        assert_eq!(outcome.code, Some(2), "{args:?}: {outcome:?}");
        assert!(outcome.stdout.is_empty(), "{outcome:?}");
    }
    for args in [&["--help"][..], &["--version"], &["status", "--help"]] {
        assert!(!run(args).success().is_empty());
    }
}

#[test]
fn missing_and_stale_sockets_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control");
    let status = || run(&["status", "--socket", path.to_str().unwrap()]);
    status().failure("start the master with --control-socket");
    let listener = UnixListener::bind(&path).unwrap();
    // After shutdown(2) no copy of it listens: a child that another test forks may have one.
    shutdown(listener.as_raw_fd(), Shutdown::Both).unwrap();
    status().failure("no master listens at");
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "").unwrap();
    status().failure("no master listens at");
    let long = format!("/{}", "x".repeat(200));
    run(&["status", "--socket", &long]).failure("failed to connect");
}

/// Another user is told so, and can neither use nor find the socket.
#[test]
fn other_users_are_refused() {
    if !Uid::effective().is_root() {
        eprintln!("skipped: not root");
        return;
    }
    let name = unique_name("private");
    let it = Controlled::start(&["-k", "mio", "-n", &name]);
    std::fs::set_permissions(it.server.path("."), PermissionsExt::from_mode(0o755)).unwrap();
    let socket = it.socket.to_str().unwrap();
    let as_other = |args: &[&str]| -> Outcome {
        ostlerctl(args).uid(UNPRIVILEGED).gid(UNPRIVILEGED).output().unwrap().into()
    };
    as_other(&["status", "--socket", socket]).failure("no permission to use");
    as_other(&["status", "-n", &name]).failure("of user 0, are not visible");
    it.server.finish();
}

/// A server that answers each client with the same bytes, and then closes or stays silent.
pub(crate) struct FakeServer {
    _dir: TempDir,
    socket: PathBuf,
}

impl FakeServer {
    /// Starts a server that repeats these bytes so many times.
    pub(crate) fn start(bytes: Vec<u8>, times: usize, stays: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("control");
        let listener = UnixListener::bind(&socket).unwrap();
        thread::spawn(move || {
            for mut client in listener.incoming().map_while(Result::ok) {
                let _ = client.set_read_timeout(Some(DEADLINE));
                let mut request = [0; 4096];
                let _ = client.read(&mut request);
                let sent = (0..times).try_for_each(|_| client.write_all(&bytes));
                while stays && sent.is_ok() && client.read(&mut request).is_ok_and(|n| n > 0) {}
            }
        });
        Self { _dir: dir, socket }
    }

    fn with_json(json: &str) -> Self {
        Self::start(format!("HTTP/1.0 200 OK\r\n\r\n{json}").into(), 1, false)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn ctl(&self, args: &[&str]) -> Outcome {
        run(&[&["--socket", self.socket.to_str().unwrap()], args].concat())
    }
}

#[test]
fn garbage_silence_and_endless_answers_end_with_an_error() {
    let head = b"HTTP/1.0 200 OK\r\n\r\n".to_vec();
    let endless = [head.clone(), vec![b' '; 1 << 20]].concat();
    for (bytes, times, stays, words) in [
        (b"".to_vec(), 1, false, "closed the connection without an answer"),
        (b"\xff\0garbage".to_vec(), 1, false, "not from an ostler master"),
        (b"HTTP/1.0 200 OK\r\nX: ".to_vec(), 1, false, "not from an ostler master"),
        (vec![b'x'; 1 << 20], 1000, false, "not from an ostler master"),
        (endless, 1000, false, "too large"),
        ([head, b"[1]".to_vec()].concat(), 1, false, "not a JSON object"),
        (b"".to_vec(), 1, true, "no answer within 300ms"),
        (b"HTTP/1.0 200 OK\r\n\r\n{".to_vec(), 1, true, "no answer within 300ms"),
    ] {
        let timeout = if stays { "300ms" } else { "60s" };
        FakeServer::start(bytes, times, stays).ctl(&["status", "-t", timeout]).failure(words);
    }
}

/// What a server or a worker has written reaches no terminal as a command.
#[test]
fn control_characters_are_escaped() {
    let json = r#"{"phase": "\u001b]0;x\u0007", "pools": [{"name": "a\u009b2J", "workers": [
        {"pid": 1, "slot": 0, "in_flight": [{"label": "GET /\u001b[31m\r\n\u202e", "age_ms": 1}]}],
        "last_exits": [{"slot": 0, "note": "\u001bc"}]}], "error": "\u001b[2J"}"#;
    let is_safe =
        |text: &str| !text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}');
    let server = FakeServer::with_json(json);
    for args in [&["status"][..], &["status", "--json"], &["workers"], &["why", "0"]] {
        let shown = server.ctl(args).success();
        assert!(is_safe(&shown), "{shown:?}");
        assert!(shown.contains("\\u"), "{shown:?}");
    }
    let refusal = format!("HTTP/1.0 500 x\r\n\r\n{json}");
    let outcome = FakeServer::start(refusal.into(), 1, false).ctl(&["status"]);
    assert!(is_safe(&outcome.stderr), "{outcome:?}");
    outcome.failure("\\u{1b}[2J");
}

#[test]
fn closed_output_is_an_error_without_a_message() {
    let server = FakeServer::with_json("{}");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = ostlerctl(&["status", "--socket", server.path().to_str().unwrap()]);
    let outcome: Outcome = command.stdout(writer).output().unwrap().into();
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(1), ""));
}
