//! Reads `/proc`. Independent of the server under test. The black-box tests of the crate use this file
//! too, with a `Pid` of their own.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use super::Pid;

/// Some fields of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stat {
    pub(crate) pid: Pid,
    /// `R`, `S`, `D`, `T`, `Z`, …
    pub(crate) state: char,
    pub(crate) parent: Pid,
    pub(crate) session: Pid,
    /// User and system time, in clock ticks (usually hundredths of a second).
    pub(crate) ticks: u64,
    pub(crate) threads: usize,
}

/// Returns the state of a process; none if it does not exist.
pub(crate) fn stat(pid: Pid) -> Option<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    // The name in brackets may contain any byte, so count the fields from the last bracket.
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

/// Returns how often the first thread of a process went to sleep (`voluntary_ctxt_switches`).
pub(crate) fn voluntary_switches(pid: Pid) -> u64 {
    let text = fs::read(format!("/proc/{pid}/status")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let value = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

/// Returns all processes of the machine.
pub(crate) fn all_processes() -> impl Iterator<Item = Stat> {
    fs::read_dir("/proc")
        .expect("/proc is mounted")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| stat(Pid::from_raw(pid)))
}

/// Returns the children of a process, zombies included.
pub(crate) fn children(parent: Pid) -> Vec<Stat> {
    all_processes().filter(|stat| stat.parent == parent).collect()
}

/// Returns the living members of a session. A process lives as long as any of its threads: such a
/// thread may outlive the first one, and keeps the descriptors of the process open.
pub(crate) fn session_members(session: Pid) -> Vec<Stat> {
    let lives = |stat: &Stat| stat.state != 'Z' || stat.threads > 1;
    all_processes().filter(|stat| stat.session == session && lives(stat)).collect()
}

/// Returns whether a condition becomes true within `timeout`.
pub(crate) fn becomes_true(timeout: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + timeout;
    while !condition() {
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
    true
}
