//! What one source says: some options as checked texts, and perhaps an app. It must never know the
//! syntax of a file or of a command line, nor what an option means.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::arity::{Arity, ValueError};
use super::error::{SettingsError, Source};
use super::schema::{OPTIONS, OptionDef, Settings};
use super::suggest::closest_match;
use super::value::{NameValue, ValueParser};
use crate::app::Options;

/// What one source says.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConfigLayer {
    options: Vec<LayeredOption>,
    app: Option<LayeredApp>,
}

/// One option as a source gave it.
#[derive(Clone)]
struct LayeredOption {
    option: &'static OptionDef,
    texts: Vec<String>,
    source: Source,
}

impl std::fmt::Debug for LayeredOption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {:?} # {}", self.option.name, self.texts, self.source)
    }
}

/// An app and all its options; a later source replaces them together.
#[derive(Clone, Debug)]
struct LayeredApp {
    name: String,
    options: Options,
    source: Source,
    /// Where each option stands, if that is elsewhere.
    option_sources: BTreeMap<String, Source>,
}

/// Variables that the runtime sets or reads for purposes of its own.
const RESERVED_VARIABLES: [&str; 5] =
    ["OSTLER_CONFIG", "OSTLER_SLOT", "OSTLER_POOL", "OSTLER_GENERATION", "OSTLER_UPGRADE"];

/// How the variables of this program begin.
pub(super) const VARIABLE_PREFIX: &str = "OSTLER_";

/// The name and the key of an app, in every source.
pub(super) const APP_KEY: &str = "app";

/// Options of an app have short names: they must fit a line of YAML.
const OPTION_NAME_BYTES_MAX: usize = 128;

impl ConfigLayer {
    /// Adds an option, once its texts have been checked.
    pub(crate) fn set_option(
        &mut self,
        option: &'static OptionDef,
        texts: Vec<String>,
        source: Source,
    ) -> Result<(), SettingsError> {
        if let Err(error) = check_values(option, &texts) {
            return Err(invalid_value(option, &texts, error, source));
        }
        self.options.push(LayeredOption { option, texts, source });
        Ok(())
    }

    /// Sets the app and its options, once their names have been checked.
    pub(crate) fn set_app(
        &mut self,
        name: String,
        options: Options,
        source: Source,
    ) -> Result<(), SettingsError> {
        let invalid = |value: &str, why: &str| SettingsError::InvalidValue {
            source: source.clone(),
            key: APP_KEY.into(),
            value: Some(value.into()),
            reason: why.into(),
        };
        if let Err(why) = NameValue.parse(&name) {
            return Err(invalid(&name, &why));
        }
        if name.contains('=') {
            return Err(invalid(
                &name,
                "is an option, not an app: give the name of an app before it",
            ));
        }
        if let Some((option, why)) =
            options.keys().find_map(|option| Some((option, option_name_error(option)?)))
        {
            return Err(invalid(option, why));
        }
        self.app = Some(LayeredApp { name, options, source, option_sources: BTreeMap::new() });
        Ok(())
    }

    /// Says where the options of the app stand, which has been given.
    pub(super) fn set_option_sources(&mut self, option_sources: BTreeMap<String, Source>) {
        if let Some(app) = &mut self.app {
            app.option_sources = option_sources;
        }
    }

    /// What the `OSTLER_*` variables say, and a warning for each that means nothing. Lists are
    /// separated by commas.
    pub(crate) fn from_env(
        variables: &[(OsString, OsString)],
    ) -> Result<(Self, Vec<String>), SettingsError> {
        let (mut layer, mut warnings) = (Self::default(), Vec::new());
        for (name, value) in variables {
            let name = name.to_string_lossy();
            if !name.starts_with(VARIABLE_PREFIX) || RESERVED_VARIABLES.contains(&name.as_ref()) {
                continue;
            }
            let option = OPTIONS.iter().find(|key| key.variable() == name);
            if option.is_none() && name != "OSTLER_APP" {
                warnings.push(unknown_variable_warning(&name));
                continue;
            }
            let source = Source::Env { name: name.into_owned() };
            let Some(value) = value.to_str() else {
                return Err(SettingsError::InvalidValue {
                    source,
                    key: option.map_or(APP_KEY, |key| key.name).into(),
                    value: Some(value.to_string_lossy().into()),
                    reason: "is not UTF-8".into(),
                });
            };
            match option {
                Some(key) => layer.set_option(key, split_variable(key.arity, value), source)?,
                None => layer.set_app(value.into(), Options::new(), source)?,
            }
        }
        Ok((layer, warnings))
    }

    /// Lays what this source says over the settings.
    pub(super) fn apply(&self, settings: &mut Settings) -> Result<(), SettingsError> {
        for LayeredOption { option: key, texts, source } in &self.options {
            key.set(settings, texts)
                .map_err(|error| invalid_value(key, texts, error, source.clone()))?;
            settings.provenance.record(key.name, source.clone());
        }
        if let Some(LayeredApp { name, options, source, option_sources: places }) = &self.app {
            settings.provenance.options.clone_from(places);
            settings.app.clone_from(name);
            settings.app_options.clone_from(options);
            settings.provenance.record(APP_KEY, source.clone());
        }
        Ok(())
    }
}

/// Whether the key can take these texts.
pub(super) fn check_values(option: &OptionDef, texts: &[String]) -> Result<(), ValueError> {
    option.set(&mut Settings::default(), texts)
}

/// The error for a fault in the texts of a key.
pub(super) fn invalid_value(
    option: &OptionDef,
    texts: &[String],
    error: ValueError,
    source: Source,
) -> SettingsError {
    SettingsError::InvalidValue {
        source,
        key: option.name.into(),
        value: error.index.and_then(|at| texts.get(at)).cloned(),
        reason: error.reason,
    }
}

/// The key that an unknown word most likely meant. Flags and their aliases are known words too.
pub(super) fn suggest_key(word: &str) -> Option<&'static str> {
    let mut words: Vec<(String, &'static str)> = vec![(APP_KEY.into(), APP_KEY)];
    for key in OPTIONS {
        words.push((key.name.into(), key.name));
        words.push((key.flag().replace('-', "_"), key.name));
        words.extend(key.aliases.iter().map(|alias| (alias.replace('-', "_"), key.name)));
    }
    let closest = closest_match(word, words.iter().map(|(word, _)| word.as_str()))?;
    words.iter().find(|(word, _)| word == closest).map(|(_, name)| *name)
}

fn unknown_variable_warning(name: &str) -> String {
    let word = name.strip_prefix(VARIABLE_PREFIX).unwrap_or(name).to_ascii_lowercase();
    let mut warning = format!("{} is not a setting and is ignored", name.escape_debug());
    if let Some(nearest) = suggest_key(&word) {
        let nearest = nearest.to_ascii_uppercase();
        warning.push_str(&format!(" (did you mean {VARIABLE_PREFIX}{nearest}?)"));
    }
    warning
}

fn split_variable(arity: Arity, value: &str) -> Vec<String> {
    match arity {
        Arity::Single | Arity::Flag | Arity::Optional => vec![value.to_owned()],
        Arity::List | Arity::PairList if value.is_empty() => Vec::new(),
        Arity::List | Arity::PairList => {
            value.split(',').map(|item| item.trim().to_owned()).collect()
        }
    }
}

fn option_name_error(name: &str) -> Option<&'static str> {
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
