//! How many clients of an endpoint may wait at a time. Pure.

use std::sync::Arc;

use super::failure::failure;
use crate::http::Response;

/// How many clients of one endpoint may wait for an answer or for events, beside those that do not wait.
pub(super) const WAITING_MAX: usize = 16;

/// The places of clients that wait. A waiting client keeps its place until it is answered or has gone:
/// no new client takes it. So a client that would wait is refused if all are taken.
#[derive(Clone, Default)]
pub(super) struct WaitPlaces(Arc<()>);

/// One place. Dropping it frees it.
pub(super) struct WaitPlace(#[expect(dead_code, reason = "held, not read")] Arc<()>);

impl WaitPlaces {
    /// Takes a place, if one is free.
    ///
    /// # Errors
    /// The response to a client for which there is none.
    pub(super) fn take(&self) -> Result<WaitPlace, Response> {
        if Arc::strong_count(&self.0) <= WAITING_MAX {
            return Ok(WaitPlace(Arc::clone(&self.0)));
        }
        Err(failure(503, &format!("{WAITING_MAX} clients wait already")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_is_free_again_once_it_is_dropped() {
        let places = WaitPlaces::default();
        let mut taken: Vec<_> = (0..WAITING_MAX).map(|_| places.take().ok().unwrap()).collect();
        assert_eq!(places.take().err().unwrap().code(), 503);
        taken.pop();
        assert!(places.take().is_ok());
    }
}
