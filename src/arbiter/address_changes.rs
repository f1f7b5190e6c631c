//! The addresses that a new configuration opens and closes.

use std::sync::Arc;

use super::generation::{PoolGeneration, PoolSpec, ResolvedConfig, matches_address};
use crate::address::Address;
use crate::listen::{self, ListenError, Listener, one_per_address};
use crate::os::lookups::Lookups;

/// Looks up the hosts of all addresses that no current listener has: a reload binds these.
///
/// # Errors
/// The first host that is not found.
pub(super) fn look_up_hosts<'a>(
    config: &ResolvedConfig<'_>,
    current: impl Iterator<Item = &'a PoolGeneration<'a>>,
    lookups: &Lookups,
) -> Result<(), ListenError> {
    let listeners: Vec<_> = current.flat_map(|generation| &generation.listeners).collect();
    let addresses = config.pool_specs.iter().flat_map(|spec| &spec.settings.bind);
    let is_new = |address: &&Address| !listeners.iter().any(|it| matches_address(it, address));
    addresses
        .filter(is_new)
        .try_for_each(|address| listen::look_up_host(lookups, address).map(drop))
}

/// Returns the addresses that a configuration opens, and those that it closes.
pub(super) fn address_changes<'a>(
    config: &ResolvedConfig<'_>,
    current: impl Iterator<Item = &'a PoolGeneration<'a>>,
) -> (Vec<String>, Vec<String>) {
    let listeners: Vec<_> = current.flat_map(|generation| &generation.listeners).collect();
    let is_activated = |it: &&&Arc<Listener>| it.is_socket_activated();
    let keeps_activated = |spec: &&PoolSpec<'_>| {
        spec.settings.source("bind").is_default()
            && !spec.settings.bind.is_empty()
            && listeners.iter().any(|it| it.is_socket_activated())
    };
    let specs = config.pool_specs.iter();
    let (activated, bound): (Vec<_>, Vec<_>) = specs.partition(keeps_activated);
    let addresses: Vec<&Address> = bound.iter().flat_map(|spec| &spec.settings.bind).collect();
    let is_new = |it: &&&Address| !listeners.iter().any(|known| matches_address(known, it));
    let mut opens: Vec<String> = addresses.iter().filter(is_new).map(ToString::to_string).collect();
    opens.dedup();
    let is_kept = |it: &&&Arc<Listener>| {
        addresses.iter().any(|address| matches_address(it, address))
            || (!activated.is_empty() && is_activated(it))
    };
    let closed = listeners.iter().filter(|it| !is_kept(it)).map(|it| it.as_ref());
    let closed = one_per_address(closed);
    (opens, closed.into_iter().map(|listener| listener.name().to_owned()).collect())
}
