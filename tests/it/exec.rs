//! Any program as a worker: its environment and descriptors, its output, how it stops, and what it
//! leaves behind. The programs here are shell scripts; `exec_programs` has other languages.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, pipe};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::launch::{Launch, free_address};
use crate::log_capture::Record;
use crate::os::Signals;
use crate::proc::{children, descriptors, descriptors_to, is_gone, status, wait_until};
use crate::support::{Exit, Outcome, Server};

/// Prepares a shell script as the program of workers without a listener.
fn script(flags: &[&str], text: &str) -> Launch {
    script_at(&[], flags, text)
}

/// Prepares a shell script as the program of workers at these addresses.
fn script_at(addresses: &[&str], flags: &[&str], text: &str) -> Launch {
    let mut launch = Launch::new(&["-k", "exec", "--ready-after", "100ms"]).unbound();
    fs::write(launch.path("script"), text).unwrap();
    for address in if addresses.is_empty() { &["none"] } else { addresses } {
        launch = launch.arg("--bind").arg(address);
    }
    flags.iter().fold(launch, |launch, flag| launch.arg(flag)).program(&["sh", "script"])
}

/// Returns a script that runs `text` and then keeps running.
fn staying(text: &str) -> String {
    format!("{text}\nexec sleep 1000\n")
}

/// Returns the program of a worker.
pub fn program_of(worker: Pid) -> Pid {
    children(worker).first().expect("the worker has a program").pid
}

/// Waits for a line that a program prints.
#[track_caller]
pub fn wait_line(server: &Server, what: &str, wanted: impl Fn(&str) -> bool) -> Record {
    let is_line = |record: &Record| record.text("line").is_some_and(&wanted);
    server.wait_for(what, |record| record.message() == "output" && is_line(record))
}

#[test]
fn output_is_logged_line_by_line() {
    let text = "echo one; echo two >&2; printf 'not \\377\\033 text\\n\\n'\nprintf unfinished\n\
                trap 'exit 0' TERM; while :; do sleep 0.05; done";
    let mut server = script(&[], text).start();
    let worker = server.workers()[0];
    for (stream, line) in
        [("stdout", "one"), ("stderr", "two"), ("stdout", "not \u{fffd}\u{1b} text")]
    {
        let record = wait_line(&server, line, |said| said == line);
        assert_eq!(record.text("stream"), Some(stream), "{record:?}");
        assert_eq!((record.pid(), record.number("slot")), (Some(worker.pid), Some(worker.slot)));
        assert_eq!(record.text("level"), Some("INFO"));
    }
    assert!(!server.lines().iter().any(|line| line.contains("unfinished")));
    server.signal(Signal::SIGTERM);
    server.expect_clean_exit();
    wait_line(&server, "the unterminated line", |said| said == "unfinished");
    assert_eq!(server.records_of("output").len(), 4, "no empty line");
}

