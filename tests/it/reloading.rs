//! SIGHUP: every setting can change, no request is lost, and a failed reload changes nothing.
//! SIGUSR1: the log continues in a new file.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use serde_json::Value;

use crate::client::{Client, is_refused};
use crate::launch::{Launch, free_address, unlisten};
use crate::load::{Load, Target};
use crate::log_capture::Record;
use crate::os::limit_descriptors;
use crate::proc::{children, descriptors, limit_with_free, title, wait_until};
use crate::support::{Exit, Server};

on_every_class!(
    twenty_reloads_lose_nothing,
    address_change_under_load_loses_nothing,
    failed_reload_changes_nothing,
    emptied_file_does_not_reload,
    canary_without_descriptors_fails_reload,
    reload_is_complete_once_old_workers_drain,
    removed_address_can_be_added_again_while_old_workers_drain,
);
on_concurrent_classes!(busy_workers_lose_nothing_in_reloads);
on_tokio!(busy_workers_lose_nothing_in_reloads);

/// A configuration file, which a test changes line by line.
struct Settings {
    path: String,
    lines: Vec<(String, String)>,
}

impl Settings {
    /// Prepares a server that is configured by a file, which is not written yet.
    fn launch(class: &str, workers: usize) -> (Launch, Self) {
        let launch = Launch::new(&[]).unbound();
        let path = launch.path("settings.yaml");
        let mut settings = Self { path, lines: Vec::new() };
        settings
            .set("worker_class", class)
            .set("workers", workers)
            .set("bind", format!("[\"127.0.0.1:{}\"]", launch.port()));
        let launch = launch.arg("--config").arg(&settings.path);
        (launch, settings)
    }

    /// Starts the server, and waits until it is ready.
    #[track_caller]
    fn start(class: &str, workers: usize) -> (Server, Self) {
        let (launch, settings) = Self::launch(class, workers);
        settings.write();
        (launch.start(), settings)
    }

    /// Sets a key, in YAML.
    fn set(&mut self, key: &str, value: impl ToString) -> &mut Self {
        self.unset(key);
        self.lines.push((key.to_owned(), value.to_string()));
        self
    }

    fn unset(&mut self, key: &str) -> &mut Self {
        self.lines.retain(|(known, _)| known != key);
        self
    }

    fn write(&self) {
        let lines = self.lines.iter().map(|(key, value)| format!("{key}: {value}\n"));
        fs::write(&self.path, lines.collect::<String>()).unwrap();
    }

    /// Writes and reloads the file, and waits until that is complete and the old workers have
    /// exited.
    #[track_caller]
    fn reload(&self, server: &Server) -> i64 {
        self.write();
        reload(server)
    }
}

/// Reloads, waits until that is complete and the old workers have exited, and returns the
/// generation.
#[track_caller]
fn reload(server: &Server) -> i64 {
    let (mark, old) = (server.mark(), server.workers());
    server.signal(Signal::SIGHUP);
    let is_outcome =
        |record: &Record| record.message() == "reload complete" || is_reload_failure(record);
    let done = server.wait_for_new_record(mark, "the end of a reload", is_outcome);
    assert_eq!(done.message(), "reload complete", "{done:?}");
    for worker in old {
        server.wait_exited(worker.pid);
    }
    done.number("generation").unwrap()
}

/// Returns whether a reload was rejected or has failed.
pub fn is_reload_failure(record: &Record) -> bool {
    record.message() == "reload rejected" || record.message().starts_with("reload failed")
}

fn pids(server: &Server) -> BTreeSet<Pid> {
    server.workers().iter().map(|worker| worker.pid).collect()
}

fn twenty_reloads_lose_nothing(class: &str) {
    let (server, settings) = Settings::start(class, 2);
    // The first reload makes the descriptors that are made only once.
    settings.reload(&server);
    wait_until("only two workers are left", || children(server.pid).len() == 2);
    let fds = descriptors(server.pid);
    let load = Load::on(server.address());
    let mut generation = 2;
    for _ in 0..20 {
        let old = pids(&server);
        let next = reload(&server);
        assert!(next > generation, "{next} after {generation}");
        generation = next;
        let new = pids(&server);
        assert_eq!(new.len(), 2);
        assert!(old.is_disjoint(&new), "{old:?} {new:?}");
        assert_eq!(server.get("/info").json()["generation"], generation);
        load.wait_answers(5);
    }
    load.finish();
    assert_eq!(server.exit(), None, "the master stays the same");
    wait_until("only two workers are left", || children(server.pid).len() == 2);
    wait_until("the master's descriptors", || descriptors(server.pid).len() == fds.len());
    server.finish();
}

