//! Tries each kind of work before the rules that need it. A failure is a fact about the program and
//! its workload, and says nothing about these rules.

use std::time::{Duration, Instant};

use super::deadline::DEADLINE;
use super::rule::{Rule, TaskKind};
use super::server::TestServer;
use super::target::TestTarget;
use super::workload::Task;

/// The duration of slow work: the shortest that a rule needs.
const SLOW: Duration = Duration::from_millis(700);

/// How long hanging work must neither complete nor fail.
const HANG_MIN: Duration = Duration::from_millis(750);

/// A kind of work that failed, and the rules that were not run because of that.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Obstacle {
    /// The work that failed.
    pub task: Task,
    /// The request, and the expected result.
    pub asked: String,
    /// The observed result, and the last lines of the program's log.
    pub seen: String,
    /// How to fix it.
    pub advice: String,
    /// The rules that need this kind of work. None of them was run.
    pub rules: Vec<Rule>,
}

impl Obstacle {
    /// Returns in one line why its rules were not run.
    pub(super) fn reason(&self) -> String {
        let seen = self.seen.lines().next().unwrap_or_default();
        format!("{} work fails: {seen}", TaskKind::of(self.task).name())
    }
}

/// Tries one unit of each kind of work that these rules need. If the program does not start, returns
/// no obstacles: the rules report that themselves.
pub(super) fn find_obstacles(target: &TestTarget, rules: &[Rule]) -> Vec<Obstacle> {
    let mut remaining: Vec<_> =
        rules.iter().filter(|rule| !rule.needs().is_empty()).copied().collect();
    let mut obstacles = Vec::new();
    if remaining.is_empty() {
        return obstacles;
    }
    let Ok(server) = TestServer::start(target, &[]) else { return obstacles };
    for task in [Task::Quick, Task::Slow(SLOW), Task::Hang] {
        let needs_it = |rule: &Rule| rule.needs().contains(&TaskKind::of(task));
        // If quick work fails, no rule that needs any work can pass.
        let is_affected = |rule: &Rule| task == Task::Quick || needs_it(rule);
        if !remaining.iter().any(is_affected) {
            continue;
        }
        let Err(seen) = try_task(&server, task) else { continue };
        let (affected, others) = remaining.into_iter().partition(is_affected);
        remaining = others;
        obstacles.push(Obstacle {
            task,
            asked: target.workload.describe(task),
            seen: server.violation("", seen).seen,
            advice: target.workload.advice(task),
            rules: affected,
        });
    }
    obstacles
}

/// Runs one unit of work, and checks its duration.
fn try_task(server: &TestServer<'_>, task: Task) -> Result<(), String> {
    let begun = Instant::now();
    let pending = server.try_begin(task)?;
    match task {
        Task::Quick => pending.wait(DEADLINE).map(|_| ()),
        Task::Slow(time) => {
            pending.wait(DEADLINE)?;
            expect_slow(time, begun.elapsed())
        }
        Task::Hang => {
            let waiting = Instant::now();
            let end = pending.wait(HANG_MIN);
            expect_hang(end.map(|_| ()), waiting.elapsed())
        }
    }
}

fn expect_slow(time: Duration, took: Duration) -> Result<(), String> {
    // The program may measure the time in coarser units.
    if took >= time * 3 / 4 {
        return Ok(());
    }
    Err(format!("completed after {} ms", took.as_millis()))
}

fn expect_hang(end: Result<(), String>, waited: Duration) -> Result<(), String> {
    match end {
        Ok(()) => Err("completed".into()),
        // Socket timeouts have a coarse resolution.
        Err(_) if waited >= HANG_MIN * 9 / 10 => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expect_slow_completed_too_early_fails() {
        assert_eq!(expect_slow(SLOW, SLOW), Ok(()));
        assert_eq!(expect_slow(SLOW, DEADLINE), Ok(()));
        let early = expect_slow(SLOW, Duration::from_millis(260));
        assert_eq!(early, Err("completed after 260 ms".into()));
    }

    #[test]
    fn expect_hang_accepts_only_a_full_wait() {
        let refused = || Err("404".to_owned());
        assert_eq!(expect_hang(refused(), HANG_MIN), Ok(()));
        assert_eq!(expect_hang(refused(), Duration::from_millis(3)), refused());
        assert!(expect_hang(Ok(()), HANG_MIN).is_err());
    }
}