#[test]
fn long_output_line_is_split_into_marked_records() {
    for character in ["x", "\u{1b}", "\\"] {
        let line = character.repeat(7_000);
        let launch = script(&[], &staying("cat line; echo next"));
        fs::write(launch.path("line"), format!("{line}\n")).unwrap();
        let server = launch.start();
        wait_line(&server, "the next line", |said| said == "next");
        let records = server.lines().into_iter().filter(|line| line.contains(r#""msg":"output""#));
        let records: Vec<Value> =
            records.map(|record| serde_json::from_str(&record).unwrap()).collect();
        let [pieces @ .., last, _] = &records[..] else { panic!("two lines: {records:?}") };
        assert!(pieces.iter().all(|piece| piece["partial"] == true), "{records:?}");
        assert!(last["partial"].is_null());
        let shown = pieces.iter().chain([last]).map(|piece| piece["line"].as_str().unwrap());
        assert!(shown.collect::<String>() == line, "a part of the line is lost: {records:?}");
        server.finish();
    }
}

#[test]
fn inherited_output_reaches_the_masters_outputs_unchanged() {
    let line = format!("{{\"text\":\"{}\"}}", "\u{1b}x".repeat(5_000));
    let launch = script(&["--inherit-output"], &staying("cat line; echo '{\"level\":1}' >&2"));
    fs::write(launch.path("line"), format!("{line}\n")).unwrap();
    let server = launch.start();
    server.signal(Signal::SIGTERM);
    let (outcome, ()) = server.into_outcome(|| ());
    assert_eq!((outcome.exit, outcome.stdout), (Exit::Code(0), format!("{line}\n")));
    assert!(outcome.stderr.lines().any(|line| line == "{\"level\":1}"), "{}", outcome.stderr);
    assert!(!outcome.stderr.contains("output"), "{}", outcome.stderr);
}

#[test]
fn unread_output_flood_does_not_block_and_drops_are_logged() {
    let (reader, writer) = pipe().unwrap();
    let text = "i=0; while [ $i -lt 20000 ]; do echo line $i of a flood of many lines; i=$((i+1)); \
                done; echo >done\nwhile [ ! -e go ]; do sleep 0.05; done\n\
                while :; do echo after; sleep 0.2; done";
    let launch = script(&[], text).stderr_to(writer);
    let (done, go) = (launch.dir().join("done"), launch.dir().join("go"));
    let server = launch.spawn();
    wait_until("the program continues", || done.exists());
    fs::write(go, "").unwrap();
    let mut lost = 0;
    for line in BufReader::new(reader).lines() {
        // A line that a full pipe has cut is no record.
        let Ok(record) = serde_json::from_str::<Value>(&line.unwrap()) else { continue };
        if record["msg"] == "log records dropped" {
            lost += record["records"].as_u64().unwrap();
        }
        if lost > 0 && record["line"] == "after" {
            break;
        }
    }
    assert!(lost > 10_000, "{lost}");
    drop(server);
}

#[test]
fn program_gets_slot_and_environment() {
    let flags = ["-e", "GREETING=hi", "-e", "OSTLER_SLOT=9", "-e", "NOTIFY_SOCKET=x", "-t", "7s"];
    let text = staying("echo pid=$$; env");
    let launch = script(&flags, &text).env("LISTEN_PID", "1").env("LISTEN_FDS", "3");
    let server = launch.start();
    let program = program_of(server.workers()[0].pid);
    wait_line(&server, "its number", |said| said == format!("pid={program}"));
    for line in ["GREETING=hi", "OSTLER_SLOT=0", "OSTLER_POOL=default", "OSTLER_GENERATION=1"] {
        wait_line(&server, line, |said| said == line);
    }
    wait_line(&server, "its watchdog interval", |said| said == "WATCHDOG_USEC=7000000");
    wait_line(&server, "its pid", |said| said == format!("WATCHDOG_PID={program}"));
    wait_line(&server, "its notify socket", |said| said.starts_with("NOTIFY_SOCKET=/"));
    let lines = server.records_of("output");
    assert!(lines.iter().all(|record| !record.text("line").unwrap().starts_with("LISTEN_")));
    let started = server.records_of("program started");
    assert_eq!(started[0].number("program_pid"), Some(i64::from(program.as_raw())));
    server.finish();
}

#[test]
fn program_inherits_only_its_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock").into_os_string().into_string().unwrap();
    let addresses = ["127.0.0.1:0".to_owned(), format!("unix:{path}")];
    let addresses = addresses.each_ref().map(String::as_str);
    let flags = ["-w", "2", "--flight-recorder-file", "events"];
    let launch = script_at(&addresses, &flags, &staying("env"));
    let stray = fs::File::create(launch.path("stray")).unwrap();
    let launch = launch.keep(stray.as_raw_fd());
    let server = launch.signals(Signals::Careless).start();
    assert_eq!(descriptors_to(server.pid, "stray").len(), 1);
    let listening = server.records_of("listening")[0].text("address").unwrap().to_owned();
    for worker in server.wait_workers(2) {
        let program = program_of(worker.pid);
        let names = format!("LISTEN_FDNAMES={}:unix%3A{path}", listening.replace(':', "%3A"));
        for line in [format!("LISTEN_PID={program}"), names, "LISTEN_FDS=2".to_owned()] {
            wait_line(&server, &line, |said| said == line);
        }
        wait_until("the shell has executed sleep", || status(program, "Name") == ["sleep"]);
        let link = |fd: u64| fs::read_link(format!("/proc/{program}/fd/{fd}")).unwrap();
        assert_eq!(link(0), Path::new("/dev/null"));
        for (fd, kind) in [(1, "pipe:"), (2, "pipe:"), (3, "socket:"), (4, "socket:")] {
            assert!(link(fd).to_str().unwrap().starts_with(kind), "{fd}: {:?}", link(fd));
        }
        let own: BTreeSet<u64> = (0..=4).collect();
        assert_eq!(descriptors(program), own);
        for signals in ["SigBlk", "SigIgn", "SigCgt"] {
            // Signals 1 to 31. The real-time signals have no fixed meaning.
            let set = u64::from_str_radix(&status(program, signals)[0], 16).unwrap();
            assert_eq!(set & 0x7fff_ffff, 0, "{signals}");
        }
    }
    server.finish();
}

#[test]
fn program_is_ready_after_ready_after() {
    let server = script(&["--ready-after", "700ms"], &staying("")).start();
    let ready = &server.records_of("worker ready")[0];
    assert!(ready.number("uptime_ms") >= Some(700), "{ready:?}");
    server.finish();
}

#[test]
fn program_without_ready_message_hits_boot_timeout() {
    let flags = ["--ready-after", "1h", "--boot-timeout", "500ms", "--boot-retries", "0"];
    let outcome = script(&flags, &staying("echo going on")).run();
    assert_eq!(outcome.exit, Exit::Code(3), "{outcome:?}");
    assert!(outcome.stderr.contains("boot_timeout"), "{outcome:?}");
}

#[test]
fn boot_failure_reports_last_output_line() {
    let text = "echo reading settings; echo no database at 10.0.0.9 >&2; exit 7";
    let server = script(&["--ready-after", "20s", "--boot-retries", "1"], text).spawn();
    let exited = server.wait_for("its end", |record| record.message() == "worker exited");
    assert_eq!(exited.text("reason"), Some("boot_failed"), "{exited:?}");
    assert_eq!(exited.number("code"), Some(7));
    assert_eq!(exited.text("error"), Some("no database at 10.0.0.9"));
    let (outcome, ()) = server.into_outcome(|| ());
    assert_eq!(outcome.exit, Exit::Code(3), "{outcome:?}");
    let last = outcome.stderr.lines().last().unwrap();
    assert!(last.contains("code 7: no database at 10.0.0.9"), "{last}");
}

#[test]
fn program_exit_is_the_worker_exit() {
    for (last, code, signal) in [
        ("exit 5", Some(5), None),
        ("exit 0", Some(0), None), // a requested exit would be no crash
        ("kill -SEGV $$", None, Some("SIGSEGV")),
        ("kill -KILL $$", None, Some("SIGKILL")),
        ("kill -ABRT $$", None, Some("SIGABRT")),
    ] {
        // Only the first program runs this; its replacement keeps running.
        let text = format!(
            "if mkdir first 2>/dev/null; then while [ ! -e go ]; do sleep 0.05; done; {last}; fi\n\
             exec sleep 1000"
        );
        let server = script(&[], &text).start();
        let worker = server.workers()[0];
        fs::write(server.path("go"), "").unwrap();
        let exited = server.wait_exited(worker.pid);
        assert_eq!(exited.text("reason"), Some("crashed"), "{last}: {exited:?}");
        assert_eq!((exited.number("code"), exited.text("signal")), (code, signal), "{last}");
        server.wait_replaced(worker);
        server.finish();
    }
}

#[test]
#[ignore = "slow"]
fn program_crash_after_serving_is_within_the_budget() {
    let flags = ["--restart-limit", "2", "--restart-interval", "1h"];
    let server = script(&flags, "sleep 1.5; exit 5").start();
    let exits = || server.records_of("worker exited");
    wait_until("four crashes", || exits().len() >= 4);
    let delays: Vec<_> = exits().iter().map(|it| it.number("restart_in_ms").unwrap()).collect();
    assert_eq!(delays[..2], [0, 0], "{delays:?}");
    assert_eq!(delays[2..4], [1000, 1000], "without a worker, the slot is tried each second");
    server.finish();
}

/// Returns a script that traps a signal, prints its name and exits with a code.
fn trapping(signal: &str, code: u8) -> String {
    format!("trap 'echo heard {signal}; exit {code}' {signal}\nwhile :; do sleep 0.05; done")
}

#[test]
fn drain_sends_the_configured_stop_signal() {
    for (flags, signal) in [
        (&[][..], "TERM"),
        (&["--stop-signal", "QUIT"], "QUIT"),
        (&["--stop-signal", "USR2"], "USR2"),
    ] {
        let mut server = script(flags, &trapping(signal, 9)).start();
        let worker = server.workers()[0];
        server.signal(Signal::SIGTERM);
        server.expect_clean_exit();
        wait_line(&server, signal, |said| said == format!("heard {signal}"));
        let exited = server.wait_exited(worker.pid);
        assert_eq!((exited.text("reason"), exited.number("code")), (Some("requested"), Some(9)));
    }
}

#[test]
fn quick_stop_sends_sigint() {
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        let mut server = script(&["--abort-timeout", "15s"], &trapping("INT", 3)).start();
        server.signal(signal);
        server.expect_clean_exit();
        wait_line(&server, "its output", |said| said == "heard INT");
    }
}

