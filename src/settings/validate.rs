//! Rejects options that conflict, and paths that cannot be used. What only an app, a worker class or
//! the kernel can decide is checked elsewhere.

mod leader;

use super::LogTarget;
use super::error::SettingsError;
use super::schema::{OPTIONS, Settings};
use crate::address::Address;

/// Checks everything that the parser of a single option cannot check.
pub(super) fn validate(settings: &Settings) -> Result<(), SettingsError> {
    validate_combinations(settings)?;
    validate_paths(settings)
}

fn validate_combinations(settings: &Settings) -> Result<(), SettingsError> {
    if settings.max_requests_jitter > 0 && settings.max_requests == 0 {
        return Err(jitter_without_base(settings, "max_requests_jitter", "max_requests"));
    }
    if !settings.max_lifetime_jitter.is_zero() && settings.max_lifetime.is_zero() {
        return Err(jitter_without_base(settings, "max_lifetime_jitter", "max_lifetime"));
    }
    if settings.max_surge == 0 && settings.max_unavailable == 0 {
        let source = settings.source("max_unavailable");
        return Err(SettingsError::Conflict {
            source: settings.source("max_surge").clone(),
            key: "max_surge",
            reason: format!(
                "no worker could be replaced, since max_unavailable is also 0 ({source}): \
                 raise one of them"
            ),
        });
    }
    if settings.inherit_output && settings.daemon {
        let source = settings.source("daemon");
        return Err(SettingsError::Conflict {
            source: settings.source("inherit_output").clone(),
            key: "inherit_output",
            reason: format!(
                "a daemon ({source}) has no outputs to inherit: set inherit_output to false, and the \
                 program's output goes to the log"
            ),
        });
    }
    if settings.reload && settings.daemon {
        let source = settings.source("daemon");
        return Err(SettingsError::Conflict {
            source: settings.source("reload").clone(),
            key: "reload",
            reason: format!("is for development, and not for a daemon ({source}): set one of them"),
        });
    }
    leader::validate(settings)?;
    if let Some(address) = &settings.statsd_host
        && !matches!(address, Address::Tcp { port: 1.., .. })
    {
        return Err(SettingsError::Conflict {
            source: settings.source("statsd_host").clone(),
            key: "statsd_host",
            reason: format!("{address} is no address of a UDP server: give HOST:PORT"),
        });
    }
    if let (Some(pidfile), LogTarget::File(log)) = (&settings.pidfile, &settings.log_file)
        && pidfile == log
    {
        let source = settings.source("log_file");
        return Err(SettingsError::Conflict {
            source: settings.source("pidfile").clone(),
            key: "pidfile",
            reason: format!("{pidfile:?} is also the log file ({source}): use two files"),
        });
    }
    if let Some(LogTarget::File(access_log)) = &settings.access_log {
        let log_file = match &settings.log_file {
            LogTarget::File(path) => Some(path),
            LogTarget::Stderr | LogTarget::Stdout => None,
        };
        for (key, path) in [("log_file", log_file), ("pidfile", settings.pidfile.as_ref())] {
            if path == Some(access_log) {
                let source = settings.source(key);
                return Err(SettingsError::Conflict {
                    source: settings.source("access_log").clone(),
                    key: "access_log",
                    reason: format!("{access_log:?} is also the {key} ({source}): use two files"),
                });
            }
        }
    }
    Ok(())
}

/// Checks the paths of all options against the file system, without changing anything.
fn validate_paths(settings: &Settings) -> Result<(), SettingsError> {
    for option in OPTIONS {
        option.check_path(settings).map_err(|(path, reason)| SettingsError::InvalidPath {
            source: settings.source(option.name).clone(),
            key: option.name,
            path,
            reason,
        })?;
    }
    Ok(())
}

fn jitter_without_base(settings: &Settings, key: &'static str, base_key: &str) -> SettingsError {
    let source = settings.source(base_key);
    let reason =
        format!("a jitter requires {base_key}, which is 0 ({source}): give both, or neither");
    SettingsError::Conflict { source: settings.source(key).clone(), key, reason }
}
