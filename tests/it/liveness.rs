//! Workers that crash, stop or hang are replaced while others serve; healthy ones are left alone.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup::Group;
use crate::log_capture::Record;
use crate::proc::{becomes_true, is_gone, stat, wait_until};
use crate::support::Server;

on_every_class_and_tokio!(
    killed_worker_is_replaced,
    stopped_worker_is_replaced,
    hanging_worker_is_replaced,
    spinning_worker_is_replaced,
    crashed_worker_is_replaced,
    exited_worker_is_replaced,
    worker_sigterm_is_replaced,
    killed_worker_leaves_no_process_behind,
    aborted_worker_logs_backtrace,
    all_workers_killed_at_once_are_replaced,
    busy_worker_is_left_alone,
    slow_request_within_timeout_is_left_alone,
    queued_slow_requests_are_no_hang,
    stopped_master_kills_no_worker,
    ; except tokio:
    oom_kill_is_distinguished_from_sigkill,
    request_with_extended_deadline_is_left_alone,
    ; tokio alone:
    frozen_worker_is_left_alone,
    idle_worker_is_left_alone,
);

on_every_class_slowly!(frozen_worker_is_left_alone, idle_worker_is_left_alone,);

fn killed_worker_is_replaced(class: &str) {
    let server = Server::start(&["-k", class, "-w", "2"]);
    for victim in server.wait_workers(2) {
        kill(victim.pid, Signal::SIGKILL).unwrap();
        let exited = server.serve_until("its end", |record| record.is("worker exited", victim.pid));
        assert_eq!(exited.text("reason"), Some("crashed"));
        assert_eq!(exited.text("signal"), Some("SIGKILL"));
        assert_eq!(exited.number("slot"), Some(victim.slot));
        server.wait_replaced(victim);
    }
    server.finish();
}

fn stopped_worker_is_replaced(class: &str) {
    let server = Server::start(&["-k", class, "-w", "2", "-t", "1s", "--abort-timeout", "500ms"]);
    let victim = server.wait_workers(2)[0];
    kill(victim.pid, Signal::SIGSTOP).unwrap();
    let hung = server.serve_until("its hang", |record| record.is("worker hung", victim.pid));
    assert_eq!(hung.number("slot"), Some(victim.slot));
    assert_eq!(hung.text("cause"), Some("stopped"), "{hung:?}");
    let exited = server.serve_until("its end", |record| record.is("worker exited", victim.pid));
    assert_eq!(exited.text("reason"), Some("hung"));
    // A stopped process ends by SIGKILL only.
    assert_eq!(exited.text("signal"), Some("SIGKILL"));
    server.wait_replaced(victim);
    server.finish();
}

fn frozen_worker_is_left_alone(class: &str) {
    let Some(group) = Group::new("freezer") else { return };
    let server = Server::start(&["-k", class, "-w", "2", "-t", "1s", "--abort-timeout", "500ms"]);
    let victim = server.wait_workers(2)[0];
    group.take(victim.pid);
    group.freeze();
    let is_extended =
        |record: &Record| record.is("worker frozen or throttled, timeout extended", victim.pid);
    let extended = server.wait_for("the extension of its timeout", is_extended);
    assert_eq!(extended.text("cause"), Some("frozen"));
    server.sees_record(Duration::from_millis(2500), |record| record.message() == "worker hung");
    group.thaw();
    server.sees_record(Duration::from_millis(1500), |record| record.message() == "worker hung");
    expect_no_disturbance(&server);
    let excuses = server.records_of("worker frozen or throttled, timeout extended");
    assert_eq!(excuses.len(), 1, "once: {excuses:#?}");
    drop(group);
    server.serve_for(Duration::from_millis(50));
    server.finish();
}

