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
const FIRST_SOCKET: RawFd = process::LISTEN_FDS_START;
/// Names the descriptor of the line and the pid of the other master: `7:1234`.
const UPGRADE: &str = "OSTLER_UPGRADE";
/// What the names of sockets begin with that were bound by a master of this program.
const OURS: &str = "ostler@";
const VARIABLES: [&str; 4] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", UPGRADE];

/// What was handed over.
#[derive(Debug, Default)]
pub(crate) struct Inheritance {
    /// The sockets.
    pub(crate) listeners: Vec<Arc<Listener>>,
    /// The master that this one is to succeed, with the line to it.
    pub(crate) predecessor: Option<(Pid, Line)>,
    /// What was handed over and makes no sense.
    pub(crate) warnings: Vec<String>,
}

impl Inheritance {
    /// Takes over what is meant for this process, and forgets the variables that tell of it, so
    /// that no child believes in them.
    ///
    /// # Errors
    /// A descriptor that was announced is not a listening stream socket.
    pub(crate) fn take() -> Result<Self, ListenError> {
        let [pid, count, names, upgrade] = VARIABLES.map(|name| std::env::var(name).ok());
        VARIABLES.iter().for_each(|name| process::unset_env(name));
        let predecessor = upgrade.as_deref().and_then(Line::take_over);
        let mut inheritance = Self { predecessor, ..Self::default() };
        let (Some(pid), Some(count)) = (pid, count) else { return Ok(inheritance) };
        let (Ok(pid), Ok(count)) = (pid.parse::<i32>(), count.parse::<u16>()) else {
            let warning = format!("LISTEN_PID={pid} LISTEN_FDS={count}: not numbers; ignored");
            inheritance.warnings.push(warning);
            return Ok(inheritance);
        };
        if pid != Pid::this().as_raw() {
            let warning = format!("LISTEN_PID={pid} is another process; its sockets are ignored");
            inheritance.warnings.push(warning);
            return Ok(inheritance);
        }
        let names: Vec<&str> =
            names.as_deref().map_or(Vec::new(), |names| names.split(':').collect());
        for offset in 0..RawFd::from(count.min(4096)) {
            let name = names.get(offset as usize).copied();
            let ours = name.and_then(meaning_of);
            let listener = super::adopt_inherited(FIRST_SOCKET + offset, ours)?;
            inheritance.listeners.push(Arc::new(listener));
        }
        Ok(inheritance)
    }
}

/// Whether this process was started by a master that it is to succeed.
pub(crate) fn is_successor() -> bool {
    std::env::var_os(UPGRADE).is_some()
}

/// The variables by which a successor is told of `sockets`, which it finds from [`FIRST_SOCKET`]
/// on, and of the line that follows them. To be called in the process that becomes the successor.
pub(crate) fn announce(
    listeners: &[&Arc<Listener>],
    predecessor: Pid,
) -> Vec<(OsString, OsString)> {
    let names: Vec<String> = listeners.iter().map(|listener| name_of(listener)).collect();
    let line = FIRST_SOCKET + listeners.len() as RawFd;
    let values = [
        Pid::this().to_string(),
        listeners.len().to_string(),
        names.join(":"),
        format!("{line}:{predecessor}"),
    ];
    VARIABLES.iter().map(OsString::from).zip(values.map(OsString::from)).collect()
}

/// The name under which a socket of ours is handed on. If it has a path, the name also tells to which
/// file that leads as long as it is ours: `ostler@DEVICE.INODE@ADDRESS`.
pub(crate) fn name_of(listener: &Listener) -> String {
    encode(listener.address(), listener.file_id())
}

/// A name may not hold the colon that separates names.
fn encode(address: &Address, file: Option<FileId>) -> String {
    let file = file.map(|(device, inode)| format!("{device}.{inode}@")).unwrap_or_default();
    format!("{OURS}{file}{}", address.to_string().replace('%', "%25").replace(':', "%3A"))
}

