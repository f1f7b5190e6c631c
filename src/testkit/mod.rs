//! Tests from outside whether a worker class fulfils its contract with the runtime.
//!
//! A [`ContractTest`] starts the program repeatedly and sends it work. It sends the signals of an
//! operator, a service manager or the kernel; it kills, stops and hangs the workers. It reads the log
//! and `/proc`, and reports in a table which [rules](Rule) the class fulfils. No code of the program
//! runs in the process of the test, so the test may have threads. Call it from an integration test of
//! the crate that contains the class:
//!
//! ```no_run
//! use ostler::testkit::{ContractTest, Http};
//!
//! #[test]
//! fn my_class_fulfils_its_contract() {
//!     let http = Http::new().quick("/").slow("/sleep?ms={ms}").hang("/hang");
//!     let test = ContractTest::new(env!("CARGO_BIN_EXE_my-server")).class("mine").workload(http);
//!     test.run().assert_passed();
//! }
//! # fn main() {}
//! ```
//!
//! (`env!("CARGO_BIN_EXE_NAME")` is the path of a binary target of the crate under test.) The program
//! must use [`Runtime::main`](crate::Runtime::main), because the test uses its command line and reads
//! its log in the JSON format. A [`Workload`] sends work to the program: [`Http`] for classes that
//! serve HTTP, or one of your own. It must provide three kinds of work: quick, slow, and work that
//! hangs forever.
//!
//! Before the rules that need work, the test tries one unit of each kind. If a kind of work fails,
//! for example because the program does not know the paths of [`Http`], the report begins with an
//! [`Obstacle`]. The rules that need this kind of work are not run, because they would say nothing
//! about the class.
//!
//! If a rule does not apply to a class, skip it with a reason, which the report repeats:
//! [`ContractTest::skip`]. Linux only. A run takes about seven seconds if all rules are fulfilled,
//! and up to a minute if not.

mod checks;
mod client;
mod deadline;
mod http;
mod log_capture;
mod probe;
mod proc;
mod report;
mod rule;
mod server;
mod target;
mod workload;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

pub use http::Http;
pub use probe::Obstacle;
pub use report::{Finding, Outcome, Report};
pub use rule::Rule;
pub use workload::{Done, PendingWork, RepeatClient, ServerInfo, Task, Workload};

use crate::os::process::Pid;
use deadline::DEADLINE;
use server::Violation;
use target::TestTarget;

/// The default number of rules that run at the same time. They mostly wait.
const PARALLEL_RULES: usize = 6;

/// A test of one worker class of one program.
#[derive(Debug)]
pub struct ContractTest {
    target: TestTarget,
    rules: Vec<Rule>,
    skipped: BTreeMap<Rule, String>,
    parallel: usize,
}

impl ContractTest {
    /// Creates a test of the program at this path. The defaults are the class `sync` and [`Http`].
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            target: TestTarget::new(program.into()),
            rules: Rule::ALL.into(),
            skipped: BTreeMap::new(),
            parallel: PARALLEL_RULES,
        }
    }

    /// Sets the name of the class.
    #[must_use]
    pub fn class(mut self, name: impl Into<String>) -> Self {
        self.target.class = name.into();
        self
    }

    /// Adds an argument for the program, after those of the test. A flag that overrides one of the
    /// test may spoil a check.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<String>) -> Self {
        self.target.arguments.push(argument.into());
        self
    }

    /// Adds a variable to the program's environment.
    #[must_use]
    pub fn variable(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.target.variables.push((name.into(), value.into()));
        self
    }

    /// Sets how work is sent to the program.
    #[must_use]
    pub fn workload(mut self, workload: impl Workload + 'static) -> Self {
        self.target.workload = Box::new(workload);
        self
    }

    /// Skips a rule that does not apply to the class. The report repeats the reason.
    #[must_use]
    pub fn skip(mut self, rule: Rule, reason: impl Into<String>) -> Self {
        self.skipped.insert(rule, reason.into());
        self
    }

    /// Runs these rules only.
    #[must_use]
    pub fn only(mut self, rules: impl IntoIterator<Item = Rule>) -> Self {
        self.rules = rules.into_iter().collect();
        self.rules.sort_unstable();
        self.rules.dedup();
        self
    }

    /// Sets how many rules run at the same time, at least 1. The default is 6, since rules mostly wait.
    #[must_use]
    pub fn parallel(mut self, rules: usize) -> Self {
        self.parallel = rules.max(1);
        self
    }

    /// Runs the rules. If no worker becomes ready, the other rules are not run. If a kind of work
    /// fails, the rules that need it are not run.
    pub fn run(&self) -> Report {
        let mut findings = Vec::new();
        let mut rules = self.rules.clone();
        if let Some(Rule::Ready) = rules.first() {
            rules.remove(0);
            findings.push(self.find(Rule::Ready));
        }
        let mut obstacles = Vec::new();
        if findings.iter().any(|finding| matches!(finding.outcome, Outcome::Violated { .. })) {
            let reason = "no worker becomes ready";
            findings.extend(rules.into_iter().map(|rule| not_run(rule, reason)));
        } else {
            let to_run: Vec<_> =
                rules.iter().filter(|rule| !self.skipped.contains_key(rule)).copied().collect();
            obstacles = probe::find_obstacles(&self.target, &to_run);
            for obstacle in &obstacles {
                rules.retain(|rule| !obstacle.rules.contains(rule));
                let reason = obstacle.reason();
                findings.extend(obstacle.rules.iter().map(|rule| not_run(*rule, &reason)));
            }
            findings.extend(self.find_all(&rules));
            findings.sort_by_key(|finding| finding.rule);
        }
        let program = self.target.program.display().to_string();
        Report { class: self.target.class.clone(), program, obstacles, findings }
    }

    /// Runs several rules at the same time, and returns the findings in order of completion.
    fn find_all(&self, rules: &[Rule]) -> Vec<Finding> {
        let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            for _ in 0..self.parallel.min(rules.len()) {
                scope.spawn(|| {
                    while let Some(rule) = rules.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let finding = self.find(*rule);
                        found.lock().unwrap_or_else(PoisonError::into_inner).push(finding);
                    }
                });
            }
        });
        found.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, rule: Rule) -> Finding {
        let begun = Instant::now();
        let outcome = match self.skipped.get(&rule) {
            Some(reason) => Outcome::Skipped(reason.clone()),
            None => match checks::check(rule, &self.target) {
                Ok(()) => Outcome::Passed,
                Err(Violation { expected, seen }) => Outcome::Violated { expected, seen },
            },
        };
        Finding { rule, outcome, took: begun.elapsed() }
    }
}

fn not_run(rule: Rule, reason: &str) -> Finding {
    Finding { rule, outcome: Outcome::NotRun(reason.to_owned()), took: Duration::ZERO }
}
