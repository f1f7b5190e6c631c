//! Other processes, seen through /proc (Linux): what a thread does, in which call, since when. What
//! may not be seen is left out.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::cgroup::Cgroups;
use super::clock;
use super::process::Pid;
use crate::diagnosis::{Look, Thread};

/// A tick of the times in /proc/PID/stat, wherever Linux runs today.
const TICK: Duration = Duration::from_millis(10);

/// How many functions of the kernel are told.
const STACK_MAX: usize = 8;

/// How many threads are looked at besides the one that matters.
const OTHERS_MAX: usize = 16;

/// Looks at a process, and at one of its threads; at its first one if that is none of its own; and at
/// the others in passing.
pub(crate) fn look(pid: Pid, thread: u64, cgroups: &Cgroups) -> Look {
    let thread = look_at_thread(pid, thread).or_else(|| look_at_thread(pid, first_thread(pid)?));
    let number = thread.as_ref().map(|thread| thread.number);
    let others = threads(pid).into_iter().filter(|other| Some(*other) != number).take(OTHERS_MAX);
    Look {
        at: clock::now(),
        dumping: is_dumping_core(pid),
        frozen: cgroups.is_frozen(pid),
        throttled: cgroups.throttled(pid),
        period: cgroups.cpu_period(pid),
        thread,
        others: others.filter_map(|other| glance_at_thread(pid, other)).collect(),
    }
}

/// The numbers of a process's threads, the oldest first as long as numbers have not begun anew.
fn threads(pid: Pid) -> Vec<u64> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut numbers: Vec<u64> = numbers.collect();
    numbers.sort_unstable();
    numbers
}

/// How much memory a process has, in bytes. To count what it shares by its share is dear, and done
/// only if without that it is more than `enough`; where the kernel does not tell, all of it counts.
pub(crate) fn memory(pid: Pid, enough: u64) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
    let whole = kibibytes_in(&read("status")?, "VmRSS:")?;
    if whole <= enough {
        return Some(whole);
    }
    Some(read("smaps_rollup").and_then(|text| kibibytes_in(&text, "Pss:")).unwrap_or(whole))
}

/// How much memory a process and all that it has started have together, as [`memory`] counts it.
pub(crate) fn memory_of_family(pid: Pid, enough: u64) -> Option<u64> {
    let family = family(pid);
    let sum = |enough: u64| {
        let each = family.iter().filter_map(|member| memory(*member, enough));
        each.fold(0, u64::saturating_add)
    };
    let whole = sum(u64::MAX);
    Some(if whole <= enough { whole } else { sum(0) })
}

/// The most processes of one family that are looked at.
const FAMILY_MAX: usize = 1024;

/// A process, its children, theirs, and so on (where the kernel lists them).
fn family(pid: Pid) -> Vec<Pid> {
    let (mut family, mut next) = (vec![pid], 0);
    while let Some(parent) = family.get(next).filter(|_| family.len() < FAMILY_MAX) {
        family.extend(children(*parent));
        next += 1;
    }
    family
}

/// The children of a process, those of one thread in the order of their birth (where the kernel
/// lists them).
fn children(parent: Pid) -> Vec<Pid> {
    let lists = threads(parent).into_iter().filter_map(|thread| {
        let text = fs::read_to_string(format!("/proc/{parent}/task/{thread}/children")).ok()?;
        let numbers = text.split_whitespace().filter_map(|number| number.parse().ok());
        Some(numbers.map(Pid::from_raw).collect::<Vec<_>>())
    });
    lists.flatten().collect()
}

/// Of a process that does nothing but watch over another: the one of the two that explains why it
/// does not get on. That is the other, unless the first itself cannot run.
pub(crate) fn who_matters(watch: Pid, cgroups: &Cgroups) -> Pid {
    let state = first_thread(watch).and_then(|first| glance_at_thread(watch, first));
    let is_stopped = state.is_some_and(|thread| matches!(thread.state, 'T' | 't'));
    if is_stopped || is_dumping_core(watch) || cgroups.is_frozen(watch) {
        return watch;
    }
    children(watch).first().copied().unwrap_or(watch)
}

/// The bytes in a line such as `VmRSS:      1234 kB`.
fn kibibytes_in(text: &str, word: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(word))?;
    rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Whether the kernel is writing a process's core.
pub(crate) fn is_dumping_core(pid: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let told = status.lines().find_map(|line| line.strip_prefix("CoreDumping:"));
    told.is_some_and(|told| told.trim() == "1")
}

/// The number of a process's first thread, which is its own.
fn first_thread(pid: Pid) -> Option<u64> {
    u64::try_from(pid.as_raw()).ok()
}

fn look_at_thread(pid: Pid, number: u64) -> Option<Thread> {
    let thread = glance_at_thread(pid, number)?;
    let read = |name: &str| fs::read_to_string(folder_of(pid, number).join(name)).ok();
    Some(Thread {
        channel: read("wchan").filter(|name| name != "0" && !name.is_empty()),
        stack: read("stack").map(|text| stack_in(&text)).unwrap_or_default(),
        ..thread
    })
}

/// Without where in the kernel it is, which is dear to find out.
fn glance_at_thread(pid: Pid, number: u64) -> Option<Thread> {
    let read = |name: &str| fs::read_to_string(folder_of(pid, number).join(name)).ok();
    let (state, ticks) = state_and_ticks(&read("stat")?)?;
    // Exact to the nanosecond, where the kernel counts that.
    let exact = read("schedstat").and_then(|text| text.split(' ').next()?.parse().ok());
    Some(Thread {
        number,
        state,
        ran: exact.map_or_else(|| TICK.saturating_mul(ticks), Duration::from_nanos),
        call: read("syscall").and_then(|text| call_in(&text)),
        ..Thread::default()
    })
}

