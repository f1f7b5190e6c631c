//! Whether work can be had at all in the way in which the kit asks for it. If not, that is one fact
//! about the program and its feed, and says nothing about the rules that need such work.

use std::time::{Duration, Instant};

use super::rule::{Rule, TaskKind};
use super::server::TestServer;
use super::workload::Task;
use super::{ContractTest, DEADLINE};

/// As short as the shortest that a rule asks for.
const SLOW: Duration = Duration::from_millis(700);

/// What hangs must not have been done by then, nor have failed.
const HANGS_FOR: Duration = Duration::from_millis(750);

/// Why some rules cannot be tried: work of a sort that they need is not done as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Obstacle {
    /// The work that was asked for.
    pub task: Task,
    /// How it was asked for, and what should have come of it.
    pub asked: String,
    /// What came of it, and the last words of the program's log.
    pub seen: String,
    /// What to do about it.
    pub advice: String,
    /// The rules that need such work. None of them has been tried.
    pub rules: Vec<Rule>,
}

impl Obstacle {
    /// Why a rule was not tried, in a line.
    pub(super) fn reason(&self) -> String {
        let seen = self.seen.lines().next().unwrap_or_default();
        format!("{} work cannot be had: {seen}", TaskKind::of(self.task).name())
    }
}

/// Has one unit of work done of each sort that these rules need, until one tells enough. A program
/// that does not start is left to the rules, which say so themselves.
pub(super) fn find_obstacles(test: &ContractTest, rules: &[Rule]) -> Vec<Obstacle> {
    let mut left: Vec<_> = rules.iter().filter(|rule| !rule.needs().is_empty()).copied().collect();
    let mut obstacles = Vec::new();
    if left.is_empty() {
        return obstacles;
    }
    let Ok(server) = TestServer::start(test, &[]) else { return obstacles };
    for task in [Task::Quick, Task::Slow(SLOW), Task::Hang] {
        let needs_it = |rule: &Rule| rule.needs().contains(&TaskKind::of(task));
        // Where nothing quick is done, nothing else is worth asking for.
        let is_concerned = |rule: &Rule| task == Task::Quick || needs_it(rule);
        if !left.iter().any(is_concerned) {
            continue;
        }
        let Err(seen) = try_task(&server, task) else { continue };
        let (hindered, others) = left.into_iter().partition(is_concerned);
        left = others;
        obstacles.push(Obstacle {
            task,
            asked: test.workload.describe(task),
            seen: server.violation("", seen).seen,
            advice: test.workload.advice(task),
            rules: hindered,
        });
    }
    obstacles
}

/// Has one unit of work done, or sees that it hangs.
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
            let end = pending.wait(HANGS_FOR);
            expect_hang(end.map(|_| ()), waiting.elapsed())
        }
    }
}

fn expect_slow(time: Duration, took: Duration) -> Result<(), String> {
    // Some are slow in units of their own.
    if took >= time * 3 / 4 {
        return Ok(());
    }
    Err(format!("it is done after {} ms", took.as_millis()))
}

fn expect_hang(end: Result<(), String>, waited: Duration) -> Result<(), String> {
    match end {
        Ok(()) => Err("it is done".into()),
        // The clocks of sockets are coarse.
        Err(_) if waited >= HANGS_FOR * 9 / 10 => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_too_soon_was_not_slow() {
        assert_eq!(expect_slow(SLOW, SLOW), Ok(()));
        assert_eq!(expect_slow(SLOW, DEADLINE), Ok(()));
        let soon = expect_slow(SLOW, Duration::from_millis(260));
        assert_eq!(soon, Err("it is done after 260 ms".into()));
    }

    #[test]
    fn only_what_is_waited_for_in_vain_hangs() {
        let refused = || Err("404".to_owned());
        assert_eq!(expect_hang(refused(), HANGS_FOR), Ok(()));
        assert_eq!(expect_hang(refused(), Duration::from_millis(3)), refused());
        assert!(expect_hang(Ok(()), HANGS_FOR).is_err());
    }
}
