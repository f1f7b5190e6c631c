//! Everything that is known of one worker: what it does, and how the one before it ended. Pure.

use serde_json::Value;

use super::show::{event_line, works_on};
use super::status::{Exit, Pool, Status, Worker};
use super::text::{bytes, duration};

/// What the user asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A process, or a slot of the only pool.
    Number(u64),
    Slot {
        pool: String,
        slot: u64,
    },
}

impl Target {
    /// Parses `PID`, `SLOT` or `POOL/SLOT`.
    ///
    /// # Errors
    /// A message.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().ok();
        let parsed = match text.rsplit_once('/') {
            None => number(text).map(Self::Number),
            Some((pool, slot)) => {
                number(slot).map(|slot| Self::Slot { pool: pool.to_owned(), slot })
            }
        };
        parsed.ok_or_else(|| "give a PID, a slot, or a pool and a slot, such as web/0".to_owned())
    }
}

/// The slot in question, and the process if the user has named one.
struct Place<'a> {
    pool: &'a Pool,
    slot: u64,
    pid: Option<u64>,
}

/// Returns the workers in question, with the pids in whose events the user is interested.
///
/// # Errors
/// Nothing is known of the target.
fn find<'a>(status: &'a Status, target: &Target) -> Result<Place<'a>, String> {
    match target {
        Target::Slot { pool: name, slot } => {
            let pool = status.pools.iter().find(|pool| pool.name == *name);
            let pool = pool.ok_or_else(|| format!("there is no pool {name}"))?;
            Ok(Place { pool, slot: *slot, pid: None })
        }
        Target::Number(number) => {
            for pool in &status.pools {
                let current = pool.workers.iter().map(|worker| (worker.pid, worker.slot));
                let past = pool.last_exits.iter().map(|exit| (exit.pid, exit.slot));
                if let Some((pid, slot)) = current.chain(past).find(|(pid, _)| pid == number) {
                    return Ok(Place { pool, slot, pid: Some(pid) });
                }
            }
            let mut with_slot = status.pools.iter().filter(|pool| knows_slot(pool, *number));
            match (with_slot.next(), with_slot.next()) {
                (Some(pool), None) => Ok(Place { pool, slot: *number, pid: None }),
                (Some(one), Some(_)) => Err(format!(
                    "several pools have a slot {number}: name one, such as {}/{number}",
                    one.name
                )),
                (None, _) => Err(format!(
                    "{number} is no slot, no worker, and not the last worker of a slot"
                )),
            }
        }
    }
}

fn knows_slot(pool: &Pool, slot: u64) -> bool {
    pool.workers.iter().any(|worker| worker.slot == slot)
        || pool.waiting_slots.iter().any(|(it, _)| *it == slot)
        || pool.last_exits.iter().any(|exit| exit.slot == slot)
}

/// Returns the report, and the pids that it is about.
///
/// # Errors
/// Nothing is known of the target.
pub(crate) fn report(status: &Status, target: &Target) -> Result<(String, Vec<u64>), String> {
    let Place { pool, slot, pid } = find(status, target)?;
    if !knows_slot(pool, slot) {
        return Err(format!("nothing is known of slot {slot} of pool {}", pool.name));
    }
    let mut report = format!("slot {}/{slot}\n", pool.name);
    let mut pids: Vec<u64> = pid.into_iter().collect();
    for worker in pool.workers.iter().filter(|worker| worker.slot == slot) {
        report.push_str(&worker_lines(worker));
        pids.push(worker.pid);
    }
    for (_, left) in pool.waiting_slots.iter().filter(|(it, _)| *it == slot) {
        report.push_str(&format!(
            "no worker: the next one starts in {}, after repeated failures\n",
            duration(*left)
        ));
    }
    match pool.last_exits.iter().find(|exit| exit.slot == slot) {
        Some(exit) => {
            report.push_str(&exit_lines(exit));
            pids.push(exit.pid);
        }
        None => report.push_str("last exit: none\n"),
    }
    pids.sort_unstable();
    pids.dedup();
    Ok((report, pids))
}

fn worker_lines(worker: &Worker) -> String {
    let mut lines = format!(
        "worker {}: {}, generation {}, up {}, {} units done, {} clients\n",
        worker.pid,
        worker.state,
        worker.generation,
        duration(worker.uptime_ms),
        worker.units.map_or("unknown".to_owned(), |units| units.to_string()),
        worker.clients
    );
    let beat = worker
        .heartbeat_age_ms
        .map_or("unknown".to_owned(), |age| format!("{} ago", duration(age)));
    lines.push_str(&format!("  last heartbeat: {beat}\n"));
    if let Some(memory) = worker.usage.memory_bytes {
        lines.push_str(&format!("  memory: {}\n", bytes(memory)));
    }
    if let Some(cpu) = worker.usage.cpu_ms {
        lines.push_str(&format!("  CPU time: {}\n", duration(cpu)));
    }
    if let Some(count @ 1..) = worker.usage.near_misses {
        lines.push_str(&format!("  units past half of their timeout: {count}\n"));
    }
    let mut units: Vec<_> = worker.in_flight.iter().collect();
    units.sort_by_key(|unit| std::cmp::Reverse(unit.age_ms));
    for unit in units {
        lines.push_str(&format!(
            "  thread {} works on {} for {}\n",
            unit.thread,
            unit.label,
            duration(unit.age_ms)
        ));
    }
    if works_on(worker).is_empty() {
        lines.push_str("  idle\n");
    }
    lines
}