#[test]
fn program_ignoring_stop_is_killed_with_its_children() {
    let text = "trap '' TERM INT; sleep 1001 & echo started; wait; wait; exec sleep 1002";
    for (signal, flags) in [
        (Signal::SIGTERM, ["--graceful-timeout", "500ms"]),
        (Signal::SIGINT, ["--abort-timeout", "500ms"]),
    ] {
        let mut server = script(&flags, text).start();
        wait_line(&server, "its child", |said| said == "started");
        server.signal(signal);
        server.expect_clean_exit();
    }
}

#[test]
fn killed_worker_leaves_no_program_behind() {
    let text = "trap '' TERM; sleep 1001 & echo started; while :; do sleep 1; done";
    let flags = ["--graceful-timeout", "1s", "-w", "2"];
    let server = script(&flags, text).start();
    let is_started = |record: &Record| record.text("line") == Some("started");
    wait_until("both", || server.records().iter().filter(|r| is_started(r)).count() == 2);
    let [first, second] = server.wait_workers(2)[..] else { panic!("two workers") };
    let (program, other) = (program_of(first.pid), program_of(second.pid));
    let child = children(program)[0].pid;
    kill(first.pid, Signal::SIGKILL).unwrap();
    wait_until("both exit", || [program, child].iter().all(|pid| is_gone(*pid)));
    server.wait_replaced(first);
    assert!(!is_gone(other), "the other program still runs");
    kill(server.pid, Signal::SIGKILL).unwrap();
    server.wait_no_survivors();
}

