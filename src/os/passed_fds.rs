//! Descriptors that come with the messages of a unix socket (unix(7), `SCM_RIGHTS`) and that nobody wants.
//!
//! To close the last copy of a descriptor may wait: a TCP socket waits for its linger time. Each process
//! that may connect to a unix socket may send one and close its own copy. The process that reads the message without
//! a place for it, or that closes the socket before it has read, then closes the last copy. So must no
//! process that may not wait. A socket can refuse descriptors (Linux 6.16). Before, they are seen without
//! being taken, and a child closes the socket: the linger time does not hold up a process that exits.

use std::cell::RefCell;
use std::io;
use std::mem::{self, ManuallyDrop};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recvmsg};

use super::listening::{int_option, set_option};
use super::pid::Pid;
use super::poll::{self, Interest};
use super::{clock, file, process, socket};
use crate::time::MonotonicTime;

/// Whether a unix socket takes descriptors: see asm-generic/socket.h.
const SO_PASSRIGHTS: libc::c_int = 83;
/// Whether messages carry a descriptor of their sender's process: see asm-generic/socket.h.
const SO_PASSPIDFD: libc::c_int = 76;

thread_local! {
    static KEPT: RefCell<Option<Kept>> = const { RefCell::new(None) };
}

/// How often a child closes the sockets of clients. They are shut down, so there is no hurry.
const INTERVAL: Duration = Duration::from_millis(100);
/// How many of them need not wait for that.
const CLIENTS_MAX: usize = 16;

/// Sockets that wait for a child that closes them.
#[derive(Debug)]
struct Kept {
    /// The process that must not wait. Its children close their copies themselves.
    owner: Pid,
    sockets: Vec<OwnedFd>,
    /// One of them is a listener, to which clients connect until it is closed.
    has_listener: bool,
    next_child_at: MonotonicTime,
    has_failed: bool,
}

impl Kept {
    fn new() -> Self {
        Self {
            owner: Pid::this(),
            sockets: Vec::new(),
            has_listener: false,
            next_child_at: MonotonicTime::default(),
            has_failed: false,
        }
    }

    fn is_due(&self, now: MonotonicTime) -> bool {
        let is_time =
            self.has_listener || self.sockets.len() > CLIENTS_MAX || self.next_child_at <= now;
        !self.sockets.is_empty() && is_time && self.owner == Pid::this()
    }
}

impl Drop for Kept {
    /// Leaves them to the exit of the process, which does not wait for them.
    fn drop(&mut self) {
        mem::take(&mut self.sockets).into_iter().for_each(mem::forget);
    }
}

/// Has the kernel refuse the descriptors of all who connect to a listening unix socket from now on, also
/// before they are accepted (Linux 6.16; before, it does nothing).
pub(crate) fn refuse(listener: BorrowedFd<'_>) {
    let _ = set_option::<libc::c_int>(listener, SO_PASSRIGHTS, &0);
}

/// Has this thread of this process keep the sockets that it must not close, for [`hand_over`].
pub(crate) fn begin_to_keep() -> Keeping {
    KEPT.set(Some(Kept::new()));
    Keeping
}

/// The time in which sockets are kept. At its end, a last child closes them.
#[must_use]
pub(crate) struct Keeping;

impl Drop for Keeping {
    fn drop(&mut self) {
        KEPT.with_borrow_mut(|kept| {
            kept.iter_mut().for_each(|kept| kept.next_child_at = MonotonicTime::default());
        });
        let _ = hand_over(); // what is kept all the same goes with the process
        KEPT.set(None);
    }
}

/// Returns how many sockets wait for [`hand_over`].
pub(crate) fn kept() -> usize {
    KEPT.with(|kept| kept.borrow().as_ref().map_or(0, |kept| kept.sockets.len()))
}

/// Returns when [`hand_over`] is due.
pub(crate) fn next_deadline() -> Option<MonotonicTime> {
    KEPT.with_borrow(|kept| {
        let kept = kept.as_ref().filter(|kept| !kept.sockets.is_empty())?;
        Some(kept.next_child_at)
    })
}

/// Has a child close the sockets that this process must not close: listeners at once, clients now and
/// then. Without a child they stay for the next call. The process reaps it like any other child.
///
/// # Errors
/// From pipe2(2) and fork(2), once until it succeeds again.
pub(crate) fn hand_over() -> io::Result<()> {
    KEPT.with(|kept| {
        let mut kept = kept.borrow_mut();
        let waiting = kept.as_mut().filter(|kept| !kept.sockets.is_empty());
        let Some(kept) = waiting else { return Ok(()) };
        let now = clock::now();
        if !kept.is_due(now) {
            return Ok(());
        }
        match ClosingChild::start() {
            Ok(child) => {
                kept.sockets.clear(); // the child has them, too
                drop(child);
                (kept.has_listener, kept.has_failed) = (false, false);
                kept.next_child_at = now.saturating_add(INTERVAL);
                Ok(())
            }
            Err(error) => {
                kept.next_child_at = now.saturating_add(INTERVAL);
                if mem::replace(&mut kept.has_failed, true) { Ok(()) } else { Err(error) }
            }
        }
    })
}

