//! The log: whole records, each with its fields.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::thread;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::launch::Launch;
use crate::log_capture::Record;
use crate::proc::{children, wait_until};
use crate::support::{Exit, Server};

on_every_class_and_tokio!(
    records_never_interleave,
    panic_is_logged_as_record,
    full_terminal_blocks_no_worker,
    ; except tokio:
    full_log_file_costs_records_only,
);

fn records_never_interleave(class: &str) {
    let mut server = Server::start(&["-k", class, "-w", "4", "--log-level", "debug"]);
    let workers = server.wait_workers(4);
    thread::scope(|scope| {
        for path in ["/", "/panic", "/nothing"] {
            let server = &server;
            scope.spawn(move || {
                for _ in 0..50 {
                    server.get(path);
                }
            });
        }
    });
    for worker in workers {
        kill(worker.pid, Signal::SIGKILL).unwrap();
        server.wait_replaced(worker);
    }
    server.signal(Signal::SIGTERM);
    // Asserts, among other things, that stderr holds records only.
    server.expect_clean_exit();
    let mut messages = BTreeSet::new();
    for line in server.lines() {
        let record: Value = serde_json::from_str(&line).unwrap();
        for key in ["ts", "level", "msg"] {
            assert!(record.get(key).is_some(), "{line} has no {key}");
        }
        // Counts are numbers.
        for key in ["pid", "slot", "code", "uptime_ms", "generation"] {
            let fact = record.get(key);
            assert!(fact.is_none_or(Value::is_number), "{key} is no number: {line}");
        }
        let keys = line.matches("\"msg\":").count();
        assert_eq!(keys, 1, "{line}");
        messages.insert(record["msg"].as_str().unwrap().to_owned());
    }
    for message in [
        "listening",
        "worker started",
        "worker ready",
        "worker exited",
        "all workers ready",
        "stopping",
        "stopped",
    ] {
        assert!(messages.contains(message), "{message} is missing in {messages:?}");
    }
}

fn panic_is_logged_as_record(class: &str) {
    let server = Server::start(&["-k", class]);
    assert_eq!(server.get("/panic").status(), 500);
    let panic = server.wait_for("the panic", |record| record.message() == "worker panicked");
    assert!(panic.text("location").is_some(), "{panic:?}");
    assert_eq!(panic.text("label"), Some("GET /panic"));
    server.finish();
}

#[test]
fn server_lifetime_is_logged_with_fields() {
    let mut server = Server::start(&["-k", "mio", "-w", "2"]);
    let workers = server.wait_workers(2);
    for worker in &workers {
        for message in ["worker started", "worker ready"] {
            let records = server.records_of(message);
            let about: Vec<_> =
                records.iter().filter(|record| record.pid() == Some(worker.pid)).collect();
            assert_eq!(about.len(), 1, "{message}: {about:?}");
            assert_eq!(about[0].number("slot"), Some(worker.slot));
        }
    }
    assert_eq!(server.records_of("worker started")[0].number("generation"), Some(1));
    assert!(server.records_of("listening")[0].text("address").unwrap().contains("127.0.0.1"));
    let order: Vec<_> = server.records().iter().map(|record| record.message().to_owned()).collect();
    let at = |message: &str| order.iter().position(|said| said == message).unwrap();
    assert!(at("listening") < at("worker started"));
    assert!(at("worker started") < at("worker ready"));
    assert!(
        order.iter().rposition(|said| said == "worker ready").unwrap() < at("all workers ready")
    );
    server.signal(Signal::SIGTERM);
    server.expect_clean_exit();
    for worker in workers {
        let exited = server.wait_exited(worker.pid);
        assert_eq!(exited.number("slot"), Some(worker.slot));
        assert_eq!(exited.text("reason"), Some("requested"));
        assert_eq!(exited.number("code"), Some(0));
        assert_eq!(server.records_of("worker exited").len(), 2);
    }
}

#[test]
fn log_level_filters_records() {
    let mut server = Launch::new(&["--log-level", "error"]).spawn();
    crate::proc::wait_until("it serves", || {
        server.try_get("/").is_ok_and(|answer| answer.status() == 200)
    });
    server.signal(Signal::SIGTERM);
    server.expect_clean_exit();
    assert!(server.lines().is_empty(), "{:#?}", server.lines());
}

