//! A lease with a number and a life of its own in the store, to which a key is attached, as in etcd.

use std::time::Duration;

use super::keeper::{Claim, Lease, StoreError};
use crate::time::MonotonicTime;

/// The number of a lease in the store.
pub(crate) type LeaseId = i64;

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

/// One master's part in the lease.
#[derive(Debug)]
pub(crate) struct KeyLease<S> {
    store: S,
    ttl: Duration,
    identity: String,
    lease: Option<LeaseId>,
}

impl<S: LeaseStore> KeyLease<S> {
    pub(crate) fn new(store: S, ttl: Duration, identity: &str) -> Self {
        Self { store, ttl, identity: identity.to_owned(), lease: None }
    }

    /// Renews a lease of this master. Returns `None` if it has ended.
    fn renew(
        &mut self,
        lease: LeaseId,
        now: &dyn Fn() -> MonotonicTime,
    ) -> Result<Option<Granted>, StoreError> {
        // The store counts the life of the lease from when it has the request, which is later.
        let sent_at = now();
        let life = self.store.keep_alive(lease)?;
        self.lease = (!life.is_zero()).then_some(lease);
        Ok(self.lease.map(|lease| Granted { lease, sent_at, life }))
    }

    fn grant(&mut self, now: &dyn Fn() -> MonotonicTime) -> Result<Granted, StoreError> {
        let sent_at = now();
        let (lease, life) = self.store.grant(self.ttl)?;
        self.lease = Some(lease);
        Ok(Granted { lease, sent_at, life })
    }
}

impl<S: LeaseStore> Lease for KeyLease<S> {
    const STANDBY_INTERVAL: Duration = Duration::from_millis(500);

    fn claim(&mut self, now: &dyn Fn() -> MonotonicTime) -> Result<Claim, StoreError> {
        let mut granted = match self.lease {
            Some(lease) => self.renew(lease, now)?,
            None => None,
        };
        if granted.is_none() {
            match self.store.holder()? {
                // An earlier process of this master has got it, and has ended.
                Some(holder) if holder.name == self.identity => {
                    granted = self.renew(holder.lease, now)?;
                }
                Some(holder) => return Ok(Claim::Other { holder: holder.name }),
                None => (),
            }
        }
        let Granted { lease, sent_at, life } = match granted {
            Some(granted) => granted,
            None => self.grant(now)?,
        };
        // Also of a renewed lease: an operator may have deleted the key, or put another there.
        let holder = self.store.acquire(lease)?;
        if holder.lease == lease {
            return Ok(Claim::Own { sent_at, life });
        }
        // It is not revoked, and ends by itself: an attempt to get the key that has been answered by nobody
        // may still be carried out, and then this master leads by it.
        self.lease = None;
        Ok(Claim::Other { holder: holder.name })
    }

    fn release(&mut self) -> Result<(), StoreError> {
        self.lease.take().map_or(Ok(()), |lease| self.store.revoke(lease))
    }
}
