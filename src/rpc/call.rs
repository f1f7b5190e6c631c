//! What a method is told, and how it reads its arguments and writes its result.

use std::net::SocketAddr;

use rmp::decode::read_array_len;
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, forward_to_deserialize_any};

use super::error::Error;
use super::scan;
use crate::app::Place;

const NO_ARRAY: &str = "they are no array";

/// One call: its parameters, who makes it, and where it is answered.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    pub(super) params: &'a [u8],
    pub(super) peer: &'a Option<SocketAddr>,
    pub(super) place: &'a Place,
}

impl<'a> Call<'a> {
    /// The worker that answers.
    pub fn place(&self) -> &'a Place {
        self.place
    }

    /// The caller's address, for TCP; a unix socket's client has none.
    pub fn peer(&self) -> Option<SocketAddr> {
        *self.peer
    }

    /// The arguments, which may borrow from the message: a tuple such as `(&str, u64)`, `()` if
    /// there are none, a struct with as many fields, or a sequence.
    ///
    /// # Errors
    /// They do not fit the type, and the caller should be told so.
    #[inline(always)] // or they would go through memory, which costs as much as reading them
    pub fn arguments<P: Deserialize<'a>>(&self) -> Result<P, Error> {
        if !scan::is_array(self.params) {
            return Err(Error::arguments(NO_ARRAY));
        }
        match P::deserialize(Arguments(self.params)) {
            Ok(arguments) => Ok(arguments),
            Err(error) => Err(Error::arguments(error)),
        }
    }

    /// How many arguments there are, and their encoding, one after the other.
    ///
    /// # Errors
    /// The parameters are no array.
    pub fn encoded_arguments(&self) -> Result<(usize, &'a [u8]), Error> {
        let mut rest = self.params;
        match read_array_len(&mut rest).map(usize::try_from) {
            Ok(Ok(count)) => Ok((count, rest)),
            _ => Err(Error::arguments(NO_ARRAY)),
        }
    }
}

/// An array of arguments, to be read by any type; `()` reads the empty one.
struct Arguments<'de>(&'de [u8]);

impl<'de> Deserializer<'de> for Arguments<'de> {
    type Error = rmp_serde::decode::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        rmp_serde::Deserializer::from_read_ref(self.0).deserialize_any(visitor)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match read_array_len(&mut &*self.0) {
            Ok(0) => visitor.visit_unit(),
            Ok(count) => Err(de::Error::invalid_length(count as usize, &"none")),
            Err(_) => Err(de::Error::custom(NO_ARRAY)),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    fn is_human_readable(&self) -> bool {
        false
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// Where a method writes its result: exactly one value.
pub struct Answer<'a> {
    pub(super) out: &'a mut Vec<u8>,
}

impl Answer<'_> {
    /// Writes a value; structs become maps.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn value(&mut self, value: &impl Serialize) -> Result<(), Error> {
        rmp_serde::encode::write_named(self.out, value).map_err(Error::unsendable)
    }

    /// Writes a value, or a part of one, that is encoded already.
    pub fn encoded(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }
}
