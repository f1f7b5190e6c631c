//! Listening sockets: bound once by the master, shared by the workers, removed by the process that
//! owns them. This module must not depend on what is served over them.

pub(crate) mod activation;
mod bind;
mod error;
pub(crate) mod preflight;
mod restoring;
mod shared;
mod socket_path;
mod stream;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use crate::address::Address;
use crate::os::listener_options::ListenerOptions;
use crate::os::lookups::Lookups;
use crate::os::memory::MappingId;
use crate::os::passed_fds::UntrustedSocket;
use crate::os::{epoll, listening, socket};
pub use bind::Access;
use bind::{Origin, Owner};
pub use error::ListenError;
pub use shared::ListenerState;
pub(crate) use shared::ReusePortShard;
use shared::SharedState;
use socket_path::SocketPath;
pub use stream::{Stream, close_may_cut_off, peer_user};

/// A listening socket. It is nonblocking and shared with other processes: do not change its flags.
#[derive(Debug)]
pub struct Listener {
    fd: UntrustedSocket,
    address: Address,
    name: String,
    origin: Origin,
    /// What the master tells the workers, in shared memory.
    shared_state: SharedState,
    options: ListenerOptions,
}

/// Binds an address, or takes over an inherited descriptor. A host's name may have several addresses:
/// each of them gets a listener. `backlog` is how many connections may wait in the kernel. The stale
/// path of a server that has exited is replaced. A new path has the mode and the owner of `access`
/// before any client can connect to it.
///
/// # Errors
/// The address is in use, forbidden, not of this machine or not found; the owner of the path cannot
/// be changed.
pub fn bind(address: &Address, backlog: u32, access: Access) -> Result<Vec<Listener>, ListenError> {
    bind_with(&Lookups::Live, address, backlog, access)
}

/// Does what [`bind`] does, with the answers of `lookups`.
///
/// # Errors
/// Those of [`bind`].
pub(crate) fn bind_with(
    lookups: &Lookups,
    address: &Address,
    backlog: u32,
    access: Access,
) -> Result<Vec<Listener>, ListenError> {
    let sockets = bind::open(lookups, address, backlog, access)?.into_iter();
    sockets.map(|(fd, origin)| Listener::new(fd, address, origin)).collect()
}

/// Looks up the host of an address. Without one there is nothing to return.
///
/// # Errors
/// The host is not found.
pub(crate) fn look_up_host(
    lookups: &Lookups,
    address: &Address,
) -> Result<Vec<SocketAddr>, ListenError> {
    match address {
        Address::Tcp { host, port } => bind::resolve(lookups, address, host, *port),
        Address::Unix(_) | Address::Abstract(_) | Address::Fd(_) => Ok(Vec::new()),
    }
}

/// Takes over a listening socket from the parent process. `handed_on` is given if that was a master. If one
/// has bound it, this program owns the socket, and its path while that leads to this file. Otherwise other
/// processes may use the socket too. Returns `None` if an earlier master has bound
/// it, and it takes no connections any more: its address is then free.
///
/// # Errors
/// The descriptor is not a listening stream socket.
fn adopt_inherited(
    number: RawFd,
    handed_on: Option<(Address, Owner)>,
) -> Result<Option<Listener>, ListenError> {
    let as_given = Address::Fd(number);
    let refused = |source| ListenError::Bind { address: as_given.clone(), source };
    let is_bound_here = matches!(handed_on, Some((_, Owner::Ours(_))));
    if is_bound_here && socket::take_ended_listener(number).map_err(refused)? {
        return Ok(None);
    }
    let fd = socket::from_inherited_fd(number)
        .map_err(refused)?
        .ok_or(ListenError::NotAListener(number))?;
    let shared = SharedState::new(ListenerState::Open).map_err(refused)?;
    let name = socket::local_address(fd.as_fd());
    let options = match &handed_on {
        None => ListenerOptions::read(fd.as_fd(), false),
        Some((_, Owner::Ours(_))) => ListenerOptions::of_adopted(fd.as_fd()),
        // A worker may have changed them, and nobody has told what they were.
        Some((_, Owner::Other)) => Ok(ListenerOptions::default()),
    };
    let options = options.map_err(refused)?;
    options.restore(fd.as_fd());
    let origin = match &handed_on {
        None | Some((_, Owner::Other)) => Origin::Inherited,
        Some((Address::Unix(path), Owner::Ours(Some(file)))) => {
            Origin::Path(SocketPath::from_recorded(path.clone(), *file))
        }
        // One without a path, or whose path was replaced under an earlier master.
        Some((_, Owner::Ours(_))) => Origin::Bound,
    };
    let fd = UntrustedSocket::listener(fd);
    let address =
        handed_on.map(|(address, _)| address).or_else(|| name.parse().ok()).unwrap_or(as_given);
    Ok(Some(Listener { fd, address, name, origin, shared_state: shared, options }))
}

