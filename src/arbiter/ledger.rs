//! Which deaths the kernel has caused for lack of memory: each control group counts how often it
//! did that, and each time accounts for one worker that was killed by nobody we know of. Pure.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::time::MonotonicTime;

/// Who dies later than this after the counter has moved died of something else.
const CLAIMED_WITHIN: Duration = Duration::from_secs(1);

/// The counters, by the file that shows them.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    accounts: HashMap<PathBuf, Account>,
}

#[derive(Debug)]
struct Account {
    /// What the counter said when it was read last.
    seen: u64,
    /// Deaths that it accounts for and that nobody has claimed yet.
    unclaimed: u64,
    /// When it was seen to have moved.
    moved_at: MonotonicTime,
    /// How many workers have it.
    workers: usize,
}

impl Ledger {
    /// Another worker has this counter, which stands so now: before any death of it that may be
    /// claimed.
    pub(super) fn join(&mut self, counter: &Path, kills: u64, now: MonotonicTime) {
        self.observe(counter, kills, now);
        let fresh = Account { seen: kills, unclaimed: 0, moved_at: MonotonicTime::default(), workers: 0 };
        self.accounts.entry(counter.to_owned()).or_insert(fresh).workers += 1;
    }

    /// A worker that had this counter has ended, and has claimed what it may claim. The last one
    /// closes the account.
    pub(super) fn leave(&mut self, counter: &Path) {
        if let Some(account) = self.accounts.get_mut(counter) {
            account.workers -= 1;
            if account.workers == 0 {
                self.accounts.remove(counter);
            }
        }
    }

    /// The counter stands so now. To be told as often as there is an occasion: what it counted before
    /// one accounts for no death after it.
    pub(super) fn observe(&mut self, counter: &Path, kills: u64, now: MonotonicTime) {
        let Some(account) = self.accounts.get_mut(counter) else { return };
        if now.duration_since(account.moved_at) > CLAIMED_WITHIN {
            account.unclaimed = 0;
        }
        let moved = kills.saturating_sub(account.seen);
        if moved > 0 {
            account.unclaimed = account.unclaimed.saturating_add(moved);
            account.moved_at = now;
        }
        account.seen = kills;
    }

    /// A worker was killed by nobody we know of, and its counter has just been observed. Returns
    /// whether it accounts for that.
    pub(super) fn claim(&mut self, counter: &Path) -> bool {
        let Some(account) = self.accounts.get_mut(counter) else { return false };
        let accounts_for_it = account.unclaimed > 0;
        account.unclaimed = account.unclaimed.saturating_sub(1);
        accounts_for_it
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTER: &str = "/group/memory.events";

    fn at(millis: u64) -> MonotonicTime {
        MonotonicTime::from_nanos(1_000_000_000_000).saturating_add(Duration::from_millis(millis))
    }

    /// A ledger whose counter stood at 5.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.join(Path::new(COUNTER), 5, at(0));
        ledger
    }

    fn claim(ledger: &mut Ledger, kills: u64, millis: u64) -> bool {
        observe(ledger, kills, millis);
        ledger.claim(Path::new(COUNTER))
    }

    fn observe(ledger: &mut Ledger, kills: u64, millis: u64) {
        ledger.observe(Path::new(COUNTER), kills, at(millis));
    }

    #[test]
    fn a_counter_that_has_not_moved_accounts_for_nobody() {
        assert!(!claim(&mut ledger(), 5, 0));
    }

    #[test]
    fn each_move_accounts_for_one_death() {
        let mut ledger = ledger();
        assert!(claim(&mut ledger, 6, 0));
        assert!(!claim(&mut ledger, 6, 1));
        assert!(claim(&mut ledger, 8, 2));
        assert!(claim(&mut ledger, 8, 3), "two at once");
        assert!(!claim(&mut ledger, 8, 4));
    }

    #[test]
    fn what_nobody_has_claimed_in_time_accounts_for_no_later_death() {
        let mut ledger = ledger();
        assert!(claim(&mut ledger, 9, 0)); // three of them are no workers of ours
        assert!(!claim(&mut ledger, 9, 1001));
    }

    #[test]
    fn what_was_seen_to_move_at_another_occasion_accounts_for_no_later_death() {
        let mut ledger = ledger();
        ledger.join(Path::new(COUNTER), 6, at(0)); // a stranger died, and then a worker was born
        assert!(!claim(&mut ledger, 6, 1001));
        observe(&mut ledger, 7, 2000);
        assert!(claim(&mut ledger, 7, 2001), "killed with another, which was buried first");
    }

    #[test]
    fn a_counter_is_forgotten_with_its_last_worker() {
        let mut ledger = ledger();
        ledger.join(Path::new(COUNTER), 5, at(0));
        ledger.leave(Path::new(COUNTER));
        assert!(claim(&mut ledger, 6, 1), "the other has it still");
        ledger.leave(Path::new(COUNTER));
        assert!(!claim(&mut ledger, 7, 2));
        ledger.join(Path::new(COUNTER), 8, at(3));
        assert!(!claim(&mut ledger, 8, 3), "it counts from where it was read");
    }

    #[test]
    fn a_counter_that_begins_anew_accounts_for_what_comes_then() {
        let mut ledger = ledger();
        assert!(!claim(&mut ledger, 0, 0));
        assert!(claim(&mut ledger, 1, 1));
    }
}
