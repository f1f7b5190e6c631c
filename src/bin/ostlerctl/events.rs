//! Shows the log records that the master keeps, and those that follow.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::failure::Failure;
use super::http::{Client, HttpError};
use super::output::print;
use super::show::event_line;
use super::sse::{Decoder, Event};
use super::text::{printable, printable_json};

/// How long a master may be away while its events are followed, as it is at the end of an upgrade.
const ABSENCE_MAX: Duration = Duration::from_secs(30);
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// Shows the last events. If `is_following`, goes on with each new one, also over an upgrade.
///
/// # Errors
/// There is no answer, or the master stays away.
pub(crate) fn show(
    client: &Client,
    is_following: bool,
    last: u64,
    is_json: bool,
) -> Result<(), Failure> {
    let follow = u8::from(is_following);
    let mut target = format!("/v1/events?follow={follow}&last={last}");
    let mut answered_at: Option<Instant> = None;
    loop {
        let mut latest = None;
        let read = read(client, &target, is_following, &mut |event| {
            if !event.id.is_empty() {
                latest = Some(event.id.clone());
            }
            print(&render(&event, is_json))
        });
        if read.is_ok() {
            if !is_following {
                return Ok(());
            }
            answered_at = Some(Instant::now());
        }
        if let Some(id) = latest.filter(|id| id.bytes().all(|byte| byte.is_ascii_digit())) {
            target = format!("/v1/events?follow=1&after={id}");
        }
        match read {
            Ok(()) => (),
            Err(Failed::Output(failure) | Failed::Refused(failure)) => return Err(failure),
            Err(Failed::Request(failure)) => {
                if answered_at.is_none_or(|at| at.elapsed() > ABSENCE_MAX) {
                    return Err(failure);
                }
            }
        }
        thread::sleep(RETRY_INTERVAL);
    }
}

/// Why a stream ended too early.
enum Failed {
    Request(Failure),
    Refused(Failure),
    Output(Failure),
}

/// Reads a stream to its end. One that is followed may last for ever.
fn read(
    client: &Client,
    target: &str,
    is_following: bool,
    each: &mut dyn FnMut(Event) -> Result<(), Failure>,
) -> Result<(), Failed> {
    let failed = |error: HttpError| Failed::Request(Failure::of_request(&error, &client.socket));
    let mut stream = client.open("GET", target, "text/event-stream").map_err(failed)?;
    if stream.status != 200 || !stream.is_event_stream() {
        let answer = stream.into_answer(client.timeout).map_err(failed)?;
        return Err(Failed::Refused(Failure::new(answer.refusal())));
    }
    let deadline = (!is_following).then(|| Instant::now() + client.timeout);
    let mut decoder = Decoder::default();
    while let Some(bytes) = stream.next_bytes(deadline).map_err(failed)? {
        let mut events = Vec::new();
        let fed = decoder.feed(&bytes, |event| events.push(event));
        events.into_iter().try_for_each(&mut *each).map_err(Failed::Output)?;
        fed.map_err(|_| failed(HttpError::TooLarge))?;
    }
    Ok(())
}

fn render(event: &Event, is_json: bool) -> String {
    let json = serde_json::from_str::<Value>(&event.data).unwrap_or_default();
    if is_json {
        return format!("{}\n", printable_json(&json.to_string()));
    }
    if event.kind == "gap" && json["reason"] == "other_master" {
        return "(here begin the events of another master)\n".to_owned();
    }
    if event.kind == "gap" {
        let lost = format!("(events {} to {} are lost)", json["from"], json["to"]);
        return format!("{}\n", printable(&lost));
    }
    if json.is_object() {
        format!("{}\n", event_line(&json))
    } else {
        format!("{}\n", printable(&event.data))
    }
}
