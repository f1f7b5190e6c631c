//! Sockets: listening, accepting, sending, receiving. No function here blocks.

use std::io;
use std::mem;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, SockaddrLike,
    SockaddrStorage, UnixAddr, bind, connect, getsockname, getsockopt, recv, send as nix_send,
    sendmsg, setsockopt, shutdown, socket, socketpair, sockopt,
};
use nix::sys::stat::{Mode, umask};

use super::listening;

/// An address that can be bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SocketAddress {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A unix socket's path, and its mode when it is bound.
    Path(std::path::PathBuf, u32),
    /// A name in Linux's abstract namespace.
    Abstract(Vec<u8>),
}

/// Opens a listening socket, nonblocking and close-on-exec.
///
/// # Errors
/// Those of [`bind_to`], and from listen(2).
pub(crate) fn listen_on(name: &SocketAddress, backlog: u32) -> io::Result<OwnedFd> {
    let fd = bind_to(name)?;
    listening::set_backlog(fd.as_fd(), backlog)?;
    Ok(fd)
}

/// Opens a bound socket, nonblocking and close-on-exec. No client can connect until it listens.
///
/// # Errors
/// `EADDRINUSE`, `EACCES`, `EADDRNOTAVAIL` and others, from socket(2) and bind(2).
pub(crate) fn bind_to(name: &SocketAddress) -> io::Result<OwnedFd> {
    let fd = match name {
        SocketAddress::Tcp(address) => {
            let fd = inet_socket(*address)?;
            bind(fd.as_raw_fd(), &SockaddrStorage::from(*address))?;
            fd
        }
        SocketAddress::Path(..) | SocketAddress::Abstract(_) => {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
            let mode = if let SocketAddress::Path(_, mode) = name { *mode } else { 0o600 };
            let earlier = umask(Mode::from_bits_truncate(0o777 & !mode));
            let bound = bind(fd.as_raw_fd(), &unix_address(name)?);
            umask(earlier);
            bound?;
            fd
        }
    };
    Ok(fd)
}

/// Binds another socket to the address of a TCP socket with SO_REUSEPORT: the kernel spreads
/// clients over all sockets of the same user that listen there. No client can connect to it until
/// it listens.
///
/// # Errors
/// `EINVAL` if it is no TCP socket; otherwise those of [`bind_to`].
pub(crate) fn bind_reuseport(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let address = tcp_address(fd)?.ok_or(io::ErrorKind::InvalidInput)?;
    // Only now: the first socket is bound without it, so that no other server shares the address.
    setsockopt(&fd, sockopt::ReusePort, &true)?;
    let sibling = inet_socket(address)?;
    setsockopt(&sibling, sockopt::ReusePort, &true)?;
    bind(sibling.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(sibling)
}

/// Opens a socket like a TCP listener when that was bound; `None` if the listener is another one.
///
/// # Errors
/// From socket(2).
pub(super) fn new_like(listener: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    let Some(address) = tcp_address(listener)? else { return Ok(None) };
    let new = inet_socket(address)?;
    if let SocketAddr::V6(mut v6) = address
        && v6.scope_id() != 0
    {
        v6.set_port(0);
        // It also binds to the interface. EADDRNOTAVAIL: the address has gone meanwhile.
        let _ = bind(new.as_raw_fd(), &SockaddrStorage::from(v6));
    }
    Ok(Some(new))
}

/// Returns the address to which a TCP socket is bound; `None` if it is another one.
pub(super) fn tcp_address(fd: BorrowedFd<'_>) -> io::Result<Option<SocketAddr>> {
    let name = getsockname::<SockaddrStorage>(fd.as_raw_fd())?;
    let v4 = name.as_sockaddr_in().map(|v4| SocketAddrV4::from(*v4).into());
    Ok(v4.or_else(|| name.as_sockaddr_in6().map(|v6| SocketAddrV6::from(*v6).into())))
}

fn inet_socket(address: SocketAddr) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, flags, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    // Accepted sockets inherit it (Linux), which saves a system call a connection.
    setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
    Ok(fd)
}