#[test]
fn worker_sigterm_stops_program_and_is_replaced() {
    let server = script(&["-w", "2"], &trapping("TERM", 0)).start();
    let worker = server.wait_workers(2)[1];
    kill(worker.pid, Signal::SIGTERM).unwrap();
    let exited = server.wait_exited(worker.pid);
    assert_eq!((exited.text("reason"), exited.number("code")), (Some("requested"), Some(0)));
    server.wait_replaced(worker);
    server.finish();
}

#[test]
fn worker_sigterm_before_ready_is_boot_failure() {
    let server = script(&["--ready-after", "10s"], &trapping("TERM", 0)).spawn();
    let started = server.wait_for("it", |record| record.message() == "program started");
    // The trap is set by then; without it the signal ends the program as well.
    kill(started.pid().unwrap(), Signal::SIGTERM).unwrap();
    let exited = server.wait_exited(started.pid().unwrap());
    assert_eq!(exited.text("reason"), Some("boot_failed"), "{exited:?}");
    assert_eq!(server.records_of("worker ready").len(), 0);
    drop(server);
}

#[test]
fn max_memory_measures_the_program() {
    // The shell keeps the string in memory.
    let text = "x=$(head -c 40000000 /dev/zero | tr '\\0' x); mkdir first 2>/dev/null || x=\n\
                while :; do sleep 1; done";
    let server = script(&["--max-memory", "30M"], text).start();
    let worker = server.workers()[0];
    let is_large = |record: &Record| record.is("worker exceeds max_memory", worker.pid);
    let large = server.wait_for("the memory warning", is_large);
    assert!(large.number("memory_bytes") > Some(30 << 20), "{large:?}");
    let exited = server.wait_exited(worker.pid);
    assert_eq!(exited.text("reason"), Some("recycled"), "{exited:?}");
    drop(server);
}

