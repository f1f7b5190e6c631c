//! What a caller is told when its call fails.

use std::borrow::Cow;

use rmp::encode::write_str;
use serde::Serialize;

/// How much of a caller's own words it is told.
const QUOTE_CHARS: usize = 64;

/// The error of an answer: a text, or any other value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Text(Cow<'static, str>),
    Encoded(Vec<u8>),
}

impl Error {
    /// An error that says so. The caller reads it, so it must hold no secrets.
    pub fn new(text: impl Into<Cow<'static, str>>) -> Self {
        Self(Kind::Text(text.into()))
    }

    /// An error that is any value, such as a number or a map. Nil, which means that there is no
    /// error, and what cannot be encoded become a text.
    pub fn value(value: &impl Serialize) -> Self {
        match rmp_serde::to_vec_named(value) {
            Ok(encoded) if encoded != [NIL] => Self(Kind::Encoded(encoded)),
            Ok(_) => Self::new("the method failed"),
            Err(error) => Self::new(format!("the method failed: {error}")),
        }
    }

    /// The caller's arguments do not fit the method.
    pub fn arguments(why: impl std::fmt::Display) -> Self {
        Self::new(format!("bad arguments: {why}"))
    }

    pub(super) fn unknown(method: &[u8]) -> Self {
        let name = String::from_utf8_lossy(method);
        let quote: String = name.chars().take(QUOTE_CHARS).collect();
        Self::new(format!("unknown method {quote:?}"))
    }

    pub(super) fn panicked() -> Self {
        Self::new("the method panicked")
    }

    pub(super) fn unserializable(why: impl std::fmt::Display) -> Self {
        Self::new(format!("the result cannot be sent: {why}"))
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match &self.0 {
            // Memory takes any text that it holds already.
            Kind::Text(text) => drop(write_str(out, text)),
            Kind::Encoded(value) => out.extend_from_slice(value),
        }
    }
}

/// The value that stands for nothing.
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
