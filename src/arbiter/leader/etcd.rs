//! The lease in etcd, over the JSON gateway of version 3.

use std::fs;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::http_client::{Answer, HttpClient, Method};
use super::lease::{EtcdCluster, LeaseConfig, Login};
use crate::leader::keeper::{StoreError, request_timeout};
use crate::leader::key_lease::{Holder, LeaseId, LeaseStore};

/// The status if etcd does not know the token.
const UNAUTHENTICATED: u16 = 401;

/// The connection to a cluster. A request goes to the member that has answered the last one.
pub(super) struct Etcd {
    client: HttpClient,
    urls: Vec<String>,
    at: usize,
    key: String,
    name: String,
    login: Option<Login>,
    /// What the login has yielded.
    token: Option<String>,
}

impl Etcd {
    pub(super) fn new(lease: &LeaseConfig, cluster: &EtcdCluster) -> Self {
        Self {
            client: HttpClient::new(lease.tls.clone(), request_timeout(lease.ttl)),
            urls: cluster.urls.iter().map(|url| url.trim_end_matches('/').to_owned()).collect(),
            at: 0,
            key: STANDARD.encode(&lease.key),
            name: STANDARD.encode(&lease.identity),
            login: cluster.login.clone(),
            token: None,
        }
    }

    fn post(&mut self, path: &str, body: &Value) -> Result<Value, StoreError> {
        let url = self.urls[self.at].clone();
        let had_token = self.token.is_some();
        let mut answer = self.try_post(&url, path, body);
        if had_token && answer.as_ref().is_ok_and(|it| it.status == UNAUTHENTICATED) {
            self.token = None; // it has expired
            answer = self.try_post(&url, path, body);
        }
        let answer = answer.and_then(Answer::into_object);
        if answer.is_err() {
            self.token = None;
            self.at = (self.at + 1) % self.urls.len();
        }
        answer.map_err(|reason| format!("{url}: {reason}"))
    }

    fn try_post(&mut self, url: &str, path: &str, body: &Value) -> Result<Answer, String> {
        self.log_in(url)?;
        let url = format!("{url}/v3/{path}");
        self.client.request(Method::Post, &url, self.token.as_deref(), Some(body))
    }

    fn log_in(&mut self, url: &str) -> Result<(), String> {
        let Some(login) = self.login.as_ref().filter(|_| self.token.is_none()) else {
            return Ok(());
        };
        let path = login.password_file.display();
        let password = fs::read_to_string(&login.password_file);
        let password = password.map_err(|error| format!("{path}: {error}"))?;
        let body = json!({ "name": login.user, "password": password.trim_end_matches('\n') });
        let url = format!("{url}/v3/auth/authenticate");
        let answer = self.client.request(Method::Post, &url, None, Some(&body))?.into_object()?;
        let token = answer["token"].as_str().ok_or("the answer has no token")?;
        self.token = Some(token.to_owned());
        Ok(())
    }
}

/// Reads a 64-bit number, which the gateway writes as a text.
fn number(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.parse().ok())
}

/// Reads a time to live in seconds. The gateway leaves out a zero.
fn life(answer: &Value) -> Duration {
    let seconds = number(&answer["TTL"]).and_then(|it| u64::try_from(it).ok());
    Duration::from_secs(seconds.unwrap_or_default())
}

/// Reads the first key and value of a range.
fn read_holder(range: &Value) -> Result<Option<Holder>, StoreError> {
    let Some(found) = range["kvs"].get(0) else { return Ok(None) };
    let name = STANDARD.decode(found["value"].as_str().unwrap_or_default()).unwrap_or_default();
    let name = String::from_utf8_lossy(&name).into_owned();
    Ok(Some(Holder { name, lease: number(&found["lease"]).unwrap_or_default() }))
}

impl LeaseStore for Etcd {
    fn grant(&mut self, ttl: Duration) -> Result<(LeaseId, Duration), StoreError> {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let answer = self.post("lease/grant", &json!({ "TTL": seconds.to_string(), "ID": "0" }))?;
        match number(&answer["ID"]) {
            Some(lease) if lease != 0 => Ok((lease, life(&answer))),
            _ => Err("the answer has no lease".to_owned()),
        }
    }

    fn keep_alive(&mut self, lease: LeaseId) -> Result<Duration, StoreError> {
        let answer = self.post("lease/keepalive", &json!({ "ID": lease.to_string() }))?;
        match &answer["result"] {
            result if number(&result["ID"]) == Some(lease) => Ok(life(result)),
            _ => Err("the answer is about another lease".to_owned()),
        }
    }

    fn holder(&mut self) -> Result<Option<Holder>, StoreError> {
        let answer = self.post("kv/range", &json!({ "key": self.key }))?;
        read_holder(&answer)
    }

    fn acquire(&mut self, lease: LeaseId) -> Result<Holder, StoreError> {
        let own = json!({ "key": self.key, "value": self.name, "lease": lease.to_string() });
        let request = json!({
            "compare": [{ "key": self.key, "target": "CREATE", "result": "EQUAL",
                "create_revision": "0" }],
            "success": [{ "request_put": own }, { "request_range": { "key": self.key } }],
            "failure": [{ "request_range": { "key": self.key } }],
        });
        let answer = self.post("kv/txn", &request)?;
        let ranges = answer["responses"].as_array().into_iter().flatten();
        let range = ranges.filter_map(|it| it.get("response_range")).next_back();
        let holder = range.map(read_holder).transpose()?.flatten();
        holder.ok_or_else(|| "the answer has no holder".to_owned())
    }

    fn revoke(&mut self, lease: LeaseId) -> Result<(), StoreError> {
        self.post("lease/revoke", &json!({ "ID": lease.to_string() })).map(drop)
    }
}
