//! The examples, from outside: each starts, serves under every class, and leaves with 0 on TERM.
//! `cargo test` builds them beside this test.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Its own tests run here, since `cargo test` builds an example as a program and not as a test.
#[allow(dead_code)]
#[path = "../examples/line_protocol/main.rs"]
mod line_protocol;

/// The longest wait for anything that must come.
const DEADLINE: Duration = Duration::from_secs(20);

/// The executable of an example; none if it was not built, as under `cargo test --test examples`.
fn example(name: &str) -> Option<PathBuf> {
    let test = env::current_exe().unwrap(); // target/debug/deps/examples-…
    let path = test.ancestors().nth(2).unwrap().join("examples").join(name);
    if !path.exists() {
        eprintln!("skipped: {} is not there; plain `cargo test` builds it", path.display());
        return None;
    }
    Some(path)
}

/// A running program. Dropping it ends it and its workers.
struct Server {
    child: Child,
    log: Receiver<String>,
    heard: Vec<String>,
    address: String,
}

impl Server {
    /// Starts a program on a port that the kernel chooses, and waits until it is ready.
    #[track_caller]
    fn start(program: &Path, args: &[&str]) -> Self {
        Self::start_as(&[program.to_path_buf()], args)
    }

    /// As `start`, with words before the arguments.
    #[track_caller]
    fn start_as(program: &[PathBuf], args: &[&str]) -> Self {
        // The port is in the log, and the log must not be in a form of the program's own choice.
        let fixed = ["--bind", "127.0.0.1:0", "--log-format", "json", "--log-file", "-"];
        // setpriv: if this test is killed, the kernel kills the master, whose workers then leave.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).args(program).args(fixed).args(args);
        command.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).spawn().expect("util-linux is installed");
        let log = listen(child.stderr.take().unwrap());
        let mut server = Self { child, log, heard: Vec::new(), address: String::new() };
        let listening = server.wait_for(r#""listening""#);
        let address = listening.split(r#""address":""#).nth(1).unwrap();
        server.address = address.split('"').next().unwrap().to_owned();
        server.wait_for(r#":"ready""#);
        server
    }

    /// Waits for a line of the log.
    #[track_caller]
    fn wait_for(&mut self, what: &str) -> String {
        let end = Instant::now() + DEADLINE;
        loop {
            match self.log.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(what) => return line,
                Ok(line) => self.heard.push(line),
                Err(error) => panic!("no {what} ({error}) after:\n{}", self.heard.join("\n")),
            }
        }
    }

    /// Asks it to leave, which it must do with 0 and in time.
    #[track_caller]
    fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let end = Instant::now() + DEADLINE;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert_eq!(status.code(), Some(0), "{status}");
                assert!(TcpStream::connect(&self.address).is_err(), "somebody still listens");
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("it does not leave");
    }

