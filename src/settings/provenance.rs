//! Where each value of the settings came from.

use std::collections::BTreeMap;

use super::error::Source;
use super::file_ending::FileSummary;

/// The source of each value. A value without a source has its default.
#[derive(Clone, Debug, Default)]
pub struct Provenance {
    pub(super) keys: BTreeMap<&'static str, Source>,
    /// The sources of the app's own options.
    pub(super) options: BTreeMap<String, Source>,
    /// The settings file, if there is one.
    pub(super) file: Option<FileSummary>,
}

impl Provenance {
    pub(super) fn record(&mut self, key: &'static str, source: Source) {
        self.keys.insert(key, source);
    }
}
