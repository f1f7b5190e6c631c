//! Requests to a store, with what proves who is at the other end.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use ureq::Agent;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

use super::lease::TlsFiles;

/// The longest answer that is read, in bytes.
const ANSWER_MAX: u64 = 64 << 10;

/// A client that reads its certificates anew after each failure, since they may have been renewed.
pub(super) struct HttpClient {
    tls: TlsFiles,
    timeout: Duration,
    agent: Option<Agent>,
}

impl HttpClient {
    pub(super) fn new(tls: TlsFiles, timeout: Duration) -> Self {
        Self { tls, timeout, agent: None }
    }

    /// Posts a JSON object, and returns the object that is the answer. `authorization` is what the header
    /// field of this name says.
    ///
    /// # Errors
    /// The reason, for the operator.
    pub(super) fn post(
        &mut self,
        url: &str,
        authorization: Option<&str>,
        body: &Value,
    ) -> Result<Value, String> {
        let answer = self.agent().and_then(|agent| send(agent, url, authorization, body));
        if answer.is_err() {
            self.agent = None;
        }
        answer
    }

    fn agent(&mut self) -> Result<&Agent, String> {
        let agent = match self.agent.take() {
            Some(agent) => agent,
            None => Agent::config_builder()
                .timeout_global(Some(self.timeout))
                .http_status_as_error(false)
                .max_redirects(0)
                .proxy(None)
                .tls_config(tls_config(&self.tls)?)
                .build()
                .into(),
        };
        Ok(self.agent.insert(agent))
    }
}

fn tls_config(files: &TlsFiles) -> Result<TlsConfig, String> {
    let mut config = TlsConfig::builder();
    if let Some(path) = &files.authorities {
        let certificates = read_certificates(path)?;
        config = config.root_certs(RootCerts::Specific(Arc::new(certificates)));
    }
    if let Some((certificate, key)) = &files.client {
        let certificates = read_certificates(certificate)?;
        let key_text = read(key)?;
        let key = PrivateKey::from_pem(&key_text).map_err(|error| at(key, &error.to_string()))?;
        config = config.client_cert(Some(ClientCert::new_with_certs(&certificates, key)));
    }
    Ok(config.build())
}

fn read_certificates(path: &Path) -> Result<Vec<Certificate<'static>>, String> {
    let text = read(path)?;
    let items = parse_pem(&text).collect::<Result<Vec<_>, _>>();
    let items = items.map_err(|error| at(path, &error.to_string()))?;
    let certificates: Vec<_> = items
        .into_iter()
        .filter_map(|item| match item {
            PemItem::Certificate(certificate) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(at(path, "has no certificate"));
    }
    Ok(certificates)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| at(path, &error.to_string()))
}

fn at(path: &Path, reason: &str) -> String {
    format!("{}: {reason}", path.display())
}

fn send(
    agent: &Agent,
    url: &str,
    authorization: Option<&str>,
    body: &Value,
) -> Result<Value, String> {
    let mut request = agent.post(url).content_type("application/json");
    if let Some(authorization) = authorization {
        request = request.header("Authorization", authorization);
    }
    let mut answer = request.send(body.to_string()).map_err(|error| error.to_string())?;
    let status = answer.status();
    let text = answer.body_mut().with_config().limit(ANSWER_MAX).read_to_string();
    let text = text.map_err(|error| error.to_string())?;
    let value: Value = serde_json::from_str(&text).unwrap_or_default();
    if !status.is_success() {
        let reason = value["error"].as_str().or(value["message"].as_str()).unwrap_or(text.trim());
        return Err(format!("status {}: {reason}", status.as_u16()));
    }
    if value.is_object() { Ok(value) } else { Err("the answer is no JSON object".to_owned()) }
}