#[track_caller]
fn expect_rejection(launch: Launch, words: &[&str]) {
    let outcome: Outcome = launch.plain().run();
    assert_eq!(outcome.exit, Exit::Code(1), "{outcome:?}");
    assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:?}");
    for word in words {
        assert!(outcome.stderr.contains(word), "no {word} in {outcome:?}");
    }
}

#[test]
fn unusable_command_is_rejected_before_listening() {
    let launch = |words: &[&str]| Launch::new(&["-k", "exec"]).program(words);
    expect_rejection(launch(&["no-such-program"]), &["COMMAND", "no-such-program", "No such file"]);
    expect_rejection(launch(&["./missing", "x"]), &["COMMAND", "./missing", "No such file"]);
    expect_rejection(launch(&[""]), &["COMMAND"]);
    expect_rejection(launch(&["sleep 1000"]), &["COMMAND", "sleep 1000", "as separate words"]);
    expect_rejection(launch(&["/"]), &["COMMAND", "Permission denied"]);
    let plain = launch(&["./plain"]);
    fs::write(plain.path("plain"), "#!/bin/sh\n").unwrap();
    expect_rejection(plain, &["COMMAND", "./plain", "Permission denied"]);
    let script = launch(&["./script"]);
    fs::write(script.path("script"), "#! /no/such/shell -e\n").unwrap();
    fs::set_permissions(script.path("script"), fs::Permissions::from_mode(0o755)).unwrap();
    expect_rejection(script, &["COMMAND", "./script", "interpreter \"/no/such/shell\""]);
    expect_rejection(
        launch(&["sh"]).arg("-e").arg("PATH=/nowhere"),
        &["COMMAND", "\"sh\"", "No such file"],
    );
}

