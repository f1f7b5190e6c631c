//! Tables for people. Pure.

use serde_json::Value;

use super::operation::{Operation, State};
use super::status::{Leader, Pool, Status, Worker, each, text};
use super::text::{Table, bytes, duration, printable};

/// How many workers of a pool `status` shows.
const WORKERS_SHOWN: usize = 20;

/// Returns the master, its pools and their workers.
pub(crate) fn status(status: &Status) -> String {
    let ready = if status.is_ready { "ready" } else { "not ready" };
    let mut report = format!(
        "{}: {}, {ready}\nmaster {}, version {}, up {}, generation {}\n",
        status.proc_name,
        status.phase,
        status.pid,
        status.version,
        duration(status.uptime_ms),
        status.generation
    );
    if let Some(peer) = status.peer_pid {
        report.push_str(&format!("upgrade: the other master is {peer}\n"));
    }
    if let Some(leader) = &status.leader {
        report.push_str(&leader_line(leader));
    }
    if let Some(operation) = &status.operation {
        report.push_str(&format!("operation {}: {}\n", operation.id, operation.describe()));
    }
    for pool in &status.pools {
        report.push('\n');
        report.push_str(&pool_lines(pool));
        let shown = pool.workers.iter().take(WORKERS_SHOWN);
        report.push_str(&worker_table(shown).render());
        let more = pool.workers.len().saturating_sub(WORKERS_SHOWN);
        if more > 0 {
            report.push_str(&format!("and {more} more: ostlerctl workers\n"));
        }
        for (slot, left) in &pool.waiting_slots {
            report.push_str(&format!("slot {slot} starts a worker in {}\n", duration(*left)));
        }
    }
    report
}

fn leader_line(leader: &Leader) -> String {
    let mut line = match (leader.is_leading, &leader.holder) {
        (true, _) => format!("leads {}", leader.key),
        (false, Some(holder)) => format!("standby of {}, led by {holder}", leader.key),
        (false, None) => format!("standby of {}, no leader is known", leader.key),
    };
    if let Some(left) = leader.ends_in_ms.filter(|_| leader.is_leading) {
        line.push_str(&format!(" for {}, unless renewed", duration(left)));
    }
    if let Some(error) = &leader.store_error {
        line.push_str(&format!("\nlease store not available: {error}"));
    }
    line.push('\n');
    line
}

fn pool_lines(pool: &Pool) -> String {
    let mut line = format!(
        "pool {}: {} of {} workers ready, class {}, app {}",
        pool.name, pool.ready, pool.target, pool.class, pool.app
    );
    for condition in &pool.conditions {
        line.push_str(&format!(", {condition}"));
    }
    line.push_str(&match pool.totals.units {
        Some(units) => format!("\nunits: {units} done, {} in progress", pool.in_flight),
        None => "\nunits: not known, the program has its own".to_owned(),
    });
    if let Some([p50, p90, p99]) = pool.latency.percentiles_ms {
        line.push_str(&format!(", p50 {p50:.1}ms, p90 {p90:.1}ms, p99 {p99:.1}ms"));
    }
    line.push('\n');
    if let Some(scaling) = &pool.scaling {
        line.push_str(&format!("scales from {} to {} workers", scaling.min, scaling.max));
        if let Some(busy) = scaling.busy_percent {
            line.push_str(&format!(", busy {busy}%"));
        }
        if let Some(last) = &scaling.last {
            let ago = duration(last.ms_ago);
            let (from, to, reason) = (last.from, last.to, &last.reason);
            line.push_str(&format!(", last {from} -> {to} {ago} ago: {reason}"));
        }
        line.push('\n');
    }
    let exits: Vec<String> = pool
        .totals
        .exits
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    if !exits.is_empty() {
        line.push_str(&format!("exits: {}\n", exits.join(", ")));
    }
    for listener in &pool.listeners {
        let queue = listener.queue_length.map_or("unknown".to_owned(), |it| it.to_string());
        line.push_str(&format!("listens at {}, queue {queue}\n", listener.address));
    }
    line
}

/// Returns a row for each worker.
pub(crate) fn workers(status: &Status) -> String {
    worker_table(status.workers()).render()
}

