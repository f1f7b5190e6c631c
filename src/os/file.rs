//! Files: anonymous files, modification times, owners, pipes, locks, renames.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstat, futimens};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::sys::statvfs::statvfs;
use nix::sys::time::TimeSpec;
use nix::unistd::{AccessFlags, Gid, Uid, faccessat, fchown, fchownat, mkstemp, pipe2, unlink};

use super::clock;
use crate::time::MonotonicTime;

/// The flags of open(2) that refuse a symbolic link and never wait.
pub(crate) const NOFOLLOW: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK;

/// Creates a file without a name in `dir`, and returns its only descriptor, which is close-on-exec. A
/// process that holds the directory's lock delays it only where the file system does not support
/// `O_TMPFILE`.
///
/// # Errors
/// From open(2), mkstemp(3) and unlink(2): no such directory, no permission, no space, too many open
/// files.
pub(crate) fn anonymous_file(dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_TMPFILE | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    match open(dir, flags, Mode::S_IRUSR | Mode::S_IWUSR) {
        Err(Errno::EOPNOTSUPP | Errno::EISDIR) => unlinked_file(dir),
        result => Ok(result?),
    }
}

/// Creates a file in `dir` and unlinks it.
fn unlinked_file(dir: &Path) -> io::Result<OwnedFd> {
    let (fd, path) = mkstemp(&dir.join("ostler-XXXXXX"))?;
    unlink(&path)?;
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(fd)
}

/// Checks that this process may write to a file, or create files in a directory.
///
/// # Errors
/// From faccessat(2): it does not exist, no permission, a read-only file system.
pub(crate) fn check_writable(path: &Path) -> io::Result<()> {
    let mut wanted = AccessFlags::W_OK;
    wanted.set(AccessFlags::X_OK, path.is_dir());
    Ok(faccessat(AT_FDCWD, path, wanted, AtFlags::AT_EACCESS)?)
}

/// Returns whether the files of a directory are in memory (Linux).
///
/// # Errors
/// From statfs(2).
pub(crate) fn is_in_memory(dir: &Path) -> io::Result<bool> {
    const RAMFS_MAGIC: u64 = 0x8584_58f6; // linux/magic.h
    let kind = statfs(dir)?.filesystem_type();
    Ok(kind == TMPFS_MAGIC || kind.0 as u64 & 0xffff_ffff == RAMFS_MAGIC)
}

/// Returns how many bytes are free in the file system of a directory, without root's reserve.
///
/// # Errors
/// From statvfs(3).
pub(crate) fn free_bytes(dir: &Path) -> io::Result<u64> {
    let stats = statvfs(dir)?;
    Ok(stats.blocks_available().saturating_mul(stats.fragment_size()))
}

/// The identity of a file: device and inode.
pub(crate) type FileId = (u64, u64);

/// Returns which file a descriptor leads to. Async-signal-safe.
///
/// # Errors
/// `EBADF`, from fstat(2).
pub(crate) fn id(number: RawFd) -> io::Result<FileId> {
    // SAFETY: fstat(2) takes any number; a closed one is EBADF.
    let status = fstat(unsafe { BorrowedFd::borrow_raw(number) })?;
    Ok((status.st_dev, status.st_ino))
}

/// Whether a descriptor leads to a directory.
pub(crate) fn is_dir(number: RawFd) -> bool {
    // SAFETY: fstat(2) takes any number; a closed one is EBADF.
    let status = fstat(unsafe { BorrowedFd::borrow_raw(number) });
    status.is_ok_and(|status| {
        SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
    })
}

/// Changes the file's user and group, where they are given.
///
/// # Errors
/// `EPERM` without the privilege, from fchown(2).
pub(crate) fn chown(fd: BorrowedFd<'_>, user: Option<u32>, group: Option<u32>) -> io::Result<()> {
    Ok(fchown(fd, user.map(Uid::from_raw), group.map(Gid::from_raw))?)
}

/// Changes the user and the group of the socket at a path, where they are given, and then its mode.
/// Never follows a symbolic link that another process may have put there (Linux; changing the mode
/// requires /proc).
///
/// # Errors
/// `EPERM` without the privilege to change the owner; the path does not lead to a socket.
pub(crate) fn set_access(
    path: &Path,
    mode: u32,
    user: Option<u32>,
    group: Option<u32>,
) -> io::Result<()> {
    let fd = open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
    if SFlag::from_bits_truncate(fstat(&fd)?.st_mode) & SFlag::S_IFMT != SFlag::S_IFSOCK {
        return Err(io::Error::other("path was replaced by another process"));
    }
    if user.is_some() || group.is_some() {
        let (user, group) = (user.map(Uid::from_raw), group.map(Gid::from_raw));
        fchownat(&fd, "", user, group, AtFlags::AT_EMPTY_PATH)?;
    }
    if fstat(&fd)?.st_mode & 0o7777 != mode {
        // fchmod(2) refuses an O_PATH descriptor.
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let mode = Mode::from_bits_truncate(mode);
        let changed = fchmodat(AT_FDCWD, path.as_str(), mode, FchmodatFlags::FollowSymlink);
        changed.map_err(|errno| match errno {
            Errno::ENOENT => io::Error::other("changing the mode requires /proc to be mounted"),
            errno => errno.into(),
        })?;
    }
    Ok(())
}

