//! Which deaths the kernel has caused for lack of memory: each control group counts how often it
//! did that, and each time accounts for one worker that was killed by nobody we know of. Pure.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::stamp::Stamp;

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
    moved_at: Stamp,
    /// How many workers have it.
    workers: usize,
}

impl Ledger {
    /// Another worker has this counter, which is read if it is not known: so it stood before any
    /// death that may be claimed. Returns whether there is anything to read.
    pub(super) fn join(&mut self, counter: &Path, read: impl FnOnce() -> Option<u64>) -> bool {
        if let Some(account) = self.accounts.get_mut(counter) {
            account.workers += 1;
            return true;
        }
        let Some(seen) = read() else { return false };
        let account = Account { seen, unclaimed: 0, moved_at: Stamp::default(), workers: 1 };
        self.accounts.insert(counter.to_owned(), account);
        true
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

    /// A worker was killed by nobody we know of, and the counter stands so now. Returns whether it
    /// accounts for that.
    pub(super) fn claim(&mut self, counter: &Path, kills: u64, now: Stamp) -> bool {
        let Some(account) = self.accounts.get_mut(counter) else { return false };
        if now.since(account.moved_at) > CLAIMED_WITHIN {
            account.unclaimed = 0;
        }
        let moved = kills.saturating_sub(account.seen);
        if moved > 0 {
            account.unclaimed = account.unclaimed.saturating_add(moved);
            account.moved_at = now;
        }
        account.seen = kills;
        let accounts_for_it = account.unclaimed > 0;
        account.unclaimed = account.unclaimed.saturating_sub(1);
        accounts_for_it
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTER: &str = "/group/memory.events";

    fn at(millis: u64) -> Stamp {
        Stamp::from_nanos(1_000_000_000_000).after(Duration::from_millis(millis))
    }

    /// A ledger whose counter stood at 5.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        assert!(ledger.join(Path::new(COUNTER), || Some(5)));
        ledger
    }

    fn claim(ledger: &mut Ledger, kills: u64, millis: u64) -> bool {
        ledger.claim(Path::new(COUNTER), kills, at(millis))
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
    fn a_counter_is_read_by_its_first_worker_and_forgotten_with_its_last() {
        let mut ledger = ledger();
        assert!(ledger.join(Path::new(COUNTER), || panic!("it is known")));
        assert!(claim(&mut ledger, 6, 0), "it counts from where it was read");
        ledger.leave(Path::new(COUNTER));
        assert!(claim(&mut ledger, 7, 1), "the other has it still");
        ledger.leave(Path::new(COUNTER));
        assert!(!claim(&mut ledger, 8, 2));
        assert!(!ledger.join(Path::new(COUNTER), || None));
        assert!(ledger.join(Path::new(COUNTER), || Some(8)));
        assert!(!claim(&mut ledger, 8, 3));
    }

    #[test]
    fn a_counter_that_begins_anew_accounts_for_what_comes_then() {
        let mut ledger = ledger();
        assert!(!claim(&mut ledger, 0, 0));
        assert!(claim(&mut ledger, 1, 1));
    }
}
