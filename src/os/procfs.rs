//! Other processes as /proc shows them (Linux): the state of their threads, system calls, CPU time,
//! memory. What this process may not read is left out.
//!
//! Reading `stack`, `syscall` and `smaps_rollup` waits for locks that a process may hold without end. A
//! function that reads them may block; call it in a child.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::cgroup::Cgroups;
use super::clock;
use super::pid::Pid;
use super::proc_dir;
use crate::diagnosis::{ProcessSample, ThreadSample};

/// The milliseconds of a tick of the times in /proc/PID/stat, on every current Linux.
const TICK_MILLIS: u64 = 10;

/// How many functions of a kernel stack are reported.
const STACK_MAX: usize = 8;

/// How many threads are sampled besides the overdue one.
const OTHER_THREADS_MAX: usize = 16;

/// Samples a process and one of its threads: the main thread, if `thread` does not belong to the
/// process. The other threads are sampled without their kernel stacks. May block.
pub(crate) fn sample(pid: Pid, thread: u64, cgroups: &Cgroups) -> ProcessSample {
    let thread = sample_thread(pid, thread).or_else(|| sample_thread(pid, main_thread_id(pid)?));
    let number = thread.as_ref().map(|thread| thread.thread_id);
    let others =
        thread_ids(pid).into_iter().filter(|other| Some(*other) != number).take(OTHER_THREADS_MAX);
    ProcessSample {
        taken_at: clock::now(),
        is_dumping_core: is_dumping_core(pid),
        is_frozen: cgroups.is_frozen(pid),
        throttled_count: cgroups.throttled_count(pid),
        cpu_period: cgroups.cpu_period(pid),
        cpu_time: cpu_time(pid, false),
        thread,
        other_threads: others.filter_map(|other| sample_thread_brief(pid, other)).collect(),
    }
}

/// Returns the numbers of a process's threads, in ascending order. That is the oldest first, until
/// the kernel's numbers wrap around.
fn thread_ids(pid: Pid) -> Vec<u64> {
    let dir = proc_dir::dir_of(pid).and_then(|dir| fs::read_dir(dir.join("task")).ok());
    let entries = dir.into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut numbers: Vec<u64> = numbers.collect();
    numbers.sort_unstable();
    numbers
}

/// Returns the memory of a process in bytes, as RSS; with that of its descendants if
/// `with_descendants`. Does not block.
pub(crate) fn resident_memory(pid: Pid, with_descendants: bool) -> Option<u64> {
    sum_over_tree(pid, with_descendants, |pid| {
        parse_kib_line(&proc_dir::read_text(&proc_dir::dir_of(pid)?.join("status"))?, "VmRSS:")
    })
}

/// Returns the memory of a process in bytes, as PSS, which is expensive to read; with that of its
/// descendants if `with_descendants`. Where the kernel does not tell the PSS, returns the RSS. May block.
pub(crate) fn proportional_memory(pid: Pid, with_descendants: bool) -> Option<u64> {
    sum_over_tree(pid, with_descendants, |pid| {
        let rollup = proc_dir::read_text(&proc_dir::dir_of(pid)?.join("smaps_rollup"));
        let share = rollup.and_then(|text| parse_kib_line(&text, "Pss:"));
        share.or_else(|| resident_memory(pid, false))
    })
}

/// Returns the CPU time that a process has used, in user mode and in the kernel; with that of its
/// descendants if `with_descendants`. Does not block.
pub(crate) fn cpu_time(pid: Pid, with_descendants: bool) -> Option<Duration> {
    let ticks = sum_over_tree(pid, with_descendants, |pid| {
        let stat = proc_dir::read_text(&proc_dir::dir_of(pid)?.join("stat"))?;
        parse_state_and_ticks(&stat).map(|(_, ticks)| ticks)
    })?;
    Some(Duration::from_millis(ticks.saturating_mul(TICK_MILLIS)))
}

fn sum_over_tree(
    pid: Pid,
    with_descendants: bool,
    value: impl Fn(Pid) -> Option<u64>,
) -> Option<u64> {
    if !with_descendants {
        return value(pid);
    }
    let each = process_tree(pid).into_iter().filter_map(value);
    Some(each.fold(0, u64::saturating_add))
}