/// Returns how many workers could serve after each record.
fn capacities(records: &[Record]) -> Vec<usize> {
    let mut ready = BTreeSet::new();
    let mut capacities = Vec::new();
    for record in records {
        let Some(pid) = record.pid() else { continue };
        match record.message() {
            "worker ready" => _ = ready.insert(pid),
            "worker exited" | "worker draining" => {
                _ = ready.remove(&pid);
            }
            _ => continue,
        }
        capacities.push(ready.len());
    }
    capacities
}

#[test]
fn reload_never_lacks_workers() {
    for surge in [1, 2] {
        let (launch, mut settings) = Settings::launch("mio", 2);
        settings.set("max_surge", surge).write();
        let server = launch.env("DEMO_BOOT_SLEEP_MS", "300").start();
        for _ in 0..2 {
            reload(&server);
        }
        let capacities = capacities(&server.records());
        let full = capacities.iter().position(|&ready| ready == 2).unwrap();
        let range = &capacities[full..];
        assert!(range.iter().all(|&ready| ready >= 2), "{range:?}");
        assert!(range.iter().all(|&ready| ready <= 2 + surge), "{range:?}");
        server.finish();
    }
}

#[test]
fn reload_keeps_max_unavailable() {
    for (surge, missing) in [(0, 1), (1, 2)] {
        let (launch, mut settings) = Settings::launch("mio", 4);
        settings.set("max_surge", surge).set("max_unavailable", missing).write();
        let server = launch.env("DEMO_BOOT_SLEEP_MS", "200").start();
        let load = Load::on(server.address());
        for _ in 0..2 {
            let mark = server.mark();
            reload(&server);
            let is_of_note =
                |record: &&Record| ["worker ready", "worker draining"].contains(&record.message());
            let records = server.records();
            let first = records[mark..].iter().find(is_of_note).unwrap();
            assert_eq!(
                first.message(),
                "worker ready",
                "the canary is ready before any worker drains"
            );
        }
        load.finish();
        let capacities = capacities(&server.records());
        let full = capacities.iter().position(|&ready| ready == 4).unwrap();
        let range = &capacities[full..];
        assert!(range.iter().all(|&ready| ready >= 4 - missing), "{range:?}");
        assert!(range.iter().all(|&ready| ready <= 4 + surge.max(1)), "{range:?}");
        assert_eq!(range.iter().min(), Some(&(4 - missing)), "{range:?}");
        server.finish();
    }
}

#[test]
fn reload_changes_every_setting() {
    let (server, mut settings) = Settings::start("mio", 1);
    for (class, workers) in [("threads", 3), ("sync", 2), ("mio", 1)] {
        settings.set("worker_class", class).set("workers", workers).reload(&server);
        assert_eq!(server.wait_workers(workers).len(), workers);
        assert_eq!(server.get("/info").json()["class"], class);
    }
    assert_eq!(server.get("/env?name=COLOUR").status(), 404);
    settings.set("env", "[\"COLOUR=blue\"]").reload(&server);
    assert_eq!(server.get("/env?name=COLOUR").text(), "blue");
    settings.unset("env").reload(&server);
    assert_eq!(server.get("/env?name=COLOUR").status(), 404, "the variable is still set");

    let level = |record: &Record| {
        record.text("level").is_some_and(|level| level.eq_ignore_ascii_case("debug"))
    };
    assert!(!server.records().iter().any(level));
    let mark = server.mark();
    settings.set("log_level", "debug").reload(&server);
    server.wait_for_new_record(mark, "a debug record", level);
    settings.set("proc_name", "renamed").reload(&server);
    wait_until("the master's title", || title(server.pid).contains("renamed"));

    // A shorter timeout applies to the new workers.
    settings.set("timeout", "500ms").reload(&server);
    let mark = server.mark();
    let mut client = server.connect();
    client.ask("/hang");
    server.wait_for_new_record(mark, "worker hung", |record| record.message() == "worker hung");
    // The app changes too.
    settings.unset("timeout").set("app", "echo").reload(&server);
    let mut client = server.connect();
    client.send("hello\n");
    client.finish_sending();
    assert_eq!(client.rest(), b"hello\n");
    server.finish();
}

