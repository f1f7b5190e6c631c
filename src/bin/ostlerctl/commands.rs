//! Carries out one command.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use signal_hook::consts::SIGINT;
use signal_hook::flag;

use super::args::{Change, Request};
use super::ask::get;
use super::change;
use super::events;
use super::failure::Failure;
use super::http::{Client, Interrupt};
use super::operation::{Operation, State};
use super::output::{Display, print};
use super::show;
use super::sse::Decoder;
use super::status::Status;
use super::text::printable_json;
use super::top;
use super::why::{self, Target};

/// How many events `why` looks through.
const EVENTS_LOOKED_AT: usize = 1000;

/// How long the master may take to exit, or the new one to answer, after the operation.
const AFTERMATH_TIMEOUT: Duration = Duration::from_secs(10);

/// Carries out a request. `limit` is for how long to wait for a change.
///
/// # Errors
/// What was asked has not come true.
pub(crate) fn run(
    client: &Client,
    request: Request,
    limit: Option<Duration>,
) -> Result<(), Failure> {
    match request {
        Request::Status { json } => {
            show_answer(client, "/v1/status", json, |value| show::status(&Status::parse(value)))
        }
        Request::Workers => {
            show_answer(client, "/v1/status", false, |value| show::workers(&Status::parse(value)))
        }
        Request::Config { json } => show_answer(client, "/v1/config", json, show::config),
        Request::Why(target) => explain(client, &target),
        Request::Operations { id: None, json } => {
            show_answer(client, "/v1/operations", json, show::operations)
        }
        Request::Operations { id: Some(id), json } => show_operation(client, id, json),
        Request::Events { follow, last, json } => events::show(client, follow, last, json),
        Request::Top { interval } => top::run(client, interval),
        Request::Change(change) => make_change(client, &change, limit),
    }
}

fn explain(client: &Client, target: &Target) -> Result<(), Failure> {
    let status = Status::parse(&get(client, "/v1/status")?);
    let (report, pids) = why::report(&status, target).map_err(Failure::new)?;
    print(&report)?;
    print(&why::event_lines(&events(client), &pids))
}

/// Shows one operation. It is a success if the operation is.
fn show_operation(client: &Client, id: u64, is_json: bool) -> Result<(), Failure> {
    let json = get(client, &format!("/v1/operations/{id}"))?;
    let operation = Operation::parse(&json);
    print(&if is_json {
        format!("{}\n", printable_json(&json.to_string()))
    } else {
        operation.outcome()
    })?;
    match operation.state {
        State::Done => Ok(()),
        State::Running => Err(Failure::new(format!("operation {id} goes on"))),
        State::Failed => Err(Failure::new(format!("operation {id} has failed"))),
    }
}

/// Makes a change, and waits until it has come true.
fn make_change(client: &Client, wanted: &Change, limit: Option<Duration>) -> Result<(), Failure> {
    let client = Client { interrupt: on_interrupt()?, ..client.clone() };
    // What the change ends is known only before.
    let before = match wanted {
        Change::Stop { .. } => Status::parse(&get(&client, "/v1/status")?).pid,
        _ => 0,
    };
    let mut display = Display::new();
    let ended = change::wait(&client, &change_target(wanted), limit, &mut |operation| {
        display.show(operation);
    });
    display.clear();
    let operation = ended?;
    if operation.state != State::Done {
        return Err(Failure::new(operation.outcome()));
    }
    print(&operation.outcome())?;
    match wanted {
        Change::Stop { .. } => wait_until("the master has not exited yet", || {
            // The number is that of the master's PID namespace. In another one, the process that has it
            // here is another, and the end of the control socket must do.
            !is_running(before) || !(is_master(before) || is_served_by(&client, before))
        }),
        Change::Upgrade => wait_until("the new master does not answer yet", || {
            get(&client, "/v1/status")
                .is_ok_and(|status| status["pid"] == operation.result["new_pid"])
        }),
        _ => Ok(()),
    }
}

fn change_target(wanted: &Change) -> String {
    match wanted {
        Change::Reload { dry_run: true } => change::target("reload", &[("dry_run", "1")]),
        Change::Reload { dry_run: false } => change::target("reload", &[]),
        Change::Upgrade => change::target("upgrade", &[]),
        Change::Scale { pool, workers } => {
            let pool = pool.iter().map(|pool| ("pool", pool.as_str()));
            let workers = [("workers", workers.as_str())];
            change::target("scale", &pool.chain(workers).collect::<Vec<_>>())
        }
        Change::Recycle { pool, slot } => placed_target("recycle", pool.as_deref(), *slot),
        Change::DrainMode { pool, slot, is_on } => {
            placed_target(if *is_on { "drain" } else { "undrain" }, pool.as_deref(), *slot)
        }
        Change::Stop { now: true } => change::target("stop", &[("now", "1")]),
        Change::Stop { now: false } => change::target("stop", &[]),
        Change::Reopen => change::target("reopen", &[]),
    }
}

/// Returns the target of a command to a worker, a pool, or all.
fn placed_target(command: &str, pool: Option<&str>, slot: Option<u64>) -> String {
    let slot = slot.map(|slot| slot.to_string());
    let pool = pool.map(|pool| ("pool", pool));
    let slot = slot.as_deref().map(|slot| ("slot", slot));
    change::target(command, &pool.into_iter().chain(slot).collect::<Vec<_>>())
}

/// Has Ctrl-C end the wait instead of the program, and a second one the program.
fn on_interrupt() -> Result<Interrupt, Failure> {
    let interrupt = Interrupt::default();
    let failure = |error| Failure::new(format!("failed to handle SIGINT: {error}"));
    flag::register_conditional_default(SIGINT, Arc::clone(&interrupt.0)).map_err(failure)?;
    flag::register(SIGINT, Arc::clone(&interrupt.0)).map_err(failure)?;
    Ok(interrupt)
}

/// Waits a short time for what follows from the end of an operation.
fn wait_until(otherwise: &str, mut is_so: impl FnMut() -> bool) -> Result<(), Failure> {
    let end = Instant::now() + AFTERMATH_TIMEOUT;
    while !is_so() {
        if Instant::now() >= end {
            return Err(Failure::new(otherwise));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Returns whether a process runs. One that its parent has not reaped has exited.
fn is_running(pid: u64) -> bool {
    let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let stat = String::from_utf8_lossy(&stat);
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Returns whether a process has the title of a master.
fn is_master(pid: u64) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|title| title.starts_with(b"ostler: master"))
}

/// Returns whether a master with this number answers at the control socket.
fn is_served_by(client: &Client, pid: u64) -> bool {
    get(client, "/v1/status").is_ok_and(|status| status["pid"] == pid)
}

/// Returns the latest events; none if the master keeps none.
fn events(client: &Client) -> Vec<Value> {
    let target = format!("/v1/events?follow=0&last={EVENTS_LOOKED_AT}");
    let mut events = Vec::new();
    let Ok(answer) = client.get(&target) else { return events };
    let text = answer.text().unwrap_or("");
    // What follows an event that is too large is left out.
    let _ = Decoder::default().feed(text.as_bytes(), |event| {
        events.extend(serde_json::from_str::<Value>(&event.data));
    });
    events
}

/// Asks for a path, and prints the answer as JSON or as a text made of it.
fn show_answer(
    client: &Client,
    path: &str,
    is_json: bool,
    render: impl FnOnce(&Value) -> String,
) -> Result<(), Failure> {
    let json = get(client, path)?;
    print(&if is_json { format!("{}\n", printable_json(&json.to_string())) } else { render(&json) })
}
