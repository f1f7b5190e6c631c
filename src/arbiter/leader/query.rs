//! Asking the store once, without a lease: it changes nothing there.

use super::etcd::Etcd;
use super::kubernetes::Kubernetes;
use super::lease::{EtcdCluster, LeaseConfig, StoreConfig};
use crate::leader::identity::readable;
use crate::leader::keeper::StoreError;
use crate::leader::key_lease::LeaseStore;
use crate::leader::record_lease::RecordStore;
use crate::settings::Settings;

/// Asks each member of the store that the settings name who leads. Returns nothing if they name none. Waits
/// for each member at most as long as a request of the lease may take.
pub(crate) fn ask_store(settings: &Settings) -> Vec<Result<Option<String>, StoreError>> {
    let Some(lease) = LeaseConfig::new(settings) else { return Vec::new() };
    let shown = |holder: String| readable(&holder).to_owned();
    match &lease.store {
        StoreConfig::Etcd(EtcdCluster { urls, login }) => {
            let ask = |url: &String| {
                let member = EtcdCluster { urls: vec![url.clone()], login: login.clone() };
                let holder = Etcd::new(&lease, &member).holder()?;
                Ok(holder.map(|holder| shown(holder.name)))
            };
            urls.iter().map(ask).collect()
        }
        StoreConfig::Kubernetes(server) => {
            let holder = Kubernetes::new(&lease, server).read().map(|record| {
                let holder = record.map(|record| record.terms.holder);
                holder.filter(|it| !it.is_empty()).map(shown)
            });
            vec![holder]
        }
    }
}
