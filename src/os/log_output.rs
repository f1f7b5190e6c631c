//! The output of a log: writes that never wait, and files that root opens for workers of another
//! user, who may control directories of their paths.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use super::{file, poll, socket};

/// The flags that open a log file: without them open(2) waits for the reader of a named pipe, and a
/// terminal may become the controlling one.
const FLAGS: i32 = libc::O_NONBLOCK | libc::O_NOCTTY;

/// Opens a file for appending, and creates it if it is missing. A named pipe without a reader is opened
/// for reading too: it keeps records until a reader opens it.
///
/// # Errors
/// From open(2).
pub(crate) fn open_own(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(MODE).custom_flags(FLAGS);
    match options.open(path) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => options.read(true).open(path),
        result => result,
    }
}

/// The mode of a new log file.
const MODE: u32 = 0o640;

/// A standard stream or a file, to which records are written without waiting.
#[derive(Debug)]
pub(crate) struct LogOutput {
    fd: OutputFd,
    mode: WriteMode,
    /// The last record was written in part, so that its line has not ended.
    is_torn: bool,
}

/// The descriptor of an output.
#[derive(Debug)]
enum OutputFd {
    Own(OwnedFd),
    Stdout,
    Stderr,
}

/// How a write is kept from waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WriteMode {
    /// By itself: a regular file, or an open file description with `O_NONBLOCK`.
    Plain,
    /// As above, for a terminal: SIGTTOU must be blocked (termios(3), `TOSTOP`).
    Terminal,
    /// By `MSG_DONTWAIT`.
    Socket,
    /// By `RWF_NOWAIT`: a pipe or a terminal that cannot be opened again.
    Shared,
}

impl LogOutput {
    /// Returns standard error. A pipe or a terminal is opened again (Linux, with /proc), since
    /// `O_NONBLOCK` on the inherited descriptor would apply to the processes that share it.
    pub(crate) fn stderr() -> Self {
        Self::standard(OutputFd::Stderr)
    }

    /// Returns standard output, as [`stderr`](Self::stderr) does standard error.
    pub(crate) fn stdout() -> Self {
        Self::standard(OutputFd::Stdout)
    }

    fn standard(stream: OutputFd) -> Self {
        let fd = stream.as_fd();
        let status = fstat(fd);
        let mode = match status.as_ref().map(file_type) {
            Ok(SFlag::S_IFSOCK) => WriteMode::Socket,
            Ok(SFlag::S_IFIFO | SFlag::S_IFCHR) => WriteMode::Shared,
            Ok(_) | Err(_) => WriteMode::Plain,
        };
        if mode == WriteMode::Shared
            && let Ok(status) = status
            && let Ok(fd) = open(
                format!("/proc/self/fd/{}", fd.as_raw_fd()).as_str(),
                APPEND_FLAGS,
                Mode::empty(),
            )
            && fstat(&fd)
                .is_ok_and(|new| (new.st_dev, new.st_ino) == (status.st_dev, status.st_ino))
        {
            return Self::file(File::from(fd));
        }
        Self { fd: stream, mode, is_torn: false }
    }

    /// Takes a file that was opened with [`FLAGS`].
    pub(crate) fn file(file: File) -> Self {
        let mode = if file.is_terminal() { WriteMode::Terminal } else { WriteMode::Plain };
        Self { fd: OutputFd::Own(file.into()), mode, is_torn: false }
    }

    /// Returns the descriptor's number, unless it is that of a standard stream.
    pub(crate) fn raw_fd(&self) -> Option<RawFd> {
        match &self.fd {
            OutputFd::Own(fd) => Some(fd.as_raw_fd()),
            OutputFd::Stdout | OutputFd::Stderr => None,
        }
    }

    /// Writes a record without waiting. Returns how many of its bytes were written. If the record
    /// before was written in part, ends its line first.
    ///
    /// # Errors
    /// `WouldBlock` if it must wait; otherwise from write(2).
    pub(crate) fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        let fd = self.fd.as_fd();
        let written = if self.is_torn {
            let whole = [b"\n", record].concat();
            write_with(self.mode, fd, &whole).map(|length| length.saturating_sub(1))?
        } else {
            write_with(self.mode, fd, record)?
        };
        self.is_torn = written < record.len();
        Ok(written)
    }
}

impl AsFd for OutputFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(fd) => fd.as_fd(),
            // SAFETY: the standard streams stay open as long as the process runs.
            Self::Stdout => unsafe { BorrowedFd::borrow_raw(libc::STDOUT_FILENO) },
            // SAFETY: as above.
            Self::Stderr => unsafe { BorrowedFd::borrow_raw(libc::STDERR_FILENO) },
        }
    }
}

