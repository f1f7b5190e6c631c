//! What answers the requests of the control interface, whichever client asks.

use std::sync::{Arc, Mutex, OnceLock};

use super::api::{Api, Endpoint};
use super::places::WaitPlaces;
use super::view::{SharedReadiness, SharedView};
use crate::address::Address;
use crate::app::Limits;
use crate::arbiter::operations::SharedOperations;
use crate::http::Http;
use crate::log::EventRing;
use crate::os::host;
use crate::settings::Settings;

/// How large the body of a command may be.
const BODY_BYTES_MAX: usize = 64 << 10;

/// The services of both endpoints. It outlives the [`ControlServer`](super::ControlServer), whose
/// connections borrow it.
pub(crate) struct ControlService {
    pub(super) addresses: Vec<(Endpoint, Address)>,
    pub(super) statsd: Option<Address>,
    control: Http<Api>,
    metrics: Http<Api>,
    pub(super) view: SharedView,
    pub(super) readiness: SharedReadiness,
    pub(super) operations: SharedOperations,
    pub(super) events: Arc<OnceLock<Arc<EventRing>>>,
    /// Which client of `control_socket` is served now.
    pub(super) client: Arc<Mutex<String>>,
    /// The users that may connect to `control_socket`, beside root and the master's own.
    pub(super) users: Vec<u32>,
}

impl ControlService {
    /// Creates the services that the settings ask for. `users` are those of `control_users`.
    pub(crate) fn new(settings: &Settings, users: Vec<u32>) -> Self {
        let control = settings.control_socket.clone().map(Address::Unix);
        let addresses = control.map(|address| (Endpoint::Control, address)).into_iter();
        let metrics = settings.metrics_bind.clone();
        let addresses = addresses.chain(metrics.map(|address| (Endpoint::Metrics, address)));
        let view = SharedView::default();
        let readiness = SharedReadiness::default();
        let events = Arc::<OnceLock<Arc<EventRing>>>::default();
        let operations = SharedOperations::default();
        let client = Arc::<Mutex<String>>::default();
        let mut hosts = settings.metrics_hosts.clone();
        hosts.extend(host::name());
        let service = |endpoint| {
            let max_body_bytes = match endpoint {
                Endpoint::Control => BODY_BYTES_MAX,
                Endpoint::Metrics => 0,
            };
            let limits = Limits { max_head_bytes: 8 << 10, max_body_bytes, ..Limits::default() };
            let api = Api {
                endpoint,
                view: view.clone(),
                readiness: readiness.clone(),
                operations: operations.clone(),
                events: Arc::clone(&events),
                places: WaitPlaces::default(),
                client: Arc::clone(&client),
                hosts: hosts.clone(),
            };
            Http::new(api, limits)
        };
        Self {
            addresses: addresses.collect(),
            statsd: settings.statsd_host.clone(),
            control: service(Endpoint::Control),
            metrics: service(Endpoint::Metrics),
            view,
            readiness,
            operations,
            events,
            client,
            users,
        }
    }

    pub(super) fn http(&self, endpoint: Endpoint) -> &Http<Api> {
        match endpoint {
            Endpoint::Control => &self.control,
            Endpoint::Metrics => &self.metrics,
        }
    }
}