/// A child with a copy of each descriptor. It exits once this is dropped.
struct ClosingChild {
    _release_tx: OwnedFd,
}

impl ClosingChild {
    fn start() -> io::Result<Self> {
        let (release_rx, release_tx) = file::pipe()?;
        let mut release_tx = Some(release_tx);
        process::fork(|| {
            release_tx = None;
            let _ = poll::wait([(release_rx.as_fd(), Interest::Readable)], None);
            0 // no destructor runs
        })?;
        release_tx.map(|_release_tx| Self { _release_tx }).ok_or(io::ErrorKind::Other.into())
    }
}

/// How the owner of a socket gets rid of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    /// No descriptor can wait in it.
    Here,
    /// It is a client. Descriptors may wait in it while it has unread bytes.
    HereIfEmpty,
    /// It is a listener. Descriptors may wait in the clients that it has not accepted.
    ByChild,
}

/// A socket whose peers are not trusted. It is closed when it is dropped, but not by a process that
/// [keeps](begin_to_keep) such sockets, if that might wait.
#[derive(Debug)]
pub(crate) struct UntrustedSocket {
    fd: ManuallyDrop<OwnedFd>,
    closing: Closing,
}

impl UntrustedSocket {
    /// Takes a listening socket.
    pub(crate) fn listener(fd: OwnedFd) -> Self {
        let closing = if socket::is_unix(fd.as_fd()) { Closing::ByChild } else { Closing::Here };
        Self { fd: ManuallyDrop::new(fd), closing }
    }

    /// Takes the socket of a client that was just accepted, from which nothing has been received.
    pub(crate) fn client(fd: OwnedFd) -> Self {
        let are_refused = !socket::is_unix(fd.as_fd())
            || int_option(fd.as_fd(), SO_PASSRIGHTS).is_ok_and(|value| value == 0);
        let closing = if are_refused { Closing::Here } else { Closing::HereIfEmpty };
        if closing == Closing::HereIfEmpty {
            prepare_to_receive(fd.as_fd());
        }
        Self { fd: ManuallyDrop::new(fd), closing }
    }

    /// Receives as [`socket::receive`] does, but takes no descriptors.
    ///
    /// # Errors
    /// `InvalidData` if a descriptor comes with the bytes: they stay unread. Otherwise those of
    /// [`socket::receive`].
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.closing {
            Closing::Here => socket::receive(self.fd.as_fd(), buffer),
            Closing::HereIfEmpty | Closing::ByChild => {
                let length = look(self.fd.as_fd(), buffer)?;
                socket::receive(self.fd.as_fd(), &mut buffer[..length])
            }
        }
    }

    /// Returns whether nothing can wait in a client's socket, now and later: it is shut down.
    fn is_empty(&self) -> bool {
        socket::shutdown_both(self.fd.as_fd());
        socket::unread_bytes(self.fd.as_fd()) == 0
    }
}

impl AsFd for UntrustedSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for UntrustedSocket {
    fn drop(&mut self) {
        let may_wait = match self.closing {
            Closing::Here => false,
            Closing::HereIfEmpty => !self.is_empty(),
            Closing::ByChild => true,
        };
        // SAFETY: this is the only place that takes it, and nothing uses it afterwards.
        let fd = unsafe { ManuallyDrop::take(&mut self.fd) };
        if may_wait {
            close_later(fd, self.closing == Closing::ByChild);
        }
    }
}

/// Closes a socket, or keeps it if this process must not.
fn close_later(fd: OwnedFd, is_listener: bool) {
    let _ = KEPT.try_with(|kept| match &mut *kept.borrow_mut() {
        Some(kept) if kept.owner == Pid::this() => {
            kept.sockets.push(fd);
            kept.has_listener |= is_listener;
        }
        Some(_) | None => drop(fd),
    });
}

/// Has [`look`] see each message, and nothing with it but descriptors.
fn prepare_to_receive(fd: BorrowedFd<'_>) {
    // A message out of band is one among the others. Otherwise it is thrown away unseen.
    let _ = set_option::<libc::c_int>(fd, libc::SO_OOBINLINE, &1);
    // A listener of another program may have set them, and its clients inherit them.
    for option in [libc::SO_PASSCRED, libc::SO_PASSSEC, SO_PASSPIDFD] {
        let _ = set_option::<libc::c_int>(fd, option, &0);
    }
}

