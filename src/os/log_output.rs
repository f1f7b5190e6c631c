//! Opens a log file as root for workers of another user, who may control directories of its path.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use super::file;

/// The flags that open a log file: without them open(2) waits for the reader of a named pipe, and a
/// terminal may become the controlling one.
pub(crate) const FLAGS: i32 = libc::O_NONBLOCK | libc::O_NOCTTY;

/// The mode of a new log file.
pub(crate) const MODE: u32 = 0o640;

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
        match openat(dir, name, flags, Mode::empty()) {
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
