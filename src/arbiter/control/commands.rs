//! Commands as requests, and operations as responses. Pure.

use std::time::Duration;

use super::failure::failure;
use super::parameters::Parameters;
use super::places::{WaitPlace, WaitPlaces};
use super::sse;
use crate::arbiter::operations::{
    Command, OperationState, Progress, Refusal, Reply, ScaleTo, SharedOperations,
};
use crate::http::{LiveSource, More, Request, Response};
use crate::time::MonotonicTime;

/// How often a client is told of progress, at most.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Reads a command from its parameters.
pub(super) type CommandParser = fn(&Parameters) -> Result<Command, String>;

pub(super) fn reload(parameters: &Parameters) -> Result<Command, String> {
    Ok(Command::Reload { dry_run: parameters.switch("dry_run", false)? })
}

pub(super) fn upgrade(_: &Parameters) -> Result<Command, String> {
    Ok(Command::Upgrade)
}

pub(super) fn scale(parameters: &Parameters) -> Result<Command, String> {
    let workers = parameters.text("workers").ok_or("give workers: N, +N or -N")?;
    // A `+` in a query is a space.
    let workers = match workers.strip_prefix(' ') {
        Some(count) => format!("+{count}"),
        None => workers,
    };
    Ok(Command::Scale { pool: parameters.text("pool"), workers: workers.parse::<ScaleTo>()? })
}

pub(super) fn recycle(parameters: &Parameters) -> Result<Command, String> {
    Ok(Command::Recycle { pool: parameters.text("pool"), slot: parameters.number("slot")? })
}

pub(super) fn drain(parameters: &Parameters) -> Result<Command, String> {
    drain_mode(parameters, true)
}

pub(super) fn undrain(parameters: &Parameters) -> Result<Command, String> {
    drain_mode(parameters, false)
}

fn drain_mode(parameters: &Parameters, is_on: bool) -> Result<Command, String> {
    let (pool, slot) = (parameters.text("pool"), parameters.number("slot")?);
    Ok(Command::DrainMode { pool, slot, is_on })
}

pub(super) fn stop(parameters: &Parameters) -> Result<Command, String> {
    Ok(Command::Stop { now: parameters.switch("now", false)? })
}

pub(super) fn reopen(_: &Parameters) -> Result<Command, String> {
    Ok(Command::Reopen)
}

/// How a client wants to hear of its operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Delivery {
    /// Once it has ended.
    AtEnd,
    /// At once: `wait=0`.
    AtOnce,
    /// As events, until it has ended.
    Events,
}

/// Passes a command on to the loop. The response comes once it has come true, or as the client wants.
pub(super) fn respond(
    request: &Request<'_>,
    (known, parse): (&[&str], CommandParser),
    operations: &SharedOperations,
    places: &WaitPlaces,
    by: String,
) -> Response {
    let parsed = Parameters::parse(request, known).and_then(|parameters| {
        let waits = parameters.switch("wait", true)?;
        Ok((parse(&parameters)?, waits))
    });
    let (command, waits) = match parsed {
        Ok(parsed) => parsed,
        Err(reason) => return refusal(&Refusal::bad(reason)),
    };
    let delivery = match (waits, wants_events(request)) {
        (false, _) => Delivery::AtOnce,
        (true, true) => Delivery::Events,
        (true, false) => Delivery::AtEnd,
    };
    let mut place = match places.take() {
        Ok(place) => Some(place),
        Err(full) => return full,
    };
    let reply = operations.lock().ask(command, by);
    let operations = operations.clone();
    Response::later(move || look(&reply, delivery, &operations, &mut place))
}

fn wants_events(request: &Request<'_>) -> bool {
    let accept = request.header("Accept").unwrap_or_default();
    let mut kinds = accept.split(|byte| matches!(byte, b',' | b';')).map(<[u8]>::trim_ascii);
    kinds.any(|kind| kind.eq_ignore_ascii_case(b"text/event-stream"))
}

/// Returns the response to a command, if it is known by now.
fn look(
    reply: &Reply,
    delivery: Delivery,
    operations: &SharedOperations,
    place: &mut Option<WaitPlace>,
) -> Option<Response> {
    let id = match reply.get()? {
        Ok(id) => *id,
        Err(reason) => return Some(refusal(reason)),
    };
    if delivery == Delivery::Events {
        let events = OperationEvents {
            id,
            operations: operations.clone(),
            told: None,
            _place: place.take(),
        };
        return Some(sse::response(events));
    }
    let locked = operations.lock();
    let status = match (locked.get(id).map(|it| it.state()), delivery) {
        (None, _) => return Some(failure(500, "the operation is no longer remembered")),
        (Some(_), Delivery::AtOnce) => 202, // even if it has ended by now
        (Some(OperationState::Running), _) => return None,
        (Some(OperationState::Done(_)), _) => 200,
        (Some(OperationState::Failed(_)), _) => 422,
    };
    let body = format!("{}\n", locked.json(id).unwrap_or_default());
    let response = Response::json(body).with_status(status);
    Some(response.header("Location", format!("/v1/operations/{id}")))
}

/// Returns the response to a command that cannot be begun.
pub(super) fn refusal(refusal: &Refusal) -> Response {
    failure(refusal.status, &refusal.reason)
}

/// An operation as events: each change of its progress, and its end.
struct OperationEvents {
    id: u64,
    operations: SharedOperations,
    /// The progress that the client was told last, and when.
    told: Option<(Progress, MonotonicTime)>,
    _place: Option<WaitPlace>,
}

impl LiveSource for OperationEvents {
    fn fill(&mut self, out: &mut Vec<u8>, _max_len: usize) -> Option<More> {
        let mut operations = self.operations.lock();
        let (now, json) = (operations.now(), operations.json(self.id));
        let Some((operation, json)) = operations.get(self.id).zip(json) else {
            return Some(More::No);
        };
        let (kind, more) = match operation.state() {
            OperationState::Running => ("progress", More::Yes),
            OperationState::Done(_) => ("done", More::No),
            OperationState::Failed(_) => ("failed", More::No),
        };
        let progress = operation.progress();
        if let (More::Yes, Some((told, at))) = (more, self.told) {
            if told == progress {
                return None;
            }
            let next = at.saturating_add(PROGRESS_INTERVAL);
            if now < next {
                operations.look_again_at(next);
                return None;
            }
        }
        self.told = Some((progress, now));
        sse::append(out, None, kind, &json.to_string());
        Some(more)
    }

    fn keep_alive(&self) -> &'static [u8] {
        sse::KEEP_ALIVE
    }
}
