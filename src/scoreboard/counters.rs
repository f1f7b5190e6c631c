//! What workers count, in words that they share with the master. A thread has counters of its own for
//! what it counts often: durations of units, bytes, near misses. What is rare has one counter for the
//! whole worker. The master sums them: see [`WorkCounts`], which names each.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::accept_waits::{self, ACCEPT_WAIT_WORDS, AcceptWaits};
use super::latency::{BUCKETS, Histogram, bucket_of};
use super::limits::COUNT_MAX;

const BUSY: usize = 0;
const BYTES_IN: usize = 1;
const BYTES_OUT: usize = 2;
const NEAR_MISSES: usize = 3;
/// The words before the buckets: one cache line.
const HEAD_WORDS: usize = 8;
/// The words of one group of counters.
pub(super) const COUNTER_WORDS: usize = (HEAD_WORDS + BUCKETS).next_multiple_of(8);

/// How many groups of counters a row has at most. The threads of a worker with more share them.
pub(super) const COUNTERS_PER_ROW_MAX: usize = 8;

const ACCEPTED: usize = 0;
const REFUSED: usize = 1;
const RECORDS_DROPPED: usize = 2;
const ACCESS_RECORDS_DROPPED: usize = 3;
/// The first of the words that count how long clients have waited.
const ACCEPT_WAITS: usize = 4;
/// The words of a worker's counters.
pub(super) const WORKER_COUNTER_WORDS: usize =
    (ACCEPT_WAITS + ACCEPT_WAIT_WORDS).next_multiple_of(8);

/// The counters that a thread adds to.
#[derive(Clone, Copy, Debug)]
pub(super) struct ThreadCounters<'a> {
    words: &'a [AtomicU64; COUNTER_WORDS],
    /// Whether other threads add to them too.
    is_shared: bool,
}

impl<'a> ThreadCounters<'a> {
    /// Returns the counters in these words.
    ///
    /// # Panics
    /// If there are too few words.
    pub(super) fn new(words: &'a [AtomicU64], is_shared: bool) -> Self {
        Self { words: words.first_chunk().expect("a group has all words"), is_shared }
    }

    #[inline]
    pub(super) fn add_unit(self, nanos: u64) {
        self.add(BUSY, nanos);
        self.add(HEAD_WORDS + bucket_of(nanos), 1);
    }

    #[inline]
    pub(super) fn add_received(self, bytes: usize) {
        self.add(BYTES_IN, bytes as u64);
    }

    #[inline]
    pub(super) fn add_sent(self, bytes: usize) {
        self.add(BYTES_OUT, bytes as u64);
    }

    pub(super) fn add_near_miss(self) {
        self.add(NEAR_MISSES, 1);
    }

    /// Adds to a word. A word that only this thread writes needs no locked instruction.
    #[inline]
    fn add(self, index: usize, count: u64) {
        let word = &self.words[index];
        if self.is_shared {
            word.fetch_add(count, Ordering::Relaxed);
        } else {
            word.store(word.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
        }
    }

    /// Adds what has been counted to `counts`. Each count is capped: any process can have written it.
    pub(super) fn add_to(self, counts: &mut WorkCounts) {
        let nanos = self.words[BUSY].load(Ordering::Relaxed).min(BUSY_NANOS_MAX);
        counts.unit_time = counts.unit_time.saturating_add(Duration::from_nanos(nanos));
        let add = |total: &mut u64, index| *total = total.saturating_add(self.read(index));
        add(&mut counts.bytes_in, BYTES_IN);
        add(&mut counts.bytes_out, BYTES_OUT);
        add(&mut counts.near_misses, NEAR_MISSES);
    }

    /// Adds how many units have lasted how long. Each count is capped.
    pub(super) fn add_durations_to(self, durations: &mut Histogram) {
        for (bucket, total) in durations.counts_mut().iter_mut().enumerate() {
            *total = total.saturating_add(self.read(HEAD_WORDS + bucket));
        }
    }

    fn read(self, index: usize) -> u64 {
        self.words[index].load(Ordering::Relaxed).min(COUNT_MAX)
    }

    /// Clears them.
    pub(super) fn reset(self) {
        self.words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }
}

/// The counters of a worker, to which any of its threads adds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkerCounters<'a>(&'a [AtomicU64; WORKER_COUNTER_WORDS]);

impl<'a> WorkerCounters<'a> {
    /// Returns the counters in these words.
    ///
    /// # Panics
    /// If there are too few words.
    pub(super) fn new(words: &'a [AtomicU64]) -> Self {
        Self(words.first_chunk().expect("the row has all words"))
    }

    /// Counts a client that was accepted. Returns whether to [count](Self::add_accept_wait) how long it has
    /// waited.
    pub(crate) fn add_accepted(self) -> bool {
        accept_waits::is_sampled(self.0[ACCEPTED].fetch_add(1, Ordering::Relaxed))
    }

    /// Counts how long a client has waited before it was accepted.
    pub(crate) fn add_accept_wait(self, wait: Duration) {
        accept_waits::add(&self.0[ACCEPT_WAITS..], wait);
    }

