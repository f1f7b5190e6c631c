//! What a person may ask for: one table of options, given in YAML, in the environment or as flags.
//! Everything is checked here, once; this folder must never open a socket or start a process.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::app::Limits;

mod arity;
mod config;
mod dump;
mod error;
mod file;
mod interpolate;
mod layer;
mod schema;
mod suggest;
mod types;
mod validate;
mod value;
mod yaml;

pub use self::config::{Configuration, Pool};
pub use self::error::{SettingsError, Source};
pub use self::schema::Settings;
pub use self::types::{CoreSize, CpuAffinity, LogLevel, StopSignal, Workers};
pub use crate::address::Address;
pub use crate::log::{Format as LogFormat, Target as LogTarget};

pub(crate) use self::arity::Arity;
pub(crate) use self::config::check_address_conflicts;
pub(crate) use self::file::ConfigFile;
pub(crate) use self::layer::ConfigLayer;
pub(crate) use self::schema::{OPTIONS, OptionDef};

/// How long a draining worker waits for a request that may already be on its way.
const DRAIN_IDLE_TIMEOUT: Duration = Duration::from_millis(100);

impl Settings {
    /// The settings of the only pool of which a text of YAML speaks; otherwise as
    /// [`Configuration::from_yaml`].
    ///
    /// # Errors
    /// The first thing that is wrong, with its line; that there are several pools is one.
    pub fn from_yaml(text: &str, path: &Path) -> Result<Self, SettingsError> {
        let mut configuration = Configuration::from_yaml(text, path)?;
        match (configuration.pools.pop(), configuration.pools.pop()) {
            (Some(only), None) => Ok(only.settings),
            (_, second) => Err(SettingsError::Malformed {
                source: second.map_or(Source::Default, |pool| pool.source),
                reason: "there are several pools: load them as a Configuration".into(),
            }),
        }
    }

    /// Where the value of a key came from; of `app` too. A key that does not exist has its default.
    pub fn source(&self, key: &str) -> &Source {
        self.provenance.keys.get(key).unwrap_or(&Source::Default)
    }

    /// Where an option of the app came from.
    pub fn option_source(&self, option: &str) -> &Source {
        self.provenance.options.get(option).unwrap_or_else(|| self.source(layer::APP_KEY))
    }

    /// What a protocol may spend on one client.
    pub fn limits(&self) -> Limits {
        let bytes = |bytes_u64: u64| usize::try_from(bytes_u64).unwrap_or(usize::MAX);
        Limits {
            max_head_bytes: bytes(self.limit_request_head),
            max_header_fields: self.limit_request_fields,
            max_body_bytes: bytes(self.limit_request_body),
            header_timeout: self.header_timeout,
            body_timeout: self.body_timeout,
            keepalive: self.keepalive,
            drain_idle_timeout: DRAIN_IDLE_TIMEOUT,
        }
    }

    /// The settings as YAML that loads back to equal settings: one line a value, with its source
    /// as a comment.
    pub fn to_yaml(&self) -> String {
        dump::dump_settings(self)
    }

    /// Lays overlays over a base, the strongest last.
    ///
    /// # Errors
    /// The first thing that is wrong.
    fn apply_layers<'o>(
        mut base: Self,
        layers: impl Iterator<Item = &'o ConfigLayer>,
    ) -> Result<Self, SettingsError> {
        for layer in layers {
            layer.apply(&mut base)?;
        }
        Ok(base)
    }
}

/// Where each value came from; what is not in it has its default.
#[derive(Clone, Debug, Default)]
pub struct Provenance {
    keys: BTreeMap<&'static str, Source>,
    /// Of the app's own options.
    options: BTreeMap<String, Source>,
}

impl Provenance {
    fn record(&mut self, key: &'static str, source: Source) {
        self.keys.insert(key, source);
    }
}

#[cfg(test)]
mod tests;
