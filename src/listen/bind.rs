//! Binding the configured addresses.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use super::error::ListenError;
use super::socket_path::{BindingLock, SocketPath, remove_stale_socket};
use crate::address::Address;
use crate::os::file::FileId;
use crate::os::lookups::Lookups;
use crate::os::{file, listening, socket};

/// Where a listening socket comes from.
#[derive(Debug)]
pub(super) enum Origin {
    /// Inherited; other processes may use it too.
    Inherited,
    /// Bound by this program to an address without a path.
    Bound,
    /// Bound by this program to a path.
    Path(SocketPath),
}

/// Whose a socket is that was handed on by a master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// A master has bound it; the file of its path as long as that is its own.
    Ours(Option<FileId>),
    /// Another program, such as a service manager.
    Other,
}

/// The access rights of a unix socket's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The bits of the path's mode, 0 to 0777, regardless of the umask.
    pub mode: u32,
    /// The user that owns the path; `None` for this process's own.
    pub user: Option<u32>,
    /// The group of the path; `None` for this process's own.
    pub group: Option<u32>,
}

impl Default for Access {
    /// Lets the owner and the group connect, and no other users.
    fn default() -> Self {
        Self { mode: 0o660, user: None, group: None }
    }
}

/// Opens the sockets of an address.
///
/// # Errors
/// The address is in use, forbidden, not of this machine or not found; the owner of the path cannot
/// be changed.
pub(super) fn open(
    lookups: &Lookups,
    address: &Address,
    backlog: u32,
    access: Access,
) -> Result<Vec<(OwnedFd, Origin)>, ListenError> {
    let refused = |source| ListenError::Bind { address: address.clone(), source };
    let (fd, origin) = match address {
        Address::Tcp { host, port } => {
            let sockets = listen_on_each(&resolve(lookups, address, host, *port)?, backlog);
            return Ok(sockets
                .map_err(refused)?
                .into_iter()
                .map(|fd| (fd, Origin::Bound))
                .collect());
        }
        Address::Abstract(bytes) => {
            let name = socket::SocketAddress::Abstract(bytes.clone());
            (socket::listen_on(&name, backlog).map_err(refused)?, Origin::Bound)
        }
        Address::Unix(path) => {
            let _lock = BindingLock::take(path, address)?;
            remove_stale_socket(path, address)?;
            let name = socket::SocketAddress::Path(path.clone(), access.mode);
            let fd = socket::bind_to(&name).map_err(refused)?;
            let bound_path = SocketPath::claim_current(path).map_err(refused)?;
            if let Err(error) = open_path(&fd, path, address, backlog, access) {
                bound_path.remove();
                return Err(error);
            }
            (fd, Origin::Path(bound_path))
        }
        Address::Fd(number) => match socket::from_inherited_fd(*number).map_err(refused)? {
            Some(fd) => (fd, Origin::Inherited),
            None => return Err(ListenError::NotAListener(*number)),
        },
    };
    Ok(vec![(fd, origin)])
}

/// Listens on all addresses of a host. Those that this machine does not have, such as IPv6 ones where
/// that is switched off, are left out, unless that are all.
fn listen_on_each(names: &[SocketAddr], backlog: u32) -> io::Result<Vec<OwnedFd>> {
    let mut sockets: Vec<OwnedFd> = Vec::new();
    let mut missing = io::Error::from(io::ErrorKind::NotFound);
    for name in names {
        let mut name = *name;
        if let Some(first) = sockets.first().filter(|_| name.port() == 0) {
            name.set_port(socket::local_port(first.as_fd())); // one port for all
        }
        match socket::listen_on(&socket::SocketAddress::Tcp(name), backlog) {
            Ok(fd) => sockets.push(fd),
            Err(error) if socket::is_not_of_this_machine(&error) => missing = error,
            Err(error) => return Err(error),
        }
    }
    if sockets.is_empty() { Err(missing) } else { Ok(sockets) }
}

/// Sets the access rights of a path that has just been bound, and listens there.
fn open_path(
    fd: &OwnedFd,
    path: &Path,
    address: &Address,
    backlog: u32,
    access: Access,
) -> Result<(), ListenError> {
    let Access { mode, user, group } = access;
    file::set_access(path, mode, user, group)
        .map_err(|source| ListenError::Access { address: address.clone(), source })?;
    listening::set_backlog(fd.as_fd(), backlog)
        .map_err(|source| ListenError::Bind { address: address.clone(), source })
}

/// Returns the addresses of a host.
pub(super) fn resolve(
    lookups: &Lookups,
    address: &Address,
    host: &str,
    port: u16,
) -> Result<Vec<SocketAddr>, ListenError> {
    let failed = |source| ListenError::Resolve { address: address.clone(), source };
    lookups.host(host, port).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(sockets: &[OwnedFd]) -> Vec<SocketAddr> {
        sockets.iter().map(|fd| socket::local_address(fd.as_fd()).parse().unwrap()).collect()
    }

    #[test]
    fn addresses_of_a_host_share_a_port() {
        let names = ["127.0.0.1:0", "127.0.0.3:0", "127.0.0.2:0"].map(|name| name.parse().unwrap());
        let bound = addresses(&listen_on_each(&names, 1).unwrap());
        assert_eq!(bound.iter().map(SocketAddr::ip).collect::<Vec<_>>(), names.map(|it| it.ip()));
        assert!(bound.iter().all(|it| it.port() == bound[0].port() && it.port() > 0), "{bound:?}");
    }

    #[test]
    fn addresses_of_other_machines_are_left_out() {
        // For documentation (RFC 5737): no machine has it.
        let names = ["192.0.2.1:0", "127.0.0.1:0"].map(|name| name.parse().unwrap());
        assert_eq!(addresses(&listen_on_each(&names, 1).unwrap()).len(), 1);
        let error = listen_on_each(&names[..1], 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
    }

    #[test]
    fn one_address_in_use_fails_them_all() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = taken.local_addr().unwrap();
        let names = [SocketAddr::from(([127, 0, 0, 2], taken.port())), taken];
        let error = listen_on_each(&names, 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
