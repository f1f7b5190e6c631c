//! What a program is handed by whoever started it: listening sockets, by the protocol of systemd
//! (sd_listen_fds(3)), and a line to the master that it is to succeed.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use super::{FileId, ListenError, Listener};
use crate::address::Address;
use crate::os::process::{self, Pid};
use crate::os::{file, socket};

/// The number of the first socket.
const FIRST_LISTEN_FD: RawFd = process::LISTEN_FDS_START;
/// Names the descriptor of the line and the pid of the other master: `7:1234`.
pub(crate) const UPGRADE_VAR: &str = "OSTLER_UPGRADE";
/// What the names of sockets begin with that were bound by a master of this program.
const FD_NAME_PREFIX: &str = "ostler@";
const ENV_VARS: [&str; 4] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", UPGRADE_VAR];

/// What was handed over.
#[derive(Debug, Default)]
pub(crate) struct InheritedFds {
    /// The sockets.
    pub(crate) listeners: Vec<Arc<Listener>>,
    /// The master that this one is to succeed, with the line to it.
    pub(crate) old_master: Option<(Pid, UpgradeChannel)>,
    /// What was handed over and makes no sense.
    pub(crate) warnings: Vec<String>,
}

impl InheritedFds {
    /// Takes over what is meant for this process, and forgets the variables that tell of it, so
    /// that no child believes in them.
    ///
    /// # Errors
    /// A descriptor that was announced is not a listening stream socket.
    pub(crate) fn take_from_env() -> Result<Self, ListenError> {
        let [pid, count, names, upgrade] = ENV_VARS.map(|name| std::env::var(name).ok());
        ENV_VARS.iter().for_each(|name| process::unset_env(name));
        let predecessor = upgrade.as_deref().and_then(UpgradeChannel::from_env_value);
        let mut inherited = Self { old_master: predecessor, ..Self::default() };
        let (Some(pid), Some(count)) = (pid, count) else { return Ok(inherited) };
        let (Ok(pid), Ok(count)) = (pid.parse::<i32>(), count.parse::<u16>()) else {
            let warning = format!("LISTEN_PID={pid} LISTEN_FDS={count}: not numbers; ignored");
            inherited.warnings.push(warning);
            return Ok(inherited);
        };
        if pid != Pid::this().as_raw() {
            let warning = format!("LISTEN_PID={pid} is another process; its sockets are ignored");
            inherited.warnings.push(warning);
            return Ok(inherited);
        }
        let names: Vec<&str> =
            names.as_deref().map_or(Vec::new(), |names| names.split(':').collect());
        for offset in 0..RawFd::from(count.min(4096)) {
            let name = names.get(offset as usize).copied();
            let ours = name.and_then(parse_fd_name);
            let listener = super::adopt_inherited(FIRST_LISTEN_FD + offset, ours)?;
            inherited.listeners.push(Arc::new(listener));
        }
        Ok(inherited)
    }
}

/// Whether this process was started by a master that it is to succeed.
pub(crate) fn is_new_master() -> bool {
    std::env::var_os(UPGRADE_VAR).is_some()
}

/// The variables by which a successor is told of `sockets`, which it finds from [`FIRST_LISTEN_FD`]
/// on, and of the line that follows them. To be called in the process that becomes the successor.
pub(crate) fn listen_env_vars(
    listeners: &[&Arc<Listener>],
    old_master: Pid,
) -> Vec<(OsString, OsString)> {
    let names: Vec<String> = listeners.iter().map(|listener| fd_name(listener)).collect();
    let channel_fd = FIRST_LISTEN_FD + listeners.len() as RawFd;
    let values = [
        Pid::this().to_string(),
        listeners.len().to_string(),
        names.join(":"),
        format!("{channel_fd}:{old_master}"),
    ];
    ENV_VARS.iter().map(OsString::from).zip(values.map(OsString::from)).collect()
}

/// The name under which a socket of ours is handed on. If it has a path, the name also tells to which
/// file that leads as long as it is ours: `ostler@DEVICE.INODE@ADDRESS`.
pub(crate) fn fd_name(listener: &Listener) -> String {
    encode_fd_name(listener.address(), listener.file_id())
}

/// A name may not hold the colon that separates names.
fn encode_fd_name(address: &Address, file: Option<FileId>) -> String {
    let file = file.map(|(device, inode)| format!("{device}.{inode}@")).unwrap_or_default();
    format!("{FD_NAME_PREFIX}{file}{}", address.to_string().replace('%', "%25").replace(':', "%3A"))
}

