//! Checks whether an address can be bound, without listening. Another process may use it already:
//! that is usual before a reload.

use std::fs;
use std::io;
use std::net::ToSocketAddrs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::error::ListenError;
use crate::address::Address;
use crate::os::file;
use crate::os::socket::{self, SocketAddress};

/// Whether another socket has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Availability {
    /// None is known of.
    Free,
    /// One has it: that of a master that runs, or another one.
    InUse,
}

/// Checks that the host is known and its addresses are of this machine, and that the path of a
/// socket can be created. An inherited descriptor is not checked: it may be given at the start only.
///
/// # Errors
/// Why the address cannot be bound.
pub(crate) fn check(address: &Address) -> Result<Availability, ListenError> {
    let failed = |source| ListenError::Bind { address: address.clone(), source };
    match address {
        Address::Tcp { host, port } => {
            let found = (host.as_str(), *port).to_socket_addrs();
            let found = found
                .map_err(|source| ListenError::Resolve { address: address.clone(), source })?;
            let (mut refusal, mut availability) = (None, None);
            for found in found {
                match socket::bind_to(&SocketAddress::Tcp(found)) {
                    // One address of several suffices: a machine may have no IPv6.
                    Ok(_) => availability = availability.or(Some(Availability::Free)),
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                        availability = Some(Availability::InUse);
                    }
                    Err(error) => refusal = Some(error),
                }
            }
            let refusal = || failed(refusal.unwrap_or_else(|| io::ErrorKind::NotFound.into()));
            availability.ok_or_else(refusal)
        }
        Address::Unix(path) => {
            match fs::symlink_metadata(path) {
                Ok(metadata) if !metadata.file_type().is_socket() => {
                    return Err(ListenError::NotASocket(path.clone()));
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                Ok(_) | Err(_) => (),
            }
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
            let checked = file::check_writable(dir.unwrap_or(Path::new("."))).map_err(failed);
            checked.map(|()| Availability::Free)
        }
        Address::Abstract(_) | Address::Fd(_) => Ok(Availability::Free),
    }
}