fn write_with(mode: WriteMode, fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    match mode {
        WriteMode::Plain => Ok(nix::unistd::write(fd, bytes)?),
        WriteMode::Socket => socket::send(fd, bytes),
        WriteMode::Terminal => write_to_terminal(fd, bytes),
        WriteMode::Shared => match write_nowait(fd, bytes) {
            // An old kernel. A terminal may still wait, if it has room for a part of the record.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                if !poll::is_writable(fd) {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                write_to_terminal(fd, bytes)
            }
            result => result,
        },
    }
}

/// Writes with SIGTTOU blocked. Otherwise, with `TOSTOP`, a write from a background process group
/// raises that signal and starts again, without end if the process catches the signal.
fn write_to_terminal(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let earlier = SigSet::from(Signal::SIGTTOU).thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let written = nix::unistd::write(fd, bytes);
    let _ = earlier.thread_set_mask(); // It fails only for an invalid argument.
    Ok(written?)
}

/// Writes with `RWF_NOWAIT` (Linux).
///
/// # Errors
/// `WouldBlock`; `Unsupported` if the kernel cannot do that for this file.
fn write_nowait(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: the kernel reads `bytes` through one iovec; both outlive the call.
    let written = unsafe { libc::pwritev2(fd.as_raw_fd(), &part, 1, -1, libc::RWF_NOWAIT) };
    usize::try_from(written).map_err(|_| match Errno::last() {
        Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL => io::ErrorKind::Unsupported.into(),
        errno => errno.into(),
    })
}

/// How many symbolic links of a path are followed, as in path_resolution(7).
const LINKS_MAX: usize = 40;
/// How often the file is opened if another process creates and removes it meanwhile.
const ATTEMPTS_MAX: usize = 8;

/// How a file was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Created,
    /// It was there, in a directory in which other users can move files, or cannot.
    Present {
        is_dir_private: bool,
    },
    /// A symbolic link leads to it.
    Linked,
}

/// Opens a file for appending, as root, and gives it to a user and a group. Creates it if it is
/// missing.
///
/// The workers' user may have put something else in its place. Therefore a symbolic link in the
/// path is followed only if root owns it. Only a regular file with one link changes its owner, if
/// this call has created it, or if the user or root owned it before. A file that a symbolic link
/// leads to keeps its owner.
///
/// # Errors
/// A symbolic link of another user; a file with several links; a file of root with contents, in a
/// directory in which another user could have moved it there. Otherwise from open(2).
pub(crate) fn open_for(path: &Path, user: Option<u32>, group: Option<u32>) -> io::Result<File> {
    let (fd, origin) = resolve(path)?;
    let status = fstat(&fd)?;
    if file_type(&status) != SFlag::S_IFREG {
        return Ok(File::from(fd));
    }
    if status.st_nlink > 1 {
        return Err(io::Error::other("file has more than one hard link"));
    }
    let is_given = match origin {
        Origin::Created => true,
        Origin::Linked => false,
        Origin::Present { .. } if user == Some(status.st_uid) => true,
        Origin::Present { is_dir_private } if status.st_uid == 0 => {
            if !is_dir_private && status.st_size > 0 {
                return Err(io::Error::other(
                    "file belongs to root, and other users can write to its directory",
                ));
            }
            true
        }
        Origin::Present { .. } => false,
    };
    if is_given {
        file::chown(fd.as_fd(), user, group)?;
    }
    Ok(File::from(fd))
}

/// Opens the file at a path, component by component.
fn resolve(path: &Path) -> io::Result<(OwnedFd, Origin)> {
    let mut dir = open("/", DIR_FLAGS, Mode::empty())?;
    let mut rest: VecDeque<OsString> = names(path).collect();
    let (mut links, mut is_linked) = (0, false);
    while let Some(name) = rest.pop_front() {
        let is_last = rest.is_empty();
        if is_last && let Some((fd, origin)) = open_last(&dir, &name)? {
            return Ok((fd, if is_linked { Origin::Linked } else { origin }));
        }
        let next = openat(&dir, name.as_os_str(), PATH_FLAGS, Mode::empty())?;
        let status = fstat(&next)?;
        if file_type(&status) != SFlag::S_IFLNK {
            dir = next;
            continue;
        }
        links += 1;
        if links > LINKS_MAX {
            return Err(Errno::ELOOP.into());
        }
        if status.st_uid != 0 {
            let name = Path::new(&name).display();
            return Err(io::Error::other(format!("symbolic link {name} does not belong to root")));
        }
        is_linked |= is_last;
        if fstatfs(&next)?.filesystem_type() == PROC_SUPER_MAGIC {
            // Its text may name no path: /proc/self/fd/2 leads to "pipe:[1]". No user can change it.
            if is_last {
                let fd = openat(&dir, name.as_os_str(), APPEND_FLAGS, Mode::empty())?;
                return Ok((fd, Origin::Linked));
            }
            dir = openat(&dir, name.as_os_str(), DIR_FLAGS, Mode::empty())?;
            continue;
        }
        let target = readlinkat(&next, "")?;
        let target = Path::new(&target);
        if target.is_absolute() {
            dir = open("/", DIR_FLAGS, Mode::empty())?;
        }
        names(target).rev().for_each(|name| rest.push_front(name));
    }
    Err(Errno::EISDIR.into())
}