#[test]
fn log_file_receives_the_log() {
    let launch = Launch::new(&[]);
    let log = launch.path("log");
    let mut server = launch.arg("--log-file").arg(&log).spawn();
    crate::proc::wait_until("it serves", || {
        server.try_get("/").is_ok_and(|answer| answer.status() == 200)
    });
    server.signal(Signal::SIGTERM);
    server.expect_clean_exit();
    assert!(server.lines().is_empty(), "{:#?}", server.lines());
    let text = fs::read_to_string(log).unwrap();
    assert!(text.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{text}");
    assert!(text.contains("worker ready"));
}

#[test]
fn text_formats_are_readable() {
    for format in ["full", "compact"] {
        let server = Launch::new(&["--log-format", format, "-w", "2"]).plain().spawn();
        crate::proc::wait_until("it serves", || {
            server.try_get("/").is_ok_and(|answer| answer.status() == 200)
        });
        crate::proc::wait_until("it is ready", || {
            server.lines().iter().filter(|line| line.contains("worker ready")).count() == 2
        });
        server.signal(Signal::SIGTERM);
        server.wait_exit();
        server.wait_silence();
        let lines = server.lines();
        // A pipe is no terminal: no colours.
        assert!(lines.iter().all(|line| !line.contains('\x1b')), "{lines:#?}");
        assert!(lines.iter().any(|line| line.contains("stopped")), "{lines:#?}");
    }
}

#[test]
fn fields_have_one_order_in_every_format() {
    let mut orders = Vec::new();
    for format in ["json", "full", "compact"] {
        let server = Launch::new(&["--log-format", format]).plain().spawn();
        wait_until("it is ready", || server.lines().iter().any(|l| l.contains("worker ready")));
        server.signal(Signal::SIGTERM);
        server.wait_exit();
        server.wait_silence();
        let lines = server.lines();
        let line = lines.iter().find(|line| line.contains("worker exited")).unwrap();
        orders.push(order_of(line, &["generation", "pid", "units", "slot", "reason", "uptime_ms"]));
    }
    assert_eq!(orders[0].len(), 6, "{orders:?}");
    assert!(orders.iter().all(|order| *order == orders[0]), "{orders:?}");
}

/// Returns those of the keys that a line has, in its order.
fn order_of<'k>(line: &str, keys: &[&'k str]) -> Vec<&'k str> {
    let at = |key: &str| line.find(&format!(" {key}: ")).or(line.find(&format!("\"{key}\":")));
    let mut found: Vec<_> = keys.iter().filter_map(|key| Some((at(key)?, *key))).collect();
    found.sort_unstable();
    found.into_iter().map(|(_, key)| key).collect()
}

#[test]
fn flight_recorder_survives_killed_master() {
    let launch = Launch::new(&["-k", "mio", "--log-level", "error"]);
    let path = launch.path("events");
    let server = launch.arg("--flight-recorder-file").arg(&path).spawn();
    let has = |wanted: &str, pid: i32| {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let pid = format!(" pid={pid} ");
        text.lines().any(|line| line.contains(wanted) && format!("{line} ").contains(&pid))
    };
    wait_until("the workers", || has(" ready ", server.pid.as_raw()));
    let worker = children(server.pid)[0].pid;
    kill(worker, Signal::SIGKILL).unwrap();
    wait_until("its end", || has("worker exited", worker.as_raw()));
    kill(server.pid, Signal::SIGKILL).unwrap();
    server.wait_exit();
    assert!(has("worker exited", worker.as_raw()), "the exit is not recorded");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.lines().all(|line| line.len() == 255), "all have one length: {text}");
    assert!(text.lines().is_sorted(), "{text}");
    // The next master appends to the same file.
    let next = Launch::new(&["-k", "mio", "--flight-recorder-file", &path]).start();
    next.finish();
    let after = fs::read_to_string(&path).unwrap();
    assert!(after.starts_with(&text) && after.lines().is_sorted(), "{after}");
}

