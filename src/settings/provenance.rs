//! Where each value of the settings came from.

use std::collections::BTreeMap;

use super::error::Source;
use super::file_ending::FileSummary;
use super::interpolate::Expanded;

/// The source of each value. A value without a source has its default.
#[derive(Clone, Debug, Default)]
pub struct Provenance {
    pub(super) keys: BTreeMap<&'static str, Source>,
    /// The sources of the app's own options.
    pub(super) options: BTreeMap<String, Source>,
    /// The values that contain environment variables.
    pub(super) references: BTreeMap<&'static str, References>,
    /// The app's own options that do, and its name by the key `name`.
    pub(super) app_references: BTreeMap<String, Expanded>,
    /// The settings files.
    pub(super) files: Vec<FileSummary>,
}

/// How a value was written that contains environment variables.
#[derive(Clone, Debug)]
pub(super) struct References {
    /// The value's texts. If they differ, the value was changed since.
    pub(super) texts: Vec<String>,
    /// Texts for a file that yield them.
    pub(super) source_texts: Vec<String>,
}

impl Provenance {
    pub(super) fn record(&mut self, key: &'static str, source: Source) {
        self.keys.insert(key, source);
        self.references.remove(key);
    }
}
