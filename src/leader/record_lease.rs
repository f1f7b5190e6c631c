//! A lease that is a record with its holder and a version, as in Kubernetes. The store knows no time: the
//! others watch whether the record changes.

use std::time::Duration;

use super::RECORD_TTL_MAX;
use super::keeper::{Claim, Lease, StoreError};
use crate::time::MonotonicTime;

/// The seconds in the record of a lease that its holder has given back.
const RELEASED_SECONDS: u32 = 1;

/// How often a record is read anew because it has changed before it could be written.
const ATTEMPTS: usize = 3;

/// What the record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    /// Empty if nobody has the lease.
    pub(crate) holder: String,
    /// For how long the holder has it without a change of the record.
    pub(crate) seconds: u32,
    /// How often the holder has changed.
    pub(crate) transitions: u32,
}

/// A record as it was read. It is equal to another only if nothing has been written between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) terms: Terms,
    /// What the store calls this state of the record.
    pub(crate) version: String,
    /// A time that the holder has written for people. It is compared, and not believed.
    pub(crate) renewed_at: String,
}

/// The store. Each method is one request.
pub(crate) trait RecordStore {
    /// Returns the record, if there is one.
    fn read(&mut self) -> Result<Option<Record>, StoreError>;

    /// Writes the record, if it is still as [`read`](Self::read) has returned it the last time. Returns
    /// whether it was.
    fn write(&mut self, found: Option<&Record>, terms: &Terms) -> Result<bool, StoreError>;
}

/// One master's part in the lease.
#[derive(Debug)]
pub(crate) struct RecordLease<S> {
    store: S,
    ttl: Duration,
    identity: String,
    /// The record of another holder, and when it was read first.
    seen: Option<(Record, MonotonicTime)>,
    /// This master may be the holder, as far as it knows.
    may_hold: bool,
}

impl<S: RecordStore> RecordLease<S> {
    pub(crate) fn new(store: S, ttl: Duration, identity: &str) -> Self {
        // An earlier process of this master may have got it.
        Self { store, ttl, identity: identity.to_owned(), seen: None, may_hold: true }
    }

    /// Returns the other master that has the lease, if one does: the record may have been read before it
    /// was written last, but not after `read_at`.
    fn other_holder(&mut self, found: Option<&Record>, read_at: MonotonicTime) -> Option<String> {
        // The holder of a record that was deleted may still lead.
        let deleted = |(seen, _): &(Record, _)| Record { version: String::new(), ..seen.clone() };
        let record = found.cloned().or_else(|| self.seen.as_ref().map(deleted));
        let is_other =
            |it: &Record| !it.terms.holder.is_empty() && it.terms.holder != self.identity;
        let Some(record) = record.filter(is_other) else {
            self.seen = None;
            return None;
        };
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != record) {
            self.seen = Some((record.clone(), read_at));
        }
        let since = self.seen.as_ref().map_or(read_at, |(_, since)| *since);
        let claimed = Duration::from_secs(record.terms.seconds.into());
        let duration = claimed.min(RECORD_TTL_MAX).max(self.ttl);
        (read_at < since + duration).then_some(record.terms.holder)
    }

    fn own_terms(&self, found: Option<&Record>) -> Terms {
        let (transitions, is_own) = found.map_or((0, false), |record| {
            (record.terms.transitions, record.terms.holder == self.identity)
        });
        // Rounded up: what is kept of it is `ttl`.
        let seconds = self.ttl.as_secs() + u64::from(self.ttl.subsec_nanos() > 0);
        Terms {
            holder: self.identity.clone(),
            seconds: u32::try_from(seconds).unwrap_or(u32::MAX),
            transitions: transitions.saturating_add(u32::from(!is_own)),
        }
    }
}

impl<S: RecordStore> Lease for RecordLease<S> {
    /// Each look is a read of the store's majority.
    const STANDBY_INTERVAL: Duration = Duration::from_secs(1);

    fn claim(&mut self, now: &dyn Fn() -> MonotonicTime) -> Result<Claim, StoreError> {
        for _ in 0..ATTEMPTS {
            let found = self.store.read()?;
            let read_at = now();
            if let Some(holder) = self.other_holder(found.as_ref(), read_at) {
                self.may_hold = false;
                return Ok(Claim::Other { holder });
            }
            let terms = self.own_terms(found.as_ref());
            // Another master counts from when it reads what is written now, which is later.
            let sent_at = now();
            self.may_hold = true;
            if self.store.write(found.as_ref(), &terms)? {
                return Ok(Claim::Own { sent_at, life: self.ttl });
            }
        }
        Err("the record has changed before each attempt to write it".to_owned())
    }

    fn release(&mut self) -> Result<(), StoreError> {
        if !std::mem::take(&mut self.may_hold) {
            return Ok(());
        }
        for _ in 0..ATTEMPTS {
            let Some(found) = self.store.read()? else { return Ok(()) };
            if found.terms.holder != self.identity {
                return Ok(());
            }
            let transitions = found.terms.transitions;
            let terms = Terms { holder: String::new(), seconds: RELEASED_SECONDS, transitions };
            if self.store.write(Some(&found), &terms)? {
                return Ok(());
            }
        }
        Err("the record has changed before each attempt to write it".to_owned())
    }
}
