//! Decides for how many results a busy loop waits, as a network card coalesces interrupts: requests that
//! are handled together may cost less than one by one. Pure.

use std::time::Duration;

use super::trial::Trial;

/// How long the loop waits for more results.
pub(super) const WAIT_MAX: Duration = Duration::from_micros(200);
/// For how many results the loop waits, at least and at most.
const RESULTS_MIN: usize = 8;
const RESULTS_MAX: usize = 32;
/// With fewer clients the loop does not wait: all of them would wait for the loop, then it for all of them.
const CLIENTS_MIN: usize = 24;
/// The loop is busy once it has handled so many results without a sleep. Only then does it wait for more.
const BUSY_RESULTS: usize = 8;
/// How many turns wait before the loop must show anew that it is busy.
const PHASE_TURNS: u32 = 32;
/// After so many turns whose results came in time, the loop waits for one more.
const GROWTH_TURNS: u32 = 8;
/// If a turn is late before so many had their results in time, requests come in bursts, and a wait delays
/// the last ones of each.
const IN_TIME_TURNS_MIN: u32 = 16;
/// For how many turns the loop does not wait then, at least and at most. It doubles each time.
const PAUSE_TURNS_MIN: u32 = 16;
const PAUSE_TURNS_MAX: u32 = 4096;
/// How many turns a round has.
const ROUND_TURNS: u32 = 64;

/// The state of the decision.
#[derive(Debug)]
pub(super) struct Coalescing {
    /// Whether the kernel lets the thread sleep until all awaited results are there.
    is_enabled: bool,
    /// For how many results a turn of a phase waits.
    results: usize,
    /// The most that it may wait for, and 0 for no wait: half of the clients of the last round, so that the
    /// others have something to do meanwhile.
    limit: usize,
    /// How many more turns wait.
    phase_turns: u32,
    /// How many turns must pass before the next phase.
    pause_turns: u32,
    /// How many turns the next pause lasts.
    next_pause_turns: u32,
    /// How many turns had their results in time since one had not.
    in_time_turns: u32,
    results_since_sleep: usize,
    /// Whether waits save CPU time on this machine, with this load.
    trial: Trial,
    /// The number of the round, in which each client is counted once.
    round: u32,
    round_turns: u32,
    round_clients: usize,
}

impl Coalescing {
    pub(super) fn new(is_enabled: bool) -> Self {
        Self {
            is_enabled,
            results: RESULTS_MIN,
            limit: 0,
            phase_turns: 0,
            pause_turns: 0,
            next_pause_turns: PAUSE_TURNS_MIN,
            in_time_turns: 0,
            results_since_sleep: 0,
            trial: Trial::default(),
            round: 1,
            round_turns: 0,
            round_clients: 0,
        }
    }

    /// Returns for how many results the next turn should wait; 0 if it should not wait.
    pub(super) fn results(&self) -> usize {
        if self.phase_turns == 0 || !self.trial.allows_waits() { 0 } else { self.results }
    }

    /// Notes that the loop sleeps.
    pub(super) fn note_sleep(&mut self) {
        self.results_since_sleep = 0;
    }

    /// Notes a result of a client. `seen` is the client's own, and 0 at first.
    pub(super) fn note_client(&mut self, seen: &mut u32) {
        if *seen != self.round {
            *seen = self.round;
            self.round_clients += 1;
        }
    }

    /// Notes how many results a turn had that has waited for `awaited`. `cpu_time` returns the CPU time
    /// of the thread.
    pub(super) fn note_turn(
        &mut self,
        awaited: usize,
        results: usize,
        cpu_time: impl FnOnce() -> Duration,
    ) {
        if self.limit > 0 {
            self.trial.note_turn(awaited > 0, results, cpu_time);
        } else {
            self.trial.note_other_turn();
        }
        if awaited == 0 {
            self.results_since_sleep += results;
            self.pause_turns = self.pause_turns.saturating_sub(1);
            let is_busy = self.results_since_sleep >= BUSY_RESULTS && self.limit > 0;
            if self.phase_turns == 0 && self.pause_turns == 0 && is_busy {
                self.phase_turns = PHASE_TURNS;
            }
        } else {
            self.phase_turns -= 1;
            if results >= awaited {
                self.note_in_time();
            } else {
                self.note_late(results);
            }
            if self.phase_turns == 0 {
                self.results_since_sleep = 0;
            }
        }
        self.round_turns += 1;
        if self.round_turns == ROUND_TURNS {
            self.end_round();
        }
    }

    fn note_in_time(&mut self) {
        self.in_time_turns = self.in_time_turns.saturating_add(1);
        if self.in_time_turns.is_multiple_of(GROWTH_TURNS) {
            self.results = (self.results + 1).min(self.limit);
        }
    }

