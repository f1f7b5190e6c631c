//! All descriptors of this process, as /proc lists them (Linux), whichever code owns them: which
//! are listeners, and which are their clients. Every function here is async-signal-safe.

use std::cell::RefCell;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::{file, socket};

const FD_DIR: &CStr = c"/proc/self/fd";
/// The offsets of an entry's length and of its name: see getdents64(2).
const LENGTH_AT: usize = 16;
const NAME_AT: usize = 19;

/// Calls `visit` for each descriptor of this process, until it returns [`Visit::Stop`]. Returns
/// false if they cannot be listed. Async-signal-safe if `visit` is.
pub(crate) fn for_each_fd(mut visit: impl FnMut(RawFd) -> Visit) -> bool {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let Ok(dir) = open(FD_DIR, flags, Mode::empty()) else { return false };
    let mut buffer = [0_u8; 2048];
    loop {
        let (number, length) = (dir.as_raw_fd(), buffer.len());
        // SAFETY: `buffer` has room for `length` bytes.
        let read =
            unsafe { libc::syscall(libc::SYS_getdents64, number, buffer.as_mut_ptr(), length) };
        let Ok(read) = usize::try_from(read) else { return false };
        if read == 0 {
            return true;
        }
        let mut entries = buffer.get(..read).unwrap_or_default();
        while let Some((entry, rest)) = first_entry(entries) {
            entries = rest;
            if fd_in_entry(entry).filter(|fd| *fd != number).map(&mut visit) == Some(Visit::Stop) {
                return true;
            }
        }
    }
}

/// Whether to visit the next descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Visit {
    Continue,
    Stop,
}

fn first_entry(entries: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = entries.get(LENGTH_AT..LENGTH_AT + 2)?;
    let length = usize::from(u16::from_ne_bytes(length.try_into().ok()?));
    entries.split_at_checked(length).filter(|(entry, _)| entry.len() > NAME_AT)
}

/// Parses the number in an entry's name; `None` for `.` and `..`.
fn fd_in_entry(entry: &[u8]) -> Option<RawFd> {
    let name = entry.get(NAME_AT..)?.split(|byte| *byte == 0).next()?;
    let digits = |byte: &u8| byte.is_ascii_digit().then(|| i32::from(byte - b'0'));
    if name.is_empty() {
        return None;
    }
    name.iter().try_fold(0_i32, |number, byte| number.checked_mul(10)?.checked_add(digits(byte)?))
}

/// The descriptors that this process had opened at one time, each with the file that it led to.
#[derive(Debug)]
pub(crate) struct OpenFds(RefCell<Vec<(RawFd, file::FileId)>>);

impl OpenFds {
    /// Lists the descriptors that this process has opened: those with `FD_CLOEXEC`. Without it, exec(2)
    /// has handed them on from the process that started this one.
    pub(crate) fn snapshot() -> Self {
        let own = open_fds().into_iter().filter(|fd| is_close_on_exec(*fd));
        let entries = own.filter_map(|fd| Some((fd, file::id(fd).ok()?)));
        Self(RefCell::new(entries.collect()))
    }

    /// Leaves out descriptors that have another owner.
    pub(crate) fn exclude(&self, fds: impl IntoIterator<Item = RawFd>) {
        fds.into_iter().for_each(|fd| self.0.borrow_mut().retain(|(open, _)| *open != fd));
    }

    /// Returns the descriptors that still lead to the same file: a number may have been reused.
    pub(crate) fn unchanged(&self) -> Vec<RawFd> {
        let entries = self.0.borrow();
        let unchanged = entries.iter().filter(|(fd, id)| file::id(*fd).is_ok_and(|now| now == *id));
        unchanged.map(|(fd, _)| *fd).collect()
    }
}

fn is_close_on_exec(number: RawFd) -> bool {
    // SAFETY: fcntl(2) takes any number; a closed one is EBADF.
    let flags = super::check(unsafe { libc::fcntl(number, libc::F_GETFD) });
    flags.is_ok_and(|flags| flags & libc::FD_CLOEXEC != 0)
}