    /// Counts a client that was closed without being served.
    pub(crate) fn add_refused(self) {
        self.0[REFUSED].fetch_add(1, Ordering::Relaxed);
    }

    /// Sets how many log records of the worker were dropped.
    pub(crate) fn set_records_dropped(self, count: u64) {
        self.0[RECORDS_DROPPED].store(count, Ordering::Relaxed);
    }

    /// Counts an access log record that was dropped.
    pub(crate) fn add_dropped_access_record(self) {
        self.0[ACCESS_RECORDS_DROPPED].fetch_add(1, Ordering::Relaxed);
    }

    /// Adds what has been counted to `counts`. Each count is capped.
    pub(super) fn add_to(self, counts: &mut WorkCounts) {
        let read = |word: usize| self.0[word].load(Ordering::Relaxed).min(COUNT_MAX);
        let add = |total: &mut u64, index| *total = total.saturating_add(read(index));
        add(&mut counts.accepted, ACCEPTED);
        add(&mut counts.refused, REFUSED);
        add(&mut counts.records_dropped, RECORDS_DROPPED);
        add(&mut counts.access_records_dropped, ACCESS_RECORDS_DROPPED);
        counts.accept_waits.add(&AcceptWaits::read(&self.0[ACCEPT_WAITS..]));
    }
}

/// The longest busy time that is believed of one thread, in nanoseconds: 100 years.
const BUSY_NANOS_MAX: u64 = 100 * 366 * 86_400 * 1_000_000_000;

/// What a worker, or several, have counted. The counts outlast a worker (`arbiter/pool/exit_history.rs`)
/// and a master (`arbiter/upgrade/handover.rs`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WorkCounts {
    /// Units of work that are done.
    pub(crate) units: u64,
    /// The time that these have taken, summed over all threads.
    pub(crate) unit_time: Duration,
    /// That time, and the time that units in progress have taken.
    pub(crate) busy: Duration,
    /// Units of work that have taken more than half of their time limit.
    pub(crate) near_misses: u64,
    /// Bytes received from clients.
    pub(crate) bytes_in: u64,
    /// Bytes sent to clients.
    pub(crate) bytes_out: u64,
    /// Clients that were accepted.
    pub(crate) accepted: u64,
    /// Clients that were accepted, and closed without being served.
    pub(crate) refused: u64,
    /// Log records that were dropped.
    pub(crate) records_dropped: u64,
    /// Access log records that were dropped.
    pub(crate) access_records_dropped: u64,
    /// How long some of the clients have waited before they were accepted.
    pub(crate) accept_waits: AcceptWaits,
}

impl WorkCounts {
    /// Adds other counts to these.
    pub(crate) fn add(&mut self, other: &Self) {
        self.combine(other, u64::saturating_add, Duration::saturating_add);
    }

    fn combine(
        &mut self,
        other: &Self,
        count: fn(u64, u64) -> u64,
        time: fn(Duration, Duration) -> Duration,
    ) {
        self.unit_time = time(self.unit_time, other.unit_time);
        self.busy = time(self.busy, other.busy);
        self.accept_waits.combine(&other.accept_waits, count, time);
        for ((_, total), (_, other)) in self.by_name_mut().into_iter().zip(other.by_name()) {
            *total = count(*total, other);
        }
    }

    /// Returns the counts that are no times, each with its name in messages between masters.
    pub(crate) fn by_name(mut self) -> impl Iterator<Item = (&'static str, u64)> {
        self.by_name_mut().map(|(name, count)| (name, *count)).into_iter()
    }

    /// Returns the counts that are no times, to be set, each with its name.
    pub(crate) fn by_name_mut(&mut self) -> [(&'static str, &mut u64); 8] {
        let Self {
            unit_time: _,
            busy: _,
            accept_waits: _,
            units,
            near_misses,
            bytes_in,
            bytes_out,
            accepted,
            refused,
            records_dropped,
            access_records_dropped,
        } = self;
        [
            ("units", units),
            ("near_misses", near_misses),
            ("bytes_in", bytes_in),
            ("bytes_out", bytes_out),
            ("accepted", accepted),
            ("refused", refused),
            ("records_dropped", records_dropped),
            ("access_records_dropped", access_records_dropped),
        ]
    }
}

/// What workers have counted, and how long their units of work have lasted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct WorkTotals {
    pub(crate) counts: WorkCounts,
    pub(crate) durations: Histogram,
}

impl WorkTotals {
    /// Adds other totals to these.
    pub(crate) fn add(&mut self, other: &Self) {
        self.counts.add(&other.counts);
        self.durations.combine(&other.durations, u64::saturating_add);
    }

    /// Returns what these have counted beyond `before`.
    pub(crate) fn since(mut self, before: &Self) -> Self {
        self.counts.combine(&before.counts, u64::saturating_sub, Duration::saturating_sub);
        self.durations.combine(&before.durations, u64::saturating_sub);
        self
    }

    /// Raises each total to that of `other` if that is larger.
    pub(crate) fn raise_to(&mut self, other: &Self) {
        self.counts.combine(&other.counts, u64::max, Duration::max);
        self.durations.combine(&other.durations, u64::max);
    }
}
