//! The contract kit: built-in classes and those of the examples pass, and for faulty classes the
//! kit reports the rule that they break.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use ostler::testkit::{
    ContractTest, Done, Http, Outcome, PendingWork, Report, Rule, ServerInfo, Task, Workload,
};

/// Returns the executable of an example, or `None` if it was not built, as under `cargo test --test
/// kit`.
fn example(name: &str) -> Option<PathBuf> {
    let test = env::current_exe().unwrap(); // target/debug/deps/kit-…
    let path = test.ancestors().nth(2).unwrap().join("examples").join(name);
    if !path.exists() {
        eprintln!("skipped: {} is not there; plain `cargo test` builds it", path.display());
        return None;
    }
    Some(path)
}

#[track_caller]
fn expect_passed(test: &ContractTest) {
    let report = test.run();
    eprintln!("{report}");
    report.assert_passed();
}

/// Creates a test that prints nothing past the harness, since these tests run side by side.
fn contract_test(program: impl Into<PathBuf>) -> ContractTest {
    ContractTest::new(program).quiet()
}

#[test]
#[ignore = "slow"]
fn sync_keeps_its_contract() {
    expect_passed(&contract_test(env!("CARGO_BIN_EXE_ostler")).class("sync"));
}

#[test]
#[ignore = "slow"]
fn threads_keeps_its_contract() {
    expect_passed(&contract_test(env!("CARGO_BIN_EXE_ostler")).class("threads"));
}

#[test]
fn mio_keeps_its_contract() {
    expect_passed(&contract_test(env!("CARGO_BIN_EXE_ostler")).class("mio"));
}

#[test]
#[ignore = "slow"]
fn batch_keeps_its_contract() {
    let Some(program) = example("custom_class") else { return };
    expect_passed(&contract_test(program).class("batch"));
}

#[test]
#[ignore = "slow"]
fn patient_keeps_its_contract() {
    let Some(program) = example("own_loop") else { return };
    expect_passed(&contract_test(program).class("patient"));
}

#[test]
#[ignore = "slow"]
fn tokio_keeps_its_contract() {
    let Some(program) = example("tokio_axum") else { return };
    expect_passed(&contract_test(program).class("tokio"));
}

#[test]
#[ignore = "slow"]
fn thread_per_client_keeps_its_contract() {
    let Some(program) = example("broken_threads") else { return };
    expect_passed(&contract_test(program).class("correct"));
}

#[test]
#[ignore = "slow"]
fn uring_keeps_its_contract_if_supported() {
    let program = env!("CARGO_BIN_EXE_ostler");
    let words = ["--worker-class", "uring", "--check-config"];
    let checked = Command::new(program).args(words).output().unwrap();
    if checked.status.success() {
        return expect_passed(&contract_test(program).class("uring"));
    }
    let reason = String::from_utf8_lossy(&checked.stderr);
    eprintln!("skipped: {reason}");
    assert_eq!(checked.status.code(), Some(1));
    assert!(reason.contains("io_uring cannot be used here"), "{reason}");
}

/// Workload for the example's queue, which is a directory.
struct QueueDir;

impl Workload for QueueDir {
    fn variables(&self, dir: &Path) -> Vec<(String, String)> {
        vec![("QUEUE".into(), dir.display().to_string())]
    }

    fn begin(&self, server: &ServerInfo, task: Task) -> Result<Box<dyn PendingWork>, String> {
        let text = match task {
            Task::Quick => "quick".to_owned(),
            Task::Slow(time) => format!("sleep {}", time.as_millis()),
            Task::Hang => "hang".to_owned(),
        };
        let unique = tempfile::Builder::new().prefix("item").tempfile_in(server.dir());
        let (_, written) = unique.and_then(|file| Ok(file.keep()?)).map_err(|e| e.to_string())?;
        fs::write(&written, text).map_err(|error| error.to_string())?;
        let item = Item(written.with_extension("job"));
        fs::rename(&written, &item.0).map_err(|error| error.to_string())?;
        if task != Task::Quick {
            becomes_true(Duration::from_secs(20), || item.is_claimed())
                .ok_or("no worker takes it")?;
        }
        Ok(Box::new(item))
    }
}

struct Item(PathBuf);

