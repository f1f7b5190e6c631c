//! Processes: fork, exec, exit, signal, reap.

use std::ffi::{CString, OsStr};
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal as NixSignal, kill, killpg};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::{ForkResult, Pid as RawPid, setpgid};

pub(crate) use super::pid::Pid;
use super::signal::{self, is_aborting};

/// The exit code of a process that panicked.
pub(crate) const EX_SOFTWARE: u8 = 70;

/// Forks, and returns in the parent only. The child runs `body` with every signal blocked, and
/// exits with the code that it returns, or with 70 if it panics. None of the parent's destructors
/// run in it.
///
/// # Errors
/// This process has more than one thread. `EAGAIN` (process limit) or `ENOMEM`, from fork(2).
pub(crate) fn fork(body: impl FnOnce() -> u8) -> io::Result<Pid> {
    if let Some(count) = thread_count().filter(|count| *count > 1) {
        return Err(io::Error::other(format!(
            "{count} threads in this process: a hook or a library has started one, and must end it"
        )));
    }
    let mask = signal::block_all();
    // SAFETY: there is one thread only (checked above), so the child inherits no lock that a
    // vanished thread holds, and may run any code.
    let side = unsafe { nix::unistd::fork() };
    if let Ok(ForkResult::Child) = side {
        exit_immediately(catch_unwind(AssertUnwindSafe(body)).unwrap_or(EX_SOFTWARE));
    }
    signal::set_mask(&mask);
    match side {
        Ok(ForkResult::Parent { child }) => Ok(Pid::from_raw(child.as_raw())),
        Ok(ForkResult::Child) => unreachable!("the child has exited above"),
        Err(errno) => Err(errno.into()),
    }
}

/// Returns the CPU time that a process has used, its children excluded; `None` if there is no such
/// process.
pub(crate) fn cpu_time(pid: Pid) -> Option<Duration> {
    let clock = clock_getcpuclockid(RawPid::from_raw(pid.as_raw())).ok()?;
    let time = super::clock::from_time_spec(clock_gettime(clock).ok()?);
    Some(Duration::from_nanos(time.as_nanos()))
}

/// Exits this process at once. No destructor and no exit hook runs, so nothing that a child has
/// inherited from its parent is undone or flushed twice. If the process is being aborted, waits for
/// the end of that.
pub(crate) fn exit_immediately(code: u8) -> ! {
    while is_aborting() {
        nix::unistd::pause(); // SIGABRT ends it within a second
    }
    // SAFETY: _exit(2) takes any code and does not return.
    unsafe { libc::_exit(i32::from(code)) }
}

thread_local! {
    static THREAD_ID: u64 = u64::try_from(nix::unistd::gettid().as_raw()).unwrap_or(0);
}

/// Returns this thread's number in the kernel (Linux). Do not call it in a process that forks
/// later: the child would keep the parent's number.
pub(crate) fn thread_id() -> u64 {
    THREAD_ID.with(|number| *number)
}

/// Returns how many threads this process has; `None` where /proc does not tell.
pub(crate) fn thread_count() -> Option<u64> {
    // A directory has one link of its own, one in its parent, and one for each subdirectory.
    fs::metadata("/proc/self/task").ok().map(|dir| dir.nlink().saturating_sub(2))
}

/// Returns how often this process has given up the CPU by itself: to sleep, or to be stopped.
pub(crate) fn voluntary_switches() -> i64 {
    getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| usage.voluntary_context_switches())
}

/// Sets an environment variable of this process.
pub(crate) fn set_env(name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) {
    // SAFETY: called in a child before it starts a thread.
    unsafe { std::env::set_var(name, value) };
}

/// Removes an environment variable of this process.
pub(crate) fn unset_env(name: &str) {
    // SAFETY: called by the master, which has no second thread.
    unsafe { std::env::remove_var(name) };
}

