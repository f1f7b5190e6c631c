//! Scaling with load: a pool whose number of workers is a range grows under load and shrinks after it,
//! and no request is lost.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::client::Client;
use crate::exec_programs::python_is_installed;
use crate::launch::Launch;
use crate::log_capture::Record;
use crate::proc::wait_until;
use crate::reuse_port::sockets_at;
use crate::support::{Exit, Server};

on_every_class!(
    ramp_is_followed_and_nothing_is_lost,
    hung_worker_does_not_shrink_the_pool,
    idle_pool_shrinks_and_stays_small_whatever_the_timeout,
    stopped_worker_is_busy,
    reuse_port_serves_all_queues_at_every_size,
    new_master_starts_with_the_count_of_the_old_one,
);

/// Clients that hold workers with one request after another, each of which must be answered.
struct Holders {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Holders {
    fn start(count: usize, address: SocketAddr, path: &'static str, pause: Duration) -> Self {
        Self::connecting(count, move || Client::tcp(address), path, pause)
    }

    fn connecting(
        count: usize,
        connect: impl Fn() -> io::Result<Client> + Clone + Send + 'static,
        path: &'static str,
        pause: Duration,
    ) -> Self {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let hold = |_| {
            let (stop, answers) = (Arc::clone(&stop), Arc::clone(&answers));
            let connect = connect.clone();
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let answer = connect().unwrap().try_get_last(path).unwrap();
                    assert_eq!(answer.status(), 200);
                    answers.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(pause);
                }
            })
        };
        let threads = (0..count).map(hold).collect();
        Self { stop, answers, threads }
    }

    /// Ends them. Every request was answered.
    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(self.answers.load(Ordering::Relaxed) > 0);
    }
}

/// Returns the changes of the target by load: from, to, why.
fn changes(server: &Server) -> Vec<(i64, i64, String)> {
    let change = |record: Record| {
        let number = |key| record.number(key).unwrap();
        (number("from"), number("to"), record.text("reason").unwrap().to_owned())
    };
    server.records_of("workers scaled").into_iter().map(change).collect()
}

fn pool_status(socket: &Path) -> Value {
    Client::unix(socket).unwrap().get("/v1/status").json()["pools"][0].clone()
}

fn ramp_is_followed_and_nothing_is_lost(class: &str) {
    let flags = ["-k", class, "-w", "1-4", "--threads", "1", "--scale-down-after", "300ms"];
    let launch = Launch::new(&flags);
    let socket = launch.path("control");
    let server = launch.arg("--control-socket").arg(&socket).start();
    let socket = Path::new(&socket);
    let pool = pool_status(socket);
    assert_eq!((&pool["workers_min"], &pool["workers_max"]), (&1.into(), &4.into()));
    assert_eq!((&pool["target"], &pool["scaling"]["last"]), (&1.into(), &Value::Null));
    // Light clients the whole time: the drains must not lose them.
    let light = Holders::start(1, server.address(), "/", Duration::from_millis(20));
    let heavy = Holders::start(6, server.address(), "/sleep?ms=200", Duration::ZERO);
    server.wait_workers(4);
    let last = pool_status(socket)["scaling"]["last"].clone();
    assert_eq!(last["to"], 4);
    assert!(["busy", "queue"].contains(&last["reason"].as_str().unwrap()), "{last}");
    heavy.finish();
    server.wait_workers(1);
    light.finish();
    let last = pool_status(socket)["scaling"]["last"].clone();
    assert_eq!((&last["to"], &last["reason"]), (&1.into(), &"quiet".into()));
    for (from, to, reason) in changes(&server) {
        assert!((1..=4).contains(&to));
        assert!(if reason == "quiet" { to == from - 1 } else { from < to && to <= 2 * from });
    }
    let drained = server.records_of("worker exited");
    assert!(drained.iter().all(|record| record.text("reason") == Some("scaled_down")));
    server.finish();
}

fn hung_worker_does_not_shrink_the_pool(class: &str) {
    let flags = ["-k", class, "-w", "1-2", "--threads", "1", "-t", "4s"];
    let server = Launch::new(&flags).arg("--scale-down-after").arg("300ms").start();
    let _hung = server.begin("/hang");
    server.wait_workers(2);
    let hang = server.wait_for("the hang", |record| record.message() == "worker hung");
    assert!(hang.text("unit").is_none_or(|unit| unit == "GET /hang"));
    assert_eq!(changes(&server).len(), 1, "none while the worker hung: {:?}", changes(&server));
    assert_eq!(server.get("/").status(), 200);
    server.wait_workers(1);
    server.finish();
}

fn idle_pool_shrinks_and_stays_small_whatever_the_timeout(class: &str) {
    let flags = ["-k", class, "-w", "1-2", "--threads", "1", "-t", "600s"];
    let server = Launch::new(&flags).arg("--scale-down-after").arg("300ms").start();
    let heavy = Holders::start(4, server.address(), "/sleep?ms=200", Duration::ZERO);
    server.wait_workers(2);
    heavy.finish();
    server.wait_workers(1);
    assert!(
        !server.sees_record(Duration::from_secs(3), |_| false),
        "a time to see that nothing changes"
    );
    let targets: Vec<_> = changes(&server).into_iter().map(|(from, to, _)| (from, to)).collect();
    assert_eq!(targets, [(1, 2), (2, 1)]);
    server.finish();
}