/// Reloads a file that is not as it should be, and asserts that the reload is rejected.
#[track_caller]
fn expect_rejected_reload(server: &Server, words: &[&str]) {
    let mark = server.mark();
    server.signal(Signal::SIGHUP);
    let is_outcome =
        |record: &Record| ["reload started", "reload rejected"].contains(&record.message());
    let outcome = server.wait_for_new_record(mark, "the outcome of a reload", is_outcome);
    assert_eq!(outcome.message(), "reload rejected", "{outcome:?}");
    let reason = outcome.text("error").unwrap();
    assert!(words.iter().all(|word| reason.contains(word)), "{reason}");
}

fn emptied_file_does_not_reload(class: &str) {
    let (server, settings) = Settings::start(class, 1);
    let before = pids(&server);
    for text in ["", "\n", "# workers: 2\n", "---\n", "{}\n", "vars: {a: b}\n"] {
        fs::write(&settings.path, text).unwrap();
        expect_rejected_reload(&server, &["settings.yaml", "sets no key"]);
    }
    // Cut off within the value of `bind`, and between two lines.
    for cut in ["workers: 1\nbind: \"127.0", "workers: 1\nthreads: 1"] {
        fs::write(&settings.path, cut).unwrap();
        expect_rejected_reload(&server, &["settings.yaml"]);
    }
    assert_eq!(pids(&server), before);
    assert_eq!(server.get("/info").json()["class"], class);
    settings.reload(&server);
    server.finish();
}

#[test]
fn cut_off_file_does_not_reload() {
    let (server, settings) = Settings::start("mio", 1);
    let complete = fs::read_to_string(&settings.path).unwrap();
    fs::write(&settings.path, complete.trim_end()).unwrap();
    expect_rejected_reload(&server, &["does not end in a line feed"]);
    fs::write(&settings.path, format!("{complete}...\n")).unwrap();
    reload(&server);
    fs::write(&settings.path, &complete).unwrap();
    expect_rejected_reload(&server, &["does not end in the line `...`"]);
    server.finish();
}

#[test]
fn file_without_keys_starts_with_a_warning_and_reloads() {
    let launch = Launch::new(&["-k", "mio"]);
    let path = launch.path("settings.yaml");
    fs::write(&path, "# workers: 2\n").unwrap();
    let server = launch.arg("--config").arg(&path).start();
    assert!(server.lines().iter().any(|line| line.ends_with("settings.yaml sets no key")));
    reload(&server);
    fs::write(&path, "workers: 2\n").unwrap();
    reload(&server);
    fs::write(&path, "# workers: 2\n").unwrap();
    expect_rejected_reload(&server, &["sets no key"]);
}

#[test]
fn scaled_count_survives_reload_of_same_workers() {
    let (server, mut settings) = Settings::start("mio", 1);
    server.signal(Signal::SIGTTIN);
    server.wait_workers(2);
    settings.set("timeout", 20).reload(&server);
    assert_eq!(server.wait_workers(2).len(), 2);
    settings.set("workers", 3).reload(&server);
    server.wait_workers(3);
    server.signal(Signal::SIGTTOU);
    server.wait_workers(2);
    reload(&server);
    assert_eq!(server.workers().len(), 2);
    server.finish();
}

#[test]
fn thousand_sighups_become_few_reloads() {
    let (server, _settings) = Settings::start("mio", 2);
    for _ in 0..1000 {
        server.signal(Signal::SIGHUP);
    }
    let begun = || server.records_of("reload started").len();
    // One report may be for several reloads.
    let newest = |message| server.records_of(message).last().and_then(|it| it.number("generation"));
    let at_the_end = begun();
    let mut quiet_since = Instant::now();
    let mut last = begun();
    wait_until("no reload is under way", || {
        let now = begun();
        let is_complete = newest("reload complete") == newest("reload started");
        if now != last || now == 0 || !is_complete {
            (last, quiet_since) = (now, Instant::now());
        }
        quiet_since.elapsed() > Duration::from_millis(500)
    });
    assert!(begun() <= 20, "{} reloads", begun());
    assert!(begun() - at_the_end <= 2, "{at_the_end}, then {}", begun());
    wait_until("only two workers are left", || children(server.pid).len() == 2);
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    reload(&server);
    server.finish();
}

