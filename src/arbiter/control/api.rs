//! From a request to a response. Pure: it sees a snapshot, and passes commands on to the loop.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::commands::{self, CommandParser};
use super::events;
use super::failure::failure;
use super::metrics::Format;
use super::page;
use super::places::WaitPlaces;
use super::view::{Shared, SharedReadiness, SharedView, View};
use crate::arbiter::operations::SharedOperations;
use crate::http::{Handler, Request, Response};
use crate::log::EventRing;

/// Where a request has come from, which decides what it may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// `control_socket`: a unix socket for this user and root.
    Control,
    /// `metrics_bind`: any client that can connect, a browser among them.
    Metrics,
}

/// Answers the requests of one endpoint.
pub(super) struct Api {
    pub(super) endpoint: Endpoint,
    pub(super) view: SharedView,
    pub(super) readiness: SharedReadiness,
    pub(super) operations: SharedOperations,
    /// The last records of the log, once the master has one.
    pub(super) events: Arc<OnceLock<Arc<EventRing>>>,
    /// The places of the clients of this endpoint that wait.
    pub(super) places: WaitPlaces,
    /// Which client the loop serves now.
    pub(super) client: Arc<Mutex<String>>,
    /// The names by which browsers may ask `metrics_bind` for more than probes and metrics.
    pub(super) hosts: Vec<String>,
}

/// A path, and what it answers. `docs/openapi.json` describes each.
pub(super) struct Route {
    /// `{id}` stands for a number.
    pub(super) path: &'static str,
    audience: Audience,
    /// The names of all parameters.
    pub(super) parameters: &'static [&'static str],
    /// Every status of its responses, beside those that any request may get: 400 for a malformed one,
    /// and 405.
    #[allow(dead_code, reason = "a test compares it with the description")]
    pub(super) statuses: &'static [u16],
    pub(super) answer: Answer,
}

/// Who may ask for a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Audience {
    /// Clients of both endpoints, by any name for the host: scrapers and probes choose their own.
    Anyone,
    /// Clients of both endpoints. At `metrics_bind`, the host must be known.
    KnownHost,
    /// Clients of `control_socket`: settings and results of commands may contain secrets.
    ControlSocket,
}