fn worker_table<'a>(workers: impl Iterator<Item = &'a Worker>) -> Table {
    let mut table = Table::new(&[
        "WORKER", ">PID", "STATE", ">GEN", ">UP", ">DONE", ">CLIENTS", ">BEAT", ">MEMORY", ">CPU",
        "WORKS ON",
    ]);
    for worker in workers {
        let known = |value: Option<u64>, show: fn(u64) -> String| value.map_or("-".into(), show);
        table.add(vec![
            worker.place(),
            worker.pid.to_string(),
            worker.state.clone(),
            worker.generation.to_string(),
            duration(worker.uptime_ms),
            known(worker.units, |units| units.to_string()),
            worker.clients.to_string(),
            known(worker.heartbeat_age_ms, duration),
            known(worker.usage.memory_bytes, bytes),
            known(worker.usage.cpu_ms, duration),
            works_on(worker),
        ]);
    }
    table
}

/// Returns a worker's oldest unit of work with its age, and how many others there are.
pub(crate) fn works_on(worker: &Worker) -> String {
    let Some(unit) = worker.oldest_unit() else { return String::new() };
    let others = match worker.in_flight.len() {
        1 => String::new(),
        count => format!(" and {} more", count - 1),
    };
    format!("{} for {}{others}", unit.label, duration(unit.age_ms))
}

/// Returns the settings with their sources.
pub(crate) fn config(json: &Value) -> String {
    let mut table = Table::new(&["POOL", "SETTING", "VALUE", "SOURCE"]);
    for setting in each(json, "settings") {
        let value = match &setting["value"] {
            Value::String(text) => printable(text),
            other => printable(&other.to_string()),
        };
        let pool = text(setting, "pool");
        let pool = if pool.is_empty() { "-".to_owned() } else { pool };
        table.add(vec![pool, text(setting, "key"), value, text(setting, "source")]);
    }
    table.render()
}

/// Returns the latest operations, in the master's order.
pub(crate) fn operations(json: &Value) -> String {
    let mut table = Table::new(&[">ID", "COMMAND", "STATE", ">BEGAN", ">TOOK", "BY", "DETAILS"]);
    for operation in each(json, "operations").map(Operation::parse) {
        let state = match operation.state {
            State::Running => "running",
            State::Done => "done",
            State::Failed => "failed",
        };
        let known = |time: Option<u64>| time.map_or("-".to_owned(), duration);
        let details = match (&operation.error, operation.state) {
            (Some(error), _) => error.clone(),
            (None, State::Running) => operation.progress.describe(),
            (None, _) => String::new(),
        };
        table.add(vec![
            operation.id.to_string(),
            operation.command.clone(),
            state.to_owned(),
            operation.started_ms_ago.map_or("-".to_owned(), |it| format!("{} ago", duration(it))),
            known(operation.duration_ms),
            operation.by.clone(),
            details,
        ]);
    }
    if table.is_empty() { "no operations yet\n".to_owned() } else { table.render() }
}

