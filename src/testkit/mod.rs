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
//! [`ContractTest::skip`]. Linux only. A run takes about ten seconds if all rules are fulfilled, and up
//! to a minute if not. It writes each result to stderr at once, and ends after 5 min at the latest:
//! [`ContractTest::deadline`].

mod checks;
mod client;
mod deadline;
mod http;
mod inspect;
mod log_capture;
mod probe;
mod proc;
mod progress;
mod report;
mod rule;
mod runner;
mod server;
mod target;
mod workload;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use http::Http;
pub use probe::Obstacle;
pub use report::{Finding, Outcome, Report};
pub use rule::Rule;
pub use workload::{Done, PendingWork, RepeatClient, ServerInfo, Task, Workload};

use crate::os::process::Pid;
use deadline::DEADLINE;
use progress::Progress;
use runner::Runner;
use target::TestTarget;

/// The default number of rules that run at the same time. They mostly wait.
const PARALLEL_RULES: usize = 6;

/// The default limit of a whole test.
const TEST_DEADLINE: Duration = Duration::from_secs(5 * 60);

/// A test of one worker class of one program.
#[derive(Debug)]
pub struct ContractTest {
    target: TestTarget,
    rules: Vec<Rule>,
    skipped: BTreeMap<Rule, String>,
    parallel: usize,
    deadline: Duration,
    quiet: bool,
}

impl ContractTest {
    /// Creates a test of the program at this path. The defaults are the class `sync` and [`Http`].
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            target: TestTarget::new(program.into()),
            rules: Rule::ALL.into(),
            skipped: BTreeMap::new(),
            parallel: PARALLEL_RULES,
            deadline: TEST_DEADLINE,
            quiet: false,
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
        self.target.workload = Arc::new(workload);
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

    /// Sets how long the whole test may take. The default is 5 min. Rules that are not complete by then
    /// count as not run, and their programs are killed.
    #[must_use]
    pub fn deadline(mut self, time: Duration) -> Self {
        self.deadline = time;
        self
    }

    /// Prints nothing while rules run. By default, the result of each is written to stderr at once.
    #[must_use]
    pub fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// Runs the rules. If no worker becomes ready, the other rules are not run. If a kind of work
    /// fails, the rules that need it are not run.
    pub fn run(&self) -> Report {
        let program = self.target.program.display().to_string();
        let mut progress =
            Progress::new(Report::new(&self.target.class, program), self.quiet, self.deadline);
        let runner = Runner::new(&self.target, &self.skipped, self.parallel, self.deadline);
        let mut rules = self.rules.clone();
        if let Some(Rule::Ready) = rules.first() {
            rules.remove(0);
            runner.run(&[Rule::Ready], &mut progress);
            if progress.report().violated().next().is_some() {
                progress.add_not_run(&rules, "no worker becomes ready");
                return progress.finish();
            }
        }
        let is_tried = |rule: &Rule| !self.skipped.contains_key(rule);
        let tried: Vec<_> = rules.iter().copied().filter(is_tried).collect();
        let probe = move |target: &TestTarget| probe::find_obstacles(target, &tried);
        for obstacle in runner.within_deadline(probe).unwrap_or_default() {
            rules.retain(|rule| !obstacle.rules.contains(rule));
            progress.add_obstacle(obstacle);
        }
        runner.run(&rules, &mut progress);
        progress.finish()
    }
}
