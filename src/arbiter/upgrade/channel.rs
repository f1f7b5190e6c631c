//! The socket pair between the old and the new master of an upgrade (SIGUSR2).

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::handover;
use crate::listen::activation::UPGRADE_VAR;
use crate::os::process::{self, Pid};
use crate::os::{file, socket};

/// Returns whether this process was started by a master that it is to replace.
pub(crate) fn is_new_master() -> bool {
    std::env::var_os(UPGRADE_VAR).is_some()
}

/// Returns the environment variable that hands the channel, as descriptor `fd`, to a new master: it
/// names the descriptor and the pid of the old master, such as `7:1234`.
pub(super) fn env_var(fd: RawFd, old_master: Pid) -> (OsString, OsString) {
    (UPGRADE_VAR.into(), format!("{fd}:{old_master}").into())
}

/// The longest message.
const MESSAGE_MAX: usize = 16 << 10;

/// The first byte of a message that gives a reason.
const FAILURE_TAG: u8 = b'!';

/// Tells the old master why this new master gives up, if the channel has not been taken yet.
pub(crate) fn report_failure(reason: &str) {
    if let Some((_, channel)) = UpgradeChannel::from_env() {
        channel.send_failure(reason);
    }
}

/// A connection between two masters. Each learns at once of the other's exit: its end is closed.
#[derive(Debug)]
pub(crate) struct UpgradeChannel {
    fd: OwnedFd,
}

/// What one master tells the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UpgradeMessage {
    /// The workers of the new master are ready.
    Ready,
    /// The program could not be executed, with the errno.
    ExecFailed(i32),
    /// The new master has given up, for this reason.
    Failed(String),
    /// What the other master hands over: see [`handover`].
    Handover(Vec<u8>),
    /// The other master has exited or closed its end.
    PeerExited,
}

impl UpgradeChannel {
    /// Makes a channel: this process's end, and the end for a new master.
    ///
    /// # Errors
    /// `EMFILE` or `ENFILE`.
    pub(crate) fn new() -> io::Result<(Self, OwnedFd)> {
        let (end, other) = socket::seqpacket_pair()?;
        Ok((Self { fd: end }, other))
    }

    /// Takes the channel to the old master from the environment, so that no child inherits the
    /// variable.
    pub(crate) fn take_from_env() -> Option<(Pid, Self)> {
        let inherited = Self::from_env();
        process::unset_env(UPGRADE_VAR);
        inherited
    }

    fn from_env() -> Option<(Pid, Self)> {
        std::env::var(UPGRADE_VAR).ok().as_deref().and_then(Self::from_env_value)
    }

    fn from_env_value(text: &str) -> Option<(Pid, Self)> {
        let (number, pid) = text.split_once(':')?;
        let end = socket::seqpacket_from_inherited_fd(number.parse().ok()?)?;
        Some((Pid::from_raw(pid.parse().ok()?), Self { fd: end }))
    }

    /// Reports that the workers are ready. An old master that has exited does not need to know.
    pub(crate) fn send_ready(&self) {
        let _ = file::wake_pipe(&self.fd);
    }

    /// Reports why this new master gives up.
    pub(crate) fn send_failure(&self, reason: &str) {
        let mut message = vec![FAILURE_TAG];
        message.extend_from_slice(reason.as_bytes());
        message.resize(message.len().clamp(8, 4096), b' '); // longer than any other message
        let _ = socket::send(self.fd.as_fd(), &message);
    }

    /// Sends what is handed over.
    ///
    /// # Errors
    /// `WouldBlock` if the other master reads nothing; from send(2).
    pub(super) fn send_handover(&self, message: &[u8]) -> io::Result<usize> {
        socket::send(self.fd.as_fd(), message)
    }

    /// Receives a message, if there is one.
    pub(crate) fn try_receive(&self) -> Option<UpgradeMessage> {
        let mut bytes = [0; MESSAGE_MAX];
        let mut receive = || socket::receive(self.fd.as_fd(), &mut bytes);
        // A peer that has exited with unread messages resets the connection. The kernel says so once,
        // before what the peer has sent.
        let received = match receive() {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => receive(),
            received => received,
        };
        match received {
            Ok(0) => Some(UpgradeMessage::PeerExited),
            Ok(1) => Some(UpgradeMessage::Ready),
            Ok(4) => {
                let errno = [bytes[0], bytes[1], bytes[2], bytes[3]];
                Some(UpgradeMessage::ExecFailed(i32::from_ne_bytes(errno)))
            }
            Ok(n) if bytes[0] == FAILURE_TAG => Some(UpgradeMessage::Failed(
                String::from_utf8_lossy(&bytes[1..n]).trim().to_owned(),
            )),
            Ok(n) if bytes[0] == handover::TAG => {
                Some(UpgradeMessage::Handover(bytes[..n].to_vec()))
            }
            Ok(_) => None,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(_) => Some(UpgradeMessage::PeerExited),
        }
    }
}

/// Reports over the new master's end that its program could not be executed.
pub(crate) fn report_exec_failure(end: BorrowedFd<'_>, error: &io::Error) {
    let errno = error.raw_os_error().unwrap_or(0).to_ne_bytes();
    let _ = socket::send(end, &errno);
}

impl AsFd for UpgradeChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for UpgradeChannel {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
impl UpgradeChannel {
    /// Returns both ends.
    pub(super) fn pair() -> (Self, Self) {
        let (end, peer) = socket::seqpacket_pair().expect("there are descriptors");
        (Self { fd: end }, Self { fd: peer })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channel_carries_messages_and_peer_exit() {
        let (channel, peer) = UpgradeChannel::new().unwrap();
        assert_eq!(channel.try_receive(), None);
        report_exec_failure(peer.as_fd(), &io::Error::from_raw_os_error(2));
        assert_eq!(channel.try_receive(), Some(UpgradeMessage::ExecFailed(2)));
        UpgradeChannel { fd: peer }.send_ready();
        assert_eq!(
            (channel.try_receive(), channel.try_receive()),
            (Some(UpgradeMessage::Ready), Some(UpgradeMessage::PeerExited))
        );
    }

    #[test]
    fn last_words_of_a_peer_that_has_read_nothing_are_received() {
        let (channel, peer) = UpgradeChannel::new().unwrap();
        channel.send_handover(b"{}").unwrap();
        UpgradeChannel { fd: peer }.send_failure("no such app");
        let reason = UpgradeMessage::Failed("no such app".to_owned());
        assert_eq!(channel.try_receive(), Some(reason));
        assert_eq!(channel.try_receive(), Some(UpgradeMessage::PeerExited));
    }
}
