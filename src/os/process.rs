//! Processes: fork, end, signal, reap.

use std::ffi::{CString, OsStr};
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::{Signal as Number, kill, killpg};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, Pid as RawPid, setpgid};

use super::signal;

/// The exit code of a process that panicked.
pub(crate) const EX_SOFTWARE: u8 = 70;

/// A process, by number. Only a name: it says nothing about whether the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Pid(i32);

impl Pid {
    /// The process with this number.
    pub(crate) const fn from_raw(number: i32) -> Self {
        Self(number)
    }

    /// This process.
    pub(crate) fn this() -> Self {
        Self(RawPid::this().as_raw())
    }

    /// This process's parent, at this moment.
    pub(crate) fn parent() -> Self {
        Self(RawPid::parent().as_raw())
    }

    /// The number.
    pub(crate) const fn as_raw(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Forks, and returns in the parent only. The child runs `body` with every signal blocked, and
/// leaves with the code that it returns, or with 70 if it panics; no destructor of the parent's
/// runs in it.
///
/// # Errors
/// `EAGAIN` (process limit) or `ENOMEM`, from fork(2).
///
/// # Panics
/// If this process has more than one thread.
pub(crate) fn fork(body: impl FnOnce() -> u8) -> io::Result<Pid> {
    assert!(thread_count().is_none_or(|n| n == 1), "only a single-threaded process may fork");
    let mask = signal::block_all();
    // SAFETY: there is one thread only (asserted above), so the child inherits no lock that a
    // vanished thread holds, and may run any code.
    let side = unsafe { nix::unistd::fork() };
    if let Ok(ForkResult::Child) = side {
        exit_immediately(catch_unwind(AssertUnwindSafe(body)).unwrap_or(EX_SOFTWARE));
    }
    signal::set_mask(&mask);
    match side {
        Ok(ForkResult::Parent { child }) => Ok(Pid(child.as_raw())),
        Ok(ForkResult::Child) => unreachable!("the child has left above"),
        Err(errno) => Err(errno.into()),
    }
}

/// Ends this process at once: no destructor and no exit hook runs, so nothing that a child has
/// inherited from its parent is undone or flushed twice.
pub(crate) fn exit_immediately(code: u8) -> ! {
    while signal::is_aborting() {
        nix::unistd::pause(); // it is to die of that, within a second
    }
    // SAFETY: _exit(2) takes any code and does not return.
    unsafe { libc::_exit(i32::from(code)) }
}

thread_local! {
    static THREAD_ID: u64 = u64::try_from(nix::unistd::gettid().as_raw()).unwrap_or(0);
}

/// This thread's number in the kernel (Linux). Not to be asked in a process that then forks: the
/// child would remember the parent's.
pub(crate) fn thread_id() -> u64 {
    THREAD_ID.with(|number| *number)
}

/// How many threads this process has; `None` where /proc does not tell.
pub(crate) fn thread_count() -> Option<u64> {
    // A folder has one link of its own, one in its parent, and one a subfolder.
    fs::metadata("/proc/self/task").ok().map(|folder| folder.nlink().saturating_sub(2))
}

/// Sets an environment variable of this process.
pub(crate) fn set_env(name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) {
    // SAFETY: called in a child before it starts a thread.
    unsafe { std::env::set_var(name, value) };
}

/// Forgets an environment variable of this process.
pub(crate) fn unset_env(name: &str) {
    // SAFETY: called by the master, which has no second thread.
    unsafe { std::env::remove_var(name) };
}

/// Makes an open folder the working directory.
///
/// # Errors
/// From fchdir(2).
pub(crate) fn change_dir(dir: BorrowedFd<'_>) -> io::Result<()> {
    Ok(nix::unistd::fchdir(dir)?)
}

/// The number of the first descriptor that is handed on, as sd_listen_fds(3) has it.
pub(crate) const LISTEN_FDS_START: RawFd = 3;

/// Becomes another program, found by its name as a shell would find it, with these descriptors
/// from [`LISTEN_FDS_START`] on, with default actions and with all signals unblocked. Returns only if that fails,
/// after it has said so through the last of the descriptors.
pub(crate) fn exec_with_fds(
    args: &[CString],
    fds: &[RawFd],
    report_failure: impl FnOnce(BorrowedFd<'_>, &io::Error),
) {
    let Some(last) = fds.last() else { return };
    let beyond = LISTEN_FDS_START + fds.len() as RawFd;
    // SAFETY: the caller's descriptors are open, and this process has one thread to close them.
    let before = unsafe { BorrowedFd::borrow_raw(*last) };
    let Some(word) = args.first() else {
        return report_failure(before, &io::Error::from_raw_os_error(libc::ENOENT));
    };
    let path = std::env::var_os("PATH");
    let program = find_program(OsStr::from_bytes(word.to_bytes()), path.as_deref(), None);
    let program = match program {
        Ok(program) => program,
        Err(error) => return report_failure(before, &error),
    };
    let moved = match dup_fds_above(fds, beyond) {
        Ok(moved) => moved,
        Err(error) => return report_failure(before, &error),
    };
    let error_channel = moved[moved.len() - 1];
    // SAFETY: the copy was made just above, beyond whatever is overwritten below.
    let error_channel = unsafe { BorrowedFd::borrow_raw(error_channel) };
    if let Err(error) = dup_fds_to(&moved, LISTEN_FDS_START) {
        return report_failure(error_channel, &error);
    }
    // In this order: a handler of the parent's would write into the parent's pipe.
    signal::reset_caught_signals();
    signal::unblock_all();
    // Not execvp, which hands what is no program to a shell.
    report_failure(error_channel, &exec(&program, args));
}

/// Becomes another program; returns only the reason why not.
pub(super) fn exec(program: &Path, args: &[CString]) -> io::Error {
    match CString::new(program.as_os_str().as_bytes()) {
        Ok(program) => match nix::unistd::execv(&program, args) {
            Ok(never) => match never {},
            Err(errno) => errno.into(),
        },
        Err(error) => error.into(),
    }
}

/// Copies descriptors out of the way of those that are to be filled, to numbers from `beyond` on,
/// where they are closed across exec(2).
///
/// # Errors
/// `EBADF` or `EMFILE`, from fcntl(2).
pub(super) fn dup_fds_above(fds: &[RawFd], beyond: RawFd) -> io::Result<Vec<RawFd>> {
    let copies = fds
        .iter()
        // SAFETY: asks for a copy beyond the places that are to be filled; a bad number is EBADF.
        .map(|fd| super::check(unsafe { libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, beyond) }));
    copies.collect()
}

/// Gives descriptors that were [lifted](dup_fds_above) the numbers from `first` on, for the program that this
/// process is about to become.
///
/// # Errors
/// From dup2(2).
pub(super) fn dup_fds_to(fds: &[RawFd], first: RawFd) -> io::Result<()> {
    for (fd, place) in fds.iter().zip(first..) {
        // SAFETY: whatever had this number belongs to a process image that is about to go.
        super::check(unsafe { libc::dup2(*fd, place) })?;
    }
    Ok(())
}

/// Where a program is looked for if there is no PATH, as execvp(3) has it.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Where a shell in `folder` (this process's own, if none) would find a program.
///
/// # Errors
/// `ENOENT`, or `EACCES` if what is there cannot be executed.
pub(crate) fn find_program(
    word: &OsStr,
    path: Option<&OsStr>,
    dir: Option<&Path>,
) -> io::Result<PathBuf> {
    let in_folder = |name: PathBuf| dir.map_or_else(|| name.clone(), |folder| folder.join(&name));
    if word.is_empty() || word.as_bytes().contains(&b'/') {
        let place = in_folder(word.into());
        return check_executable(&place).map(|()| place);
    }
    let mut why = io::Error::from_raw_os_error(libc::ENOENT);
    for place in std::env::split_paths(path.unwrap_or(OsStr::new(DEFAULT_PATH))) {
        // An empty item is the present folder.
        let name =
            if place.as_os_str().is_empty() { Path::new(".").join(word) } else { place.join(word) };
        let place = in_folder(name);
        match check_executable(&place) {
            Ok(()) => return Ok(place),
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => why = error,
            Err(_) => (),
        }
    }
    Err(why)
}

/// Whether a path leads to something that can be executed.
fn check_executable(path: &Path) -> io::Result<()> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::from_raw_os_error(libc::EACCES));
    }
    Ok(nix::unistd::access(path, nix::unistd::AccessFlags::X_OK)?)
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It left with this code.
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

