//! Mixes of settings that cannot work, and folders that are not there. It looks at the file system
//! but never changes it; what only a worker class or the kernel can judge is judged elsewhere.

use std::fs;
use std::io;
use std::path::Path;

use super::LogTarget;
use super::error::SettingsError;
use super::schema::Settings;

/// Checks what no option can check alone.
pub(super) fn validate(settings: &Settings) -> Result<(), SettingsError> {
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
    for (key, dir) in [("chdir", &settings.chdir), ("worker_tmp_dir", &settings.worker_tmp_dir)] {
        if let Some(dir) = dir {
            check_dir(dir).map_err(|why| invalid_path(settings, key, dir, &why))?;
        }
    }
    if let Some(pidfile) = &settings.pidfile {
        let invalid = |why: String| invalid_path(settings, "pidfile", pidfile, &why);
        if pidfile.is_dir() {
            return Err(invalid("is a directory: give a file".into()));
        }
        // A bare name has an empty parent, which stands for the current folder.
        if let Some(dir) = pidfile.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            check_dir(dir)
                .map_err(|why| invalid(format!("has no parent directory: {dir:?} {why}")))?;
        }
    }
    Ok(())
}

fn jitter_without_base(settings: &Settings, key: &'static str, base_key: &str) -> SettingsError {
    let source = settings.source(base_key);
    let reason =
        format!("a jitter requires {base_key}, which is 0 ({source}): give both, or neither");
    SettingsError::Conflict { source: settings.source(key).clone(), key, reason }
}

fn check_dir(dir: &Path) -> Result<(), String> {
    match fs::metadata(dir) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err("is not a directory".into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err("does not exist".into()),
        Err(error) => Err(format!("cannot be used: {error}")),
    }
}

/// The words of the option are fine, the machine is not: never an error of the command line.
fn invalid_path(
    settings: &Settings,
    key: &'static str,
    path: &Path,
    reason: &str,
) -> SettingsError {
    SettingsError::InvalidPath {
        source: settings.source(key).clone(),
        key,
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}
