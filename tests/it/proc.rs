//! What `/proc` says about processes. Nothing here knows what a server is.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use crate::support::DEADLINE;

/// A few fields of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    pub pid: Pid,
    /// `R`, `S`, `D`, `T`, `Z`, …
    pub state: char,
    pub parent: Pid,
    pub session: Pid,
    /// User and system time, in clock ticks (usually hundredths of a second).
    pub ticks: u64,
    pub threads: usize,
}

/// The state of a process, or nothing if there is no such process.
pub fn stat(pid: Pid) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in brackets and may hold anything, so count from the last bracket.
    let fields: Vec<&str> = text.get(text.rfind(')')? + 2..)?.split(' ').collect();
    let number = |at: usize| fields.get(at)?.parse::<i64>().ok();
    let pid_at = |at: usize| Some(Pid::from_raw(i32::try_from(number(at)?).ok()?));
    Some(Stat {
        pid,
        state: fields.first()?.chars().next()?,
        parent: pid_at(1)?,
        session: pid_at(3)?,
        ticks: u64::try_from(number(11)? + number(12)?).ok()?,
        threads: usize::try_from(number(17)?).ok()?,
    })
}

/// All processes there are.
fn everybody() -> impl Iterator<Item = Stat> {
    fs::read_dir("/proc")
        .expect("/proc is mounted")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| stat(Pid::from_raw(pid)))
}

/// The children of a process, zombies included.
pub fn children(parent: Pid) -> Vec<Stat> {
    everybody().filter(|stat| stat.parent == parent).collect()
}

/// The living members of a session.
pub fn session_members(session: Pid) -> Vec<Stat> {
    everybody().filter(|stat| stat.session == session && stat.state != 'Z').collect()
}

/// The numbers of the open descriptors of a process.
pub fn descriptors(pid: Pid) -> BTreeSet<u64> {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("the process lives")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// The descriptors of a process that lead to something of this kind, such as `socket:`.
pub fn descriptors_to(pid: Pid, kind: &str) -> BTreeSet<u64> {
    let leads_there = |number: &u64| {
        let target = fs::read_link(format!("/proc/{pid}/fd/{number}"));
        target.is_ok_and(|target| target.to_string_lossy().contains(kind))
    };
    descriptors(pid).into_iter().filter(leads_there).collect()
}

/// The number that the next descriptor of a process will get.
pub fn next_descriptor(pid: Pid) -> u64 {
    let taken = descriptors(pid);
    (0..).find(|number| !taken.contains(number)).expect("numbers do not end")
}

/// The title that `ps` shows.
pub fn title(pid: Pid) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// The words after `key:` in `/proc/PID/status`.
pub fn status(pid: Pid, key: &str) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
        .unwrap_or_else(|| panic!("/proc/{pid}/status has no {key}"))
        .split_whitespace()
        .map(str::to_owned)
        .collect()
}

/// A number in `/proc/PID/status`, such as `VmRSS` (in KiB).
pub fn status_number(pid: Pid, key: &str) -> u64 {
    status(pid, key)[0].parse().unwrap()
}

/// The working directory of a process.
pub fn working_directory(pid: Pid) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/cwd")).expect("the process lives")
}

/// Waits until something is so that nobody announces. Panics at the deadline.
#[track_caller]
pub fn wait_until(what: &str, is_so: impl FnMut() -> bool) {
    assert!(comes_true(DEADLINE, is_so), "in vain: {what}");
}

/// Whether something becomes so within a time.
pub fn comes_true(patience: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + patience;
    while !is_so() {
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
    true
}
