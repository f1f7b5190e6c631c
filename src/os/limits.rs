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
pub(crate) fn set_open_files(most: u64) -> io::Result<()> {
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}

/// The hard limit of descriptors that this process may have open; `None` is without limit.
pub(crate) fn open_files_max() -> Option<u64> {
    hard_limit(Resource::RLIMIT_NOFILE)
}

/// Sets how many bytes of a core this process may dump, the hard limit as well as the soft; `None`
/// is without limit.
///
/// # Errors
/// `EPERM`: the number is beyond the hard limit.
pub(crate) fn set_core(most: Option<u64>) -> io::Result<()> {
    let most = most.unwrap_or(RLIM_INFINITY);
    Ok(setrlimit(Resource::RLIMIT_CORE, most, most)?)
}

/// The hard limit of the bytes of a core that this process may dump; `None` is without limit.
pub(crate) fn core_max() -> Option<u64> {
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
pub(crate) fn run_on(cpu: u16) -> io::Result<()> {
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
pub(crate) fn renounce_new_privileges() -> io::Result<()> {
    prctl::set_no_new_privs()?;
    if prctl::get_no_new_privs()? { Ok(()) } else { Err(Errno::ENOTSUP.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn a_thread_runs_on_the_processor_that_it_is_bound_to() {
        let usable = usable_cpus().unwrap();
        assert!(!usable.is_empty());
        let last = usable[usable.len() - 1];
        let bound = move || run_on(last).and_then(|()| usable_cpus());
        assert_eq!(thread::spawn(bound).join().unwrap().unwrap(), [last]);
        assert_eq!(usable_cpus().unwrap(), usable);
        let beyond = thread::spawn(|| run_on(1023)).join().unwrap();
        assert!(usable.contains(&1023) || beyond.is_err());
        assert!(run_on(u16::MAX).is_err());
    }

    #[test]
    fn hard_limits_are_known() {
        let most = open_files_max();
        assert!(most.is_none_or(|most| most > 0));
        assert_eq!(most, getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(_, hard)| hard));
    }
}
