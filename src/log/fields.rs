//! The fields of a record: a builder for them, and the list of those that a record has.

use std::fmt;

use slog::{KV, Key, OwnedKVList, Record, Serializer};

/// Fields of one record, some of which may be absent. They follow the message:
/// `info!(log, "worker exited"; fields)`.
#[derive(Debug, Default)]
pub struct Fields(Vec<(&'static str, FieldValue)>);

#[derive(Debug)]
enum FieldValue {
    Number(i64),
    Text(String),
}

impl Fields {
    /// Creates an empty set of fields.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a number. A number above `i64::MAX` is shown as `i64::MAX`.
    #[must_use]
    pub fn number(mut self, key: &'static str, value: impl TryInto<i64>) -> Self {
        self.0.push((key, FieldValue::Number(value.try_into().unwrap_or(i64::MAX))));
        self
    }

    /// Adds a text.
    #[must_use]
    pub fn text(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.0.push((key, FieldValue::Text(value.into())));
        self
    }

    /// Calls `add` with the value, if there is one.
    #[must_use]
    pub fn optional<T>(self, value: Option<T>, add: impl FnOnce(Self, T) -> Self) -> Self {
        match value {
            Some(value) => add(self, value),
            None => self,
        }
    }
}

impl KV for Fields {
    fn serialize(&self, _: &Record<'_>, serializer: &mut dyn Serializer) -> slog::Result {
        for (key, value) in self.0.iter().rev() {
            // The last one first, as everywhere in slog.
            match value {
                FieldValue::Number(number) => serializer.emit_i64(key, *number)?,
                FieldValue::Text(text) => serializer.emit_str(key, text)?,
            }
        }
        Ok(())
    }
}

/// The fields of a record with their values as JSON, each key once.
#[derive(Default)]
pub(super) struct FieldMap {
    fields: Vec<(String, serde_json::Value)>,
}

impl FieldMap {
    /// Returns the fields of a record and of its logger, in the order in which they were given.
    pub(super) fn of_record(
        record: &Record<'_>,
        values: &OwnedKVList,
    ) -> impl Iterator<Item = (String, serde_json::Value)> + use<> {
        let mut map = Self::default();
        // A field that cannot be serialized is left out; the record is still written.
        let _ = record.kv().serialize(record, &mut map);
        let _ = values.serialize(record, &mut map);
        map.fields.into_iter().rev() // slog passes the last one first
    }

    /// Adds a field, unless the key exists.
    pub(super) fn insert_if_absent(&mut self, key: &str, value: impl Into<serde_json::Value>) {
        if self.fields.iter().all(|(known, _)| known != key) {
            self.fields.push((key.to_owned(), value.into()));
        }
    }

    /// Returns the fields in the order in which they were inserted.
    pub(super) fn into_fields(self) -> Vec<(String, serde_json::Value)> {
        self.fields
    }
}

impl Serializer for FieldMap {
    fn emit_arguments(&mut self, key: Key, value: &fmt::Arguments<'_>) -> slog::Result {
        self.insert_if_absent(key.as_ref(), value.to_string());
        Ok(())
    }

    fn emit_bool(&mut self, key: Key, value: bool) -> slog::Result {
        self.insert_if_absent(key.as_ref(), value);
        Ok(())
    }

    fn emit_f64(&mut self, key: Key, value: f64) -> slog::Result {
        self.insert_if_absent(key.as_ref(), value);
        Ok(())
    }

    fn emit_i64(&mut self, key: Key, value: i64) -> slog::Result {
        self.insert_if_absent(key.as_ref(), value);
        Ok(())
    }

    fn emit_u64(&mut self, key: Key, value: u64) -> slog::Result {
        self.insert_if_absent(key.as_ref(), value);
        Ok(())
    }

    fn emit_i32(&mut self, key: Key, value: i32) -> slog::Result {
        self.insert_if_absent(key.as_ref(), value);
        Ok(())
    }

    fn emit_u32(&mut self, key: Key, value: u32) -> slog::Result {
        self.insert_if_absent(key.as_ref(), value);
        Ok(())
    }

    fn emit_usize(&mut self, key: Key, value: usize) -> slog::Result {
        self.insert_if_absent(key.as_ref(), value);
        Ok(())
    }

    fn emit_str(&mut self, key: Key, value: &str) -> slog::Result {
        self.insert_if_absent(key.as_ref(), value);
        Ok(())
    }

    fn emit_none(&mut self, _: Key) -> slog::Result {
        Ok(())
    }
}
