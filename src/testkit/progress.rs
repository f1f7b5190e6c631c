//! Collects the findings of a run, and prints each at once.

use std::fmt::Display;
use std::io::{self, Write};
use std::time::Duration;

use super::probe::Obstacle;
use super::report::{Finding, Outcome, Report};
use super::rule::Rule;

/// The report of a run in progress.
pub(super) struct Progress {
    report: Report,
    quiet: bool,
    deadline: Duration,
}

impl Progress {
    pub(super) fn new(report: Report, quiet: bool, deadline: Duration) -> Self {
        let progress = Self { report, quiet, deadline };
        progress.print(progress.report.title());
        progress
    }

    pub(super) fn report(&self) -> &Report {
        &self.report
    }

    pub(super) fn add(&mut self, finding: Finding) {
        self.print(&finding);
        self.report.findings.push(finding);
    }

    pub(super) fn add_obstacle(&mut self, obstacle: Obstacle) {
        self.print(&obstacle);
        self.add_not_run(&obstacle.rules, &obstacle.reason());
        self.report.obstacles.push(obstacle);
    }

    pub(super) fn add_not_run(&mut self, rules: &[Rule], reason: &str) {
        for rule in rules {
            let outcome = Outcome::NotRun(reason.to_owned());
            self.report.findings.push(Finding { rule: *rule, outcome, took: Duration::ZERO });
        }
    }

    /// Adds the rules that are not complete at the deadline.
    pub(super) fn add_out_of_time(&mut self, rules: &[Rule]) {
        let reason = format!("not complete after {:?}, the deadline of the test", self.deadline);
        self.print(format_args!("  {} rules are {reason}", rules.len()));
        self.add_not_run(rules, &reason);
    }

    /// Returns the report, with its findings in the order of the rules.
    pub(super) fn finish(mut self) -> Report {
        self.report.findings.sort_by_key(|finding| finding.rule);
        self.report
    }

    /// Prints past the test harness, which captures what `eprintln!` prints until a test has failed.
    fn print(&self, text: impl Display) {
        if !self.quiet {
            let _ = writeln!(io::stderr(), "{text}"); // a closed stderr is no failure of the class
        }
    }
}