/// Has exec(2) close all descriptors from `first` on.
pub(super) fn close_on_exec_from(first: RawFd) {
    let (from, flags) = (libc::c_uint::try_from(first).unwrap_or(0), libc::CLOSE_RANGE_CLOEXEC);
    // SAFETY: it changes flags only, and descriptors from `first` on need not be open.
    let set = unsafe { libc::syscall(libc::SYS_close_range, from, libc::c_uint::MAX, flags) };
    if set != 0 {
        // Linux before 5.11, or a seccomp filter that does not know the call.
        for fd in open_fds().into_iter().filter(|fd| *fd >= first) {
            // SAFETY: as above.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
}

fn open_fds() -> Vec<RawFd> {
    let mut fds = Vec::new();
    let listed = for_each_fd(|fd| {
        fds.push(fd);
        Visit::Continue
    });
    if !listed {
        fds = (0..fd_limit()).filter(|fd| file::id(*fd).is_ok()).collect();
    }
    fds
}

/// Returns the number that no descriptor reaches, as far as can be tried without /proc.
fn fd_limit() -> RawFd {
    const FD_LIMIT_MAX: u64 = 1 << 20;
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
    limit.map_or(FD_LIMIT_MAX, |(soft, _)| soft.min(FD_LIMIT_MAX)) as RawFd
}

/// Closes every descriptor of this process, a child that has just been forked, but those in `keep`.
pub(crate) fn close_all_except(keep: &[RawFd]) {
    if close_ranges_between(keep, close_range).is_err() {
        // Linux before 5.9, or a seccomp filter that does not know the call.
        for fd in open_fds().into_iter().filter(|fd| !keep.contains(fd)) {
            // SAFETY: the child never uses, nor drops, what owns the descriptor in its copy of the
            // parent's memory: it exits by `exit_immediately`.
            unsafe { libc::close(fd) };
        }
    }
}

/// Calls `close` with the first and the last number of each gap between the descriptors in `keep`.
fn close_ranges_between(
    keep: &[RawFd],
    mut close: impl FnMut(u32, u32) -> io::Result<()>,
) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    keep.sort_unstable();
    let mut first = 0;
    for fd in keep {
        if first < fd {
            close(first, fd - 1)?;
        }
        first = first.max(fd + 1);
    }
    close(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: as in `close_all_except`.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if closed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The part of a socket's local address that a listener shares with its clients' sockets: a TCP
/// port, or a unix socket's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LocalAddress {
    family: libc::sa_family_t,
    name: [u8; 108],
}

/// Returns where a socket is bound. Async-signal-safe.
pub(crate) fn local_address(number: RawFd) -> Option<LocalAddress> {
    let mut storage = socket::zeroed_storage();
    let mut length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    let target = (&raw mut storage).cast();
    // SAFETY: `storage` has room for any address, `length` says so, and both outlive the call.
    super::check(unsafe { libc::getsockname(number, target, &raw mut length) }).ok()?;
    let mut address = LocalAddress { family: storage.ss_family, name: [0; 108] };
    // A port and a unix name begin right after the family. The rest of a TCP address is ignored.
    let name_bytes = match i32::from(storage.ss_family) {
        libc::AF_INET | libc::AF_INET6 => size_of::<u16>(),
        libc::AF_UNIX => (length as usize).saturating_sub(size_of::<libc::sa_family_t>()),
        _ => return None,
    };
    let source = (&raw const storage).cast::<u8>().wrapping_add(size_of::<libc::sa_family_t>());
    for (offset, byte) in address.name.iter_mut().enumerate().take(name_bytes) {
        // SAFETY: a sockaddr_storage has 128 bytes, all of them initialised, and 110 are read.
        *byte = unsafe { source.wrapping_add(offset).read() };
    }
    Some(address)
}

/// Whether a socket has a peer. Async-signal-safe.
pub(crate) fn is_connected(number: RawFd) -> bool {
    let mut storage = socket::zeroed_storage();
    let mut length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    let target = (&raw mut storage).cast();
    // SAFETY: as in `local_address`.
    super::check(unsafe { libc::getpeername(number, target, &raw mut length) }).is_ok()
}

/// Whether a socket listens. Async-signal-safe.
pub(crate) fn is_listening(number: RawFd) -> bool {
    let mut value: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` has room for `length` bytes, and both outlive the call; a number that is no
    // socket is an error.
    let asked = super::check(unsafe {
        libc::getsockopt(
            number,
            libc::SOL_SOCKET,
            libc::SO_ACCEPTCONN,
            (&raw mut value).cast(),
            &raw mut length,
        )
    });
    asked.is_ok() && value != 0
}

/// Replaces a socket by one that is never readable, and on which accept(2) fails with `EINVAL`.
/// Code that uses the number gets no more clients. Async-signal-safe.
///
/// # Errors
/// `EMFILE` or `ENFILE`, from socketpair(2).
pub(crate) fn replace_with_dead_socket(number: RawFd) -> io::Result<()> {
    let mut ends: [RawFd; 2] = [-1; 2];
    let flags = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: `ends` has room for two descriptors.
    super::check(unsafe { libc::socketpair(libc::AF_UNIX, flags, 0, ends.as_mut_ptr()) })?;
    // The other end stays open for good: closing it would make this one readable.
    // SAFETY: both are open. The owner of the number keeps owning it, with another file.
    let replaced = super::check(unsafe { libc::dup3(ends[0], number, libc::O_CLOEXEC) });
    // SAFETY: created above, and no other code has its number.
    unsafe { libc::close(ends[0]) };
    replaced.map(|_| ())
}

/// Gives this process an open file description of its own under a number whose description it shares
/// with another: then F_SETFL (fcntl(2)) changes the flags of this process's alone. A terminal becomes
/// write-only. A socket cannot be opened again (Linux, with /proc).
///
/// # Errors
/// From open(2): the description stays shared.
pub(crate) fn reopen(number: RawFd) -> io::Result<()> {
    // SAFETY: fcntl(2) with F_GETFL takes no argument; a bad descriptor is an error.
    let flags = super::check(unsafe { libc::fcntl(number, libc::F_GETFL) })?;
    // SAFETY: isatty(3) takes any number.
    let is_terminal = unsafe { libc::isatty(number) } == 1;
    let access = if is_terminal { libc::O_WRONLY } else { flags & libc::O_ACCMODE };
    let kept = flags & (libc::O_APPEND | libc::O_NONBLOCK);
    let flags = OFlag::from_bits_truncate(access | kept | libc::O_NOCTTY | libc::O_CLOEXEC);
    replace(number, open(format!("/proc/self/fd/{number}").as_str(), flags, Mode::empty())?)
}

/// Puts /dev/null under a number.
///
/// # Errors
/// From open(2).
pub(crate) fn replace_with_null(number: RawFd) -> io::Result<()> {
    replace(number, open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Puts a file under a number.
///
/// # Errors
/// From dup3(2).
pub(super) fn replace(number: RawFd, file: OwnedFd) -> io::Result<()> {
    let flags = if number <= libc::STDERR_FILENO { 0 } else { libc::O_CLOEXEC };
    // SAFETY: `file` is open. The owner of the number keeps owning it, with another file.
    super::check(unsafe { libc::dup3(file.as_raw_fd(), number, flags) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::poll::{self, Interest};
    use crate::time::MonotonicTime;
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use std::fs::File;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn for_each_fd_visits_once_until_stopped() {
        let files: Vec<File> = (0..300).map(|_| File::open("/dev/null").unwrap()).collect();
        let mut seen = Vec::new();
        assert!(for_each_fd(|fd| {
            seen.push(fd);
            Visit::Continue
        }));
        for file in &files {
            assert_eq!(seen.iter().filter(|fd| **fd == file.as_raw_fd()).count(), 1);
        }
        let mut visits = 0;
        assert!(for_each_fd(|_| {
            visits += 1;
            if visits == 5 { Visit::Stop } else { Visit::Continue }
        }));
        assert_eq!(visits, 5);
    }

    #[test]
    fn close_ranges_between_kept_closes_the_gaps() {
        let gaps = |keep: &[RawFd]| {
            let mut gaps = Vec::new();
            close_ranges_between(keep, |first, last| {
                gaps.push((first, last));
                Ok(())
            })
            .unwrap();
            gaps
        };
        assert_eq!(gaps(&[]), [(0, u32::MAX)]);
        assert_eq!(gaps(&[2, 0, 1, 7, 7, 5]), [(3, 4), (6, 6), (8, u32::MAX)]);
        assert_eq!(gaps(&[3, -1]), [(0, 2), (4, u32::MAX)]);
    }

    #[test]
    fn snapshot_leaves_out_inherited_descriptors() {
        let (own, inherited) = UnixStream::pair().unwrap();
        let [own, stray] = [own.as_raw_fd(), inherited.as_raw_fd()];
        fcntl(&inherited, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        let unchanged = OpenFds::snapshot().unchanged();
        assert!(unchanged.contains(&own) && !unchanged.contains(&stray));
    }

    #[test]
    fn snapshot_reused_number_is_left_out() {
        let (file, _peer) = UnixStream::pair().unwrap();
        let fd = file.as_raw_fd();
        let snapshot = OpenFds::snapshot();
        snapshot.exclude([1]);
        assert!(snapshot.unchanged().contains(&fd));
        assert!(!snapshot.unchanged().contains(&1));
        drop(file);
        assert!(!snapshot.unchanged().contains(&fd));
    }

    #[test]
    fn client_has_local_address_of_its_listener() {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = ("127.0.0.1", listener.local_addr().unwrap().port());
        let caller = TcpStream::connect(address).unwrap();
        let (client, _) = listener.accept().unwrap();
        let shared = local_address(listener.as_raw_fd());
        assert!(shared.is_some() && shared == local_address(client.as_raw_fd()));
        assert_ne!(shared, local_address(caller.as_raw_fd()));
        assert_ne!(shared, local_address(other.as_raw_fd()));
        assert!(is_connected(client.as_raw_fd()) && !is_connected(listener.as_raw_fd()));
        assert!(is_listening(listener.as_raw_fd()) && !is_listening(client.as_raw_fd()));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let caller = UnixStream::connect(&path).unwrap();
        let (client, _) = listener.accept().unwrap();
        assert_eq!(local_address(listener.as_raw_fd()), local_address(client.as_raw_fd()));
        assert_ne!(local_address(listener.as_raw_fd()), local_address(caller.as_raw_fd()));
        assert!(is_connected(client.as_raw_fd()) && is_listening(listener.as_raw_fd()));
        assert_eq!(local_address(File::open("/dev/null").unwrap().as_raw_fd()), None);
    }

    #[test]
    fn replaced_listener_accepts_nothing_and_stays_idle() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _caller = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        replace_with_dead_socket(listener.as_raw_fd()).unwrap();
        assert!(!is_listening(listener.as_raw_fd()));
        let error = listener.accept().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let ready =
            poll::wait([(listener.as_fd(), Interest::Readable)], Some(MonotonicTime::default()));
        assert_eq!(ready.unwrap(), [false]);
    }
}
