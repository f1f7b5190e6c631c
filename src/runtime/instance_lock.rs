//! The file that makes a master the only one of its name, whatever its pid file.

use std::env;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::catalog::source_label;
use super::error::RuntimeError;
use crate::os::credentials;
use crate::settings::Settings;

/// The variable that names a directory of the user's own.
const DIR_VARIABLE: &str = "XDG_RUNTIME_DIR";

/// Returns the path of the file, if the settings need it. Other users cannot create it before: its
/// directory belongs to this user, and only this user can write it. If there is no such directory, the pid
/// file alone has to do, with a warning.
///
/// # Errors
/// There is no such directory, and no pid file.
pub(super) fn path(
    settings: &Settings,
    warnings: &mut Vec<String>,
) -> Result<Option<PathBuf>, RuntimeError> {
    if !settings.single_instance {
        return Ok(None);
    }
    let variable = env::var_os(DIR_VARIABLE).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let user = credentials::effective_uid();
    let dir = variable.unwrap_or_else(|| default_dir(user));
    if let Err(reason) = check_dir(&dir, user) {
        let needs =
            format!("needs a directory that only user {user} can write, and {dir:?} {reason}");
        if settings.pidfile.is_some() {
            warnings.push(format!(
                "single_instance {needs}: another master with this proc_name and another pidfile is not \
                 noticed; set {DIR_VARIABLE} to such a directory"
            ));
            return Ok(None);
        }
        return Err(RuntimeError::Setting {
            source_label: source_label(settings, "single_instance"),
            reason: format!("{needs}: set pidfile, or set {DIR_VARIABLE} to such a directory"),
        });
    }
    let name = settings.proc_name.replace('/', "_");
    Ok(Some(dir.join(format!("ostler-{name}.pid"))))
}

/// Returns the directory of the system, or that which a login creates for the user.
fn default_dir(user: u32) -> PathBuf {
    match user {
        0 => PathBuf::from("/run"),
        user => PathBuf::from(format!("/run/user/{user}")),
    }
}

/// Checks that the directory belongs to the user and that no other user can write it. Never follows a
/// link.
///
/// # Errors
/// The reason, in words that follow the quoted path.
fn check_dir(dir: &Path, user: u32) -> Result<(), String> {
    if !dir.is_absolute() {
        return Err("is not an absolute path".into());
    }
    let found = fs::symlink_metadata(dir).map_err(|error| format!("cannot be used ({error})"))?;
    let mode = found.permissions().mode() & 0o7777;
    if !found.is_dir() {
        Err("is not a directory".into())
    } else if found.uid() != user {
        Err(format!("belongs to user {}", found.uid()))
    } else if mode & 0o022 != 0 {
        Err(format!("can be written by others (mode {mode:o})"))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_a_directory_of_the_users_own_is_accepted() {
        let parent = tempfile::tempdir().unwrap();
        let user = credentials::effective_uid();
        let [dir, link, file] = ["dir", "link", "file"].map(|name| parent.path().join(name));
        fs::create_dir(&dir).unwrap();
        symlink(&dir, &link).unwrap();
        fs::write(&file, "").unwrap();
        for (mode, accepted) in [(0o700, true), (0o755, true), (0o775, false), (0o1777, false)] {
            fs::set_permissions(&dir, Permissions::from_mode(mode)).unwrap();
            assert_eq!(check_dir(&dir, user).is_ok(), accepted, "{mode:o}");
        }
        fs::set_permissions(&dir, Permissions::from_mode(0o700)).unwrap();
        let reason = |path: &Path, user| check_dir(path, user).unwrap_err();
        assert_eq!(reason(&dir, user + 1), format!("belongs to user {user}"));
        assert_eq!(reason(&link, user), "is not a directory");
        assert_eq!(reason(&file, user), "is not a directory");
        assert_eq!(reason(Path::new("dir"), user), "is not an absolute path");
        assert!(reason(&parent.path().join("none"), user).starts_with("cannot be used (No such"));
    }

    #[test]
    fn default_dir_is_never_shared() {
        assert_eq!([0, 7].map(default_dir), ["/run", "/run/user/7"].map(PathBuf::from));
    }
}
