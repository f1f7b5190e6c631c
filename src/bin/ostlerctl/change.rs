//! Asks the master for a change, and waits until it has come true or has failed.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::failure::Failure;
use super::http::{Client, HttpError, ResponseStream};
use super::operation::{Operation, State};
use super::sse::{Decoder, Event};

/// How often a waiting command is told that time passes.
const TICK: Duration = Duration::from_secs(1);
/// How long the master may be silent. It sends a comment every 15 s.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Returns the target of a command with its parameters, such as `/v1/scale?workers=%2B1`.
pub(crate) fn target(command: &str, parameters: &[(&str, &str)]) -> String {
    let mut target = format!("/v1/{command}");
    for (index, (name, value)) in parameters.iter().enumerate() {
        target.push(if index == 0 { '?' } else { '&' });
        target.push_str(name);
        target.push('=');
        target.push_str(&percent_encode(value));
    }
    target
}

/// Escapes all but what is never special in a URI (RFC 3986, section 2.3).
pub(crate) fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Posts to a target, and waits for the end of the operation. Calls `report` when the operation has come
/// further, and each second. Returns the operation, which may have failed.
///
/// # Errors
/// The master refuses, or does not say how the operation ended within `limit`.
pub(crate) fn wait(
    client: &Client,
    target: &str,
    limit: Option<Duration>,
    report: &mut dyn FnMut(&Operation),
) -> Result<Operation, Failure> {
    let failure = |error: HttpError| Failure::of_request(&error, &client.socket);
    let deadline = limit.map(|limit| Instant::now() + limit);
    let stream = client.open("POST", target, "text/event-stream").map_err(|error| match error {
        HttpError::Interrupted => left_alone(None, "interrupted"),
        error => failure(error),
    })?;
    if stream.is_event_stream() && stream.status == 200 {
        return follow(client, stream, deadline, report);
    }
    let answer = stream.into_answer(limit.unwrap_or(client.timeout)).map_err(failure)?;
    match answer.status {
        200 | 202 | 422 => Ok(Operation::parse(&answer.json().map_err(failure)?)),
        _ => Err(Failure::new(answer.refusal())),
    }
}

/// Reads the events of an operation until it has ended.
fn follow(
    client: &Client,
    mut stream: ResponseStream,
    deadline: Option<Instant>,
    report: &mut dyn FnMut(&Operation),
) -> Result<Operation, Failure> {
    let failure = |error: HttpError| Failure::of_request(&error, &client.socket);
    let mut decoder = Decoder::default();
    let mut latest: Option<Operation> = None;
    let mut heard_at = Instant::now();
    loop {
        let tick = Instant::now() + TICK;
        let bytes = match stream.next_bytes(Some(deadline.map_or(tick, |at| at.min(tick)))) {
            Ok(Some(bytes)) => {
                heard_at = Instant::now();
                bytes
            }
            Ok(None) => {
                return Err(left_alone(latest.as_ref(), "the master has closed the connection"));
            }
            Err(HttpError::Timeout(_)) if deadline.is_some_and(|at| at <= Instant::now()) => {
                return Err(left_alone(latest.as_ref(), "not done within the time of --timeout"));
            }
            Err(HttpError::Timeout(_)) if heard_at.elapsed() > SILENCE_MAX => {
                return Err(left_alone(latest.as_ref(), "the master has been silent for a minute"));
            }
            Err(HttpError::Timeout(_)) => {
                latest.iter().for_each(&mut *report);
                continue;
            }
            Err(HttpError::Interrupted) => return Err(left_alone(latest.as_ref(), "interrupted")),
            Err(error) => return Err(failure(error)),
        };
        let mut events = Vec::new();
        let fed = decoder.feed(&bytes, |event| events.push(event));
        fed.map_err(|_| failure(HttpError::TooLarge))?;
        for event in events {
            let Some(operation) = operation_of(&event) else {
                return Err(failure(HttpError::Malformed("its event is no operation")));
            };
            match (event.kind.as_str(), operation.state) {
                ("done", State::Done) | ("failed", State::Failed) => return Ok(operation),
                _ => report(&operation),
            }
            latest = Some(operation);
        }
    }
}

fn operation_of(event: &Event) -> Option<Operation> {
    let json: Value = serde_json::from_str(&event.data).ok()?;
    json.is_object().then(|| Operation::parse(&json))
}

fn left_alone(operation: Option<&Operation>, why: &str) -> Failure {
    Failure::new(match operation {
        Some(Operation { id, command, .. }) => {
            format!("{why}: operation {id} ({command}) goes on; see ostlerctl operations {id}")
        }
        None => format!("{why}: the operation may go on; see ostlerctl operations"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_encoded() {
        assert_eq!(target("reload", &[]), "/v1/reload");
        assert_eq!(
            target("scale", &[("pool", "a b/ü&c"), ("workers", "+2")]),
            "/v1/scale?pool=a%20b%2F%C3%BC%26c&workers=%2B2"
        );
    }
}