/// How many processes of one tree are read.
const TREE_MAX: usize = 1024;
/// Of how many threads of one process the children are read.
const THREADS_MAX: usize = 256;

/// Returns a process and its descendants, as far as the kernel lists children, at most [`TREE_MAX`].
fn process_tree(pid: Pid) -> Vec<Pid> {
    let (mut tree, mut next) = (vec![pid], 0);
    while let Some(parent) = tree.get(next).filter(|_| tree.len() < TREE_MAX) {
        tree.extend(children(*parent));
        tree.truncate(TREE_MAX);
        next += 1;
    }
    tree
}

/// Returns the children of a process, those of one thread in the order of their start (where the
/// kernel lists them).
fn children(parent: Pid) -> Vec<Pid> {
    let lists = thread_ids(parent).into_iter().take(THREADS_MAX).filter_map(|thread| {
        let text = proc_dir::read_text(&thread_dir(parent, thread)?.join("children"))?;
        let numbers = text.split_whitespace().filter_map(|number| number.parse().ok());
        Some(numbers.map(Pid::from_raw).collect::<Vec<_>>())
    });
    lists.flatten().collect()
}

/// Returns which process explains a hang of a monitor that only supervises a child: the child,
/// unless the monitor itself is stopped, frozen or dumping core. May block.
pub(crate) fn process_to_diagnose(monitor: Pid, cgroups: &Cgroups) -> Pid {
    let state = main_thread_id(monitor).and_then(|first| sample_thread_brief(monitor, first));
    let is_stopped = state.is_some_and(|thread| matches!(thread.state, 'T' | 't'));
    if is_stopped || is_dumping_core(monitor) || cgroups.is_frozen(monitor) {
        return monitor;
    }
    children(monitor).first().copied().unwrap_or(monitor)
}

