//! From a request to a response. Pure: it sees one snapshot, and changes nothing.

use std::io::Cursor;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::events;
use super::metrics::{self, Format};
use super::page;
use super::places::WaitPlaces;
use crate::arbiter::snapshot::Snapshot;
use crate::http::{Body, Handler, Request, Response};

/// Where a request has come from, which decides what it may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// `control_socket`: a unix socket for this user and root.
    Control,
    /// `metrics_bind`: any client that can connect, a browser among them.
    Metrics,
}

/// What all requests of one turn see.
#[derive(Default)]
pub(super) struct View {
    snapshot: Snapshot,
    status: OnceLock<Arc<[u8]>>,
    metrics: OnceLock<Arc<[u8]>>,
    open_metrics: OnceLock<Arc<[u8]>>,
    page: OnceLock<Arc<[u8]>>,
}

impl View {
    pub(super) fn new(snapshot: Snapshot) -> Self {
        Self { snapshot, ..Self::default() }
    }

    fn status(&self) -> Body {
        shared_body(&self.status, || format!("{}\n", self.snapshot.to_json()))
    }

    fn metrics(&self, format: Format) -> Body {
        let rendered = match format {
            Format::Text => &self.metrics,
            Format::OpenMetrics => &self.open_metrics,
        };
        shared_body(rendered, || metrics::render(&self.snapshot, format))
    }

    fn page(&self) -> Body {
        shared_body(&self.page, || page::render(&self.snapshot))
    }
}

/// Returns a body that is rendered for the first request. All clients share its bytes: slow ones do
/// not each hold a copy.
fn shared_body(bytes: &OnceLock<Arc<[u8]>>, render: impl FnOnce() -> String) -> Body {
    let bytes = bytes.get_or_init(|| render().into_bytes().into());
    Body::reader(Cursor::new(Arc::clone(bytes)), Some(bytes.len() as u64))
}

/// The view that the handlers of both endpoints share.
pub(super) type SharedView = Arc<Mutex<Arc<View>>>;

/// Answers the requests of one endpoint.
pub(super) struct Api {
    pub(super) endpoint: Endpoint,
    pub(super) view: SharedView,
    /// The places of the clients of this endpoint that wait.
    pub(super) places: WaitPlaces,
    /// The names by which browsers may ask `metrics_bind` for more than probes and metrics.
    pub(super) hosts: Vec<String>,
}

/// A path, and its answer to GET.
struct Route {
    path: &'static str,
    /// Whether any name may be used for the host: scrapers and probes choose their own.
    any_host: bool,
    answer: fn(&Api, &View, &Request<'_>) -> Response,
}

const ROUTES: &[Route] = &[
    Route { path: "/", any_host: false, answer: |_, view, _| page::response(view.page()) },
    Route { path: "/healthz", any_host: true, answer: |_, _, _| Response::text("ok\n") },
    Route { path: "/readyz", any_host: true, answer: |_, view, _| readiness(view) },
    Route {
        path: "/metrics",
        any_host: true,
        answer: |_, view, request| {
            let format = Format::accepted_by(request.header("Accept").unwrap_or_default());
            Response::new(200, view.metrics(format))
                .header("Content-Type", format.content_type())
                .header("Vary", "Accept")
        },
    },
    Route {
        path: "/v1/status",
        any_host: false,
        answer: |_, view, _| Response::json(view.status()),
    },
    Route { path: "/v1/events", any_host: false, answer: Api::events },
];

impl Handler for Api {
    fn handle(&self, request: &Request<'_>) -> Response {
        self.answer(request)
            .header("Cache-Control", "no-store")
            .header("X-Content-Type-Options", "nosniff")
    }
}

impl Api {
    fn answer(&self, request: &Request<'_>) -> Response {
        let Some(route) = ROUTES.iter().find(|route| route.path == request.path()) else {
            let paths: Vec<_> = ROUTES.iter().map(|route| route.path).collect();
            return plain(404, &format!("no such path: the paths are {}", paths.join(", ")));
        };
        if !matches!(request.method(), "GET" | "HEAD") {
            return plain(405, "method not allowed").header("Allow", "GET, HEAD");
        }
        if request.header("Origin").is_some_and(|origin| !is_own_origin(origin, request)) {
            return plain(403, "requests from other origins are refused");
        }
        if self.endpoint == Endpoint::Metrics && !route.any_host && !self.is_known_host(request) {
            return plain(403, "unknown host: use an IP address, or add the name to metrics_hosts");
        }
        let view = Arc::clone(&self.view.lock().unwrap_or_else(PoisonError::into_inner));
        (route.answer)(self, &view, request)
    }

    fn events(&self, view: &View, request: &Request<'_>) -> Response {
        let Some(events) = &view.snapshot.events else { return plain(404, "no records are kept") };
        let answer = events::answer(events, request, &self.places);
        answer.unwrap_or_else(|reason| plain(400, &reason))
    }

    /// Returns whether a browser cannot have been led here by a name that an attacker controls (DNS
    /// rebinding).
    fn is_known_host(&self, request: &Request<'_>) -> bool {
        let Some(host) = host_of(request) else { return true }; // HTTP/1.0: no browser sends it
        let name = host_name(host);
        let is_ip = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        let is_known = |known: &str| known.eq_ignore_ascii_case(name);
        is_ip || is_known("localhost") || self.hosts.iter().any(|known| is_known(known))
    }
}

fn readiness(view: &View) -> Response {
    match view.snapshot.unready_reason() {
        None => Response::text("ready\n"),
        Some(reason) => plain(503, &reason),
    }
}

fn host_of<'a>(request: &Request<'a>) -> Option<&'a str> {
    request.header("Host").map(|host| std::str::from_utf8(host).unwrap_or(""))
}

/// Returns a host without its port.
fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) | None => host,
    }
}

/// Returns whether an `Origin` field names this server.
fn is_own_origin(origin: &[u8], request: &Request<'_>) -> bool {
    let host = host_of(request).filter(|host| !host.is_empty());
    host.is_some_and(|host| origin.eq_ignore_ascii_case(format!("http://{host}").as_bytes()))
}

fn plain(status: u16, reason: &str) -> Response {
    Response::text(format!("{reason}\n")).with_status(status)
}
