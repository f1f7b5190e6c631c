//! A question to the master with one JSON object as its answer.

use serde_json::Value;

use super::failure::Failure;
use super::http::Client;

/// Returns the JSON of a successful answer.
///
/// # Errors
/// There is no valid answer in time, or the master refuses.
pub(crate) fn get(client: &Client, target: &str) -> Result<Value, Failure> {
    let failure = |error| Failure::of_request(&error, &client.socket);
    let answer = client.get(target).map_err(failure)?;
    match answer.status {
        200 => answer.json().map_err(failure),
        _ => Err(Failure::new(answer.refusal())),
    }
}
