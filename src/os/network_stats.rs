//! What the kernel knows of sockets beyond their descriptors (Linux): the accept queues of unix
//! listeners, and the clients that listeners have lost. The first use of a netlink protocol may load a
//! kernel module: call this in a child.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};
use nix::sys::stat::fstat;

/// The request for one socket: see linux/sock_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
/// See linux/unix_diag.h.
const UDIAG_SHOW_RQLEN: u32 = 0x10;
const UNIX_DIAG_RQLEN: u16 = 4;
const REQUEST_BYTES: usize = 40;
const HEADER_BYTES: usize = 16;
/// The length of the part of an answer before its attributes: a header, and `unix_diag_msg`.
const ANSWER_HEAD_BYTES: usize = HEADER_BYTES + 16;

/// Returns the inode of an open file, which for a socket is its number in the kernel.
pub(crate) fn inode(fd: impl AsFd) -> Option<u64> {
    fstat(fd).ok().map(|status| status.st_ino)
}

/// Asks the kernel about sockets of this network namespace.
#[derive(Debug)]
pub(crate) struct SocketDiagnosis(OwnedFd);

impl SocketDiagnosis {
    /// # Errors
    /// From socket(2): the kernel lacks the protocol, or there are no descriptors.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkSockDiag;
        Ok(Self(socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?))
    }

    /// Returns how many connections wait to be accepted at the unix listener of this inode; `None` if the
    /// kernel does not say.
    pub(crate) fn unix_queue_length(&self, inode: u64) -> Option<u32> {
        let request = unix_request(u32::try_from(inode).ok()?);
        send(self.0.as_raw_fd(), &request, MsgFlags::empty()).ok()?;
        let mut answer = [0; 512];
        // The kernel has answered when send(2) returns.
        let length = loop {
            match recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty()) {
                Err(Errno::EINTR) => (),
                received => break received.ok()?,
            }
        };
        queue_length(&answer[..length])
    }
}

/// Returns whether the kernel tells the accept queues of unix listeners.
pub(crate) fn has_unix_queues() -> bool {
    let Ok((socket, _peer)) = UnixStream::pair() else { return false };
    let length = |diagnosis: SocketDiagnosis| diagnosis.unix_queue_length(inode(&socket)?);
    SocketDiagnosis::new().is_ok_and(|it| length(it).is_some())
}

/// Returns a request for the queue of one unix socket.
fn unix_request(inode: u32) -> [u8; REQUEST_BYTES] {
    let mut request = [0; REQUEST_BYTES];
    let mut put = |at: usize, bytes: &[u8]| request[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(REQUEST_BYTES as u32).to_ne_bytes());
    put(4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(6, &NLM_F_REQUEST.to_ne_bytes());
    put(HEADER_BYTES, &[libc::AF_UNIX as u8]);
    put(HEADER_BYTES + 4, &u32::MAX.to_ne_bytes()); // in any state
    put(HEADER_BYTES + 8, &inode.to_ne_bytes());
    put(HEADER_BYTES + 12, &UDIAG_SHOW_RQLEN.to_ne_bytes());
    put(HEADER_BYTES + 16, &[0xff; 8]); // any cookie
    request
}

/// Finds the length of the queue in an answer.
fn queue_length(answer: &[u8]) -> Option<u32> {
    let u16_at = |at: usize| Some(u16::from_ne_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    if u16_at(4)? != SOCK_DIAG_BY_FAMILY {
        return None;
    }
    let mut at = ANSWER_HEAD_BYTES;
    loop {
        let length = usize::from(u16_at(at)?).max(4);
        if u16_at(at + 2)? == UNIX_DIAG_RQLEN {
            return Some(u32::from_ne_bytes(answer.get(at + 4..at + 8)?.try_into().ok()?));
        }
        at += length.next_multiple_of(4);
    }
}

/// Clients that the TCP listeners of this network namespace have lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ListenDrops {
    /// Since an accept queue was full.
    pub(crate) overflows: u64,
    /// For any reason, that one included.
    pub(crate) drops: u64,
}

/// Returns how many clients were lost since the namespace exists; `None` if /proc does not say.
pub(crate) fn listen_drops() -> Option<ListenDrops> {
    parse_listen_drops(&fs::read_to_string("/proc/self/net/netstat").ok()?)
}

/// Parses a line of names, and a line of their values.
fn parse_listen_drops(netstat: &str) -> Option<ListenDrops> {
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next()?, lines.next()?);
    let value = |wanted: &str| {
        let mut pairs = names.split(' ').zip(values.split(' '));
        pairs.find(|(name, _)| *name == wanted)?.1.parse().ok()
    };
    Some(ListenDrops { overflows: value("ListenOverflows")?, drops: value("ListenDrops")? })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn queue_of_unix_listener_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let diagnosis = SocketDiagnosis::new().unwrap();
        let length = || diagnosis.unix_queue_length(inode(&listener).unwrap());
        if length().is_none() {
            eprintln!("skipped: this kernel has no unix_diag");
            return;
        }
        assert_eq!(length(), Some(0));
        assert!(has_unix_queues());
        let _waiting: Vec<_> = (0..3).map(|_| UnixStream::connect(&path).unwrap()).collect();
        assert_eq!(length(), Some(3));
        listener.accept().unwrap();
        assert_eq!(length(), Some(2));
        assert_eq!(diagnosis.unix_queue_length(0), None);
        assert_eq!(diagnosis.unix_queue_length(u64::from(u32::MAX)), None);
        assert_eq!(length(), Some(2), "after an error, the next answer is its own");
    }

    #[test]
    fn answers_of_any_contents_have_no_length() {
        let mut answer = vec![0; 64];
        for length in 0..answer.len() {
            assert_eq!(queue_length(&answer[..length]), None);
        }
        answer[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        assert_eq!(queue_length(&answer), None);
    }

    #[test]
    fn listen_drops_are_found_by_name() {
        let text = "TcpExt: A ListenOverflows ListenDrops B\nTcpExt: 1 2 3 4\nIpExt: C\nIpExt: 5\n";
        let expected = ListenDrops { overflows: 2, drops: 3 };
        assert_eq!(parse_listen_drops(text), Some(expected));
        assert_eq!(parse_listen_drops("TcpExt: A\nTcpExt: 1\n"), None);
        assert_eq!(parse_listen_drops(""), None);
        assert!(listen_drops().is_some());
    }
}
