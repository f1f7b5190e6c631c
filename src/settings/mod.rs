//! The settings: one table of options, set in YAML, in the environment or as flags. All values are
//! checked here, once. This module must never open a socket or start a process.

use std::iter;
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::file_ending::{FileEnding, FileSummary};
use crate::app::Limits;

mod arity;
mod config;
mod dump;
mod error;
mod file;
mod file_ending;
mod file_list;
mod interpolate;
mod json_schema;
mod layer;
mod pool_name;
mod provenance;
mod schema;
mod schema_parts;
mod shown;
mod source_file;
mod suggest;
mod types;
mod validate;
mod value;
mod vars;
mod yaml;

pub use self::config::{Configuration, Pool};
pub use self::error::{SettingsError, Source};
pub use self::provenance::Provenance;
pub use self::schema::Settings;
pub use self::types::{CoreSize, CpuAffinity, LogLevel, StopSignal, Workers};
pub use crate::address::Address;
pub use crate::log::{Format as LogFormat, Target as LogTarget};

pub(crate) use self::arity::Arity;
pub(crate) use self::config::check_address_conflicts;
pub(crate) use self::file::ConfigFile;
pub(crate) use self::json_schema::json_schema;
pub(crate) use self::layer::{
    CONFIG_VARIABLE, ConfigLayer, GENERATION_VARIABLE, POOL_VARIABLE, SLOT_VARIABLE,
};
pub(crate) use self::schema::{OPTIONS, OptionDef};
pub(crate) use self::shown::{ShownChange, ShownValue};

/// How long a draining worker waits for a request that may already be in transit.
const DRAIN_IDLE_TIMEOUT: Duration = Duration::from_millis(100);

/// Descriptors of a worker beside those of its clients.
const OTHER_DESCRIPTORS: u64 = 128;

impl Settings {
    /// Returns whether this master is one of several of which one leads.
    pub(crate) fn has_leader(&self) -> bool {
        !self.leader_etcd.is_empty() || self.leader_kubernetes_lease.is_some()
    }

    /// Parses YAML that configures a single pool. See [`Configuration::from_yaml`] for several pools.
    ///
    /// # Errors
    /// The first error, with its line. Several pools are an error.
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

    /// Returns the source of the value of a key, or of `app`. An unknown key is [`Source::Default`].
    pub fn source(&self, key: &str) -> &Source {
        self.provenance.keys.get(key).unwrap_or(&Source::Default)
    }

    /// Returns the source of an option of the app.
    pub fn option_source(&self, option: &str) -> &Source {
        self.provenance.options.get(option).unwrap_or_else(|| self.source(layer::APP_KEY))
    }

    /// Returns the reason why a reload must not replace these settings by `new`: the settings file
    /// looks emptied or cut off.
    pub(crate) fn find_truncation(&self, new: &Settings) -> Option<String> {
        new.provenance.files.iter().find_map(|new| {
            let current = self.provenance.files.iter().find(|it| it.path == new.path)?;
            file_ending::truncation_reason(current, new)
        })
    }

    /// Returns the files and directories whose change leads to a reload: those of the settings, and
    /// `reload_extra_files`.
    pub(crate) fn watched_files(&self) -> Vec<PathBuf> {
        let files = self.provenance.files.iter();
        let of_settings = files.flat_map(|it| iter::once(&it.path).chain(&it.included_dirs));
        of_settings.chain(&self.reload_extra_files).cloned().collect()
    }

    /// Returns the first file of the command line that sets no key.
    pub(crate) fn file_without_keys(&self) -> Option<&Path> {
        let is_empty = |file: &&FileSummary| !file.is_included && file.ending == FileEnding::NoKey;
        self.provenance.files.iter().find(is_empty).map(|file| file.path.as_path())
    }

    /// Returns how many descriptors a worker needs for `worker_connections`; `None` if a program of its own
    /// serves the clients.
    pub(crate) fn needed_descriptors(&self) -> Option<u64> {
        let serves = self.command.is_empty();
        serves.then(|| self.worker_connections as u64 + OTHER_DESCRIPTORS)
    }

    /// Returns the limits of a protocol for one client.
    pub fn limits(&self) -> Limits {
        let to_usize = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        Limits {
            max_head_bytes: to_usize(self.limit_request_head),
            max_header_fields: self.limit_request_fields,
            max_body_bytes: to_usize(self.limit_request_body),
            max_bodies_bytes: to_usize(self.limit_bodies),
            header_timeout: self.header_timeout,
            body_timeout: self.body_timeout,
            keepalive: self.keepalive,
            rpc_idle_timeout: self.rpc_idle_timeout,
            drain_idle_timeout: DRAIN_IDLE_TIMEOUT,
        }
    }
}

#[cfg(test)]
mod tests;
