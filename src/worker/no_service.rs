//! What stands in for a service or a connection that does not exist.

use std::time::Duration;

use crate::app::{ClientInfo, Connection, ConnectionContext, Next, ReadTimeout, Service};

/// The service of an app that is a job.
pub(crate) struct NoService;

impl Service for NoService {
    fn accept(&self, _: &ClientInfo) -> Box<dyn Connection + '_> {
        Box::new(ClosedConnection)
    }
}

/// The connection of a client for which the service could make none.
pub(super) struct ClosedConnection;

impl Connection for ClosedConnection {
    fn receive(&mut self, _: &[u8], _: &mut ConnectionContext<'_>) -> Next {
        Next::Close
    }

    fn resume(&mut self, _: &mut ConnectionContext<'_>) -> Next {
        Next::Close
    }

    fn on_timeout(&mut self, _: &mut ConnectionContext<'_>) -> Next {
        Next::Close
    }

    fn drain(&mut self, _: &mut ConnectionContext<'_>) -> Next {
        Next::Close
    }

    fn timeout(&self) -> ReadTimeout {
        ReadTimeout::Idle(Duration::from_millis(1))
    }
}
