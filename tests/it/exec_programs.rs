//! Programs in other languages as workers, each on its inherited sockets. Programs that are not
//! installed are skipped with a message.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::Client;
use crate::exec::{program_of, wait_line};
use crate::launch::Launch;
use crate::load::Load;
use crate::log_capture::Record;
use crate::proc::{children, descriptors, wait_until};
use crate::support::{Exit, Server};

/// Serves HTTP from descriptor 3, a thread a client. It sends READY=1, and on SIGTERM finishes its
/// requests.
const PYTHON: &str = r#"
import faulthandler, os, selectors, signal, socket, sys, threading, time

def notify(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])

def answer(path):
    path, _, query = path.partition("?")
    if path == "/pid":
        return str(os.getpid())
    if path == "/sleep":
        time.sleep(int(query[3:]) / 1000)
    if path == "/version":
        return sys.argv[1]
    if path == "/exit":
        os._exit(int(query[5:]))
    if path == "/say":
        notify(query)
    if path == "/shutdown":
        listener.shutdown(socket.SHUT_RDWR)
        os._exit(0)
    if path == "/silence":
        global beating
        beating = False
    return "Hello, world!\n"

def serve(client):
    with client:
        client.setblocking(True)
        head = b""
        while b"\r\n\r\n" not in head:
            piece = client.recv(4096)
            if not piece:
                return
            head += piece
        body = answer(head.split()[1].decode()).encode()
        client.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
            % (len(body), body))

faulthandler.enable()
beating = True
leaving = threading.Event()
read, write = os.pipe()
os.set_blocking(write, False)
signal.set_wakeup_fd(write)
signal.signal(signal.SIGTERM, lambda *_: leaving.set())
listener = socket.socket(fileno=3)
selector = selectors.DefaultSelector()
selector.register(listener, selectors.EVENT_READ)
selector.register(read, selectors.EVENT_READ)
watched = "--watched" in sys.argv
threads = []
notify("STATUS=serving\nREADY=1")
while not leaving.is_set():
    if watched and beating:
        notify("WATCHDOG=1")
    for key, _ in selector.select(0.1 if watched else None):
        if key.fileobj is listener:
            try:
                client, _ = listener.accept()
            except BlockingIOError:
                continue
            threads = [thread for thread in threads if thread.is_alive()]
            threads.append(threading.Thread(target=serve, args=(client,)))
            threads[-1].start()
for thread in threads:
    thread.join()
print("leaving", flush=True)
"#;

/// Serves HTTP from descriptor 3 in JavaScript.
const NODE: &str = r#"
const server = require("http").createServer((request, response) => {
    const url = new URL(request.url, "http://x");
    const answer = () => {
        response.setHeader("Connection", "close");
        response.end(url.pathname === "/pid" ? String(process.pid) : "Hello, world!\n");
    };
    setTimeout(answer, Number(url.searchParams.get("ms") || 0));
});
server.listen({ fd: 3 }, () => console.log("listening"));
process.on("SIGTERM", () => server.close(() => process.exit(0)));
"#;

/// An application for WSGI servers.
const WSGI: &str = r#"
import os
def app(environ, start):
    body = str(os.getpid()) if environ["PATH_INFO"] == "/pid" else "Hello, world!\n"
    start("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body.encode()]
"#;

/// An application for ASGI servers.
const ASGI: &str = r#"
import os
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body = str(os.getpid()) if scope["path"] == "/pid" else "Hello, world!\n"
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body.encode()})
"#;

/// Returns whether a command runs here, and prints a message if not.
pub fn is_installed(words: &[&str]) -> bool {
    let mut command = Command::new(words[0]);
    let run = command.args(&words[1..]).stdin(Stdio::null()).output();
    let is_installed = run.is_ok_and(|output| output.status.success());
    if !is_installed {
        eprintln!("skipped: `{}` does not run here", words.join(" "));
    }
    is_installed
}

pub fn python_is_installed() -> bool {
    is_installed(&["python3", "-c", "import faulthandler, selectors"])
}

