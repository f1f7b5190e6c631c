//! The page for people. Pure.
//!
//! It needs no other file. Without scripts it is a table that is loaded again every two seconds. Its
//! script, `page/page.js`, shows `/v1/status` instead, twice a second.

use std::fmt::Write;
use std::time::Duration;

use serde_json::Value;

use crate::arbiter::snapshot::{ExitSnapshot, PoolSnapshot, Snapshot, WorkerSnapshot};
use crate::duration::as_millis;
use crate::http::{Body, Response};
use crate::log::{self, EventRing, NextEvent};

pub(super) const STYLE: &str = include_str!("page/page.css");
pub(super) const SCRIPT: &str = include_str!("page/page.js");

/// How many records the static page shows.
const EVENTS_SHOWN: u64 = 20;

/// Nothing from elsewhere, no place in another page, and only the style and the script with these
/// hashes (a test compares them with the files). What a text brings in is not run.
pub(super) const POLICY: &str = "default-src 'none'; \
    style-src 'sha256-d5iFxUriNWGXuCoN1CUHNzYziQYQ2pk7XuuGn0+iSdI='; \
    script-src 'sha256-ONrkj3YLDVpQ/ZwMe9v86vX/5i+L+tj/WMyLBrp3eH0='; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

/// Returns the response with the page.
pub(super) fn response(page: Body) -> Response {
    Response::new(200, page)
        .header("Content-Type", "text/html; charset=utf-8")
        .header("Content-Security-Policy", POLICY)
        .header("Referrer-Policy", "no-referrer")
        .header("Cross-Origin-Opener-Policy", "same-origin")
        .header("Cross-Origin-Resource-Policy", "same-origin")
}

/// Returns the page.
pub(super) fn render(snapshot: &Snapshot) -> String {
    let mut page = String::with_capacity(STYLE.len() + SCRIPT.len() + 4096);
    // Writing to a string cannot fail.
    let _ = write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <link rel=\"icon\" href=\"data:,\">\n\
         <noscript><meta http-equiv=\"refresh\" content=\"2\"></noscript>\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <header>\n<h1 id=\"title\">{title}</h1>\n\
         <p id=\"master\">Master {} with version {}, up {}, generation {}.</p>\n\
         <p id=\"alarm\" class=\"alarm\" hidden></p>\n\
         <div id=\"announcements\" class=\"spoken\" role=\"log\"></div>\n</header>\n<main>\n",
        snapshot.pid,
        env!("CARGO_PKG_VERSION"),
        age(snapshot.uptime),
        snapshot.generation,
        title = format_args!("{}: {}", escape(&snapshot.proc_name), snapshot.phase.as_str()),
    );
    let unready = snapshot.unready_reason();
    let hidden = if unready.is_some() { "" } else { " hidden" };
    let reason = unready.map_or(String::new(), |reason| format!("Not ready: {}.", escape(&reason)));
    let _ = writeln!(page, "<p id=\"unready\" class=\"alarm\"{hidden}>{reason}</p>");
    page.push_str("<div id=\"pools\"></div>\n<div id=\"static\">\n");
    snapshot.pools.iter().for_each(|pool| render_pool(pool, &mut page));
    if let Some(events) = &snapshot.events {
        render_events(events, &mut page);
    }
    page.push_str(
        "</div>\n<section id=\"events\" aria-label=\"Recent events\" hidden>\n\
         <h2>Recent events</h2>\n<ol class=\"events\"></ol>\n</section>\n",
    );
    let _ = write!(page, "</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n");
    page
}

