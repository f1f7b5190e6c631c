//! The lease in Kubernetes: an object of the kind `Lease`, over the API server.

use std::env;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::http_client::{Answer, HttpClient, Method};
use super::lease::{ApiServer, LeaseConfig};
use crate::leader::keeper::{StoreError, request_timeout};
use crate::leader::record_lease::{Record, RecordStore, Terms};

/// Where a pod has its service account.
const ACCOUNT_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The numbers of a lease have 31 bits.
const NUMBER_MAX: u32 = i32::MAX as u32;

/// The status if the object has another version, or exists already.
const CONFLICT: u16 = 409;

const API_VERSION: &str = "coordination.k8s.io/v1";

/// The connection to an API server.
pub(super) struct Kubernetes {
    client: HttpClient,
    server: ApiServer,
    /// The URL of the server, or why it is not known.
    url: Result<String, StoreError>,
    name: String,
    /// The object that was read last. What it has besides `spec` stays.
    object: Option<Value>,
}

impl Kubernetes {
    pub(super) fn new(lease: &LeaseConfig, server: &ApiServer) -> Self {
        let variable = |name: &str| env::var(name).ok().filter(|it| !it.is_empty());
        let (mut tls, mut server) = (lease.tls.clone(), server.clone());
        let url = if let Some(url) = &server.url {
            Ok(url.trim_end_matches('/').to_owned())
        } else {
            let account = Path::new(ACCOUNT_DIR);
            tls.authorities.get_or_insert_with(|| account.join("ca.crt"));
            server.token_file.get_or_insert_with(|| account.join("token"));
            url_in_pod(variable)
        };
        Self {
            client: HttpClient::new(tls, request_timeout(lease.ttl)),
            server,
            url,
            name: lease.key.clone(),
            object: None,
        }
    }

    /// Sends a request about the leases, or about one of them. The token and the namespace are read anew
    /// each time: a token is renewed before it expires.
    fn request(
        &mut self,
        method: Method,
        lease: Option<&str>,
        body: Option<&Value>,
    ) -> Result<Answer, StoreError> {
        let url = self.url.clone()?;
        let namespace = self.namespace()?;
        let token = self.server.token_file.as_deref().map(read).transpose()?;
        let authorization = token.map(|token| format!("Bearer {token}"));
        let path = format!("{url}/apis/{API_VERSION}/namespaces/{namespace}/leases");
        let path = lease.map_or(path.clone(), |name| format!("{path}/{name}"));
        let answer = self.client.request(method, &path, authorization.as_deref(), body);
        answer.map_err(|reason| format!("{url}: {reason}"))
    }

    fn namespace(&self) -> Result<String, StoreError> {
        match &self.server.namespace {
            Some(namespace) => Ok(namespace.clone()),
            None => read(&Path::new(ACCOUNT_DIR).join("namespace"))
                .map_err(|reason| format!("{reason}: set leader_kubernetes_namespace")),
        }
    }

    /// Takes an object that the server has sent. Returns what it says.
    fn take(&mut self, answer: Answer) -> Result<Record, StoreError> {
        let object = answer.into_object()?;
        let record = read_record(&object, &self.name)?;
        self.object = Some(object);
        Ok(record)
    }
}

/// Returns the URL of the API server as a pod knows it, by its environment.
fn url_in_pod(variable: impl Fn(&str) -> Option<String>) -> Result<String, StoreError> {
    match (variable("KUBERNETES_SERVICE_HOST"), variable("KUBERNETES_SERVICE_PORT")) {
        (Some(host), Some(port)) if host.contains(':') => Ok(format!("https://[{host}]:{port}")),
        (Some(host), Some(port)) => Ok(format!("https://{host}:{port}")),
        _ => Err("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set, so this is no pod: set \
                  leader_kubernetes_api"
            .to_owned()),
    }
}

/// Whether the server says that it has no such object. Another server has no such path.
fn is_missing_object(answer: &Answer) -> bool {
    answer.status == 404 && answer.body["kind"] == "Status" && answer.body["reason"] == "NotFound"
}

/// Reads a file of one line.
fn read(path: &Path) -> Result<String, StoreError> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    match text.trim() {
        "" => Err(format!("{} is empty", path.display())),
        text => Ok(text.to_owned()),
    }
}

