//! The class test kit: the built-in classes and those of the examples keep their contract, and of
//! classes that do not, the kit says which rule they break.

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

/// The executable of an example; none if it was not built, as under `cargo test --test kit`.
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

#[test]
fn sync_keeps_its_contract() {
    expect_passed(&ContractTest::new(env!("CARGO_BIN_EXE_ostler")).class("sync"));
}

#[test]
fn threads_keeps_its_contract() {
    expect_passed(&ContractTest::new(env!("CARGO_BIN_EXE_ostler")).class("threads"));
}

#[test]
fn mio_keeps_its_contract() {
    expect_passed(&ContractTest::new(env!("CARGO_BIN_EXE_ostler")).class("mio"));
}

#[test]
fn batch_keeps_its_contract() {
    let Some(program) = example("custom_class") else { return };
    expect_passed(&ContractTest::new(program).class("batch"));
}

#[test]
fn patient_keeps_its_contract() {
    let Some(program) = example("own_loop") else { return };
    expect_passed(&ContractTest::new(program).class("patient"));
}

#[test]
fn tokio_keeps_its_contract() {
    let Some(program) = example("tokio_axum") else { return };
    expect_passed(&ContractTest::new(program).class("tokio"));
}

#[test]
fn uring_keeps_its_contract_where_the_kernel_has_it() {
    let Some(program) = example("uring") else { return };
    let words = ["--worker-class", "uring", "--check-config"];
    let checked = Command::new(&program).args(words).output().unwrap();
    if checked.status.success() {
        return expect_passed(&ContractTest::new(program).class("uring"));
    }
    let reason = String::from_utf8_lossy(&checked.stderr);
    eprintln!("skipped: {reason}");
    assert_eq!(checked.status.code(), Some(1));
    assert!(reason.contains("io_uring cannot be had here"), "{reason}");
}

/// Items for the example's queue.
struct Folder;

impl Workload for Folder {
    fn variables(&self, folder: &Path) -> Vec<(String, String)> {
        vec![("QUEUE".into(), folder.display().to_string())]
    }

    fn begin(&self, server: &ServerInfo, task: Task) -> Result<Box<dyn PendingWork>, String> {
        let text = match task {
            Task::Quick => "quick".to_owned(),
            Task::Slow(time) => format!("sleep {}", time.as_millis()),
            Task::Hang => "hang".to_owned(),
        };
        let unique = tempfile::Builder::new().prefix("item").tempfile_in(server.folder());
        let (_, written) = unique.and_then(|file| Ok(file.keep()?)).map_err(|e| e.to_string())?;
        fs::write(&written, text).map_err(|error| error.to_string())?;
        let item = Item(written.with_extension("job"));
        fs::rename(&written, &item.0).map_err(|error| error.to_string())?;
        if task != Task::Quick {
            becomes_true(Duration::from_secs(20), || item.is_taken()).ok_or("nobody takes it")?;
        }
        Ok(Box::new(item))
    }
}

struct Item(PathBuf);

