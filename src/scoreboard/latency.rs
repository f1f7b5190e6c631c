//! Histograms of durations with fixed buckets, log-linear over the decades from 1 µs to 1 h. Pure.
//!
//! A decade has 17 buckets. The middle of a bucket differs from any duration in it by 10 % at most.
//! The bounds are round numbers, so coarser buckets can be summed from these exactly.

use std::time::Duration;

/// The number of buckets: one up to 1 µs, one beyond [`LARGEST`], and those between.
pub(crate) const BUCKETS: usize = BOUNDS.len();

/// The bounds of a decade, in units of 1/20 of its beginning.
const STEPS: [u64; 17] = [20, 24, 28, 32, 36, 40, 45, 50, 60, 70, 80, 90, 100, 120, 140, 160, 180];

/// The smallest and the largest bound, in nanoseconds: 1 µs, and 4000 s.
const SMALLEST: u64 = 1_000;
const LARGEST: u64 = 4_000_000_000_000;

/// The largest duration of each bucket, in nanoseconds.
const BOUNDS: [u64; 165] = bounds();

/// The power of two at which the cells begin, and how many cells a power of two is divided into. A
/// cell is narrower than any bucket, so it contains one bound at most.
const CELL_MIN_LOG2: u32 = 9;
const CELL_BITS: u32 = 4;
const CELLS: usize = ((LARGEST.ilog2() + 1 - CELL_MIN_LOG2) as usize) << CELL_BITS;

/// The bucket of the smallest duration of each cell.
const FIRST_BUCKET: [u8; CELLS] = first_buckets();

const fn bounds() -> [u64; 165] {
    let mut bounds = [u64::MAX; 165];
    let (mut index, mut decade) = (0, SMALLEST);
    while decade <= LARGEST {
        let mut step = 0;
        while step < STEPS.len() && decade / 20 * STEPS[step] <= LARGEST {
            bounds[index] = decade / 20 * STEPS[step];
            index += 1;
            step += 1;
        }
        decade *= 10;
    }
    assert!(index == 164, "the last bucket has no bound");
    bounds
}

const fn first_buckets() -> [u8; CELLS] {
    let mut first = [0; CELLS];
    let (mut cell, mut bucket) = (0, 0);
    while cell < CELLS {
        let log2 = CELL_MIN_LOG2 + (cell as u32 >> CELL_BITS);
        let sixteenths = (1 << CELL_BITS) + (cell as u64 & ((1 << CELL_BITS) - 1));
        let smallest = sixteenths << (log2 - CELL_BITS);
        while BOUNDS[bucket] <= smallest {
            bucket += 1;
        }
        first[cell] = bucket as u8;
        cell += 1;
    }
    first
}

/// Returns the bucket of a duration in nanoseconds. Costs no loop: two loads from small tables.
#[inline]
pub(crate) fn bucket_of(nanos: u64) -> usize {
    // A bound belongs to the bucket below it.
    let below = nanos.saturating_sub(1).clamp(1 << CELL_MIN_LOG2, LARGEST);
    let log2 = below.ilog2();
    let row = ((log2 - CELL_MIN_LOG2) as usize) << CELL_BITS;
    let column = (below >> (log2 - CELL_BITS)) as usize & ((1 << CELL_BITS) - 1);
    let first = usize::from(FIRST_BUCKET[row + column]);
    first + usize::from(BOUNDS[first] <= below)
}

/// A number of durations for each bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Histogram {
    counts: Box<[u64; BUCKETS]>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: Box::new([0; BUCKETS]) }
    }
}

impl Histogram {
    /// Returns the number of durations.
    pub(crate) fn count(&self) -> u64 {
        self.counts.iter().copied().fold(0, u64::saturating_add)
    }

