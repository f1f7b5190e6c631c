use std::fmt::Write;
use std::{env, fs};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::{Buffer, Cell};
use ratatui::style::{Color, Modifier};
use serde_json::{Value, json};

use super::super::status::Status;
use super::render::{Look, draw};
use super::state::{Action, Change, Key, Mode, Sort, Top};

const PLAIN: Look = Look { has_color: false, has_unicode: false };
const FULL: Look = Look { has_color: true, has_unicode: true };

fn worker(slot: u64, pid: u64, state: &str, seconds: u64, in_flight: &Value) -> Value {
    json!({
        "pid": pid, "slot": slot, "generation": 3, "state": state, "uptime_ms": 7_260_000,
        "units": seconds * (300 + slot * 10), "clients": 3 + slot,
        "heartbeat_age_ms": 10 * slot + 4, "memory_bytes": 4_300_000 + slot * 100_000,
        "cpu_ms": seconds * (90 + slot), "threads": 1, "near_misses": 0, "in_flight": in_flight,
    })
}

/// Returns the status of an invented master after so many seconds under a load that goes up and down.
fn status(seconds: u64) -> Status {
    let load = |second: u64| 1200 + (second * 7919 % 13) * 40 + (second * second % 45) * 12;
    let units: u64 = (0..=seconds).map(load).sum();
    let slow: u64 = (0..=seconds).map(|second| second * second % 60).sum();
    let unit = |thread, label, age_ms| json!({"thread": thread, "label": label, "age_ms": age_ms});
    let workers = [
        worker(0, 4712, "ready", seconds, &json!([unit(0, "GET /", 1)])),
        worker(1, 4713, "ready", seconds, &json!([])),
        worker(2, 4714, "hung", 30, &json!([unit(0, "GET /report", 31_200), unit(1, "GET /", 2)])),
        worker(3, 4733, "booting", 0, &json!([])),
    ];
    let exit = json!({"pid": 4690, "slot": 2, "reason": "hung", "exit": "SIGABRT", "note": "",
        "uptime_ms": 3_600_000, "age_ms": 65_000});
    let pool = json!({
        "name": "web", "class": "threads", "app": "shop", "generation": 3, "target": 4, "ready": 3,
        "in_flight": 3, "units_total": units, "busy_seconds_total": units as f64 / 800.0,
        "latency": [[1500, units - slow], [24_000, slow]], "workers": workers,
        "listeners": [{"address": "0.0.0.0:80", "queue_length": 2}], "last_exits": [exit],
    });
    let job = json!({"pid": 4720, "slot": 0, "state": "ready", "uptime_ms": 60_000, "units": seconds, "threads": 1});
    let jobs = json!({
        "name": "jobs", "class": "sync", "app": "tick", "generation": 3, "target": 1, "ready": 1,
        "in_flight": 0, "units_total": 0, "busy_seconds_total": 0.0, "latency": [],
        "workers": [job], "listeners": [],
    });
    Status::parse(&json!({
        "pid": 4711, "version": "0.1.0", "proc_name": "shop", "phase": "running", "ready": true,
        "uptime_ms": 7_380_000 + seconds * 1000, "generation": 3, "pools": [pool, jobs],
    }))
}

/// Returns the view after a minute.
fn minute() -> Top {
    let mut top = Top::default();
    (0..=60).for_each(|second| top.on_status(status(second)));
    top
}

fn drawn(top: &mut Top, look: Look, width: u16, height: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    terminal.draw(|frame| draw(frame, top, look)).expect("drawn");
    terminal.backend().buffer().clone()
}

/// Returns the lines of a screen, without the spaces at their ends.
fn lines(buffer: &Buffer) -> Vec<String> {
    let width = usize::from(buffer.area.width);
    let row =
        |cells: &[Cell]| cells.iter().map(Cell::symbol).collect::<String>().trim_end().to_owned();
    buffer.content.chunks(width).map(row).collect()
}

fn screen(top: &mut Top) -> String {
    lines(&drawn(top, PLAIN, 80, 24)).join("\n")
}

fn press(top: &mut Top, keys: &str) -> Vec<Action> {
    keys.chars().map(|key| top.on_key(Key::Char(key))).collect()
}

