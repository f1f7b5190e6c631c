//! A queue that entries also leave from the middle. Pure.

use slab::Slab;

/// Entries in the order in which they came. Each has a key as long as it is in the queue.
#[derive(Debug)]
pub(super) struct IdleQueue<T> {
    entries: Slab<Entry<T>>,
    first: Option<usize>,
    last: Option<usize>,
}

#[derive(Debug)]
struct Entry<T> {
    value: T,
    previous: Option<usize>,
    next: Option<usize>,
}

impl<T> Default for IdleQueue<T> {
    fn default() -> Self {
        Self { entries: Slab::new(), first: None, last: None }
    }
}

impl<T> IdleQueue<T> {
    /// Returns the key that the next entry gets.
    pub(super) fn next_key(&self) -> usize {
        self.entries.vacant_key()
    }

    /// Adds an entry at the end.
    pub(super) fn push(&mut self, value: T) {
        let key = self.entries.insert(Entry { value, previous: self.last, next: None });
        *self.link_after(self.last) = Some(key);
        self.last = Some(key);
    }

    /// Returns the entry that came last.
    pub(super) fn last(&self) -> Option<&T> {
        self.last.and_then(|key| self.get(key))
    }

    pub(super) fn get(&self, key: usize) -> Option<&T> {
        self.entries.get(key).map(|entry| &entry.value)
    }

    /// Returns the key of the entry that came first.
    pub(super) fn first_key(&self) -> Option<usize> {
        self.first
    }

    /// Gives memory back that no entry needs, as far as the keys allow.
    pub(super) fn shrink(&mut self) {
        self.entries.shrink_to_fit();
    }

    /// Removes an entry. Without any, no memory is kept.
    pub(super) fn remove(&mut self, key: usize) -> Option<T> {
        let Entry { value, previous, next } = self.entries.try_remove(key)?;
        *self.link_after(previous) = next;
        match next.and_then(|next| self.entries.get_mut(next)) {
            Some(next) => next.previous = previous,
            None => self.last = previous,
        }
        if self.entries.is_empty() {
            self.entries = Slab::new();
        }
        Some(value)
    }

    /// Returns the link to what follows an entry, or to the first one.
    fn link_after(&mut self, key: Option<usize>) -> &mut Option<usize> {
        let before = key.and_then(|key| self.entries.get_mut(key));
        debug_assert!(key.is_none() || before.is_some(), "a link leads nowhere");
        before.map_or(&mut self.first, |entry| &mut entry.next)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn drain(queue: &mut IdleQueue<u32>) -> Vec<u32> {
        let mut values = Vec::new();
        while let Some(key) = queue.first_key() {
            values.extend(queue.remove(key));
        }
        values
    }

    #[test]
    fn entries_leave_from_anywhere() {
        let mut queue = IdleQueue::default();
        let keys: Vec<usize> = (0..4)
            .map(|value| {
                let key = queue.next_key();
                queue.push(value);
                key
            })
            .collect();
        assert_eq!(queue.remove(keys[1]), Some(1));
        assert_eq!(queue.remove(keys[1]), None);
        assert_eq!(queue.remove(keys[3]), Some(3));
        assert_eq!((queue.first_key(), queue.last()), (Some(keys[0]), Some(&2)));
        queue.push(4);
        assert_eq!(queue.remove(keys[0]), Some(0));
        assert_eq!(drain(&mut queue), [2, 4]);
        assert_eq!((queue.last(), queue.first_key()), (None, None));
        queue.push(5);
        assert_eq!(drain(&mut queue), [5]);
    }

    proptest! {
        #[test]
        fn order_is_that_of_arrival(steps in prop::collection::vec((any::<bool>(), 0..8usize), 0..200)) {
            let (mut queue, mut expected) = (IdleQueue::default(), VecDeque::new());
            for (value, (is_push, at)) in steps.into_iter().enumerate() {
                if is_push || expected.is_empty() {
                    expected.push_back((queue.next_key(), value as u32));
                    queue.push(value as u32);
                } else {
                    let (key, value) = expected.remove(at % expected.len()).unwrap();
                    prop_assert_eq!(queue.remove(key), Some(value));
                }
                prop_assert_eq!(queue.first_key(), expected.front().map(|(key, _)| *key));
                prop_assert_eq!(queue.last(), expected.back().map(|(_, value)| value));
            }
            let expected: Vec<u32> = expected.into_iter().map(|(_, value)| value).collect();
            prop_assert_eq!(drain(&mut queue), expected);
        }
    }
}
