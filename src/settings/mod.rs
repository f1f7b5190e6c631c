//! What a person may ask for: one table of options, given in YAML, in the environment or as flags.
//! Everything is checked here, once; this folder must never open a socket or start a process.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::app::Limits;

mod check;
mod describe;
mod error;
mod file;
mod form;
mod nearest;
mod overlay;
mod shape;
mod table;
mod types;
mod yaml;

pub use self::error::{SettingsError, Source};
pub use self::table::Settings;
pub use self::types::{CoreSize, CpuAffinity, LogLevel, Workers};
pub use crate::address::Address;
pub use crate::log::{Format as LogFormat, Target as LogTarget};

pub(crate) use self::overlay::{Overlay, PREFIX};
pub(crate) use self::shape::Kind;
pub(crate) use self::table::{KEYS, Key};

/// How long a draining worker waits for a request that may already be on its way.
const LINGER: Duration = Duration::from_millis(100);

impl Settings {
    /// The defaults, with what a text of YAML says laid over them. `path` is the name that errors
    /// and [`Settings::source`] give to the text.
    ///
    /// # Errors
    /// The first thing that is wrong, with its line.
    pub fn from_yaml(text: &str, path: &Path) -> Result<Self, SettingsError> {
        Self::resolve(Self::default(), &[file::parse(text, path)?])
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
            head: bytes(self.limit_request_head),
            fields: self.limit_request_fields,
            body: bytes(self.limit_request_body),
            header_timeout: self.header_timeout,
            body_timeout: self.body_timeout,
            keepalive: self.keepalive,
            linger: LINGER,
        }
    }

    /// The settings as YAML that loads back to equal settings: one line a value, with its source
    /// as a comment.
    pub fn describe(&self) -> String {
        describe::describe(self)
    }

    /// Lays overlays over a base, the strongest last, and checks the whole.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub(crate) fn resolve(mut base: Self, overlays: &[Overlay]) -> Result<Self, SettingsError> {
        for overlay in overlays {
            overlay.apply(&mut base)?;
        }
        check::check(&base)?;
        Ok(base)
    }
}

impl Overlay {
    /// What a YAML file says: a regular file of at most 1 MiB, in UTF-8.
    ///
    /// # Errors
    /// Whatever keeps it from being read, or the first thing that is wrong in it.
    pub(crate) fn from_file(path: &Path) -> Result<Self, SettingsError> {
        file::read(path)
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
