//! How long clients have waited in the kernel before they were accepted. Only some are asked about: the
//! answer costs a system call.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::limits::COUNT_MAX;

/// One of so many clients is asked about, the first of a worker among them. Odd: each fourth client is the
/// first one after its worker has rejoined the kernel's queue of sleepers.
const SAMPLED: u64 = 61;

/// The bounds of the buckets, in milliseconds. The kernel counts in steps of up to 10 ms.
pub(crate) const ACCEPT_WAIT_BOUNDS: [u64; 11] =
    [5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000];

/// The buckets: one for each bound, and one for what is longer.
const BUCKETS: usize = ACCEPT_WAIT_BOUNDS.len() + 1;

/// The words of the counts: the time in milliseconds, and the buckets.
pub(super) const ACCEPT_WAIT_WORDS: usize = 1 + BUCKETS;

/// The longest time that is believed of one worker, in milliseconds: 100 years.
const MILLIS_MAX: u64 = 100 * 366 * 86_400 * 1000;

/// How long clients have waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AcceptWaits {
    /// How many have waited at most as long as each bound, and longer than the one before.
    pub(crate) counts: [u64; BUCKETS],
    /// How long they have waited, summed.
    pub(crate) time: Duration,
}

impl AcceptWaits {
    /// Adds other waits to these.
    pub(super) fn add(&mut self, other: &Self) {
        self.combine(other, u64::saturating_add, Duration::saturating_add);
    }

    /// Combines each number with that of `other`.
    pub(super) fn combine(
        &mut self,
        other: &Self,
        count: fn(u64, u64) -> u64,
        time: fn(Duration, Duration) -> Duration,
    ) {
        self.time = time(self.time, other.time);
        for (total, other) in self.counts.iter_mut().zip(other.counts) {
            *total = count(*total, other);
        }
    }

    /// Reads what a worker has counted. Each number is capped: any process can have written it.
    pub(super) fn read(words: &[AtomicU64]) -> Self {
        let mut words = words.iter().map(|word| word.load(Ordering::Relaxed));
        let millis = words.next().unwrap_or(0).min(MILLIS_MAX);
        let mut waits = Self { time: Duration::from_millis(millis), ..Self::default() };
        for (count, word) in waits.counts.iter_mut().zip(words) {
            *count = word.min(COUNT_MAX);
        }
        waits
    }
}

/// Returns whether to ask about a client, of which this is the number among those of its worker.
pub(super) fn is_sampled(number: u64) -> bool {
    number.is_multiple_of(SAMPLED)
}

/// Counts a client. For any thread.
pub(super) fn add(words: &[AtomicU64], wait: Duration) {
    let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    let bucket = ACCEPT_WAIT_BOUNDS.partition_point(|bound| *bound < millis);
    words[0].fetch_add(millis, Ordering::Relaxed);
    words[1 + bucket].fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words() -> [AtomicU64; ACCEPT_WAIT_WORDS] {
        std::array::from_fn(|_| AtomicU64::new(0))
    }

    #[test]
    fn waits_are_counted_up_to_their_bound() {
        let words = words();
        for millis in [0, 5, 6, 10_000, 10_001] {
            add(&words, Duration::from_millis(millis));
        }
        let waits = AcceptWaits::read(&words);
        assert_eq!(waits.counts, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(waits.time, Duration::from_millis(20_012));
        let sampled = (0..200).filter(|number| is_sampled(*number));
        assert_eq!(sampled.collect::<Vec<_>>(), [0, 61, 122, 183]);
    }

    #[test]
    fn numbers_of_any_size_are_capped() {
        let words = words();
        words.iter().for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
        let mut waits = AcceptWaits::read(&words);
        assert_eq!(waits.counts, [COUNT_MAX; BUCKETS]);
        assert_eq!(waits.time, Duration::from_millis(MILLIS_MAX));
        waits.combine(&waits.clone(), u64::saturating_add, Duration::saturating_add);
        assert_eq!(waits.counts, [2 * COUNT_MAX; BUCKETS]);
    }
}
