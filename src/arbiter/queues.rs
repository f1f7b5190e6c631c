//! With `reuse_port`: no queue without somebody who takes clients from it.
//!
//! The sockets at an address belong to slots. While a slot has no worker that lets clients in, since
//! it has died and may not come back yet, or since there are to be fewer workers, its queue is lent
//! to a worker in another slot. The sockets themselves stay for as long as the address is served.

use super::Arbiter;

impl Arbiter<'_> {
    /// Opens new queues once somebody can take from them, unless another master would not know of
    /// them; and lends those that are without a worker.
    pub(super) fn tend_the_queues(&mut self) {
        let serves = self.roster.ready_count() > 0 && self.roster.stopping().is_none();
        if serves && self.kin.is_alone() && self.crew.open_queues() {
            self.store_sockets();
        }
        self.crew.lend_queues();
    }
}

/// Who is there for the sockets at one address.
pub(super) struct Attendance {
    /// Whether somebody is there to whom the nth socket belongs.
    own: Vec<bool>,
    /// The slots in which somebody is, in order.
    slots: Vec<usize>,
}

impl Attendance {
    /// For so many sockets, with workers in these slots.
    pub(super) fn new(count: u32, slots: impl Iterator<Item = usize>) -> Self {
        let mut own = vec![false; count as usize];
        let mut slots: Vec<usize> = slots.collect();
        slots.sort_unstable();
        slots.dedup();
        slots.iter().for_each(|slot| own[slot % count as usize] = true);
        Self { own, slots }
    }

    /// The slot whose worker borrows the nth socket; `None` if none needs to, or nobody is there.
    pub(super) fn borrower(&self, index: u32) -> Option<usize> {
        let index = index as usize;
        if self.own[index] || self.slots.is_empty() {
            return None;
        }
        Some(self.slots[index % self.slots.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn borrowers(count: u32, slots: &[usize]) -> Vec<Option<usize>> {
        let attendance = Attendance::new(count, slots.iter().copied());
        (0..count).map(|index| attendance.borrower(index)).collect()
    }

    #[test]
    fn who_has_a_worker_needs_no_borrower() {
        assert_eq!(borrowers(3, &[0, 1, 2]), [None; 3]);
        assert_eq!(borrowers(2, &[4, 1]), [None; 2]); // one that was added by a signal
    }

    #[test]
    fn each_queue_has_somebody_if_anybody_is_there() {
        assert_eq!(borrowers(3, &[1, 1]), [Some(1), None, Some(1)]);
        assert_eq!(borrowers(4, &[0, 2]), [None, Some(2), None, Some(2)]);
        assert_eq!(borrowers(2, &[]), [None; 2]);
        for gone in 0..8 {
            let slots: Vec<usize> = (0..8).filter(|slot| *slot != gone).collect();
            for (slot, borrower) in borrowers(8, &slots).into_iter().enumerate() {
                assert_eq!(borrower.is_some(), slot == gone);
                assert_ne!(borrower, Some(gone));
            }
        }
    }
}
