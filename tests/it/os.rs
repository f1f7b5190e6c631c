//! Kernel calls that safe Rust has no API for: a child's set-up, and another process's limits.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl::{set_no_new_privs, set_pdeathsig};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::{Pid, setsid};

use crate::proc::descriptors;

/// The state in which a server starts.
#[derive(Clone, Default)]
pub struct ChildSetup {
    /// Descriptors of the test that stay open in it, under the same numbers.
    pub fds: Vec<RawFd>,
    /// The state of its signals.
    pub signals: Signals,
    /// Whether it inherits this process's core limit. If not, its limit is 0.
    pub cores: bool,
    /// A system call that fails with ENOSYS in it.
    pub missing_call: Option<libc::c_long>,
    /// Whether it cannot set SO_PASSRIGHTS, as before Linux 6.16.
    pub lacks_passrights: bool,
}

/// The state of signals that a parent leaves behind.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Signals {
    /// All at their defaults.
    #[default]
    Default,
    /// All blocked, and SIGCHLD ignored, as a careless supervisor leaves them.
    Careless,
}

/// Makes the child the leader of a new session. The kernel kills it when the thread that starts it
/// exits.
pub fn prepare(command: &mut Command, inheritance: ChildSetup) {
    let first_steps = move || {
        setsid()?;
        set_pdeathsig(Signal::SIGKILL)?;
        if !inheritance.cores {
            setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
        }
        for fd in &inheritance.fds {
            // SAFETY: the test that asked for `fd` keeps it open until the server has started.
            let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        // A shell that starts the tests in the background has INT and QUIT ignored.
        for number in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM] {
            // SAFETY: the default action installs no handler.
            unsafe { signal(number, SigHandler::SigDfl) }?;
        }
        if inheritance.signals == Signals::Careless {
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
            // SAFETY: ignoring a signal installs no handler.
            unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
        }
        if inheritance.lacks_passrights {
            deny_option(SO_PASSRIGHTS)?;
        }
        inheritance.missing_call.map_or(Ok(()), deny)
    };
    // SAFETY: the closure makes plain system calls only; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(first_steps) };
}

/// Whether a unix socket takes descriptors: see asm-generic/socket.h.
const SO_PASSRIGHTS: u32 = 83;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

const fn step(code: u16, k: u32, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf, k }
}

/// Makes a system call fail with ENOSYS in this process and its descendants.
fn deny(call: libc::c_long) -> io::Result<()> {
    set_filter(&mut [
        step(LOAD, 0, 0),
        step(JUMP_IF_EQUAL, call as u32, 1),
        step(RETURN, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32, 0),
        step(RETURN, libc::SECCOMP_RET_ALLOW, 0),
    ])
}

/// Makes setsockopt(2) fail for an option of any socket in this process and its descendants.
fn deny_option(option: u32) -> io::Result<()> {
    // The third argument of seccomp_data: the lower half of a 64-bit number.
    let third = 16 + 2 * 8 + if cfg!(target_endian = "big") { 4 } else { 0 };
    set_filter(&mut [
        step(LOAD, 0, 0),
        step(JUMP_IF_EQUAL, libc::SYS_setsockopt as u32, 3),
        step(LOAD, third, 0),
        step(JUMP_IF_EQUAL, option, 1),
        step(RETURN, libc::SECCOMP_RET_ERRNO | libc::ENOPROTOOPT as u32, 0),
        step(RETURN, libc::SECCOMP_RET_ALLOW, 0),
    ])
}

