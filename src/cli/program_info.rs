//! How a program presents itself.

use crate::settings::Settings;

/// Describes the program in `--help` and `--version`.
#[derive(Clone, Debug)]
pub struct ProgramInfo {
    /// The version.
    pub version: String,
    /// The app that runs if none is named; empty if there is none.
    pub default_app: String,
    /// The worker class if none is named.
    pub default_class: String,
    /// Text for the end of `--help`; may be empty.
    pub after_help: &'static str,
}

impl Default for ProgramInfo {
    fn default() -> Self {
        let Settings { app, worker_class, .. } = Settings::default();
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            default_app: app,
            default_class: worker_class,
            after_help: "",
        }
    }
}

impl ProgramInfo {
    /// Returns the settings that no source sets.
    pub(super) fn default_settings(&self) -> Settings {
        Settings {
            app: self.default_app.clone(),
            worker_class: self.default_class.clone(),
            ..Settings::default()
        }
    }
}