/// Changes the working directory to an open directory.
///
/// # Errors
/// From fchdir(2).
pub(crate) fn change_dir(dir: BorrowedFd<'_>) -> io::Result<()> {
    Ok(nix::unistd::fchdir(dir)?)
}

/// The number of the first descriptor that is passed to a program, as in sd_listen_fds(3).
pub(crate) const LISTEN_FDS_START: RawFd = 3;

/// Replaces this process by another program, which is found as a shell finds it. The program gets
/// these descriptors from [`LISTEN_FDS_START`] on, default signal actions, and all signals
/// unblocked. Returns only on failure, after it has called `report_failure` with the last descriptor.
pub(crate) fn exec_with_fds(
    args: &[CString],
    fds: &[RawFd],
    report_failure: impl FnOnce(BorrowedFd<'_>, &io::Error),
) {
    let Some(last) = fds.last() else { return };
    let beyond = LISTEN_FDS_START + fds.len() as RawFd;
    // SAFETY: the caller's descriptors are open, and this process has one thread to close them.
    let original = unsafe { BorrowedFd::borrow_raw(*last) };
    let Some(name) = args.first() else {
        return report_failure(original, &io::Error::from_raw_os_error(libc::ENOENT));
    };
    let path = std::env::var_os("PATH");
    let program = match find_program(OsStr::from_bytes(name.to_bytes()), path.as_deref(), None) {
        Ok(program) => program,
        Err(error) => return report_failure(original, &error),
    };
    let copies = match dup_fds_above(fds, beyond) {
        Ok(copies) => copies,
        Err(error) => return report_failure(original, &error),
    };
    // SAFETY: the copy was made just above, beyond all numbers that are overwritten below.
    let error_channel = unsafe { BorrowedFd::borrow_raw(copies[copies.len() - 1]) };
    if let Err(error) = dup_fds_to(&copies, LISTEN_FDS_START) {
        return report_failure(error_channel, &error);
    }
    // In this order: a handler of the parent's would write into the parent's pipe.
    signal::reset_caught_signals();
    signal::unblock_all();
    // Not execvp(3), which passes a file that is no program to a shell.
    report_failure(error_channel, &exec(&program, args));
}

/// Replaces this process by another program. Returns the error on failure only.
pub(super) fn exec(program: &Path, args: &[CString]) -> io::Error {
    match CString::new(program.as_os_str().as_bytes()) {
        Ok(program) => match nix::unistd::execv(&program, args) {
            Ok(never) => match never {},
            Err(errno) => errno.into(),
        },
        Err(error) => error.into(),
    }
}

/// Duplicates descriptors to numbers from `beyond` on, out of the way of those that are filled
/// later. The copies are close-on-exec.
///
/// # Errors
/// `EBADF` or `EMFILE`, from fcntl(2).
pub(super) fn dup_fds_above(fds: &[RawFd], beyond: RawFd) -> io::Result<Vec<RawFd>> {
    let copies = fds
        .iter()
        // SAFETY: asks for a copy beyond the numbers that are filled later; a bad number is EBADF.
        .map(|fd| super::check(unsafe { libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, beyond) }));
    copies.collect()
}

/// Duplicates descriptors from [`dup_fds_above`] to the numbers from `first` on, for the program
/// that is about to replace this process.
///
/// # Errors
/// From dup2(2).
pub(super) fn dup_fds_to(fds: &[RawFd], first: RawFd) -> io::Result<()> {
    for (fd, target) in fds.iter().zip(first..) {
        // SAFETY: the owner of this number belongs to a process image that is about to be replaced.
        super::check(unsafe { libc::dup2(*fd, target) })?;
    }
    Ok(())
}