#[test]
fn screen_of_80_by_24_has_everything_in_ascii() {
    let mut top = minute();
    let shown = lines(&drawn(&mut top, PLAIN, 80, 24));
    assert!(shown.iter().all(|line| line.is_ascii()), "{shown:#?}");
    assert_eq!(shown[0], "shop: running, ready  master 4711  0.1.0  up 2h 4m  generation 3");
    for (row, start) in [(2, "requests/s "), (3, "busy "), (4, "p50        "), (5, "p99 ")] {
        assert!(shown[row].starts_with(start), "{shown:#?}");
        assert!(shown[row].len() > 70, "{shown:#?}");
    }
    assert!(shown[6].starts_with("pool web: 3/4 ready, threads shop, "), "{shown:#?}");
    assert_eq!(
        shown[8..14],
        [
            "  WORKER     PID STATE         UP DONE/s   CPU   MEM  BEAT    AGE WORKS ON",
            "> web/0     4712 ready      2h 1m    300    9%  4.1M   4ms    1ms GET /",
            "  web/1     4713 ready      2h 1m    310    9%  4.2M  14ms",
            "  web/2     4714 hung       2h 1m      0    0%  4.3M  24ms    31s GET /report +1",
            "  web/3     4733 booting    2h 1m      0    0%  4.4M  34ms",
            "  jobs/0    4720 ready      1m 0s      1     -     -     -",
        ],
        "{shown:#?}"
    );
    assert!(shown[23].starts_with("q quit  Enter detail"), "{shown:#?}");
}

#[test]
fn colors_are_used_only_if_wanted() {
    let has_color = |look| {
        let buffer = drawn(&mut minute(), look, 80, 24);
        buffer.content.iter().any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
    };
    assert!(has_color(FULL));
    assert!(!has_color(PLAIN));
}

#[test]
fn any_size_is_drawn() {
    for (width, height) in [(1, 1), (5, 3), (20, 10), (79, 8), (300, 100)] {
        for keys in ["", "?", "\0"] {
            let mut top = minute();
            press(&mut top, keys);
            drawn(&mut top, FULL, width, height);
            top.on_key(Key::Enter);
            drawn(&mut top, FULL, width, height);
        }
        drawn(&mut Top::default(), FULL, width, height);
    }
}

#[test]
fn workers_are_sorted_and_filtered() {
    let mut top = minute();
    let places =
        |top: &Top| top.workers().iter().map(|it| it.place()).collect::<Vec<_>>().join(" ");
    assert_eq!(places(&top), "web/0 web/1 web/2 web/3 jobs/0");
    for (sort, expected) in [
        (Sort::Age, "web/2 web/0 web/1 web/3 jobs/0"),
        (Sort::Rate, "web/1 web/0 jobs/0 web/2 web/3"),
        (Sort::Cpu, "web/1 web/0 web/2 web/3 jobs/0"),
        (Sort::Memory, "web/3 web/2 web/1 web/0 jobs/0"),
        (Sort::Slot, "web/0 web/1 web/2 web/3 jobs/0"),
    ] {
        press(&mut top, "s");
        assert_eq!((top.sort, places(&top)), (sort, expected.to_owned()), "{sort:?}");
    }
    press(&mut top, "/REPORT");
    assert!(screen(&mut top).ends_with("filter: REPORT_   Enter keeps it, Esc clears it"));
    assert_eq!(places(&top), "web/2");
    top.on_key(Key::Enter);
    assert!(screen(&mut top).contains("filter: REPORT"));
    assert_eq!(top.mode, Mode::List);
    press(&mut top, "/x");
    assert!(screen(&mut top).contains("no worker matches the filter"));
    top.on_key(Key::Backspace);
    top.on_key(Key::Escape);
    assert_eq!(places(&top), "web/0 web/1 web/2 web/3 jobs/0");
}

#[test]
fn selection_stays_with_its_worker() {
    let mut top = minute();
    screen(&mut top);
    top.on_key(Key::Down);
    top.on_key(Key::Down);
    assert_eq!(top.selected_worker().map(|it| it.pid), Some(4714));
    press(&mut top, "s");
    assert_eq!((top.selected_index(), top.selected_worker().map(|it| it.pid)), (0, Some(4714)));
    for (key, pid) in
        [(Key::End, 4720), (Key::PageUp, 4714), (Key::PageDown, 4720), (Key::Home, 4714)]
    {
        top.on_key(key);
        assert_eq!(top.selected_worker().map(|it| it.pid), Some(pid), "{key:?}");
    }
}

#[test]
fn detail_has_the_threads_and_the_last_exit() {
    let mut top = minute();
    press(&mut top, "jj");
    top.on_key(Key::Enter);
    let shown = screen(&mut top);
    for words in [
        "slot web/2",
        "thread 0 works on GET /report for 31s",
        "thread 1 works on GET / for 2ms",
        "last exit: worker 4690, 1m 5s ago",
        "reason: hung",
    ] {
        assert!(shown.contains(words), "{shown}\nlacks {words}");
    }
    press(&mut top, "j");
    assert!(screen(&mut top).contains("slot web/3"));
    top.on_key(Key::Escape);
    assert_eq!(top.mode, Mode::List);
    assert_eq!(press(&mut top, "q"), [Action::Quit]);
}

