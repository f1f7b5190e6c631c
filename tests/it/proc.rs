//! What else the tests read from `/proc`.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use nix::unistd::Pid;

pub(crate) use crate::processes::{
    Stat, becomes_true, children, session_members, stat, voluntary_switches,
};
use crate::support::DEADLINE;

/// Returns the numbers of a process's open descriptors.
pub fn descriptors(pid: Pid) -> BTreeSet<u64> {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("the process lives")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// Returns a process's descriptors of this kind, such as `socket:`.
pub fn descriptors_to(pid: Pid, kind: &str) -> BTreeSet<u64> {
    let leads_there = |number: &u64| {
        let target = fs::read_link(format!("/proc/{pid}/fd/{number}"));
        target.is_ok_and(|target| target.to_string_lossy().contains(kind))
    };
    descriptors(pid).into_iter().filter(leads_there).collect()
}

/// Returns the number that the next descriptor of a process will get.
pub fn next_descriptor(pid: Pid) -> u64 {
    let taken = descriptors(pid);
    (0..).find(|number| !taken.contains(number)).expect("numbers do not end")
}

/// Returns the limit under which a process can open so many more descriptors.
pub fn limit_with_free(pid: Pid, free: usize) -> u64 {
    let taken = descriptors(pid);
    (0..).filter(|number| !taken.contains(number)).nth(free).expect("numbers do not end")
}

/// Returns the title that `ps` shows.
pub fn title(pid: Pid) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Returns the words after `key:` in `/proc/PID/status`.
pub fn status(pid: Pid, key: &str) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
        .unwrap_or_else(|| panic!("/proc/{pid}/status has no {key}"))
        .split_whitespace()
        .map(str::to_owned)
        .collect()
}

/// Returns a number in `/proc/PID/status`, such as `VmRSS` (in KiB).
pub fn status_number(pid: Pid, key: &str) -> u64 {
    status(pid, key)[0].parse().unwrap()
}

/// Returns the working directory of a process.
pub fn working_directory(pid: Pid) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/cwd")).expect("the process lives")
}

/// Returns whether a process has exited. A zombie counts as exited.
pub fn is_gone(pid: Pid) -> bool {
    stat(pid).is_none_or(|stat| stat.state == 'Z')
}

/// Returns whether a signal has stopped all threads of a process.
pub fn threads_stand_still(pid: Pid) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the process lives");
    threads.flatten().all(|thread| {
        let number = thread.file_name().to_str().and_then(|name| name.parse().ok());
        number.and_then(|number| stat(Pid::from_raw(number))).is_some_and(|stat| stat.state == 'T')
    })
}

/// Polls until a condition holds. Panics after `DEADLINE`.
#[track_caller]
pub fn wait_until(what: &str, is_so: impl FnMut() -> bool) {
    assert!(becomes_true(DEADLINE, is_so), "in vain: {what}");
}