fn exit_lines(exit: &Exit) -> String {
    let mut lines = format!(
        "last exit: worker {}, {} ago\n  reason: {}\n  exit: {}\n  lifetime: {}\n",
        exit.pid,
        duration(exit.age_ms),
        exit.reason,
        exit.exit,
        duration(exit.uptime_ms)
    );
    if !exit.note.is_empty() {
        lines.push_str(&format!("  note: {}\n", exit.note));
    }
    lines
}

/// Returns the events that name one of these pids, a line each.
pub(crate) fn event_lines(events: &[Value], pids: &[u64]) -> String {
    let concerns = |event: &Value| {
        ["pid", "worker_pid"].iter().any(|key| {
            let value = &event[*key];
            let number = value.as_u64().or_else(|| value.as_str()?.parse().ok());
            number.is_some_and(|pid| pids.contains(&pid))
        })
    };
    let concerned: Vec<String> =
        events.iter().filter(|event| concerns(event)).map(event_line).collect();
    if concerned.is_empty() {
        String::new()
    } else {
        format!("events:\n  {}\n", concerned.join("\n  "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn example() -> Status {
        let worker = json!({"pid": 80, "slot": 0, "state": "ready", "generation": 1, "uptime_ms": 900,
            "units": 4, "clients": 1, "heartbeat_age_ms": 20,
            "in_flight": [{"thread": 2, "label": "GET /hang", "age_ms": 1500}]});
        let exit = json!({"pid": 79, "slot": 0, "reason": "hung", "exit": "SIGABRT",
            "note": "panic \u{1b}", "uptime_ms": 61_000, "age_ms": 3000});
        Status::parse(&json!({"pools": [
            {"name": "web", "workers": [worker], "last_exits": [exit]},
            {"name": "api", "workers": [{"pid": 90, "slot": 0, "state": "ready"}],
                "waiting_slots": [{"slot": 1, "restart_in_ms": 400}]},
        ]}))
    }

    #[test]
    fn report_has_the_work_and_the_last_exit() {
        let whole = "slot web/0\n\
                     worker 80: ready, generation 1, up 900ms, 4 units done, 1 clients\n\
                     \u{20} last heartbeat: 20ms ago\n\
                     \u{20} thread 2 works on GET /hang for 1.5s\n\
                     last exit: worker 79, 3.0s ago\n\
                     \u{20} reason: hung\n\
                     \u{20} exit: SIGABRT\n\
                     \u{20} lifetime: 1m 1s\n\
                     \u{20} note: panic \\u{1b}\n";
        for text in ["web/0", "80", "79"] {
            let target = Target::parse(text).expect("a target");
            assert_eq!(report(&example(), &target), Ok((whole.to_owned(), vec![79, 80])), "{text}");
        }
        let (waiting, pids) = report(&example(), &Target::Number(1)).expect("the slot of api");
        assert!(
            waiting.contains("starts in 400ms") && waiting.contains("last exit: none"),
            "{waiting}"
        );
        assert!(pids.is_empty());
        let (idle, _) = report(&example(), &Target::Number(90)).expect("a worker");
        assert!(idle.contains("  idle\n"), "{idle}");
    }

    #[test]
    fn unknown_and_ambiguous_targets_are_errors() {
        let message = |text: &str| {
            let target = Target::parse(text)?;
            report(&example(), &target).map(|_| ())
        };
        for (text, expected) in [
            ("0", "several pools have a slot 0: name one, such as web/0"),
            ("7", "7 is no slot, no worker"),
            ("web/7", "nothing is known of slot 7 of pool web"),
            ("db/0", "there is no pool db"),
            ("web/x", "give a PID"),
            ("-1", "give a PID"),
        ] {
            let message = message(text).expect_err("an error");
            assert!(message.contains(expected), "{message} lacks {expected}");
        }
    }

    #[test]
    fn events_of_other_workers_are_left_out() {
        let events = [
            json!({"time": "T1", "level": "INFO", "message": "worker hung", "pid": 79, "cause": "blocked"}),
            json!({"time": "T2", "level": "INFO", "message": "worker ready", "pid": 80}),
            json!({"time": "T3", "level": "INFO", "message": "worker ready", "pid": "79"}),
        ];
        let lines = event_lines(&events, &[79]);
        assert!(lines.contains("worker hung") && lines.contains("cause: blocked"), "{lines}");
        assert_eq!(lines.lines().count(), 3);
        assert_eq!(event_lines(&events, &[1]), "");
    }
}
