//! What a program inherits from the process that started it: listening sockets, by the protocol of systemd
//! (sd_listen_fds(3)).

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::sync::Arc;

use super::bind::Owner;
use super::{ListenError, Listener};
use crate::address::Address;
use crate::os::process::{self, Pid};

/// The number of the first socket.
const FIRST_LISTEN_FD: RawFd = process::LISTEN_FDS_START;
/// Names the variable by which a new master inherits the channel to the old one; see
/// `arbiter/upgrade/channel.rs`.
pub(crate) const UPGRADE_VAR: &str = "OSTLER_UPGRADE";
/// What the names of sockets begin with that were bound by a master of this program.
const FD_NAME_PREFIX: &str = "ostler@";
/// What stands in such a name for a socket that no master has bound.
const INHERITED: &str = "inherited";
const ENV_VARS: [&str; 3] = ["LISTEN_PID", LISTEN_FDS_VAR, "LISTEN_FDNAMES"];

/// The variable with the number of inherited sockets.
pub(crate) const LISTEN_FDS_VAR: &str = "LISTEN_FDS";

/// What was handed over.
#[derive(Debug, Default)]
pub(crate) struct InheritedFds {
    /// The sockets.
    pub(crate) listeners: Vec<Arc<Listener>>,
    /// The names of sockets that took no connections any more, and are closed.
    pub(crate) ended: Vec<String>,
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
        let [pid, count, names] = ENV_VARS.map(|name| std::env::var(name).ok());
        ENV_VARS.iter().for_each(|name| process::unset_env(name));
        let mut inherited = Self::default();
        let (Some(pid), Some(count)) = (pid, count) else { return Ok(inherited) };
        let (Ok(pid), Ok(count)) = (pid.parse::<i32>(), count.parse::<u64>()) else {
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
        // More sockets than that cannot be open; the first that is not is an error.
        let count = RawFd::try_from(count).unwrap_or(RawFd::MAX - FIRST_LISTEN_FD);
        for offset in 0..count.min(RawFd::MAX - FIRST_LISTEN_FD) {
            let name = names.get(offset as usize).copied();
            let ours = name.and_then(parse_fd_name);
            match super::adopt_inherited(FIRST_LISTEN_FD + offset, ours)? {
                Some(listener) => inherited.listeners.push(Arc::new(listener)),
                None => inherited.ended.extend(name.map(str::to_owned)),
            }
        }
        Ok(inherited)
    }
}

/// Returns the environment variables that hand `listeners` to a new master, which finds them from
/// descriptor 3 on. Call it in the process that becomes the new master: `LISTEN_PID` names it.
pub(crate) fn listen_env_vars(listeners: &[&Arc<Listener>]) -> Vec<(OsString, OsString)> {
    let names: Vec<String> = listeners.iter().map(|listener| fd_name(listener)).collect();
    let values = [Pid::this().to_string(), listeners.len().to_string(), names.join(":")];
    ENV_VARS.iter().map(OsString::from).zip(values.map(OsString::from)).collect()
}

/// The name under which a socket is handed on. If it has a path of ours, the name also tells to which
/// file that leads as long as it is ours: `ostler@DEVICE.INODE@ADDRESS`. That of a socket which this program
/// has not bound is `ostler@inherited@ADDRESS`.
pub(crate) fn fd_name(listener: &Listener) -> String {
    encode_fd_name(listener.address(), listener.owner())
}

/// A name may not hold the colon that separates names.
fn encode_fd_name(address: &Address, owner: Owner) -> String {
    let owner = match owner {
        Owner::Ours(None) => String::new(),
        Owner::Ours(Some((device, inode))) => format!("{device}.{inode}@"),
        Owner::Other => format!("{INHERITED}@"),
    };
    let address = address.to_string().replace('%', "%25").replace(':', "%3A");
    format!("{FD_NAME_PREFIX}{owner}{address}")
}

/// The address of a socket that was handed on under such a name, and whose it is; `None` if the name is
/// another one.
fn parse_fd_name(name: &str) -> Option<(Address, Owner)> {
    let name = name.strip_prefix(FD_NAME_PREFIX)?;
    let file_in = |text: &str| {
        let (device, inode) = text.split_once('.')?;
        Some((device.parse().ok()?, inode.parse().ok()?))
    };
    let (owner, address) = match name.split_once('@') {
        Some((INHERITED, back)) => (Owner::Other, back),
        Some((front, back)) if file_in(front).is_some() => (Owner::Ours(file_in(front)), back),
        Some(_) | None => (Owner::Ours(None), name),
    };
    Some((address.replace("%3A", ":").replace("%25", "%").parse().ok()?, owner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fd_names_with_colons_round_trip() {
        for text in ["127.0.0.1:80", "unix:/a%b:c%3A", "[::1]:1", "unix:@x", "fd://7"] {
            let address: Address = text.parse().unwrap();
            let files = [None, Some((0, 7)), Some((u64::MAX, u64::MAX))].map(Owner::Ours);
            for owner in files.into_iter().chain([Owner::Other]) {
                let name = encode_fd_name(&address, owner);
                assert!(!name.contains(':'));
                assert_eq!(parse_fd_name(&name), Some((address.clone(), owner)));
            }
        }
        assert_eq!(parse_fd_name("web"), None);
    }
}