/// A child that has ended and has not been reaped, so that its number is still its own; `None` if
/// there is none.
pub(crate) fn next_exited_child() -> Option<(Pid, Exit)> {
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    loop {
        // SAFETY: zeros are a valid siginfo_t, which is plain data.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: `info` is a valid place for the answer. P_ALL looks at no number.
        match super::check(unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) }) {
            Ok(_) => (),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return None, // ECHILD: no children at all
        }
        // SAFETY: waitid(2) fills in the fields of SIGCHLD, or leaves zeros if there is nobody.
        let pid = Pid(unsafe { info.si_pid() });
        if pid.0 == 0 {
            return None;
        }
        // SAFETY: as above.
        let status = unsafe { info.si_status() };
        return Some((
            pid,
            match info.si_code {
                libc::CLD_EXITED => Exit::Code(status),
                how => Exit::Signal { number: status, core: how == libc::CLD_DUMPED },
            },
        ));
    }
}

/// Takes note of a child's end, after [`next_exited_child`] has told of it: its number is free from now on.
pub(crate) fn reap(child: Pid) {
    let child = RawPid::from_raw(child.0);
    while waitpid(child, Some(WaitPidFlag::WNOHANG)) == Err(Errno::EINTR) {}
}

/// Waits for the end of a child, and reaps it.
pub(super) fn wait_for(child: Pid) {
    while waitpid(RawPid::from_raw(child.0), None) == Err(Errno::EINTR) {}
}

