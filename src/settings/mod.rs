//! What a person may ask for: one table of options, given in YAML, in the environment or as flags.
//! Everything is checked here, once; this folder must never open a socket or start a process.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::app::Limits;

mod check;
mod configuration;
mod describe;
mod error;
mod file;
mod form;
mod nearest;
mod overlay;
mod shape;
mod table;
mod types;
mod vars;
mod yaml;

pub use self::configuration::{Configuration, Pool};
pub use self::error::{SettingsError, Source};
pub use self::table::Settings;
pub use self::types::{CoreSize, CpuAffinity, LogLevel, StopSignal, Workers};
pub use crate::address::Address;
pub use crate::log::{Format as LogFormat, Target as LogTarget};

pub(crate) use self::configuration::check_addresses;
pub(crate) use self::file::Sheet;
pub(crate) use self::overlay::Overlay;
pub(crate) use self::shape::Kind;
pub(crate) use self::table::{KEYS, Key};

/// How long a draining worker waits for a request that may already be on its way.
const LINGER: Duration = Duration::from_millis(100);

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
            (_, several) => Err(SettingsError::Malformed {
                place: several.map_or(Source::Default, |pool| pool.place),
                why: "there are several pools: load them as a Configuration".into(),
            }),
        }
    }

    /// Where the value of a key came from; of `app` too. A key that does not exist has its default.
    pub fn source(&self, key: &str) -> &Source {
        self.provenance.keys.get(key).unwrap_or(&Source::Default)
    }

    /// Where an option of the app came from.
    pub fn option_source(&self, option: &str) -> &Source {
        self.provenance.options.get(option).unwrap_or_else(|| self.source(overlay::APP))
    }

    /// What a protocol may spend on one client.
    pub fn limits(&self) -> Limits {
        let bytes = |size: u64| usize::try_from(size).unwrap_or(usize::MAX);
        Limits {
            max_head_bytes: bytes(self.limit_request_head),
            max_header_fields: self.limit_request_fields,
            max_body_bytes: bytes(self.limit_request_body),
            header_timeout: self.header_timeout,
            body_timeout: self.body_timeout,
            keepalive: self.keepalive,
            drain_idle_timeout: LINGER,
        }
    }

    /// The settings as YAML that loads back to equal settings: one line a value, with its source
    /// as a comment.
    pub fn describe(&self) -> String {
        describe::describe(self)
    }

    /// Lays overlays over a base, the strongest last.
    ///
    /// # Errors
    /// The first thing that is wrong.
    fn lay<'o>(
        mut base: Self,
        overlays: impl Iterator<Item = &'o Overlay>,
    ) -> Result<Self, SettingsError> {
        for overlay in overlays {
            overlay.apply(&mut base)?;
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
    fn note(&mut self, key: &'static str, source: Source) {
        self.keys.insert(key, source);
    }
}

#[cfg(test)]
mod tests;
