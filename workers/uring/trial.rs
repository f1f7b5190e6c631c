//! Finds out whether waits for results save CPU time, by turns with and without. Pure.

use std::time::Duration;

/// How many results there are before a trial, so that the loop learns how many come in time.
const RUN_IN_RESULTS: usize = 4096;
/// How many results a block of a trial has. Every other block has waits.
const BLOCK_RESULTS: usize = 512;
/// How many results before each block are not compared: their outputs are sent in it.
const UNCOUNTED_RESULTS: usize = 64;
/// How many blocks in a row wait for less than half of their results before the loop does without.
const IDLE_BLOCKS_MAX: usize = 64;
/// How many pairs of blocks a trial compares. Other load may slow down some of them.
const PAIRS: usize = 15;
/// For how many results the outcome holds. Then there is another trial.
const OUTCOME_RESULTS: usize = 1 << 20;
/// The CPU time with waits to that without them, at most: waits also delay answers.
const RATIO_MAX: f64 = 0.97;

/// The state of the trials.
#[derive(Debug, Default)]
pub(super) struct Trial {
    step: Step,
    /// How many results the step has had, and how many of these came in turns that had waited.
    results: usize,
    awaited_results: usize,
    /// The CPU time of the thread when the step began.
    cpu_time: Duration,
    /// How many blocks in a row have waited for few of their results.
    idle_blocks: usize,
    /// The seconds a result of the last block with waits.
    with_waits: f64,
    /// The CPU time with waits to that without them, of each pair of blocks.
    ratios: Vec<f64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    #[default]
    RunIn,
    BeforeBlock {
        waits: bool,
    },
    Block {
        waits: bool,
    },
    Outcome {
        waits_pay: bool,
    },
}

impl Trial {
    /// Returns whether the loop may wait now.
    pub(super) fn allows_waits(&self) -> bool {
        match self.step {
            Step::RunIn => true,
            Step::BeforeBlock { waits } | Step::Block { waits } => waits,
            Step::Outcome { waits_pay } => waits_pay,
        }
    }

    /// Notes that a turn has handled so many results. `cpu_time` returns the CPU time of the thread.
    pub(super) fn note_turn(
        &mut self,
        has_waited: bool,
        results: usize,
        cpu_time: impl FnOnce() -> Duration,
    ) {
        self.results += results;
        self.awaited_results += if has_waited { results } else { 0 };
        let step_results = match self.step {
            Step::RunIn => RUN_IN_RESULTS,
            Step::BeforeBlock { .. } => UNCOUNTED_RESULTS,
            Step::Block { .. } => BLOCK_RESULTS,
            Step::Outcome { .. } => OUTCOME_RESULTS,
        };
        if self.results >= step_results {
            let now = cpu_time();
            let cost = now.saturating_sub(self.cpu_time).as_secs_f64() / self.results as f64;
            self.step = self.next_step(cost);
            (self.results, self.awaited_results, self.cpu_time) = (0, 0, now);
        }
    }

    /// Notes a turn in which the loop would not wait in any case. A block with such turns is repeated.
    pub(super) fn note_other_turn(&mut self) {
        if let Step::Block { waits } = self.step {
            self.step = Step::BeforeBlock { waits };
            (self.results, self.awaited_results) = (0, 0);
        }
    }

