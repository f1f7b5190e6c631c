//! A socket to which programs send sd_notify(3) messages, each with its sender's credentials
//! (Linux).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, bind, setsockopt, socket, sockopt,
};

use super::pid::Pid;

/// The longest message, in bytes; a longer one is cut.
const NOTIFICATION_BYTES_MAX: usize = 4096;

/// The longest path of a socket, in bytes: `sun_path` ends in NUL.
pub(crate) const PATH_BYTES_MAX: usize = 107;

/// The most descriptors that the kernel sends with one message: `SCM_MAX_FD`.
const FDS_MAX: usize = 253;

/// A datagram socket with a path.
#[derive(Debug)]
pub(crate) struct NotifySocket {
    fd: OwnedFd,
}

/// A message with its sender.
#[derive(Debug)]
pub(crate) struct Notification {
    pub(crate) text: Vec<u8>,
    /// The sender; 0 if it is outside of this process's PID namespace.
    pub(crate) sender: Pid,
    /// The sender's user.
    pub(crate) uid: u32,
    /// The descriptors that came with it. Closing one may block.
    pub(crate) fds: Vec<OwnedFd>,
}

impl NotifySocket {
    /// Opens a socket at a path. Reading never blocks.
    ///
    /// # Errors
    /// `ENAMETOOLONG`; from socket(2), setsockopt(2), bind(2).
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        // Before it has a name, so that every message carries its sender.
        setsockopt(&fd, sockopt::PassCred, &true)?;
        bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(Self { fd })
    }

    /// Returns the next message, if there is one.
    pub(crate) fn try_receive(&self) -> Option<Notification> {
        loop {
            match self.receive_datagram() {
                Ok(Some(notification)) => return Some(notification),
                Ok(None) => (), // without a sender: not by the rules of PassCred
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(_) => return None, // EAGAIN: empty
            }
        }
    }

    fn receive_datagram(&self) -> io::Result<Option<Notification>> {
        let mut text = vec![0; NOTIFICATION_BYTES_MAX];
        // With room for all, the kernel leaves none over, which it would have to close itself.
        let mut control = nix::cmsg_space!(libc::ucred, [RawFd; FDS_MAX]);
        let mut piece = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: text.len() };
        // SAFETY: zeros are a valid msghdr, which is plain data.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = &raw mut piece;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = control.capacity() as _;
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: `header` names two buffers and their lengths, and all outlive the call.
        let length = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut header, flags) };
        let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
        text.truncate(length);
        let (credentials, fds) = take_control_messages(&header);
        Ok(credentials.map(|peer| Notification {
            text,
            sender: Pid::from_raw(peer.pid),
            uid: peer.uid,
            fds,
        }))
    }
}

/// Returns what recvmsg(2) has put beside a message: credentials and descriptors. Call it once: it
/// makes the caller the owner of the descriptors.
fn take_control_messages(header: &libc::msghdr) -> (Option<libc::ucred>, Vec<OwnedFd>) {
    let (mut credentials, mut fds) = (None, Vec::new());
    // SAFETY: recvmsg(2) has filled in the control buffer that `header` names.
    let mut part = unsafe { libc::CMSG_FIRSTHDR(header) };
    // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return a whole message header in the buffer, or NULL.
    while let Some(message) = unsafe { part.as_ref() } {
        // SAFETY: the data follows the header.
        let data = unsafe { libc::CMSG_DATA(part) };
        // SAFETY: it only computes.
        let head_bytes = unsafe { libc::CMSG_LEN(0) } as usize;
        #[allow(clippy::unnecessary_cast)] // it is a u32 with musl
        let data_bytes = (message.cmsg_len as usize).saturating_sub(head_bytes);
        match (message.cmsg_level, message.cmsg_type) {
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {
                // SAFETY: the data of SCM_CREDENTIALS is one ucred, which is plain data.
                credentials = Some(unsafe { data.cast::<libc::ucred>().read_unaligned() });
            }
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                for index in 0..data_bytes / size_of::<RawFd>() {
                    let place = data.cast::<RawFd>().wrapping_add(index);
                    // SAFETY: the data of SCM_RIGHTS is descriptors, and `index` is one of them.
                    let number = unsafe { place.read_unaligned() };
                    // SAFETY: recvmsg(2) has just created it, and no other code has its number.
                    fds.push(unsafe { OwnedFd::from_raw_fd(number) });
                }
            }
            _ => (),
        }
        // SAFETY: `part` is a message of the buffer that `header` names.
        part = unsafe { libc::CMSG_NXTHDR(header, part) };
    }
    (credentials, fds)
}

impl AsFd for NotifySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::io::IoSlice;
    use std::os::unix::net::UnixDatagram;

    fn bound() -> (NotifySocket, UnixDatagram, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let notify_socket = NotifySocket::bind(&path).unwrap();
        let client = UnixDatagram::unbound().unwrap();
        client.connect(path).unwrap();
        (notify_socket, client, dir)
    }

    #[test]
    fn notification_carries_its_sender() {
        let (notify_socket, client, _dir) = bound();
        assert!(notify_socket.try_receive().is_none());
        client.send(b"READY=1").unwrap();
        client.send(&[b'x'; 5000]).unwrap();
        let notification = notify_socket.try_receive().unwrap();
        assert_eq!(
            (notification.text.as_slice(), notification.sender),
            (b"READY=1".as_slice(), Pid::this())
        );
        assert_eq!(notify_socket.try_receive().unwrap().text.len(), NOTIFICATION_BYTES_MAX);
        assert!(notify_socket.try_receive().is_none());
    }

    #[test]
    fn notification_owns_all_descriptors_sent_with_it() {
        let (notify_socket, client, _dir) = bound();
        for count in [0, 1, 5, FDS_MAX] {
            let (sent, peer) = UnixDatagram::pair().unwrap();
            let numbers = vec![sent.as_raw_fd(); count];
            let rights = [ControlMessage::ScmRights(&numbers)];
            let rights = if count > 0 { &rights[..] } else { &[] };
            let text = [IoSlice::new(b"BARRIER=1")];
            sendmsg::<()>(client.as_raw_fd(), &text, rights, MsgFlags::empty(), None).unwrap();
            drop(sent);
            let notification = notify_socket.try_receive().unwrap();
            assert_eq!(notification.text, b"BARRIER=1");
            assert_eq!(notification.fds.len(), count);
            drop(notification);
            assert!(peer.send(b"").is_err(), "one of {count} is still open");
        }
    }

    #[test]
    fn bind_to_longest_path_and_not_to_longer_one() {
        let dir = tempfile::tempdir().unwrap();
        let room = PATH_BYTES_MAX - dir.path().as_os_str().len() - 1;
        assert!(NotifySocket::bind(&dir.path().join("x".repeat(room))).is_ok());
        assert!(NotifySocket::bind(&dir.path().join("x".repeat(room + 1))).is_err());
    }
}