fn stopped_worker_is_busy(class: &str) {
    let server = Server::start(&["-k", class, "-w", "1-2", "-t", "600s"]);
    let stopped = server.wait_workers(1)[0];
    kill(stopped.pid, Signal::SIGSTOP).unwrap();
    server.wait_workers(2);
    assert_eq!(changes(&server)[0], (1, 2, "busy".to_owned()));
    kill(stopped.pid, Signal::SIGCONT).unwrap();
    assert_eq!(server.get("/").status(), 200);
    server.finish();
}

fn reuse_port_serves_all_queues_at_every_size(class: &str) {
    let flags = ["-k", class, "-w", "1-3", "--threads", "1", "--reuse-port"];
    let server = Launch::new(&flags).arg("--scale-down-after").arg("300ms").start();
    // A socket for each worker that there can be: those without a worker are served by others.
    wait_until("sockets", || sockets_at(server.address()) == 3);
    let light = Holders::start(2, server.address(), "/", Duration::from_millis(20));
    for _ in 0..20 {
        assert_eq!(server.get("/").status(), 200);
    }
    let heavy = Holders::start(6, server.address(), "/sleep?ms=200", Duration::ZERO);
    server.wait_workers(3);
    heavy.finish();
    server.wait_workers(1);
    light.finish();
    server.finish();
}

/// The load has grown the pool; the new master does not shrink it to the smallest number.
fn new_master_starts_with_the_count_of_the_old_one(class: &str) {
    let launch = Launch::new(&[]);
    let path = launch.path("ostler.yaml");
    let write = |workers: &str| {
        let text = format!("worker_class: {class}\nworkers: {workers}\nscale_down_after: 1h\n");
        fs::write(&path, text).unwrap();
    };
    write("1-4");
    let server = launch.arg("--config").arg(&path).start();
    for count in [2, 3] {
        server.signal(Signal::SIGTTIN);
        server.wait_workers(count);
    }
    // The number of the old master, that within the new range, and that of the new setting.
    for (workers, count) in [("1-4", 3), ("1-2", 2), ("4-5", 4), ("1", 1)] {
        write(workers);
        let mark = server.mark();
        server.signal(Signal::SIGUSR2);
        let ready = server.wait_for_new_record(mark, "the new master", |record| {
            record.message() == "all workers ready"
        });
        assert_eq!(ready.number("workers"), Some(count), "{workers}");
        let pid = Pid::from_raw(ready.number("pid").unwrap() as i32);
        server.wait_for_new_record(mark, "its report", |it| it.message() == "new master ready");
        kill(pid, Signal::SIGTERM).unwrap();
        server.wait_for_new_record(mark, "its exit", |it| it.message() == "new master exited");
    }
    server.finish();
}

#[test]
fn new_master_keeps_a_number_that_signals_have_set() {
    let server = Server::start(&["-w", "2"]);
    server.signal(Signal::SIGTTIN);
    server.wait_workers(3);
    let mark = server.mark();
    server.signal(Signal::SIGUSR2);
    let ready = server
        .wait_for_new_record(mark, "the new master", |it| it.message() == "all workers ready");
    assert_eq!(ready.number("workers"), Some(3));
    kill(Pid::from_raw(ready.number("pid").unwrap() as i32), Signal::SIGTERM).unwrap();
    server.wait_for_new_record(mark, "its exit", |it| it.message() == "new master exited");
    server.finish();
}

#[test]
fn signals_move_the_target_within_the_range() {
    let server = Server::start(&["-w", "2-3", "--scale-down-after", "1h"]);
    for (signal, from, to) in [(Signal::SIGTTIN, 2, 3), (Signal::SIGTTOU, 3, 2)] {
        let mark = server.mark();
        server.signal(signal);
        let record = server.wait_for_new_record(mark, "the change", |record| {
            record.message() == "worker count changed"
        });
        assert_eq!((record.number("from"), record.number("to")), (Some(from), Some(to)));
        server.wait_workers(to as usize);
        if signal == Signal::SIGTTIN {
            server.signal(signal);
            let limit = |record: &Record| record.message() == "worker count at limit";
            let record = server.wait_for_new_record(mark, "the limit", limit);
            assert_eq!((record.number("min"), record.number("max")), (Some(2), Some(3)));
        }
    }
    assert_eq!(changes(&server), []);
    server.finish();
}