/// The search path for programs if there is no PATH, as in execvp(3).
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Finds a program as a shell in `dir` would (in this process's working directory, if none).
///
/// # Errors
/// `ENOENT`, or `EACCES` if what is there cannot be executed.
pub(crate) fn find_program(
    name: &OsStr,
    path: Option<&OsStr>,
    dir: Option<&Path>,
) -> io::Result<PathBuf> {
    let in_dir = |path: PathBuf| dir.map_or_else(|| path.clone(), |dir| dir.join(&path));
    if name.is_empty() || name.as_bytes().contains(&b'/') {
        let candidate = in_dir(name.into());
        return check_executable(&candidate).map(|()| candidate);
    }
    let mut failure = io::Error::from_raw_os_error(libc::ENOENT);
    for entry in std::env::split_paths(path.unwrap_or(OsStr::new(DEFAULT_PATH))) {
        // An empty entry is the working directory.
        let entry = if entry.as_os_str().is_empty() { PathBuf::from(".") } else { entry };
        let candidate = in_dir(entry.join(name));
        match check_executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => failure = error,
            Err(_) => (),
        }
    }
    Err(failure)
}

/// Checks that a path leads to an executable file.
fn check_executable(path: &Path) -> io::Result<()> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::from_raw_os_error(libc::EACCES));
    }
    Ok(nix::unistd::access(path, nix::unistd::AccessFlags::X_OK)?)
}

/// How a process exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal {
        /// The kernel's number.
        number: i32,
        /// Whether a core was dumped.
        core: bool,
    },
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "code {code}"),
            Exit::Signal { number, .. } => f.write_str(&signal::name_of(*number)),
        }
    }
}

/// Returns a child that has exited and has not been reaped, so its number is not yet reused. `None`
/// if there is none.
///
/// # Errors
/// From waitid(2), except that there are no children.
pub(crate) fn next_exited_child() -> io::Result<Option<(Pid, Exit)>> {
    let look = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    let info = match wait_on(None, look) {
        Ok(info) => info,
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Ok(None),
        Err(error) => return Err(error),
    };
    // SAFETY: waitid(2) fills in the fields of SIGCHLD, or leaves zeros if no child has exited.
    let pid = Pid::from_raw(unsafe { info.si_pid() });
    if pid.as_raw() == 0 {
        return Ok(None);
    }
    // SAFETY: as above.
    let status = unsafe { info.si_status() };
    let exit = match info.si_code {
        libc::CLD_EXITED => Exit::Code(status),
        libc::CLD_KILLED => Exit::Signal { number: status, core: false },
        libc::CLD_DUMPED => Exit::Signal { number: status, core: true },
        // A child that has made this process its tracer (ptrace(2), PTRACE_TRACEME) has stopped.
        _ => {
            send_sigkill(pid);
            return Ok(None);
        }
    };
    Ok(Some((pid, exit)))
}

/// Reaps a child that [`next_exited_child`] has returned. The kernel may reuse its number from now
/// on. Uses the same system call, so that a filter which allows the look allows this too. If it
/// fails, [`next_exited_child`] returns the same child again.
///
/// # Errors
/// From waitid(2).
pub(crate) fn reap(child: Pid) -> io::Result<()> {
    wait_on(Some(child), libc::WEXITED | libc::WNOHANG).map(drop)
}

/// Returns whether a process is a child of this one that has not been reaped.
pub(super) fn is_child(pid: Pid) -> bool {
    wait_on(Some(pid), libc::WEXITED | libc::WNOHANG | libc::WNOWAIT).is_ok()
}

/// Waits until a child exits, and reaps it.
pub(super) fn wait_for(child: Pid) {
    let _ = wait_on(Some(child), libc::WEXITED); // it fails if there is no such child
}

