//! How long a task takes, as the main thread sees it (pure).

use std::time::Duration;

/// How long no task may be taken before sleeping threads are woken: those awake may be blocked.
pub(super) const STALL: Duration = Duration::from_millis(1);
/// How many checks count. The least of their times is taken: short tasks take long too while they wait
/// for a CPU, but not for as many checks.
const CHECKS: usize = 4;

/// The time that a task has taken at each of the last checks.
pub(super) struct TaskTimes {
    nanos: [u128; CHECKS],
    /// How many threads ran a task at the last check.
    running: usize,
}

impl TaskTimes {
    /// Nothing is known: a task is taken for one of which a thread runs four within [`STALL`].
    pub(super) fn new() -> Self {
        Self { nanos: [STALL.as_nanos() / 4; CHECKS], running: 0 }
    }

    /// Records a check at which `running` threads run a task. Since the last one `elapsed` has passed, and
    /// `taken` tasks were taken. While there was nothing to do, nothing is learnt.
    pub(super) fn record(&mut self, elapsed: Duration, running: usize, taken: usize) {
        let both = std::mem::replace(&mut self.running, running) + running;
        if both == 0 && taken == 0 {
            return;
        }
        let thread_time = elapsed.as_nanos() * both as u128 / 2;
        self.nanos.rotate_right(1);
        self.nanos[0] = thread_time / taken.max(1) as u128;
    }

    /// Returns how many tasks a thread runs within [`STALL`]; none if one takes longer.
    pub(super) fn tasks_per_stall(&self) -> usize {
        let least = self.nanos.iter().copied().min().unwrap_or_default();
        usize::try_from(STALL.as_nanos() / least.max(1)).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records checks 1 ms apart, each with running threads and tasks taken.
    fn after(checks: &[(usize, usize)]) -> usize {
        let mut times = TaskTimes::new();
        for (running, taken) in checks {
            times.record(STALL, *running, *taken);
        }
        times.tasks_per_stall()
    }

    #[test]
    fn unknown_tasks_are_of_medium_length() {
        assert_eq!(after(&[]), 4);
        assert_eq!(after(&[(0, 0); 9]), 4, "nothing to do");
    }

    #[test]
    fn short_tasks_may_wait_for_a_thread_that_is_awake() {
        assert_eq!(after(&[(1, 50); 9]), 50);
        assert_eq!(
            after(&[(1, 50), (1, 50), (1, 50), (1, 0), (1, 50)]),
            50,
            "the process had no CPU for a while"
        );
    }

    #[test]
    fn long_tasks_may_not_wait() {
        assert_eq!(after(&[(8, 2); 5]), 0, "4 ms each");
        assert_eq!(after(&[(2, 0); 5]), 0, "none has ended");
        assert_eq!(after(&[(8, 2); 3]), 4, "too few checks");
    }

    #[test]
    fn long_tasks_are_still_long_after_a_pause() {
        let mut checks = vec![(4, 1); 9];
        checks.extend([(0, 0); 9]);
        assert_eq!(after(&checks), 0);
    }
}