fn folder_of(pid: Pid, thread: u64) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/task/{thread}"))
}

/// Of /proc/PID/stat. The name is in brackets and may hold anything.
fn state_and_ticks(stat: &str) -> Option<(char, u32)> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    let mut times = fields.skip(10).map_while(|field| field.parse::<u32>().ok());
    Some((state, times.next()?.saturating_add(times.next()?)))
}

/// The call in /proc/PID/syscall, which is the word `running` if there is none that waits.
fn call_in(text: &str) -> Option<String> {
    let number: i64 = text.split_whitespace().next()?.parse().ok()?;
    let known = CALLS.iter().find(|(known, _)| *known == number);
    // -1: it waits outside of any call, as in a page fault.
    (number >= 0).then(|| known.map_or_else(|| number.to_string(), |(_, name)| (*name).to_owned()))
}

/// The functions in /proc/PID/stack: `[<0>] do_epoll_wait+0x5a/0x90`.
fn stack_in(text: &str) -> Vec<String> {
    let names = text.lines().filter_map(|line| line.split_whitespace().nth(1)?.split('+').next());
    names.take(STACK_MAX).map(str::to_owned).collect()
}

/// The calls in which processes usually wait. Their numbers differ from machine to machine.
const CALLS: [(i64, &str); 40] = [
    (libc::SYS_read, "read"),
    (libc::SYS_write, "write"),
    (libc::SYS_readv, "readv"),
    (libc::SYS_writev, "writev"),
    (libc::SYS_pread64, "pread64"),
    (libc::SYS_pwrite64, "pwrite64"),
    (libc::SYS_sendfile, "sendfile"),
    (libc::SYS_openat, "openat"),
    (libc::SYS_close, "close"),
    (libc::SYS_fsync, "fsync"),
    (libc::SYS_fdatasync, "fdatasync"),
    (libc::SYS_flock, "flock"),
    (libc::SYS_fcntl, "fcntl"),
    (libc::SYS_ioctl, "ioctl"),
    (libc::SYS_mmap, "mmap"),
    (libc::SYS_munmap, "munmap"),
    (libc::SYS_madvise, "madvise"),
    (libc::SYS_ppoll, "ppoll"),
    (libc::SYS_pselect6, "pselect6"),
    (libc::SYS_epoll_pwait, "epoll_pwait"),
    (libc::SYS_nanosleep, "nanosleep"),
    (libc::SYS_clock_nanosleep, "clock_nanosleep"),
    (libc::SYS_futex, "futex"),
    (libc::SYS_wait4, "wait4"),
    (libc::SYS_waitid, "waitid"),
    (libc::SYS_connect, "connect"),
    (libc::SYS_accept, "accept"),
    (libc::SYS_accept4, "accept4"),
    (libc::SYS_sendto, "sendto"),
    (libc::SYS_recvfrom, "recvfrom"),
    (libc::SYS_sendmsg, "sendmsg"),
    (libc::SYS_recvmsg, "recvmsg"),
    (libc::SYS_recvmmsg, "recvmmsg"),
    (libc::SYS_rt_sigsuspend, "rt_sigsuspend"),
    (libc::SYS_rt_sigtimedwait, "rt_sigtimedwait"),
    (libc::SYS_io_getevents, "io_getevents"),
    (libc::SYS_io_uring_enter, "io_uring_enter"),
    (libc::SYS_clone, "clone"),
    (libc::SYS_clone3, "clone3"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_epoll_wait, "epoll_wait"),
    #[cfg(not(target_arch = "x86_64"))]
    (libc::SYS_execve, "execve"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_hides_nothing() {
        let stat = "12 (a) S (b) R 1 2 3 4 5 6 7 8 9 10 30 12 0 0 20 0";
        assert_eq!(state_and_ticks(stat), Some(('R', 42)));
        assert_eq!(state_and_ticks("12 (a) R 1 2"), None);
    }

    #[test]
    fn calls_have_names_where_they_are_common() {
        let futex = libc::SYS_futex;
        assert_eq!(call_in(&format!("{futex} 0x7f 0x0 0x1")), Some("futex".to_owned()));
        assert_eq!(call_in("9999 0x0"), Some("9999".to_owned()));
        assert_eq!(call_in("running\n"), None);
        assert_eq!(call_in("-1 0x7f 0x80"), None);
    }

    #[test]
    fn a_stack_is_a_list_of_names() {
        let text = "[<0>] hrtimer_nanosleep+0x9a/0x120\n[<0>] do_syscall_64+0x5b/0x80\n";
        assert_eq!(stack_in(text), ["hrtimer_nanosleep", "do_syscall_64"]);
    }

    #[test]
    fn memory_is_told_in_bytes() {
        assert_eq!(kibibytes_in("VmHWM:\t 9 kB\nVmRSS:\t    12 kB\n", "VmRSS:"), Some(12 << 10));
        assert_eq!(kibibytes_in("VmRSS: 12\n", "VmRSS:"), None);
        let whole = memory(Pid::this(), u64::MAX).expect("/proc is mounted");
        assert!(0 < whole && memory(Pid::this(), 0).is_some_and(|share| share <= 2 * whole));
    }

    #[test]
    fn this_process_runs_and_dumps_no_core() {
        let look = look(Pid::this(), 0, &Cgroups::find());
        assert!(!look.dumping && !look.frozen);
        let thread = look.thread.expect("/proc is mounted");
        assert_eq!(thread.number, u64::try_from(Pid::this().as_raw()).unwrap());
    }
}
