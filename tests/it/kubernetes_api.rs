//! An API server of Kubernetes, as far as one Lease needs it: versions, conflicts, a token, TLS, and faults.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

/// What a request asks for.
pub struct Request {
    pub method: String,
    pub path: String,
    pub token: Option<String>,
    pub body: Value,
}

/// What a fault does to a request.
pub enum Fault {
    /// The connection is closed without an answer.
    Close,
    /// The request is carried out, and the connection is closed without an answer.
    CloseAfter,
    /// This is answered, and nothing is done.
    Answer(u16, Value),
}

type Faults = Box<dyn FnMut(&Request) -> Option<Fault> + Send>;

#[derive(Default)]
struct State {
    lease: Option<Value>,
    version: u64,
    token: Option<String>,
    faults: Option<Faults>,
    /// The statuses that were answered.
    statuses: Vec<u16>,
}

/// A server that ends with the test.
pub struct ApiServer {
    pub url: String,
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/shop/leases";

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl ApiServer {
    /// Starts a server without TLS, as `kubectl proxy` is one.
    pub fn start() -> Self {
        Self::with("http", Some)
    }

    /// Starts a server with the certificate `api.pem` and its key in this directory, that expects a token.
    pub fn start_tls(dir: &Path, token: &str) -> Self {
        let certificates = CertificateDer::pem_file_iter(dir.join("api.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(dir.join("api.key")).unwrap();
        let config =
            ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(certificates.map(Result::unwrap).collect(), key)
                .unwrap();
        let config = Arc::new(config);
        let server = Self::with("https", move |stream| {
            Some(StreamOwned::new(ServerConnection::new(Arc::clone(&config)).ok()?, stream))
        });
        server.expect_token(token);
        server
    }

    fn with<T: Read + Write>(
        scheme: &str,
        accept: impl Fn(TcpStream) -> Option<T> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let (shared, accept) = (Arc::clone(&state), Arc::new(accept));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (state, accept) = (Arc::clone(&shared), Arc::clone(&accept));
                thread::spawn(move || accept(stream).map(|stream| serve(stream, &state)));
            }
        });
        Self { url: format!("{scheme}://{address}"), address, state }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn expect_token(&self, token: &str) {
        lock(&self.state).token = Some(token.to_owned());
    }

    /// From now on, this decides which requests fail.
    pub fn fault(&self, faults: impl FnMut(&Request) -> Option<Fault> + Send + 'static) {
        lock(&self.state).faults = Some(Box::new(faults));
    }

    pub fn heal(&self) {
        lock(&self.state).faults = None;
    }

    /// Returns the lease.
    pub fn lease(&self) -> Option<Value> {
        lock(&self.state).lease.clone()
    }

    /// Changes the lease, as `kubectl edit` does.
    pub fn edit(&self, edit: impl FnOnce(&mut Option<Value>)) {
        let mut state = lock(&self.state);
        edit(&mut state.lease);
        state.version += 1;
        let version = state.version.to_string();
        if let Some(lease) = &mut state.lease {
            lease["metadata"]["resourceVersion"] = version.into();
        }
    }

    /// Returns how often this status was answered.
    pub fn count(&self, status: u16) -> usize {
        lock(&self.state).statuses.iter().filter(|it| **it == status).count()
    }
}

fn serve(mut stream: impl Read + Write, state: &Mutex<State>) {
    while let Some(request) = read_request(&mut stream) {
        let answer = {
            let mut state = lock(state);
            let fault = state.faults.as_mut().and_then(|faults| faults(&request));
            let answer = match fault {
                None => Some(state.answer(&request)),
                Some(Fault::Close) => None,
                Some(Fault::CloseAfter) => {
                    state.answer(&request);
                    None
                }
                Some(Fault::Answer(status, body)) => Some((status, body)),
            };
            state.statuses.extend(answer.as_ref().map(|(status, _)| *status));
            answer
        };
        let Some((status, body)) = answer else { return };
        let body = body.to_string();
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        if stream.write_all((head + &body).as_bytes()).and_then(|()| stream.flush()).is_err() {
            return;
        }
    }
}

fn read_request(stream: &mut impl Read) -> Option<Request> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        bytes.push(byte[0]);
    }
    let head = String::from_utf8(bytes).ok()?;
    let mut words = head.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let field = |name: &str| {
        let line = head.lines().find(|it| it.to_ascii_lowercase().starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let mut body = vec![0; field("content-length").map_or(Some(0), |it| it.parse().ok())?];
    stream.read_exact(&mut body).ok()?;
    let token = field("authorization").and_then(|it| Some(it.strip_prefix("Bearer ")?.to_owned()));
    Some(Request { method, path, token, body: serde_json::from_slice(&body).unwrap_or_default() })
}

/// Returns the answer of a server that does not do it.
pub fn failure(status: u16, reason: &str, message: &str) -> (u16, Value) {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason,
        "message": message, "code": status,
    });
    (status, body)
}

impl State {
    fn answer(&mut self, request: &Request) -> (u16, Value) {
        if self.token.is_some() && request.token != self.token {
            return failure(401, "Unauthorized", "Unauthorized");
        }
        let name = match (request.method.as_str(), request.path.strip_prefix(PATH)) {
            ("POST", Some("")) => "",
            ("GET" | "PUT", Some(name)) if name.starts_with('/') => &name[1..],
            _ => return (404, json!("404 page not found")),
        };
        let newest =
            self.lease.as_ref().filter(|it| name.is_empty() || it["metadata"]["name"] == *name);
        let version = newest.map(|it| it["metadata"]["resourceVersion"].clone());
        match (request.method.as_str(), version) {
            ("POST", Some(_)) => failure(409, "AlreadyExists", "leases already exists"),
            ("GET" | "PUT", None) => failure(404, "NotFound", "leases not found"),
            ("GET", Some(_)) => (200, newest.cloned().unwrap_or_default()),
            ("PUT", Some(version)) if request.body["metadata"]["resourceVersion"] != version => {
                failure(409, "Conflict", "the object has been modified")
            }
            (method, _) => self.write(&request.body, if method == "POST" { 201 } else { 200 }),
        }
    }

    fn write(&mut self, body: &Value, status: u16) -> (u16, Value) {
        let spec = &body["spec"];
        let is_time = |it: &Value| {
            // 2006-01-02T15:04:05.000000Z
            it.as_str().is_some_and(|it| it.len() == 27 && it.as_bytes()[19] == b'.')
        };
        let is_valid = body["apiVersion"] == "coordination.k8s.io/v1"
            && body["kind"] == "Lease"
            && spec["holderIdentity"].is_string()
            && spec["leaseDurationSeconds"].as_u64().is_some_and(|it| it > 0)
            && spec["leaseTransitions"].is_u64()
            && is_time(&spec["renewTime"])
            && is_time(&spec["acquireTime"]);
        if !is_valid {
            return failure(422, "Invalid", "the lease is invalid");
        }
        self.version += 1;
        let mut lease = body.clone();
        lease["metadata"]["namespace"] = json!("shop");
        lease["metadata"]["uid"] = json!("5d7cbd8d");
        lease["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.lease = Some(lease.clone());
        (status, lease)
    }
}
