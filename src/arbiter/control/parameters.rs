//! The parameters of a command: in the query, or in a body that is a JSON object. Pure.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::http::Request;

/// The parameters of one request, by name.
#[derive(Debug, Default)]
pub(super) struct Parameters(BTreeMap<String, String>);

impl Parameters {
    /// Reads the parameters. Each of `known` may be given once.
    ///
    /// # Errors
    /// Why they are invalid, for the operator.
    pub(super) fn parse(request: &Request<'_>, known: &[&str]) -> Result<Self, String> {
        let mut parameters = Self::default();
        for (name, value) in request.query_pairs() {
            parameters.add(&name, value.into_owned(), known)?;
        }
        if request.body().trim_ascii().is_empty() {
            return Ok(parameters);
        }
        let body: Value = serde_json::from_slice(request.body())
            .map_err(|error| format!("the body is not JSON: {error}"))?;
        let Value::Object(body) = body else {
            return Err("the body is not a JSON object".to_owned());
        };
        let (pairs, count) = (count_pairs(request.body()), body.len());
        for (name, value) in body {
            let text = match value {
                Value::String(text) => text,
                Value::Number(_) | Value::Bool(_) => value.to_string(),
                Value::Null | Value::Array(_) | Value::Object(_) => {
                    return Err(format!("{name:?} is not a text, a number or a truth value"));
                }
            };
            parameters.add(&name, text, known)?;
        }
        if pairs > count {
            return Err("a key of the JSON object is given twice".to_owned());
        }
        Ok(parameters)
    }

    fn add(&mut self, name: &str, value: String, known: &[&str]) -> Result<(), String> {
        if !known.contains(&name) {
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(format!("unknown parameter {name:?}: there are {known}"));
        }
        match self.0.insert(name.to_owned(), value) {
            None => Ok(()),
            Some(_) => Err(format!("{name:?} is given twice")),
        }
    }

    /// Returns a text, if it is given.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }

    /// Returns whether a switch is on: `1`, `true`, or its bare name. Off without it.
    pub(super) fn switch(&self, name: &str, default: bool) -> Result<bool, String> {
        match self.0.get(name).map(String::as_str) {
            None => Ok(default),
            Some("1" | "true" | "") => Ok(true),
            Some("0" | "false") => Ok(false),
            Some(other) => Err(format!("{name} is 1 or 0, not {other:?}")),
        }
    }

    /// Returns a number, if it is given.
    pub(super) fn number(&self, name: &str) -> Result<Option<usize>, String> {
        let Some(text) = self.0.get(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| format!("{name} is a number, not {text:?}"))
    }
}

/// Returns how many pairs a valid JSON object has, nested ones included: its colons outside texts. The
/// parser keeps only the last of two pairs with the same key.
fn count_pairs(json: &[u8]) -> usize {
    let (mut count, mut is_text, mut is_escaped) = (0, false, false);
    for byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => is_text = !is_text,
            b':' if !is_text => count += 1,
            _ => (),
        }
    }
    count
}