const DIR_FLAGS: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);
const PATH_FLAGS: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
const APPEND_FLAGS: OFlag = OFlag::from_bits_truncate(FLAGS)
    .union(OFlag::O_WRONLY)
    .union(OFlag::O_APPEND)
    .union(OFlag::O_CLOEXEC);

/// Returns the names in a path, without its root.
fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    let is_name =
        |part: &Component<'_>| matches!(part, Component::Normal(_) | Component::ParentDir);
    path.components().filter(is_name).map(|part| part.as_os_str().to_owned())
}

/// Opens or creates a file. Returns `None` if its name is a symbolic link.
fn open_last(dir: &OwnedFd, name: &OsStr) -> io::Result<Option<(OwnedFd, Origin)>> {
    let flags = APPEND_FLAGS | OFlag::O_NOFOLLOW;
    for _ in 0..ATTEMPTS_MAX {
        let mut opened = openat(dir, name, flags, Mode::empty());
        if matches!(opened, Err(Errno::ENXIO)) {
            // A named pipe without a reader, as in `open_own`.
            opened = openat(dir, name, flags & !OFlag::O_WRONLY | OFlag::O_RDWR, Mode::empty());
        }
        match opened {
            Ok(fd) => {
                let is_dir_private = is_private(&fstat(dir)?);
                return Ok(Some((fd, Origin::Present { is_dir_private })));
            }
            Err(Errno::ELOOP) => return Ok(None),
            Err(Errno::ENOENT) => (),
            Err(errno) => return Err(errno.into()),
        }
        let create = flags | OFlag::O_CREAT | OFlag::O_EXCL;
        match openat(dir, name, create, Mode::from_bits_truncate(MODE)) {
            Ok(fd) => return Ok(Some((fd, Origin::Created))),
            Err(Errno::EEXIST) => (),
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(Errno::EEXIST.into())
}

/// Whether only root can move a file into the directory. In a sticky directory other users can.
fn is_private(dir: &FileStat) -> bool {
    dir.st_uid == 0 && dir.st_mode & 0o022 == 0
}

fn file_type(status: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn write_nowait_to_full_pipe_fails() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut total = 0;
        let error = loop {
            match write_nowait(writer.as_fd(), &[b'x'; 4096]) {
                Ok(written) => total += written,
                Err(error) => break error.kind(),
            }
        };
        if error == io::ErrorKind::Unsupported {
            return; // a kernel without RWF_NOWAIT for pipes
        }
        assert_eq!(error, io::ErrorKind::WouldBlock);
        drop(writer);
        assert_eq!(reader.read_to_end(&mut Vec::new()).unwrap(), total);
    }

    #[test]
    fn write_after_torn_record_ends_its_line() {
        let terminal = nix::pty::openpty(None, None).unwrap();
        let path = format!("/proc/self/fd/{}", terminal.slave.as_raw_fd());
        let fd = open(path.as_str(), APPEND_FLAGS, Mode::empty()).unwrap();
        let mut output = LogOutput::file(File::from(fd));
        assert_eq!(output.mode, WriteMode::Terminal);
        let record = [&[b'x'; 1000][..], b"\n"].concat();
        while output.write(&record).is_ok() {}
        let mut master = File::from(terminal.master);
        let mut bytes = vec![0; 1 << 16];
        let mut text = Vec::new();
        let mut read_more = || {
            let length = master.read(&mut bytes).unwrap();
            text.extend_from_slice(&bytes[..length]);
            text.ends_with(b"next\r\n")
        };
        // The kernel makes room in the terminal some time after the read.
        let was_torn = output.is_torn;
        while let Err(error) = output.write(b"next\n") {
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            read_more();
        }
        while !read_more() {}
        assert!(text.ends_with(b"\nnext\r\n"), "torn: {was_torn}");
    }
}
