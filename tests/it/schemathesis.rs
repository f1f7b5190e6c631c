//! The control interface answers as `docs/openapi.json` says: schemathesis makes requests of it, valid
//! and invalid ones.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use crate::control::Controlled;
use crate::proc::wait_until;

/// OpenAPI cannot say that a parameter may not be both in the query and in the body, for which the
/// answer is 400.
const CONFIGURATION: &str = "[checks.positive_data_acceptance]\n\
    expected-statuses = [\"2xx\", \"3xx\", 400, 401, 403, 404, 409, 413, 429, \"5xx\"]\n";

/// Returns the program: `TEST_SCHEMATHESIS`, or `schemathesis`.
fn program() -> Option<PathBuf> {
    let named = std::env::var_os("TEST_SCHEMATHESIS").map(PathBuf::from);
    let program = named.unwrap_or_else(|| "schemathesis".into());
    let output = Command::new(&program).arg("--version").output();
    if !output.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: {} is not installed", program.display());
        return None;
    }
    Some(program)
}

/// Runs it on the API at this address of 127.0.0.1.
fn run(it: &Controlled, program: &PathBuf, port: u16, choice: &[&str]) {
    let configuration = it.server.path("schemathesis.toml");
    std::fs::write(&configuration, CONFIGURATION).unwrap();
    let mut command = Command::new(program);
    command.arg("--config-file").arg(configuration).arg("run");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json"));
    command.arg("--url").arg(format!("http://127.0.0.1:{port}"));
    command.args(["--generation-deterministic", "--max-examples", "10", "--no-color"]);
    // An event stream has no end.
    command.args(["--request-timeout", "2"]).args(choice);
    let output = command.current_dir(it.server.path("")).output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{shown}{}", String::from_utf8_lossy(&output.stderr));
}

/// Copies bytes both ways between each client of a new address and a unix socket.
fn forward_to(path: PathBuf) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = UnixStream::connect(&path) else { continue };
            let (client_end, server_end) =
                (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || copy(client, server_end, |it| it.shutdown(Shutdown::Write)));
            thread::spawn(move || {
                copy(server, client_end, |it: &TcpStream| it.shutdown(Shutdown::Both));
            });
        }
    });
    port
}

fn copy<R: io::Read, W: io::Write>(mut from: R, mut to: W, end: fn(&W) -> io::Result<()>) {
    let _ = io::copy(&mut from, &mut to);
    let _ = end(&to);
}

#[test]
#[ignore = "slow"]
fn schemathesis_finds_no_fault_at_metrics_bind() {
    let Some(program) = program() else { return };
    let it = Controlled::start(&["-k", "mio", "-w", "2"]);
    run(&it, &program, it.metrics_address().port(), &["--include-method", "GET"]);
    assert_eq!(it.status()["pools"][0]["ready"], 2);
    it.server.finish();
}

#[test]
#[ignore = "slow"]
fn schemathesis_finds_no_fault_at_control_socket() {
    let Some(program) = program() else { return };
    let it = Controlled::start(&["-k", "mio", "-w", "2"]);
    let others = ["--exclude-path", "/v1/stop", "--exclude-path", "/v1/upgrade"];
    run(&it, &program, forward_to(it.socket.clone()), &others);
    // It may have left any of these in drain mode.
    for path in ["/v1/undrain", "/v1/undrain?slot=0", "/v1/undrain?slot=1"] {
        it.post(path);
    }
    wait_until("the master is ready", || it.status()["ready"] == true);
    it.server.finish();
}
