//! Requests to a store, with what proves who is at the other end.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use ureq::Agent;
use ureq::http::Request;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

use super::lease::TlsFiles;

/// The longest answer that is read, in bytes.
const ANSWER_MAX: u64 = 64 << 10;

/// What is asked of an object.
#[derive(Clone, Copy, Debug)]
pub(super) enum Method {
    Get,
    Post,
    Put,
}

impl Method {
    fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
        }
    }
}

/// The answer to a request.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// A text if it is no JSON.
    pub(super) body: Value,
}

impl Answer {
    fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Whether the request failed by the state of the object, not by who has sent it.
    fn is_about_object(&self) -> bool {
        [404, 409].contains(&self.status)
    }

    /// Returns the JSON object that is the answer.
    ///
    /// # Errors
    /// The status is no success, or it is no object: the reason, for the operator.
    pub(super) fn into_object(self) -> Result<Value, String> {
        if !self.is_success() {
            let reason = self.body["error"].as_str().or(self.body["message"].as_str());
            let reason = reason.or(self.body.as_str()).unwrap_or_default().trim();
            return Err(format!("status {}: {reason}", self.status));
        }
        match self.body {
            body @ Value::Object(_) => Ok(body),
            _ => Err("the answer is no JSON object".to_owned()),
        }
    }
}

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

    /// Sends a request, with a JSON object or without. `authorization` is what the header field of this
    /// name says.
    ///
    /// # Errors
    /// There is no answer, or none that is JSON: the reason, for the operator.
    pub(super) fn request(
        &mut self,
        method: Method,
        url: &str,
        authorization: Option<&str>,
        body: Option<&Value>,
    ) -> Result<Answer, String> {
        let answer = self.agent().and_then(|agent| send(agent, method, url, authorization, body));
        if answer.as_ref().is_ok_and(|it| it.is_success() || it.is_about_object()) {
            return answer;
        }
        self.agent = None;
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
    method: Method,
    url: &str,
    authorization: Option<&str>,
    body: Option<&Value>,
) -> Result<Answer, String> {
    let mut request = Request::builder().method(method.name()).uri(url);
    if let Some(authorization) = authorization {
        request = request.header("Authorization", authorization);
    }
    let answer = match body {
        None => request.body(()).map(|request| agent.run(request)),
        Some(body) => request
            .header("Content-Type", "application/json")
            .body(body.to_string())
            .map(|request| agent.run(request)),
    };
    let mut answer =
        answer.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    let status = answer.status().as_u16();
    let text = answer.body_mut().with_config().limit(ANSWER_MAX).read_to_string();
    let text = text.map_err(|error| error.to_string())?;
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    Ok(Answer { status, body })
}
