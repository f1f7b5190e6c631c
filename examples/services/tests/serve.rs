//! Starts the services, and asks them: the greeter by gRPC's own Python client, the shop by HTTP.

use std::env;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A running service. Dropping it kills the master, and its workers exit.
struct Server {
    child: Child,
    log: BufReader<ChildStderr>,
    address: String,
}

impl Server {
    fn start(program: &str, words: &[&str]) -> Self {
        let args = ["--bind", "127.0.0.1:0", "--log-format", "json", "--log-file", "-", "-w", "2"];
        let mut command = Command::new(program);
        let mut child = command.args(args).args(words).stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut server = Self { child, log, address: String::new() };
        let listening = server.wait_for("\"listening\"");
        let address = listening.split("\"address\":\"").nth(1).unwrap();
        server.address = address.split('"').next().unwrap().to_owned();
        server.wait_for("all workers ready");
        server
    }

    fn wait_for(&mut self, what: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.log.read_line(&mut line).unwrap(), 0, "no {what} in the log");
            if line.contains(what) {
                return line;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Returns a response.
    fn ask(&self, method: &str, path: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n");
        let body =
            format!("Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all((head + &body).as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let _ = stream.shutdown(Shutdown::Both);
        answer
    }

    /// Stops the service.
    fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let mut rest = String::new();
        self.log.read_to_string(&mut rest).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success() && !rest.contains("killed"), "{status} after:\n{rest}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns a Python that has the package `grpcio`.
fn python() -> Option<OsString> {
    let python = env::var_os("TEST_GRPC_PYTHON").unwrap_or_else(|| "python3".into());
    let import = Command::new(&python).args(["-c", "import grpc"]).stderr(Stdio::null()).status();
    import.is_ok_and(|status| status.success()).then_some(python)
}

#[test]
fn grpc_client_is_served_until_the_service_stops() {
    let Some(python) = python() else {
        eprintln!("skipped: no Python with grpcio");
        return;
    };
    let server = Server::start(env!("CARGO_BIN_EXE_greeter"), &[]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/client.py");
    let mut client = Command::new(python);
    let client = client.arg(script).arg(&server.address).stdout(Stdio::piped());
    let mut client = client.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(client.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "streaming\n");
    server.stop();
    assert!(client.wait().unwrap().success());
}

#[test]
fn orders_outlive_the_service() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("shop.db");
    let words = ["shop", &format!("database={}", database.display())];
    let server = Server::start(env!("CARGO_BIN_EXE_shop"), &words);
    for count in 1..=20 {
        let order = format!(r#"{{"item":"oats","count":{count}}}"#);
        assert!(server.ask("POST", "/orders", &order).starts_with("HTTP/1.1 201 "));
    }
    assert!(server.ask("POST", "/orders", "oats").starts_with("HTTP/1.1 4"));
    server.stop();
    let log = database.with_extension("db-wal");
    assert!(log.metadata().map_or(0, |it| it.len()) == 0, "the write-ahead log was left");
    let server = Server::start(env!("CARGO_BIN_EXE_shop"), &words);
    let orders = server.ask("GET", "/orders", "");
    assert_eq!(orders.matches("oats").count(), 20, "{orders}");
    server.stop();
}

/// A database that cannot be opened is a failed boot, with its reason.
#[test]
fn missing_folder_of_the_database_is_reported() {
    let program = env!("CARGO_BIN_EXE_shop");
    let args = ["--bind", "127.0.0.1:0", "shop", "database=/nonexistent/shop.db"];
    let output = Command::new(program).args(args).output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && log.contains("/nonexistent/shop.db"), "{log}");
}
