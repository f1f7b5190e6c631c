//! Listening sockets: how many clients may wait, and how they end without losing any of those.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::socket::{Shutdown, SockaddrStorage, getsockname, getsockopt, shutdown, sockopt};

/// An interface index that no interface has. The kernel gives out small ones.
const NO_INTERFACE: libc::c_int = libc::c_int::MAX;

/// Makes a bound socket listen, or changes how many connections may wait: at most
/// net.core.somaxconn.
///
/// # Errors
/// From listen(2).
pub(crate) fn set_backlog(fd: BorrowedFd<'_>, backlog: u32) -> io::Result<()> {
    let backlog = libc::c_int::try_from(backlog).unwrap_or(libc::c_int::MAX);
    // SAFETY: listen(2) takes a descriptor, which is open, and a number. The kernel clips it.
    super::check(unsafe { libc::listen(fd.as_raw_fd(), backlog) }).map(drop)
}

/// Whether a socket is bound to a TCP address.
pub(crate) fn is_tcp(fd: BorrowedFd<'_>) -> bool {
    getsockname::<SockaddrStorage>(fd.as_raw_fd())
        .is_ok_and(|name| name.as_sockaddr_in().is_some() || name.as_sockaddr_in6().is_some())
}

/// Ends a TCP listener for new connections, for all processes that share it; it cannot be undone
/// without CAP_NET_RAW. Connections that wait can still be accepted, and handshakes that have begun
/// still complete. The socket is bound to an interface that does not exist, so that the kernel
/// refuses new connections (Linux 5.7). Where that fails, their packets are dropped.
///
/// # Errors
/// From setsockopt(2): new connections still arrive.
pub(crate) fn refuse_new_connections(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_option(fd, libc::SO_BINDTOIFINDEX, &NO_INTERFACE)
        .or_else(|error| drop_new_syns(fd).map_err(|_| error))
}

/// Whether new connections can still arrive at a listening socket: it has neither been shut down nor
/// does it [refuse them](refuse_new_connections).
pub(crate) fn takes_new_connections(fd: BorrowedFd<'_>) -> bool {
    let listens = getsockopt(&fd, sockopt::AcceptConn).unwrap_or(false);
    listens && !is_bound_to_no_interface(fd) && !is_unix_socket_shut_down(fd)
}

fn is_bound_to_no_interface(fd: BorrowedFd<'_>) -> bool {
    bound_interface(fd) == Some(NO_INTERFACE)
}

/// Removes what chooses or drops the packets of a socket: its filter, and the program of its
/// SO_REUSEPORT group (Linux). A [locked](libc::SO_LOCK_FILTER) filter stays.
pub(super) fn remove_filters(fd: BorrowedFd<'_>) {
    let none: libc::c_int = 0;
    for option in [libc::SO_DETACH_FILTER, libc::SO_DETACH_REUSEPORT_BPF] {
        // ENOENT: there is none.
        let _ = set_option(fd, option, &none);
    }
}

fn bound_interface(fd: BorrowedFd<'_>) -> Option<libc::c_int> {
    int_option(fd, libc::SO_BINDTOIFINDEX).ok()
}

/// Returns the value of an option of any socket.
///
/// # Errors
/// From getsockopt(2): the kernel or the kind of socket does not have it.
pub(super) fn int_option(fd: BorrowedFd<'_>, option: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    let target = (&raw mut value).cast();
    // SAFETY: `value` has room for `length` bytes, and both outlive the call.
    super::check(unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, option, target, &raw mut length)
    })?;
    Ok(value)
}

/// Whether a unix socket was shut down. It is still a listening one, and always readable.
/// Async-signal-safe.
pub(crate) fn is_unix_socket_shut_down(fd: BorrowedFd<'_>) -> bool {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one entry is given, and it outlives the call, which does not wait.
    let ready = super::check(unsafe { libc::poll(&raw mut entry, 1, 0) });
    ready.is_ok() && entry.revents & libc::POLLRDHUP != 0
}

/// Drops the SYN packets that reach a TCP listener (Linux). Kernels since 2025 require
/// CAP_NET_ADMIN.
///
/// # Errors
/// From setsockopt(2).
fn drop_new_syns(fd: BorrowedFd<'_>) -> io::Result<()> {
    // A packet filter over the TCP header: byte 13 holds the flags. Drop packets with SYN (bit 1),
    // keep the others.
    let mut program = [
        bpf_instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, 13),
        bpf_instruction(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 1, 0x02),
        bpf_instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        bpf_instruction(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    ];
    set_program(fd, libc::SO_ATTACH_FILTER, &mut program)
}

/// Has all new connections to a SO_REUSEPORT group arrive at the socket that has listened for the
/// longest time (Linux). Otherwise the kernel may choose one that refuses them, without an answer to
/// the client.
///
/// # Errors
/// `EINVAL` if there is no group, from setsockopt(2).
pub(crate) fn steer_to_first_of_group(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut program = [bpf_instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 0)];
    set_program(fd, libc::SO_ATTACH_REUSEPORT_CBPF, &mut program)
}

fn set_program(
    fd: BorrowedFd<'_>,
    option: libc::c_int,
    program: &mut [libc::sock_filter],
) -> io::Result<()> {
    let (len, filter) = (program.len() as u16, program.as_mut_ptr());
    set_option(fd, option, &libc::sock_fprog { len, filter })
}