/// Calls waitid(2) for a child, or for any. The call of nix fails after a real-time signal has ended the
/// child, which it has then reaped: it has no name for such a signal.
fn wait_on(child: Option<Pid>, flags: libc::c_int) -> io::Result<libc::siginfo_t> {
    let (kind, number) = match child {
        Some(child) => (libc::P_PID, child.as_raw().unsigned_abs()),
        None => (libc::P_ALL, 0),
    };
    loop {
        // SAFETY: zeros are a valid siginfo_t, which is plain data.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: `info` is a valid place for the answer.
        match super::check(unsafe { libc::waitid(kind, number, &raw mut info, flags) }) {
            Ok(_) => return Ok(info),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
}

/// Returns the process group of a process; `None` if there is no such process.
pub(crate) fn process_group_of(pid: Pid) -> Option<Pid> {
    nix::unistd::getpgid(Some(raw(pid))).ok().map(|group| Pid::from_raw(group.as_raw()))
}

/// Makes a process, this one or a child of it, the leader of its own process group. The processes
/// that it starts join the group, unless they leave it themselves.
pub(crate) fn set_process_group(pid: Pid) {
    // It can only fail for a child that has exited, or leads a group already.
    let _ = setpgid(raw(pid), raw(pid));
}

/// Kills all processes of the group that a child leads, or led. The child must not have been
/// reaped, so that the number of its group is still its own.
pub(crate) fn kill_process_group(leader: Pid) {
    debug_assert!(leader.as_raw() > 1, "0 and 1 name other groups");
    let _ = killpg(raw(leader), NixSignal::SIGKILL); // ESRCH: it leads none
}

/// Whether a signal is SIGKILL, which no process can catch.
pub(crate) fn is_sigkill(number: i32) -> bool {
    number == libc::SIGKILL
}

/// Whether operators and tools end processes by this signal, rather than a fault of the process.
pub(crate) fn is_termination_signal(number: i32) -> bool {
    [libc::SIGKILL, libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGHUP].contains(&number)
}

/// Sends SIGTERM: a worker drains and exits.
pub(crate) fn send_sigterm(pid: Pid) {
    send_signal(pid, NixSignal::SIGTERM);
}

/// Sends SIGURG: a worker reads again which `SO_REUSEPORT` shards are its own. A process that does
/// not catch SIGURG ignores it.
pub(crate) fn send_sigurg(pid: Pid) {
    send_signal(pid, NixSignal::SIGURG);
}

/// Sends SIGQUIT: a worker exits at once.
pub(crate) fn send_sigquit(pid: Pid) {
    send_signal(pid, NixSignal::SIGQUIT);
}

/// Sends SIGUSR1: a worker reopens its log files.
pub(crate) fn send_sigusr1(pid: Pid) {
    send_signal(pid, NixSignal::SIGUSR1);
}

/// Sends SIGABRT to a thread of a process, so that the backtrace is that thread's; to the process
/// if it has no such thread (Linux). The process may dump core.
pub(crate) fn send_sigabrt_to_thread(pid: Pid, thread: u64) {
    let number = libc::pid_t::try_from(thread).unwrap_or(0);
    // SAFETY: tgkill(2) takes any numbers, and signals only a thread of that very process.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, pid.as_raw(), number, libc::SIGABRT) };
    if sent != 0 {
        send_signal(pid, NixSignal::SIGABRT);
    }
}

/// Sends SIGKILL.
pub(crate) fn send_sigkill(pid: Pid) {
    send_signal(pid, NixSignal::SIGKILL);
}

/// Signals a child that has not been reaped. The kernel keeps its number until then, so the signal
/// cannot reach an unrelated process. An error can only mean that the child has just exited or
/// changed its user.
pub(super) fn send_signal(pid: Pid, number: NixSignal) {
    debug_assert!(pid.as_raw() > 0, "0 and below name groups");
    let _ = kill(raw(pid), number);
}

fn raw(pid: Pid) -> RawPid {
    RawPid::from_raw(pid.as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fork_of_process_with_threads_is_refused() {
        // Tests run in threads.
        let error = std::thread::spawn(|| fork(|| 0)).join().unwrap().unwrap_err();
        assert!(error.to_string().contains("threads in this process"), "{error}");
    }
}