/// A file that is no ring, or a forged one, costs neither the start, nor a reload, nor its bytes.
#[test]
fn invalid_flight_recorder_file_is_replaced() {
    let launch = Launch::new(&["-k", "mio"]);
    let (path, aside) = (launch.path("events"), launch.path("events.old"));
    fs::write(&path, "precious\n").unwrap();
    let server = launch.arg("--flight-recorder-file").arg(&path).start();
    let replaced = |record: &Record| record.message() == "flight recorder file replaced";
    let record = server.wait_for("it is said", replaced);
    assert_eq!(record.text("path"), Some(path.as_str()));
    assert_eq!(fs::read_to_string(&aside).unwrap(), "precious\n");
    let is_ring = || {
        let text = fs::read_to_string(&path).unwrap();
        text.lines().count() > 2 && text.lines().all(|line| line.len() == 255)
    };
    assert!(is_ring());
    // A number beyond all others, a number in the wrong place, a fragment.
    let record = |number: u64| format!("{number:020} {:234}\n", "forged");
    for forged in [record(1 << 62), record(7), "x".repeat(100)] {
        fs::write(&path, forged).unwrap();
        let mark = server.mark();
        server.signal(Signal::SIGHUP);
        server.wait_for_new_record(mark, "it is replaced", replaced);
        server.wait_for_new_record(mark, "it reloads", |record| {
            record.message() == "reload complete"
        });
        assert!(!fs::read_to_string(&path).unwrap().contains("forged"));
    }
    // What was there first is kept.
    assert_eq!(fs::read_to_string(&aside).unwrap(), "precious\n");
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&aside, &path).unwrap();
    let mark = server.mark();
    server.signal(Signal::SIGHUP);
    server.wait_for_new_record(mark, "it reloads", |record| record.message() == "reload complete");
    assert!(fs::symlink_metadata(&path).unwrap().is_file() && is_ring());
    assert_eq!(fs::read_to_string(&aside).unwrap(), "precious\n");
    server.finish();
}

/// A directory that is not empty can only be renamed, which a file at the new path prevents.
#[test]
fn flight_recorder_that_cannot_be_replaced_is_a_warning() {
    let launch = Launch::new(&["-k", "mio"]);
    let (path, aside) = (launch.path("events"), launch.path("events.old"));
    fs::create_dir_all(format!("{path}/entry")).unwrap();
    fs::write(&aside, "precious\n").unwrap();
    let server = launch.arg("--flight-recorder-file").arg(&path).start();
    let warning = |record: &Record| record.message() == "failed to replace flight recorder file";
    let record = server.wait_for("it is said", warning);
    assert_eq!(record.text("path"), Some(path.as_str()));
    let mark = server.mark();
    server.signal(Signal::SIGHUP);
    server.wait_for_new_record(mark, "it is said again", warning);
    server.wait_for_new_record(mark, "it reloads", |record| record.message() == "reload complete");
    assert_eq!(fs::read_to_string(&aside).unwrap(), "precious\n");
    server.finish();
}

/// What a program prints, and the words of a command.
#[test]
fn control_characters_are_escaped_in_every_format() {
    for format in ["json", "full", "compact"] {
        let launch = Launch::new(&["-k", "exec", "-b", "none", "--ready-after", "10ms"]).unbound();
        let events = launch.path("events");
        let text = "printf 'a\\tb\\342\\200\\256c\\n'\n# \u{1b}[31m \u{7f}\u{9b}\nexec sleep 100";
        let launch = launch.arg("--log-format").arg(format);
        let launch = launch.arg("--flight-recorder-file").arg(&events).plain();
        let server = launch.program(&["sh", "-c", text]).spawn();
        let said = |words: &str| server.lines().iter().any(|line| line.contains(words));
        wait_until("its output", || said(r"a\tb\u202ec"));
        assert!(said(r"\n# \u001b[31m \u007f\u009b\nexec sleep"), "{:#?}", server.lines());
        server.signal(Signal::SIGTERM);
        server.wait_exit();
        server.wait_silence();
        let recorded = fs::read_to_string(&events).unwrap();
        let recorded = recorded.lines().map(str::to_owned);
        for line in server.lines().into_iter().chain(recorded) {
            assert!(!line.contains(char::is_control), "{format}: {line:?}");
            assert!(!line.starts_with("exec"), "{format}: {line:?}");
        }
    }
}

#[test]
fn long_record_ends_in_line_feed() {
    for format in ["json", "full", "compact"] {
        let launch = Launch::new(&["-k", "exec", "-b", "none", "--ready-after", "10ms"]).unbound();
        let text = format!("exec sleep 100 # {}", "é".repeat(5000));
        let launch = launch.arg("--log-format").arg(format).plain();
        let server = launch.program(&["sh", "-c", &text]).spawn();
        let said = |words: &str| server.lines().iter().filter(|l| l.contains(words)).count();
        wait_until("it is ready", || said("all workers ready") > 0);
        for line in server.lines() {
            assert!(line.len() < 4096, "{format}: {}", line.len());
            assert!(!line.contains('\u{fffd}'), "{format}: {line}");
            let is_long = line.contains("master started");
            assert!(!is_long || line.contains("ééé..."), "{format}: {line}");
            assert!(!is_long || !line.contains("worker started"), "{format}: {line}");
            assert!(format != "json" || serde_json::from_str::<Value>(&line).is_ok(), "{line}");
        }
        server.signal(Signal::SIGTERM);
        server.wait_exit();
    }
}

