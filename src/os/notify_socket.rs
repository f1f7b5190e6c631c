//! A socket to which programs send sd_notify(3) messages, each with its sender's credentials
//! (Linux).

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, bind, getsockname,
    recvmsg, setsockopt, socket, sockopt,
};

use super::pid::Pid;

/// The longest message, in bytes; a longer one is cut.
const NOTIFICATION_BYTES_MAX: usize = 4096;

/// A datagram socket in Linux's abstract namespace, with a name that the kernel chooses.
#[derive(Debug)]
pub(crate) struct NotifySocket {
    fd: OwnedFd,
    name: String,
}

/// A message with its sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Notification {
    pub(crate) text: Vec<u8>,
    pub(crate) sender: Pid,
    /// The sender's user.
    pub(crate) uid: u32,
}

impl NotifySocket {
    /// Opens a socket. Reading never blocks.
    ///
    /// # Errors
    /// From socket(2), setsockopt(2), bind(2).
    pub(crate) fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        // Before it has a name, so that every message carries its sender.
        setsockopt(&fd, sockopt::PassCred, &true)?;
        bind(fd.as_raw_fd(), &UnixAddr::new_unnamed())?;
        let address: UnixAddr = getsockname(fd.as_raw_fd())?;
        let name = address.as_abstract().ok_or(io::ErrorKind::Unsupported)?;
        Ok(Self { fd, name: format!("@{}", String::from_utf8_lossy(name)) })
    }

    /// Returns its name in the form of sd_notify(3).
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the next message, if there is one. Closes the descriptors that come with it, which
    /// tells sd_notify_barrier(3) that the sender's messages were read.
    pub(crate) fn try_receive(&self) -> Option<Notification> {
        let mut text = vec![0; NOTIFICATION_BYTES_MAX];
        loop {
            match self.receive_datagram(&mut text) {
                Ok((length, Some((sender, uid)))) => {
                    text.truncate(length);
                    return Some(Notification { text, sender, uid });
                }
                Ok((_, None)) | Err(Errno::EINTR) => (),
                Err(_) => return None, // EAGAIN: empty
            }
        }
    }

    fn receive_datagram(&self, text: &mut [u8]) -> nix::Result<(usize, Option<(Pid, u32)>)> {
        let mut control = nix::cmsg_space!(libc::ucred, [RawFd; 4]);
        let mut pieces = [IoSliceMut::new(text)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let fd = self.fd.as_raw_fd();
        let message = recvmsg::<UnixAddr>(fd, &mut pieces, Some(&mut control), flags)?;
        let mut sender = None;
        for part in message.cmsgs()? {
            match part {
                ControlMessageOwned::ScmCredentials(peer) => {
                    sender = Some((Pid::from_raw(peer.pid()), peer.uid()));
                }
                ControlMessageOwned::ScmRights(numbers) => numbers.into_iter().for_each(close),
                _ => (),
            }
        }
        Ok((message.bytes, sender))
    }
}

fn close(number: RawFd) {
    // SAFETY: recvmsg(2) has just created this descriptor, and no other code has its number.
    drop(unsafe { OwnedFd::from_raw_fd(number) });
}

impl AsFd for NotifySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    #[test]
    fn notification_carries_its_sender() {
        let notify_socket = NotifySocket::open().unwrap();
        assert_eq!(notify_socket.try_receive(), None);
        let name = notify_socket.name().strip_prefix('@').unwrap();
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let client = UnixDatagram::unbound().unwrap();
        client.send_to_addr(b"READY=1", &address).unwrap();
        client.send_to_addr(&[b'x'; 5000], &address).unwrap();
        let notification = notify_socket.try_receive().unwrap();
        assert_eq!(
            (notification.text.as_slice(), notification.sender),
            (b"READY=1".as_slice(), Pid::this())
        );
        assert_eq!(notify_socket.try_receive().unwrap().text.len(), NOTIFICATION_BYTES_MAX);
        assert_eq!(notify_socket.try_receive(), None);
    }
}