fn hanging_worker_is_replaced(class: &str) {
    let hung = expect_overlong_unit_is_hung(class, "/hang");
    assert_eq!(hung.text("cause"), Some("blocked"), "{hung:?}");
    assert!(hung.number("cpu_percent") < Some(25), "{hung:?}");
    // Without permission to read /proc/PID/syscall, the call is unknown.
    let call = hung.text("syscall");
    assert!(matches!(call, None | Some("clock_nanosleep" | "nanosleep")), "{hung:?}");
}

fn spinning_worker_is_replaced(class: &str) {
    let hung = expect_overlong_unit_is_hung(class, "/spin");
    assert_eq!(hung.text("cause"), Some("busy"), "{hung:?}");
}

/// Returns what a backtrace names if the demo's handler runs.
fn handler_name(class: &str) -> &'static str {
    if class == "tokio" { "tokio_demo" } else { "DemoHandler" }
}

/// Returns the record of the hang.
fn expect_overlong_unit_is_hung(class: &str, path: &str) -> Record {
    let server = Server::start(&["-k", class, "-w", "2", "-t", "1s", "--abort-timeout", "500ms"]);
    let workers = server.wait_workers(2);
    let begun = Instant::now();
    let mut client = server.begin(path);
    let is_hung = |record: &Record| record.message() == "worker hung";
    let hung = server.serve_until("the hang", is_hung);
    // Kernel ticks are up to 10 ms long.
    let after = hung.seen - begun;
    assert!(after >= Duration::from_millis(990), "called hung after {after:?}");
    assert_eq!(hung.text("work"), Some(format!("GET {path}").as_str()));
    let pid = hung.pid().unwrap();
    let victim = *workers.iter().find(|worker| worker.pid == pid).unwrap();
    let exited = server.wait_exited(victim.pid);
    assert_eq!(exited.text("reason"), Some("hung"));
    assert!(matches!(exited.text("signal"), Some("SIGABRT" | "SIGKILL")));
    server.wait_replaced(victim);
    client.expect_end();
    for aborted in server.records_of("worker aborted") {
        // The abort goes to the hung thread, whose backtrace shows the place.
        assert_eq!(aborted.number("tid"), hung.number("tid"), "{aborted:?}");
        assert!(aborted.text("backtrace").unwrap_or_default().contains(handler_name(class)));
    }
    assert_eq!(server.records_of("worker hung").len(), 1);
    for fact in ["pid", "slot", "tid", "duration_ms", "work_ms", "thread_index"] {
        assert!(hung.number(fact).is_some(), "no {fact}: {hung:?}");
    }
    expect_other_threads_logged(&hung);
    server.finish();
    hung
}

/// Asserts that the record describes the hung thread, and the others in brief.
#[track_caller]
fn expect_other_threads_logged(hung: &Record) {
    let numbers = ["pid", "tid"].map(|fact| hung.number(fact).unwrap());
    let others = hung.text("other_threads").unwrap_or_default();
    let mut told: Vec<_> = others.split("; ").filter_map(|other| other.split_once(' ')).collect();
    told.retain(|(number, _)| number.parse() != Ok(numbers[1]));
    assert_eq!(told.len(), others.split_terminator("; ").count(), "{hung:?}");
    for (number, words) in &told {
        assert!(number.parse::<u64>().is_ok(), "{hung:?}");
        assert!(words.starts_with(['R', 'S', 'D']), "{hung:?}");
    }
    let is_first = |number: &&str| number.parse() == Ok(numbers[0]);
    let first_hangs = numbers[0] == numbers[1];
    assert!(first_hangs || told.iter().any(|(number, _)| is_first(number)), "{hung:?}");
}

fn crashed_worker_is_replaced(class: &str) {
    let server = Server::start(&["-k", class, "-w", "2"]);
    let mut client = server.connect();
    client.ask("/crash");
    let exited = server.wait_for("an end", |record| record.message() == "worker exited");
    assert_eq!(exited.text("reason"), Some("crashed"));
    assert_eq!(exited.text("signal"), Some("SIGABRT"));
    client.expect_end();
    server.serve_for(Duration::from_millis(50));
    server.wait_workers(2);
    server.finish();
}

