//! What a method is told, and how it reads its arguments and writes its result.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::arguments::{NO_ARRAY, Params};
use super::error::Error;
use crate::app::{DeadlineExtender, WorkerInfo};

/// One call: its parameters, who makes it, and where it is answered.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    pub(super) params: Params<'a>,
    pub(super) peer: &'a Option<SocketAddr>,
    pub(super) worker: &'a WorkerInfo,
    pub(super) extender: &'a DeadlineExtender<'a>,
}

impl<'a> Call<'a> {
    /// The worker that answers.
    pub fn worker(&self) -> &'a WorkerInfo {
        self.worker
    }

    /// The caller's address, for TCP; a unix socket's client has none.
    pub fn peer(&self) -> Option<SocketAddr> {
        *self.peer
    }

    /// Asks for more time: the method needs until so long from now, at least. At most an hour, but it
    /// may ask again, as often as there is progress. Until then the worker is not taken for hung on
    /// its account.
    pub fn extend_deadline(&self, time: Duration) {
        self.extender.extend_deadline(time);
    }

    /// The arguments, which may borrow from the message: a tuple such as `(&str, u64)`, `()` if
    /// there are none, a struct with as many fields, or a sequence.
    ///
    /// # Errors
    /// They do not fit the type, and the caller should be told so.
    #[inline(always)] // or they would go through memory, which costs as much as reading them
    pub fn arguments<P: Deserialize<'a>>(&self) -> Result<P, Error> {
        match P::deserialize(self.params) {
            Ok(arguments) => Ok(arguments),
            Err(error) => Err(Error::arguments(error)),
        }
    }

    /// How many arguments there are, and their encoding, one after the other.
    ///
    /// # Errors
    /// The parameters are no array.
    pub fn encoded_arguments(&self) -> Result<(usize, &'a [u8]), Error> {
        self.params.elements().ok_or_else(|| Error::arguments(NO_ARRAY))
    }
}

/// Where a method writes its result: exactly one value.
pub struct ResultWriter<'a> {
    pub(super) out: &'a mut Vec<u8>,
}

impl ResultWriter<'_> {
    /// Writes a value; structs become maps.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn value(&mut self, value: &impl Serialize) -> Result<(), Error> {
        rmp_serde::encode::write_named(self.out, value).map_err(Error::unserializable)
    }

    /// Writes a value, or a part of one, that is encoded already.
    pub fn encoded(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }
}