fn set_filter(steps: &mut [libc::sock_filter]) -> io::Result<()> {
    let filter = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    set_no_new_privs()?;
    // SAFETY: the kernel copies `filter`, which points to its steps.
    let set =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A file system that never answers (FUSE), mounted on a directory until it is dropped.
pub struct SilentMount {
    dir: CString,
    _server: File,
}

impl SilentMount {
    /// # Errors
    /// This user may not mount, or the kernel has no FUSE.
    pub fn on(dir: &Path) -> io::Result<Self> {
        let server = File::options().read(true).write(true).open("/dev/fuse")?;
        let dir = CString::new(dir.as_os_str().as_bytes())?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        let options = CString::new(options)?;
        let kind = c"fuse".as_ptr();
        // SAFETY: all arguments are strings that outlive the call.
        let result = unsafe { libc::mount(kind, dir.as_ptr(), kind, 0, options.as_ptr().cast()) };
        if result == 0 {
            Ok(Self { dir, _server: server })
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

impl Drop for SilentMount {
    fn drop(&mut self) {
        // SAFETY: the argument is a string that outlives the call.
        unsafe { libc::umount2(self.dir.as_ptr(), libc::MNT_DETACH) };
    }
}

/// Takes ownership of a descriptor that the kernel has just returned.
pub fn own(number: RawFd) -> OwnedFd {
    // SAFETY: the caller has it from a system call, and has passed its number to no other owner.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Returns a copy of a listening socket of another process.
///
/// # Errors
/// The kernel denies pidfd_getfd(2) to this user.
pub fn listener_of(pid: Pid) -> io::Result<OwnedFd> {
    let copies = copies_of_descriptors(pid)?.into_iter();
    let mut listeners =
        copies.filter(|copy| getsockopt(copy, sockopt::AcceptConn).unwrap_or(false));
    Ok(listeners.next().unwrap_or_else(|| panic!("{pid} has no listener")))
}

/// Returns copies of all descriptors of another process: each has the same open file description.
///
/// # Errors
/// The kernel denies pidfd_getfd(2) to this user.
pub fn copies_of_descriptors(pid: Pid) -> io::Result<Vec<OwnedFd>> {
    let call = |number, first: i64, second: i64| {
        // SAFETY: both calls take numbers, and make a descriptor.
        let fd = unsafe { libc::syscall(number, first, second, 0) };
        i32::try_from(fd).ok().filter(|fd| *fd >= 0).map(own).ok_or_else(io::Error::last_os_error)
    };
    let process = call(libc::SYS_pidfd_open, pid.as_raw().into(), 0)?;
    let copy = |number: u64| {
        let number = i64::try_from(number).unwrap();
        call(libc::SYS_pidfd_getfd, process.as_raw_fd().into(), number)
    };
    descriptors(pid).into_iter().map(copy).collect()
}

/// Runs a function without any privilege, as a worker of another user does.
pub fn without_privileges<R: Send>(run: impl FnOnce() -> R + Send) -> R {
    const NOBODY: libc::uid_t = 65534;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the bare system call takes numbers. It changes the user of this thread alone, and
            // fails for a user without privileges, who stays what it is.
            unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
            run()
        });
        thread.join().unwrap()
    })
}

/// Sets an option of a socket.
///
/// # Errors
/// From setsockopt(2).
pub fn set_option(fd: &OwnedFd, level: i32, number: i32, value: &[u8]) -> io::Result<()> {
    let (target, length) = (value.as_ptr().cast(), value.len() as libc::socklen_t);
    // SAFETY: `target` is to `length` bytes.
    let set = unsafe { libc::setsockopt(fd.as_raw_fd(), level, number, target, length) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Returns the first words of an option of a socket, and zeros behind them.
pub fn option_words(fd: &OwnedFd, level: i32, number: i32) -> [u32; 16] {
    let mut words = [0; 16];
    let mut length = size_of_val(&words) as libc::socklen_t;
    let target = words.as_mut_ptr().cast();
    // SAFETY: `words` has room for `length` bytes.
    let got = unsafe { libc::getsockopt(fd.as_raw_fd(), level, number, target, &raw mut length) };
    assert_eq!(got, 0, "{level} {number}: {}", io::Error::last_os_error());
    words
}

/// Sets the soft limit of open descriptors of another process.
pub fn limit_descriptors(pid: Pid, soft: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the answer, and no new limit is given.
    let got = unsafe {
        libc::prlimit(pid.as_raw(), libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut limit)
    };
    assert_eq!(got, 0, "cannot read the limits of {pid}: {}", io::Error::last_os_error());
    limit.rlim_cur = soft;
    // SAFETY: `limit` is a valid limit, and the old one is not asked for.
    let set = unsafe {
        libc::prlimit(pid.as_raw(), libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut())
    };
    assert_eq!(set, 0, "cannot limit {pid}: {}", io::Error::last_os_error());
}

/// A page of memory without content: a thread that touches it blocks.
pub struct TouchTrap {
    page: usize,
    faults: OwnedFd,
}

const PAGE_BYTES: usize = 4096;

impl TouchTrap {
    /// Maps such a page.
    ///
    /// # Errors
    ///
    /// The kernel denies userfaultfd(2) to this user, or for faults in system calls.
    pub fn new() -> io::Result<Self> {
        // SAFETY: it takes flags, and makes a descriptor.
        let number = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
        let number = i32::try_from(number).ok().filter(|number| *number >= 0);
        let faults = own(number.ok_or_else(io::Error::last_os_error)?);
        let (access, kind) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: the kernel chooses an address at which nothing is mapped.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), PAGE_BYTES, access, kind, -1, 0) };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let void = Self { page: page as usize, faults };
        void.tell(libc::_IOWR::<[u64; 3]>(0xaa, 0x3f), &mut [0xaa, 0, 0])?;
        let missing_pages = [void.page as u64, PAGE_BYTES as u64, 1, 0];
        void.tell(libc::_IOWR::<[u64; 4]>(0xaa, 0x00), &mut missing_pages.clone())?;
        Ok(void)
    }

    fn tell<const N: usize>(&self, what: libc::Ioctl, words: &mut [u64; N]) -> io::Result<()> {
        // SAFETY: `what` holds the size of `words`, which the kernel reads and writes.
        let done = unsafe { libc::ioctl(self.faults.as_raw_fd(), what, words.as_mut_ptr()) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Returns the page's address.
    pub fn page(&self) -> usize {
        self.page
    }

    /// Waits until a thread touches it.
    pub fn wait_touched(&self) {
        let mut message = [0; 32];
        while nix::unistd::read(&self.faults, &mut message).is_err() {}
    }
}

/// Reads the names in a directory into the page of a [`TouchTrap`], and unmaps that.
pub fn read_names_into(directory: &File, page: usize) {
    let start = page as *mut libc::c_void;
    // SAFETY: the page is mapped, and nothing else uses it.
    unsafe {
        libc::syscall(libc::SYS_getdents64, directory.as_raw_fd(), start, PAGE_BYTES);
    }
    // SAFETY: the page is mapped, and nothing uses it from now on.
    unsafe { libc::munmap(start, PAGE_BYTES) };
}