fn render_pool(pool: &PoolSnapshot, page: &mut String) {
    let name = escape(&pool.name);
    let _ = writeln!(
        page,
        "<section aria-label=\"Pool {name}\">\n<h2>Pool {name}</h2>\n\
         <p>{} of {} workers ready. Class {}, app {}. {}</p>",
        pool.ready,
        pool.target,
        escape(&pool.class),
        escape(&pool.app),
        pool.if_counted(pool.totals.work.counts.units).map_or(
            "The program's units of work are not known.".to_owned(),
            |units| format!("{units} units of work done, {} in progress.", pool.in_flight())
        )
    );
    for listener in &pool.listeners {
        let length = listener.queue_length.map_or("unknown".to_owned(), |it| it.to_string());
        let _ = writeln!(page, "<p>{}: queue length {length}.</p>", escape(&listener.address));
    }
    let _ = writeln!(
        page,
        "<div class=\"wide\" role=\"region\" tabindex=\"0\" aria-label=\"Table of pool {name}\">\n\
         <table>\n<caption>Workers of pool {name}</caption>\n\
         <thead><tr><th scope=\"col\">Slot<th scope=\"col\">PID<th scope=\"col\">State\
         <th scope=\"col\">Generation<th scope=\"col\">Up<th scope=\"col\" class=\"number\">Units\
         <th scope=\"col\" class=\"number\">Clients<th scope=\"col\">Heartbeat\
         <th scope=\"col\">Works on</tr></thead>\n<tbody>"
    );
    pool.workers.iter().for_each(|worker| render_worker(worker, page));
    for (slot, left) in &pool.waiting_slots {
        let _ = writeln!(
            page,
            "<tr><td>{slot}<td><td colspan=\"7\">waits {} before its next worker</tr>",
            age(*left)
        );
    }
    page.push_str("</tbody>\n</table>\n</div>\n");
    pool.last_exits.iter().for_each(|exit| render_exit(exit, page));
    page.push_str("</section>\n");
}

fn render_worker(worker: &WorkerSnapshot, page: &mut String) {
    let oldest = worker.in_flight.iter().max_by_key(|unit| unit.age);
    let work = oldest.map_or("idle".to_owned(), |unit| {
        let others = match worker.in_flight.len() {
            0 | 1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        format!("{} for {}{others}", escape(&unit.label), age(unit.age))
    });
    let _ = writeln!(
        page,
        "<tr><td>{}<td>{}<td class=\"state {state}\">{state}<td>{}<td>{}<td class=\"number\">{}\
         <td class=\"number\">{}<td>{}<td>{work}</tr>",
        worker.slot,
        worker.pid,
        worker.generation,
        age(worker.uptime),
        if worker.has_program { "–".to_owned() } else { worker.counts.units.to_string() },
        worker.clients,
        worker.heartbeat_age.map_or("unknown".to_owned(), |it| format!("{} ago", age(it))),
        state = worker.state,
    );
}

fn render_exit(exit: &ExitSnapshot, page: &mut String) {
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

/// Writes the last records of the master, the newest first.
fn render_events(events: &EventRing, page: &mut String) {
    let (mut texts, mut number) = (Vec::new(), events.before_last(EVENTS_SHOWN));
    while let NextEvent::Record(this, text) = events.after(number) {
        number = this;
        texts.push(text);
    }
    page.push_str(
        "<section aria-label=\"Recent events\">\n<h2>Recent events</h2>\n<ol class=\"events\">\n",
    );
    for text in texts.iter().rev() {
        let Ok(Value::Object(mut fields)) = serde_json::from_str(text) else { continue };
        let mut take = |name: &str| match fields.remove(name) {
            Some(Value::String(text)) => escape(&text),
            other => other.map_or(String::new(), |value| escape(&value.to_string())),
        };
        let (time, level, message) = (take("time"), take("level"), take("message"));
        take("seq");
        let _ = write!(page, "<li>{time} {level} <b>{message}</b>");
        for (key, value) in &fields {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let _ = write!(page, " {}={}", escape(key), escape(&value));
        }
        page.push_str("</li>\n");
    }
    page.push_str("</ol>\n</section>\n");
}

/// Returns a duration to at most a thousandth, such as `2m 3s` or `120ms`.
fn age(duration: Duration) -> String {
    let precision = if duration.as_secs() > 0 { 1000 } else { 1 };
    let millis = as_millis(duration) / precision * precision;
    humantime::format_duration(Duration::from_millis(millis)).to_string()
}

/// Escapes what ends a text in HTML, and shows control characters and those that change the direction
/// of a text.
fn escape(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b" /-_.:=?".contains(&byte);
    if text.bytes().all(is_plain) {
        return text.to_owned(); // there may be thousands of workers
    }
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push_str(&log::escape(character.encode_utf8(&mut [0; 4]))),
        }
    }
    escaped
}