/// Whether it is a unix socket.
pub(crate) fn is_unix(fd: BorrowedFd<'_>) -> bool {
    getsockname::<SockaddrStorage>(fd.as_raw_fd())
        .is_ok_and(|name| name.family() == Some(AddressFamily::Unix))
}

/// Whether a process accepts connections at a unix socket's path.
///
/// # Errors
/// `EACCES` and others, from connect(2): the answer is unknown.
pub(crate) fn is_accepting(name: &SocketAddress) -> io::Result<bool> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // Before it has a peer, so that none can send it a descriptor, whose close(2) might wait.
    shutdown(fd.as_raw_fd(), Shutdown::Read)?;
    match connect(fd.as_raw_fd(), &unix_address(name)?) {
        Ok(()) | Err(Errno::EAGAIN | Errno::EINPROGRESS) => Ok(true),
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether an address could not be bound since this machine does not have it.
pub(crate) fn is_not_of_this_machine(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT))
}

/// Returns the port to which a TCP socket is bound; 0 for any other.
pub(crate) fn local_port(fd: BorrowedFd<'_>) -> u16 {
    let name = getsockname::<SockaddrStorage>(fd.as_raw_fd()).ok();
    let v4 = name.as_ref().and_then(|name| name.as_sockaddr_in().map(|v4| v4.port()));
    let v6 = name.as_ref().and_then(|name| name.as_sockaddr_in6().map(|v6| v6.port()));
    v4.or(v6).unwrap_or_default()
}

