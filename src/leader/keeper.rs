//! Gets and renews the lease: which request follows from which answer.

use std::time::Duration;

use super::identity::readable;
use super::report::Report;
use crate::time::MonotonicTime;

/// The number of a lease in the store.
pub(crate) type LeaseId = i64;

/// How long before the end of the lease in the store a term ends, as a share of `ttl`: the clocks of
/// this machine and of the store may differ by that much in one `ttl`.
const CLOCK_MARGIN: u32 = 10;

/// How often the lease is renewed, as a share of `ttl`.
const RENEWALS: u32 = 5;

/// The shortest and the longest time between two attempts while the store does not answer.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// How often a standby looks whether the key is free.
const STANDBY_INTERVAL: Duration = Duration::from_millis(500);

/// Returns the longest time that a request to the store may take.
#[cfg(feature = "leader")]
pub(crate) fn request_timeout(ttl: Duration) -> Duration {
    ttl / RENEWALS
}

/// Why a request has failed: a text for the operator. The store may have carried it out.
pub(crate) type StoreError = String;

/// Who has the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) name: String,
    pub(crate) lease: LeaseId,
}

/// The store. Each method is one request.
pub(crate) trait LeaseStore {
    /// Creates a lease. Returns its number, and how long it lives.
    fn grant(&mut self, ttl: Duration) -> Result<(LeaseId, Duration), StoreError>;

    /// Renews a lease. Returns how long it lives; zero if there is none of this number.
    fn keep_alive(&mut self, lease: LeaseId) -> Result<Duration, StoreError>;

    /// Returns who has the key.
    fn holder(&mut self) -> Result<Option<Holder>, StoreError>;

    /// Creates the key, attached to the lease, unless it exists. Returns who has the key then.
    fn acquire(&mut self, lease: LeaseId) -> Result<Holder, StoreError>;

    /// Ends a lease. A key that is attached to it is deleted.
    fn revoke(&mut self, lease: LeaseId) -> Result<(), StoreError>;
}

/// A lease that lives: when the request was sent that has been answered so, and for how long it lives.
struct Granted {
    lease: LeaseId,
    sent_at: MonotonicTime,
    life: Duration,
}

/// Keeps the lease of one master.
#[derive(Debug)]
pub(crate) struct Keeper {
    ttl: Duration,
    /// How this master is called in the store. No other master has the same name.
    identity: String,
    lease: Option<LeaseId>,
    is_holder: bool,
    failures: u32,
}

impl Keeper {
    pub(crate) fn new(ttl: Duration, identity: &str) -> Self {
        Self { ttl, identity: identity.to_owned(), lease: None, is_holder: false, failures: 0 }
    }

    /// Asks the store once. `now` reads the clock.
    pub(crate) fn step(
        &mut self,
        store: &mut impl LeaseStore,
        now: impl Fn() -> MonotonicTime,
    ) -> Report {
        match self.ask(store, &now) {
            Ok(report) => {
                self.failures = 0;
                report
            }
            Err(reason) => {
                self.failures = self.failures.saturating_add(1);
                Report::Unreachable { reason }
            }
        }
    }

    fn ask(
        &mut self,
        store: &mut impl LeaseStore,
        now: &impl Fn() -> MonotonicTime,
    ) -> Result<Report, StoreError> {
        let mut granted = match self.lease {
            Some(lease) => self.renew(store, lease, now)?,
            None => None,
        };
        if granted.is_none() {
            match store.holder()? {
                // An earlier process of this master has got it, and has ended.
                Some(holder) if holder.name == self.identity => {
                    granted = self.renew(store, holder.lease, now)?;
                }
                Some(holder) => return Ok(standby(&holder)),
                None => (),
            }
        }
        let Granted { lease, sent_at, life } = match granted {
            Some(granted) => granted,
            None => self.grant(store, now)?,
        };
        // Also of a renewed lease: an operator may have deleted the key, or put another there.
        let holder = store.acquire(lease)?;
        if holder.lease == lease {
            self.is_holder = true;
            let until = sent_at + (life.min(self.ttl) - life.min(self.ttl) / CLOCK_MARGIN);
            return Ok(Report::Leading { until });
        }
        (self.lease, self.is_holder) = (None, false);
        // If this fails, the lease ends by itself.
        let _ = store.revoke(lease);
        Ok(standby(&holder))
    }

    /// Renews a lease of this master. Returns `None` if it has ended.
    fn renew(
        &mut self,
        store: &mut impl LeaseStore,
        lease: LeaseId,
        now: &impl Fn() -> MonotonicTime,
    ) -> Result<Option<Granted>, StoreError> {
        // The store counts the life of the lease from when it has the request, which is later.
        let sent_at = now();
        let life = store.keep_alive(lease)?;
        if life.is_zero() {
            (self.lease, self.is_holder) = (None, false);
            return Ok(None);
        }
        self.lease = Some(lease);
        Ok(Some(Granted { lease, sent_at, life }))
    }

    fn grant(
        &mut self,
        store: &mut impl LeaseStore,
        now: &impl Fn() -> MonotonicTime,
    ) -> Result<Granted, StoreError> {
        let sent_at = now();
        let (lease, life) = store.grant(self.ttl)?;
        self.lease = Some(lease);
        Ok(Granted { lease, sent_at, life })
    }

    /// Returns how long to wait before the next step.
    pub(crate) fn pause(&self) -> Duration {
        match self.failures {
            0 if self.is_holder => self.ttl / RENEWALS,
            0 => STANDBY_INTERVAL.min(self.ttl / RENEWALS),
            failures => RETRY_MIN.saturating_mul(1 << failures.min(10)).min(RETRY_MAX),
        }
    }

    /// Ends the lease, so that another master can lead at once. No worker of the led pools is left.
    ///
    /// # Errors
    /// The store has not confirmed it. The lease ends by itself.
    pub(crate) fn release(&mut self, store: &mut impl LeaseStore) -> Result<(), StoreError> {
        self.is_holder = false;
        self.lease.take().map_or(Ok(()), |lease| store.revoke(lease))
    }
}

fn standby(holder: &Holder) -> Report {
    Report::Standby { holder: readable(&holder.name).to_owned() }
}
