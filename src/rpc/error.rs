//! Errors that a caller gets for a failed call.

use std::borrow::Cow;

use rmp::encode::write_str;
use serde::Serialize;

/// Maximum number of characters of the method's name in an error.
const QUOTE_CHARS: usize = 64;

/// The error of a call: a text, or any other value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Text(Cow<'static, str>),
    Encoded(Vec<u8>),
}

impl Error {
    /// Creates an error from a text. The caller reads it, so it must not contain secrets.
    pub fn new(text: impl Into<Cow<'static, str>>) -> Self {
        Self(Kind::Text(text.into()))
    }

    /// Creates an error from any value, such as a number or a map. Nil, which would mean no error, and
    /// values that cannot be encoded are replaced by a text.
    pub fn value(value: &impl Serialize) -> Self {
        match rmp_serde::to_vec_named(value) {
            Ok(encoded) if encoded != [NIL] => Self(Kind::Encoded(encoded)),
            Ok(_) => Self::new("the method failed"),
            Err(error) => Self::new(format!("the method failed: {error}")),
        }
    }

    /// Creates the error for arguments that do not fit the method.
    pub fn arguments(reason: impl std::fmt::Display) -> Self {
        Self::new(format!("bad arguments: {reason}"))
    }

    pub(super) fn unknown(method: &[u8]) -> Self {
        let name = String::from_utf8_lossy(method);
        let quote: String = name.chars().take(QUOTE_CHARS).collect();
        Self::new(format!("unknown method {quote:?}"))
    }

    pub(super) fn panicked() -> Self {
        Self::new("the method panicked")
    }

    pub(super) fn unserializable(reason: impl std::fmt::Display) -> Self {
        Self::new(format!("failed to encode the result: {reason}"))
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match &self.0 {
            // A write to a Vec cannot fail.
            Kind::Text(text) => drop(write_str(out, text)),
            Kind::Encoded(value) => out.extend_from_slice(value),
        }
    }
}

/// The encoding of nil.
pub(super) const NIL: u8 = 0xc0;

impl From<&'static str> for Error {
    fn from(text: &'static str) -> Self {
        Self::new(text)
    }
}

impl From<String> for Error {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}
