//! Finds out what the machine is like, and changes nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::checks::Facts;
use crate::arbiter;
use crate::heartbeat;
use crate::os::cgroup::Cgroups;
use crate::os::process::Pid;
use crate::os::{credentials, file};
use crate::settings::{Configuration, LogTarget};

/// Looks at everything that the checks need. Limits are those of the running master, if the pid file names
/// one, or else those of this process.
pub(super) fn gather(configuration: &Configuration) -> Facts {
    let master = &configuration.master;
    let running = master.pidfile.as_deref().and_then(running_master);
    let pid = running.unwrap_or_else(Pid::this);
    let cgroups = Cgroups::find();
    let sysctl = |key: &str| number_in(&format!("/proc/sys/{key}"));
    let heartbeat_dir = master.worker_tmp_dir.clone().or_else(heartbeat::default_dir);
    Facts {
        nofile: nofile_limits(pid).or_else(|| nofile_limits(Pid::this())),
        somaxconn: sysctl("net/core/somaxconn"),
        syn_backlog: sysctl("net/ipv4/tcp_max_syn_backlog"),
        heartbeat_dir: heartbeat_dir.and_then(|dir| {
            let in_memory = file::is_in_memory(&dir).ok()?;
            Some((dir, in_memory))
        }),
        memory_limit: cgroups.memory_limit(pid),
        pids_limit: cgroups.process_limit(pid),
        is_root: credentials::effective_uid() == 0,
        ptrace_scope: sysctl("kernel/yama/ptrace_scope"),
        core_pattern: text_in("/proc/sys/kernel/core_pattern"),
        overcommit: sysctl("vm/overcommit_memory"),
        huge_pages: text_in("/sys/kernel/mm/transparent_hugepage/enabled").and_then(chosen),
        clock_source: text_in("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        conntrack: sysctl("net/netfilter/nf_conntrack_count")
            .zip(sysctl("net/netfilter/nf_conntrack_max")),
        log_dirs: log_dirs(configuration),
        unit: running.and_then(unit),
        lease_store: arbiter::ask_lease_store(master),
    }
}

fn text_in(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn number_in(path: &str) -> Option<u64> {
    text_in(path)?.parse().ok()
}

/// Returns the word in brackets, as in `always [madvise] never`.
fn chosen(text: String) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    rest.split_once(']').map(|(word, _)| word.to_owned())
}

/// Returns the process that a pid file names, if it runs.
fn running_master(pidfile: &Path) -> Option<Pid> {
    let number = fs::read_to_string(pidfile).ok()?.trim().parse::<i32>().ok()?;
    Path::new(&format!("/proc/{number}/limits")).exists().then(|| Pid::from_raw(number))
}

/// Returns the soft and the hard limit of open descriptors of a process.
fn nofile_limits(pid: Pid) -> Option<(u64, u64)> {
    let text = text_in(&format!("/proc/{pid}/limits"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let limits = line.split_whitespace().map(|word| match word {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    });
    let mut limits = limits.flatten();
    Some((limits.next()?, limits.next()?))
}

/// Returns the directories of log files, each with its free bytes.
fn log_dirs(configuration: &Configuration) -> Vec<(PathBuf, u64)> {
    let access_logs =
        configuration.pools.iter().filter_map(|pool| pool.settings.access_log.as_ref());
    let mut dirs: Vec<PathBuf> = Vec::new();
    for target in [&configuration.master.log_file].into_iter().chain(access_logs) {
        if let LogTarget::File(path) = target {
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
            dirs.push(dir.unwrap_or(Path::new(".")).to_owned());
        }
    }
    dirs.sort();
    dirs.dedup();
    dirs.into_iter().filter_map(|dir| Some((dir.clone(), file::free_bytes(&dir).ok()?))).collect()
}

/// Returns the unit of systemd in which a process runs, and its `KillMode=`.
fn unit(pid: Pid) -> Option<(String, String)> {
    let text = text_in(&format!("/proc/{pid}/cgroup"))?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    let unit = path.split('/').rev().find(|name| name.ends_with(".service"))?;
    let output = Command::new("systemctl")
        .args(["show", "--property=KillMode", "--value", "--", unit]) // any process names its group
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let mode = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !mode.is_empty()).then(|| (unit.to_owned(), mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_of_this_machine_are_found() {
        let facts = gather(&Configuration::from(crate::settings::Settings::default()));
        let (soft, hard) = facts.nofile.expect("limits");
        assert!(0 < soft && soft <= hard);
        assert!(facts.somaxconn.is_some() && facts.core_pattern.is_some());
        assert!(facts.heartbeat_dir.is_some());
    }

    #[test]
    fn chosen_is_the_word_in_brackets() {
        assert_eq!(chosen("always [madvise] never".into()).as_deref(), Some("madvise"));
        assert_eq!(chosen("none".into()), None);
    }
}