fn exited_worker_is_replaced(class: &str) {
    let server = Server::start(&["-k", class, "-w", "2"]);
    for code in [3, 0] {
        let mark = server.mark();
        let mut client = server.connect();
        client.ask(&format!("/exit?code={code}"));
        let is_end = |record: &Record| record.message() == "worker exited";
        let exited = server.wait_for_new_record(mark, "an end", is_end);
        assert_eq!(exited.text("reason"), Some("crashed"));
        assert_eq!(exited.number("code"), Some(code));
        client.expect_end();
        server.wait_workers(2);
        server.serve_for(Duration::from_millis(50));
    }
    server.finish();
}

fn worker_sigterm_is_replaced(class: &str) {
    let server = Server::start(&["-k", class, "-w", "2"]);
    let workers = server.wait_workers(2);
    let mut client = server.begin("/sleep?ms=700");
    for worker in &workers {
        kill(worker.pid, Signal::SIGTERM).unwrap();
    }
    // The busy worker finishes its request.
    assert_eq!(client.answer().status(), 200);
    for worker in workers {
        let exited = server.wait_exited(worker.pid);
        assert_eq!(exited.number("code"), Some(0));
        server.wait_replaced(worker);
    }
    server.serve_for(Duration::from_millis(50));
    server.finish();
}

fn all_workers_killed_at_once_are_replaced(class: &str) {
    let server = Server::start(&["-k", class, "-w", "3"]);
    let victims = server.wait_workers(3);
    for victim in &victims {
        kill(victim.pid, Signal::SIGKILL).unwrap();
    }
    // Clients that connect now wait in the kernel's queue.
    let mut clients: Vec<_> = (0..5).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.ask("/");
    }
    for client in &mut clients {
        assert_eq!(client.answer().text(), "Hello, world!\n");
    }
    for victim in victims {
        server.wait_replaced(victim);
    }
    drop(clients);
    server.finish();
}

fn oom_kill_is_distinguished_from_sigkill(class: &str) {
    let Some(group) = Group::new("memory") else { return };
    let server = Server::start(&["-k", class]);
    group.take(server.pid);
    let kill_one = || {
        let victim = server.wait_workers(1)[0];
        kill(victim.pid, Signal::SIGKILL).unwrap();
        assert_eq!(server.wait_exited(victim.pid).text("reason"), Some("crashed"));
        server.wait_replaced(victim)
    };
    let started_in_group = kill_one();
    group.limit_memory(64 << 20);
    server.connect().ask("/leak?mb=200");
    let exited = server.wait_exited(started_in_group.pid);
    assert_eq!(exited.text("reason"), Some("oom_killed"), "{exited:?}");
    assert_eq!(exited.text("signal"), Some("SIGKILL"));
    server.wait_replaced(started_in_group);
    kill_one();
    server.serve_for(Duration::from_millis(50));
    drop(group);
    server.finish();
}

fn aborted_worker_logs_backtrace(class: &str) {
    let server = Server::start(&["-k", class]);
    // On a busy machine, `abort_timeout` may pass before the backtrace is written.
    let told = (0..10).find_map(|_| {
        let victim = server.wait_workers(1)[0];
        let mut client = server.connect();
        client.ask("/crash");
        let exited = server.wait_exited(victim.pid);
        assert_eq!(exited.text("reason"), Some("crashed"));
        assert_eq!(exited.text("signal"), Some("SIGABRT"));
        server.wait_replaced(victim);
        let records = server.records_of("worker aborted");
        records.into_iter().find(|record| record.pid() == Some(victim.pid))
    });
    let trace = told.expect("a backtrace").text("backtrace").unwrap_or_default().to_owned();
    assert!(trace.contains(handler_name(class)), "the handler is not in the backtrace: {trace}");
    server.finish();
}

