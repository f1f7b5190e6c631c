//! The resources of this process: limits, nice value, CPUs, OOM score, and `no_new_privs`, which
//! cannot be undone. This module must not depend on which process calls it.

use std::fs;
use std::io;

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::prctl;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

const SHORTAGES: [Errno; 10] = [
    Errno::EAGAIN,
    Errno::ENOMEM,
    Errno::EMFILE,
    Errno::ENFILE,
    Errno::ENOBUFS,
    Errno::ENOSPC,
    Errno::EDQUOT,
    Errno::EIO,
    Errno::EINTR,
    Errno::EBUSY,
];

/// Returns whether an error is a shortage: of memory, processes, descriptors or disk space. A shortage
/// may pass; other errors of a call that makes something do not pass by themselves.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|number| SHORTAGES.contains(&Errno::from_raw(number)))
}

/// Sets the soft and the hard limit of open descriptors.
///
/// # Errors
/// `EPERM`: the number is beyond the hard limit or the kernel's fs.nr_open.
pub(crate) fn set_nofile_limit(limit: u64) -> io::Result<()> {
    Ok(setrlimit(Resource::RLIMIT_NOFILE, limit, limit)?)
}

/// Raises the soft limit of open descriptors to `wanted`, or as far as the hard limit allows.
///
/// # Errors
/// From setrlimit(2).
pub(crate) fn raise_nofile_limit(wanted: u64) -> io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let raised = wanted.min(hard);
    if soft < raised {
        setrlimit(Resource::RLIMIT_NOFILE, raised, hard)?;
    }
    Ok(())
}

/// Returns the soft limit of open descriptors, and what it can be raised to.
pub(crate) fn nofile_limits() -> Option<(u64, u64)> {
    getrlimit(Resource::RLIMIT_NOFILE).ok()
}

/// Returns the hard limit of open descriptors; `None` for no limit.
pub(crate) fn nofile_hard_limit() -> Option<u64> {
    hard_limit(Resource::RLIMIT_NOFILE)
}

/// Sets the soft and the hard limit of a core dump, in bytes; `None` for no limit.
///
/// # Errors
/// `EPERM`: the number is beyond the hard limit.
pub(crate) fn set_core_limit(limit: Option<u64>) -> io::Result<()> {
    let limit = limit.unwrap_or(RLIM_INFINITY);
    Ok(setrlimit(Resource::RLIMIT_CORE, limit, limit)?)
}

/// Returns the hard limit of a core dump in bytes; `None` for no limit.
pub(crate) fn core_hard_limit() -> Option<u64> {
    hard_limit(Resource::RLIMIT_CORE)
}

fn hard_limit(resource: Resource) -> Option<u64> {
    let (_, hard) = getrlimit(resource).ok()?;
    (hard != RLIM_INFINITY).then_some(hard)
}

/// Allows core dumps again after a change of user, which disables them (Linux).
///
/// # Errors
/// From prctl(2).
pub(crate) fn allow_core_dumps() -> io::Result<()> {
    Ok(prctl::set_dumpable(true)?)
}

/// Sets the nice value of this process. On Linux that is the calling thread's: call it before
/// another thread starts.
///
/// # Errors
/// `EACCES`: the value is below the present one, and RLIMIT_NICE does not allow it.
pub(crate) fn set_nice(value: i32) -> io::Result<()> {
    // SAFETY: takes plain numbers; 0 is this process.
    super::check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, value) })?;
    Ok(())
}

/// Returns the CPUs that this thread may use, lowest first (Linux). CPUs above number 1023 are left
/// out.
///
/// # Errors
/// From sched_getaffinity(2).
pub(crate) fn usable_cpus() -> io::Result<Vec<u16>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    let count = u16::try_from(CpuSet::count()).unwrap_or(u16::MAX);
    Ok((0..count).filter(|cpu| set.is_set(usize::from(*cpu)).unwrap_or(false)).collect())
}

/// Binds this thread, and those that it starts later, to one CPU (Linux).
///
/// # Errors
/// `EINVAL`: there is no such CPU, or this process may not use it.
pub(crate) fn bind_to_cpu(cpu: u16) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(usize::from(cpu))?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Sets the OOM score adjustment: how likely the kernel kills this process when memory runs out
/// (Linux).
///
/// # Errors
/// `EACCES`: the value is below the lowest that this process may set.
pub(crate) fn set_oom_score_adj(value: i32) -> io::Result<()> {
    fs::write("/proc/self/oom_score_adj", value.to_string())
}

/// Sets `no_new_privs`: this process and the programs it executes never gain privileges by exec(2)
/// (Linux).
///
/// # Errors
/// From prctl(2); `ENOTSUP` if the kernel does not support it.
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
        assert!(limit.is_none_or(|limit| limit > 0));
        assert_eq!(limit, getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(_, hard)| hard));
    }
}