/// Python that defines `lingering(seconds)`: it returns a socket whose close(2) blocks for so long, because of
/// its linger time and data that its peer, in `kept`, does not read.
pub const LINGERING: &str = r#"
import socket, struct
kept = []
def lingering(seconds):
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    client.setblocking(False)
    try:
        while True:
            client.send(bytes(65536))
    except BlockingIOError:
        pass
    client.setblocking(True)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))
    kept.append(listener)
    return client
"#;

/// Prepares a python program that must report readiness.
fn python(flags: &[&str], words: &[&str]) -> Launch {
    let launch = Launch::new(&["-k", "exec", "--ready-after", "1h"]);
    fs::write(launch.path("app.py"), PYTHON).unwrap();
    let launch = flags.iter().fold(launch, |launch, flag| launch.arg(flag));
    launch.program(&[&["python3", "app.py"], words].concat())
}

fn is_hang(record: &Record) -> bool {
    record.message() == "worker hung"
}

#[test]
#[ignore = "slow"]
fn python_crash_is_replaced() {
    if !python_is_installed() {
        return;
    }
    let server = python(&["-w", "2", "--log-level", "debug"], &["one"]).start();
    let workers = server.wait_workers(2);
    let is_status = |record: &Record| record.text("status") == Some("serving");
    server.wait_for("its status", is_status);
    let programs = [program_of(workers[0].pid), program_of(workers[1].pid)];
    assert!(programs.contains(&server.answering_pid()));
    assert_eq!(server.get("/version").text(), "one");
    // The process that answers exits.
    assert!(server.try_get("/exit?code=6").is_err());
    let is_end = |record: &Record| record.message() == "worker exited";
    let exited = server.serve_until("its end", is_end);
    assert_eq!((exited.text("reason"), exited.number("code")), (Some("crashed"), Some(6)));
    let worker = *workers.iter().find(|worker| Some(worker.pid) == exited.pid()).unwrap();
    server.wait_replaced(worker);
    server.finish();
}

#[test]
fn python_drain_finishes_slow_request() {
    if !python_is_installed() {
        return;
    }
    let mut server = python(&[], &["one"]).start();
    let begun = Instant::now();
    let mut client = server.begin("/sleep?ms=1000");
    server.signal(Signal::SIGTERM);
    assert_eq!(client.answer().text(), "Hello, world!\n");
    assert!(begun.elapsed() >= Duration::from_secs(1));
    server.expect_clean_exit();
    wait_line(&server, "its last line", |said| said == "leaving");
    let exited = &server.records_of("worker exited")[0];
    assert_eq!((exited.text("reason"), exited.number("code")), (Some("requested"), Some(0)));
}

/// Shutdown(2) by one program ends a socket for all that share it.
#[test]
#[ignore = "slow"]
fn listener_that_a_program_shuts_down_listens_again() {
    if !python_is_installed() {
        return;
    }
    let server = python(&["-w", "2"], &["one"]).start();
    for _ in 0..3 {
        let workers = server.wait_workers(2);
        let mark = server.mark();
        let mut client = server.connect();
        client.ask("/shutdown");
        let record = server.wait_for_new_record(mark, "the new listen", |record| {
            record.message() == "listener was shut down, listening again"
        });
        let culprit = workers.iter().find(|worker| record.pid() == Some(worker.pid)).unwrap();
        assert_eq!(record.number("slot"), Some(culprit.slot));
        server.wait_replaced(*culprit);
        // The other program may have died of the error of its accept(2).
        wait_until("clients are served", || server.try_get("/").is_ok());
        server.wait_workers(2);
        server.serve_for(Duration::from_millis(100));
    }
    server.finish();
}