/// The group of a process; `None` if there is no such process.
pub(crate) fn process_group_of(pid: Pid) -> Option<Pid> {
    nix::unistd::getpgid(Some(RawPid::from_raw(pid.0))).ok().map(|group| Pid(group.as_raw()))
}

/// Makes a process, this one or a child of it, the leader of a group of its own: what it starts is
/// in that group too, unless it takes care not to be.
pub(crate) fn set_process_group(pid: Pid) {
    // It can only fail for a child that has died, or leads a group already.
    let _ = setpgid(RawPid::from_raw(pid.0), RawPid::from_raw(pid.0));
}

/// Kills whoever is in the group that a child leads, or led: the child must not have been reaped, so
/// that the number of its group is still its own.
pub(crate) fn kill_process_group(leader: Pid) {
    debug_assert!(leader.0 > 1, "0 and 1 name other groups");
    let _ = killpg(RawPid::from_raw(leader.0), Number::SIGKILL); // ESRCH: it leads none
}

/// Whether a signal is the one that nobody can refuse.
pub(crate) fn is_sigkill(number: i32) -> bool {
    number == libc::SIGKILL
}

/// Whether a signal is one by which people end processes, rather than a fault of the process.
pub(crate) fn is_termination_signal(number: i32) -> bool {
    [libc::SIGKILL, libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGHUP].contains(&number)
}

/// Asks a process to drain and leave.
pub(crate) fn send_sigterm(pid: Pid) {
    send_signal(pid, Number::SIGTERM);
}

/// Has a worker look again which queues are its own. It means nothing to a process that does not
/// catch it.
pub(crate) fn send_sigurg(pid: Pid) {
    send_signal(pid, Number::SIGURG);
}

/// Asks a process to leave at once.
pub(crate) fn send_sigquit(pid: Pid) {
    send_signal(pid, Number::SIGQUIT);
}

/// Tells a process that its logs have been moved.
pub(crate) fn send_sigusr1(pid: Pid) {
    send_signal(pid, Number::SIGUSR1);
}

/// Aborts a process; it may dump core.
fn send_sigabrt(pid: Pid) {
    send_signal(pid, Number::SIGABRT);
}

/// As [`abort`], by way of one of its threads, whose state is what is of interest; by any if it has
/// no such thread (Linux).
pub(crate) fn send_sigabrt_to_thread(pid: Pid, thread: u64) {
    let number = libc::pid_t::try_from(thread).unwrap_or(0);
    // SAFETY: tgkill(2) takes any numbers, and signals only a thread of that very process.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, pid.0, number, libc::SIGABRT) };
    if sent != 0 {
        send_sigabrt(pid);
    }
}

/// Kills a process.
pub(crate) fn send_sigkill(pid: Pid) {
    send_signal(pid, Number::SIGKILL);
}

/// Signals a child that has not been reaped: the kernel keeps its number until then, so the signal
/// cannot hit a stranger, and an error can only mean that it has just died or changed its user.
pub(super) fn send_signal(pid: Pid, number: Number) {
    debug_assert!(pid.0 > 0, "0 and below name groups");
    let _ = kill(RawPid::from_raw(pid.0), number);
}