/// Returns an event in one line, as the log shows a record.
pub(crate) fn event_line(event: &Value) -> String {
    let mut line =
        format!("{} {} {}", text(event, "time"), text(event, "level"), text(event, "message"));
    for (key, value) in event.as_object().into_iter().flatten() {
        if ["seq", "time", "level", "message"].contains(&key.as_str()) || value.is_null() {
            continue;
        }
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        line.push_str(&format!(", {}: {}", printable(key), printable(&value)));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn example() -> Status {
        let units = json!([
            {"thread": 0, "label": "GET /a\u{1b}[0m", "age_ms": 10},
            {"thread": 1, "label": "GET /slow", "age_ms": 2500},
        ]);
        let worker = json!({
            "pid": 8, "slot": 0, "generation": 3, "state": "ready", "uptime_ms": 5000, "units": 12,
            "clients": 3, "heartbeat_age_ms": 12, "memory_bytes": 4_096_000, "in_flight": units,
        });
        let pool = json!({
            "name": "web", "class": "mio", "app": "demo", "generation": 3, "target": 2, "ready": 1,
            "reloading": true, "in_flight": 2, "units_total": 12,
            "workers_min": 1, "workers_max": 4, "scaling": {"busy_percent": 70, "last":
                {"at_ms_ago": 9000, "from": 1, "to": 2, "reason": "busy"}},
            "exits_total": {"hung": 1, "crashed": 0},
            "latency_ms": {"p50": 0.2, "p90": 1.5, "p99": 30.0, "p999": 31.0, "max": 31.0},
            "listeners": [{"address": "127.0.0.1:80", "queue_length": 0}],
            "waiting_slots": [{"slot": 1, "restart_in_ms": 1500}],
            "workers": [worker],
        });
        Status::parse(&json!({
            "pid": 7, "version": "1.0", "proc_name": "shop", "phase": "running",
            "uptime_ms": 60_000, "generation": 3, "ready": true, "peer_pid": null, "pools": [pool],
            "operation": {"id": 9, "command": "reload", "state": "running",
                "progress": {"phase": "rolling", "done": 1, "total": 2}},
        }))
    }

    #[test]
    fn status_shows_what_is_known() {
        assert_eq!(
            status(&example()),
            "shop: running, ready\n\
             master 7, version 1.0, up 1m 0s, generation 3\n\
             operation 9: reload: rolling, 1 of 2\n\
             \n\
             pool web: 1 of 2 workers ready, class mio, app demo, reloading\n\
             units: 12 done, 2 in progress, p50 0.2ms, p90 1.5ms, p99 30.0ms\n\
             scales from 1 to 4 workers, busy 70%, last 1 -> 2 9.0s ago: busy\n\
             exits: 1 hung\n\
             listens at 127.0.0.1:80, queue 0\n\
             WORKER  PID  STATE  GEN    UP  DONE  CLIENTS  BEAT  MEMORY  CPU  WORKS ON\n\
             web/0     8  ready    3  5.0s    12        3  12ms    3.9M    -  GET /slow for 2.5s and 1 more\n\
             slot 1 starts a worker in 1.5s\n"
        );
    }

    #[test]
    fn status_shows_the_leadership() {
        let line = |json| {
            let status = Status::parse(&json!({ "leader": json }));
            status.leader.as_ref().map(leader_line)
        };
        assert_eq!(line(json!(null)), None);
        let leading = json!({"leading": true, "key": "web", "holder": "a/7", "ends_in_ms": 8100});
        assert_eq!(line(leading).unwrap(), "leads web for 8.1s, unless renewed\n");
        let standby = json!({"leading": false, "key": "web", "holder": "b\u{1b}/7",
            "store_error": "timeout"});
        assert_eq!(
            line(standby).unwrap(),
            "standby of web, led by b\\u{1b}/7\nlease store not available: timeout\n"
        );
        let alone = json!({"leading": false, "key": "web", "holder": null});
        assert_eq!(line(alone).unwrap(), "standby of web, no leader is known\n");
    }

    #[test]
    fn status_names_a_part_of_many_workers() {
        let mut many = example();
        many.pools[0].workers = vec![Worker::default(); 25];
        assert!(status(&many).contains("\nand 5 more: ostlerctl workers\n"));
        assert_eq!(workers(&many).lines().count(), 26);
    }

    #[test]
    fn any_json_is_shown() {
        for json in [json!({}), json!([]), json!({"pools": [1, {}, {"workers": [null]}]})] {
            assert!(status(&Status::parse(&json)).starts_with(": , not ready\n"));
            config(&json);
            operations(&json);
        }
    }

    #[test]
    fn config_and_operations_are_tables() {
        let settings = json!({"settings": [
            {"key": "workers", "value": "4", "source": "flag --workers", "pool": null},
            {"key": "timeout", "value": "5s", "source": "file a.yaml:3", "pool": "web"},
        ]});
        assert_eq!(
            config(&settings),
            "POOL  SETTING  VALUE  SOURCE\n\
             -     workers  4      flag --workers\n\
             web   timeout  5s     file a.yaml:3\n"
        );
        let list = json!({"operations": [
            {"id": 1, "command": "reload", "state": "failed", "by": "signal SIGHUP",
                "started_ms_ago": 61_000, "duration_ms": 20, "error": "no such file"},
            {"id": 12, "command": "scale", "state": "running", "by": "uid 0 pid 3",
                "started_ms_ago": 900, "progress": {"phase": "booting", "done": 0, "total": 2}},
        ]});
        assert_eq!(
            operations(&list),
            "ID  COMMAND  STATE        BEGAN  TOOK  BY             DETAILS\n\
             \u{20}1  reload   failed   1m 1s ago  20ms  signal SIGHUP  no such file\n\
             12  scale    running  900ms ago     -  uid 0 pid 3    booting, 0 of 2\n"
        );
    }
}