#[test]
#[ignore = "slow"]
fn python_reload_under_load_loses_nothing() {
    if !python_is_installed() {
        return;
    }
    let launch = Launch::new(&["-c", "settings.yaml"]).unbound();
    let (port, path) = (launch.port(), launch.path("settings.yaml"));
    fs::write(launch.path("app.py"), PYTHON).unwrap();
    let write = |version: u32| {
        let yaml = format!(
            "worker_class: exec\nworkers: 2\nready_after: 1h\nbind: 127.0.0.1:{port}\n\
             command: [python3, app.py, 'v{version}']\n"
        );
        fs::write(&path, yaml).unwrap();
    };
    write(0);
    let server = launch.start();
    let load = Load::on(server.address());
    for version in 1..=4 {
        write(version);
        let mark = server.mark();
        server.signal(Signal::SIGHUP);
        server.wait_for_new_record(mark, "the end", |record| record.message() == "reload complete");
        load.wait_answers(20);
        assert_eq!(server.get("/version").text(), format!("v{version}"));
    }
    // A worker that receives SIGTERM from outside stops after its replacement is ready.
    let old = server.wait_workers(2)[0];
    kill(old.pid, Signal::SIGTERM).unwrap();
    server.wait_replaced(old);
    load.wait_answers(20);
    load.finish();
    server.finish();
}

/// Returns the program that the guide shows.
fn program_of_guide() -> String {
    let page =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/src/exec.md")).unwrap();
    let (_, program) = page.split_once("```python\n# app.py\n").unwrap();
    program.split_once("```").unwrap().0.to_owned()
}

#[test]
#[ignore = "slow"]
fn program_of_guide_loses_no_request_in_reload_and_shutdown() {
    if !python_is_installed() {
        return;
    }
    let flags = ["-k", "exec", "-w", "2", "--ready-after", "500ms"];
    let launch = Launch::new(&flags).program(&["python3", "app.py"]);
    fs::write(launch.path("app.py"), program_of_guide()).unwrap();
    let mut server = launch.start();
    let load = Load::on(server.address());
    for _ in 0..3 {
        // Each copy serves a client when it is asked to stop.
        let mut taken = [server.connect(), server.connect()];
        taken.iter().for_each(|client| server.wait_taken(client));
        let mark = server.mark();
        server.signal(Signal::SIGHUP);
        let is_draining = |record: &Record| record.message() == "worker draining";
        server.wait_for_new_record(mark, "a drain", is_draining);
        for client in &mut taken {
            assert_eq!(client.get("/").text(), "Hello, world!\n");
        }
        let is_end = |record: &Record| record.message() == "reload complete";
        server.wait_for_new_record(mark, "the end", is_end);
        load.wait_answers(20);
    }
    load.finish();
    let mut clients: Vec<_> = (0..6).map(|_| server.connect()).collect();
    clients[..2].iter().for_each(|client| server.wait_taken(client));
    let mark = server.mark();
    server.signal(Signal::SIGTERM);
    server.wait_for_new_record(mark, "the stop", |record| record.message() == "stopping");
    clients.iter_mut().for_each(|client| client.ask("/"));
    for client in &mut clients {
        assert_eq!(client.answer().text(), "Hello, world!\n");
    }
    server.expect_clean_exit();
}

#[test]
#[ignore = "slow"]
fn python_upgrade_under_load_loses_nothing() {
    if !python_is_installed() {
        return;
    }
    let server = python(&["-w", "2", "--pid", "pid"], &["one"]).start();
    let load = Load::on(server.address());
    let mark = server.mark();
    server.signal(Signal::SIGUSR2);
    let is_ready = |record: &Record| {
        record.message() == "all workers ready" && record.pid().is_some_and(|pid| pid != server.pid)
    };
    let ready = server.wait_for_new_record(mark, "the new master", is_ready);
    load.wait_answers(20);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), Exit::Code(0));
    load.wait_answers(20);
    load.finish();
    kill(ready.pid().unwrap(), Signal::SIGTERM).unwrap();
    server.wait_no_survivors();
}

#[test]
fn socket_made_blocking_is_not_passed_to_another_class() {
    if !python_is_installed() {
        return;
    }
    let launch = Launch::new(&["-c", "settings.yaml"]).unbound();
    let (port, path) = (launch.port(), launch.path("settings.yaml"));
    let text = "import signal, socket\nsocket.socket(fileno=3).setblocking(True)\n\
                print('done', flush=True)\nsignal.pause()\n";
    fs::write(launch.path("app.py"), text).unwrap();
    let common = format!("bind: 127.0.0.1:{port}\nready_after: 100ms\n");
    let yaml = format!("{common}worker_class: exec\ncommand: [python3, app.py]\n");
    fs::write(&path, yaml).unwrap();
    let server = launch.start();
    wait_line(&server, "its output", |said| said == "done");
    let old = server.workers()[0];
    assert!(blocks(old.pid), "the flag is not shared");
    fs::write(&path, format!("{common}worker_class: mio\n")).unwrap();
    server.signal(Signal::SIGHUP);
    server.wait_exited(old.pid);
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    assert!(!blocks(server.wait_workers(1)[0].pid));
    server.finish();
}