impl Item {
    /// Returns whether a worker holds its lock, or has done it. A test with try_lock would hold the
    /// lock for a moment, in which a worker might skip the item.
    fn is_claimed(&self) -> bool {
        let Ok(file) = fs::metadata(&self.0) else { return true };
        let end = format!(":{}", file.ino());
        let locks = fs::read_to_string("/proc/locks").unwrap();
        let mut locks = locks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        locks.any(|lock| lock[1] == "FLOCK" && lock.iter().any(|word| word.ends_with(&end)))
    }
}

impl PendingWork for Item {
    fn wait(self: Box<Self>, timeout: Duration) -> Result<Done, String> {
        becomes_true(timeout, || !self.0.exists()).ok_or("it is still there")?;
        Ok(Done::default())
    }
}

impl Drop for Item {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0); // no later worker should hang on it
    }
}

fn becomes_true(timeout: Duration, mut is_so: impl FnMut() -> bool) -> Option<()> {
    let end = Instant::now() + timeout;
    while !is_so() {
        if Instant::now() >= end {
            return None;
        }
        thread::sleep(Duration::from_millis(2));
    }
    Some(())
}

#[test]
#[ignore = "slow"]
fn queue_keeps_its_contract() {
    let Some(program) = example("queue_consumer") else { return };
    let kit = contract_test(program).class("queue").workload(QueueDir);
    let kit = kit.skip(Rule::Queue, "items can wait for the next start");
    expect_passed(&kit.skip(Rule::IdleClients, "it has no clients"));
}

fn not_run(report: &Report) -> Vec<Rule> {
    let is_untried = |outcome: &Outcome| matches!(outcome, Outcome::NotRun(_));
    let findings = report.findings().iter().filter(|finding| is_untried(&finding.outcome));
    findings.map(|finding| finding.rule).collect()
}

#[test]
fn wrong_app_is_one_obstacle_and_no_violation() {
    let Some(program) = example("hello_http") else { return };
    let kit = contract_test(program).skip(Rule::Queue, "a test says so");
    let report = kit.skip(Rule::Quiet, "a busy machine").run();
    eprintln!("{report}");
    assert_eq!(report.violated().count(), 0, "{report}");
    assert!(!report.passed());
    let [obstacle] = report.obstacles() else { panic!("one is enough: {report}") };
    assert_eq!(obstacle.task, Task::Quick);
    assert!(obstacle.asked.contains("GET /pid") && obstacle.seen.contains("404"), "{report}");
    assert!(obstacle.advice.contains("Http::quick") && obstacle.advice.contains("demo"));
    // Rules without work are tried, and rules that do not apply are still skipped.
    let mut others = vec![Rule::Ready, Rule::Signals, Rule::IdleHeartbeat, Rule::Quiet];
    others.extend([Rule::Queue, Rule::Replacements]);
    let hindered = Rule::ALL.into_iter().filter(|rule| !others.contains(rule));
    assert_eq!(not_run(&report), hindered.collect::<Vec<_>>());
    assert_eq!(not_run(&report), obstacle.rules);
    assert!(report.findings().is_sorted_by_key(|finding| finding.rule));
    assert_eq!(report.to_string().matches("CAUSE").count(), 1, "{report}");
}

#[test]
#[ignore = "slow"]
fn missing_slow_work_affects_only_rules_that_need_it() {
    let kit =
        contract_test(env!("CARGO_BIN_EXE_ostler")).workload(Http::new().slow("/nothing?ms={ms}"));
    let report =
        kit.only([Rule::Work, Rule::Drain, Rule::DrainSingleWorker, Rule::DrainLimit]).run();
    assert_eq!(not_run(&report), [Rule::Drain, Rule::DrainSingleWorker], "{report}");
    assert_eq!(report.violated().count(), 0, "{report}");
    let obstacle = &report.obstacles()[0];
    assert!(obstacle.asked.contains("GET /nothing?ms=700"), "{report}");
    assert!(obstacle.advice.contains("Http::slow"), "{report}");
}

#[test]
fn unneeded_work_is_not_requested() {
    let nonsense = Http::new().quick("/nothing").slow("/nothing").hang("/nothing");
    let kit = contract_test(env!("CARGO_BIN_EXE_ostler")).workload(nonsense);
    let report = kit.skip(Rule::Drain, "a test says so").only([Rule::IdleHeartbeat, Rule::Drain]);
    let report = report.run();
    assert!(report.passed() && report.obstacles().is_empty(), "{report}");
}

/// Work over HTTP, of which no request hangs.
struct EarlyAnswer(Http);

impl Workload for EarlyAnswer {
    fn arguments(&self, dir: &Path) -> Vec<String> {
        self.0.arguments(dir)
    }