/// The address of a socket that was handed on under such a name, and the file of its path; `None` if
/// it is not one of ours.
fn meaning_of(name: &str) -> Option<(Address, Option<FileId>)> {
    let name = name.strip_prefix(OURS)?;
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
const REASON: u8 = b'!';

/// Tells the predecessor, if there is one and nobody has taken up the line to it, why this
/// successor gives up.
pub(crate) fn confess(reason: &str) {
    if let Some((_, line)) = std::env::var(UPGRADE).ok().as_deref().and_then(Line::take_over) {
        line.say_failed(reason);
    }
}

/// A line between two masters. Its end tells each of the other's death at once.
#[derive(Debug)]
pub(crate) struct Line {
    end: OwnedFd,
}

/// What comes over a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// The successor's workers are ready.
    Ready,
    /// The successor's program could not be started, with the kernel's error number.
    ExecFailed(i32),
    /// The successor has given up, for this reason.
    Failed(String),
    /// The other has gone.
    Gone,
}

impl Line {
    /// A new line: this process's end, and the end for a successor.
    ///
    /// # Errors
    /// `EMFILE` or `ENFILE`.
    pub(crate) fn new() -> io::Result<(Self, OwnedFd)> {
        let (end, other) = socket::seqpacket_pair()?;
        Ok((Self { end }, other))
    }

    fn take_over(text: &str) -> Option<(Pid, Self)> {
        let (number, pid) = text.split_once(':')?;
        let end = socket::seqpacket_from_inherited_fd(number.parse().ok()?)?;
        Some((Pid::from_raw(pid.parse().ok()?), Self { end }))
    }

    /// Says that the workers are ready.
    pub(crate) fn say_ready(&self) {
        // If nobody hears it, nobody needs it.
        let _ = file::wake_pipe(&self.end);
    }

    /// Says why this successor gives up.
    pub(crate) fn say_failed(&self, reason: &str) {
        let mut word = vec![REASON];
        word.extend_from_slice(reason.as_bytes());
        word.resize(word.len().clamp(8, 4096), b' '); // longer than any other word
        let _ = socket::send(self.end.as_fd(), &word);
    }

    /// What has come, if anything has.
    pub(crate) fn hear(&self) -> Option<Word> {
        let mut bytes = [0; 4096];
        match socket::receive(self.end.as_fd(), &mut bytes) {
            Ok(0) => Some(Word::Gone),
            Ok(1) => Some(Word::Ready),
            Ok(4) => {
                let errno = [bytes[0], bytes[1], bytes[2], bytes[3]];
                Some(Word::ExecFailed(i32::from_ne_bytes(errno)))
            }
            Ok(n) if bytes[0] == REASON => {
                Some(Word::Failed(String::from_utf8_lossy(&bytes[1..n]).trim().to_owned()))
            }
            Ok(_) => None,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(_) => Some(Word::Gone),
        }
    }
}

/// Says over the successor's end that its program could not be started.
pub(crate) fn confess_exec_failure(end: BorrowedFd<'_>, error: &io::Error) {
    let errno = error.raw_os_error().unwrap_or(0).to_ne_bytes();
    let _ = socket::send(end, &errno);
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }
}

impl AsRawFd for Line {
    fn as_raw_fd(&self) -> RawFd {
        self.end.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_their_separator() {
        for text in ["127.0.0.1:80", "unix:/a%b:c%3A", "[::1]:1", "unix:@x", "fd://7"] {
            let address: Address = text.parse().unwrap();
            for file in [None, Some((0, 7)), Some((u64::MAX, u64::MAX))] {
                let name = encode(&address, file);
                assert!(!name.contains(':'));
                assert_eq!(meaning_of(&name), Some((address.clone(), file)));
            }
        }
        assert_eq!(meaning_of("web"), None);
    }

    #[test]
    fn a_line_carries_words_and_the_end() {
        let (line, other) = Line::new().unwrap();
        assert_eq!(line.hear(), None);
        confess_exec_failure(other.as_fd(), &io::Error::from_raw_os_error(2));
        assert_eq!(line.hear(), Some(Word::ExecFailed(2)));
        Line { end: other }.say_ready();
        assert_eq!((line.hear(), line.hear()), (Some(Word::Ready), Some(Word::Gone)));
    }
}