fn unix_address(name: &SocketAddress) -> io::Result<UnixAddr> {
    match name {
        SocketAddress::Path(path, _) => Ok(UnixAddr::new(path)?),
        SocketAddress::Abstract(bytes) => Ok(UnixAddr::new_abstract(bytes)?),
        SocketAddress::Tcp(_) => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Takes over an inherited descriptor if it is a listening stream socket, and makes it nonblocking
/// and close-on-exec. Returns `None` for any other, which stays unchanged.
///
/// # Errors
/// `EBADF` if there is no such descriptor.
pub(crate) fn from_inherited_fd(number: RawFd) -> io::Result<Option<OwnedFd>> {
    // SAFETY: F_GETFD takes any number; a closed one is EBADF.
    super::check(unsafe { libc::fcntl(number, libc::F_GETFD) })?;
    // SAFETY: the descriptor is open (just asked), and this process has one thread to close it.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    let listening = getsockopt(&fd, sockopt::AcceptConn).unwrap_or(false);
    let stream = getsockopt(&fd, sockopt::SockType).is_ok_and(|kind| kind == SockType::Stream);
    if !(listening && stream) {
        return Ok(None);
    }
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    set_nonblocking(fd)?;
    // SAFETY: the descriptor is open, and by the settings the caller is its only owner.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(number) }))
}

/// Closes an inherited descriptor if it is a bound stream socket that takes no new connections, and
/// shuts the socket down for all processes that share it. Returns whether it is one.
///
/// # Errors
/// `EBADF` if there is no such descriptor.
pub(crate) fn take_ended_listener(number: RawFd) -> io::Result<bool> {
    // SAFETY: F_GETFD takes any number; a closed one is EBADF.
    super::check(unsafe { libc::fcntl(number, libc::F_GETFD) })?;
    // SAFETY: the descriptor is open (just asked), and this process has one thread to close it.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    let stream = getsockopt(&fd, sockopt::SockType).is_ok_and(|kind| kind == SockType::Stream);
    let bound = getsockname::<SockaddrStorage>(number).is_ok();
    if !(stream && bound) || listening::takes_new_connections(fd) {
        return Ok(false);
    }
    listening::shutdown_listener(fd);
    // SAFETY: the descriptor is open, and its name says that the caller is its only owner.
    drop(unsafe { OwnedFd::from_raw_fd(number) });
    Ok(true)
}

/// Makes a socket nonblocking, for all processes that share it.
///
/// # Errors
/// From fcntl(2).
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    if !flags.contains(OFlag::O_NONBLOCK) {
        fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    }
    Ok(())
}

/// Returns the address to which a socket is bound, such as `127.0.0.1:8000` or `unix:/run/x`.
pub(crate) fn local_address(fd: BorrowedFd<'_>) -> String {
    let Ok(address) = getsockname::<SockaddrStorage>(fd.as_raw_fd()) else {
        return format!("fd://{}", fd.as_raw_fd());
    };
    if let Some(v4) = address.as_sockaddr_in() {
        return SocketAddrV4::from(*v4).to_string();
    }
    if let Some(v6) = address.as_sockaddr_in6() {
        return SocketAddrV6::from(*v6).to_string();
    }
    match address.as_unix_addr() {
        Some(unix) => match (unix.path(), unix.as_abstract()) {
            (Some(path), _) => format!("unix:{}", path.display()),
            (None, Some(name)) => format!("unix:@{}", name.escape_ascii()),
            (None, None) => "unix:".to_owned(),
        },
        None => format!("fd://{}", fd.as_raw_fd()),
    }
}

/// Accepts one connection, nonblocking and close-on-exec, with the peer's address if it is TCP.
/// Returns `None` if the accept queue is empty.
///
/// # Errors
/// `EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM`: no resources for it now. Errors of the connection
/// itself, such as `ECONNABORTED`, are skipped as accept(2) advises.
pub(crate) fn accept(
    listener: BorrowedFd<'_>,
) -> io::Result<Option<(OwnedFd, Option<SocketAddr>)>> {
    loop {
        let mut storage: libc::sockaddr_storage = zeroed_storage();
        let mut length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let target = (&raw mut storage).cast();
        // SAFETY: `storage` has room for any address, `length` says so, and both outlive the call.
        let result = unsafe { libc::accept4(listener.as_raw_fd(), target, &raw mut length, flags) };
        if result >= 0 {
            // SAFETY: accept4(2) has just created this descriptor, and no other code has its
            // number.
            let fd = unsafe { OwnedFd::from_raw_fd(result) };
            return Ok(Some((fd, inet_address(&storage, length))));
        }
        match Errno::last() {
            Errno::EAGAIN => return Ok(None),
            Errno::EINTR => (),
            // The connection broke while it waited: accept the next one.
            Errno::ECONNABORTED | Errno::EPROTO | Errno::ENOPROTOOPT | Errno::ENETDOWN => (),
            Errno::ENETUNREACH | Errno::EHOSTDOWN | Errno::EHOSTUNREACH | Errno::ENONET => (),
            errno => return Err(errno.into()),
        }
    }
}

/// Returns how long ago the last bytes have arrived at a TCP connection, or the connection was made if there
/// were none (Linux, `TCP_INFO`), in steps of the kernel's timer: 1 to 10 ms. `None` if the kernel does not
/// say. For a client that has just been accepted, this is how long it has waited.
pub(crate) fn time_since_input(fd: BorrowedFd<'_>) -> Option<Duration> {
    let info = listening::tcp_info(fd).ok()?;
    Some(Duration::from_millis(info.tcpi_last_data_recv.into()))
}

pub(super) fn zeroed_storage() -> libc::sockaddr_storage {
    // SAFETY: sockaddr_storage is plain bytes and numbers, for which zero is a value.
    unsafe { mem::zeroed() }
}

fn inet_address(storage: &libc::sockaddr_storage, length: libc::socklen_t) -> Option<SocketAddr> {
    let family = i32::from(storage.ss_family);
    if family != libc::AF_INET && family != libc::AF_INET6 {
        return None;
    }
    let pointer = (&raw const *storage).cast();
    // SAFETY: `pointer` is to a whole sockaddr_storage, and the kernel wrote `length` bytes of it.
    let address = unsafe { SockaddrStorage::from_raw(pointer, Some(length)) }?;
    match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(v4), _) => Some(SocketAddrV4::from(*v4).into()),
        (None, Some(v6)) => Some(SocketAddrV6::from(*v6).into()),
        (None, None) => None,
    }
}

