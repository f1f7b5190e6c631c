//! The call that a method gets: its arguments, and the writer of its result.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::arguments::{NO_ARRAY, Params};
use super::error::Error;
use crate::app::{UnitHandle, WorkerInfo};

/// One call: its parameters, its client and its worker.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    pub(super) params: Params<'a>,
    pub(super) peer: &'a Option<SocketAddr>,
    pub(super) worker: &'a WorkerInfo,
    pub(super) unit: &'a UnitHandle<'a>,
}

impl<'a> Call<'a> {
    /// Returns the worker that answers.
    pub fn worker(&self) -> &'a WorkerInfo {
        self.worker
    }

    /// Returns the client's address for TCP; none for a unix socket.
    pub fn peer(&self) -> Option<SocketAddr> {
        *self.peer
    }

    /// Extends the deadline of the call to `time` from now, at most one hour. Call it again while there
    /// is progress. Until then, the call does not count as hung.
    pub fn extend_deadline(&self, time: Duration) {
        self.unit.extend_deadline(time);
    }

    /// Deserializes the arguments, which may borrow from the message: into a tuple such as
    /// `(&str, u64)`, `()` if there are none, a struct with as many fields, or a sequence.
    ///
    /// # Errors
    /// They do not fit the type. Return this error to the caller.
    #[inline(always)] // otherwise they are copied through memory, which costs as much as reading them
    pub fn arguments<P: Deserialize<'a>>(&self) -> Result<P, Error> {
        match P::deserialize(self.params) {
            Ok(arguments) => Ok(arguments),
            Err(error) => Err(Error::arguments(error)),
        }
    }

    /// Returns the number of arguments, and their concatenated encoding.
    ///
    /// # Errors
    /// The parameters are not an array.
    pub fn encoded_arguments(&self) -> Result<(usize, &'a [u8]), Error> {
        self.params.elements().ok_or_else(|| Error::arguments(NO_ARRAY))
    }
}

/// Writes the result of a method: exactly one value.
pub struct ResultWriter<'a> {
    pub(super) out: &'a mut Vec<u8>,
}

impl ResultWriter<'_> {
    /// Writes a value; structs become maps.
    ///
    /// # Errors
    /// The value cannot be encoded.
    pub fn value(&mut self, value: &impl Serialize) -> Result<(), Error> {
        rmp_serde::encode::write_named(self.out, value).map_err(Error::unserializable)
    }

    /// Writes an encoded value, or a part of one.
    pub fn encoded(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }
}
