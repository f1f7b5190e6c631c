//! What is done about a listener that another process has spoiled: it is shared with all who inherit it.

use std::io;
use std::os::fd::AsFd;

use super::bind::Origin;
use super::{Listener, ListenerState};
use crate::os::listener_options::Restored;
use crate::os::{listening, socket};

impl Listener {
    /// Restores the options that a worker may have changed, while clients can connect.
    pub(crate) fn restore_options(&self) -> Restored {
        let is_open = self.state() == ListenerState::Open;
        if is_open { self.options.restore(self.fd.as_fd()) } else { Restored::default() }
    }

    /// Restores how many connections may wait, which a worker may have changed, while clients can connect.
    /// That of an inherited socket is not known.
    pub(crate) fn restore_backlog(&self, backlog: u32) {
        if self.state() == ListenerState::Open && !matches!(self.origin, Origin::Inherited) {
            let _ = listening::set_backlog(self.fd.as_fd(), backlog); // it listens, so it does not fail
        }
    }

    /// Listens again after it [was shut down](Self::was_shut_down). A unix socket cannot.
    ///
    /// # Errors
    /// From listen(2), or what to do about a unix socket.
    pub(crate) fn listen_again(&self, backlog: u32) -> io::Result<()> {
        listening::set_backlog(self.fd.as_fd(), backlog)?;
        let name = socket::local_address(self.fd.as_fd());
        if name != self.name {
            // The kernel had chosen its port.
            return Err(io::Error::other(format!("it listens on {name} now; restart")));
        }
        if self.was_shut_down() {
            let remedy =
                if matches!(self.origin, Origin::Path(_)) { "send SIGHUP" } else { "restart" };
            return Err(io::Error::other(format!("the socket cannot listen again; {remedy}")));
        }
        Ok(())
    }
}
