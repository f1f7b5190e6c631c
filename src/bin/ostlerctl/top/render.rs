//! Draws the screen. Pure: from the state to cells.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::Paragraph;

use super::super::status::{Pool, Worker};
use super::super::text::{bytes, duration};
use super::super::why;
use super::history::Point;
use super::state::{Mode, Top};

/// How many pools have a line of their own.
const POOLS_SHOWN: usize = 4;

const HELP: &str = "\
up, down, j, k    choose a worker           Enter  its details and threads
PageUp, PageDown  a page of workers         Esc    back; clear the filter
Home, End         the first, the last       /      filter by place, pid, state, work
s                 sort by the next column   r      recycle the worker, after a question
+, -              one more worker of its pool, or one fewer, after a question
q                 quit

requests/s, busy, p50 and p99 cover the time between two updates. Busy is the
share of the workers' threads that worked. A dash means: the master does not say.";

/// What the terminal can show.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) has_color: bool,
    /// Whether it shows more than ASCII.
    pub(super) has_unicode: bool,
}

/// Draws all of it, and notes how many rows a page of workers has.
pub(super) fn draw(frame: &mut Frame<'_>, top: &mut Top, look: Look) {
    let pool_rows = top.status.pools.len().clamp(1, POOLS_SHOWN + 1) as u16;
    let rows = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(4),
        Constraint::Length(pool_rows),
        Constraint::Min(1),
        Constraint::Length(1),
    ]);
    let [title, news, charts, pools, body, footer] = rows.areas(frame.area());
    show(frame, title, vec![title_line(top, title.width)]);
    show(frame, news, vec![news_line(top, look)]);
    show(frame, charts, chart_lines(top, charts.width, look));
    show(frame, pools, pool_lines(&top.status.pools));
    top.page_rows = usize::from(body.height.saturating_sub(1));
    let body_lines = match top.mode {
        Mode::Help => HELP.lines().map(Line::from).collect(),
        Mode::Detail => detail_lines(top),
        Mode::List | Mode::Filter | Mode::Confirm(_) => worker_lines(top, look),
    };
    show(frame, body, body_lines);
    show(frame, footer, vec![footer_line(top)]);
}

fn show(frame: &mut Frame<'_>, area: Rect, lines: Vec<Line<'_>>) {
    frame.render_widget(Paragraph::new(lines), area);
}

fn title_line(top: &Top, width: u16) -> Line<'static> {
    let status = &top.status;
    let text = if top.is_connected {
        let ready = if status.is_ready { "ready" } else { "NOT READY" };
        format!(
            "{}: {}, {ready}  master {}  {}  up {}  generation {}",
            status.proc_name,
            status.phase,
            status.pid,
            status.version,
            duration(status.uptime_ms),
            status.generation
        )
    } else {
        "ostlerctl top".to_owned()
    };
    let width = usize::from(width);
    Line::from(format!("{text:width$}")).style(Style::new().add_modifier(Modifier::REVERSED))
}

/// Returns what matters most at this moment.
fn news_line(top: &Top, look: Look) -> Line<'static> {
    let warning = if look.has_color { Style::new().fg(Color::Red) } else { Style::new() };
    let warning = warning.add_modifier(Modifier::BOLD);
    if let Some((reason, seconds)) = &top.trouble {
        let text = format!("NO ANSWER for {seconds} s, trying again: {reason}");
        return Line::from(text).style(warning);
    }
    if let Some(operation) = &top.status.operation {
        let bar = operation.progress.bar(22);
        return Line::from(format!("{bar} {}", operation.describe()));
    }
    if let Some(peer) = top.status.peer_pid {
        return Line::from(format!("upgrade: the other master is {peer}"));
    }
    Line::from(top.message.clone())
}

/// One of the values over time.
struct Chart {
    name: &'static str,
    value: fn(&Point) -> Option<f64>,
    /// The value that fills the chart; `None` for the highest one.
    full: Option<f64>,
    format: fn(f64) -> String,
}

const CHARTS: [Chart; 4] = [
    Chart {
        name: "requests/s",
        value: |point| point.rate,
        full: None,
        format: |value| format!("{value:.0}"),
    },
    Chart {
        name: "busy",
        value: |point| point.busy,
        full: Some(1.0),
        format: |value| format!("{:.0}%", value * 100.0),
    },
    Chart { name: "p50", value: |point| point.p50_ms, full: None, format: millis },
    Chart { name: "p99", value: |point| point.p99_ms, full: None, format: millis },
];

fn chart_lines(top: &Top, width: u16, look: Look) -> Vec<Line<'static>> {
    let columns = usize::from(width).saturating_sub(22);
    let line = |chart: &Chart| {
        let skipped = top.history.points().len().saturating_sub(columns);
        let values: Vec<_> = top.history.points().skip(skipped).map(chart.value).collect();
        let latest = values.last().copied().flatten().map_or("-".to_owned(), chart.format);
        let padding = " ".repeat(columns.saturating_sub(values.len()));
        let bars = sparkline(&values, chart.full, look);
        Line::from(format!("{:10} {latest:>9}  {padding}{bars}", chart.name))
    };
    CHARTS.iter().map(line).collect()
}

/// Returns one character a value. The highest one is full, unless `full` says what is.
fn sparkline(values: &[Option<f64>], full: Option<f64>, look: Look) -> String {
    let levels: &[char] = if look.has_unicode {
        &['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█']
    } else {
        &['.', ':', '-', '=', '+', '*', '#', '@']
    };
    let highest = values.iter().flatten().copied().fold(0.0, f64::max);
    let full = full.unwrap_or(highest);
    let character = |value: &Option<f64>| match value {
        // The conversion saturates.
        Some(value) if full > 0.0 => {
            let level = (value / full * 8.0) as usize;
            levels[level.min(levels.len() - 1)]
        }
        Some(_) => levels[0],
        None => ' ',
    };
    values.iter().map(character).collect()
}

