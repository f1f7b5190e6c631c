//! The class test kit: whether a worker class keeps its contract with the runtime, seen from outside.
//!
//! A kit starts a program, yours, again and again; brings it work; sends it signals, as an operator,
//! a service manager or the kernel would; kills, stops and hangs its workers; reads its log and
//! `/proc`; and reports in a table which [rules](Rule) the class keeps. Nothing of the program runs in
//! the process of the test, so that the test may have threads. To be called from an integration test
//! of the crate that has the class:
//!
//! ```no_run
//! use ostler::testkit::{Http, Kit};
//!
//! #[test]
//! fn my_class_keeps_its_contract() {
//!     let http = Http::new().quick("/").slow("/sleep?ms={ms}").hang("/hang");
//!     let report = Kit::new(env!("CARGO_BIN_EXE_my-server")).class("mine").feed(http).run();
//!     report.assert_passed();
//! }
//! # fn main() {}
//! ```
//!
//! (`env!("CARGO_BIN_EXE_NAME")` is the path of a binary target of the crate under test.) The program
//! must be one of [`Runtime::main`](crate::Runtime::main), since the kit speaks to it by its command
//! line and reads its log in the JSON format. How work reaches it is what a [`Workload`] knows: [`Http`]
//! for classes that serve HTTP, or one of your own. Work must be of three kinds: quick, slow, and such
//! that hangs for good.
//!
//! Before the rules that need work, one unit of each kind is tried out. If work cannot be had as the
//! kit asks for it, say because the program does not know the paths of [`Http`], the report begins
//! with that [`Obstacle`], and the rules that need such work are not tried: they could tell nothing
//! about the class.
//!
//! A rule that does not apply to a class is named together with the reason, which goes into the
//! report: [`Kit::without`]. Linux only; a run takes some seven seconds if all is kept, and up to a
//! minute if not.

mod checks;
mod client;
mod http;
mod log_capture;
mod probe;
mod proc;
mod report;
mod rule;
mod server;
mod workload;

use std::collections::BTreeMap;
use std::fmt;
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
use server::Violation;

/// The longest wait for anything that must come. The machine may be slow, and shared.
const DEADLINE: Duration = Duration::from_secs(20);

/// How many rules are tried at once, unless the caller says otherwise. They mostly wait.
const PARALLEL_RULES: usize = 6;

/// A test of one worker class of one program.
pub struct ContractTest {
    program: PathBuf,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    class: String,
    workload: Box<dyn Workload>,
    rules: Vec<Rule>,
    skipped: BTreeMap<Rule, String>,
    parallel: usize,
}

impl fmt::Debug for ContractTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { program, class, .. } = self;
        f.debug_struct("Kit")
            .field("program", program)
            .field("class", class)
            .finish_non_exhaustive()
    }
}

impl ContractTest {
    /// A test of the program at this path: of its class `sync`, over HTTP, unless told otherwise.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        let program = program.into();
        Self {
            // It is started in a folder of its own.
            program: std::path::absolute(&program).unwrap_or(program),
            arguments: Vec::new(),
            variables: Vec::new(),
            class: "sync".into(),
            workload: Box::new(Http::new()),
            rules: Rule::ALL.into(),
            skipped: BTreeMap::new(),
            parallel: PARALLEL_RULES,
        }
    }

    /// The name of the class.
    #[must_use]
    pub fn class(mut self, name: impl Into<String>) -> Self {
        self.class = name.into();
        self
    }

    /// One more argument for the program, behind those of the kit: a flag that overrides one of the
    /// kit's may spoil a check.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// One more variable in the program's environment.
    #[must_use]
    pub fn variable(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// How work is brought.
    #[must_use]
    pub fn workload(mut self, feed: impl Workload + 'static) -> Self {
        self.workload = Box::new(feed);
        self
    }

    /// A rule does not apply to the class, for a reason that the report repeats.
    #[must_use]
    pub fn skip(mut self, rule: Rule, reason: impl Into<String>) -> Self {
        self.skipped.insert(rule, reason.into());
        self
    }

    /// Tries these rules only.
    #[must_use]
    pub fn only(mut self, rules: impl IntoIterator<Item = Rule>) -> Self {
        self.rules = rules.into_iter().collect();
        self.rules.sort_unstable();
        self.rules.dedup();
        self
    }

    /// Tries so many rules at once, at least 1. Six, unless told otherwise: they mostly wait.
    #[must_use]
    pub fn parallel(mut self, rules: usize) -> Self {
        self.parallel = rules.max(1);
        self
    }

    /// Tries the rules. If the class never gets ready, none but that one is tried; if work of a kind
    /// cannot be had, none that needs it.
    pub fn run(&self) -> Report {
        let mut findings = Vec::new();
        let mut rules = self.rules.clone();
        if let Some(Rule::Ready) = rules.first() {
            rules.remove(0);
            findings.push(self.find(Rule::Ready));
        }
        let mut obstacles = Vec::new();
        if findings.iter().any(|finding| matches!(finding.outcome, Outcome::Violated { .. })) {
            let reason = "the class never gets ready";
            findings.extend(rules.into_iter().map(|rule| not_run(rule, reason)));
        } else {
            let to_try: Vec<_> =
                rules.iter().filter(|rule| !self.skipped.contains_key(rule)).copied().collect();
            obstacles = probe::find_obstacles(self, &to_try);
            for obstacle in &obstacles {
                rules.retain(|rule| !obstacle.rules.contains(rule));
                let reason = obstacle.reason();
                findings.extend(obstacle.rules.iter().map(|rule| not_run(*rule, &reason)));
            }
            findings.extend(self.find_all(&rules));
            findings.sort_by_key(|finding| finding.rule);
        }
        let program = self.program.display().to_string();
        Report { class: self.class.clone(), program, obstacles, findings }
    }

    /// Tries several rules at once; the findings are in the order in which they are made.
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
            None => match checks::check(rule, self) {
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