#[test]
fn stop_overrides_simultaneous_reload() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (mut server, mut settings) = Settings::start("mio", 2);
        settings.set("env", "[\"DEMO_BOOT_SLEEP_MS=60000\"]").set("boot_timeout", 120).write();
        let mark = server.mark();
        server.signal(Signal::SIGHUP);
        server.wait_for_new_record(mark, "canary", |record| record.message() == "worker started");
        let begun = Instant::now();
        server.signal(signal);
        server.expect_clean_exit();
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    }
}

fn address_change_under_load_loses_nothing(class: &str) {
    let (server, mut settings) = Settings::start(class, 2);
    settings.reload(&server);
    wait_until("only two workers are left", || children(server.pid).len() == 2);
    let fds = descriptors(server.pid).len();
    let (first, second) = (server.address(), free_address());
    for (old, new) in [(first, second), (second, first)].into_iter().cycle().take(10) {
        let leaving = Load::until_refused(old);
        settings.set("bind", format!("[\"{old}\", \"{new}\"]")).reload(&server);
        let coming = Load::on(new);
        settings.set("bind", format!("[\"{new}\"]")).reload(&server);
        leaving.wait_refused();
        assert!(is_refused(old));
        coming.wait_answers(10);
        coming.finish();
    }
    // The old address is closed at once, without a time in which both are served.
    let leaving = Load::until_refused(first);
    settings.set("bind", format!("[\"{second}\"]")).reload(&server);
    leaving.wait_refused();
    Load::on(second).finish();
    wait_until("the master's descriptors", || descriptors(server.pid).len() == fds);
    server.finish();
}

fn removed_address_can_be_added_again_while_old_workers_drain(class: &str) {
    let address = free_address();
    add_removed_address_again(class, &address.to_string(), &Target::Tcp(address));
}

/// The name of such a socket is free only when the last process has closed it.
#[test]
#[ignore = "slow"]
fn removed_abstract_address_can_be_added_again() {
    let name = format!("ostler-{}-again", std::process::id());
    add_removed_address_again("mio", &format!("unix:@{name}"), &Target::Abstract(name));
}

#[track_caller]
fn add_removed_address_again(class: &str, address: &str, target: &Target) {
    let (server, mut settings) = Settings::start(class, 2);
    let own = format!("127.0.0.1:{}", server.address().port());
    let (one, both) = (format!("[\"{own}\"]"), format!("[\"{own}\", \"{address}\"]"));
    settings.set("bind", &both);
    settings.reload(&server);
    let mut begun = target.connect().unwrap();
    begun.ask("/sleep?ms=1800");
    let mark = server.mark();
    settings.set("bind", &one).write();
    server.signal(Signal::SIGHUP);
    let stopped = |record: &Record| record.message() == "stopped listening";
    server.wait_for_new_record(mark, "the address is removed", stopped);
    settings.set("bind", &both).write();
    server.signal(Signal::SIGHUP);
    let outcome = server.wait_for_new_record(mark, "the end of the reload", |record| {
        is_reload_failure(record)
            || record.number("generation") == Some(4) && record.message() == "reload complete"
    });
    assert_eq!(outcome.message(), "reload complete", "{outcome:?}");
    assert_eq!(target.connect().unwrap().get("/").text(), "Hello, world!\n");
    assert_eq!(begun.answer().status(), 200, "the request began before");
    server.finish();
}