/// Returns whether the first listening socket of a worker is in blocking mode.
fn blocks(worker: Pid) -> bool {
    const NONBLOCK: u32 = 0o4000;
    let is_socket = |fd: &u64| {
        fs::read_link(format!("/proc/{worker}/fd/{fd}"))
            .is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
    };
    let fd = descriptors(worker).into_iter().find(is_socket).unwrap();
    let text = fs::read_to_string(format!("/proc/{worker}/fdinfo/{fd}")).unwrap();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
    u32::from_str_radix(flags.trim(), 8).unwrap() & NONBLOCK == 0
}

#[test]
#[ignore = "slow"]
fn python_silent_after_first_heartbeat_is_hung() {
    if !python_is_installed() {
        return;
    }
    let flags = ["-t", "2s", "--abort-timeout", "10s"];
    let server = python(&flags, &["one", "--watched"]).start();
    let worker = server.workers()[0];
    // With heartbeats, a request may take any time.
    assert_eq!(server.get("/sleep?ms=2500").text(), "Hello, world!\n");
    assert_eq!(server.records_of("worker hung").len(), 0);
    server.get("/silence");
    let hung = server.wait_for("the hang", is_hang);
    assert_eq!((hung.pid(), hung.text("error")), (Some(worker.pid), Some("no_heartbeat")));
    assert_eq!(hung.text("status"), Some("serving"), "{hung:?}");
    let exited = server.wait_exited(worker.pid);
    assert_eq!(exited.text("reason"), Some("hung"), "{exited:?}");
    assert_eq!(exited.text("signal"), Some("SIGABRT"), "the program was aborted: {exited:?}");
    assert_eq!(exited.text("error"), Some("program stopped sending WATCHDOG=1"));
    wait_line(&server, "where it was", |said| said.contains("Fatal Python error: Aborted"));
    server.wait_replaced(worker);
    server.finish();
}

#[test]
#[ignore = "slow"]
fn python_without_heartbeats_is_alive_while_running() {
    if !python_is_installed() {
        return;
    }
    let server = python(&["-t", "600ms"], &["one"]).start();
    assert_eq!(server.get("/sleep?ms=2500").text(), "Hello, world!\n");
    assert_eq!(server.records_of("worker hung").len(), 0);
    server.finish();
}

#[test]
#[ignore = "slow"]
fn python_watchdog_trigger_aborts_it() {
    if !python_is_installed() {
        return;
    }
    let server = python(&["--abort-timeout", "10s"], &["one"]).start();
    let worker = server.workers()[0];
    let mut client = server.connect();
    client.send("GET /say?WATCHDOG=trigger HTTP/1.1\r\n\r\n");
    let exited = server.wait_exited(worker.pid);
    assert_eq!(exited.text("signal"), Some("SIGABRT"), "{exited:?}");
    assert!(exited.text("error").unwrap().contains("WATCHDOG=trigger"), "{exited:?}");
    server.wait_replaced(worker);
    server.finish();
}

#[test]
#[ignore = "slow"]
fn python_stopping_message_gets_replacement() {
    if !python_is_installed() {
        return;
    }
    let server = python(&[], &["one"]).start();
    let worker = server.workers()[0];
    server.get("/say?STOPPING=1");
    server.wait_for("its drain", |record| record.is("worker draining", worker.pid));
    wait_until("its replacement is ready", || {
        server.workers().iter().any(|other| other.slot == worker.slot && other.pid != worker.pid)
    });
    // The program is waited for, and gets no stop signal.
    assert!(!server.records_of("worker exited").iter().any(|r| r.pid() == Some(worker.pid)));
    kill(program_of(worker.pid), Signal::SIGTERM).unwrap();
    let exited = server.wait_exited(worker.pid);
    assert_eq!((exited.text("reason"), exited.number("code")), (Some("requested"), Some(0)));
    server.finish();
}