/// How a path answers.
#[derive(Clone, Copy)]
pub(super) enum Answer {
    /// GET and HEAD, from a view of the master.
    Show(fn(&View, Format) -> Response),
    /// GET and HEAD, from the readiness, which costs less than a view.
    Readiness,
    /// GET and HEAD, from what needs no view.
    Read(fn(&Api, &Request<'_>) -> Response),
    /// POST.
    Command(CommandParser),
}

/// Beside its own, a command has this parameter.
pub(super) const WAIT: &str = "wait";

pub(super) const ROUTES: &[Route] = &[
    show("/", Audience::KnownHost, &[200, 403], |view, _| page::response(view.page())),
    read("/healthz", Audience::Anyone, &[200, 403], |_, _| Response::text("ok\n")),
    Route {
        path: "/readyz",
        audience: Audience::Anyone,
        parameters: &[],
        statuses: &[200, 403, 503],
        answer: Answer::Readiness,
    },
    show("/metrics", Audience::Anyone, &[200, 403], |view, format| {
        Response::new(200, view.metrics(format))
            .header("Content-Type", format.content_type())
            .header("Vary", "Accept")
    }),
    show("/v1/status", Audience::KnownHost, &[200, 403], |view, _| Response::json(view.status())),
    show("/v1/config", Audience::ControlSocket, &[200, 403], |view, _| {
        Response::json(view.config())
    }),
    Route {
        path: "/v1/events",
        audience: Audience::KnownHost,
        parameters: &["after", "last", "follow"],
        statuses: &[200, 400, 403, 404, 503],
        answer: Answer::Read(Api::events),
    },
    read("/v1/openapi.json", Audience::KnownHost, &[200, 403], |_, _| Response::json(OPENAPI)),
    read("/v1/operations", Audience::ControlSocket, &[200, 403], |api, _| {
        Response::json(format!("{}\n", api.operations.lock().list_json()))
    }),
    read("/v1/operations/{id}", Audience::ControlSocket, &[200, 403, 404], Api::operation),
    command("/v1/reload", &[WAIT, "dry_run"], TO_MASTER, commands::reload),
    command("/v1/upgrade", &[WAIT], TO_MASTER, commands::upgrade),
    command("/v1/scale", &[WAIT, "pool", "workers"], TO_POOL, commands::scale),
    command("/v1/recycle", &[WAIT, "pool", "slot"], TO_POOL, commands::recycle),
    command("/v1/drain", &[WAIT, "pool", "slot"], TO_POOL, commands::drain),
    command("/v1/undrain", &[WAIT, "pool", "slot"], TO_POOL, commands::undrain),
    command("/v1/stop", &[WAIT, "now"], TO_MASTER, commands::stop),
    command("/v1/reopen", &[WAIT], TO_MASTER, commands::reopen),
];

/// The statuses of commands.
const TO_MASTER: &[u16] = &[200, 202, 400, 403, 409, 422, 503];
/// The statuses of commands to a pool, which may not exist.
const TO_POOL: &[u16] = &[200, 202, 400, 403, 404, 409, 422, 503];

/// The description of all paths.
pub(super) const OPENAPI: &str = include_str!("../../../docs/openapi.json");

const fn show(
    path: &'static str,
    audience: Audience,
    statuses: &'static [u16],
    answer: fn(&View, Format) -> Response,
) -> Route {
    Route { path, audience, parameters: &[], statuses, answer: Answer::Show(answer) }
}

const fn read(
    path: &'static str,
    audience: Audience,
    statuses: &'static [u16],
    answer: fn(&Api, &Request<'_>) -> Response,
) -> Route {
    Route { path, audience, parameters: &[], statuses, answer: Answer::Read(answer) }
}

const fn command(
    path: &'static str,
    parameters: &'static [&'static str],
    statuses: &'static [u16],
    parse: CommandParser,
) -> Route {
    let (audience, answer) = (Audience::ControlSocket, Answer::Command(parse));
    Route { path, audience, parameters, statuses, answer }
}

impl Handler for Api {
    fn handle(&self, request: &Request<'_>) -> Response {
        let response = match self.find(request) {
            Ok(route) => self.answer(route, request),
            Err((status, reason, allowed)) => {
                let response = self.error(request, status, &reason);
                if allowed.is_empty() { response } else { response.header("Allow", allowed) }
            }
        };
        response.header("Cache-Control", "no-store").header("X-Content-Type-Options", "nosniff")
    }
}

/// Why a request is refused: a status, a reason, and the methods that are allowed.
type Refused = (u16, String, &'static str);

impl Api {
    /// Finds the path of a request, and checks who may ask for it.
    fn find(&self, request: &Request<'_>) -> Result<&'static Route, Refused> {
        let Some(route) = ROUTES.iter().find(|route| route.matches(request.path())) else {
            let paths: Vec<_> = ROUTES.iter().map(|route| route.path).collect();
            let reason = format!("no such path: the paths are {}", paths.join(", "));
            return Err((404, reason, ""));
        };
        let is_command = matches!(route.answer, Answer::Command(_));
        let allowed = if is_command { "POST" } else { "GET, HEAD" };
        if !allowed.split(", ").any(|method| method == request.method()) {
            return Err((405, "method not allowed".to_owned(), allowed));
        }
        // No page of this interface sends commands.
        let is_foreign = |origin| is_command || !is_own_origin(origin, request);
        if request.header("Origin").is_some_and(is_foreign) {
            return Err((403, "requests from other origins are refused".to_owned(), ""));
        }
        if route.audience != Audience::Anyone && is_cross_site(route, request) {
            return Err((403, "requests from pages of other sites are refused".to_owned(), ""));
        }
        match (self.endpoint, route.audience) {
            (Endpoint::Metrics, Audience::ControlSocket) => {
                let reason = format!("{} is answered at control_socket only", route.path);
                Err((403, reason, ""))
            }
            (Endpoint::Metrics, Audience::KnownHost) if !self.is_known_host(request) => {
                let reason = "unknown host: use an IP address, or add the name to metrics_hosts";
                Err((403, reason.to_owned(), ""))
            }
            _ => Ok(route),
        }
    }

    fn answer(&self, route: &Route, request: &Request<'_>) -> Response {
        match route.answer {
            Answer::Show(answer) => {
                let format = Format::accepted_by(request.header("Accept").unwrap_or_default());
                once_collected(&self.view, move |view| answer(view, format))
            }
            Answer::Readiness => once_collected(&self.readiness, readiness),
            Answer::Read(answer) => answer(self, request),
            Answer::Command(parse) => {
                let by = self.client.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let parser = (route.parameters, parse);
                commands::respond(request, parser, &self.operations, &self.places, by)
            }
        }
    }

    /// Returns an error, as JSON if the path is one of programs.
    fn error(&self, request: &Request<'_>, status: u16, reason: &str) -> Response {
        if request.path().starts_with("/v1/") {
            failure(status, reason)
        } else {
            plain(status, reason)
        }
    }

    fn operation(&self, request: &Request<'_>) -> Response {
        let id = request.path().rsplit('/').next().and_then(|id| id.parse().ok());
        match id.and_then(|id| self.operations.lock().json(id)) {
            Some(json) => Response::json(format!("{json}\n")),
            None => failure(404, "no such operation, or it is no longer remembered"),
        }
    }

    fn events(&self, request: &Request<'_>) -> Response {
        let Some(events) = self.events.get() else {
            return failure(404, "no records are kept");
        };
        let answer = events::answer(events, request, &self.places);
        answer.unwrap_or_else(|reason| failure(400, &reason))
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

impl Route {
    fn matches(&self, path: &str) -> bool {
        match self.path.strip_suffix("{id}") {
            Some(prefix) => {
                path.strip_prefix(prefix).is_some_and(|id| !id.is_empty() && !id.contains('/'))
            }
            None => self.path == path,
        }
    }
}

/// Answers from the value of this turn, once the loop has collected it.
fn once_collected<T: Send + Sync + 'static>(
    shared: &Shared<T>,
    answer: impl Fn(&T) -> Response + Send + 'static,
) -> Response {
    match shared.current() {
        Ok(value) => answer(&value),
        Err(number) => {
            let shared = shared.clone();
            Response::later(move || Some(answer(&*shared.since(number)?)))
        }
    }
}

fn readiness(unready_reason: &Option<String>) -> Response {
    match unready_reason {
        None => Response::text("ready\n"),
        Some(reason) => plain(503, reason),
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

/// Returns whether a page of another origin has caused a request, as far as the browser says. A link
/// to the page is allowed.
fn is_cross_site(route: &Route, request: &Request<'_>) -> bool {
    let field = |name| request.header(name).unwrap_or_default();
    let is_link = route.path == "/"
        && field("Sec-Fetch-Mode") == b"navigate"
        && field("Sec-Fetch-Dest") == b"document";
    !is_link && matches!(field("Sec-Fetch-Site"), b"cross-site" | b"same-site")
}

fn plain(status: u16, reason: &str) -> Response {
    Response::text(format!("{reason}\n")).with_status(status)
}