    /// Returns the number of durations of at most `bound`, which must be a bound of a bucket.
    pub(crate) fn count_up_to(&self, bound: Duration) -> u64 {
        let last = bucket_of(u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX));
        debug_assert_eq!(u128::from(BOUNDS[last]), bound.as_nanos(), "no bound of a bucket");
        self.counts[..=last].iter().copied().fold(0, u64::saturating_add)
    }

    /// Returns the buckets that are not empty: the largest duration of each, which is `None` for the
    /// last one, and how many there are.
    pub(crate) fn buckets(&self) -> impl Iterator<Item = (Option<Duration>, u64)> {
        let used = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        used.map(|(index, count)| (bound(index), *count))
    }

    /// Returns a duration that is 10 % at most from the one below which this share of all durations
    /// lies. `None` if there are no durations.
    pub(crate) fn quantile(&self, share: f64) -> Option<Duration> {
        let rank = ((self.count() as f64 * share).ceil() as u64).max(1);
        let mut seen = 0u64;
        let index = self.counts.iter().position(|count| {
            seen = seen.saturating_add(*count);
            seen >= rank
        })?;
        Some(Duration::from_nanos(middle(index)))
    }

    /// Returns the bound of the longest duration's bucket; `None` if there are no durations.
    pub(crate) fn longest(&self) -> Option<Duration> {
        let index = self.counts.iter().rposition(|count| *count > 0)?;
        Some(bound(index).unwrap_or(Duration::from_nanos(LARGEST)))
    }

    /// Adds durations of at most `bound`; `None` is beyond the largest bound.
    pub(crate) fn add(&mut self, bound: Option<Duration>, count: u64) {
        let nanos = bound.and_then(|it| u64::try_from(it.as_nanos()).ok()).unwrap_or(u64::MAX);
        let total = &mut self.counts[bucket_of(nanos)];
        *total = total.saturating_add(count);
    }

    /// Combines each bucket with that of `other`.
    pub(super) fn combine(&mut self, other: &Self, count: fn(u64, u64) -> u64) {
        let pairs = self.counts.iter_mut().zip(other.counts.iter());
        pairs.for_each(|(mine, other)| *mine = count(*mine, *other));
    }

    /// Returns the number of durations in each bucket.
    pub(crate) fn counts_mut(&mut self) -> &mut [u64; BUCKETS] {
        &mut self.counts
    }
}

/// Returns the largest duration of a bucket; `None` for the last one.
fn bound(index: usize) -> Option<Duration> {
    (index + 1 < BUCKETS).then(|| Duration::from_nanos(BOUNDS[index]))
}

fn middle(index: usize) -> u64 {
    match index {
        0 => SMALLEST,
        _ if index + 1 == BUCKETS => LARGEST,
        _ => BOUNDS[index - 1].midpoint(BOUNDS[index]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the bucket of a duration, by a search.
    fn search(nanos: u64) -> usize {
        BOUNDS.iter().position(|bound| nanos <= *bound).unwrap()
    }

    #[test]
    fn bucket_of_every_bound_and_its_neighbours_is_found() {
        for bound in BOUNDS {
            for nanos in [bound.saturating_sub(1), bound, bound.saturating_add(1)] {
                assert_eq!(bucket_of(nanos), search(nanos), "{nanos}");
            }
        }
        for log2 in 0..64 {
            for nanos in [(1 << log2) - 1, 1 << log2, (1 << log2) + 1, 5 << log2 >> 2] {
                assert_eq!(bucket_of(nanos), search(nanos), "{nanos}");
            }
        }
    }

    #[test]
    fn middle_of_bucket_differs_by_a_tenth_at_most() {
        assert!(BOUNDS[BUCKETS - 2] >= 3_600_000_000_000, "an hour has a bucket");
        for (index, bounds) in BOUNDS[..BUCKETS - 1].windows(2).enumerate() {
            let middle = middle(index + 1);
            assert!(bounds[0] < middle && middle <= bounds[1]);
            assert!((middle - bounds[0]) * 10 <= bounds[0], "{bounds:?}");
            assert!((bounds[1] - middle) * 10 <= bounds[1], "{bounds:?}");
        }
    }

    #[test]
    fn quantiles_are_close_to_those_of_the_durations() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.quantile(0.5), histogram.longest()), (None, None));
        (1..=1000u64).for_each(|micros| histogram.counts_mut()[bucket_of(micros * 1000)] += 1);
        for (share, exact) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0), (0.0, 1.0)] {
            let found = histogram.quantile(share).unwrap().as_secs_f64() * 1e6;
            assert!((found - exact).abs() <= exact * 0.1, "{share}: {found}");
        }
        assert_eq!(histogram.longest(), Some(Duration::from_millis(1)));
        assert_eq!(histogram.count_up_to(Duration::from_micros(250)), 250);
        assert_eq!(histogram.count(), 1000);
        assert_eq!(histogram.buckets().map(|(_, count)| count).sum::<u64>(), 1000);
        histogram.counts_mut()[bucket_of(u64::MAX)] += 1;
        assert_eq!(histogram.buckets().last(), Some((None, 1)));
    }
}
