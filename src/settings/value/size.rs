//! Sizes as values, in bytes.

use serde_json::{Value, json};

use super::ValueParser;
use crate::duration::digits;
use crate::settings::schema_parts;
use crate::settings::types::CoreSize;

/// A number of bytes, plain or with `K`, `M` or `G` (powers of 1024, upper or lower case).
pub(in crate::settings) struct SizeValue {
    pub(in crate::settings) min: u64,
    pub(in crate::settings) max: u64,
}

impl ValueParser for SizeValue {
    type Out = u64;

    fn parse(&self, text: &str) -> Result<u64, String> {
        let (number, shift) = match text.as_bytes().last() {
            Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
            Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
            Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
            _ => (text, 0),
        };
        let Some(number) = digits(number) else {
            return Err("is not a size: give bytes, or a number with K, M or G, such as 64K".into());
        };
        let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
        match bytes {
            Some(bytes) if self.min <= bytes && bytes <= self.max => Ok(bytes),
            _ => {
                let (min, max) = (self.format(&self.min), self.format(&self.max));
                Err(format!("is out of bounds: give a size from {min} to {max}"))
            }
        }
    }

    fn json_schema(&self) -> Value {
        schema_parts::any_of([
            schema_parts::integer(self.min, self.max),
            schema_parts::pattern("^[0-9]+[KMGkmg]?$"),
        ])
    }

    fn format(&self, value: &u64) -> String {
        for (unit, shift) in [("G", 30), ("M", 20), ("K", 10)] {
            if *value > 0 && value.is_multiple_of(1 << shift) {
                return format!("{}{unit}", value >> shift);
            }
        }
        value.to_string()
    }
}

/// The size of a core dump: a number of bytes as in [`SizeValue`], or `unlimited`.
pub(in crate::settings) struct CoreSizeValue;

/// Exceeds any memory, and is below `RLIM_INFINITY`.
const CORE_SIZE_BYTES: SizeValue = SizeValue { min: 0, max: 1 << 60 };

impl ValueParser for CoreSizeValue {
    type Out = CoreSize;

    fn parse(&self, text: &str) -> Result<CoreSize, String> {
        if text == "unlimited" {
            return Ok(CoreSize::Unlimited);
        }
        CORE_SIZE_BYTES
            .parse(text)
            .map(CoreSize::Bytes)
            .map_err(|reason| format!("{reason}, or unlimited"))
    }

    fn json_schema(&self) -> Value {
        schema_parts::any_of([CORE_SIZE_BYTES.json_schema(), json!({ "const": "unlimited" })])
    }

    fn format(&self, value: &CoreSize) -> String {
        match value {
            CoreSize::Unlimited => "unlimited".into(),
            CoreSize::Bytes(bytes) => CORE_SIZE_BYTES.format(bytes),
        }
    }
}
