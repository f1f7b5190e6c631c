//! What `--check-config` checks beyond the settings themselves: everything that a start would open or
//! bind. It opens no file, changes nothing, and does not mind a master that already runs.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::catalog::source_label;
use super::error::RuntimeError;
use super::instance_lock;
use crate::address::Address;
use crate::arbiter::{PoolSpec, ResolvedConfig};
use crate::listen::Listener;
use crate::listen::preflight::{self, Availability};
use crate::os::file;
use crate::pidfile::PidFile;
use crate::settings::{LogTarget, Settings};

/// Checks the files and the addresses of the master and of all pools. Returns warnings.
///
/// # Errors
/// The first that cannot be used.
pub(super) fn check(config: &ResolvedConfig<'_>) -> Result<Vec<String>, RuntimeError> {
    let master = &config.master;
    if let Some(path) = &master.pidfile {
        // It is replaced by another file.
        check_dir_of(path).map_err(|error| path_error(master, "pidfile", path, &error))?;
    }
    let mut warnings = Vec::new();
    let lock_path = instance_lock::path(master, &mut warnings)?;
    let log_file = match &master.log_file {
        LogTarget::File(path) => Some(path),
        LogTarget::Stderr | LogTarget::Stdout => None,
    };
    let recorder = master.flight_recorder_file.as_ref();
    for (key, path) in [("log_file", log_file), ("flight_recorder_file", recorder)] {
        if let Some(path) = path {
            check_file(path).map_err(|error| path_error(master, key, path, &error))?;
        }
    }
    for spec in &config.pool_specs {
        if let Some(LogTarget::File(path)) = &spec.settings.access_log {
            let checked = check_file(path);
            checked.map_err(|error| path_error(&spec.settings, "access_log", path, &error))?;
        }
    }
    let addresses = config.pool_specs.iter().flat_map(|spec| &spec.settings.bind);
    let control = master.control_socket.clone().map(Address::Unix);
    let pidfile = master.pidfile.as_deref().or(lock_path.as_deref());
    for address in addresses.chain(&control).chain(&master.metrics_bind) {
        if preflight::check(address)? != Availability::InUse {
            continue;
        }
        match pidfile {
            None => warnings.push(format!(
                "{address} is in use: a start fails, unless the running master that has it is asked to \
                 reload, or a service manager passes the socket"
            )),
            Some(pidfile) if PidFile::is_free(pidfile) => warnings.push(format!(
                "{address} is in use, and no running master has the pid file {}: a start fails, \
                 unless a service manager passes the socket",
                pidfile.display()
            )),
            Some(_) => (), // that of the running master
        }
    }
    Ok(warnings)
}

fn check_file(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    match file::check_writable(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => check_dir_of(path),
        result => result,
    }
}

fn check_dir_of(path: &Path) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    file::check_writable(dir.unwrap_or(Path::new(".")))
}

fn path_error(settings: &Settings, key: &str, path: &Path, error: &io::Error) -> RuntimeError {
    RuntimeError::Setting {
        source_label: source_label(settings, key),
        reason: format!("{path:?} cannot be written: {error}"),
    }
}

/// Rejects sockets of a service manager for a led pool: they listen whether the master leads or not.
pub(super) fn check_led_sockets(
    resolved: &ResolvedConfig<'_>,
    inherited: &[Arc<Listener>],
) -> Result<(), RuntimeError> {
    let is_given = |it: &Address| !inherited.is_empty() || matches!(it, Address::Fd(_));
    let takes = |spec: &&PoolSpec<'_>| spec.is_led && spec.settings.bind.iter().any(is_given);
    match resolved.pool_specs.iter().find(takes) {
        Some(spec) => Err(RuntimeError::Setting {
            source_label: source_label(&spec.settings, "led"),
            reason: format!(
                "pool {:?} binds its addresses when it leads, and cannot be given sockets: remove \
                 the socket unit or fd://, or set led to false",
                spec.name
            ),
        }),
        None => Ok(()),
    }
}
