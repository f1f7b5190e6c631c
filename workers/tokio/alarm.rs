//! A timer for a deadline that moves.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use ostler::time::MonotonicTime;
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, Sleep, sleep};

/// A timer that is set again only when it goes off: a deadline that moves on costs nothing.
#[derive(Default)]
pub(super) struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
    set_to: MonotonicTime,
}

impl Alarm {
    /// Returns whether the deadline has passed. Otherwise the task is woken then, or before.
    pub(super) fn is_due(
        mut self: Pin<&mut Self>,
        deadline: MonotonicTime,
        now: impl Fn() -> MonotonicTime,
        cx: &mut Context<'_>,
    ) -> bool {
        loop {
            if let Some(sleep) = &self.sleep
                && self.set_to <= deadline
                && !sleep.is_elapsed()
            {
                return false;
            }
            let now = now();
            if deadline <= now {
                return true;
            }
            let wait = deadline.duration_since(now);
            self.set_to = deadline;
            let sleep = match &mut self.sleep {
                Some(sleep) => {
                    sleep.as_mut().reset(Instant::now() + wait);
                    sleep
                }
                None => self.sleep.insert(Box::pin(sleep(wait))),
            };
            if poll_timer(sleep, cx).is_pending() {
                return false;
            }
        }
    }
}

/// Polls a timer. What else the task has polled may have used up its budget (`tokio::task::coop`), and a timer
/// that is polled without one neither begins nor ends.
pub(super) fn poll_timer(timer: &mut Pin<Box<Sleep>>, cx: &mut Context<'_>) -> Poll<()> {
    Pin::new(&mut unconstrained(timer.as_mut())).poll(cx)
}