/// Reads a number as the server permits it, or nothing.
fn number(value: &Value) -> u32 {
    value.as_u64().and_then(|it| u32::try_from(it).ok()).unwrap_or_default().min(NUMBER_MAX)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Reads an object of the server.
fn read_record(object: &Value, name: &str) -> Result<Record, StoreError> {
    let (metadata, spec) = (&object["metadata"], &object["spec"]);
    let is_lease = object["kind"] == "Lease" && (spec.is_object() || spec.is_null());
    if !is_lease || metadata["name"] != name {
        return Err(format!("the answer is no lease {name:?}"));
    }
    let version = text(&metadata["resourceVersion"]);
    if version.is_empty() {
        return Err("the answer has no resourceVersion".to_owned());
    }
    let terms = Terms {
        holder: text(&spec["holderIdentity"]),
        seconds: number(&spec["leaseDurationSeconds"]),
        transitions: number(&spec["leaseTransitions"]),
    };
    Ok(Record { terms, version, renewed_at: text(&spec["renewTime"]) })
}

/// Puts terms into an object. The times are for people.
fn write_terms(object: &mut Value, terms: &Terms, now: &str) {
    let is_renewal = object["spec"]["holderIdentity"] == terms.holder.as_str();
    let spec = &mut object["spec"];
    spec["holderIdentity"] = json!(terms.holder);
    spec["leaseDurationSeconds"] = json!(terms.seconds);
    spec["leaseTransitions"] = json!(terms.transitions.min(NUMBER_MAX));
    spec["renewTime"] = json!(now);
    if !is_renewal {
        spec["acquireTime"] = json!(now);
    }
}

impl RecordStore for Kubernetes {
    fn read(&mut self) -> Result<Option<Record>, StoreError> {
        let name = self.name.clone();
        self.object = None;
        let answer = self.request(Method::Get, Some(&name), None)?;
        if is_missing_object(&answer) {
            return Ok(None);
        }
        self.take(answer).map(Some)
    }

    fn write(&mut self, found: Option<&Record>, terms: &Terms) -> Result<bool, StoreError> {
        let name = self.name.clone();
        let mut object = match (found, self.object.take()) {
            (None, _) => {
                json!({ "apiVersion": API_VERSION, "kind": "Lease", "metadata": { "name": name } })
            }
            // With its version: the server then writes it only if that is still the newest.
            (Some(found), Some(object))
                if object["metadata"]["resourceVersion"] == *found.version =>
            {
                object
            }
            (Some(_), _) => return Err("the lease was not read before".to_owned()),
        };
        let now = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
        write_terms(&mut object, terms, &now);
        let answer = match found {
            Some(_) => self.request(Method::Put, Some(&name), Some(&object))?,
            None => self.request(Method::Post, None, Some(&object))?,
        };
        // To a request to create an object, the server says so of the namespace.
        let is_deleted = found.is_some() && is_missing_object(&answer);
        if answer.status == CONFLICT || is_deleted {
            return Ok(false);
        }
        let written = self.take(answer)?;
        if written.terms.holder != terms.holder {
            return Err("the answer has another holder than the request".to_owned());
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_knows_the_server_by_its_environment() {
        let of = |host: &'static str| {
            move |name: &str| {
                let is_host = name == "KUBERNETES_SERVICE_HOST";
                (!host.is_empty()).then(|| (if is_host { host } else { "443" }).to_owned())
            }
        };
        assert_eq!(url_in_pod(of("10.0.0.1")).unwrap(), "https://10.0.0.1:443");
        assert_eq!(url_in_pod(of("fd00::1")).unwrap(), "https://[fd00::1]:443");
        assert!(url_in_pod(of("")).unwrap_err().ends_with("set leader_kubernetes_api"));
    }

    #[test]
    fn object_keeps_what_others_have_written_into_it() {
        let mut object = json!({
            "kind": "Lease",
            "metadata": { "name": "a", "resourceVersion": "7", "labels": { "b": "c" } },
        });
        let read = |object: &Value| read_record(object, "a").unwrap();
        let none = Terms { holder: String::new(), seconds: 0, transitions: 0 };
        assert_eq!(read(&object).terms, none, "without a spec");
        let own = Terms { holder: "x".to_owned(), seconds: 10, transitions: 1 };
        write_terms(&mut object, &own, "2026-01-01T00:00:00.000000Z");
        write_terms(&mut object, &own, "2026-01-01T00:00:01.000000Z");
        assert_eq!((read(&object).terms, &object["metadata"]["labels"]["b"]), (own, &json!("c")));
        let times = [&object["spec"]["acquireTime"], &object["spec"]["renewTime"]];
        assert_eq!(times, ["2026-01-01T00:00:00.000000Z", "2026-01-01T00:00:01.000000Z"]);
    }

    #[test]
    fn object_that_is_no_lease_is_rejected() {
        for object in [
            json!({}),
            json!({ "kind": "Lease", "metadata": { "name": "b", "resourceVersion": "7" } }),
            json!({ "kind": "Lease", "metadata": { "name": "a" } }),
            json!({ "kind": "Pod", "metadata": { "name": "a", "resourceVersion": "7" } }),
            json!({ "kind": "Lease", "metadata": { "name": "a", "resourceVersion": "7" }, "spec": "" }),
        ] {
            assert!(read_record(&object, "a").is_err(), "{object}");
        }
        let odd = json!({
            "kind": "Lease", "metadata": { "name": "a", "resourceVersion": "7" },
            "spec": { "holderIdentity": 1, "leaseDurationSeconds": -1, "leaseTransitions": 1e20 },
        });
        let none = Terms { holder: String::new(), seconds: 0, transitions: 0 };
        assert_eq!(read_record(&odd, "a").unwrap().terms, none);
    }
}
