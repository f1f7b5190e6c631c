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
