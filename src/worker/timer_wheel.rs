//! The deadlines of very many clients. Setting, moving and clearing one takes constant time.
//!
//! A wheel of buckets, one per tick; a client is in one bucket at most. Pure: it reads no clock.

use std::time::Duration;

use crate::time::MonotonicTime;

const TICK: Duration = Duration::from_millis(10);
const TICK_NANOS: u64 = TICK.as_nanos() as u64;
/// One turn of the wheel is 10.24 s; a later deadline is popped early and set again.
const BUCKETS: usize = 1024;
const WORDS: usize = BUCKETS / 64;
const NO_CLIENT: u32 = u32::MAX;

/// A wheel of deadlines, for clients with small indices.
#[derive(Debug)]
pub struct TimerWheel {
    /// By client index.
    entries: Vec<Entry>,
    /// The first client of each bucket.
    buckets: Box<[u32; BUCKETS]>,
    /// A bit for each bucket that is not empty.
    occupied: [u64; WORDS],
    /// A bit for each word of `occupied` that is not 0.
    occupied_words: u16,
    /// The buckets of all earlier ticks are empty.
    current_tick: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The tick whose bucket the client is in; `u64::MAX` if none.
    tick: u64,
    previous: u32,
    next: u32,
}

const UNSCHEDULED: Entry = Entry { tick: u64::MAX, previous: NO_CLIENT, next: NO_CLIENT };

impl TimerWheel {
    /// Creates an empty wheel that begins at `now`.
    pub fn new(now: MonotonicTime) -> Self {
        Self {
            entries: Vec::new(),
            buckets: Box::new([NO_CLIENT; BUCKETS]),
            occupied: [0; WORDS],
            occupied_words: 0,
            current_tick: tick_of(now),
        }
    }

    /// Sets a client's deadline: [`pop`](Self::pop) returns the client up to 10 ms after it. An earlier
    /// deadline that is set already stays. So check the deadline of a popped client, and set it again
    /// if it has not come. A deadline that moves later, as most do, therefore costs nothing.
    ///
    /// # Panics
    /// If the client's index does not fit into 32 bits.
    pub fn set(&mut self, client: usize, deadline: MonotonicTime) {
        let horizon = self.current_tick + BUCKETS as u64 - 1;
        let tick = tick_of(deadline).clamp(self.current_tick, horizon);
        if self.entries.len() <= client {
            self.entries.resize(client + 1, UNSCHEDULED);
        }
        if self.entries[client].tick <= tick {
            return;
        }
        self.clear(client);
        let bucket = bucket_of(tick);
        let first = self.buckets[bucket];
        let number = u32::try_from(client).expect("there are fewer than 2^32 descriptors");
        self.entries[client] = Entry { tick, previous: NO_CLIENT, next: first };
        if let Some(entry) = self.entries.get_mut(first as usize) {
            entry.previous = number;
        }
        self.buckets[bucket] = number;
        self.occupied[bucket / 64] |= 1 << (bucket % 64);
        self.occupied_words |= 1 << (bucket / 64);
    }

    /// Clears a client's deadline.
    pub fn clear(&mut self, client: usize) {
        let Some(&Entry { tick, previous, next }) = self.entries.get(client) else { return };
        if tick == u64::MAX {
            return;
        }
        let bucket = bucket_of(tick);
        match self.entries.get_mut(previous as usize) {
            Some(entry) => entry.next = next,
            None => self.buckets[bucket] = next,
        }
        if let Some(entry) = self.entries.get_mut(next as usize) {
            entry.previous = previous;
        }
        if self.buckets[bucket] == NO_CLIENT {
            self.occupied[bucket / 64] &= !(1 << (bucket % 64));
            if self.occupied[bucket / 64] == 0 {
                self.occupied_words &= !(1 << (bucket / 64));
            }
        }
        self.entries[client] = UNSCHEDULED;
    }

    /// Returns when the next client can be popped.
    pub fn next(&self) -> Option<MonotonicTime> {
        Some(MonotonicTime::from_nanos((self.first_tick()? + 1).saturating_mul(TICK_NANOS)))
    }

