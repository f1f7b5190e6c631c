//! The real program, from outside: it starts, answers, and leaves when it is asked to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!(concat!("CARGO_BIN_EXE_", env!("CARGO_PKG_NAME")));
const SETTINGS: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/config/",
    env!("CARGO_PKG_NAME"),
    ".yaml"
);

/// The longest wait for anything that must come.
const DEADLINE: Duration = Duration::from_secs(20);

/// A running program. Dropping it ends it and its workers.
struct Server {
    master: Child,
    log: Receiver<String>,
    address: String,
}

impl Server {
    /// Starts the program on a port that the kernel chooses, and waits until it is ready.
    fn start(class: &str) -> Self {
        let mut command = Command::new(PROGRAM);
        command.args(["--config", SETTINGS, "--worker-class", class]);
        command.args(["--bind", "127.0.0.1:0", "--log-format", "json"]);
        let mut master = command.stderr(Stdio::piped()).spawn().unwrap();
        let records = BufReader::new(master.stderr.take().unwrap()).lines();
        let (sender, log) = mpsc::channel();
        thread::spawn(move || {
            for record in records.map_while(Result::ok) {
                let _ = sender.send(record);
            }
        });
        let mut server = Self {
            master,
            log,
            address: String::new(),
        };
        let listening = server.wait_for(r#""msg":"listening""#);
        let address = listening.split(r#""address":""#).nth(1).unwrap();
        server.address = address.split('"').next().unwrap().to_owned();
        server.wait_for(r#""msg":"all workers ready""#);
        server
    }

    /// Waits for a record of the log.
    fn wait_for(&self, what: &str) -> String {
        let end = Instant::now() + DEADLINE;
        let mut heard = Vec::new();
        loop {
            let patience = end.saturating_duration_since(Instant::now());
            match self.log.recv_timeout(patience) {
                Ok(record) if record.contains(what) => return record,
                Ok(record) => heard.push(record),
                Err(_) => panic!("no {what} among:\n{}", heard.join("\n")),
            }
        }
    }

    /// What it answers to this path.
    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.master.id());
        let status = Command::new("sh").args(["-c", &kill]).status().unwrap();
        assert!(status.success(), "{kill}: {status}");
    }

    /// Asks it to leave, which it must do in time and with 0.
    fn stop(mut self) {
        self.signal("TERM");
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.master.try_wait().unwrap() {
                assert_eq!(status.code(), Some(0), "{status}");
                return;
            }
            assert!(Instant::now() < end, "it does not leave");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The workers leave when their master has died.
        let _ = self.master.kill();
        let _ = self.master.wait();
    }
}

#[test]
fn it_starts_answers_and_leaves_under_every_class() {
    for class in ["solo", "sync", "threads", "mio"] {
        let server = Server::start(class);
        let answer = server.get("/?name=Ada");
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n"),
            "{class}: {answer}"
        );
        assert!(
            answer.ends_with("\r\n\r\nHello, Ada!\n"),
            "{class}: {answer}"
        );
        assert!(
            server.get("/nowhere").starts_with("HTTP/1.1 404 "),
            "{class}"
        );
        server.stop();
    }
}

#[test]
fn its_settings_are_good() {
    let mut command = Command::new(PROGRAM);
    let check = command.args(["--config", SETTINGS, "--check-config"]);
    let output = check.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
