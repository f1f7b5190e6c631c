//! Settings as YAML that loads back. It must never know which options there are.

use super::configuration::{Configuration, Pool};
use super::error::Source;
use super::overlay::APP;
use super::shape::Kind;
use super::table::{KEYS, Key, Settings};
use super::vars::escape;

/// All values of the master, and of each pool those that are its own.
pub(super) fn describe_all(configuration: &Configuration) -> String {
    let Configuration { master, pools, is_divided } = configuration;
    let mut out = describe(master);
    if !is_divided {
        return out;
    }
    out.push_str("pools:\n");
    for Pool { name, place, settings } in pools {
        let own = describe_unlike(master, settings);
        let empty = if own.is_empty() { " {}" } else { "" };
        out.push_str(&format!("  {}:{empty}{}\n", scalar(name), comment(place)));
        own.lines().for_each(|line| out.push_str(&format!("    {line}\n")));
    }
    out
}

/// Every value on its line, with its source as a comment.
pub(super) fn describe(settings: &Settings) -> String {
    let mut out = app(settings);
    KEYS.iter().for_each(|key| out.push_str(&value(settings, key)));
    out
}

/// The values that differ, or that come from elsewhere.
fn describe_unlike(master: &Settings, settings: &Settings) -> String {
    let mut out = String::new();
    let is_own = |key: &str| settings.source(key) != master.source(key);
    let options = (&settings.app, &settings.app_options);
    if is_own(APP) || options != (&master.app, &master.app_options) {
        out.push_str(&app(settings));
    }
    for key in KEYS {
        if is_own(key.name) || key.show(settings) != key.show(master) {
            out.push_str(&value(settings, key));
        }
    }
    out
}

fn comment(source: &Source) -> String {
    format!("  # {}", source.to_string().escape_debug())
}

fn app(settings: &Settings) -> String {
    let (name, comment) = (scalar(&escape(&settings.app)), comment(settings.source(APP)));
    if settings.app_options.is_empty() {
        return format!("app: {name}{comment}\n");
    }
    let mut out = format!("app:{comment}\n  name: {name}\n");
    for (name, value) in &settings.app_options {
        out.push_str(&format!("  {}: {}\n", scalar(name), scalar(&escape(value))));
    }
    out
}

fn value(settings: &Settings, key: &Key) -> String {
    let (name, comment) = (key.name, comment(settings.source(key.name)));
    let texts: Vec<String> = key.show(settings).iter().map(|text| escape(text)).collect();
    match (key.kind, texts.as_slice()) {
        (Kind::Maybe, []) => format!("{name}: null{comment}\n"),
        (_, []) => format!("{name}: []{comment}\n"),
        (Kind::One | Kind::Switch | Kind::Maybe, [text, ..]) => {
            format!("{name}: {}{comment}\n", scalar(text))
        }
        (Kind::Many | Kind::Pairs, texts) => {
            let mut out = format!("{name}:{comment}\n");
            texts.iter().for_each(|text| out.push_str(&format!("  - {}\n", scalar(text))));
            out
        }
    }
}

/// A text as a YAML scalar: as it is where that is safe, else in double quotes.
fn scalar(text: &str) -> String {
    if is_plain(text) {
        return text.to_owned();
    }
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            _ if c.is_alphanumeric() => out.push(c),
            _ => out.push_str(&format!("\\U{:08x}", u32::from(c))),
        }
    }
    out.push('"');
    out
}

/// Whether the text, unquoted, can be nothing but itself: no sign of YAML's, no word for null.
fn is_plain(text: &str) -> bool {
    let usual = |b: u8| b.is_ascii_alphanumeric() || b"_./".contains(&b);
    text.bytes().next().is_some_and(usual)
        && text.bytes().all(|b| usual(b) || b":@=+,-".contains(&b))
        && !text.ends_with(':')
        && !text.eq_ignore_ascii_case("null")
}
