//! The page for people: the pools and their workers as tables. Pure.
//!
//! It needs no script and no other file, and asks for itself again every two seconds.

use std::fmt::Write;
use std::time::Duration;

use crate::arbiter::snapshot::{PoolSnapshot, Snapshot, WorkerSnapshot};
use crate::duration::as_millis;
use crate::http::{Body, Response};

/// Nothing from elsewhere, no script, and no place in another page.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

const HEAD: &str = "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
<meta http-equiv=\"refresh\" content=\"2\">\n\
<style>\n\
:root { color-scheme: light dark }\n\
body { font: 1rem/1.4 system-ui, sans-serif; margin: 1rem; max-width: 70rem }\n\
h1 { font-size: 1.3rem } h2 { font-size: 1.1rem; margin: 1.5rem 0 .3rem }\n\
.wide { overflow-x: auto }\n\
table { border-collapse: collapse; width: 100% }\n\
th, td { text-align: left; padding: .2rem .6rem .2rem 0; border-bottom: 1px solid #8884 }\n\
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }\n\
.ready { border-left: .4rem solid #2a7 } .booting { border-left: .4rem solid #48c }\n\
.draining { border-left: .4rem solid #c93 }\n\
.hung, .aborting, .killed { border-left: .4rem solid #c33 }\n\
td:first-child { padding-left: .5rem }\n\
</style>\n";

/// Returns the response with the page.
pub(super) fn response(page: Body) -> Response {
    Response::new(200, page)
        .header("Content-Type", "text/html; charset=utf-8")
        .header("Content-Security-Policy", POLICY)
        .header("Referrer-Policy", "no-referrer")
}

/// Returns the page.
pub(super) fn render(snapshot: &Snapshot) -> String {
    let (name, phase) = (escape(&snapshot.proc_name), snapshot.phase.as_str());
    let mut page = format!("{HEAD}<title>{name}: {phase}</title>\n</head>\n<body>\n");
    // Writing to a string cannot fail.
    let _ = writeln!(
        page,
        "<h1>{name}: {phase}</h1>\n<p>Master {} with version {}, up {}, generation {}.</p>",
        snapshot.pid,
        env!("CARGO_PKG_VERSION"),
        age(snapshot.uptime),
        snapshot.generation
    );
    if let Some(reason) = snapshot.unready_reason() {
        let _ = writeln!(page, "<p><strong>Not ready: {}.</strong></p>", escape(&reason));
    }
    snapshot.pools.iter().for_each(|pool| render_pool(pool, &mut page));
    page.push_str("</body>\n</html>\n");
    page
}

fn render_pool(pool: &PoolSnapshot, page: &mut String) {
    let _ = writeln!(
        page,
        "<h2>Pool {}</h2>\n<p>{} of {} workers ready. Class {}, app {}. {} units of work done, {} in \
         progress.</p>",
        escape(&pool.name),
        pool.ready,
        pool.target,
        escape(&pool.class),
        escape(&pool.app),
        pool.totals.units,
        pool.in_flight()
    );
    for listener in &pool.listeners {
        let waiting = listener.queue_length.map_or("?".to_owned(), |length| length.to_string());
        let _ = writeln!(page, "<p>{}: {waiting} clients wait.</p>", escape(&listener.address));
    }
    page.push_str(
        "<div class=\"wide\"><table>\n<thead><tr><th scope=\"col\">Slot<th scope=\"col\">PID\
         <th scope=\"col\">State<th scope=\"col\">Generation<th scope=\"col\">Up\
         <th scope=\"col\" class=\"number\">Units<th scope=\"col\" class=\"number\">Clients\
         <th scope=\"col\">Heartbeat<th scope=\"col\">Works on</tr></thead>\n<tbody>\n",
    );
    pool.workers.iter().for_each(|worker| render_worker(worker, page));
    for (slot, left) in &pool.waiting_slots {
        let _ = writeln!(
            page,
            "<tr><td>{slot}<td><td colspan=\"7\">waits {} before its next worker</tr>",
            age(*left)
        );
    }
    page.push_str("</tbody>\n</table></div>\n");
    for exit in &pool.last_exits {
        let note = if exit.note.is_empty() { String::new() } else { format!(": {}", exit.note) };
        let _ = writeln!(
            page,
            "<p>Slot {}: worker {} exited {} ago after {}: {}, {}{}.</p>",
            exit.slot,
            exit.pid,
            age(exit.age),
            age(exit.uptime),
            exit.reason,
            escape(&exit.exit),
            escape(&note)
        );
    }
}

fn render_worker(worker: &WorkerSnapshot, page: &mut String) {
    let oldest = worker.in_flight.iter().max_by_key(|unit| unit.age);
    let work = oldest.map_or(String::new(), |unit| {
        let others = match worker.in_flight.len() {
            0 | 1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        format!("{} for {}{others}", escape(&unit.label), age(unit.age))
    });
    let _ = writeln!(
        page,
        "<tr><td class=\"{state}\">{}<td>{}<td>{state}<td>{}<td>{}<td class=\"number\">{}\
         <td class=\"number\">{}<td>{}<td>{work}</tr>",
        worker.slot,
        worker.pid,
        worker.generation,
        age(worker.uptime),
        worker.units,
        worker.clients,
        worker.heartbeat_age.map_or("unknown".to_owned(), |it| format!("{} ago", age(it))),
        state = worker.state,
    );
}

/// Returns a duration to at most a thousandth, such as `2m 3s` or `120ms`.
fn age(duration: Duration) -> String {
    let precision = if duration.as_secs() > 0 { 1000 } else { 1 };
    let millis = as_millis(duration) / precision * precision;
    humantime::format_duration(Duration::from_millis(millis)).to_string()
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(character),
        }
    }
    escaped
}