fn millis(value: f64) -> String {
    if value < 10.0 { format!("{value:.2}ms") } else { format!("{value:.0}ms") }
}

fn pool_lines(pools: &[Pool]) -> Vec<Line<'static>> {
    let line = |pool: &Pool| {
        let queue = pool.listeners.iter().filter_map(|listener| listener.queue_length);
        let queue = queue.fold(0, u64::saturating_add);
        let conditions: String = pool.conditions.iter().map(|it| format!(", {it}")).collect();
        let units =
            pool.totals.units.map(|done| format!("{done} done, {} in progress, ", pool.in_flight));
        let units = units.unwrap_or_default();
        Line::from(format!(
            "pool {}: {}/{} ready, {} {}, {units}queue {queue}{conditions}",
            pool.name, pool.ready, pool.target, pool.class, pool.app
        ))
    };
    let mut lines: Vec<_> = pools.iter().take(POOLS_SHOWN).map(line).collect();
    if pools.len() > POOLS_SHOWN {
        lines.push(Line::from(format!("and {} more pools", pools.len() - POOLS_SHOWN)));
    }
    lines
}

fn worker_lines(top: &Top, look: Look) -> Vec<Line<'static>> {
    let workers = top.workers();
    let place_width = workers.iter().map(|worker| worker.place().chars().count()).max();
    let place_width = place_width.unwrap_or(0).clamp(6, 16);
    let header = format!(
        "  {:place_width$} {:>7} {:8} {:>7} {:>6} {:>5} {:>5} {:>5} {:>6} WORKS ON",
        "WORKER", "PID", "STATE", "UP", "DONE/s", "CPU", "MEM", "BEAT", "AGE"
    );
    let mut lines = vec![Line::from(header).style(Style::new().add_modifier(Modifier::BOLD))];
    if workers.is_empty() && top.is_connected {
        let why = if top.filter.is_empty() { "no workers" } else { "no worker matches the filter" };
        lines.push(Line::from(format!("  {why}")));
    }
    let selected = top.selected_index();
    let rows = top.page_rows.max(1);
    let first = selected.saturating_sub(rows - 1).max(selected / rows * rows);
    for (index, worker) in workers.iter().enumerate().skip(first).take(rows) {
        let row = worker_row(top, worker, place_width);
        let is_selected = index == selected;
        let mark = if is_selected { '>' } else { ' ' };
        let mut style = state_style(&worker.state, look);
        if is_selected {
            style = style.add_modifier(Modifier::REVERSED);
        }
        lines.push(Line::from(format!("{mark} {row}")).style(style));
    }
    lines
}

fn worker_row(top: &Top, worker: &Worker, place_width: usize) -> String {
    let rates = top.history.worker(worker.pid);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let place: String = worker.place().chars().take(place_width).collect();
    let unit = worker.oldest_unit();
    let others = match worker.in_flight.len() {
        0 | 1 => String::new(),
        count => format!(" +{}", count - 1),
    };
    format!(
        "{place:place_width$} {:>7} {:8} {:>7} {:>6} {:>5} {:>5} {:>5} {:>6} {}",
        worker.pid,
        worker.state,
        duration(worker.uptime_ms),
        or_dash(rates.rate.map(|rate| format!("{rate:.0}"))),
        or_dash(rates.cpu.map(|cpu| format!("{:.0}%", cpu * 100.0))),
        or_dash(worker.usage.memory_bytes.map(bytes)),
        or_dash(worker.heartbeat_age_ms.map(duration)),
        unit.map_or(String::new(), |unit| duration(unit.age_ms)),
        unit.map_or(String::new(), |unit| format!("{}{others}", unit.label))
    )
}

fn state_style(state: &str, look: Look) -> Style {
    let color = match state {
        "hung" | "aborting" | "killed" => Color::Red,
        "draining" | "drained" => Color::Yellow,
        "booting" => Color::Cyan,
        _ => Color::Reset,
    };
    if look.has_color { Style::new().fg(color) } else { Style::new() }
}

fn detail_lines(top: &Top) -> Vec<Line<'static>> {
    let report = top.target().map(|target| why::report(&top.status, &target));
    let text = match report {
        Some(Ok((report, _))) => report,
        Some(Err(reason)) => reason,
        None => "no worker".to_owned(),
    };
    text.lines().map(|line| Line::from(line.to_owned())).collect()
}

fn footer_line(top: &Top) -> Line<'static> {
    let text = match &top.mode {
        Mode::Filter => format!("filter: {}_   Enter keeps it, Esc clears it", top.filter),
        Mode::Confirm(change) => format!("{}? y: yes, any other key: no", change.describe()),
        Mode::Help => "any key: back".to_owned(),
        Mode::Detail => "Esc back  up/down other worker  r recycle  + - scale  q quit".to_owned(),
        Mode::List => {
            let filter = if top.filter.is_empty() {
                String::new()
            } else {
                format!("filter: {}  ", top.filter)
            };
            format!(
                "{filter}q quit  Enter detail  / filter  s sort: {}  r recycle  + - scale  ? help",
                top.sort.name()
            )
        }
    };
    Line::from(text).style(Style::new().add_modifier(Modifier::REVERSED))
}
