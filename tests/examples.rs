//! Black-box tests of the examples: each starts, serves under every class, and exits with 0 on
//! SIGTERM. `cargo test` builds them beside this test.

#![allow(unreachable_pub, clippy::unwrap_used, clippy::print_stderr)]

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::slice;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use self::example::example;

/// The example's own tests run here, since `cargo test` builds an example as a program and not as a
/// test.
#[allow(dead_code)]
#[path = "../examples/line_protocol/main.rs"]
mod line_protocol;

#[path = "it/example.rs"]
mod example;

/// The longest wait for an event.
const DEADLINE: Duration = Duration::from_secs(20);

/// A running program. Dropping it ends it and its workers.
struct Server {
    child: Child,
    log: Receiver<String>,
    log_seen: Vec<String>,
    address: String,
}

impl Server {
    /// Starts a program on a port that the kernel chooses, and waits until it is ready.
    #[track_caller]
    fn start(program: &Path, args: &[&str]) -> Self {
        Self::start_as(&[program.to_path_buf()], args)
    }

    /// Starts a program as `start`, with a command before it.
    #[track_caller]
    fn start_as(program: &[PathBuf], args: &[&str]) -> Self {
        let mut server = Self::spawn(program, &["--bind", "127.0.0.1:0"], args);
        let listening = server.wait_for(r#""listening""#);
        let address = listening.split(r#""address":""#).nth(1).unwrap();
        server.address = address.split('"').next().unwrap().to_owned();
        server.wait_for(r#":"all workers ready""#);
        server
    }

    /// Starts a program, and waits for nothing.
    #[track_caller]
    fn spawn(program: &[PathBuf], bind: &[&str], args: &[&str]) -> Self {
        // The log is read here, so its format must not depend on the program.
        let fixed = [bind, &["--log-format", "json", "--log-file", "-"]].concat();
        // setpriv: if this test is killed, the kernel sends the master SIGTERM.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).args(program).args(fixed).args(args);
        command.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).spawn().expect("util-linux is installed");
        let log = listen(child.stderr.take().unwrap());
        Self { child, log, log_seen: Vec::new(), address: String::new() }
    }

    /// Waits for a line of the log.
    #[track_caller]
    fn wait_for(&mut self, what: &str) -> String {
        let end = Instant::now() + DEADLINE;
        loop {
            match self.log.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(what) => return line,
                Ok(line) => self.log_seen.push(line),
                Err(error) => panic!("no {what} ({error}) after:\n{}", self.log_seen.join("\n")),
            }
        }
    }

    /// Sends SIGTERM, and asserts an exit with 0 in time.
    #[track_caller]
    fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let end = Instant::now() + DEADLINE;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert_eq!(status.code(), Some(0), "{status}");
                assert!(TcpStream::connect(&self.address).is_err(), "it still listens");
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("it does not exit");
    }

    /// Sends a signal to a worker, if it still runs.
    fn signal_worker(&self, pid: &str, signal: Signal) -> bool {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let is_there = status.contains(&format!("\nPPid:\t{}\n", self.child.id()));
        is_there && kill(Pid::from_raw(pid.parse().unwrap()), signal).is_ok()
    }