#[test]
fn removed_unix_address_removes_its_path() {
    let (server, mut settings) = Settings::start("mio", 2);
    let (path, port) = (server.path("sock"), server.address().port());
    for _ in 0..2 {
        settings.set("bind", format!("[\"127.0.0.1:{port}\", \"unix:{}\"]", path.display()));
        settings.reload(&server);
        assert_eq!(Client::unix(&path).unwrap().get("/").text(), "Hello, world!\n");
        let mut begun = Client::unix(&path).unwrap();
        begun.ask("/sleep?ms=300");
        settings.set("bind", format!("[\"127.0.0.1:{port}\"]")).write();
        server.signal(Signal::SIGHUP);
        assert_eq!(begun.answer().status(), 200, "the request began before the reload");
        wait_until("the path is removed", || !path.exists());
        assert_eq!(server.get("/").text(), "Hello, world!\n");
        // Signals that come later find the reload complete.
        reload(&server);
    }
    server.finish();
}

/// Reloads, and asserts that it fails with one error of these words and keeps the old workers.
#[track_caller]
fn expect_failure(server: &Server, words: &[&str]) {
    let (mark, old) = (server.mark(), pids(server));
    let before = server.get("/info").json()["generation"].clone();
    server.signal(Signal::SIGHUP);
    let outcome = server.wait_for_new_record(mark, "an outcome", |record| {
        record.message() == "reload complete" || is_reload_failure(record)
    });
    let reason = outcome.text("error").unwrap_or_default();
    assert!(is_reload_failure(&outcome), "{outcome:?}");
    for word in words {
        assert!(reason.contains(word), "no word of {word}: {outcome:?}");
    }
    // The same workers of the same generation answer.
    for _ in 0..4 {
        let info = server.get("/info").json();
        assert_eq!(info["generation"], before, "{words:?}");
        let pid = Pid::from_raw(i32::try_from(info["pid"].as_i64().unwrap()).unwrap());
        assert!(old.contains(&pid), "{words:?}: {pid} is none of {old:?}");
    }
    wait_until("the old workers alone", || {
        children(server.pid).iter().map(|child| child.pid).collect::<BTreeSet<_>>() == old
    });
    let outcomes =
        server.records()[mark..].iter().filter(|record| is_reload_failure(record)).count();
    assert_eq!(outcomes, 1, "{:#?}", &server.records()[mark..]);
    let other_errors: Vec<_> = server.records()[mark..]
        .iter()
        .filter(|record| is_error(record) && !is_reload_failure(record))
        .cloned()
        .collect();
    assert!(other_errors.is_empty(), "{other_errors:#?}");
}

fn is_error(record: &Record) -> bool {
    record.text("level").is_some_and(|level| {
        ["error", "critical", "crit"].iter().any(|word| level.eq_ignore_ascii_case(word))
    })
}

fn failed_reload_changes_nothing(class: &str) {
    let (launch, mut settings) = Settings::launch(class, 2);
    let pidfile = launch.path("pid");
    settings.set("pidfile", &pidfile).set("boot_timeout", "10s").write();
    let server = launch.start();
    let home = server.address();
    let taken = TcpListener::bind(free_address()).unwrap();
    let taken_address = taken.local_addr().unwrap().to_string();
    let both = format!("[\"{home}\", \"{taken_address}\"]");
    let elsewhere = pidfile.clone() + ".other";
    let cases: [(&str, &str, &[&str]); 9] = [
        ("nonsense", "1", &["nonsense"]),
        ("worker_class", "gevent", &["gevent"]),
        ("app", "no-such-app", &["no-such-app"]),
        ("bind", &both, &[&taken_address]),
        ("user", "nobody-of-this-name", &["nobody-of-this-name"]),
        ("chdir", "/no/such/dir", &["/no/such/dir"]),
        ("env", "[\"DEMO_FAIL_BOOT=1\"]", &["DEMO_FAIL_BOOT"]),
        ("pidfile", &elsewhere, &["pidfile"]),
        ("log_file", "/no/such/dir/log", &["/no/such/dir/log"]),
    ];
    for (key, value, words) in cases {
        let good = settings.lines.clone();
        settings.set(key, value).write();
        expect_failure(&server, words);
        settings.lines = good;
        settings.reload(&server);
        assert_eq!(pids(&server).len(), 2, "after {key}");
    }
    assert!(!Path::new(&elsewhere).exists());
    // Invalid YAML, and a missing file.
    fs::write(&settings.path, "workers: [1\n").unwrap();
    expect_failure(&server, &["settings.yaml"]);
    settings.reload(&server);
    fs::remove_file(&settings.path).unwrap();
    expect_failure(&server, &["settings.yaml"]);
    settings.reload(&server);
    unlisten(taken);
    settings.set("bind", both).reload(&server);
    let text = Client::tcp(taken_address.parse().unwrap()).unwrap().get("/").text();
    assert_eq!(text, "Hello, world!\n", "what was refused once is not refused for ever");
    assert_eq!(fs::read_to_string(&pidfile).unwrap().trim(), server.pid.to_string());
    server.finish();
}