    fn signal(&self, signal: Signal) {
        // The child is not reaped yet, so the number is its own.
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // INT ends the workers too; KILL what is left. Both fail if it has left already.
        if let Ok(None) = self.child.try_wait() {
            self.signal(Signal::SIGINT);
            thread::sleep(Duration::from_millis(300));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends bytes, ends its side, and reads to the end.
#[track_caller]
fn ask(address: &str, bytes: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(bytes.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[track_caller]
fn get(address: &str, path: &str) -> String {
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
}

fn listen(stderr: ChildStderr) -> Receiver<String> {
    let (sender, log) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            // After the server has been dropped nobody hears, and the pipe is drained all the same.
            let _ = sender.send(line);
        }
    });
    log
}

/// Runs a check against an example under each of these classes.
#[track_caller]
fn under_each(name: &str, classes: &[&str], check: impl Fn(&str, &str)) {
    let Some(program) = example(name) else { return };
    for class in classes {
        let server = Server::start(&program, &["--worker-class", class, "--workers", "2"]);
        check(&server.address, class);
        server.stop();
    }
}

const BUILT_IN: [&str; 3] = ["sync", "mio", "threads"];

#[test]
fn hello_http_greets() {
    under_each("hello_http", &BUILT_IN, |address, class| {
        let answer = get(address, "/hello?name=Ada+L.");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{class}: {answer}");
        assert!(answer.ends_with("\r\n\r\nHello, Ada L.! Greeting number 1.\n"), "{answer}");
        assert!(get(address, "/nowhere").starts_with("HTTP/1.1 404 "));
    });
}

#[test]
fn line_protocol_answers_in_capitals() {
    under_each("line_protocol", &BUILT_IN, |address, class| {
        let expected = if class == "sync" { "ONE\n" } else { "ONE\nTWO\n" };
        assert_eq!(ask(address, "one\ntwo\nhalf a line"), expected, "{class}");
        assert_eq!(ask(address, &"x".repeat(2000)), "TOO LONG\n", "{class}");
    });
}

#[test]
fn custom_class_serves_batches_beside_the_built_in_ones() {
    under_each("custom_class", &["batch", "sync"], |address, class| {
        let info = get(address, "/info");
        assert!(info.contains(&format!(r#""class":"{class}""#)), "{info}");
        thread::scope(|scope| {
            let asking: Vec<_> =
                (0..20).map(|_| scope.spawn(|| get(address, "/sleep?ms=5"))).collect();
            for answer in asking {
                assert!(answer.join().unwrap().starts_with("HTTP/1.1 200 "), "{class}");
            }
        });
    });
}

#[test]
fn hooks_are_told_of_everything_and_harm_nobody() {
    let Some(program) = example("hooks") else { return };
    let folder = tempfile::tempdir().unwrap();
    let diary = folder.path().join("diary");
    let has = |wanted: &str| {
        std::fs::read_to_string(&diary).unwrap().lines().any(|line| line.starts_with(wanted))
    };
    let program = ["env".as_ref(), format!("DIARY={}", diary.display()).as_ref(), &*program]
        .map(Path::to_path_buf);
    let mut server = Server::start_as(&program, &["--worker-class", "sync", "--timeout", "1s"]);
    let pid = get(&server.address, "/pid").lines().last().unwrap().to_owned();
    let mut hanging = TcpStream::connect(&server.address).unwrap();
    hanging.write_all(b"GET /hang HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    server.wait_for("worker exited");
    server.wait_for("worker ready");
    server.signal(Signal::SIGHUP);
    server.wait_for("hook failed");
    server.wait_for("reload done");
    server.stop();
    for wanted in ["starting", "ready", "fork 0 of generation 1", "reload to generation 2", "exit"]
    {
        assert!(has(wanted), "no {wanted}");
    }
    for wanted in ["born", "ready"] {
        assert!(has(&format!("{wanted} {pid}")), "not {wanted}");
    }
    assert!(has(&format!("hung {pid} in GET /hang")));
    assert!(has(&format!("end {pid}: hung, SIGABRT, ")), "{:?}", std::fs::read_to_string(&diary));
}

#[test]
fn custom_class_is_listed() {
    let Some(program) = example("custom_class") else { return };
    let output = Command::new(program).arg("--list-classes").output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "batch\nmio\nsync\nthreads\n");
}

#[test]
fn queue_consumer_listens_nowhere() {
    let Some(program) = example("queue_consumer") else { return };
    let folder = tempfile::tempdir().unwrap();
    let check = |words: &[&str]| {
        let mut command = Command::new(&program);
        command.args(["--worker-class", "queue", "--check-config"]).args(words);
        command.env("QUEUE", folder.path()).output().unwrap()
    };
    assert_eq!(check(&[]).status.code(), Some(0));
    let output = check(&["--bind", "127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(1));
    let reason = String::from_utf8(output.stderr).unwrap();
    assert!(reason.ends_with("--bind: workers of class \"queue\" listen nowhere\n"), "{reason}");
}

#[test]
fn long_jobs_that_ask_for_time_are_left_alone_and_others_hang() {
    let Some(program) = example("long_jobs") else { return };
    let flags = ["--worker-class", "jobs", "--timeout", "1s", "--abort-grace", "200ms"];
    let mut server = Server::start(&program, &flags);
    server.wait_for(r#""job done""#);
    let is_hang = |line: &String| line.contains(r#""worker hung""#);
    assert!(!server.heard.iter().any(is_hang), "{:#?}", server.heard);
    server.stop();
    let mut server = Server::start(&program, &[&flags[..], &["--env", "STANDSTILL=1"]].concat());
    let hung = server.wait_for(r#""worker hung""#);
    assert!(hung.contains(r#""work":"rebuild""#), "{hung}");
    server.stop();
}

#[test]
fn rpc_client_calls_rpc_service() {
    let Some(client) = example("rpc_client") else { return };
    under_each("rpc_service", &BUILT_IN, |address, class| {
        let output = Command::new(&client).arg(address).output().unwrap();
        let expected = "the sum is 42\nticket 2, as a notification took one\ndivided: 3\n\
            not divided: \"there is no such number\"\ndivided: 3\n\
            letter 1: b\nno letter 5: \"the method panicked\"\n\
            100000 calls at once: 300000\n";
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected, "{class}");
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{class}: {}",
            output.stderr.escape_ascii()
        );
    });
}

#[test]
fn yaml_only_is_set_up_by_its_file() {
    let ostler = Path::new(env!("CARGO_BIN_EXE_ostler"));
    let server = Server::start(ostler, &["--config", "examples/yaml_only/ostler.yaml"]);
    assert!(get(&server.address, "/env?name=GREETING").ends_with("\r\n\r\nGood day"));
    assert!(get(&server.address, "/info").contains(r#""class":"mio""#));
    server.stop();
}