/// A terminal stays writable for poll(2) while it has room for a part of a record.
fn full_terminal_blocks_no_worker(class: &str) {
    let terminal = nix::pty::openpty(None, None).unwrap();
    let server = Launch::new(&["-k", class]).stderr_to(terminal.slave).spawn();
    wait_until("it serves", || server.try_get("/").is_ok_and(|answer| answer.status() == 200));
    for _ in 0..600 {
        assert_eq!(server.get("/panic").status(), 500);
    }
    let worker = children(server.pid)[0].pid;
    kill(worker, Signal::SIGKILL).unwrap();
    wait_until("it is replaced", || children(server.pid).iter().all(|child| child.pid != worker));
    wait_until("it serves", || server.try_get("/").is_ok_and(|answer| answer.status() == 200));
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), Exit::Code(0));
    drop(terminal.master);
}

/// With a limit on the size of files, the kernel sends SIGXFSZ for a write beyond it.
fn full_log_file_costs_records_only(class: &str) {
    let script = "ulimit -f 8; exec \"$0\" \"$@\"";
    let launch = Launch::by(&["sh", "-c", script, env!("CARGO_BIN_EXE_ostler")], &["-k", class]);
    let log = launch.path("log");
    let server = launch.arg("-w").arg("2").arg("--log-file").arg(&log).spawn();
    wait_until("it serves", || server.try_get("/").is_ok_and(|answer| answer.status() == 200));
    let size = || fs::metadata(&log).unwrap().len();
    let limit = || size() >= 4096 && size().is_multiple_of(4096);
    for _ in 0..200 {
        assert_eq!(server.get("/panic").status(), 500);
    }
    wait_until("the file is full", limit);
    for _ in 0..3 {
        let victim = server.answering_pid();
        kill(victim, Signal::SIGKILL).unwrap();
        wait_until("it is replaced", || {
            let workers = children(server.pid);
            workers.len() == 2 && workers.iter().all(|it| it.pid != victim && it.state != 'Z')
        });
    }
    server.signal(Signal::SIGUSR1);
    assert_eq!(server.get("/").status(), 200);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), Exit::Code(0));
    assert!(limit(), "{}", size());
}

/// Rotates by `config/logrotate/ostler`, at another place and without systemd.
#[test]
fn logrotate_moves_the_log_and_nothing_is_lost() {
    let launch = Launch::new(&["-k", "mio"]);
    let (log, pid) = (launch.path("shop.log"), launch.path("pid"));
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/logrotate/ostler");
    let text = fs::read_to_string(file).unwrap();
    let dir = launch.dir().to_str().unwrap().to_owned();
    let (mut config, mut reopens) = (String::new(), 0);
    for line in text.lines() {
        let line =
            line.replace("/var/log/ostler/*.log /var/log/ostler/*/*.log", &format!("{dir}/*.log"));
        if line.contains("systemctl kill") {
            reopens += 1;
            config += &format!("kill -USR1 $(cat {pid})\n");
        } else if !line.trim_start().starts_with("su ") {
            config += &format!("{line}\n");
        }
    }
    assert_eq!(reopens, 1, "{text}");
    let launch = launch.arg("--log-file").arg(&log).arg("--pid").arg(&pid);
    let server = launch.spawn();
    let has = |path: &str, words: &str| fs::read_to_string(path).is_ok_and(|it| it.contains(words));
    wait_until("the server is ready", || has(&log, "all workers ready"));
    let (config_path, state) = (server.path("rotate.conf"), server.path("state"));
    fs::write(&config_path, config).unwrap();
    fs::set_permissions(&config_path, Permissions::from_mode(0o644)).unwrap();
    let rotated = Command::new("logrotate")
        .args(["--force", "--state"])
        .args([&state, &config_path])
        .output();
    match rotated {
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        Err(error) => {
            eprintln!("skipped: logrotate does not run: {error}");
            return;
        }
    }
    assert!(has(&format!("{log}.1"), "all workers ready"));
    wait_until("the new file is in use", || has(&log, "logs reopened"));
    let worker = server.answering_pid();
    kill(worker, Signal::SIGKILL).unwrap();
    wait_until("records go to the new file", || has(&log, "worker exited"));
    assert!(!has(&format!("{log}.1"), "worker exited"));
    server.finish();
}