/// Sets the file's modification time to a monotonic time.
///
/// # Errors
/// `EPERM` if the file belongs to another user, from futimens(3).
pub(crate) fn set_modified(fd: BorrowedFd<'_>, time: MonotonicTime) -> io::Result<()> {
    let time: TimeSpec = clock::to_time_spec(time);
    Ok(futimens(fd, &time, &time)?)
}

/// Returns the file's modification time as a monotonic time.
///
/// # Errors
/// From fstat(2).
pub(crate) fn modified(fd: BorrowedFd<'_>) -> io::Result<MonotonicTime> {
    let status = fstat(fd)?;
    Ok(clock::from_time_spec(TimeSpec::new(status.st_mtime, status.st_mtime_nsec)))
}

/// Opens a pipe, nonblocking and close-on-exec. Returns its read end and its write end.
///
/// # Errors
/// `EMFILE` or `ENFILE`, from pipe2(2).
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?)
}

/// Writes one byte into a pipe.
///
/// # Errors
/// `EAGAIN` if it is full, `EPIPE` if no process has its read end.
pub(crate) fn wake_pipe(pipe: &OwnedFd) -> io::Result<usize> {
    Ok(nix::unistd::write(pipe, &[1])?)
}

/// Reads and discards the bytes in a pipe, at most 64 KiB. Returns whether there were any.
pub(crate) fn drain_pipe(pipe: &OwnedFd) -> bool {
    let mut bytes = [0; 4096];
    let mut any = false;
    for _ in 0..16 {
        let length = nix::unistd::read(pipe, &mut bytes).unwrap_or(0);
        any |= length > 0;
        if length < bytes.len() {
            break;
        }
    }
    any
}

/// Which process holds the write lock of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lock {
    /// This process, from now on. The lock ends when the process exits or closes any descriptor of
    /// the file.
    Taken,
    /// Another process, with its pid if that is visible in this PID namespace.
    HeldBy(Option<i32>),
}

/// Takes the process's write lock (fcntl(2), `F_SETLK`) on a whole file, or returns its holder.
/// Children do not inherit the lock.
///
/// # Errors
/// `ENOLCK`; `EOPNOTSUPP` and others from a file system without locks.
pub(crate) fn lock(fd: &impl AsFd) -> io::Result<Lock> {
    let request = whole_file_lock(libc::F_WRLCK);
    match fcntl(fd, FcntlArg::F_SETLK(&request)) {
        Ok(_) => Ok(Lock::Taken),
        Err(nix::errno::Errno::EACCES | nix::errno::Errno::EAGAIN) => {
            Ok(Lock::HeldBy(holder(fd, libc::F_WRLCK)?.flatten()))
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Returns the holder of a write lock of another process, with its pid if that is visible. A read lock,
/// which needs no permission to write, is none.
///
/// # Errors
/// `EOPNOTSUPP` and others from a file system without locks.
pub(crate) fn write_lock(fd: &impl AsFd) -> io::Result<Option<Option<i32>>> {
    holder(fd, libc::F_RDLCK) // which only a write lock conflicts with
}

/// Returns the holder of a lock with which one of this kind would conflict.
fn holder(fd: &impl AsFd, kind: libc::c_int) -> io::Result<Option<Option<i32>>> {
    let mut found = whole_file_lock(kind);
    fcntl(fd, FcntlArg::F_GETLK(&mut found))?;
    let is_held = found.l_type != libc::F_UNLCK as libc::c_short;
    Ok(is_held.then(|| (found.l_pid > 0).then_some(found.l_pid)))
}

fn whole_file_lock(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// The flag of renameat2(2), from linux/fs.h.
const RENAME_NOREPLACE: libc::c_uint = 1;

/// Renames `from` to `to`, unless `to` exists (Linux).
///
/// # Errors
/// `EEXIST` if `to` exists; otherwise from renameat2(2).
pub(crate) fn rename_noreplace(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (c_path(from)?, c_path(to)?);
    // musl has no function for it.
    // SAFETY: both are C strings, so they end in NUL, and they outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            libc::AT_FDCWD,
            from.as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            RENAME_NOREPLACE,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
