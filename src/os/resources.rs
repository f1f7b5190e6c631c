//! What a process may use, and how the kernel treats it: limits, nice value, processors, and what
//! can never be undone. It must never know which process does it to itself, nor why.

use std::fs;
use std::io;

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::prctl;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

/// Sets how many descriptors this process may have open, the hard limit as well as the soft.
///
/// # Errors
/// `EPERM`: the number is beyond the hard limit or the kernel's fs.nr_open.
pub(crate) fn set_nofile_limit(limit: u64) -> io::Result<()> {
    Ok(setrlimit(Resource::RLIMIT_NOFILE, limit, limit)?)
}

/// The hard limit of descriptors that this process may have open; `None` is without limit.
pub(crate) fn nofile_hard_limit() -> Option<u64> {
    hard_limit(Resource::RLIMIT_NOFILE)
}

/// Sets how many bytes of a core this process may dump, the hard limit as well as the soft; `None`
/// is without limit.
///
/// # Errors
/// `EPERM`: the number is beyond the hard limit.
pub(crate) fn set_core_limit(limit: Option<u64>) -> io::Result<()> {
    let most = limit.unwrap_or(RLIM_INFINITY);
    Ok(setrlimit(Resource::RLIMIT_CORE, most, most)?)
}

/// The hard limit of the bytes of a core that this process may dump; `None` is without limit.
pub(crate) fn core_hard_limit() -> Option<u64> {
    hard_limit(Resource::RLIMIT_CORE)
}

fn hard_limit(resource: Resource) -> Option<u64> {
    let (_, hard) = getrlimit(resource).ok()?;
    (hard != RLIM_INFINITY).then_some(hard)
}

/// Lets this process dump core again after a change of user, which keeps it from that (Linux).
///
/// # Errors
/// From prctl(2).
pub(crate) fn allow_core_dumps() -> io::Result<()> {
    Ok(prctl::set_dumpable(true)?)
}

/// Sets the nice value of this process, which is its only thread's on Linux.
///
/// # Errors
/// `EACCES`: the value is below the present one, and RLIMIT_NICE does not allow it.
pub(crate) fn set_nice(value: i32) -> io::Result<()> {
    // SAFETY: takes plain numbers; 0 is this process.
    super::check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, value) })?;
    Ok(())
}

/// The processors that this thread may use, lowest first (Linux). Those beyond number 1023 do not
/// count.
///
/// # Errors
/// From sched_getaffinity(2).
pub(crate) fn usable_cpus() -> io::Result<Vec<u16>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    let count = u16::try_from(CpuSet::count()).unwrap_or(u16::MAX);
    Ok((0..count).filter(|cpu| set.is_set(usize::from(*cpu)).unwrap_or(false)).collect())
}

/// Binds this thread, and those that it will start, to one processor (Linux).
///
/// # Errors
/// `EINVAL`: there is no such processor, or this process may not use it.
pub(crate) fn bind_to_cpu(cpu: u16) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(usize::from(cpu))?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Sets how readily the kernel kills this process when memory runs out (Linux).
///
/// # Errors
/// `EACCES`: the value is below what this process may choose.
pub(crate) fn set_oom_score_adj(value: i32) -> io::Result<()> {
    fs::write("/proc/self/oom_score_adj", value.to_string())
}

/// Keeps this process, and whatever it runs, from ever gaining privileges by exec(2) (Linux).
///
/// # Errors
/// From prctl(2); or the kernel knows nothing of it.
pub(crate) fn set_no_new_privs() -> io::Result<()> {
    prctl::set_no_new_privs()?;
    if prctl::get_no_new_privs()? { Ok(()) } else { Err(Errno::ENOTSUP.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn bind_to_cpu_restricts_usable_cpus() {
        let usable = usable_cpus().unwrap();
        assert!(!usable.is_empty());
        let last = usable[usable.len() - 1];
        let bound = move || bind_to_cpu(last).and_then(|()| usable_cpus());
        assert_eq!(thread::spawn(bound).join().unwrap().unwrap(), [last]);
        assert_eq!(usable_cpus().unwrap(), usable);
        let beyond = thread::spawn(|| bind_to_cpu(1023)).join().unwrap();
        assert!(usable.contains(&1023) || beyond.is_err());
        assert!(bind_to_cpu(u16::MAX).is_err());
    }

    #[test]
    fn nofile_hard_limit_matches_getrlimit() {
        let limit = nofile_hard_limit();
        assert!(limit.is_none_or(|most| most > 0));
        assert_eq!(limit, getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(_, hard)| hard));
    }
}
