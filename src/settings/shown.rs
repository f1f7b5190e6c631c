//! Settings as an operator is shown them: each value with its source, and what differs between two.
//! Values that contain environment variables may be secrets, and are hidden; so are the values of `env`.

use super::arity::Arity;
use super::dump::{overrides, overrides_app, references};
use super::error::Source;
use super::layer::APP_KEY;
use super::schema::{OPTIONS, OptionDef, Scope, Settings};

/// What is shown instead of a value that may be a secret.
const HIDDEN: &str = "********";

/// A value and its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShownValue {
    pub(crate) key: String,
    /// `None` if there is none.
    pub(crate) value: Option<String>,
    pub(crate) source: String,
}

/// A value that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShownChange {
    pub(crate) key: String,
    pub(crate) from: Option<String>,
    pub(crate) to: Option<String>,
}

impl Settings {
    /// Returns all values.
    pub(crate) fn shown_values(&self) -> Vec<ShownValue> {
        self.shown_where(|_| true, true)
    }

    /// Returns the values of a pool whose text or source differs from the master's.
    pub(crate) fn shown_overrides(&self, master: &Settings) -> Vec<ShownValue> {
        self.shown_where(|option| overrides(self, master, option), overrides_app(self, master))
    }

    /// Returns which options of a pool differ in `new`.
    pub(crate) fn pool_changes(&self, new: &Settings) -> Vec<ShownChange> {
        let mut changes = self.changes_of(Scope::Pool, new);
        let (from, to) = (self.shown_app(), new.shown_app());
        let value_of = |values: &[ShownValue], key: &str| {
            values.iter().find(|it| it.key == key).and_then(|it| it.value.clone())
        };
        let is_same = (&self.app, &self.app_options) == (&new.app, &new.app_options);
        let mut keys: Vec<_> = from.iter().chain(&to).map(|it| it.key.clone()).collect();
        keys.sort();
        keys.dedup();
        for key in keys.into_iter().filter(|_| !is_same) {
            let (from, to) = (value_of(&from, &key), value_of(&to, &key));
            if from != to || from.as_deref() == Some(HIDDEN) {
                changes.push(ShownChange { key, from, to });
            }
        }
        changes
    }

    /// Returns which options of the master differ in `new`.
    pub(crate) fn master_changes(&self, new: &Settings) -> Vec<ShownChange> {
        self.changes_of(Scope::Master, new)
    }

    fn changes_of(&self, scope: Scope, new: &Settings) -> Vec<ShownChange> {
        let options = OPTIONS.iter().filter(|option| option.scope == scope);
        let changed = options.filter(|option| !option.is_equal(self, new));
        let changes = changed.map(|option| ShownChange {
            key: option.name.to_owned(),
            from: shown_text(self, option),
            to: shown_text(new, option),
        });
        changes.collect()
    }

    fn shown_where(&self, is_shown: impl Fn(&OptionDef) -> bool, app: bool) -> Vec<ShownValue> {
        let mut values = if app { self.shown_app() } else { Vec::new() };
        values.extend(OPTIONS.iter().filter(|it| is_shown(it)).map(|option| ShownValue {
            key: option.name.to_owned(),
            value: shown_text(self, option),
            source: describe(self.source(option.name)),
        }));
        values
    }

    /// Returns the app and its options, such as `app.every`.
    fn shown_app(&self) -> Vec<ShownValue> {
        if self.app.is_empty() {
            return Vec::new();
        }
        let hidden = |key: &str, value: &str| {
            let written = self.provenance.app_references.get(key);
            let is_secret = written.is_some_and(|expanded| expanded.value == value);
            Some(if is_secret { HIDDEN } else { value }.to_owned())
        };
        let source = describe(self.source(APP_KEY));
        let mut values = vec![ShownValue {
            key: APP_KEY.to_owned(),
            value: hidden(super::layer::APP_NAME_KEY, &self.app),
            source,
        }];
        values.extend(self.app_options.iter().map(|(name, value)| ShownValue {
            key: format!("{APP_KEY}.{name}"),
            value: hidden(name, value),
            source: describe(self.option_source(name)),
        }));
        values
    }
}

fn shown_text(settings: &Settings, option: &OptionDef) -> Option<String> {
    if references(settings, option).is_some() {
        return Some(HIDDEN.to_owned());
    }
    let mut texts = option.format(settings);
    match option.arity {
        Arity::Optional if texts.is_empty() => None,
        // The environment of workers: its names are shown.
        Arity::PairList => {
            for text in &mut texts {
                let name = text.split('=').next().unwrap_or_default();
                *text = format!("{name}={HIDDEN}");
            }
            Some(texts.join(", "))
        }
        _ => Some(texts.join(", ")),
    }
}

fn describe(source: &Source) -> String {
    match source {
        Source::Default => "default".to_owned(),
        Source::File { .. } => format!("file {source}"),
        Source::Env { .. } | Source::PlatformEnv { .. } => format!("environment {source}"),
        Source::Flag { flag } => format!("flag {flag}"),
    }
}
