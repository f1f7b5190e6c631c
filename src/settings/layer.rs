//! The options that one source sets, checked. It must never know the syntax of a file or of a command
//! line, nor the meaning of an option.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::arity::{Arity, ValueError};
use super::error::{SettingsError, Source};
use super::interpolate::Expanded;
use super::provenance::References;
use super::schema::{OPTIONS, OptionDef, Settings};
use super::suggest::{closest_match, suggestion_text};
use super::value::{NameValue, ValueParser};
use crate::app::Options;
use crate::listen::activation::UPGRADE_VAR;

/// The options, and perhaps the app, that one source sets: those that have a source in the settings'
/// provenance. All others count as absent.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConfigLayer {
    values: Settings,
}

/// The variable that names the settings file.
pub(crate) const CONFIG_VARIABLE: &str = "OSTLER_CONFIG";

/// The variables that tell the program of a worker of the exec class which worker it is.
pub(crate) const POOL_VARIABLE: &str = "OSTLER_POOL";
/// See [`POOL_VARIABLE`].
pub(crate) const SLOT_VARIABLE: &str = "OSTLER_SLOT";
/// See [`POOL_VARIABLE`].
pub(crate) const GENERATION_VARIABLE: &str = "OSTLER_GENERATION";

/// Variables with the prefix that are no options.
const RESERVED_VARIABLES: [&str; 5] =
    [CONFIG_VARIABLE, POOL_VARIABLE, SLOT_VARIABLE, GENERATION_VARIABLE, UPGRADE_VAR];

/// The prefix of the variables of the options.
pub(super) const VARIABLE_PREFIX: &str = "OSTLER_";

/// A variable that hosting platforms set for any server, the key whose default it replaces, and the
/// text that it yields. gunicorn reads them likewise.
type PlatformVariable = (&'static str, &'static str, fn(&str) -> String);

const PLATFORM_VARIABLES: [PlatformVariable; 2] = [
    ("PORT", "bind", |port| format!("0.0.0.0:{port}")),
    ("WEB_CONCURRENCY", "workers", str::to_owned),
];

/// Keys of gunicorn, and those that do the same here.
const GUNICORN_KEYS: [(&str, &str); 6] = [
    ("raw_env", "env"),
    ("errorlog", "log_file"),
    ("accesslog", "access_log"),
    ("access_logfile", "access_log"),
    ("limit_request_line", "limit_request_head"),
    ("limit_request_field_size", "limit_request_head"),
];

/// The YAML key of the app.
pub(super) const APP_KEY: &str = "app";

/// The key of the name in a map of the app.
pub(super) const APP_NAME_KEY: &str = "name";

/// Keeps the name of an option of an app within one line of YAML.
const OPTION_NAME_BYTES_MAX: usize = 128;

impl ConfigLayer {
    /// Parses the texts and sets the option.
    pub(crate) fn set_option(
        &mut self,
        option: &'static OptionDef,
        texts: &[String],
        source: Source,
    ) -> Result<(), SettingsError> {
        self.try_set_option(option, texts, &source)
            .map_err(|error| invalid_value(option, texts, error, source))
    }

    /// Parses the texts and sets the option. The caller adds the source to an error.
    pub(super) fn try_set_option(
        &mut self,
        option: &'static OptionDef,
        texts: &[String],
        source: &Source,
    ) -> Result<(), ValueError> {
        option.set(&mut self.values, texts)?;
        self.values.provenance.record(option.name, source.clone());
        Ok(())
    }

    /// Records how the option that was set last is written, if its texts contain environment variables.
    pub(super) fn set_references(&mut self, option: &'static OptionDef, texts: &[Expanded]) {
        if texts.iter().any(|text| text.reference.is_some()) {
            let source_texts = texts.iter().map(Expanded::source_text).collect();
            let references = References { texts: option.format(&self.values), source_texts };
            self.values.provenance.references.insert(option.name, references);
        }
    }

    /// Checks the names and sets the app and all its options. A later source replaces them together.
    pub(crate) fn set_app(
        &mut self,
        name: String,
        options: Options,
        source: Source,
    ) -> Result<(), SettingsError> {
        let invalid = |value: &str, reason: &str| SettingsError::InvalidValue {
            source: source.clone(),
            key: APP_KEY.into(),
            value: Some(value.into()),
            reason: reason.into(),
        };
        NameValue.parse(&name).map_err(|reason| invalid(&name, &reason))?;
        if name.contains('=') {
            return Err(invalid(
                &name,
                "is an option, not an app: give the name of an app before it",
            ));
        }
        for option in options.keys() {
            if let Some(reason) = option_name_error(option) {
                return Err(invalid(option, reason));
            }
        }
        self.values.app = name;
        self.values.app_options = options;
        self.values.provenance.options.clear();
        self.values.provenance.app_references.clear();
        self.values.provenance.record(APP_KEY, source);
        Ok(())
    }

