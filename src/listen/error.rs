//! The reasons why an address cannot be listened on.

use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;

use crate::address::Address;

/// Why an address cannot be listened on.
#[derive(Debug)]
pub enum ListenError {
    /// The host's name has no address.
    Resolve {
        /// The address.
        address: Address,
        /// The resolver's error.
        source: io::Error,
    },
    /// The kernel refused to bind the address or to listen there.
    Bind {
        /// The address.
        address: Address,
        /// The kernel's error.
        source: io::Error,
    },
    /// The path's mode or owner cannot be set.
    Access {
        /// The address.
        address: Address,
        /// The kernel's error.
        source: io::Error,
    },
    /// The path leads to something that is not a socket.
    NotASocket(PathBuf),
    /// Another process listens at the path.
    InUse(PathBuf),
    /// The inherited descriptor is not a listening stream socket.
    NotAListener(RawFd),
}

impl ListenError {
    /// Whether a socket has the address already.
    pub(crate) fn is_in_use(&self) -> bool {
        match self {
            Self::InUse(_) => true,
            Self::Bind { source, .. } => source.kind() == io::ErrorKind::AddrInUse,
            Self::Resolve { .. }
            | Self::Access { .. }
            | Self::NotASocket(_)
            | Self::NotAListener(_) => false,
        }
    }
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolve { address, .. } => write!(f, "failed to resolve the host of {address}"),
            Self::Bind { address, .. } => write!(f, "failed to listen on {address}"),
            Self::Access { address, .. } => {
                write!(
                    f,
                    "failed to set socket_mode, socket_user and socket_group of {address}; changing the owner requires root"
                )
            }
            Self::NotASocket(path) => write!(
                f,
                "failed to listen on unix:{}: the path exists and is not a socket; choose another path or remove it",
                path.display()
            ),
            Self::InUse(path) => write!(
                f,
                "failed to listen on unix:{}: another process is listening there",
                path.display()
            ),
            Self::NotAListener(number) => {
                write!(f, "failed to listen on fd://{number}: it is not a listening stream socket")
            }
        }
    }
}

impl std::error::Error for ListenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Resolve { source, .. }
            | Self::Bind { source, .. }
            | Self::Access { source, .. } => Some(source),
            Self::NotASocket(_) | Self::InUse(_) | Self::NotAListener(_) => None,
        }
    }
}