pub(super) fn set_option<T>(fd: BorrowedFd<'_>, option: libc::c_int, value: &T) -> io::Result<()> {
    set_option_at(fd, libc::SOL_SOCKET, option, value)
}

/// Sets an option to a value, which is what the kernel expects.
///
/// # Errors
/// From setsockopt(2).
pub(super) fn set_option_at<T>(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: &T,
) -> io::Result<()> {
    let (pointer, length) = (&raw const *value, size_of::<T>() as libc::socklen_t);
    // SAFETY: `pointer` is to `length` bytes. What a program points at outlives the call, too, which
    // copies it.
    super::check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, pointer.cast(), length) })
        .map(drop)
}

/// Sets an option to a value of these bytes.
///
/// # Errors
/// From setsockopt(2).
pub(super) fn set_option_bytes(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: &[u8],
) -> io::Result<()> {
    let (pointer, length) = (value.as_ptr().cast(), value.len() as libc::socklen_t);
    // SAFETY: `pointer` is to `length` bytes, which outlive the call.
    super::check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, pointer, length) })
        .map(drop)
}

fn bpf_instruction(code: u32, jump_true: u8, jump_false: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: jump_true, jf: jump_false, k }
}

/// Returns how many connections wait to be accepted at a TCP listener (Linux, `TCP_INFO`).
///
/// # Errors
/// From getsockopt(2).
pub(crate) fn accept_queue_length(fd: BorrowedFd<'_>) -> io::Result<u32> {
    tcp_info(fd).map(|info| info.tcpi_unacked)
}

/// Returns what the kernel knows of a TCP socket (Linux).
pub(super) fn tcp_info(fd: BorrowedFd<'_>) -> io::Result<libc::tcp_info> {
    // SAFETY: tcp_info is plain numbers, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: `info` has room for `length` bytes, and both outlive the call.
    super::check(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    })?;
    Ok(info)
}

/// Stops a listener for all processes that share it: new connections are refused from now on (Linux).
/// At a TCP listener, accept(2) fails with `EINVAL`. A unix one keeps its queue.
pub(crate) fn shutdown_listener(fd: BorrowedFd<'_>) {
    // ENOTCONN: it was stopped already.
    let _ = shutdown(fd.as_raw_fd(), Shutdown::Read);
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn backlog_is_passed_on_and_clipped_by_the_kernel() {
        let limit = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
        let limit: u32 = limit.trim().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for backlog in [1, 7, 4096, 4097, 70_000, u32::MAX] {
            set_backlog(listener.as_fd(), backlog).unwrap();
            let allowed = tcp_info(listener.as_fd()).unwrap().tcpi_sacked;
            assert_eq!(allowed, backlog.min(limit));
        }
    }

    #[test]
    fn refusing_listener_keeps_its_queue() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                assert!(address.contains("::"), "no IPv4");
                continue;
            };
            let address = listener.local_addr().unwrap();
            let waiting = TcpStream::connect(address).unwrap();
            refuse_new_connections(listener.as_fd()).unwrap();
            let error = TcpStream::connect(address).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            assert_eq!(accept_queue_length(listener.as_fd()).unwrap(), 1);
            let (_, client) = listener.accept().unwrap();
            assert_eq!(client, waiting.local_addr().unwrap());
        }
    }

    #[test]
    fn listener_that_has_ended_takes_no_connections() {
        let end: [fn(BorrowedFd<'_>); 2] =
            [|fd| refuse_new_connections(fd).unwrap(), shutdown_listener];
        for end in end {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let _waiting = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            assert!(takes_new_connections(listener.as_fd()));
            end(listener.as_fd());
            assert!(!takes_new_connections(listener.as_fd()));
        }
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let _waiting = UnixStream::connect(dir.path().join("socket")).unwrap();
        assert!(takes_new_connections(listener.as_fd()));
        shutdown_listener(listener.as_fd());
        assert!(!takes_new_connections(listener.as_fd()));
    }

    #[test]
    fn filtered_listener_drops_new_connections_and_keeps_its_queue() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let waiting = TcpStream::connect(address).unwrap();
        if let Err(error) = drop_new_syns(listener.as_fd()) {
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            return;
        }
        let dropped = TcpStream::connect_timeout(&address, std::time::Duration::from_millis(300));
        assert_eq!(dropped.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let (_, client) = listener.accept().unwrap();
        assert_eq!(client, waiting.local_addr().unwrap());
    }

    #[test]
    fn group_steers_all_connections_to_its_first_socket() {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = first.local_addr().unwrap();
        let others: Vec<_> =
            (0..3).map(|_| crate::os::socket::bind_reuseport(first.as_fd()).unwrap()).collect();
        others.iter().for_each(|fd| set_backlog(fd.as_fd(), 64).unwrap());
        steer_to_first_of_group(first.as_fd()).unwrap();
        let clients: Vec<_> = (0..40).map(|_| TcpStream::connect(address).unwrap()).collect();
        assert_eq!(accept_queue_length(first.as_fd()).unwrap() as usize, clients.len());
        // While the others refuse, no client meets silence.
        others.iter().for_each(|fd| refuse_new_connections(fd.as_fd()).unwrap());
        let _more: Vec<_> = (0..40).map(|_| TcpStream::connect(address).unwrap()).collect();
        refuse_new_connections(first.as_fd()).unwrap();
        let error = TcpStream::connect(address).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(accept_queue_length(first.as_fd()).unwrap(), 80);
    }
}
