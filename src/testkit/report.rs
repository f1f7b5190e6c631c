//! The result of a run, as a table.

use std::fmt;
use std::time::Duration;

use super::probe::Obstacle;
use super::rule::{Rule, TaskKind};

/// The result of one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The class fulfils the rule.
    Passed,
    /// The class violates the rule.
    Violated {
        /// The expected behaviour.
        expected: String,
        /// The observed behaviour.
        seen: String,
    },
    /// The rule does not apply to this class, for this reason.
    Skipped(String),
    /// The rule was not run, for this reason.
    NotRun(String),
}

/// One line of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The rule.
    pub rule: Rule,
    /// Its result.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
}

/// The result of a run. `Display` formats it as a table.
#[derive(Clone, Debug)]
#[must_use = "a report may contain violated rules"]
pub struct Report {
    pub(super) class: String,
    pub(super) program: String,
    pub(super) obstacles: Vec<Obstacle>,
    pub(super) findings: Vec<Finding>,
}

impl Report {
    pub(super) fn new(class: &str, program: String) -> Self {
        Self { class: class.into(), program, obstacles: Vec::new(), findings: Vec::new() }
    }

    /// Returns the findings, in the order of [`Rule::ALL`].
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Returns the kinds of work that failed, and the rules that were not run because of that.
    pub fn obstacles(&self) -> &[Obstacle] {
        &self.obstacles
    }

    /// Returns the rules that the class violates.
    pub fn violated(&self) -> impl Iterator<Item = Rule> + '_ {
        let is_violated = |finding: &&Finding| matches!(finding.outcome, Outcome::Violated { .. });
        self.findings.iter().filter(is_violated).map(|finding| finding.rule)
    }

    /// Returns whether every rule passed or was skipped.
    pub fn passed(&self) -> bool {
        let is_good = |f: &Finding| matches!(f.outcome, Outcome::Passed | Outcome::Skipped(_));
        self.findings.iter().all(is_good)
    }

    /// Asserts that the report has [passed](Self::passed).
    ///
    /// # Panics
    /// Panics with the table if it has not.
    #[track_caller]
    pub fn assert_passed(&self) {
        let summary = match (self.violated().next(), self.obstacles.first()) {
            (Some(_), _) => "the class violates its contract",
            (None, Some(_)) => "the class cannot be tested: work fails",
            (None, None) => "not all rules were run",
        };
        assert!(self.passed(), "{summary}\n{self}");
    }

    pub(super) fn title(&self) -> String {
        format!("worker class {:?} of {}", self.class, self.program)
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Obstacle { task, asked, seen, advice, rules } = self;
        let (name, count) = (TaskKind::of(*task).name(), rules.len());
        write!(f, "  CAUSE: {name} work fails, so {count} rules are not run")?;
        show_block(f, &[("asked", asked), ("seen", seen), ("to do", advice)])
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { rule, outcome, took } = self;
        let (result, reason) = match outcome {
            Outcome::Passed => ("passed", ""),
            Outcome::Violated { .. } => ("VIOLATED", ""),
            Outcome::Skipped(reason) => ("skipped", reason.as_str()),
            Outcome::NotRun(reason) => ("not run", reason.as_str()),
        };
        let line =
            format!("  {:<21}{result:<9}{:>6.1} s  {reason}", rule.name(), took.as_secs_f32());
        write!(f, "{}", line.trim_end())?;
        match outcome {
            Outcome::Violated { expected, seen } => {
                let rule = rule.contract();
                show_block(f, &[("rule", rule), ("expected", expected), ("seen", seen)])
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title())?;
        self.obstacles.iter().try_for_each(|obstacle| writeln!(f, "{obstacle}"))?;
        self.findings.iter().try_for_each(|finding| writeln!(f, "{finding}"))?;
        let count = |wanted: fn(&Outcome) -> bool| {
            self.findings.iter().filter(|finding| wanted(&finding.outcome)).count()
        };
        write!(
            f,
            "{} passed, {} violated, {} skipped, {} not run",
            count(|outcome| matches!(outcome, Outcome::Passed)),
            count(|outcome| matches!(outcome, Outcome::Violated { .. })),
            count(|outcome| matches!(outcome, Outcome::Skipped(_))),
            count(|outcome| matches!(outcome, Outcome::NotRun(_))),
        )
    }
}

/// Writes titles with their texts, indented, on lines of their own.
fn show_block(f: &mut fmt::Formatter<'_>, parts: &[(&str, &str)]) -> fmt::Result {
    for (title, text) in parts {
        let text = text.replace('\n', "\n                ");
        write!(f, "\n      {title:<10}{text}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