    fn begin(&self, server: &ServerInfo, task: Task) -> Result<Box<dyn PendingWork>, String> {
        match task {
            Task::Hang => Ok(Box::new(Item(server.dir().join("none")))), // which is done
            other => self.0.begin(server, other),
        }
    }
}

#[test]
#[ignore = "slow"]
fn hang_task_that_completes_is_an_obstacle() {
    let kit = contract_test(env!("CARGO_BIN_EXE_ostler")).workload(EarlyAnswer(Http::new()));
    let report = kit.only([Rule::Work, Rule::Hang, Rule::OrphanHung]).run();
    assert_eq!(not_run(&report), [Rule::Hang, Rule::OrphanHung], "{report}");
    assert_eq!(report.obstacles()[0].task, Task::Hang);
    assert!(report.obstacles()[0].seen.contains("completed"), "{report}");
    assert!(!report.passed() && report.violated().count() == 0, "{report}");
}

/// The classes of `broken_threads`.
const THREAD_CLASSES: [&str; 5] = [
    "marks-for-all",
    "loses-wakeups",
    "ignores-the-limit",
    "joins-stuck-threads",
    "reserves-one-entry",
];

/// Tries these rules on a class of `broken_class` or `broken_threads`.
fn test_class(class: &str, rules: &[Rule]) -> Option<Report> {
    let name = if THREAD_CLASSES.contains(&class) { "broken_threads" } else { "broken_class" };
    let kit = contract_test(example(name)?).class(class).workload(Http::new());
    let report = kit.only(rules.iter().copied()).run();
    eprintln!("{report}");
    Some(report)
}

/// Asserts that a class breaks the first of these rules, and keeps the others.
#[track_caller]
fn expect_violation(class: &str, rules: &[Rule]) {
    let Some(report) = test_class(class, rules) else { return };
    assert_eq!(report.violated().collect::<Vec<_>>(), rules[..1], "{report}");
    assert!(!report.passed());
    let text = report.to_string();
    assert!(text.contains(rules[0].contract()) && text.contains("expected"), "{text}");
}

#[test]
#[ignore = "slow"]
fn class_never_ready_is_not_tested_further() {
    let Some(report) = test_class("never-ready", &[Rule::Ready, Rule::Drain]) else { return };
    assert_eq!(report.violated().collect::<Vec<_>>(), [Rule::Ready]);
    assert!(report.to_string().contains("no worker becomes ready"), "{report}");
}

#[test]
fn class_that_starts_in_the_master_is_reported() {
    expect_violation("starts-early", &[Rule::Ready]);
}

#[test]
#[ignore = "slow"]
fn class_without_heartbeat_is_reported() {
    expect_violation("never-beats", &[Rule::IdleHeartbeat, Rule::Ready, Rule::Work, Rule::Drain]);
}

#[test]
#[ignore = "slow"]
fn class_that_never_sleeps_is_reported() {
    expect_violation("never-sleeps", &[Rule::Quiet, Rule::IdleHeartbeat, Rule::Drain]);
}

#[test]
#[ignore = "slow"]
fn class_that_ignores_stops_is_reported() {
    let rules = [Rule::IdleHeartbeat, Rule::QuickStop, Rule::OrphanIdle];
    let Some(report) = test_class("ignores-stop", &rules) else { return };
    assert_eq!(report.violated().collect::<Vec<_>>(), rules[1..], "{report}");
}

#[test]
fn class_that_drops_work_is_reported() {
    expect_violation(
        "drops-work",
        &[Rule::Drain, Rule::Ready, Rule::IdleHeartbeat, Rule::QuickStop],
    );
}

#[test]
#[ignore = "slow"]
fn class_that_forgets_the_backlog_is_reported() {
    expect_violation("forgets-the-queue", &[Rule::Queue, Rule::Ready, Rule::Drain]);
}

#[test]
#[ignore = "slow"]
fn class_that_leaks_descriptors_is_reported() {
    expect_violation("leaks-descriptors", &[Rule::Descriptors, Rule::Replacements, Rule::Drain]);
}

#[test]
#[ignore = "slow"]
fn class_that_fails_at_exit_is_reported() {
    expect_violation("fails-at-the-end", &[Rule::Drain, Rule::IdleHeartbeat, Rule::Work]);
}

#[test]
#[ignore = "slow"]
fn class_ready_too_early_is_reported() {
    expect_violation("ready-too-early", &[Rule::ReadyInTime, Rule::Ready, Rule::Work]);
}