/// Copies the available bytes without receiving them, and returns how many there are.
///
/// # Errors
/// `InvalidData` if a descriptor comes with them; otherwise from recvmsg(2).
fn look(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    loop {
        let mut pieces = [io::IoSliceMut::new(buffer)];
        match recvmsg::<()>(fd.as_raw_fd(), &mut pieces, None, flags) {
            // There is no room for what comes with the bytes, and the kernel tells that there is something.
            Ok(message) if message.flags.contains(MsgFlags::MSG_CTRUNC) => {
                return Err(io::ErrorKind::InvalidData.into());
            }
            Ok(message) => return Ok(message.bytes),
            Err(Errno::EINTR) => (),
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use nix::sys::socket::{ControlMessage, sendmsg};

    use super::*;

    /// Returns a socket whose close(2) waits for 3 s, and its peer.
    fn lingering() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (peer, _) = listener.accept().unwrap();
        sender.set_nonblocking(true).unwrap();
        while sender.write(&[0; 1 << 16]).is_ok() {}
        let linger = libc::linger { l_onoff: 1, l_linger: 3 };
        set_option(sender.as_fd(), libc::SO_LINGER, &linger).unwrap();
        sender.set_nonblocking(false).unwrap();
        (sender, peer)
    }

    fn send_with(client: &UnixStream, flags: MsgFlags, fd: BorrowedFd<'_>) -> nix::Result<usize> {
        let rights = [fd.as_raw_fd()];
        let message = [ControlMessage::ScmRights(&rights)];
        sendmsg::<()>(client.as_raw_fd(), &[IoSlice::new(b"x")], &message, flags, None)
    }

    /// Returns the socket of a client, and the client, which has sent bytes and then a descriptor.
    fn accepted(bytes: &[u8], flags: MsgFlags) -> (UntrustedSocket, UnixStream, TcpStream) {
        let (socket, mut client) = UnixStream::pair().unwrap();
        let (sent, peer) = lingering();
        client.write_all(bytes).unwrap();
        send_with(&client, flags, sent.as_fd()).unwrap();
        (UntrustedSocket::client(socket.into()), client, peer)
    }

    #[test]
    fn descriptors_are_seen_and_not_taken() {
        for flags in [MsgFlags::empty(), MsgFlags::MSG_OOB] {
            let _keeping = begin_to_keep();
            let began = Instant::now();
            let mut buffer = [0; 8];
            let (socket, mut client, _peer) = accepted(b"", flags);
            let error = socket.receive(&mut buffer).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            drop(socket);
            assert_eq!(kept(), 1);
            assert!(client.write(b"x").is_err(), "it is not shut down");
            // The bytes with the descriptor come behind others.
            let (socket, _client, _peer) = accepted(b"bytes", flags);
            let received = socket.receive(&mut buffer);
            assert!(received.is_err() || socket.receive(&mut buffer).is_err());
            drop(socket);
            assert_eq!(kept(), 2);
            KEPT.set(None); // without a child
            assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        }
    }

    #[test]
    fn children_are_rare_unless_a_listener_waits() {
        let at = |millis: u64| MonotonicTime::from_nanos(millis * 1_000_000);
        let fd = || OwnedFd::from(UnixStream::pair().unwrap().0);
        let mut kept = Kept::new();
        assert!(!kept.is_due(at(1)), "nothing waits");
        kept.sockets.push(fd());
        assert!(kept.is_due(at(1)));
        kept.next_child_at = at(100);
        assert!(!kept.is_due(at(99)));
        assert!(kept.is_due(at(100)));
        kept.has_listener = true;
        assert!(kept.is_due(at(99)));
        kept.has_listener = false;
        kept.sockets.extend((0..CLIENTS_MAX).map(|_| fd()));
        assert!(kept.is_due(at(99)));
        kept.sockets.clear();
    }

    #[test]
    fn sockets_without_descriptors_are_closed_here() {
        let _keeping = begin_to_keep();
        let (socket, mut client) = UnixStream::pair().unwrap();
        client.write_all(b"bytes").unwrap();
        let socket = UntrustedSocket::client(socket.into());
        let mut buffer = [0; 8];
        assert_eq!(socket.receive(&mut buffer).unwrap(), 5);
        assert_eq!(socket.receive(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(client);
        assert_eq!(socket.receive(&mut buffer).unwrap(), 0);
        drop(socket);
        assert_eq!(kept(), 0);
    }
}