#[test]
fn changes_are_confirmed() {
    let recycle = Change::Recycle { pool: "web".into(), slot: 1 };
    let mut top = minute();
    assert_eq!(press(&mut top, "jr"), [Action::None, Action::None]);
    assert!(screen(&mut top).ends_with("recycle web/1? y: yes, any other key: no"));
    assert_eq!(press(&mut top, "n"), [Action::None]);
    assert!(screen(&mut top).contains("nothing changed"));
    assert_eq!(press(&mut top, "ry"), [Action::None, Action::Change(recycle)]);
    for (keys, more) in [("+y", true), ("-y", false)] {
        let scale = Change::Scale { pool: "web".into(), more };
        assert_eq!(press(&mut top, keys), [Action::None, Action::Change(scale)]);
    }
    // A q is an answer here, and does not quit.
    assert_eq!(press(&mut top, "rq"), [Action::None, Action::None]);
    let mut empty = Top::default();
    assert_eq!(press(&mut empty, "ry"), [Action::None, Action::None]);
}

#[test]
fn absent_and_new_masters_are_told() {
    let mut top = Top::default();
    top.on_trouble("there is no socket".into(), 3);
    assert!(screen(&mut top).contains("NO ANSWER for 3 s, trying again: there is no socket"));
    let mut top = minute();
    top.on_trouble("no answer within 3s".into(), 4);
    let shown = screen(&mut top);
    assert!(shown.contains("NO ANSWER for 4 s") && shown.contains("web/0"), "{shown}");
    let mut new = status(1);
    new.pid = 5000;
    top.on_status(new);
    assert!(screen(&mut top).contains("master 5000 has taken over from 4711"));
    let mut reloading = status(2);
    let operation = json!({"id": 1, "command": "reload",
        "progress": {"phase": "rolling", "done": 1, "total": 4}});
    reloading.operation = Some(super::super::operation::Operation::parse(&operation));
    top.on_status(reloading);
    assert!(screen(&mut top).contains("[#####---------------] reload: rolling, 1 of 4"));
}

/// `OSTLER_WRITE_DOCS=1 cargo test --bin ostlerctl picture` writes it.
#[test]
fn picture_in_the_guide_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/src/images/top.svg");
    let mut top = minute();
    press(&mut top, "jj");
    let picture = svg(&drawn(&mut top, FULL, 80, 24));
    if env::var_os("OSTLER_WRITE_DOCS").is_some() {
        fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/src/images")).expect("made");
        fs::write(path, &picture).expect("written");
    }
    let written = fs::read_to_string(path).unwrap_or_default();
    let advice = "OSTLER_WRITE_DOCS=1 cargo test --bin ostlerctl picture";
    assert!(written == picture, "{path} differs: {advice}");
}

/// Returns a picture of a screen.
fn svg(buffer: &Buffer) -> String {
    const CELL: (usize, usize) = (8, 18);
    let (columns, rows) = (usize::from(buffer.area.width), usize::from(buffer.area.height));
    let (width, height) = (columns * CELL.0 + 16, rows * CELL.1 + 16);
    let mut picture = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"monospace\" font-size=\"13\">\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"6\" fill=\"#1c1c1c\"/>\n"
    );
    for (row, cells) in buffer.content.chunks(columns).enumerate() {
        for run in runs(cells) {
            let (first, text) = run;
            let cell = &cells[first];
            let color = match cell.fg {
                Color::Red => "#ff6b6b",
                Color::Yellow => "#e5c07b",
                Color::Cyan => "#56b6c2",
                _ => "#d0d0d0",
            };
            let is_reversed = cell.modifier.contains(Modifier::REVERSED);
            let (x, y) = (8 + first * CELL.0, 8 + row * CELL.1);
            let length = text.chars().count() * CELL.0;
            if is_reversed {
                let _ = writeln!(
                    picture,
                    "<rect x=\"{x}\" y=\"{y}\" width=\"{length}\" height=\"{}\" fill=\"{color}\"/>",
                    CELL.1
                );
            }
            if text.trim().is_empty() {
                continue;
            }
            let fill = if is_reversed { "#1c1c1c" } else { color };
            let weight =
                if cell.modifier.contains(Modifier::BOLD) { " font-weight=\"bold\"" } else { "" };
            let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
            let _ = writeln!(
                picture,
                "<text x=\"{x}\" y=\"{}\" textLength=\"{length}\" fill=\"{fill}\"{weight} \
                 xml:space=\"preserve\">{text}</text>",
                y + 13
            );
        }
    }
    picture.push_str("</svg>\n");
    picture
}

/// Splits a row into texts of one style, each with its first column.
fn runs(cells: &[Cell]) -> Vec<(usize, String)> {
    let mut runs: Vec<(usize, String)> = Vec::new();
    for (column, cell) in cells.iter().enumerate() {
        match runs.last_mut() {
            Some((first, text)) if cells[*first].style() == cell.style() => {
                text.push_str(cell.symbol())
            }
            _ => runs.push((column, cell.symbol().to_owned())),
        }
    }
    runs
}