/// The address of a socket that was handed on under such a name, and the file of its path; `None` if
/// it is not one of ours.
fn parse_fd_name(name: &str) -> Option<(Address, Option<FileId>)> {
    let name = name.strip_prefix(FD_NAME_PREFIX)?;
    let file_in = |text: &str| {
        let (device, inode) = text.split_once('.')?;
        Some((device.parse().ok()?, inode.parse().ok()?))
    };
    let (file, address) = match name.split_once('@') {
        Some((front, back)) if file_in(front).is_some() => (file_in(front), back),
        Some(_) | None => (None, name),
    };
    Some((address.replace("%3A", ":").replace("%25", "%").parse().ok()?, file))
}

/// How the word begins that gives a reason.
const FAILURE_TAG: u8 = b'!';

/// Tells the predecessor, if there is one and nobody has taken up the line to it, why this
/// successor gives up.
pub(crate) fn report_failure(reason: &str) {
    if let Some((_, line)) =
        std::env::var(UPGRADE_VAR).ok().as_deref().and_then(UpgradeChannel::from_env_value)
    {
        line.send_failure(reason);
    }
}

/// A line between two masters. Its end tells each of the other's death at once.
#[derive(Debug)]
pub(crate) struct UpgradeChannel {
    fd: OwnedFd,
}

/// What comes over a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UpgradeMessage {
    /// The successor's workers are ready.
    Ready,
    /// The successor's program could not be started, with the kernel's error number.
    ExecFailed(i32),
    /// The successor has given up, for this reason.
    Failed(String),
    /// The other has gone.
    PeerExited,
}

impl UpgradeChannel {
    /// A new line: this process's end, and the end for a successor.
    ///
    /// # Errors
    /// `EMFILE` or `ENFILE`.
    pub(crate) fn new() -> io::Result<(Self, OwnedFd)> {
        let (end, other) = socket::seqpacket_pair()?;
        Ok((Self { fd: end }, other))
    }

    fn from_env_value(text: &str) -> Option<(Pid, Self)> {
        let (number, pid) = text.split_once(':')?;
        let end = socket::seqpacket_from_inherited_fd(number.parse().ok()?)?;
        Some((Pid::from_raw(pid.parse().ok()?), Self { fd: end }))
    }

    /// Says that the workers are ready.
    pub(crate) fn send_ready(&self) {
        // If nobody hears it, nobody needs it.
        let _ = file::wake_pipe(&self.fd);
    }

    /// Says why this successor gives up.
    pub(crate) fn send_failure(&self, reason: &str) {
        let mut message = vec![FAILURE_TAG];
        message.extend_from_slice(reason.as_bytes());
        message.resize(message.len().clamp(8, 4096), b' '); // longer than any other word
        let _ = socket::send(self.fd.as_fd(), &message);
    }

    /// What has come, if anything has.
    pub(crate) fn try_receive(&self) -> Option<UpgradeMessage> {
        let mut bytes = [0; 4096];
        match socket::receive(self.fd.as_fd(), &mut bytes) {
            Ok(0) => Some(UpgradeMessage::PeerExited),
            Ok(1) => Some(UpgradeMessage::Ready),
            Ok(4) => {
                let errno = [bytes[0], bytes[1], bytes[2], bytes[3]];
                Some(UpgradeMessage::ExecFailed(i32::from_ne_bytes(errno)))
            }
            Ok(n) if bytes[0] == FAILURE_TAG => Some(UpgradeMessage::Failed(
                String::from_utf8_lossy(&bytes[1..n]).trim().to_owned(),
            )),
            Ok(_) => None,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(_) => Some(UpgradeMessage::PeerExited),
        }
    }
}

/// Says over the successor's end that its program could not be started.
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
mod tests {
    use super::*;

    #[test]
    fn fd_names_with_colons_round_trip() {
        for text in ["127.0.0.1:80", "unix:/a%b:c%3A", "[::1]:1", "unix:@x", "fd://7"] {
            let address: Address = text.parse().unwrap();
            for file in [None, Some((0, 7)), Some((u64::MAX, u64::MAX))] {
                let name = encode_fd_name(&address, file);
                assert!(!name.contains(':'));
                assert_eq!(parse_fd_name(&name), Some((address.clone(), file)));
            }
        }
        assert_eq!(parse_fd_name("web"), None);
    }

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
}