impl Item {
    /// Whether a worker has its lock, or has done it. To try the lock would be to hold it for a
    /// moment, in which a worker might pass on.
    fn is_taken(&self) -> bool {
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
        let _ = fs::remove_file(&self.0); // nobody else is to hang in it
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
fn queue_keeps_its_contract() {
    let Some(program) = example("queue_consumer") else { return };
    let kit = ContractTest::new(program).class("queue").workload(Folder);
    let kit = kit.skip(Rule::Queue, "what is in the folder can wait for the next start");
    expect_passed(&kit.skip(Rule::IdleClients, "it has no clients"));
}

fn not_run(report: &Report) -> Vec<Rule> {
    let is_untried = |outcome: &Outcome| matches!(outcome, Outcome::NotRun(_));
    let findings = report.findings().iter().filter(|finding| is_untried(&finding.outcome));
    findings.map(|finding| finding.rule).collect()
}

#[test]
fn a_program_with_another_app_is_one_cause_and_not_many_broken_rules() {
    let Some(program) = example("hello_http") else { return };
    let kit = ContractTest::new(program).skip(Rule::Queue, "a test says so");
    let report = kit.skip(Rule::Quiet, "a busy machine").run();
    eprintln!("{report}");
    assert_eq!(report.violated().count(), 0, "{report}");
    assert!(!report.passed());
    let [obstacle] = report.obstacles() else { panic!("one is enough: {report}") };
    assert_eq!(obstacle.task, Task::Quick);
    assert!(obstacle.asked.contains("GET /pid") && obstacle.seen.contains("404"), "{report}");
    assert!(obstacle.advice.contains("Http::quick") && obstacle.advice.contains("demo"));
    // What needs no work is tried, and what does not apply stays so.
    let others = [Rule::Ready, Rule::IdleHeartbeat, Rule::Quiet, Rule::Queue, Rule::Replacements];
    let hindered = Rule::ALL.into_iter().filter(|rule| !others.contains(rule));
    assert_eq!(not_run(&report), hindered.collect::<Vec<_>>());
    assert_eq!(not_run(&report), obstacle.rules);
    assert!(report.findings().is_sorted_by_key(|finding| finding.rule));
    assert_eq!(report.to_string().matches("CAUSE").count(), 1, "{report}");
}

#[test]
fn only_the_rules_that_need_slow_work_hang_on_it() {
    let kit = ContractTest::new(env!("CARGO_BIN_EXE_ostler"))
        .workload(Http::new().slow("/nothing?ms={ms}"));
    let report =
        kit.only([Rule::Work, Rule::Drain, Rule::DrainSingleWorker, Rule::DrainLimit]).run();
    assert_eq!(not_run(&report), [Rule::Drain, Rule::DrainSingleWorker], "{report}");
    assert_eq!(report.violated().count(), 0, "{report}");
    let obstacle = &report.obstacles()[0];
    assert!(obstacle.asked.contains("GET /nothing?ms=700"), "{report}");
    assert!(obstacle.advice.contains("Http::slow"), "{report}");
}

#[test]
fn work_that_no_rule_needs_is_not_asked_for() {
    let nonsense = Http::new().quick("/nothing").slow("/nothing").hang("/nothing");
    let kit = ContractTest::new(env!("CARGO_BIN_EXE_ostler")).workload(nonsense);
    let report = kit.skip(Rule::Drain, "a test says so").only([Rule::IdleHeartbeat, Rule::Drain]);
    let report = report.run();
    assert!(report.passed() && report.obstacles().is_empty(), "{report}");
}

/// Work over HTTP, of which none hangs.
struct EarlyAnswer(Http);

impl Workload for EarlyAnswer {
    fn arguments(&self, folder: &Path) -> Vec<String> {
        self.0.arguments(folder)
    }

    fn begin(&self, server: &ServerInfo, task: Task) -> Result<Box<dyn PendingWork>, String> {
        match task {
            Task::Hang => Ok(Box::new(Item(server.folder().join("none")))), // which is done
            other => self.0.begin(server, other),
        }
    }
}

#[test]
fn work_that_should_hang_and_does_not_is_a_cause_too() {
    let kit = ContractTest::new(env!("CARGO_BIN_EXE_ostler")).workload(EarlyAnswer(Http::new()));
    let report = kit.only([Rule::Work, Rule::Hang, Rule::OrphanHung]).run();
    assert_eq!(not_run(&report), [Rule::Hang, Rule::OrphanHung], "{report}");
    assert_eq!(report.obstacles()[0].task, Task::Hang);
    assert!(report.obstacles()[0].seen.contains("it is done"), "{report}");
    assert!(!report.passed() && report.violated().count() == 0, "{report}");
}

/// Tries these rules on a class of the example that is full of faults.
fn test_class(class: &str, rules: &[Rule]) -> Option<Report> {
    let kit = ContractTest::new(example("broken_class")?).class(class).workload(Http::new());
    let report = kit.only(rules.iter().copied()).run();
    eprintln!("{report}");
    Some(report)
}

/// Of these rules, a class breaks the first one, and keeps the others.
#[track_caller]
fn expect_violation(class: &str, rules: &[Rule]) {
    let Some(report) = test_class(class, rules) else { return };
    assert_eq!(report.violated().collect::<Vec<_>>(), rules[..1], "{report}");
    assert!(!report.passed());
    let text = report.to_string();
    assert!(text.contains(rules[0].contract()) && text.contains("expected"), "{text}");
}

#[test]
fn class_never_ready_is_not_tested_further() {
    let Some(report) = test_class("never-ready", &[Rule::Ready, Rule::Drain]) else { return };
    assert_eq!(report.violated().collect::<Vec<_>>(), [Rule::Ready]);
    assert!(report.to_string().contains("never gets ready"), "{report}");
}

#[test]
fn class_that_starts_in_the_master_is_reported() {
    expect_violation("starts-early", &[Rule::Ready]);
}

#[test]
fn class_without_heartbeat_is_reported() {
    expect_violation("never-beats", &[Rule::IdleHeartbeat, Rule::Ready, Rule::Work, Rule::Drain]);
}

#[test]
fn class_that_never_sleeps_is_reported() {
    expect_violation("never-sleeps", &[Rule::Quiet, Rule::IdleHeartbeat, Rule::Drain]);
}

#[test]
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
fn class_that_forgets_the_backlog_is_reported() {
    expect_violation("forgets-the-queue", &[Rule::Queue, Rule::Ready, Rule::Drain]);
}

#[test]
fn class_that_leaks_descriptors_is_reported() {
    expect_violation("leaks-descriptors", &[Rule::Descriptors, Rule::Replacements, Rule::Drain]);
}

#[test]
fn class_that_fails_at_exit_is_reported() {
    expect_violation("fails-at-the-end", &[Rule::Drain, Rule::IdleHeartbeat, Rule::Work]);
}
