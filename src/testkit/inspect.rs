//! Reads from `/proc` what only the contract kit needs: environments, connections, signal sets.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::proc::{Stat, all_processes};
use crate::os::process::Pid;

/// Returns the living processes whose environment has this variable, in whatever session.
pub(super) fn processes_with_variable(variable: &str) -> Vec<Stat> {
    let has_it = |stat: &Stat| {
        let variables = fs::read(format!("/proc/{}/environ", stat.pid)).unwrap_or_default();
        variables.split(|byte| *byte == 0).any(|text| text == variable.as_bytes())
    };
    all_processes().filter(|stat| stat.state != 'Z').filter(has_it).collect()
}

/// Returns how many connected TCP sockets with this local port a process has.
pub(super) fn connections(pid: Pid, port: u16) -> usize {
    const ESTABLISHED: &str = "01";
    let port = format!(":{port:04X}");
    let mut inodes = HashSet::new();
    for table in ["tcp", "tcp6"] {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if let [_, local, _, ESTABLISHED, ..] = fields[..]
                && local.ends_with(&port)
                && let Some(inode) = fields.get(9)
            {
                inodes.insert(format!("socket:[{inode}]"));
            }
        }
    }
    let Ok(dir) = fs::read_dir(format!("/proc/{pid}/fd")) else { return 0 };
    let targets = dir.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    targets.filter(|target| target.to_str().is_some_and(|text| inodes.contains(text))).count()
}

/// The signal sets of a process.
#[derive(Clone, Copy, Debug)]
pub(super) struct SignalSets {
    blocked: u64,
    ignored: u64,
    caught: u64,
}

impl SignalSets {
    /// Reads them. Blocked signals are those that all threads block.
    pub(super) fn of(pid: Pid) -> Self {
        let read = |path: &Path, name: &str| {
            let text = fs::read_to_string(path.join("status")).unwrap_or_default();
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        };
        let process = PathBuf::from(format!("/proc/{pid}"));
        let threads = fs::read_dir(process.join("task")).into_iter().flatten();
        let blocked = threads.filter_map(|thread| read(&thread.ok()?.path(), "SigBlk"));
        Self {
            blocked: blocked.reduce(|all, one| all & one).unwrap_or(0),
            ignored: read(&process, "SigIgn").unwrap_or(0),
            caught: read(&process, "SigCgt").unwrap_or(0),
        }
    }

    pub(super) fn is_blocked(self, number: i32) -> bool {
        self.blocked >> (number - 1) & 1 != 0
    }

    pub(super) fn is_ignored(self, number: i32) -> bool {
        self.ignored >> (number - 1) & 1 != 0
    }

    pub(super) fn is_caught(self, number: i32) -> bool {
        self.caught >> (number - 1) & 1 != 0
    }
}
