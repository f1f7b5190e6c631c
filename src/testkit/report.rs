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
        let has_violations = self.violated().next().is_some();
        let summary = match self.obstacles.is_empty() || has_violations {
            true => "the class violates its contract",
            false => "the class cannot be tested: work fails",
        };
        assert!(self.passed(), "{summary}\n{self}");
    }

    fn show_obstacles(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Obstacle { task, asked, seen, advice, rules } in &self.obstacles {
            let name = TaskKind::of(*task).name();
            let count = rules.len();
            writeln!(f, "  CAUSE: {name} work fails, so {count} rules are not run")?;
            show_block(f, &[("asked", asked), ("seen", seen), ("to do", advice)])?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "worker class {:?} of {}", self.class, self.program)?;
        self.show_obstacles(f)?;
        for Finding { rule, outcome, took } in &self.findings {
            let (result, reason) = match outcome {
                Outcome::Passed => ("passed", ""),
                Outcome::Violated { .. } => ("VIOLATED", ""),
                Outcome::Skipped(reason) => ("skipped", reason.as_str()),
                Outcome::NotRun(reason) => ("not run", reason.as_str()),
            };
            let line =
                format!("  {:<21}{result:<9}{:>6.1} s  {reason}", rule.name(), took.as_secs_f32());
            writeln!(f, "{}", line.trim_end())?;
            if let Outcome::Violated { expected, seen } = outcome {
                let rule = rule.contract();
                show_block(f, &[("rule", rule), ("expected", expected), ("seen", seen)])?;
            }
        }
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

/// Writes titles with their texts, indented.
fn show_block(f: &mut fmt::Formatter<'_>, parts: &[(&str, &str)]) -> fmt::Result {
    for (title, text) in parts {
        let text = text.replace('\n', "\n                ");
        writeln!(f, "      {title:<10}{text}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outcomes: &[(Rule, Outcome)]) -> Report {
        let findings = outcomes.iter().cloned().map(|(rule, outcome)| Finding {
            rule,
            outcome,
            took: Duration::from_millis(1250),
        });
        Report {
            class: "x".into(),
            program: "/bin/y".into(),
            obstacles: Vec::new(),
            findings: findings.collect(),
        }
    }

    fn slow_work_obstacle(rules: Vec<Rule>) -> Obstacle {
        Obstacle {
            task: crate::testkit::Task::Slow(Duration::from_millis(700)),
            asked: "GET /slow".into(),
            seen: "404\n  the log".into(),
            advice: "name a path".into(),
            rules,
        }
    }

    #[test]
    fn obstacle_is_printed_once_and_first() {
        let obstacle = slow_work_obstacle(vec![Rule::Drain, Rule::Queue]);
        let not_run = Outcome::NotRun(obstacle.reason());
        let mut report = report(&[(Rule::Drain, not_run.clone()), (Rule::Queue, not_run)]);
        report.obstacles.push(obstacle);
        assert_eq!(
            report.to_string(),
            "worker class \"x\" of /bin/y\n\
             \u{20} CAUSE: slow work fails, so 2 rules are not run\n\
             \u{20}     asked     GET /slow\n\
             \u{20}     seen      404\n                  the log\n\
             \u{20}     to do     name a path\n\
             \u{20} drain                not run     1.2 s  slow work fails: 404\n\
             \u{20} queue                not run     1.2 s  slow work fails: 404\n\
             0 passed, 0 violated, 0 skipped, 2 not run"
        );
        assert!(!report.passed());
    }

    #[test]
    #[should_panic(expected = "the class cannot be tested: work fails")]
    fn class_with_obstacle_is_not_reported_as_violating() {
        let obstacle = slow_work_obstacle(vec![Rule::Drain]);
        let mut report = report(&[(Rule::Drain, Outcome::NotRun(obstacle.reason()))]);
        report.obstacles.push(obstacle);
        report.assert_passed();
    }

    #[test]
    fn table_shows_expectation_and_rule() {
        let violated = Outcome::Violated { expected: "an end".into(), seen: "none\nat all".into() };
        let report = report(&[
            (Rule::Ready, Outcome::Passed),
            (Rule::Queue, Outcome::Skipped("it has none".into())),
            (Rule::QuickStop, violated),
        ]);
        assert_eq!(
            report.to_string(),
            "worker class \"x\" of /bin/y\n\
             \u{20} ready                passed      1.2 s\n\
             \u{20} queue                skipped     1.2 s  it has none\n\
             \u{20} quick stop           VIOLATED    1.2 s\n\
             \u{20}     rule      On `StopRequest::Immediate`, return or exit at once.\n\
             \u{20}     expected  an end\n\
             \u{20}     seen      none\n                at all\n\
             1 passed, 1 violated, 1 skipped, 0 not run"
        );
        assert!(!report.passed());
        assert_eq!(report.violated().collect::<Vec<_>>(), [Rule::QuickStop]);
    }

    #[test]
    fn rule_not_run_has_not_passed() {
        assert!(report(&[(Rule::Ready, Outcome::Passed)]).passed());
        assert!(report(&[(Rule::Queue, Outcome::Skipped(String::new()))]).passed());
        assert!(!report(&[(Rule::Queue, Outcome::NotRun(String::new()))]).passed());
    }

    #[test]
    fn rule_names_are_unique() {
        let mut names: Vec<_> = Rule::ALL.iter().map(|rule| rule.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Rule::ALL.len());
    }
}
