//! Keeps the lease of one master: when the store is asked, and what the master is told.

use std::time::Duration;

use super::identity::readable;
use super::report::Report;
use crate::time::MonotonicTime;

/// How long before the end of the lease in the store a term ends, as a share of `ttl`: the clocks of
/// this machine and of the store, or of the others, may differ by that much in one `ttl`.
const CLOCK_MARGIN: u32 = 10;

/// How often the lease is renewed, as a share of `ttl`.
const RENEWALS: u32 = 5;

/// The shortest and the longest time between two attempts while the store does not answer.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Returns the longest time that a request to the store may take.
#[cfg(feature = "leader")]
pub(crate) fn request_timeout(ttl: Duration) -> Duration {
    ttl / RENEWALS
}

/// Why a request has failed: a text for the operator. The store may have carried it out.
pub(crate) type StoreError = String;

/// Which master has the lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// This one, for so long from the time at which the request was sent.
    Own { sent_at: MonotonicTime, life: Duration },
    /// Another one.
    Other { holder: String },
}

/// One master's part in a lease.
pub(crate) trait Lease {
    /// How often a standby looks whether the lease is free.
    const STANDBY_INTERVAL: Duration;

    /// Renews the lease, or gets it if it is free. `now` reads the clock.
    ///
    /// # Errors
    /// A request has failed: nothing new is known.
    fn claim(&mut self, now: &dyn Fn() -> MonotonicTime) -> Result<Claim, StoreError>;

    /// Gives the lease back, if this master has it.
    ///
    /// # Errors
    /// The store has not confirmed it. The lease ends by itself.
    fn release(&mut self) -> Result<(), StoreError>;
}

/// Keeps the lease of one master.
#[derive(Debug)]
pub(crate) struct Keeper<L> {
    lease: L,
    ttl: Duration,
    is_holder: bool,
    failures: u32,
}

impl<L: Lease> Keeper<L> {
    pub(crate) fn new(lease: L, ttl: Duration) -> Self {
        Self { lease, ttl, is_holder: false, failures: 0 }
    }

    /// Asks the store once. `now` reads the clock.
    pub(crate) fn step(&mut self, now: impl Fn() -> MonotonicTime) -> Report {
        let claim = match self.lease.claim(&now) {
            Ok(claim) => claim,
            Err(reason) => {
                self.failures = self.failures.saturating_add(1);
                return Report::Unreachable { reason };
            }
        };
        self.failures = 0;
        self.is_holder = matches!(claim, Claim::Own { .. });
        match claim {
            Claim::Own { sent_at, life } => {
                let life = life.min(self.ttl);
                Report::Leading { until: sent_at + (life - life / CLOCK_MARGIN) }
            }
            Claim::Other { holder } => Report::Standby { holder: readable(&holder).to_owned() },
        }
    }

    /// Returns how long to wait before the next step.
    pub(crate) fn pause(&self) -> Duration {
        match self.failures {
            0 if self.is_holder => self.ttl / RENEWALS,
            0 => L::STANDBY_INTERVAL.min(self.ttl / RENEWALS),
            failures => RETRY_MIN.saturating_mul(1 << failures.min(10)).min(RETRY_MAX),
        }
    }

    /// Gives the lease back, so that another master can lead at once. No worker of the led pools is left.
    ///
    /// # Errors
    /// The store has not confirmed it. The lease ends by itself.
    pub(crate) fn release(&mut self) -> Result<(), StoreError> {
        self.is_holder = false;
        self.lease.release()
    }
}
