//! Sleeping until a listener is readable, of which the kernel informs one of all processes that sleep so.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::registration::Registration;
use crate::listen::Listener;
use crate::os::epoll::{EventQueue, Watch};
use crate::time::MonotonicTime;

/// The tokens of other descriptors. Those of the listeners follow.
const WAKE: u64 = 0;
const STOP: u64 = 1;
const FIRST_LISTENER: u64 = 2;

/// An epoll instance with the listeners (EPOLLEXCLUSIVE), the descriptor that wakes the worker, and that
/// which says that it stops.
pub(super) struct ListenerWatch {
    queue: EventQueue,
    listeners: Vec<Registration>,
}

impl ListenerWatch {
    /// Creates one for this number of listeners, of which it watches none yet.
    ///
    /// # Errors
    /// `EMFILE` and others from epoll_create1(2) and epoll_ctl(2).
    pub(super) fn new(
        listeners: usize,
        wake: BorrowedFd<'_>,
        stop: Option<BorrowedFd<'_>>,
    ) -> io::Result<Self> {
        let queue = EventQueue::new()?;
        queue.add(wake, WAKE, Watch::Readable)?;
        if let Some(stop) = stop {
            queue.add(stop, STOP, Watch::Readable)?;
        }
        Ok(Self { queue, listeners: vec![Registration::default(); listeners] })
    }

    /// Ends watching the descriptor of the stop: it is readable for good.
    pub(super) fn forget_stop(&self, stop: BorrowedFd<'_>) {
        self.queue.remove(stop);
    }

    /// Returns whether it watches any listener.
    pub(super) fn is_watching(&self) -> bool {
        self.listeners.iter().any(|it| it.is_registered())
    }

    /// Watches the listeners that are `wanted`, and no others. Returns those that are watched no more:
    /// the kernel may have woken no other process for a client there, so that an accept is owed.
    ///
    /// # Errors
    /// From epoll_ctl(2).
    pub(super) fn update(
        &mut self,
        listeners: &[Arc<Listener>],
        wanted: impl Fn(usize) -> bool,
    ) -> io::Result<Vec<usize>> {
        let mut left = Vec::new();
        for (index, (listener, state)) in listeners.iter().zip(&mut self.listeners).enumerate() {
            let is_wanted = wanted(index);
            if state.is_registered() && (!is_wanted || state.must_rejoin(listener)) {
                state.leave(listener, &self.queue.as_fd())?;
                if !is_wanted {
                    left.push(index);
                }
            }
            if is_wanted && !state.is_registered() {
                let token = index + FIRST_LISTENER as usize;
                state.join(listener, &self.queue.as_fd(), token)?;
            }
        }
        Ok(left)
    }

    /// Sleeps until something is readable or `deadline` has passed. Returns the readable listeners.
    ///
    /// # Errors
    /// From epoll_wait(2).
    pub(super) fn wait(&mut self, deadline: Option<MonotonicTime>) -> io::Result<Vec<usize>> {
        let max = self.listeners.len() + FIRST_LISTENER as usize;
        let tokens = self.queue.wait(max, deadline)?.into_iter();
        let readable: Vec<usize> =
            tokens.filter_map(|it| Some(it.checked_sub(FIRST_LISTENER)? as usize)).collect();
        readable.iter().for_each(|index| self.listeners[*index].count_client());
        Ok(readable)
    }
}
