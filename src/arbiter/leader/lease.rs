//! What the master and the child that keeps the lease have in common.

use std::path::PathBuf;
use std::time::Duration;

use crate::leader::identity::identity;
use crate::os::process::Pid;
use crate::os::{host, random};
use crate::settings::Settings;

/// Says to the child that its last report was read.
pub(super) const ACKNOWLEDGE: u8 = b'a';
/// Says to the child that no led worker is left, and that it ends the lease.
pub(super) const RELEASE: u8 = b'r';

/// The lease that the settings ask for.
#[cfg_attr(not(feature = "leader"), expect(dead_code, reason = "the child reads it"))]
pub(super) struct LeaseConfig {
    pub(super) store: StoreConfig,
    /// The key, or the name of the object.
    pub(super) key: String,
    pub(super) ttl: Duration,
    pub(super) tls: TlsFiles,
    /// How this master is called in the store, as long as it lives.
    pub(super) identity: String,
}

/// Where the lease is.
#[cfg_attr(not(feature = "leader"), expect(dead_code, reason = "the child reads it"))]
pub(super) enum StoreConfig {
    Etcd(EtcdCluster),
    Kubernetes(ApiServer),
}

/// The members of an etcd.
#[cfg_attr(not(feature = "leader"), expect(dead_code, reason = "the child reads it"))]
pub(super) struct EtcdCluster {
    pub(super) urls: Vec<String>,
    pub(super) login: Option<Login>,
}

/// An API server of Kubernetes. What is not set is that of the pod.
#[derive(Clone)]
#[cfg_attr(not(feature = "leader"), expect(dead_code, reason = "the child reads it"))]
pub(super) struct ApiServer {
    pub(super) url: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) token_file: Option<PathBuf>,
}

/// Files in PEM format.
#[derive(Clone)]
#[cfg_attr(not(feature = "leader"), expect(dead_code, reason = "the child reads it"))]
pub(super) struct TlsFiles {
    /// Who may certify the store.
    pub(super) authorities: Option<PathBuf>,
    /// The certificate of this master and its key.
    pub(super) client: Option<(PathBuf, PathBuf)>,
}

/// Who this master is to the store.
#[derive(Clone)]
#[cfg_attr(not(feature = "leader"), expect(dead_code, reason = "the child reads it"))]
pub(super) struct Login {
    pub(super) user: String,
    pub(super) password_file: PathBuf,
}

impl LeaseConfig {
    pub(super) fn new(settings: &Settings) -> Option<Self> {
        let (key, store) = StoreConfig::new(settings)?;
        let host = host::name().unwrap_or_default();
        let identity = identity(&host, Pid::this().as_raw(), random::seed());
        let client = settings.leader_client_cert.clone().zip(settings.leader_client_key.clone());
        let tls = TlsFiles { authorities: settings.leader_ca_file.clone(), client };
        Some(Self { store, key, ttl: settings.leader_ttl, tls, identity })
    }
}

impl StoreConfig {
    /// Returns the key or name of the lease, and where it is.
    fn new(settings: &Settings) -> Option<(String, Self)> {
        if let Some(name) = settings.leader_kubernetes_lease.clone() {
            let server = ApiServer {
                url: settings.leader_kubernetes_api.clone(),
                namespace: settings.leader_kubernetes_namespace.clone(),
                token_file: settings.leader_kubernetes_token_file.clone(),
            };
            return Some((name, Self::Kubernetes(server)));
        }
        let key = settings.leader_key.clone().filter(|_| !settings.leader_etcd.is_empty())?;
        let user = settings.leader_user.clone().zip(settings.leader_password_file.clone());
        let login = user.map(|(user, password_file)| Login { user, password_file });
        Some((key, Self::Etcd(EtcdCluster { urls: settings.leader_etcd.clone(), login })))
    }
}