fn killed_worker_leaves_no_process_behind(class: &str) {
    let server = Server::start(&["-k", class]);
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let victim = server.wait_workers(1)[0];
        let text = server.get("/child?s=1000").text();
        let child = Pid::from_raw(text.trim().parse().unwrap());
        assert!(stat(child).is_some_and(|stat| stat.parent == victim.pid));
        kill(victim.pid, signal).unwrap();
        server.wait_exited(victim.pid);
        let has_exited = || is_gone(child);
        wait_until("the child process ends too", has_exited);
        server.wait_replaced(victim);
    }
    server.serve_for(Duration::from_millis(50));
    server.finish();
}

/// Asserts that no worker was found hung and none exited.
#[track_caller]
fn expect_no_disturbance(server: &Server) {
    for disturbance in ["worker hung", "worker exited"] {
        let records = server.records_of(disturbance);
        assert!(records.is_empty(), "{records:#?}");
    }
}

fn idle_worker_is_left_alone(class: &str) {
    let server = Server::start(&["-k", class, "-w", "2", "-t", "1s"]);
    server.sees_record(Duration::from_secs(3), |record| record.message() == "worker hung");
    expect_no_disturbance(&server);
    server.finish();
}

fn busy_worker_is_left_alone(class: &str) {
    let server = Server::start(&["-k", class, "-w", "2", "-t", "1s"]);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| server.serve_for(Duration::from_secs(3)));
        }
        scope.spawn(|| {
            let end = Instant::now() + Duration::from_secs(3);
            let mut client = server.connect();
            while Instant::now() < end {
                if client.get("/").head.closes() {
                    client = server.connect();
                }
            }
        });
    });
    expect_no_disturbance(&server);
    server.finish();
}

fn slow_request_within_timeout_is_left_alone(class: &str) {
    let server = Server::start(&["-k", class, "-t", "5s"]);
    assert_eq!(server.get("/sleep?ms=1500").status(), 200);
    expect_no_disturbance(&server);
    server.finish();
}

fn request_with_extended_deadline_is_left_alone(class: &str) {
    let server = Server::start(&["-k", class, "-t", "1s", "--abort-timeout", "500ms"]);
    assert_eq!(server.get("/long?ms=3000").status(), 200);
    expect_no_disturbance(&server);
    // The next request has asked for no extension.
    let mut client = server.begin("/sleep?ms=60000");
    let is_hung = |record: &Record| record.message() == "worker hung";
    assert_eq!(server.wait_for("a hang", is_hung).text("work"), Some("GET /sleep"));
    client.expect_end();
    server.finish();
}

fn queued_slow_requests_are_no_hang(class: &str) {
    // Each request takes less than `timeout`, all of them together more.
    let server = Server::start(&["-k", class, "-t", "2s", "--threads", "1"]);
    let mut clients: Vec<_> = (0..5).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.ask("/sleep?ms=700");
    }
    for client in &mut clients {
        assert_eq!(client.answer().status(), 200);
    }
    expect_no_disturbance(&server);
    drop(clients);
    server.finish();
}

fn stopped_master_kills_no_worker(class: &str) {
    let server = Server::start(&["-k", class, "-w", "2", "-t", "1s"]);
    server.signal(Signal::SIGSTOP);
    assert!(becomes_true(Duration::from_secs(10), || {
        stat(server.pid).is_some_and(|stat| stat.state == 'T')
    }));
    server.serve_for(Duration::from_secs(3));
    server.signal(Signal::SIGCONT);
    server.sees_record(Duration::from_millis(500), |record| record.message() == "worker hung");
    expect_no_disturbance(&server);
    server.finish();
}

#[test]
fn hung_thread_does_not_end_other_requests() {
    let server = Server::start(&["-k", "threads", "-t", "2s", "--graceful-timeout", "10s"]);
    let _hung = server.begin("/hang");
    thread::sleep(Duration::from_millis(1200));
    // Begins before the hang is noticed, ends after it.
    let mut other = server.begin("/sleep?ms=1500");
    assert_eq!(other.answer().status(), 200);
    server.wait_for("the hang", |record| record.message() == "worker hung");
    server.finish();
}