/// Returns the first listener of each address: with `reuse_port` there are several in a row.
pub(crate) fn one_per_address<'l>(
    listeners: impl Iterator<Item = &'l Listener>,
) -> Vec<&'l Listener> {
    let mut listeners: Vec<&Listener> = listeners.collect();
    listeners.dedup_by_key(|listener| listener.name());
    listeners
}

impl Listener {
    fn new(fd: OwnedFd, address: &Address, origin: Origin) -> Result<Self, ListenError> {
        let name = socket::local_address(fd.as_fd());
        let options = ListenerOptions::read(fd.as_fd(), matches!(origin, Origin::Bound));
        let fd = UntrustedSocket::listener(fd);
        match options.and_then(|it| Ok((it, SharedState::new(ListenerState::Open)?))) {
            Ok((options, shared_state)) => {
                Ok(Self { fd, address: address.clone(), name, origin, shared_state, options })
            }
            Err(source) => {
                if let Origin::Path(path) = &origin {
                    path.remove();
                }
                Err(ListenError::Bind { address: address.clone(), source })
            }
        }
    }

    /// Returns the address to which it is bound, such as `127.0.0.1:8000` or `unix:/run/x.sock`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Accepts one client; `None` if the accept queue is empty, or the socket does not listen yet.
    ///
    /// # Errors
    /// No resources for another connection now, such as `EMFILE`: pause, do not spin. `EINVAL`
    /// (`InvalidInput`): the socket has stopped listening for good, and no client can connect.
    pub fn accept(&self) -> io::Result<Option<(Stream, Option<SocketAddr>)>> {
        if self.state() == ListenerState::NotListening {
            return Ok(None);
        }
        let client = socket::accept(self.fd.as_fd())?;
        Ok(client.map(|(fd, address)| (Stream::new(fd), address)))
    }

    /// Adds it to an epoll instance with EPOLLEXCLUSIVE (Linux): a new connection wakes one waiting
    /// process, and not all. Level-triggered; its events carry `token`.
    ///
    /// With `reuse_port`, watch only the listeners assigned to the worker: one that does not listen
    /// yet is always ready. Before [`unwatch`](Self::unwatch) or the end of the worker's loop,
    /// accept once more: the kernel may have woken no other process for a client that has just
    /// connected.
    ///
    /// # Errors
    /// From epoll_ctl(2).
    pub fn watch(&self, epoll: &impl AsRawFd, token: usize) -> io::Result<()> {
        epoll::add_exclusive(epoll.as_raw_fd(), self.fd.as_fd(), token as u64)
    }

    /// Removes it from an epoll instance.
    ///
    /// # Errors
    /// From epoll_ctl(2).
    pub fn unwatch(&self, epoll: &impl AsRawFd) -> io::Result<()> {
        epoll::remove(epoll.as_raw_fd(), self.fd.as_fd())
    }

    /// Makes it nonblocking again, in case a program that shares it has made it blocking.
    ///
    /// # Errors
    /// From fcntl(2).
    pub(crate) fn set_nonblocking(&self) -> io::Result<()> {
        socket::set_nonblocking(self.fd.as_fd())
    }

    /// Whether no master has bound it.
    pub(crate) fn is_inherited(&self) -> bool {
        matches!(self.origin, Origin::Inherited)
    }