#[test]
fn node_drain_finishes_requests() {
    if !is_installed(&["node", "--version"]) {
        return;
    }
    let launch = Launch::new(&["-k", "exec", "-w", "2", "--ready-after", "200ms"]);
    fs::write(launch.path("app.js"), NODE).unwrap();
    let mut server = launch.program(&["node", "app.js"]).start();
    let workers = server.wait_workers(2);
    wait_until("both listen", || {
        server.records_of("output").iter().filter(|r| r.text("line") == Some("listening")).count()
            == 2
    });
    let programs = workers.iter().map(|worker| program_of(worker.pid)).collect::<Vec<_>>();
    assert!(programs.contains(&server.answering_pid()));
    kill(programs[0], Signal::SIGKILL).unwrap();
    let exited = server.wait_exited(workers[0].pid);
    assert_eq!(exited.text("signal"), Some("SIGKILL"));
    server.wait_replaced(workers[0]);
    let mut client = server.begin("/sleep?ms=1000");
    server.signal(Signal::SIGTERM);
    assert_eq!(client.answer().text(), "Hello, world!\n");
    server.expect_clean_exit();
}

/// Asserts that a server without support for Ostler serves on the inherited socket.
fn expect_foreign_server_serves(file: &str, text: &str, words: &[&str]) {
    let launch = Launch::new(&["-k", "exec", "-w", "2", "--ready-after", "2s"]);
    fs::write(launch.path(file), text).unwrap();
    let server = launch.program(words).start();
    let workers = server.wait_workers(2);
    wait_until("it serves", || server.try_get("/").is_ok_and(|answer| answer.status() == 200));
    let answering = server.answering_pid();
    let mut family = workers.iter().flat_map(|worker| {
        let program = program_of(worker.pid);
        children(program).into_iter().map(|child| child.pid).chain([program])
    });
    assert!(family.any(|pid| pid == answering), "another process answers");
    kill(workers[0].pid, Signal::SIGKILL).unwrap();
    server.wait_replaced(workers[0]);
    let mark = server.mark();
    server.signal(Signal::SIGHUP);
    server.wait_for_new_record(mark, "the reload", |record| record.message() == "reload complete");
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    stop_foreign(server);
}

/// Stops the server. Its program may end by a signal or a code, but at once and with all its
/// processes.
fn stop_foreign(server: Server) {
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), Exit::Code(0));
    server.wait_no_survivors();
    for exited in server.records_of("worker exited") {
        let reason = exited.text("reason").unwrap();
        assert!(["crashed", "reload", "requested"].contains(&reason), "{exited:?}");
    }
}

#[test]
#[ignore = "slow"]
fn gunicorn_serves_unmodified() {
    if !is_installed(&["gunicorn", "--version"]) {
        return;
    }
    // Through LISTEN_FDS, as from systemd, or through the descriptor's number: gunicorn takes one of
    // them only.
    expect_foreign_server_serves("app.py", WSGI, &["gunicorn", "-w", "2", "app:app"]);
    let words = ["env", "-u", "LISTEN_FDS", "gunicorn", "-b", "fd://3", "-w", "2", "app:app"];
    expect_foreign_server_serves("app.py", WSGI, &words);
}

#[test]
fn uvicorn_serves_unmodified() {
    if is_installed(&["uvicorn", "--version"]) {
        expect_foreign_server_serves("app.py", ASGI, &["uvicorn", "--fd", "3", "app:app"]);
    }
}

#[test]
fn program_serves_at_unix_path() {
    if !python_is_installed() {
        return;
    }
    let launch = python(&[], &["one"]).unbound();
    let path = launch.dir().join("sock");
    let server = launch.arg("--bind").arg("unix:sock").start();
    let mut client = Client::unix(&path).unwrap();
    assert_eq!(client.get("/").text(), "Hello, world!\n");
    server.finish();
    assert!(!path.exists());
}
