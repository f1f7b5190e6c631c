//! Where /proc shows a process (Linux), and its files as text.

use std::fs;
use std::path::{Path, PathBuf};

use super::pid::Pid;

/// Returns the directory of a process in /proc. Returns `None` for another process if /proc numbers
/// the processes of another PID namespace: that number is another process there.
pub(crate) fn dir_of(pid: Pid) -> Option<PathBuf> {
    if pid == Pid::this() {
        return Some(PathBuf::from("/proc/self"));
    }
    (own_number()? == pid_number()).then(|| PathBuf::from(format!("/proc/{pid}")))
}

/// Whether /proc is mounted and numbers the processes of another PID namespace, as after `unshare
/// --pid --fork` without `--mount-proc`.
pub(crate) fn is_of_other_namespace() -> bool {
    own_number().is_some_and(|number| number != pid_number())
}

/// Reads a file as text. Names in it may have any bytes: those that are not UTF-8 are replaced.
pub(crate) fn read_text(path: &Path) -> Option<String> {
    fs::read(path).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns the number of this process in /proc.
fn own_number() -> Option<PathBuf> {
    fs::read_link("/proc/self").ok()
}

fn pid_number() -> PathBuf {
    PathBuf::from(Pid::this().to_string())
}