    /// Sets the sources of the app's options, if they differ from the source of the app, and how those
    /// are written that contain environment variables.
    pub(super) fn set_option_sources(
        &mut self,
        option_sources: BTreeMap<String, Source>,
        references: BTreeMap<String, Expanded>,
    ) {
        self.values.provenance.options = option_sources;
        self.values.provenance.app_references = references;
    }

    /// Reads the `OSTLER_*` variables. Returns also one warning for each variable that is no option.
    /// Commas separate the items of a list.
    pub(crate) fn from_env(
        variables: &[(OsString, OsString)],
    ) -> Result<(Self, Vec<String>), SettingsError> {
        let mut layer = Self::default();
        let mut warnings = Vec::new();
        for (name, value) in variables {
            let name = name.to_string_lossy();
            if !name.starts_with(VARIABLE_PREFIX) || RESERVED_VARIABLES.contains(&name.as_ref()) {
                continue;
            }
            let option = OPTIONS.iter().find(|option| option.variable() == name);
            if option.is_none() && name != "OSTLER_APP" {
                warnings.push(unknown_variable_warning(&name));
                continue;
            }
            let source = Source::Env { name: name.into_owned() };
            let Some(value) = value.to_str() else {
                return Err(SettingsError::InvalidValue {
                    source,
                    key: option.map_or(APP_KEY, |option| option.name).into(),
                    value: Some(value.to_string_lossy().into()),
                    reason: "is not UTF-8".into(),
                });
            };
            match option {
                Some(option) => {
                    layer.set_option(option, &split_variable(option.arity, value), source)?;
                }
                None => layer.set_app(value.into(), Options::new(), source)?,
            }
        }
        Ok((layer, warnings))
    }

    /// Reads the variables `PORT` and `WEB_CONCURRENCY`; an empty one counts as absent. Returns also
    /// the errors, by key: they matter only if no other source sets the key.
    pub(crate) fn from_platform_env(
        variables: &[(OsString, OsString)],
    ) -> (Self, Vec<(&'static str, SettingsError)>) {
        let mut layer = Self::default();
        let mut errors = Vec::new();
        for (name, key, text_of) in PLATFORM_VARIABLES {
            let found = variables.iter().find(|(known, value)| known == name && !value.is_empty());
            let option = OPTIONS.iter().find(|option| option.name == key);
            if let (Some((_, value)), Some(option)) = (found, option) {
                let source = Source::PlatformEnv { name };
                let value = value.to_string_lossy(); // what is not UTF-8 is not a number either
                if let Err(error) = layer.try_set_option(option, &[text_of(&value)], &source) {
                    let texts = [value.into_owned()];
                    errors.push((key, invalid_value(option, &texts, error, source)));
                }
            }
        }
        (layer, errors)
    }

    /// Copies what this source sets into the settings.
    pub(crate) fn apply(&self, settings: &mut Settings) {
        for (name, source) in &self.values.provenance.keys {
            settings.provenance.record(name, source.clone());
            if let Some(references) = self.values.provenance.references.get(name) {
                settings.provenance.references.insert(name, references.clone());
            }
            if *name == APP_KEY {
                settings.app.clone_from(&self.values.app);
                settings.app_options.clone_from(&self.values.app_options);
                let (from, to) = (&self.values.provenance, &mut settings.provenance);
                to.options.clone_from(&from.options);
                to.app_references.clone_from(&from.app_references);
            } else if let Some(option) = OPTIONS.iter().find(|option| option.name == *name) {
                option.copy(&self.values, settings);
            }
        }
    }
}

/// Returns the error for invalid texts of an option.
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

/// Returns the key that an unknown word most likely means. Flags and aliases count as known words.
pub(super) fn suggest_key(word: &str) -> Option<&'static str> {
    let mut words: Vec<(String, &'static str)> = vec![(APP_KEY.into(), APP_KEY)];
    for option in OPTIONS {
        words.push((option.name.into(), option.name));
        words.push((option.flag().replace('-', "_"), option.name));
        words.extend(option.aliases.iter().map(|alias| (alias.replace('-', "_"), option.name)));
    }
    words.extend(GUNICORN_KEYS.map(|(theirs, ours)| (theirs.into(), ours)));
    let closest = closest_match(word, words.iter().map(|(word, _)| word.as_str()))?;
    words.iter().find(|(word, _)| word == closest).map(|(_, name)| *name)
}

fn unknown_variable_warning(name: &str) -> String {
    let word = name.strip_prefix(VARIABLE_PREFIX).unwrap_or(name).to_ascii_lowercase();
    let closest =
        suggest_key(&word).map(|key| format!("{VARIABLE_PREFIX}{}", key.to_ascii_uppercase()));
    let suggestion = suggestion_text(closest.as_deref());
    format!("{} is not a setting and is ignored{suggestion}", name.escape_debug())
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
    } else if name == APP_NAME_KEY {
        Some("cannot be an option of an app: it is the name of the app itself")
    } else if name.len() > OPTION_NAME_BYTES_MAX {
        Some("is too long for the name of an option: give at most 128 bytes")
    } else {
        None
    }
}
