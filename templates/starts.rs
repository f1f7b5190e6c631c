//! Starts the program, sends it requests and stops it.

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

/// Maximum wait for an expected event.
const DEADLINE: Duration = Duration::from_secs(20);

/// A running program. Dropping it kills the master; the workers then exit.
struct Server {
    master: Child,
    log: Receiver<String>,
    address: String,
}

impl Server {
    /// Starts the program on a free port and waits until its workers are ready.
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

    /// Waits for a log record that contains this text.
    fn wait_for(&self, what: &str) -> String {
        let end = Instant::now() + DEADLINE;
        let mut others = Vec::new();
        loop {
            let remaining = end.saturating_duration_since(Instant::now());
            match self.log.recv_timeout(remaining) {
                Ok(record) if record.contains(what) => return record,
                Ok(record) => others.push(record),
                Err(_) => panic!("no {what} in:\n{}", others.join("\n")),
            }
        }
    }

    /// Requests this path and returns the whole response.
    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response
    }

    fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.master.id());
        let status = Command::new("sh").args(["-c", &kill]).status().unwrap();
        assert!(status.success(), "{kill}: {status}");
    }

    /// Sends SIGTERM. The master must exit with 0 before the deadline.
    fn stop(mut self) {
        self.signal("TERM");
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.master.try_wait().unwrap() {
                assert_eq!(status.code(), Some(0), "{status}");
                return;
            }
            assert!(Instant::now() < end, "the master does not exit");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The workers exit when their master dies.
        let _ = self.master.kill();
        let _ = self.master.wait();
    }
}

#[test]
fn program_every_class_serves_and_stops() {
    for class in ["solo", "sync", "threads", "mio"] {
        let server = Server::start(class);
        let response = server.get("/?name=Ada");
        assert!(
            response.starts_with("HTTP/1.1 200 OK\r\n"),
            "{class}: {response}"
        );
        assert!(
            response.ends_with("\r\n\r\nHello, Ada!\n"),
            "{class}: {response}"
        );
        assert!(
            server.get("/nowhere").starts_with("HTTP/1.1 404 "),
            "{class}"
        );
        server.stop();
    }
}

#[test]
fn settings_file_is_valid() {
    let mut command = Command::new(PROGRAM);
    let check = command.args(["--config", SETTINGS, "--check-config"]);
    let output = check.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