    fn note_late(&mut self, results: usize) {
        if self.in_time_turns < IN_TIME_TURNS_MIN {
            self.phase_turns = 0;
            self.pause_turns = self.next_pause_turns;
            self.next_pause_turns = (self.next_pause_turns * 2).min(PAUSE_TURNS_MAX);
        } else {
            self.next_pause_turns = PAUSE_TURNS_MIN;
        }
        self.in_time_turns = 0;
        self.results = (results * 3 / 4).max(RESULTS_MIN);
    }

    fn end_round(&mut self) {
        if !self.is_enabled || self.round_clients < CLIENTS_MIN {
            (self.limit, self.phase_turns) = (0, 0);
        } else {
            self.limit = (self.round_clients / 2).min(RESULTS_MAX);
            self.results = self.results.min(self.limit);
        }
        self.round = self.round.wrapping_add(1).max(1);
        (self.round_turns, self.round_clients) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clients, and how many of their requests come while the loop handles others or waits.
    struct Load {
        clients: usize,
        at_once: usize,
        in_time: usize,
        /// After so many requests in a row there is a pause, and the loop sleeps.
        burst: usize,
        kernel_waits: bool,
        /// The time that a result takes after a wait. Without one it takes 1000.
        with_waits: Duration,
    }

    /// Runs so many turns. Returns for how many results each has waited.
    fn run(load: &Load, turns: usize) -> Vec<usize> {
        let mut coalescing = Coalescing::new(load.kernel_waits);
        let (mut seen, mut next, mut left) = (vec![0; load.clients], 0, load.burst);
        let mut cpu_time = Duration::ZERO;
        let turn = |_| {
            let awaited = coalescing.results();
            let results = if awaited == 0 { load.at_once } else { load.in_time.min(awaited) };
            let results = results.min(left);
            left -= results;
            for _ in 0..results {
                coalescing.note_client(&mut seen[next]);
                next = (next + 1) % load.clients;
            }
            let cost = if awaited > 0 { load.with_waits } else { Duration::from_nanos(1000) };
            cpu_time += cost * u32::try_from(results).unwrap();
            coalescing.note_turn(awaited, results, || cpu_time);
            if left == 0 {
                coalescing.note_sleep();
                left = load.burst;
            }
            awaited
        };
        (0..turns).map(turn).collect()
    }

    fn endless(clients: usize, at_once: usize, in_time: usize) -> Load {
        let with_waits = Duration::from_nanos(800);
        Load { clients, at_once, in_time, burst: usize::MAX, kernel_waits: true, with_waits }
    }

    #[test]
    fn busy_loop_waits_for_half_of_its_clients_in_most_turns() {
        for (clients, most) in [(24, 12), (64, 32), (1000, 32)] {
            let awaited = run(&endless(clients, 3, 100), 10_000);
            assert!(awaited[..64].iter().all(|awaited| *awaited == 0), "their number is unknown");
            assert_eq!(awaited.iter().max(), Some(&most), "{clients} clients");
            assert!(awaited.iter().filter(|awaited| **awaited == most).count() > 5000);
        }
    }

    #[test]
    fn kernel_that_wakes_for_each_result_is_not_asked_to_wait() {
        assert_eq!(run(&Load { kernel_waits: false, ..endless(64, 3, 100) }, 2000), [0; 2000]);
    }

    #[test]
    fn loop_that_sleeps_in_between_does_not_wait() {
        let idle = Load { burst: BUSY_RESULTS - 1, ..endless(1000, 4, 100) };
        assert_eq!(run(&idle, 2000), [0; 2000]);
    }

    #[test]
    fn few_clients_are_not_waited_for() {
        assert_eq!(run(&endless(CLIENTS_MIN - 1, 4, 100), 2000), [0; 2000]);
    }

    #[test]
    fn results_that_come_in_time_are_learnt() {
        // Thirteen requests come in the time of a wait.
        let awaited = run(&endless(64, 3, 13), 10_000);
        let late = awaited.iter().filter(|awaited| **awaited > 13).count();
        assert!(late < 10_000 / 20, "{late} turns waited in vain");
        assert!(awaited.iter().filter(|awaited| **awaited >= RESULTS_MIN).count() > 5000);
    }

    #[test]
    fn loop_whose_waits_save_nothing_does_not_wait() {
        let load = Load { with_waits: Duration::from_nanos(1000), ..endless(64, 3, 100) };
        let awaited = run(&load, 10_000);
        assert!(awaited[5000..].iter().all(|awaited| *awaited == 0), "after the trial");
    }

    #[test]
    fn bursts_are_hardly_delayed() {
        let bursts = Load { burst: 64, ..endless(64, 3, 100) };
        let awaited = run(&bursts, 100_000);
        let waits = awaited.iter().filter(|awaited| **awaited > 0).count();
        assert!(waits < 500, "{waits} turns have waited");
    }
}
