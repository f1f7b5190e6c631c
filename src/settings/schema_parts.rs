//! The parts of which the JSON Schema of an option is made.

use serde_json::{Value, json};

/// Returns the schema of one value of any type.
pub(super) fn scalar() -> Value {
    json!({ "$ref": "#/$defs/scalar" })
}

/// Returns the schema of a whole number, written as a number or as digits.
pub(super) fn integer(min: impl Into<Value>, max: impl Into<Value>) -> Value {
    let (min, max): (Value, Value) = (min.into(), max.into());
    any_of([json!({ "type": "integer", "minimum": min, "maximum": max }), pattern("^-?[0-9]+$")])
}

/// Returns the schema of a text that this regular expression matches.
pub(super) fn pattern(pattern: &str) -> Value {
    json!({ "type": "string", "pattern": pattern })
}

/// Returns the schema of a value that one of these accepts.
pub(super) fn any_of(schemas: impl IntoIterator<Item = Value>) -> Value {
    json!({ "anyOf": schemas.into_iter().collect::<Vec<_>>() })
}

/// Returns the schema of a value that variables may be part of.
pub(super) fn or_variable(schema: Value) -> Value {
    any_of([schema, json!({ "$ref": "#/$defs/variable" })])
}