fn canary_without_descriptors_fails_reload(class: &str) {
    let (server, mut settings) = Settings::start(class, 2);
    settings.set("boot_timeout", "1s").reload(&server);
    wait_until("only two workers are left", || children(server.pid).len() == 2);
    let load = Load::on(server.address());
    // Enough descriptors for the pipe by which the settings come, too few for a heartbeat and its
    // duplicates.
    limit_descriptors(server.pid, limit_with_free(server.pid, 2));
    let mark = server.mark();
    expect_failure(&server, &["failed to start worker", "Too many open files"]);
    let news = server.records().split_off(mark);
    let tries = news.iter().filter(|record| record.message() == "failed to start worker");
    assert!(tries.count() > 1, "{news:#?}");
    limit_descriptors(server.pid, 1024);
    settings.reload(&server);
    load.finish();
    server.finish();
}

fn reload_is_complete_once_old_workers_drain(class: &str) {
    let (server, _settings) = Settings::start(class, 1);
    let old = server.wait_workers(1)[0];
    kill(old.pid, Signal::SIGSTOP).unwrap();
    for generations in [2, 3] {
        server.signal(Signal::SIGHUP);
        wait_until("a worker of the new generation", || {
            server.records_of("worker ready").len() == generations
        });
    }
    assert!(server.records_of("reload complete").is_empty(), "an old worker has heard nothing");
    kill(old.pid, Signal::SIGCONT).unwrap();
    server.wait_for("the end", |record| record.message() == "reload complete");
    let complete = server.records_of("reload complete");
    assert_eq!(complete.last().unwrap().number("generation"), Some(3), "{complete:?}");
    server.wait_exited(old.pid);
    server.finish();
}

#[test]
#[ignore = "slow"]
fn reload_failure_names_its_own_error() {
    let (server, mut settings) = Settings::start("mio", 2);
    let good = settings.lines.clone();
    settings.set("env", "[\"DEMO_FAIL_BOOT=1\"]").write();
    expect_failure(&server, &["DEMO_FAIL_BOOT"]);
    settings.lines = good.clone();
    settings.set("env", "[\"DEMO_BOOT_SLEEP_MS=5000\"]").set("boot_timeout", "300ms").write();
    expect_failure(&server, &["boot_timeout"]);
    settings.lines = good.clone();
    settings.set("cpu_affinity", "\"1000\"").write();
    expect_failure(&server, &["cpu_affinity"]);
    // A canary that gets ready and then crashes. New workers that serve by then are rolled back
    // too.
    settings.lines = good.clone();
    settings.set("env", "[\"DEMO_BOOT_SLEEP_MS=2000\", \"DEMO_EXIT_AFTER_MS=100\"]").write();
    expect_late_failure(&server, &["code 7"]);
    settings.lines = good;
    settings.reload(&server);
    server.finish();
}

/// Reloads to workers of which the first crashes when some are ready, and asserts the one error.
#[track_caller]
fn expect_late_failure(server: &Server, words: &[&str]) {
    let mark = server.mark();
    server.signal(Signal::SIGHUP);
    let outcome = server.wait_for_new_record(mark, "a failure", is_reload_failure);
    let reason = outcome.text("error").unwrap_or_default();
    assert!(words.iter().all(|word| reason.contains(word)), "{outcome:?}");
    wait_until("the old settings", || {
        children(server.pid).len() == 2
            && server.get("/env?name=DEMO_EXIT_AFTER_MS").status() == 404
    });
    let news = server.records().split_off(mark);
    let errors: Vec<_> = news.iter().filter(|record| is_error(record)).collect();
    assert_eq!(errors.len(), 1, "{errors:#?}");
}

