//! What one source says: some options as checked texts, and perhaps an app. It must never know the
//! syntax of a file or of a command line, nor what an option means.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::error::{SettingsError, Source};
use super::value::{Form, Name};
use super::suggest::closest_match;
use super::arity::{ValueError, Kind};
use super::schema::{KEYS, Key, Settings};
use crate::app::Options;

/// What one source says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overlay {
    options: Vec<Given>,
    app: Option<GivenApp>,
}

/// One option as a source gave it.
#[derive(Clone)]
struct Given {
    key: &'static Key,
    texts: Vec<String>,
    source: Source,
}

impl std::fmt::Debug for Given {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {:?} # {}", self.key.name, self.texts, self.source)
    }
}

/// An app and all its options; a later source replaces them together.
#[derive(Clone, Debug)]
struct GivenApp {
    name: String,
    options: Options,
    source: Source,
    /// Where each option stands, if that is elsewhere.
    places: BTreeMap<String, Source>,
}

/// Variables that the runtime sets or reads for purposes of its own.
const RESERVED: [&str; 5] =
    ["OSTLER_CONFIG", "OSTLER_SLOT", "OSTLER_POOL", "OSTLER_GENERATION", "OSTLER_UPGRADE"];

/// How the variables of this program begin.
pub(super) const PREFIX: &str = "OSTLER_";

/// The name and the key of an app, in every source.
pub(super) const APP: &str = "app";

/// Options of an app have short names: they must fit a line of YAML.
const OPTION_NAME_BYTES_MAX: usize = 128;

impl Overlay {
    /// Adds an option, once its texts have been checked.
    pub(crate) fn give(
        &mut self,
        key: &'static Key,
        texts: Vec<String>,
        source: Source,
    ) -> Result<(), SettingsError> {
        if let Err(fault) = judge(key, &texts) {
            return Err(bad_value(key, &texts, fault, source));
        }
        self.options.push(Given { key, texts, source });
        Ok(())
    }

    /// Sets the app and its options, once their names have been checked.
    pub(crate) fn give_app(
        &mut self,
        name: String,
        options: Options,
        source: Source,
    ) -> Result<(), SettingsError> {
        let bad = |value: &str, why: &str| SettingsError::InvalidValue {
            source: source.clone(),
            key: APP.into(),
            value: Some(value.into()),
            reason: why.into(),
        };
        if let Err(why) = Name.parse(&name) {
            return Err(bad(&name, &why));
        }
        if name.contains('=') {
            return Err(bad(&name, "is an option, not an app: give the name of an app before it"));
        }
        if let Some((option, why)) =
            options.keys().find_map(|option| Some((option, bad_option_name(option)?)))
        {
            return Err(bad(option, why));
        }
        self.app = Some(GivenApp { name, options, source, places: BTreeMap::new() });
        Ok(())
    }

    /// Says where the options of the app stand, which has been given.
    pub(super) fn place_options(&mut self, places: BTreeMap<String, Source>) {
        if let Some(app) = &mut self.app {
            app.places = places;
        }
    }

    /// What the `OSTLER_*` variables say, and a warning for each that means nothing. Lists are
    /// separated by commas.
    pub(crate) fn from_env(
        variables: &[(OsString, OsString)],
    ) -> Result<(Self, Vec<String>), SettingsError> {
        let (mut overlay, mut warnings) = (Self::default(), Vec::new());
        for (name, value) in variables {
            let name = name.to_string_lossy();
            if !name.starts_with(PREFIX) || RESERVED.contains(&name.as_ref()) {
                continue;
            }
            let key = KEYS.iter().find(|key| key.variable() == name);
            if key.is_none() && name != "OSTLER_APP" {
                warnings.push(unknown_variable(&name));
                continue;
            }
            let source = Source::Env { name: name.into_owned() };
            let Some(value) = value.to_str() else {
                return Err(SettingsError::InvalidValue {
                    source,
                    key: key.map_or(APP, |key| key.name).into(),
                    value: Some(value.to_string_lossy().into()),
                    reason: "is not UTF-8".into(),
                });
            };
            match key {
                Some(key) => overlay.give(key, split_variable(key.kind, value), source)?,
                None => overlay.give_app(value.into(), Options::new(), source)?,
            }
        }
        Ok((overlay, warnings))
    }

    /// Lays what this source says over the settings.
    pub(super) fn apply(&self, settings: &mut Settings) -> Result<(), SettingsError> {
        for Given { key, texts, source } in &self.options {
            key.set(settings, texts)
                .map_err(|fault| bad_value(key, texts, fault, source.clone()))?;
            settings.provenance.record(key.name, source.clone());
        }
        if let Some(GivenApp { name, options, source, places }) = &self.app {
            settings.provenance.options.clone_from(places);
            settings.app.clone_from(name);
            settings.app_options.clone_from(options);
            settings.provenance.record(APP, source.clone());
        }
        Ok(())
    }
}

/// Whether the key can take these texts.
pub(super) fn judge(key: &Key, texts: &[String]) -> Result<(), ValueError> {
    key.set(&mut Settings::default(), texts)
}

/// The error for a fault in the texts of a key.
pub(super) fn bad_value(key: &Key, texts: &[String], fault: ValueError, place: Source) -> SettingsError {
    SettingsError::InvalidValue {
        source: place,
        key: key.name.into(),
        value: fault.index.and_then(|at| texts.get(at)).cloned(),
        reason: fault.reason,
    }
}

/// The key that an unknown word most likely meant. Flags and their aliases are known words too.
pub(super) fn nearest_key(word: &str) -> Option<&'static str> {
    let mut words: Vec<(String, &'static str)> = vec![(APP.into(), APP)];
    for key in KEYS {
        words.push((key.name.into(), key.name));
        words.push((key.flag().replace('-', "_"), key.name));
        words.extend(key.aliases.iter().map(|alias| (alias.replace('-', "_"), key.name)));
    }
    let found = closest_match(word, words.iter().map(|(word, _)| word.as_str()))?;
    words.iter().find(|(word, _)| word == found).map(|(_, name)| *name)
}

fn unknown_variable(name: &str) -> String {
    let word = name.strip_prefix(PREFIX).unwrap_or(name).to_ascii_lowercase();
    let mut warning = format!("{} is not a setting, so it is ignored", name.escape_debug());
    if let Some(nearest) = nearest_key(&word) {
        let nearest = nearest.to_ascii_uppercase();
        warning.push_str(&format!(" (did you mean {PREFIX}{nearest}?)"));
    }
    warning
}

fn split_variable(kind: Kind, value: &str) -> Vec<String> {
    match kind {
        Kind::One | Kind::Switch | Kind::Maybe => vec![value.to_owned()],
        Kind::Many | Kind::Pairs if value.is_empty() => Vec::new(),
        Kind::Many | Kind::Pairs => value.split(',').map(|item| item.trim().to_owned()).collect(),
    }
}

fn bad_option_name(name: &str) -> Option<&'static str> {
    if name.is_empty() || name.contains('=') || name.chars().any(char::is_control) {
        Some("is not the name of an option: give at least one letter, no = or control character")
    } else if name == "name" {
        Some("cannot be an option of an app: it is the name of the app itself")
    } else if name.len() > OPTION_NAME_BYTES_MAX {
        Some("is too long for the name of an option: give at most 128 bytes")
    } else {
        None
    }
}
