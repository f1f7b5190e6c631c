//! What the master tells the workers about a listener, in shared memory: its state, and which
//! workers its accept queue belongs to.

use std::io;

use crate::os::memory::{MappingId, PublishedMemory};

/// Which clients can still connect to a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerState {
    /// None yet: the socket is bound and does not listen.
    NotListening,
    /// Any, and workers accept them.
    Open,
    /// No new ones: the accept queue comes to an end.
    DrainBounded,
    /// New ones may still connect, although the listener is being drained: the accept queue may
    /// never come to an end.
    DrainUnbounded,
}

/// One of several sockets that are bound to an address with SO_REUSEPORT. It belongs to the workers
/// in every slot for which slot modulo `count` is `index`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReusePortShard {
    /// Its number, from 0.
    pub(crate) index: u32,
    /// How many there are, at least 1.
    pub(crate) count: u32,
}

impl ReusePortShard {
    /// Whether it belongs to the worker in this slot.
    pub(crate) fn is_assigned_to(self, slot: usize) -> bool {
        slot % self.count as usize == self.index as usize
    }
}

const STATE: usize = 0;
const SHARD: usize = 1;
const ASSIGNEE: usize = 2;
const FIRST_GENERATION: usize = 3;
const WORDS: usize = 4;

/// The shared words of a listener. Only the master writes them.
#[derive(Debug)]
pub(super) struct SharedState(PublishedMemory);

impl SharedState {
    /// Maps the words of a listener whose accept queue belongs to all workers.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(super) fn new(state: ListenerState) -> io::Result<Self> {
        let shared = Self(PublishedMemory::new(WORDS)?);
        shared.set_state(state);
        Ok(shared)
    }

    /// Returns the mapping that a child must keep to use it.
    pub(super) fn mapping(&self) -> MappingId {
        self.0.id()
    }

    pub(super) fn state(&self) -> ListenerState {
        match self.0.load(STATE) {
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
        self.0.store(STATE, word);
    }

    pub(super) fn shard(&self) -> Option<ReusePortShard> {
        let word = self.0.load(SHARD);
        let (index, count) = ((word >> 32) as u32, word as u32);
        (count > 0).then_some(ReusePortShard { index, count })
    }

    pub(super) fn set_shard(&self, shard: Option<ReusePortShard>) -> bool {
        let word = shard.map_or(0, |shard| u64::from(shard.index) << 32 | u64::from(shard.count));
        self.0.store(SHARD, word) != word
    }

    pub(super) fn assignee(&self) -> Option<usize> {
        self.0.load(ASSIGNEE).checked_sub(1).map(|slot| slot as usize)
    }

    pub(super) fn assign_to(&self, slot: Option<usize>) -> bool {
        let word = slot.map_or(0, |slot| slot as u64 + 1);
        self.0.store(ASSIGNEE, word) != word
    }

    pub(super) fn first_generation(&self) -> u32 {
        self.0.load(FIRST_GENERATION) as u32
    }

    pub(super) fn set_first_generation(&self, generation: u32) {
        self.0.store(FIRST_GENERATION, u64::from(generation));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_state_values_are_read_back() {
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
    fn shard_of_slot_beyond_count_wraps_around() {
        let shard = ReusePortShard { index: 1, count: 3 };
        assert_eq!((0..7).filter(|slot| shard.is_assigned_to(*slot)).collect::<Vec<_>>(), [1, 4]);
    }
}