#[test]
fn commands_move_the_target_within_the_range() {
    let launch = Launch::new(&["-w", "2-3", "--scale-down-after", "1h"]);
    let socket = launch.path("control");
    let server = launch.arg("--control-socket").arg(&socket).start();
    let scale = |workers: &str| {
        let mut client = Client::unix(Path::new(&socket)).unwrap();
        let fields = "Host: ostler\r\nContent-Length: 0\r\n";
        client.send(format!("POST /v1/scale?workers={workers} HTTP/1.1\r\n{fields}\r\n"));
        let answer = client.answer();
        (answer.status(), String::from_utf8(answer.body.clone()).unwrap())
    };
    for workers in ["1", "4", "-1", "%2B2"] {
        let (status, text) = scale(workers);
        assert_eq!(status, 409, "{workers}: {text}");
        assert!(text.contains("must stay from 2 to 3"), "{text}");
    }
    assert_eq!(scale("3").0, 200);
    server.wait_workers(3);
    let last = pool_status(Path::new(&socket))["scaling"]["last"].clone();
    assert_eq!((&last["to"], &last["reason"]), (&3.into(), &"requested".into()));
    server.finish();
}

#[test]
fn reload_keeps_the_target_within_the_new_range() {
    let launch = Launch::new(&[]);
    let path = launch.path("ostler.yaml");
    let write = |workers: &str| {
        fs::write(&path, format!("workers: {workers}\nscale_down_after: 1h\n")).unwrap();
    };
    write("1-4");
    let server = launch.arg("--config").arg(&path).start();
    for count in [2, 3] {
        server.signal(Signal::SIGTTIN);
        server.wait_workers(count);
    }
    for (workers, count) in [("1-8", 3), ("4-8", 4), ("1-2", 2), ("1", 1), ("1-3", 1), ("2-3", 2)] {
        write(workers);
        let mark = server.mark();
        server.signal(Signal::SIGHUP);
        server.wait_for_new_record(mark, "the reload", |it| it.message() == "reload complete");
        server.wait_workers(count);
    }
    server.finish();
}

#[test]
fn target_stays_while_a_reload_is_in_progress() {
    let launch = Launch::new(&["-w", "1-4"]);
    let path = launch.path("ostler.yaml");
    fs::write(&path, "scale_down_after: 1h\n").unwrap();
    let server = launch.arg("--config").arg(&path).start();
    // A boot that takes longer than the policy needs to decide.
    fs::write(&path, "env: {DEMO_BOOT_SLEEP_MS: 2500}\n").unwrap();
    server.signal(Signal::SIGHUP);
    server.wait_for("the canary", |record| {
        record.message() == "worker started" && record.number("generation") == Some(2)
    });
    let holders = Holders::start(3, server.address(), "/sleep?ms=100", Duration::ZERO);
    server.wait_for("the reload", |record| record.message() == "reload complete");
    server.wait_for("the change", |record| record.message() == "workers scaled");
    let order: Vec<String> = server.records().iter().map(|it| it.message().to_owned()).collect();
    let at = |message| order.iter().position(|it| it == message).unwrap();
    assert!(at("reload complete") < at("workers scaled"), "{order:?}");
    holders.finish();
    server.finish();
}

#[test]
fn programs_scale_by_their_queue() {
    program_scales_by_its_queue(Launch::new(&[]), |server| {
        let address = server.address();
        Holders::start(6, address, "/", Duration::ZERO)
    });
}

#[test]
fn programs_scale_by_the_queue_of_a_unix_socket() {
    let launch = Launch::new(&["-b", "unix:queue"]).unbound();
    program_scales_by_its_queue(launch, |server| {
        let path = server.path("queue");
        Holders::connecting(6, move || Client::unix(&path), "/", Duration::ZERO)
    });
}

fn program_scales_by_its_queue(launch: Launch, hold: impl Fn(&Server) -> Holders) {
    if !python_is_installed() {
        return;
    }
    let text = "import socket, time\n\
        listener = socket.socket(fileno=3)\n\
        listener.setblocking(True)\n\
        while True:\n\
        \x20   client = listener.accept()[0]\n\
        \x20   client.recv(65536)\n\
        \x20   time.sleep(0.2)\n\
        \x20   client.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n')\n\
        \x20   client.close()\n";
    let flags = ["-k", "exec", "-w", "1-3", "--scale-down-after", "300ms"];
    let launch = flags.iter().fold(launch, Launch::arg);
    let server = launch.program(&["python3", "-c", text]).start();
    let holders = hold(&server);
    server.wait_workers(3);
    assert!(changes(&server).iter().all(|(.., reason)| reason == "queue"));
    holders.finish();
    server.wait_workers(1);
    server.finish();
}

#[test]
fn range_without_a_known_load_is_refused() {
    for (args, reason) in [
        (&["-w", "1-2", "tick"] as &[&str], "is a job"),
        (&["-k", "exec", "-w", "1-2", "-b", "none", "--", "true"], "accept queue"),
        (&["-w", "4-2"], "MIN <= MAX"),
    ] {
        let launch = args.iter().fold(Launch::new(&[]).unbound(), Launch::arg);
        let outcome = launch.run();
        assert!(matches!(outcome.exit, Exit::Code(1 | 2)), "{outcome:?}");
        assert!(outcome.stderr.contains("-w") && outcome.stderr.contains(reason), "{outcome:?}");
    }
}
