//! What the master tells the workers of a listener, in memory that they share: whether it is open,
//! and whose its queue is.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use super::ListenerState;
use crate::os::memory::SharedMemory;

/// One socket of several at an address: the nth of so many. It belongs to the workers in every slot
/// that leaves the remainder n.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReusePortShard {
    /// Which one, from 0.
    pub(crate) index: u32,
    /// Of how many, at least 1.
    pub(crate) count: u32,
}

impl ReusePortShard {
    /// Whether the worker in this slot has it.
    pub(crate) fn is_assigned_to(self, slot: usize) -> bool {
        slot % self.count as usize == self.index as usize
    }
}

const STATE: usize = 0;
const SHARD: usize = 1;
const ASSIGNEE: usize = 2;
const FIRST_GENERATION: usize = 3;

/// The shared words of a listener. The master alone writes them.
#[derive(Debug)]
pub(super) struct SharedState(SharedMemory);

impl SharedState {
    /// Words for everybody's queue.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(super) fn new(state: ListenerState) -> io::Result<Self> {
        let shared = Self(SharedMemory::new(4)?);
        shared.set_state(state);
        Ok(shared)
    }

    pub(super) fn state(&self) -> ListenerState {
        match self.word(STATE).load(Ordering::Acquire) {
            0 => ListenerState::Open,
            1 => ListenerState::DrainBounded,
            2 => ListenerState::DrainUnbounded,
            _ => ListenerState::NotListening,
        }
    }

    pub(super) fn set_state(&self, state: ListenerState) {
        let word = match state {
            ListenerState::Open => 0,
            ListenerState::DrainBounded => 1,
            ListenerState::DrainUnbounded => 2,
            ListenerState::NotListening => 3,
        };
        self.word(STATE).store(word, Ordering::Release);
    }

    pub(super) fn shard(&self) -> Option<ReusePortShard> {
        let word = self.word(SHARD).load(Ordering::Acquire);
        let (index, count) = ((word >> 32) as u32, word as u32);
        (count > 0).then_some(ReusePortShard { index, count })
    }

    pub(super) fn set_shard(&self, shard: Option<ReusePortShard>) -> bool {
        let word = shard.map_or(0, |share| u64::from(share.index) << 32 | u64::from(share.count));
        self.word(SHARD).swap(word, Ordering::AcqRel) != word
    }

    pub(super) fn assignee(&self) -> Option<usize> {
        self.word(ASSIGNEE).load(Ordering::Acquire).checked_sub(1).map(|slot| slot as usize)
    }

    pub(super) fn assign_to(&self, slot: Option<usize>) -> bool {
        let word = slot.map_or(0, |slot| slot as u64 + 1);
        self.word(ASSIGNEE).swap(word, Ordering::AcqRel) != word
    }

    pub(super) fn first_generation(&self) -> u32 {
        self.word(FIRST_GENERATION).load(Ordering::Acquire) as u32
    }

    pub(super) fn set_first_generation(&self, generation: u32) {
        self.word(FIRST_GENERATION).store(u64::from(generation), Ordering::Release);
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        &self.0.words()[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_values_are_read_back() {
        let shared = SharedState::new(ListenerState::NotListening).unwrap();
        assert_eq!(shared.state(), ListenerState::NotListening);
        for state in
            [ListenerState::Open, ListenerState::DrainBounded, ListenerState::DrainUnbounded]
        {
            shared.set_state(state);
            assert_eq!(shared.state(), state);
        }
        assert_eq!((shared.shard(), shared.assignee()), (None, None));
        let shard = Some(ReusePortShard { index: 3, count: 4 });
        assert!(shared.set_shard(shard) && !shared.set_shard(shard));
        assert_eq!(shared.shard(), shard);
        assert!(shared.assign_to(Some(0)) && !shared.assign_to(Some(0)));
        assert_eq!(shared.assignee(), Some(0));
        assert!(shared.assign_to(None) && shared.set_shard(None));
        assert_eq!((shared.shard(), shared.assignee()), (None, None));
    }

    #[test]
    fn slots_beyond_shard_count_wrap_around() {
        let shard = ReusePortShard { index: 1, count: 3 };
        assert_eq!((0..7).filter(|slot| shard.is_assigned_to(*slot)).collect::<Vec<_>>(), [1, 4]);
    }
}
