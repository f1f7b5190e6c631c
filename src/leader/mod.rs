//! Who leads: the holder of a lease in a store, one among many masters (pure).
//!
//! A child of the master has a [`Keeper`](keeper::Keeper): it asks the store and renews the lease. It
//! reports to the master, whose [`Term`](term::Term) says what the led pools may do. All times are of
//! the clock that also runs while the machine is suspended.

pub(crate) mod identity;
#[cfg(any(test, feature = "leader"))]
pub(crate) mod keeper;
#[cfg(any(test, feature = "leader"))]
pub(crate) mod key_lease;
#[cfg(any(test, feature = "leader"))]
pub(crate) mod record_lease;
pub(crate) mod report;
pub(crate) mod term;

use std::time::Duration;

#[cfg(test)]
mod tests;

/// The longest time for which a record without a change is believed, and so the longest `ttl` of a record.
pub(crate) const RECORD_TTL_MAX: Duration = Duration::from_secs(3600);

/// How long before the end of a term its workers begin to drain, as a share of `ttl`.
const DRAIN_SHARE: u32 = 4;

/// How long before the end of a term its workers are killed, as a share of `ttl`.
const KILL_SHARE: u32 = 20;