/// Returns the whole records of a log file.
fn records_in(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn expect_log_moves(user: Option<&str>) {
    let launch = Launch::new(&["-w", "2", "-k", "mio"]);
    let log = launch.path("log");
    let moved = launch.path("log.1");
    // Lets workers of any user search the directory.
    fs::set_permissions(launch.dir(), fs::Permissions::from_mode(0o777)).unwrap();
    let launch = launch.arg("--log-file").arg(&log);
    let launch = match user {
        Some(user) => launch.arg("--user").arg(user),
        None => launch,
    };
    let server = launch.spawn();
    let (log, moved) = (Path::new(&log), Path::new(&moved));
    let workers = || -> BTreeSet<i64> {
        let records = records_in(if moved.exists() { moved } else { log });
        let ready = records.iter().filter(|record| record["msg"] == "worker ready");
        ready.map(|record| record["pid"].as_i64().unwrap()).collect()
    };
    wait_until("two workers", || workers().len() == 2);
    server.get("/panic");
    fs::rename(log, moved).unwrap();
    server.signal(Signal::SIGUSR1);
    wait_until("the master continues in a new file", || {
        records_in(log).iter().any(|record| record["msg"] == "logs reopened")
    });
    let workers = workers();
    wait_until("the workers do so too", || {
        server.get("/panic");
        let records = records_in(log);
        let told = records.iter().filter(|record| record["msg"] == "worker panicked");
        told.map(|record| record["pid"].as_i64().unwrap()).collect::<BTreeSet<_>>() == workers
    });
    let before = fs::metadata(moved).unwrap().len();
    server.get("/panic");
    for worker in &workers {
        kill(Pid::from_raw(i32::try_from(*worker).unwrap()), Signal::SIGKILL).unwrap();
    }
    wait_until("successors write there as well", || {
        let records = records_in(log);
        records.iter().filter(|record| record["msg"] == "worker ready").count() >= 2
    });
    assert_eq!(fs::metadata(moved).unwrap().len(), before, "no process writes to the old file");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), Exit::Code(0));
}

#[test]
fn usr1_continues_log_in_new_file() {
    expect_log_moves(None);
}

#[test]
fn usr1_works_for_unprivileged_workers() {
    if Uid::effective().is_root() {
        expect_log_moves(Some("nobody"));
    }
}

#[test]
fn new_workers_hold_no_descriptor_of_earlier_log() {
    let (launch, mut settings) = Settings::launch("sync", 2);
    let [old, new, events] = ["old", "new", "events"].map(|name| launch.path(name));
    settings.set("log_file", &old).set("flight_recorder_file", &events).write();
    let server = launch.spawn();
    let says = |log: &str, what: &str| records_in(Path::new(log)).iter().any(|r| r["msg"] == what);
    wait_until("the first workers are ready", || says(&old, "all workers ready"));
    settings.set("log_file", &new).write();
    server.signal(Signal::SIGHUP);
    wait_until("the reload", || says(&new, "reload complete"));
    wait_until("the old workers exit", || children(server.pid).len() == 2);
    for worker in children(server.pid) {
        let number_of = |path: &str| {
            let numbers = descriptors(worker.pid).into_iter();
            let links = numbers.map(|n| fs::read_link(format!("/proc/{}/fd/{n}", worker.pid)));
            links.filter(|link| link.as_ref().is_ok_and(|link| link == Path::new(path))).count()
        };
        assert_eq!([&old, &new].map(|log| number_of(log)), [0, 1]);
        assert!(number_of(&events) <= 1, "that of the earlier settings is closed");
    }
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), Exit::Code(0));
}

/// Workers that hardly sleep find time for new clients, long responses and reloads.
fn busy_workers_lose_nothing_in_reloads(class: &str) {
    let server = Server::start(&["-k", class, "-w", "2", "--threads", "4"]);
    let load = Load::flood(server.address());
    for _ in 0..3 {
        load.wait_answers(2000);
        for _ in 0..20 {
            assert_eq!(server.get("/").text(), "Hello, world!\n");
        }
        assert_eq!(server.get("/bytes?n=5000000").body.len(), 5_000_000);
        reload(&server);
    }
    load.wait_answers(2000);
    load.finish();
    server.finish();
}