    /// Whether a service manager passed it, without its address or number in the settings.
    pub(crate) fn is_socket_activated(&self) -> bool {
        self.is_inherited() && !matches!(self.address, Address::Fd(_))
    }

    /// Returns whose it is, for the process to which it is handed on.
    fn owner(&self) -> Owner {
        match &self.origin {
            Origin::Path(path) => Owner::Ours(Some(path.file_id())),
            Origin::Bound => Owner::Ours(None),
            Origin::Inherited => Owner::Other,
        }
    }

    /// Returns the configured address.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Changes how many connections may wait in the kernel. Does nothing before it listens.
    ///
    /// # Errors
    /// From listen(2).
    pub(crate) fn set_backlog(&self, backlog: u32) -> io::Result<()> {
        match self.state() {
            ListenerState::NotListening => Ok(()), // listen(2) would start it
            ListenerState::Open | ListenerState::DrainBounded | ListenerState::DrainUnbounded => {
                listening::set_backlog(self.fd.as_fd(), backlog)
            }
        }
    }

    /// Binds another socket to this TCP address with SO_REUSEPORT. It listens after
    /// [`start_listening`](Self::start_listening).
    ///
    /// # Errors
    /// Those of [`bind`].
    pub(crate) fn bind_sibling(&self) -> Result<Self, ListenError> {
        let refused = |source| ListenError::Bind { address: self.address.clone(), source };
        let fd = socket::bind_reuseport(self.fd.as_fd()).map_err(refused)?;
        let shared = SharedState::new(ListenerState::NotListening).map_err(refused)?;
        let options = ListenerOptions::read(fd.as_fd(), true).map_err(refused)?;
        let (address, name) = (self.address.clone(), self.name.clone());
        let fd = UntrustedSocket::listener(fd);
        Ok(Self { fd, address, name, origin: Origin::Bound, shared_state: shared, options })
    }

    /// Starts to listen, unless it listens already.
    ///
    /// # Errors
    /// From listen(2).
    pub(crate) fn start_listening(&self, backlog: u32) -> io::Result<()> {
        if self.state() == ListenerState::NotListening {
            listening::set_backlog(self.fd.as_fd(), backlog)?;
            self.shared_state.set_state(ListenerState::Open);
        }
        Ok(())
    }

    /// Returns which workers the accept queue belongs to; `None` for all of them.
    pub(crate) fn shard(&self) -> Option<ReusePortShard> {
        self.shared_state.shard()
    }

    /// Changes which workers the accept queue belongs to; `None` for all of them. Returns whether
    /// that is a change.
    pub(crate) fn set_shard(&self, shard: Option<ReusePortShard>) -> bool {
        self.shared_state.set_shard(shard)
    }

    /// Returns the first generation whose workers have it; 0 if all have.
    pub(crate) fn first_generation(&self) -> u32 {
        self.shared_state.first_generation()
    }

    /// Sets the first generation whose workers have it.
    pub(crate) fn set_first_generation(&self, generation: u32) {
        self.shared_state.set_first_generation(generation);
    }

    /// Assigns the accept queue to the worker in a slot, in addition to the workers of its shard.
    /// Returns whether that is a change.
    pub(crate) fn assign_to(&self, slot: Option<usize>) -> bool {
        self.shared_state.assign_to(slot)
    }

    /// Whether it is one of several sockets at its address, each with workers of its own.
    pub fn is_sharded(&self) -> bool {
        self.shard().is_some()
    }

    /// Whether the worker in this slot accepts clients from here.
    pub(crate) fn is_assigned_to(&self, slot: usize) -> bool {
        let own = self.shard().is_none_or(|shard| shard.is_assigned_to(slot));
        self.state() != ListenerState::NotListening
            && (own || self.shared_state.assignee() == Some(slot))
    }

    /// Returns the mapping that a child must keep to read the state.
    pub(crate) fn mapping(&self) -> MappingId {
        self.shared_state.mapping()
    }

    /// Returns which clients can still connect. Unless it is [`Open`](ListenerState::Open), no
    /// later worker serves here, and a worker that exits empties the accept queue first.
    pub fn state(&self) -> ListenerState {
        self.shared_state.state()
    }