    fn signal(&self, signal: Signal) {
        // The child is not reaped yet, so the number is its own.
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // INT ends the workers too; KILL ends the rest. Both fail if the master has exited.
        if let Ok(None) = self.child.try_wait() {
            self.signal(Signal::SIGINT);
            thread::sleep(Duration::from_millis(300));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends bytes, shuts down the sending side, and reads to the end.
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
            // After the server has been dropped nothing receives the lines, and the pipe is drained
            // all the same.
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
fn custom_class_serves_batches() {
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

/// Sends a request over a kept connection.
#[track_caller]
fn ask_again(stream: &TcpStream) {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    (&*stream).write_all(b"GET /pid HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    await_answer(stream);
}

#[track_caller]
fn await_answer(stream: &TcpStream) {
    let (mut reader, mut length) = (BufReader::new(stream), 0);
    loop {
        let mut line = String::new();
        assert_ne!(reader.read_line(&mut line).unwrap(), 0, "the connection has ended");
        match line.to_lowercase().split_once(": ") {
            Some(("content-length", number)) => length = number.trim().parse().unwrap(),
            Some(_) => (),
            None if line == "\r\n" => break,
            None => assert_eq!(line, "HTTP/1.1 200 OK\r\n"),
        }
    }
    reader.read_exact(&mut vec![0; length]).unwrap();
}

/// Starts each class with its own event loop that this machine can run.
fn loops<'a>(args: &'a [&'a str]) -> impl Iterator<Item = (&'static str, Server)> + 'a {
    let own = Some(PathBuf::from(env!("CARGO_BIN_EXE_ostler")));
    [(own, "uring"), (example("tokio_axum"), "tokio")].into_iter().filter_map(
        move |(program, class)| {
            let program = program?;
            let args = [&["--worker-class", class], args].concat();
            let check = Command::new(&program).args(&args).arg("--check-config").output().unwrap();
            if !check.status.success() {
                eprintln!("skipped: {}", String::from_utf8_lossy(&check.stderr));
                return None;
            }
            Some((class, Server::start(&program, &args)))
        },
    )
}

#[test]
fn own_loops_limit_partial_head_to_its_timeout() {
    for (_, server) in loops(&["--header-timeout", "1s"]) {
        let half = TcpStream::connect(&server.address).unwrap();
        half.set_read_timeout(Some(DEADLINE)).unwrap();
        (&half).write_all(b"GET / HTTP/1.1\r\nHost").unwrap();
        server.stop(); // far below `graceful_timeout`
    }
}

#[test]
fn own_loops_keep_worker_connections() {
    for (class, server) in loops(&["--worker-connections", "1"]) {
        let first = TcpStream::connect(&server.address).unwrap();
        ask_again(&first);
        let second = TcpStream::connect(&server.address).unwrap();
        second.set_read_timeout(Some(DEADLINE)).unwrap();
        (&second).write_all(b"GET /pid HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        (0..100).for_each(|_| ask_again(&first)); // the event loop runs several turns meanwhile
        second.set_nonblocking(true).unwrap();
        assert!(second.peek(&mut [0]).is_err(), "{class}: more clients are accepted than allowed");
        second.set_nonblocking(false).unwrap();
        drop(first);
        await_answer(&second);
        server.stop();
    }
}

#[test]
fn panic_in_async_handler_is_no_hang() {
    let Some(program) = example("tokio_axum") else { return };
    let server = Server::start(&program, &["--worker-class", "tokio", "--timeout", "2s"]);
    let [sleeper, panics] = [(); 2].map(|()| TcpStream::connect(&server.address).unwrap());
    sleeper.set_read_timeout(Some(DEADLINE)).unwrap();
    (&sleeper).write_all(b"GET /sleep?ms=3500 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    (&panics).write_all(b"GET /panic HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    let _ = (&panics).read_to_string(&mut answer); // an end or a reset
    assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
    await_answer(&sleeper); // the other request's worker still runs
    server.stop();
}

#[test]
fn hooks_see_every_event_and_errors_are_harmless() {
    let Some(program) = example("hooks") else { return };
    let dir = tempfile::tempdir().unwrap();
    let diary = dir.path().join("diary");
    let has = |wanted: &str| {
        fs::read_to_string(&diary).unwrap().lines().any(|line| line.starts_with(wanted))
    };
    let program = ["env".as_ref(), format!("DIARY={}", diary.display()).as_ref(), &*program]
        .map(Path::to_path_buf);
    let flags = ["--worker-class", "sync", "--timeout", "1s", "--abort-timeout", "1m"];
    let mut server = Server::start_as(&program, &flags);
    let pid = get(&server.address, "/pid").lines().last().unwrap().to_owned();
    let mut hanging = TcpStream::connect(&server.address).unwrap();
    hanging.write_all(b"GET /hang HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    server.wait_for("worker exited");
    server.wait_for("worker ready");
    server.signal(Signal::SIGHUP);
    server.wait_for("hook failed");
    server.wait_for("reload complete");
    server.stop();
    for wanted in ["starting", "ready", "fork 0 of generation 1", "reload to generation 2", "exit"]
    {
        assert!(has(wanted), "no {wanted}");
    }
    for wanted in ["forked", "ready"] {
        assert!(has(&format!("{wanted} {pid}")), "not {wanted}");
    }
    assert!(has(&format!("hung {pid} in GET /hang")));
    assert!(has(&format!("end {pid}: hung, SIGABRT, ")), "{:?}", fs::read_to_string(&diary));
}

#[test]
fn custom_class_is_listed() {
    let Some(program) = example("custom_class") else { return };
    let output = Command::new(program).arg("--list-classes").output().unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "batch\nexec\nmio\nsync\nthreads\ntokio\nuring\n"
    );
}

#[test]
fn queue_consumer_has_no_listener() {
    let Some(program) = example("queue_consumer") else { return };
    let dir = tempfile::tempdir().unwrap();
    let check = |words: &[&str]| {
        let mut command = Command::new(&program);
        command.args(["--worker-class", "queue", "--check-config"]).args(words);
        command.env("QUEUE", dir.path()).output().unwrap()
    };
    assert_eq!(check(&[]).status.code(), Some(0));
    let output = check(&["--bind", "127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(1));
    let reason = String::from_utf8(output.stderr).unwrap();
    assert!(reason.ends_with("--bind: class \"queue\" does not listen: remove bind\n"), "{reason}");
}

#[test]
fn extended_jobs_continue_and_others_are_hung() {
    let Some(program) = example("long_jobs") else { return };
    let flags = ["--worker-class", "jobs", "--timeout", "1s", "--abort-timeout", "200ms"];
    let mut server = Server::start(&program, &flags);
    server.wait_for(r#""job run finished""#);
    let is_hang = |line: &String| line.contains(r#""worker hung""#);
    assert!(!server.log_seen.iter().any(is_hang), "{:#?}", server.log_seen);
    server.stop();
    let mut server = Server::start(&program, &[&flags[..], &["--env", "STANDSTILL=1"]].concat());
    let hung = server.wait_for(r#""worker hung""#);
    assert!(hung.contains(r#""work":"rebuild""#), "{hung}");
    server.stop();
}

/// A spool, as its producers and consumers see it.
struct Spool {
    dir: tempfile::TempDir,
    names: Vec<String>,
}

impl Spool {
    fn new() -> Self {
        let spool = Self { dir: tempfile::tempdir().unwrap(), names: Vec::new() };
        fs::create_dir(spool.entry_path("new")).unwrap();
        fs::create_dir(spool.entry_path("written")).unwrap();
        spool
    }

    fn entry_path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn fill(&mut self, count: usize) {
        for _ in 0..count {
            let name = format!("entry-{}", self.names.len());
            fs::write(self.entry_path("written").join(&name), &name).unwrap();
            fs::rename(self.entry_path("written").join(&name), self.entry_path("new").join(&name))
                .unwrap();
            self.names.push(name);
        }
    }

    /// Kills a worker in the middle of its work. It is stopped first, and continued if it has no
    /// work.
    fn kill_a_claimer(&mut self, server: &mut Server) {
        loop {
            self.fill(10);
            let done = server.wait_for(r#""entry processed""#);
            let pid = done.split(r#""pid":"#).nth(1).unwrap().split([',', '}']).next().unwrap();
            if !server.signal_worker(pid, Signal::SIGSTOP) {
                continue;
            }
            // It stops at once, or is about to exit.
            let stat = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            while [") S ", ") R ", ") D "].iter().any(|state| stat().contains(state)) {
                thread::sleep(Duration::from_millis(1));
            }
            let dirs = list(&self.entry_path("claimed")).into_iter();
            let mut its = dirs.filter(|dir| dir.starts_with(&format!("{pid}-")));
            if its.any(|dir| !list(&self.entry_path("claimed").join(dir)).is_empty()) {
                server.signal_worker(pid, Signal::SIGKILL);
                return;
            }
            server.signal_worker(pid, Signal::SIGCONT);
        }
    }

    /// Waits until each entry has its result, and nothing else is left.
    #[track_caller]
    fn expect_all_done(&mut self, class: &str) {
        self.names.sort();
        let end = Instant::now() + DEADLINE;
        while list(&self.entry_path("done")) != self.names
            || !list(&self.entry_path("new")).is_empty()
        {
            assert!(Instant::now() < end, "{class}: {:?} left", list(&self.entry_path("new")));
            thread::sleep(Duration::from_millis(20));
        }
        for name in &self.names {
            let result = fs::read_to_string(self.entry_path("done").join(name)).unwrap();
            assert_eq!(result, name.to_uppercase(), "{class}");
        }
    }
}

#[test]
fn spool_job_survives_kills_and_reloads_exactly_once() {
    let Some(program) = example("spool_job") else { return };
    for class in ["sync", "threads"] {
        let mut spool = Spool::new();
        let option = format!("dir={}", spool.dir.path().display());
        let flags = ["--worker-class", class, "--threads", "2", "--workers", "3"];
        let args = [&flags[..], &["spool", &option]].concat();
        let mut server = Server::spawn(slice::from_ref(&program), &[], &args);
        for _ in 0..3 {
            spool.fill(40);
            spool.kill_a_claimer(&mut server);
            spool.kill_a_claimer(&mut server);
            server.signal(Signal::SIGHUP);
            server.wait_for("reload complete");
        }
        spool.expect_all_done(class);
        server.stop();
        for claimer in list(&spool.entry_path("claimed")) {
            assert!(
                list(&spool.entry_path("claimed").join(&claimer)).is_empty(),
                "{class}: {claimer}"
            );
        }
    }
}

/// Returns the process that a record is about.
fn pid_in(record: &str) -> String {
    let rest = record.split(r#""pid":"#).nth(1).unwrap();
    rest.split([',', '}']).next().unwrap().to_owned()
}

/// Asserts that each run ends before the next begins, except one that a kill has cut off. Returns how
/// many processes have run.
#[track_caller]
fn expect_no_overlap(journal: &str, killed: &[String]) -> usize {
    let (mut running, mut pids) = (None, BTreeSet::new());
    for line in journal.lines() {
        let (what, pid) = line.split_once(' ').unwrap();
        pids.insert(pid);
        if what == "end" {
            assert_eq!(running.take(), Some(pid), "{line}:\n{journal}");
        } else if let Some(other) = running.replace(pid) {
            assert!(killed.iter().any(|pid| pid == other), "{other} and {pid}:\n{journal}");
        }
    }
    pids.len()
}

#[test]
fn leased_job_never_overlaps() {
    let Some(program) = example("leased_job") else { return };
    for class in ["sync", "threads"] {
        let dir = tempfile::tempdir().unwrap();
        let variable = format!("LEASE={}", dir.path().display());
        let command = [PathBuf::from("env"), PathBuf::from(variable), program.clone()];
        let args = ["--worker-class", class, "--threads", "2", "--workers", "2"];
        let mut server = Server::spawn(&command, &[], &args);
        let (mut killed, mut seen) = (Vec::new(), BTreeSet::new());
        for _ in 0..3 {
            let run = server.wait_for(r#""run finished""#);
            if server.signal_worker(&pid_in(&run), Signal::SIGKILL) {
                killed.push(pid_in(&run));
            }
            server.signal(Signal::SIGHUP);
            server.wait_for("reload complete");
            // The successor in each slot gets its turn.
            for name in ["0-0", "1-0"] {
                let run = format!(r#""run finished","name":"{name}""#);
                while !seen.insert(pid_in(&server.wait_for(&run))) {}
            }
        }
        server.stop();
        for name in ["0-0", "1-0"] {
            let journal = fs::read_to_string(dir.path().join(name)).unwrap();
            assert!(expect_no_overlap(&journal, &killed) >= 3, "{class}: {journal}");
        }
    }
}

/// Returns the names in a directory, sorted.
fn list(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = entries.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
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
fn yaml_only_is_configured_by_its_file() {
    let ostler = Path::new(env!("CARGO_BIN_EXE_ostler"));
    let server = Server::start(ostler, &["--config", "examples/yaml_only/ostler.yaml"]);
    assert!(get(&server.address, "/env?name=GREETING").ends_with("\r\n\r\nGood day"));
    assert!(get(&server.address, "/info").contains(r#""class":"mio""#));
    server.stop();
}
