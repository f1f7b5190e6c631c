//! The directory in which a program was started, from which its relative paths start. If the shell came there
//! by a symbolic link, a reload follows the link again: it may lead to another release by then.

use std::env;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::os::lookups::Lookups;
use crate::os::process;
use crate::settings::Configuration;

/// The variable in which a shell says how it came to its directory.
const PWD: &str = "PWD";

/// The directory in which a program was started.
pub(super) struct StartDir {
    path: PathBuf,
    fd: File,
    /// The path with a symbolic link by which the shell came here.
    link: Option<PathBuf>,
}

impl StartDir {
    /// Finds the working directory.
    ///
    /// # Errors
    /// It has been removed, or cannot be read.
    pub(super) fn find() -> io::Result<Self> {
        let path = env::current_dir()?;
        let fd = File::open(&path)?;
        let link = linked_path(&path, env::var_os(PWD).map(PathBuf::from));
        Ok(Self { path, fd, link })
    }

    /// Returns whether a reload follows a link.
    pub(super) fn is_linked(&self) -> bool {
        self.link.is_some()
    }

    /// Makes all paths of the first configuration absolute.
    pub(super) fn absolute(&self, configuration: Configuration) -> Configuration {
        match &self.link {
            Some(link) => with_linked_paths(configuration, link, &self.path),
            None => with_absolute_paths(configuration, &self.path),
        }
    }

    /// Loads a configuration from this directory, or from where the link leads now, and makes its paths
    /// absolute. Returns to the directory `home`, or else to this one.
    ///
    /// # Errors
    /// The link leads nowhere, or those of `load`.
    pub(super) fn load(
        &self,
        lookups: &Lookups,
        home: Option<&Path>,
        load: impl FnOnce() -> Result<Configuration, String>,
    ) -> Result<Configuration, String> {
        let real = match &self.link {
            Some(link) => Some(real_path(link, lookups)?),
            None => None,
        };
        let entered = match &real {
            Some(real) => env::set_current_dir(real),
            None => process::change_dir(self.fd.as_fd()),
        };
        entered.map_err(|error| error.to_string())?;
        let loaded = load();
        let _ = match home {
            Some(home) => env::set_current_dir(home),
            None => process::change_dir(self.fd.as_fd()),
        };
        loaded.map(|configuration| match (&self.link, &real) {
            (Some(link), Some(real)) => with_linked_paths(configuration, link, real),
            _ => with_absolute_paths(configuration, &self.path),
        })
    }
}

/// Returns where a link leads.
fn real_path(link: &Path, lookups: &Lookups) -> Result<PathBuf, String> {
    let failed = |reason: String| format!("{} cannot be followed: {reason}", link.display());
    let follow = |link: &Path| {
        let real = fs::canonicalize(link).map_err(|error| failed(error.to_string()))?;
        real.into_os_string().into_string().map_err(|_| failed("its target is not UTF-8".into()))
    };
    lookups.real_path(link, follow).map(PathBuf::from)
}

/// Returns the path in `PWD`, if it has a link and leads to the working directory. Any program can set the
/// variable.
fn linked_path(current: &Path, pwd: Option<PathBuf>) -> Option<PathBuf> {
    let pwd = pwd.filter(|pwd| pwd.is_absolute() && pwd != current)?;
    let id = |path: &Path| fs::metadata(path).ok().map(|it| (it.dev(), it.ino()));
    (id(&pwd).is_some() && id(&pwd) == id(current)).then_some(pwd)
}

/// Makes all paths absolute by way of a link. Workers run where it leads to now, also if it is changed before
/// the next reload.
fn with_linked_paths(configuration: Configuration, link: &Path, real: &Path) -> Configuration {
    let mut configuration = with_absolute_paths(configuration, link);
    let pools = configuration.pools.iter_mut().map(|pool| &mut pool.settings);
    for settings in pools.chain([&mut configuration.master]) {
        let chdir = settings.chdir.take().unwrap_or_else(|| link.to_path_buf());
        let below = chdir.strip_prefix(link).map(|below| real.join(below));
        settings.chdir = Some(below.unwrap_or(chdir));
    }
    configuration
}

/// Makes all paths absolute, for a process whose working directory is another.
fn with_absolute_paths(mut configuration: Configuration, base_dir: &Path) -> Configuration {
    let pools = configuration.pools.iter_mut().map(|pool| &mut pool.settings);
    for settings in pools.chain([&mut configuration.master]) {
        settings.make_paths_absolute(base_dir);
        if !settings.command.is_empty() {
            // Its arguments may be relative paths too, but only the program knows which.
            settings.chdir.get_or_insert_with(|| base_dir.to_path_buf());
        }
    }
    configuration
}

/// Returns the link by which the shell came to the working directory, if there is one.
pub(super) fn start_link() -> Option<PathBuf> {
    linked_path(&env::current_dir().ok()?, env::var_os(PWD).map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;
    use std::os::unix::fs::symlink;

    #[test]
    fn pwd_is_followed_only_if_it_leads_here() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        let [one, two, current] = ["one", "two", "current"].map(|name| root.join(name));
        fs::create_dir(&one).unwrap();
        fs::create_dir(&two).unwrap();
        symlink(&one, &current).unwrap();
        assert_eq!(linked_path(&one, Some(current.clone())), Some(current.clone()));
        assert_eq!(linked_path(&two, Some(current)), None);
        assert_eq!(linked_path(&one, Some(one.clone())), None);
        assert_eq!(linked_path(&one, Some("relative".into())), None);
        assert_eq!(linked_path(&one, Some(root.join("none"))), None);
        assert_eq!(linked_path(&one, None), None);
    }

    #[test]
    fn workers_run_where_the_link_leads() {
        let chdir = |yaml: &str| {
            let settings = Settings::from_yaml(yaml, "x.yaml".as_ref()).unwrap();
            let linked =
                with_linked_paths(settings.into(), "/srv/current".as_ref(), "/srv/1".as_ref());
            (linked.master.chdir, linked.pools[0].settings.pidfile.clone())
        };
        let pid = Some("/srv/current/a.pid".into());
        assert_eq!(chdir("pidfile: a.pid\n"), (Some("/srv/1/".into()), pid));
        assert_eq!(chdir("chdir: /\n"), (Some("/".into()), None));
        assert_eq!(chdir("chdir: .\n"), (Some("/srv/1/.".into()), None));
    }
}