/// Parses a line such as `VmRSS:      1234 kB` into bytes.
fn parse_kib_line(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Whether the kernel is writing the core of a process or, if it supervises a program, of that. Does not
/// block.
pub(crate) fn is_any_dumping_core(pid: Pid, has_program: bool) -> bool {
    let program = if has_program { children(pid).first().copied() } else { None };
    is_dumping_core(pid) || program.is_some_and(is_dumping_core)
}

/// Whether the kernel is writing a process's core.
fn is_dumping_core(pid: Pid) -> bool {
    let status = proc_dir::dir_of(pid).and_then(|dir| proc_dir::read_text(&dir.join("status")));
    let status = status.unwrap_or_default();
    let value = status.lines().find_map(|line| line.strip_prefix("CoreDumping:"));
    value.is_some_and(|value| value.trim() == "1")
}

/// Returns the number of a process's main thread, which is the process's own.
fn main_thread_id(pid: Pid) -> Option<u64> {
    u64::try_from(pid.as_raw()).ok()
}

fn sample_thread(pid: Pid, thread_id: u64) -> Option<ThreadSample> {
    let thread = sample_thread_brief(pid, thread_id)?;
    let dir = thread_dir(pid, thread_id)?;
    let read = |name: &str| proc_dir::read_text(&dir.join(name));
    Some(ThreadSample {
        wchan: read("wchan").filter(|name| name != "0" && !name.is_empty()),
        stack: read("stack").map(|text| parse_stack(&text)).unwrap_or_default(),
        ..thread
    })
}

/// Samples a thread without its kernel stack, which is expensive to read.
fn sample_thread_brief(pid: Pid, thread_id: u64) -> Option<ThreadSample> {
    let dir = thread_dir(pid, thread_id)?;
    let read = |name: &str| proc_dir::read_text(&dir.join(name));
    let (state, ticks) = parse_state_and_ticks(&read("stat")?)?;
    // In nanoseconds, where the kernel counts them.
    let exact = read("schedstat").and_then(|text| text.split(' ').next()?.parse().ok());
    Some(ThreadSample {
        thread_id,
        state,
        cpu_time: exact.map_or_else(
            || Duration::from_millis(ticks.saturating_mul(TICK_MILLIS)),
            Duration::from_nanos,
        ),
        syscall: read("syscall").and_then(|text| parse_syscall(&text)),
        ..ThreadSample::default()
    })
}

fn thread_dir(pid: Pid, thread: u64) -> Option<PathBuf> {
    Some(proc_dir::dir_of(pid)?.join(format!("task/{thread}")))
}

/// Parses the state and the CPU time in /proc/PID/stat. The name is in brackets and may hold any
/// character.
fn parse_state_and_ticks(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    let mut times = fields.skip(10).map_while(|field| field.parse::<u64>().ok());
    Some((state, times.next()?.saturating_add(times.next()?)))
}

/// Parses the system call in /proc/PID/syscall, which is `running` if the thread does not wait.
fn parse_syscall(text: &str) -> Option<String> {
    let number: i64 = text.split_whitespace().next()?.parse().ok()?;
    let known = SYSCALL_NAMES.iter().find(|(known, _)| *known == number);
    // -1: it waits outside of a system call, such as in a page fault.
    (number >= 0).then(|| known.map_or_else(|| number.to_string(), |(_, name)| (*name).to_owned()))
}

/// Parses the functions in /proc/PID/stack: `[<0>] do_epoll_wait+0x5a/0x90`.
fn parse_stack(text: &str) -> Vec<String> {
    let names = text.lines().filter_map(|line| line.split_whitespace().nth(1)?.split('+').next());
    names.take(STACK_MAX).map(str::to_owned).collect()
}

/// The system calls in which processes usually wait. Their numbers depend on the architecture.
const SYSCALL_NAMES: [(i64, &str); 40] = [
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
    fn parse_stat_with_brackets_in_name_finds_state() {
        let stat = "12 (a) S (b) R 1 2 3 4 5 6 7 8 9 10 30 12 0 0 20 0";
        assert_eq!(parse_state_and_ticks(stat), Some(('R', 42)));
        assert_eq!(parse_state_and_ticks("12 (a) R 1 2"), None);
        let old = "12 (a) R 1 2 3 4 5 6 7 8 9 10 5000000000 1 0 0 20 0";
        assert_eq!(parse_state_and_ticks(old), Some(('R', 5_000_000_001)));
    }

    #[test]
    fn parse_syscall_names_common_calls() {
        let futex = libc::SYS_futex;
        assert_eq!(parse_syscall(&format!("{futex} 0x7f 0x0 0x1")), Some("futex".to_owned()));
        assert_eq!(parse_syscall("9999 0x0"), Some("9999".to_owned()));
        assert_eq!(parse_syscall("running\n"), None);
        assert_eq!(parse_syscall("-1 0x7f 0x80"), None);
    }

    #[test]
    fn parse_stack_returns_function_names() {
        let text = "[<0>] hrtimer_nanosleep+0x9a/0x120\n[<0>] do_syscall_64+0x5b/0x80\n";
        assert_eq!(parse_stack(text), ["hrtimer_nanosleep", "do_syscall_64"]);
    }

    #[test]
    fn memory_is_in_bytes() {
        assert_eq!(parse_kib_line("VmHWM:\t 9 kB\nVmRSS:\t    12 kB\n", "VmRSS:"), Some(12 << 10));
        assert_eq!(parse_kib_line("VmRSS: 12\n", "VmRSS:"), None);
        let whole = resident_memory(Pid::this(), false).expect("/proc is mounted");
        let share = proportional_memory(Pid::this(), false).expect("/proc is mounted");
        assert!(0 < share && share <= 2 * whole);
        let own = cpu_time(Pid::this(), false);
        assert!(own.is_some() && own <= cpu_time(Pid::this(), true));
        assert!(resident_memory(Pid::this(), true).is_some_and(|tree| whole <= 2 * tree));
    }

    #[test]
    fn sample_of_this_process_has_no_core_dump() {
        let sample = sample(Pid::this(), 0, &Cgroups::find());
        assert!(!sample.is_dumping_core && !sample.is_frozen);
        let thread = sample.thread.expect("/proc is mounted");
        assert_eq!(thread.thread_id, u64::try_from(Pid::this().as_raw()).unwrap());
    }
}