    /// Stops new connections, so that the accept queue comes to an end. A TCP address or an abstract
    /// name refuses them, and a path that this program owns is removed. An inherited socket may have
    /// other users, and stays as it is.
    ///
    /// # Errors
    /// From setsockopt(2).
    pub(crate) fn stop_accepting(&self) -> io::Result<()> {
        if self.state() == ListenerState::NotListening {
            return Ok(());
        }
        let bounded = match &self.origin {
            Origin::Bound if listening::is_tcp(self.fd.as_fd()) => {
                listening::refuse_new_connections(self.fd.as_fd()).map(|()| true)
            }
            Origin::Bound => {
                // A unix socket keeps its queue. But it is always readable from now on, so that only
                // accept(2) can tell whether a client waits.
                listening::shutdown_listener(self.fd.as_fd());
                Ok(false)
            }
            Origin::Inherited => Ok(false),
            Origin::Path(_) => {
                self.remove_path();
                Ok(true)
            }
        };
        self.shared_state.set_state(if matches!(bounded, Ok(true)) {
            ListenerState::DrainBounded
        } else {
            ListenerState::DrainUnbounded
        });
        bounded.map(|_| ())
    }

    /// Has all new clients of a SO_REUSEPORT group arrive at its first socket, so that the others can
    /// [stop accepting](Self::stop_accepting) before it.
    pub(crate) fn steer_group_to_first(&self) {
        if self.state() == ListenerState::Open && matches!(self.origin, Origin::Bound) {
            // EINVAL: it has no group.
            let _ = listening::steer_to_first_of_group(self.fd.as_fd());
        }
    }

    /// Shuts down a TCP listener in [`ListenerState::DrainBounded`] once its accept queue is empty.
    /// The address is then free. Returns whether that is done, or not needed.
    pub(crate) fn reject_new_connections(&self) -> bool {
        if self.state() != ListenerState::DrainBounded || !matches!(self.origin, Origin::Bound) {
            return true;
        }
        let empty = listening::accept_queue_length(self.fd.as_fd()).is_ok_and(|length| length == 0);
        if empty {
            listening::shutdown_listener(self.fd.as_fd());
        }
        empty
    }

    /// Frees its address after [`stop_accepting`](Self::stop_accepting), although workers that drain have
    /// the socket. Returns whether it is free.
    pub(crate) fn free_address(&self) -> bool {
        match self.origin {
            Origin::Bound if self.state() == ListenerState::DrainBounded => {
                self.reject_new_connections()
            }
            Origin::Bound => self.state() == ListenerState::NotListening,
            Origin::Path(_) | Origin::Inherited => true,
        }
    }

    /// Frees its TCP address, even if another process still has the socket. Call it at the end, when
    /// no worker is left.
    pub(crate) fn shut_down(&self) {
        if matches!(self.origin, Origin::Bound) && listening::is_tcp(self.fd.as_fd()) {
            listening::shutdown_listener(self.fd.as_fd());
        }
    }

    /// Whether another process has shut it down while it was meant to listen.
    pub(crate) fn was_shut_down(&self) -> bool {
        self.state() == ListenerState::Open && !listening::takes_new_connections(self.fd.as_fd())
    }

    /// Whether its path was removed or replaced, or is shut down, so that no new client can connect.
    pub(crate) fn path_was_replaced(&self) -> bool {
        match &self.origin {
            Origin::Path(path) => path.was_replaced() || self.was_shut_down(),
            // The path was gone already when this master got the socket.
            Origin::Bound => matches!(self.address, Address::Unix(_)),
            Origin::Inherited => false,
        }
    }

    /// Returns the path to which it was bound, if there is one.
    pub(crate) fn bound_path(&self) -> Option<&Path> {
        match (&self.origin, &self.address) {
            (Origin::Path(_), Address::Unix(path)) => Some(path),
            _ => None,
        }
    }

    /// Removes the path, if it has one that still leads to this socket.
    pub(crate) fn remove_path(&self) {
        if let Origin::Path(path) = &self.origin {
            path.remove();
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_fd().as_raw_fd()
    }
}
