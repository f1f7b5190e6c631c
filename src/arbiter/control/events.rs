//! The master's log records as server-sent events. Pure, except that it reads the ring of records.

use std::io;
use std::sync::Arc;

use serde_json::json;

use super::places::{WaitPlace, WaitPlaces};
use super::sse;
use crate::http::{Body, LiveSource, More, Request, Response, Source};
use crate::log::{EventRing, NextEvent};

/// How many bytes one event has at most, with its framing.
const EVENT_BYTES_MAX: usize = 5 << 10;

/// What a client asks for.
#[derive(Debug)]
struct Wish {
    /// The number after which it begins.
    after: u64,
    is_following: bool,
}

/// Answers a request for events. A client that follows takes one of the places of clients that wait.
///
/// # Errors
/// What is wrong with the request.
pub(super) fn answer(
    events: &Arc<EventRing>,
    request: &Request<'_>,
    places: &WaitPlaces,
) -> Result<Response, String> {
    let wish = parse(events, request)?;
    let cursor = Cursor { events: Arc::clone(events), after: wish.after };
    if !wish.is_following {
        let stored = StoredEvents { cursor, until: events.last() };
        let response = Response::new(200, Body::stream(stored, None));
        return Ok(response.header("Content-Type", sse::CONTENT_TYPE));
    }
    Ok(match places.take() {
        Ok(place) => sse::response(FollowedEvents { cursor, _place: place }),
        Err(refusal) => refusal,
    })
}

fn parse(events: &EventRing, request: &Request<'_>) -> Result<Wish, String> {
    let number = |name: &str| match request.query_value(name) {
        None => Ok(None),
        Some(text) => text.parse::<u64>().map(Some).map_err(|_| format!("{name} is not a number")),
    };
    let is_following = match request.query_value("follow").as_deref() {
        None | Some("" | "1" | "true") => true,
        Some("0" | "false") => false,
        Some(_) => return Err("follow is neither 0 nor 1".to_owned()),
    };
    let (after, last) = (number("after")?, number("last")?);
    if after.is_some() && last.is_some() {
        return Err("give either after or last".to_owned());
    }
    // A browser that connects again sends what it has seen, and the same query as before.
    let seen = match request.header("Last-Event-ID") {
        None => None,
        Some(id) => {
            let id = std::str::from_utf8(id).ok().and_then(|id| id.parse::<u64>().ok());
            Some(id.ok_or("Last-Event-ID is not a number")?)
        }
    };
    let default = if is_following { 0 } else { u64::MAX };
    let after = seen.or(after).unwrap_or_else(|| events.before_last(last.unwrap_or(default)));
    Ok(Wish { after, is_following })
}

/// A place in the sequence of events.
struct Cursor {
    events: Arc<EventRing>,
    after: u64,
}

impl Cursor {
    /// Appends the next events, at most about `max_len` bytes.
    fn append(&mut self, out: &mut Vec<u8>, max_len: usize) {
        let end = out.len() + max_len.saturating_sub(EVENT_BYTES_MAX);
        loop {
            match self.events.after(self.after) {
                NextEvent::None => return,
                NextEvent::Record(number, text) => {
                    sse::append(out, Some(number), "record", &text);
                    self.after = number;
                }
                NextEvent::Lost(lost) => {
                    let reason =
                        if lost.is_of_other_master { "other_master" } else { "overwritten" };
                    let data = json!({ "from": lost.from, "to": lost.to, "reason": reason });
                    sse::append(out, Some(lost.resume_after), "gap", &data.to_string());
                    self.after = lost.resume_after;
                }
            }
            if out.len() >= end {
                return;
            }
        }
    }
}

/// The events that there are.
struct StoredEvents {
    cursor: Cursor,
    /// The number of the last one. Later events are not sent, so that the body ends.
    until: u64,
}

impl Source for StoredEvents {
    fn fill(&mut self, out: &mut Vec<u8>, max_len: usize) -> io::Result<More> {
        let before = self.cursor.after;
        if before < self.until || self.cursor.events.last() < before {
            self.cursor.append(out, max_len);
        }
        let is_done = self.cursor.after >= self.until || self.cursor.after == before;
        Ok(if is_done { More::No } else { More::Yes })
    }
}

/// Events as they come.
struct FollowedEvents {
    cursor: Cursor,
    _place: WaitPlace,
}

impl LiveSource for FollowedEvents {
    fn fill(&mut self, out: &mut Vec<u8>, max_len: usize) -> Option<More> {
        let before = out.len();
        self.cursor.append(out, max_len);
        (out.len() > before).then_some(More::Yes)
    }

    fn keep_alive(&self) -> &'static [u8] {
        sse::KEEP_ALIVE
    }
}
