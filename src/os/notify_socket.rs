//! A socket to which processes may send words, each of which comes with its sender's number (Linux).

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, bind, getsockname,
    recvmsg, setsockopt, socket, sockopt,
};

use super::process::Pid;

/// The longest word, in bytes; what is longer is cut.
const NOTIFICATION_BYTES_MAX: usize = 4096;

/// A datagram socket in Linux's abstract namespace, under a name that the kernel chooses.
#[derive(Debug)]
pub(crate) struct NotifySocket {
    fd: OwnedFd,
    name: String,
}

/// One word, and who sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Notification {
    pub(crate) text: Vec<u8>,
    pub(crate) sender: Pid,
    /// The sender's user.
    pub(crate) uid: u32,
}

impl NotifySocket {
    /// Opens one. Reading never blocks.
    ///
    /// # Errors
    /// From socket(2), setsockopt(2), bind(2).
    pub(crate) fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        // Before it has a name, so that no word comes without its sender.
        setsockopt(&fd, sockopt::PassCred, &true)?;
        bind(fd.as_raw_fd(), &UnixAddr::new_unnamed())?;
        let address: UnixAddr = getsockname(fd.as_raw_fd())?;
        let name = address.as_abstract().ok_or(io::ErrorKind::Unsupported)?;
        Ok(Self { fd, name: format!("@{}", String::from_utf8_lossy(name)) })
    }

    /// Its name as sd_notify(3) wants it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The next word, if there is one. Descriptors that come with it are closed, which is all that
    /// who waits for its words to be read asks for (sd_notify_barrier(3)).
    pub(crate) fn try_receive(&self) -> Option<Notification> {
        let mut text = vec![0; NOTIFICATION_BYTES_MAX];
        loop {
            match self.receive_datagram(&mut text) {
                Ok((length, Some((sender, user)))) => {
                    text.truncate(length);
                    return Some(Notification { text, sender, uid: user });
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
                ControlMessageOwned::ScmCredentials(who) => {
                    sender = Some((Pid::from_raw(who.pid()), who.uid()));
                }
                ControlMessageOwned::ScmRights(numbers) => numbers.into_iter().for_each(close),
                _ => (),
            }
        }
        Ok((message.bytes, sender))
    }
}

fn close(number: RawFd) {
    // SAFETY: recvmsg(2) has just made this descriptor, and nobody else has seen it.
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
