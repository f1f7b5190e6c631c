//! Writes settings as YAML that loads back. It must never know a single option.

use super::arity::Arity;
use super::config::{Configuration, Pool};
use super::error::Source;
use super::interpolate::{Expanded, escape};
use super::layer::{APP_KEY, APP_NAME_KEY};
use super::schema::{OPTIONS, OptionDef, Settings};

impl Configuration {
    /// Returns YAML that loads back to an equal configuration: one line for each value, with its source
    /// as a comment.
    pub fn to_yaml(&self) -> String {
        dump_config(self, None)
    }

    /// Returns YAML of the values that differ from `defaults`, with their sources. It loads back to an
    /// equal configuration if no source sets another value.
    pub(crate) fn changes_to_yaml(&self, defaults: &Settings) -> String {
        match dump_config(self, Some(defaults)) {
            empty if empty.is_empty() => "{}  # every setting has its default\n".to_owned(),
            changes => changes,
        }
    }
}

impl Settings {
    /// Returns YAML that loads back to equal settings: one line for each value, with its source as a
    /// comment.
    pub fn to_yaml(&self) -> String {
        dump_settings(self, None)
    }
}

impl Settings {
    /// Returns the texts of a value for people: as a file yields them if they contain environment
    /// variables, which may be secrets.
    pub(crate) fn shown_texts(&self, key: &str) -> Vec<String> {
        let Some(option) = OPTIONS.iter().find(|option| option.name == key) else {
            return Vec::new();
        };
        references(self, option).map_or_else(|| option.format(self), <[String]>::to_vec)
    }
}

/// Writes all values of the master, or those that differ from `defaults`, and for each pool those that
/// differ from the master's.
fn dump_config(configuration: &Configuration, defaults: Option<&Settings>) -> String {
    let Configuration { master, pools, has_named_pools } = configuration;
    let mut out = dump_settings(master, defaults);
    if !has_named_pools {
        return out;
    }
    out.push_str("pools:\n");
    for Pool { name, source, settings } in pools {
        let overrides = dump_overrides(master, settings, defaults.is_some());
        let empty = if overrides.is_empty() { " {}" } else { "" };
        out.push_str(&format!("  {}:{empty}{}\n", scalar(name), source_comment(source)));
        overrides.lines().for_each(|line| out.push_str(&format!("    {line}\n")));
    }
    out
}

/// Writes every value that differs from `defaults` on its line, with its source as a comment.
fn dump_settings(settings: &Settings, defaults: Option<&Settings>) -> String {
    let mut out = String::new();
    if defaults.is_none_or(|defaults| !has_same_app(defaults, settings)) {
        out.push_str(&dump_app(settings));
    }
    let is_shown = |option: &&OptionDef| defaults.is_none_or(|it| !option.is_equal(it, settings));
    OPTIONS.iter().filter(is_shown).for_each(|option| out.push_str(&dump_option(settings, option)));
    out
}

/// Writes the values that differ from the master's: in text or source, or in text alone, if `only_text`.
fn dump_overrides(master: &Settings, settings: &Settings, only_text: bool) -> String {
    let mut out = String::new();
    if overrides_app(settings, master) && !(only_text && has_same_app(settings, master)) {
        out.push_str(&dump_app(settings));
    }
    let is_shown = |option: &&OptionDef| match only_text {
        true => !option.is_equal(settings, master),
        false => overrides(settings, master, option),
    };
    for option in OPTIONS.iter().filter(is_shown) {
        out.push_str(&dump_option(settings, option));
    }
    out
}

/// Returns whether the text or the source of a pool's option differs from the master's.
pub(super) fn overrides(pool: &Settings, master: &Settings, option: &OptionDef) -> bool {
    pool.source(option.name) != master.source(option.name) || !option.is_equal(pool, master)
}

/// Returns whether the app of a pool, its options or its source differ from the master's.
pub(super) fn overrides_app(pool: &Settings, master: &Settings) -> bool {
    pool.source(APP_KEY) != master.source(APP_KEY) || !has_same_app(pool, master)
}

fn has_same_app(a: &Settings, b: &Settings) -> bool {
    (&a.app, &a.app_options) == (&b.app, &b.app_options)
}

fn source_comment(source: &Source) -> String {
    format!("  # {}", source.to_string().escape_debug())
}

/// Writes the app and its options; nothing if there is no app.
fn dump_app(settings: &Settings) -> String {
    if settings.app.is_empty() {
        return String::new();
    }
    let source_text = |key: &str, value: &str| {
        let written = settings.provenance.app_references.get(key);
        let written = written.filter(|expanded| expanded.value == value);
        scalar(&written.map_or_else(|| escape(value), Expanded::source_text))
    };
    let name = source_text(APP_NAME_KEY, &settings.app);
    let comment = source_comment(settings.source(APP_KEY));
    if settings.app_options.is_empty() {
        return format!("app: {name}{comment}\n");
    }
    let mut out = format!("app:{comment}\n  name: {name}\n");
    for (name, value) in &settings.app_options {
        out.push_str(&format!("  {}: {}\n", scalar(name), source_text(name, value)));
    }
    out
}

/// Returns texts for a file that yield the value. Those that contain environment variables name them.
fn source_texts(settings: &Settings, option: &OptionDef) -> Vec<String> {
    let escaped = || option.format(settings).iter().map(|text| escape(text)).collect();
    references(settings, option).map_or_else(escaped, <[String]>::to_vec)
}

/// Returns the texts that name environment variables, unless the value was changed since.
pub(super) fn references<'s>(settings: &'s Settings, option: &OptionDef) -> Option<&'s [String]> {
    let references = settings.provenance.references.get(option.name)?;
    (references.texts == option.format(settings)).then_some(&references.source_texts)
}

fn dump_option(settings: &Settings, option: &OptionDef) -> String {
    let name = option.name;
    let comment = source_comment(settings.source(name));
    let texts = source_texts(settings, option);
    match (option.arity, texts.as_slice()) {
        (Arity::Optional, []) => format!("{name}: null{comment}\n"),
        (_, []) => format!("{name}: []{comment}\n"),
        (Arity::Single | Arity::Flag | Arity::Optional, [text, ..]) => {
            format!("{name}: {}{comment}\n", scalar(text))
        }
        (Arity::List | Arity::PairList, texts) => {
            let mut out = format!("{name}:{comment}\n");
            texts.iter().for_each(|text| out.push_str(&format!("  - {}\n", scalar(text))));
            out
        }
    }
}

/// Writes a text as a YAML scalar: plain if that is safe, otherwise in double quotes.
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

/// Returns whether the text is safe without quotes: it contains no YAML syntax and is not null.
fn is_plain(text: &str) -> bool {
    let is_plain_byte = |b: u8| b.is_ascii_alphanumeric() || b"_./".contains(&b);
    text.bytes().next().is_some_and(is_plain_byte)
        && text.bytes().all(|b| is_plain_byte(b) || b":@=+,-".contains(&b))
        && !text.ends_with(':')
        && !text.eq_ignore_ascii_case("null")
}