    /// Removes and returns a client whose deadline has come by `now`.
    pub fn pop(&mut self, now: MonotonicTime) -> Option<usize> {
        let current_tick = tick_of(now);
        let Some(tick) = self.first_tick().filter(|tick| *tick < current_tick) else {
            self.current_tick = self.current_tick.max(current_tick);
            return None;
        };
        self.current_tick = tick;
        let client = self.buckets[bucket_of(tick)] as usize;
        self.clear(client);
        Some(client)
    }

    /// Returns the earliest tick whose bucket is not empty.
    fn first_tick(&self) -> Option<u64> {
        if self.occupied_words == 0 {
            return None;
        }
        let start = bucket_of(self.current_tick);
        let (mut index, mut word) =
            (start / 64, self.occupied[start / 64] & (u64::MAX << (start % 64)));
        if word == 0 {
            // The next word, round the wheel. The last is that of the current tick, with earlier ticks.
            let later = self.occupied_words.rotate_right(index as u32 + 1);
            index = (index + 1 + later.trailing_zeros() as usize) % WORDS;
            word = self.occupied[index];
        }
        let bucket = index * 64 + word.trailing_zeros() as usize;
        let distance = (bucket + BUCKETS - start) % BUCKETS;
        Some(self.current_tick + distance as u64)
    }
}

fn tick_of(stamp: MonotonicTime) -> u64 {
    stamp.as_nanos() / TICK_NANOS
}

fn bucket_of(tick: u64) -> usize {
    (tick % BUCKETS as u64) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::{Strategy, prop, prop_oneof, proptest};

    use super::*;

    fn at(millis: u64) -> MonotonicTime {
        MonotonicTime::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn clients_expire_in_order_and_not_early() {
        let mut wheel = TimerWheel::new(at(0));
        for (client, millis) in [(1, 300), (2, 100), (3, 200)] {
            wheel.set(client, at(millis));
        }
        assert_eq!(wheel.next(), Some(at(110)));
        assert_eq!(wheel.pop(at(100)), None);
        assert_eq!(wheel.pop(at(210)), Some(2));
        assert_eq!(wheel.pop(at(210)), Some(3));
        assert_eq!(wheel.pop(at(210)), None);
        wheel.clear(1);
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn far_deadline_expires_early_and_past_deadline_at_once() {
        let mut wheel = TimerWheel::new(at(50_000));
        wheel.set(0, at(500_000));
        wheel.set(1, at(10));
        assert_eq!(wheel.pop(at(50_020)), Some(1));
        let early = wheel.next().unwrap();
        assert!(at(60_000) < early && early < at(61_000), "{early:?}");
    }

    enum Step {
        Set(usize, u64),
        Clear(usize),
        Sleep(u64),
    }

    fn step() -> impl Strategy<Value = (u8, usize, u64)> {
        prop_oneof![
            (0..8usize, 0..30_000u64).prop_map(|(client, delay)| (0, client, delay)),
            (0..8usize).prop_map(|client| (1, client, 0)),
            (0..4_000u64).prop_map(|delay| (2, 0, delay)),
        ]
    }

    proptest! {
        #[test]
        fn wheel_agrees_with_btree_map(steps in prop::collection::vec(step(), 1..200)) {
            let (mut wheel, mut now) = (TimerWheel::new(at(7)), 7);
            let mut model: BTreeMap<usize, u64> = BTreeMap::new();
            for (kind, client, delay) in steps {
                let step = [Step::Set(client, now + delay), Step::Clear(client), Step::Sleep(delay)];
                match &step[kind as usize] {
                    Step::Set(client, deadline) => {
                        wheel.set(*client, at(*deadline));
                        let known = model.entry(*client).or_insert(*deadline);
                        *known = (*known).min(*deadline);
                    }
                    Step::Clear(client) => {
                        wheel.clear(*client);
                        model.remove(client);
                    }
                    Step::Sleep(delay) => {
                        now += delay;
                        while let Some(client) = wheel.pop(at(now)) {
                            let deadline = model.remove(&client).expect("only clients come up");
                            if now < deadline {
                                wheel.set(client, at(deadline));
                                model.insert(client, deadline);
                            }
                        }
                        // No client that was due a tick ago is left.
                        assert!(model.values().all(|deadline| now < deadline + 10), "{model:?}");
                    }
                }
                assert_eq!(wheel.next().is_none(), model.is_empty());
            }
        }
    }
}
