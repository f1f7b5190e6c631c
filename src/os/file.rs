//! Temporary files without a name, their times, pipes, and locks.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use nix::fcntl::{AT_FDCWD, AtFlags, FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstat, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, mkstemp, pipe2, unlink};

use super::clock;
use crate::time::MonotonicTime;

/// The flags for open(2) that keep it from waiting, for a path that may be a pipe.
pub(crate) const NONBLOCK: i32 = libc::O_NONBLOCK;

/// The flags for open(2) that refuse a symbolic link and never wait.
pub(crate) const NOFOLLOW: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK;

/// Makes a file in `folder`, takes its name away, and returns its only descriptor, which is closed
/// across exec(2).
///
/// # Errors
/// Whatever mkstemp(3) and unlink(2) say: no such folder, no permission, no space, too many files.
pub(crate) fn anonymous_file(dir: &Path) -> io::Result<OwnedFd> {
    let (fd, path) = mkstemp(&dir.join("ostler-XXXXXX"))?;
    unlink(&path)?;
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(fd)
}

/// The identity of a file: device and inode.
pub(crate) type FileId = (u64, u64);

/// Which file a descriptor leads to. Async-signal-safe.
///
/// # Errors
/// `EBADF`, from fstat(2).
pub(crate) fn id(number: RawFd) -> io::Result<FileId> {
    // SAFETY: only asks about a number; a closed one is EBADF.
    let status = fstat(unsafe { BorrowedFd::borrow_raw(number) })?;
    Ok((status.st_dev, status.st_ino))
}

/// Gives the file to another user and group.
///
/// # Errors
/// `EPERM` without the privilege, from fchown(2).
pub(crate) fn chown(fd: BorrowedFd<'_>, user: Option<u32>, group: Option<u32>) -> io::Result<()> {
    Ok(fchown(fd, user.map(Uid::from_raw), group.map(Gid::from_raw))?)
}

/// Gives the socket at a path to a user and a group, where they are named, and then sets its mode.
/// Never follows a symbolic link that somebody may have put in its place (Linux, with /proc).
///
/// # Errors
/// `EPERM` without the privilege to give it away; the path leads to something else.
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
        // fchmod(2) takes no descriptor that is a mere name.
        let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let mode = Mode::from_bits_truncate(mode);
        fchmodat(AT_FDCWD, name.as_str(), mode, FchmodatFlags::FollowSymlink)?;
    }
    Ok(())
}

/// Sets the file's modification time to a monotonic stamp.
///
/// # Errors
/// `EPERM` if the file belongs to another user, from futimens(3).
pub(crate) fn set_modified(fd: BorrowedFd<'_>, time: MonotonicTime) -> io::Result<()> {
    let time: TimeSpec = clock::to_time_spec(time);
    Ok(futimens(fd, &time, &time)?)
}

/// The file's modification time, read as a monotonic stamp.
///
/// # Errors
/// From fstat(2).
pub(crate) fn modified(fd: BorrowedFd<'_>) -> io::Result<MonotonicTime> {
    let status = fstat(fd)?;
    Ok(clock::from_time_spec(TimeSpec::new(status.st_mtime, status.st_mtime_nsec)))
}

/// A pipe whose ends never block and are closed across exec(2): (read end, write end).
///
/// # Errors
/// `EMFILE` or `ENFILE`, from pipe2(2).
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?)
}

/// Puts one byte into a pipe.
///
/// # Errors
/// `EAGAIN` if it is full, `EPIPE` if nobody reads it.
pub(crate) fn wake_pipe(pipe: &OwnedFd) -> io::Result<usize> {
    Ok(nix::unistd::write(pipe, &[1])?)
}

/// Takes out whatever is in a pipe.
pub(crate) fn drain_pipe(pipe: &OwnedFd) {
    let mut bytes = [0; 512];
    while nix::unistd::read(pipe, &mut bytes).is_ok_and(|n| n == bytes.len()) {}
}

/// Who holds the write lock of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lock {
    /// This process, as of now. Lost when the process ends or closes any descriptor of the file.
    Taken,
    /// Another process; its pid, if it can be seen from here.
    HeldBy(Option<i32>),
}

/// Takes the process's write lock (fcntl(2), `F_SETLK`) on a whole file, or tells who has it. The
/// lock does not pass to children.
///
/// # Errors
/// `ENOLCK`, or a file system that knows no locks.
pub(crate) fn lock(fd: &impl AsFd) -> io::Result<Lock> {
    let request = whole_file_write_lock();
    match fcntl(fd, FcntlArg::F_SETLK(&request)) {
        Ok(_) => Ok(Lock::Taken),
        Err(nix::errno::Errno::EACCES | nix::errno::Errno::EAGAIN) => {
            let mut holder = whole_file_write_lock();
            fcntl(fd, FcntlArg::F_GETLK(&mut holder))?;
            let is_visible = holder.l_type != libc::F_UNLCK as libc::c_short && holder.l_pid > 0;
            Ok(Lock::HeldBy(is_visible.then_some(holder.l_pid)))
        }
        Err(errno) => Err(errno.into()),
    }
}

fn whole_file_write_lock() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Renames `from` to `to`, unless `to` exists (Linux).
///
/// # Errors
/// `EEXIST` if `to` exists; whatever else renameat2(2) says.
pub(crate) fn rename_noreplace(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (c_path(from)?, c_path(to)?);
    // SAFETY: both are C strings, so they end in NUL, and they outlive the call.
    super::check(unsafe {
        libc::renameat2(
            libc::AT_FDCWD,
            from.as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            libc::RENAME_NOREPLACE,
        )
    })?;
    Ok(())
}

fn c_path(path: &Path) -> io::Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