    /// Returns what follows a step that has taken so many seconds a result.
    fn next_step(&mut self, cost: f64) -> Step {
        match self.step {
            Step::RunIn => Step::BeforeBlock { waits: true },
            Step::BeforeBlock { waits } => Step::Block { waits },
            // The loop was not busy, or paused.
            Step::Block { waits: true } if self.awaited_results < self.results / 2 => {
                self.idle_blocks += 1;
                if self.idle_blocks < IDLE_BLOCKS_MAX {
                    return Step::BeforeBlock { waits: true };
                }
                Step::Outcome { waits_pay: false }
            }
            Step::Block { waits: true } => {
                (self.idle_blocks, self.with_waits) = (0, cost);
                Step::BeforeBlock { waits: false }
            }
            Step::Block { waits: false } => {
                self.ratios.push(self.with_waits / cost);
                if self.ratios.len() < PAIRS {
                    return Step::BeforeBlock { waits: true };
                }
                self.ratios.sort_by(f64::total_cmp);
                Step::Outcome { waits_pay: self.ratios[PAIRS / 2] <= RATIO_MAX }
            }
            Step::Outcome { .. } => {
                *self = Self::default();
                Step::RunIn
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many results a turn has after a wait, and without one.
    const AWAITED: usize = 32;
    const AT_ONCE: usize = 4;
    /// How much of a result's time passes when its output is sent: in the next turn.
    const SENDING_PERCENT: u32 = 50;
    const TRIAL_RESULTS: usize = 50_000;

    /// A thread whose results take so long with waits and without them.
    struct Load {
        trial: Trial,
        cpu_time: Duration,
        with_waits: Duration,
        without_waits: Duration,
        /// The time for the outputs of the last turn, which the next one sends.
        sending: Duration,
        /// Whether the loop is busy, so that turns wait.
        is_busy: bool,
    }

    impl Load {
        fn new(with_waits: u64, without_waits: u64) -> Self {
            Self {
                trial: Trial::default(),
                cpu_time: Duration::ZERO,
                with_waits: Duration::from_nanos(with_waits),
                without_waits: Duration::from_nanos(without_waits),
                sending: Duration::ZERO,
                is_busy: true,
            }
        }

        fn turn(&mut self) -> (bool, usize) {
            let waits = self.is_busy && self.trial.allows_waits();
            let results = if waits { AWAITED } else { AT_ONCE };
            let each = if waits { self.with_waits } else { self.without_waits };
            let all = each * u32::try_from(results).unwrap();
            let sending = all * SENDING_PERCENT / 100;
            self.cpu_time += self.sending + (all - sending);
            self.sending = sending;
            self.trial.note_turn(waits, results, || self.cpu_time);
            (waits, results)
        }

        /// Handles so many results. Returns how many of them came after waits.
        fn run(&mut self, results: usize) -> usize {
            let (mut handled, mut awaited) = (0, 0);
            while handled < results {
                let (waits, results) = self.turn();
                handled += results;
                awaited += if waits { results } else { 0 };
            }
            awaited
        }

        /// Takes part in the rest of a trial. Returns whether waits pay.
        fn outcome(&mut self) -> bool {
            for _ in 0..TRIAL_RESULTS {
                if let Step::Outcome { waits_pay } = self.trial.step {
                    assert_eq!(self.trial.allows_waits(), waits_pay);
                    return waits_pay;
                }
                self.turn();
            }
            panic!("the trial does not end: {:?}", self.trial)
        }
    }

    #[test]
    fn waits_that_save_enough_go_on() {
        for (with_waits, pays) in [(500, true), (960, true), (980, false), (1100, false)] {
            let mut load = Load::new(with_waits, 1000);
            assert_eq!(load.outcome(), pays, "{with_waits}");
            let awaited = load.run(OUTCOME_RESULTS - AWAITED);
            assert!(if pays { awaited > OUTCOME_RESULTS / 10 * 9 } else { awaited == 0 });
        }
    }

    #[test]
    fn trial_takes_little_of_the_time() {
        let mut load = Load::new(1000, 1000);
        let awaited = load.run(OUTCOME_RESULTS);
        assert!(awaited < OUTCOME_RESULTS / 50, "{awaited} results were waited for");
    }

    #[test]
    fn other_load_in_some_blocks_changes_nothing() {
        for (with_waits, is_slow, pays) in [(900, true, true), (1000, false, false)] {
            let mut load = Load::new(with_waits, 1000);
            let mut slow_pair = None;
            while !matches!(load.trial.step, Step::Outcome { .. }) {
                // Every fifth pair has one slow block: with waits, or without.
                let pair = load.trial.ratios.len();
                let is_block = load.trial.step == (Step::Block { waits: is_slow });
                if is_block && pair.is_multiple_of(5) && slow_pair != Some(pair) {
                    slow_pair = Some(pair);
                    load.cpu_time += Duration::from_millis(3);
                }
                load.turn();
            }
            assert_eq!(load.trial.allows_waits(), pays);
        }
    }

    #[test]
    fn block_whose_turns_do_not_wait_is_repeated() {
        let mut load = Load::new(800, 1000);
        load.is_busy = false;
        load.run(RUN_IN_RESULTS + (IDLE_BLOCKS_MAX / 2) * BLOCK_RESULTS);
        assert_eq!(load.trial.ratios.len(), 0, "waits were not tried");
        load.is_busy = true;
        assert!(load.outcome());
    }

    #[test]
    fn loop_that_is_hardly_busy_does_without_waits() {
        let mut load = Load::new(800, 1000);
        load.is_busy = false;
        assert!(!load.outcome());
        load.is_busy = true;
        load.run(OUTCOME_RESULTS);
        assert!(load.outcome(), "until the next trial");
    }

    #[test]
    fn time_without_waits_in_any_case_is_not_compared() {
        let mut load = Load::new(1000, 1000);
        let mut disturbed = None;
        while !matches!(load.trial.step, Step::Outcome { .. }) {
            // In each pair, in the block without waits, there are too few clients for a while.
            let pair = Some(load.trial.ratios.len());
            if load.trial.step == (Step::Block { waits: false }) && disturbed != pair {
                disturbed = pair;
                load.trial.note_other_turn();
                load.cpu_time += Duration::from_millis(100);
                load.trial.note_other_turn();
            }
            load.turn();
        }
        assert!(!load.trial.allows_waits());
    }

    #[test]
    fn outcome_is_looked_at_again() {
        let mut load = Load::new(1100, 1000);
        assert!(!load.outcome());
        load.with_waits = Duration::from_nanos(800);
        load.run(OUTCOME_RESULTS);
        assert!(load.outcome());
    }

    #[test]
    fn clock_that_stands_still_leads_to_no_waits() {
        assert!(!Load::new(0, 0).outcome());
    }
}
