//! What a run of the kit has found, as a table.

use std::fmt;
use std::time::Duration;

use super::probe::Obstacle;
use super::rule::{Rule, TaskKind};

/// What was found about one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The class keeps it.
    Passed,
    /// The class breaks it.
    Violated {
        /// What should have happened.
        expected: String,
        /// What happened instead.
        seen: String,
    },
    /// It does not apply to this class, for this reason.
    Skipped(String),
    /// It was not tried, for this reason.
    NotRun(String),
}

/// One line of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The rule.
    pub rule: Rule,
    /// What was found.
    pub outcome: Outcome,
    /// How long that took.
    pub took: Duration,
}

/// What a run of the kit has found. It is shown as a table.
#[derive(Clone, Debug)]
#[must_use = "a report may say that the class is broken"]
pub struct Report {
    pub(super) class: String,
    pub(super) program: String,
    pub(super) obstacles: Vec<Obstacle>,
    pub(super) findings: Vec<Finding>,
}

impl Report {
    /// The findings, in the order of [`Rule::ALL`].
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// What has kept rules from being tried, if anything: work that cannot be had as the kit asks
    /// for it.
    pub fn obstacles(&self) -> &[Obstacle] {
        &self.obstacles
    }

    /// The rules that the class breaks.
    pub fn violated(&self) -> impl Iterator<Item = Rule> + '_ {
        let broken = |finding: &&Finding| matches!(finding.outcome, Outcome::Violated { .. });
        self.findings.iter().filter(broken).map(|finding| finding.rule)
    }

    /// Whether every rule is kept that was tried, and none was left untried.
    pub fn passed(&self) -> bool {
        let is_good = |f: &Finding| matches!(f.outcome, Outcome::Passed | Outcome::Skipped(_));
        self.findings.iter().all(is_good)
    }

    /// For the end of a test.
    ///
    /// # Panics
    /// With the whole table, unless it has [passed](Self::passed).
    #[track_caller]
    pub fn assert_passed(&self) {
        let is_broken = self.violated().next().is_some();
        let complaint = match self.obstacles.is_empty() || is_broken {
            true => "the class breaks its contract",
            false => "the class cannot be tried as it should be",
        };
        assert!(self.passed(), "{complaint}\n{self}");
    }

    fn show_obstacles(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Obstacle { task, asked, seen, advice, rules } in &self.obstacles {
            let name = TaskKind::of(*task).name();
            let count = rules.len();
            writeln!(f, "  CAUSE: {name} work cannot be had, so {count} rules are not tried")?;
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
            let (word, reason) = match outcome {
                Outcome::Passed => ("kept", ""),
                Outcome::Violated { .. } => ("BROKEN", ""),
                Outcome::Skipped(reason) => ("does not apply", reason.as_str()),
                Outcome::NotRun(reason) => ("not tried", reason.as_str()),
            };
            let line =
                format!("  {:<18}{word:<16}{:>6.1} s  {reason}", rule.name(), took.as_secs_f32());
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
            "{} kept, {} broken, {} do not apply, {} not tried",
            count(|outcome| matches!(outcome, Outcome::Passed)),
            count(|outcome| matches!(outcome, Outcome::Violated { .. })),
            count(|outcome| matches!(outcome, Outcome::Skipped(_))),
            count(|outcome| matches!(outcome, Outcome::NotRun(_))),
        )
    }
}

/// Some titles with their texts, indented.
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

    fn no_slow_work(rules: Vec<Rule>) -> Obstacle {
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
        let obstacle = no_slow_work(vec![Rule::Drain, Rule::Queue]);
        let untried = Outcome::NotRun(obstacle.reason());
        let mut report = report(&[(Rule::Drain, untried.clone()), (Rule::Queue, untried)]);
        report.obstacles.push(obstacle);
        assert_eq!(
            report.to_string(),
            "worker class \"x\" of /bin/y\n\
             \u{20} CAUSE: slow work cannot be had, so 2 rules are not tried\n\
             \u{20}     asked     GET /slow\n\
             \u{20}     seen      404\n                  the log\n\
             \u{20}     to do     name a path\n\
             \u{20} drain             not tried          1.2 s  slow work cannot be had: 404\n\
             \u{20} queue             not tried          1.2 s  slow work cannot be had: 404\n\
             0 kept, 0 broken, 0 do not apply, 2 not tried"
        );
        assert!(!report.passed());
    }

    #[test]
    #[should_panic(expected = "the class cannot be tried as it should be")]
    fn class_with_obstacle_is_not_reported_as_violating() {
        let obstacle = no_slow_work(vec![Rule::Drain]);
        let mut report = report(&[(Rule::Drain, Outcome::NotRun(obstacle.reason()))]);
        report.obstacles.push(obstacle);
        report.assert_passed();
    }

    #[test]
    fn table_shows_expectation_and_rule() {
        let broken = Outcome::Violated { expected: "an end".into(), seen: "none\nat all".into() };
        let report = report(&[
            (Rule::Ready, Outcome::Passed),
            (Rule::Queue, Outcome::Skipped("it has none".into())),
            (Rule::QuickStop, broken),
        ]);
        assert_eq!(
            report.to_string(),
            "worker class \"x\" of /bin/y\n\
             \u{20} ready             kept               1.2 s\n\
             \u{20} queue             does not apply     1.2 s  it has none\n\
             \u{20} quick end         BROKEN             1.2 s\n\
             \u{20}     rule      When `stop()` says `Now`, a class returns, or leaves, at once.\n\
             \u{20}     expected  an end\n\
             \u{20}     seen      none\n                at all\n\
             1 kept, 1 broken, 1 do not apply, 0 not tried"
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
    fn no_two_rules_have_a_name_in_common() {
        let mut names: Vec<_> = Rule::ALL.iter().map(|rule| rule.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Rule::ALL.len());
    }
}
