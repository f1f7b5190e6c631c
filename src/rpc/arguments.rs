//! Deserializes the parameters of a call. rmp-serde reads them, except small numbers among short values:
//! these are the most frequent parameters, and reading them here costs a fraction of the time.

use rmp::decode::read_array_len;
use rmp_serde::MSGPACK_EXT_STRUCT_NAME;
use rmp_serde::decode::Error;
use serde::de::{self, DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;

use super::error::NIL;
use super::scan;

/// The error for parameters that are not an array.
pub(super) const NO_ARRAY: &str = "not an array";

/// The parameters of a call: one encoded value, which any type reads as an array of arguments. `()`
/// reads an empty one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Params<'a> {
    /// The encoded value.
    pub(super) bytes: &'a [u8],
    /// Whether [`scan::flat_array`] has accepted it.
    pub(super) flat: bool,
}

impl<'de> Params<'de> {
    /// Returns the number of arguments, and their encoding; none if the value is not an array.
    pub(super) fn elements(self) -> Option<(usize, &'de [u8])> {
        let mut rest = self.bytes;
        let count = read_array_len(&mut rest).ok()?;
        Some((usize::try_from(count).ok()?, rest))
    }
}

impl<'de> Deserializer<'de> for Params<'de> {
    type Error = Error;

    #[inline]
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.flat {
            let mut values = ShortValues(&self.bytes[1..]);
            let value = visitor.visit_seq(&mut values)?;
            return if values.0.is_empty() { Ok(value) } else { Err(self.too_many(values)) };
        }
        match self.elements() {
            Some(_) => any(self.bytes, visitor),
            None => Err(de::Error::custom(NO_ARRAY)),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.elements() {
            Some((0, _)) => visitor.visit_unit(),
            Some((count, _)) => Err(de::Error::invalid_length(count, &"none")),
            None => Err(de::Error::custom(NO_ARRAY)),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
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

impl Params<'_> {
    #[cold]
    fn too_many(self, mut unread: ShortValues<'_>) -> Error {
        let (count, _) = self.elements().unwrap_or_default();
        let unread = std::iter::from_fn(|| unread.next()).count();
        Error::LengthMismatch(u32::try_from(count - unread).unwrap_or(u32::MAX))
    }
}

/// Creates rmp-serde's deserializer of one value.
fn whole(value: &[u8]) -> rmp_serde::Deserializer<rmp_serde::decode::ReadRefReader<'_, [u8]>> {
    rmp_serde::Deserializer::from_read_ref(value)
}

/// Deserializes a value that is not small. Not inlined, so that the code for small values can be.
#[inline(never)]
fn any<'de, V: Visitor<'de>>(value: &'de [u8], visitor: V) -> Result<V::Value, Error> {
    whole(value).deserialize_any(visitor)
}

/// The unread values of a flat array.
struct ShortValues<'de>(&'de [u8]);

impl<'de> ShortValues<'de> {
    #[inline]
    fn next(&mut self) -> Option<ShortValue<'de>> {
        let (value, rest) = self.0.split_at_checked(scan::short_value(self.0)?)?;
        self.0 = rest;
        Some(ShortValue(value))
    }
}

impl<'de> SeqAccess<'de> for ShortValues<'de> {
    type Error = Error;

    #[inline]
    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        match self.next() {
            Some(value) => seed.deserialize(value).map(Some),
            None => Ok(None),
        }
    }
}

/// A number, nil, a boolean, a short string or a short extension.
struct ShortValue<'de>(&'de [u8]);

impl<'de> Deserializer<'de> for ShortValue<'de> {
    type Error = Error;

    #[inline]
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match *self.0 {
            [number @ ..=0x7f] => visitor.visit_u8(number),
            _ => any(self.0, visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if *self.0 == [NIL] { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        match name {
            MSGPACK_EXT_STRUCT_NAME => whole(self.0).deserialize_newtype_struct(name, visitor),
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        whole(self.0).deserialize_unit_struct(name, visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        whole(self.0).deserialize_enum(name, variants, visitor)
    }

    fn deserialize_i128<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        whole(self.0).deserialize_i128(visitor)
    }

    fn deserialize_u128<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        whole(self.0).deserialize_u128(visitor)
    }

    fn is_human_readable(&self) -> bool {
        false
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf unit seq tuple
        tuple_struct map struct identifier ignored_any
    }
}