/// Receives the available bytes, at most `buffer`'s length. 0 is the end of the stream.
///
/// # Errors
/// `WouldBlock` if no bytes are available; otherwise from recv(2): the connection is broken.
pub(crate) fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    retry_on_eintr(|| recv(fd.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT))
}

/// Sends as many bytes as the socket's buffer takes. Never raises SIGPIPE.
///
/// # Errors
/// `WouldBlock` if the buffer is full; otherwise from send(2): the connection is broken.
pub(crate) fn send(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    retry_on_eintr(|| nix_send(fd.as_raw_fd(), bytes, flags))
}

/// Returns how many received bytes are not read; 0 if the kernel does not say.
pub(crate) fn unread_bytes(fd: BorrowedFd<'_>) -> usize {
    queued_bytes(fd, libc::FIONREAD)
}

/// Returns how many sent bytes the peer has not acknowledged; 0 if the kernel does not say.
pub(crate) fn unacknowledged_bytes(fd: BorrowedFd<'_>) -> usize {
    queued_bytes(fd, libc::TIOCOUTQ)
}

fn queued_bytes(fd: BorrowedFd<'_>, request: libc::Ioctl) -> usize {
    let mut count: libc::c_int = 0;
    // SAFETY: both requests write one c_int, which outlives the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut count) };
    if result < 0 { 0 } else { usize::try_from(count).unwrap_or(0) }
}

/// Shuts down the sending side: the peer reads the end of the stream.
pub(crate) fn shutdown_write(fd: BorrowedFd<'_>) {
    // ENOTCONN: the peer has closed the connection already.
    let _ = shutdown(fd.as_raw_fd(), Shutdown::Write);
}

/// Shuts down both sides of a connection, for all processes and threads that use it.
pub(crate) fn shutdown_both(fd: BorrowedFd<'_>) {
    // ENOTCONN: the peer has closed the connection already.
    let _ = shutdown(fd.as_raw_fd(), Shutdown::Both);
}

fn retry_on_eintr(mut call: impl FnMut() -> nix::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Ok(n) => return Ok(n),
            Err(Errno::EINTR) => (),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Opens a pair of connected SOCK_SEQPACKET sockets, nonblocking and close-on-exec.
///
/// # Errors
/// `EMFILE` or `ENFILE`, from socketpair(2).
pub(crate) fn seqpacket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    // SOCK_SEQPACKET keeps the boundaries of messages.
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?)
}

/// Takes over an inherited descriptor if it is an end of a [`seqpacket_pair`].
pub(crate) fn seqpacket_from_inherited_fd(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: F_GETFD takes any number; a closed one is an error.
    super::check(unsafe { libc::fcntl(number, libc::F_GETFD) }).ok()?;
    // SAFETY: the descriptor is open (just asked), and this process has one thread to close it.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    getsockopt(&fd, sockopt::SockType).ok().filter(|kind| *kind == SockType::SeqPacket)?;
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    // SAFETY: the descriptor is open, and the parent process passed it for the caller alone.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Sends a datagram with a descriptor in it (unix(7), `SCM_RIGHTS`). Never waits.
///
/// # Errors
/// From sendmsg(2).
pub(crate) fn send_with_fd(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fd: BorrowedFd<'_>,
) -> io::Result<usize> {
    let rights = [fd.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&rights)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let pieces = [io::IoSlice::new(bytes)];
    Ok(sendmsg::<()>(socket.as_raw_fd(), &pieces, &message, flags, None)?)
}

/// Returns the user and the process that have connected to a unix socket (Linux, unix(7)). `None` for
/// other sockets.
pub(crate) fn peer_credentials(fd: BorrowedFd<'_>) -> Option<(u32, i32)> {
    let peer = getsockopt(&fd, sockopt::PeerCredentials).ok()?;
    Some((peer.uid(), peer.pid()))
}