/// Asserts that the report of the rule about signals has these words.
#[track_caller]
fn expect_signal_fault(class: &str, words: &str) {
    let Some(report) = test_class(class, &[Rule::Ready, Rule::Signals]) else { return };
    assert_eq!(report.violated().collect::<Vec<_>>(), [Rule::Signals], "{report}");
    assert!(report.to_string().contains(words), "{report}");
}

#[test]
fn class_that_blocks_sigterm_is_reported_as_such() {
    expect_signal_fault("blocks-term", "SIGTERM is blocked in all threads (SigBlk)");
}

#[test]
#[ignore = "slow"]
fn class_that_takes_sigterm_is_reported_as_such() {
    expect_signal_fault("takes-term", "SIGTERM is caught (SigCgt), but the runtime is not told");
}

#[test]
#[ignore = "slow"]
fn class_that_accepts_after_stop_is_reported() {
    expect_violation("accepts-after-stop", &[Rule::StopsAccepting, Rule::Queue, Rule::Drain]);
}

#[test]
#[ignore = "slow"]
fn class_that_leaves_processes_is_reported() {
    expect_violation("leaves-a-process", &[Rule::Processes, Rule::Replacements, Rule::Drain]);
}

#[test]
#[ignore = "slow"]
fn class_that_marks_for_all_threads_is_reported() {
    expect_violation("marks-for-all", &[Rule::HangAmongOthers, Rule::WakeUps, Rule::Drain]);
}

#[test]
#[ignore = "slow"]
fn class_that_loses_wakeups_is_reported() {
    expect_violation("loses-wakeups", &[Rule::WakeUps, Rule::Ready, Rule::IdleHeartbeat]);
}

#[test]
#[ignore = "slow"]
fn class_that_ignores_the_client_limit_is_reported() {
    expect_violation("ignores-the-limit", &[Rule::ClientLimit, Rule::HangAmongOthers, Rule::Drain]);
}

#[test]
#[ignore = "slow"]
fn class_that_joins_stuck_threads_is_reported() {
    expect_violation("joins-stuck-threads", &[Rule::QuickStopHung, Rule::HangAmongOthers]);
}

#[test]
#[ignore = "slow"]
fn class_with_too_few_entries_is_reported() {
    let rules = [Rule::Ready, Rule::Queue]; // clients at the same time, of which one is slow
    let mut last = String::new();
    // The report has the log as far as it has been read when the client sees the reset.
    let names_the_reason = (0..5).any(|_| {
        let Some(report) = test_class("reserves-one-entry", &rules) else { return true };
        assert_eq!(report.violated().collect::<Vec<_>>(), [Rule::Queue], "{report}");
        last = report.to_string();
        last.contains("no thread entry is free")
    });
    assert!(names_the_reason, "{last}");
}

#[test]
fn test_ends_at_its_own_deadline() {
    let stuck = contract_test(env!("CARGO_BIN_EXE_ostler")).workload(Stuck);
    let begun = Instant::now();
    let report = stuck.only([Rule::Ready, Rule::Work]).deadline(Duration::from_secs(8)).run();
    assert!(begun.elapsed() < Duration::from_secs(60), "{report}");
    assert_eq!(not_run(&report), [Rule::Work], "{report}");
    assert!(!report.passed() && report.to_string().contains("not complete after 8s"), "{report}");
}

/// Work that ignores the limit of its waits.
struct Stuck;

impl Workload for Stuck {
    fn arguments(&self, dir: &Path) -> Vec<String> {
        Http::new().arguments(dir)
    }

    fn begin(&self, _: &ServerInfo, _: Task) -> Result<Box<dyn PendingWork>, String> {
        loop {
            thread::park();
        }
    }
}

#[test]
fn findings_are_printed_as_they_come() {
    if env::var_os("PRINTS_FINDINGS").is_some() {
        let test = ContractTest::new(env!("CARGO_BIN_EXE_ostler"));
        return test.only([Rule::Ready, Rule::Signals]).run().assert_passed();
    }
    let test = Command::new(env::current_exe().unwrap())
        .args(["--exact", "findings_are_printed_as_they_come"])
        .env("PRINTS_FINDINGS", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&test.stderr);
    assert!(test.status.success() && text.contains("worker class \"sync\" of"), "{text}");
    assert!(text.contains("  ready                passed"), "{text}");
}
