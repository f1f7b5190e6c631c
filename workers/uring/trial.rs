//! Finds out whether waits for results save CPU time, by turns with and without. Pure.

use std::time::Duration;

/// How many results there are before a trial, so that the loop learns how many come in time.
const RUN_IN_RESULTS: usize = 4096;
/// How many results a block of a trial has. Every other block has waits.
const BLOCK_RESULTS: usize = 512;
/// How many pairs of blocks a trial compares. Other load may slow down some of them.
const PAIRS: usize = 15;
/// For how many results the outcome holds. Then there is another trial.
const OUTCOME_RESULTS: usize = 1 << 20;
/// The CPU time with waits to that without them, at most: waits also delay answers.
const RATIO_MAX: f64 = 0.97;

/// The state of the trials.
#[derive(Debug)]
pub(super) struct Trial {
    step: Step,
    /// How many results the step has had.
    results: usize,
    /// The CPU time of the thread when the step began.
    cpu_time: Duration,
    /// The CPU time a result with waits to that without them, of each pair of blocks.
    ratios: Vec<f64>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    RunIn,
    WithWaits,
    /// The block before, with waits, took so many seconds a result.
    WithoutWaits(f64),
    Outcome {
        waits_pay: bool,
    },
}

impl Trial {
    pub(super) fn new() -> Self {
        Self { step: Step::RunIn, results: 0, cpu_time: Duration::ZERO, ratios: Vec::new() }
    }

    /// Returns whether the loop may wait now.
    pub(super) fn allows_waits(&self) -> bool {
        match self.step {
            Step::RunIn | Step::WithWaits => true,
            Step::WithoutWaits(_) => false,
            Step::Outcome { waits_pay } => waits_pay,
        }
    }

    /// Notes that the loop has handled so many results. `cpu_time` returns the CPU time of the thread.
    pub(super) fn note_results(&mut self, results: usize, cpu_time: impl FnOnce() -> Duration) {
        self.results += results;
        let step_results = match self.step {
            Step::RunIn => RUN_IN_RESULTS,
            Step::WithWaits | Step::WithoutWaits(_) => BLOCK_RESULTS,
            Step::Outcome { .. } => OUTCOME_RESULTS,
        };
        if self.results >= step_results {
            let now = cpu_time();
            let cost = now.saturating_sub(self.cpu_time).as_secs_f64() / self.results as f64;
            self.step = self.next_step(cost);
            (self.results, self.cpu_time) = (0, now);
        }
    }

    /// Returns what follows a step that has taken so many seconds a result.
    fn next_step(&mut self, cost: f64) -> Step {
        match self.step {
            Step::Outcome { .. } => Step::RunIn,
            Step::RunIn => Step::WithWaits,
            Step::WithWaits => Step::WithoutWaits(cost),
            Step::WithoutWaits(with_waits) => {
                self.ratios.push(with_waits / cost);
                if self.ratios.len() < PAIRS {
                    return Step::WithWaits;
                }
                self.ratios.sort_by(f64::total_cmp);
                let median = self.ratios[PAIRS / 2];
                self.ratios.clear();
                Step::Outcome { waits_pay: median <= RATIO_MAX }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thread whose results take so long with waits and without them.
    struct Load {
        trial: Trial,
        cpu_time: Duration,
        with_waits: Duration,
        without_waits: Duration,
    }

    impl Load {
        fn new(with_waits: u64, without_waits: u64) -> Self {
            Self {
                trial: Trial::new(),
                cpu_time: Duration::ZERO,
                with_waits: Duration::from_nanos(with_waits),
                without_waits: Duration::from_nanos(without_waits),
            }
        }

        /// Handles so many results, four at a time. Returns for how many of them waits were allowed.
        fn run(&mut self, results: usize) -> usize {
            let mut allowed = 0;
            for _ in 0..results / 4 {
                let waits = self.trial.allows_waits();
                self.cpu_time += 4 * if waits { self.with_waits } else { self.without_waits };
                self.trial.note_results(4, || self.cpu_time);
                allowed += if waits { 4 } else { 0 };
            }
            allowed
        }

        /// Takes part in a whole trial. Returns whether waits pay.
        fn run_trial(&mut self) -> bool {
            self.run(RUN_IN_RESULTS + 2 * PAIRS * BLOCK_RESULTS);
            assert!(matches!(self.trial.step, Step::Outcome { .. }));
            self.trial.allows_waits()
        }
    }

    #[test]
    fn waits_that_save_enough_go_on() {
        for (with_waits, pays) in [(500, true), (960, true), (980, false), (1100, false)] {
            let mut load = Load::new(with_waits, 1000);
            assert_eq!(load.run_trial(), pays, "{with_waits}");
            let allowed = load.run(OUTCOME_RESULTS);
            assert_eq!(allowed, if pays { OUTCOME_RESULTS } else { 0 });
        }
    }

    #[test]
    fn half_of_a_trial_is_without_waits() {
        let blocks = PAIRS * BLOCK_RESULTS;
        assert_eq!(Load::new(900, 1000).run(RUN_IN_RESULTS + 2 * blocks), RUN_IN_RESULTS + blocks);
    }

    #[test]
    fn other_load_in_some_blocks_changes_nothing() {
        for (with_waits, pays) in [(900, true), (1000, false)] {
            let mut load = Load::new(with_waits, 1000);
            load.run(RUN_IN_RESULTS);
            for pair in 0..PAIRS {
                load.run(BLOCK_RESULTS);
                load.cpu_time += Duration::from_millis(if pair % 5 == 0 { 3 } else { 0 });
                load.run(BLOCK_RESULTS);
                load.cpu_time += Duration::from_millis(if pair % 5 == 1 { 9 } else { 0 });
            }
            assert_eq!(load.trial.allows_waits(), pays);
        }
    }

    #[test]
    fn outcome_is_looked_at_again() {
        let mut load = Load::new(1100, 1000);
        assert!(!load.run_trial());
        load.with_waits = Duration::from_nanos(800);
        load.run(OUTCOME_RESULTS);
        assert!(load.run_trial());
    }

    #[test]
    fn clock_that_stands_still_leads_to_no_waits() {
        assert!(!Load::new(0, 0).run_trial());
    }
}