#[test]
fn command_is_resolved_in_its_working_directory() {
    let launch = Launch::new(&["-k", "exec", "-b", "none", "--ready-after", "100ms"]).unbound();
    let inner = launch.dir().join("inner");
    fs::create_dir(&inner).unwrap();
    let path = inner.join("run");
    fs::write(&path, "#!/bin/sh\necho here: $0; exec sleep 1000\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let server = launch.arg("--chdir").arg("inner").program(&["./run"]).start();
    wait_line(&server, "its output", |said| said == "here: ./run");
    server.finish();
}

#[test]
fn conflicting_settings_are_rejected() {
    let exec = || Launch::new(&["-k", "exec"]);
    expect_rejection(exec(), &["exec", "--"]);
    expect_rejection(exec().arg("demo").program(&["sh"]), &["APP", "exec", "demo"]);
    expect_rejection(Launch::new(&["-k", "sync"]).program(&["sh"]), &["COMMAND", "sync", "sh"]);
    let counted = exec().arg("--max-requests").arg("9").program(&["sh"]);
    expect_rejection(counted, &["exec", "max_requests"]);
    expect_rejection(exec().arg("--reuse-port").program(&["sh"]), &["exec", "reuse_port"]);
    let detached = exec().arg("--inherit-output").arg("--daemon").program(&["sh"]);
    let outcome = detached.plain().run();
    assert_eq!(outcome.exit, Exit::Code(2), "{outcome:?}");
    assert!(outcome.stderr.contains("--daemon"), "{outcome:?}");
    let unbound = Launch::new(&["-k", "mio", "-b", "none"]).unbound();
    expect_rejection(unbound, &["--bind", "mio"]);
}

/// Starts a server that is configured by a file.
fn configured(yaml: &str) -> (Server, std::path::PathBuf) {
    let launch = Launch::new(&["-c", "settings.yaml"]).unbound();
    let path = launch.dir().join("settings.yaml");
    fs::write(&path, yaml).unwrap();
    (launch.start(), path)
}

#[test]
fn reload_changes_command_and_rejects_unusable_one() {
    let yaml = |command: &str| {
        format!(
            "worker_class: exec\nbind: []\nready_after: 100ms\nworkers: 2\ncommand: {command}\n"
        )
    };
    let (server, path) = configured(&yaml("[sleep, '1001']"));
    let workers = server.wait_workers(2);
    fs::write(&path, yaml("[no-such-program]")).unwrap();
    server.signal(Signal::SIGHUP);
    let refused = server.wait_for("the rejection", |record| record.message() == "reload rejected");
    let error = refused.text("error").unwrap();
    assert!(error.contains("settings.yaml:5") && error.contains("no-such-program"), "{error}");
    assert_eq!(server.workers(), workers);
    // A command that starts and then fails is tried as a canary, and changes nothing.
    fs::write(&path, yaml("[sh, -c, 'echo broken >&2; exit 4']")).unwrap();
    server.signal(Signal::SIGHUP);
    let is_failure = |record: &Record| record.message().starts_with("reload failed");
    let failed = server.wait_for("the failure", is_failure);
    assert!(failed.text("error").unwrap().contains("code 4: broken"), "{failed:?}");
    assert_eq!(server.workers(), workers);
    fs::write(&path, yaml("[sleep, '1002']")).unwrap();
    server.signal(Signal::SIGHUP);
    server.wait_for("the end", |record| record.message() == "reload complete");
    let words = |pid: Pid| fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    wait_until("both workers are new", || {
        let now = server.workers();
        now.len() == 2 && now.iter().all(|worker| !workers.contains(worker))
    });
    for worker in server.workers() {
        assert_eq!(words(program_of(worker.pid)), b"sleep\x001002\0");
    }
    for worker in workers {
        let exited = server.wait_exited(worker.pid);
        assert_eq!(exited.text("reason"), Some("reload"), "{exited:?}");
    }
    server.finish();
}

#[test]
fn missing_command_is_boot_failure_with_reason() {
    let launch = Launch::new(&["-k", "exec", "-b", "none", "--ready-after", "100ms"]).unbound();
    let path = launch.dir().join("run");
    fs::write(&path, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let server = launch.program(&["./run"]).start();
    let worker = server.workers()[0];
    let back = server.path("back");
    fs::rename(&path, &back).unwrap();
    kill(worker.pid, Signal::SIGKILL).unwrap();
    let is_failure = |record: &Record| record.text("reason") == Some("boot_failed");
    let failed = server.wait_for("the failure", is_failure);
    let error = failed.text("error").unwrap();
    assert!(error.contains("./run") && error.contains("No such file"), "{error}");
    fs::rename(&back, &path).unwrap();
    server.wait_replaced(worker);
    server.finish();
}

/// A process in a session of its own is missed without a control group, and keeps its descriptors.
#[test]
fn port_is_free_after_stop_although_stray_keeps_socket() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let text = "setsid sh -c 'echo $$ > pid.new; mv pid.new pid; exec sleep 1000' &\n\
                    trap 'exit 0' TERM INT; while :; do sleep 0.05; done";
        let address = free_address();
        let mut server = script_at(&[&address.to_string()], &[], text).start();
        let path = server.path("pid");
        wait_until("the stray starts", || path.exists());
        let number = fs::read_to_string(&path).unwrap().trim().parse().unwrap();
        let stray = Pid::from_raw(number);
        server.signal(signal);
        server.expect_clean_exit();
        let keeps_it = !descriptors_to(stray, "socket:").is_empty();
        let bound = TcpListener::bind(address);
        kill(stray, Signal::SIGKILL).unwrap();
        assert!(keeps_it, "the stray has no socket");
        bound.unwrap();
    }
}
