//! Values of the access log: its format, its share, and the name of a header field.

use serde_json::{Value, json};

use super::ValueParser;
use crate::duration::digits;
use crate::log::{AccessFormat, SampleShare};
use crate::settings::schema_parts;

/// The format of records.
pub(in crate::settings) struct AccessFormatValue;

impl ValueParser for AccessFormatValue {
    type Out = AccessFormat;

    fn parse(&self, text: &str) -> Result<AccessFormat, String> {
        AccessFormat::parse(text)
    }

    fn format(&self, value: &AccessFormat) -> String {
        value.text().to_owned()
    }
}

/// A share from 0 to 1, with 6 decimals at most.
pub(in crate::settings) struct SampleValue;

impl ValueParser for SampleValue {
    type Out = SampleShare;

    fn parse(&self, text: &str) -> Result<SampleShare, String> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let parse = |text: &str| digits(text).and_then(|text| text.parse::<u32>().ok());
        let share = match (parse(whole), parse(decimals)) {
            (Some(whole @ 0..=1), Some(part)) if decimals.len() <= 6 => {
                SampleShare::from_millionths(
                    whole * 1_000_000 + part * 10_u32.pow(6 - decimals.len() as u32),
                )
            }
            _ => None,
        };
        share.ok_or_else(|| {
            "is not a share: give a number from 0 to 1 with at most 6 decimals, such as 0.01".into()
        })
    }

    fn json_schema(&self) -> Value {
        schema_parts::any_of([
            json!({ "type": "number", "minimum": 0, "maximum": 1 }),
            schema_parts::pattern("^[01](\\.[0-9]{1,6})?$"),
        ])
    }

    fn format(&self, value: &SampleShare) -> String {
        match value.millionths() {
            1_000_000 => "1".into(),
            0 => "0".into(),
            part => format!("0.{part:06}").trim_end_matches('0').to_owned(),
        }
    }
}

/// The name of a header field: a token (RFC 9110, section 5.6.2).
pub(in crate::settings) struct FieldNameValue;

impl ValueParser for FieldNameValue {
    type Out = String;

    fn parse(&self, text: &str) -> Result<String, String> {
        let is_token =
            |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if text.is_empty() || text.len() > 64 || !text.bytes().all(is_token) {
            return Err("is not the name of a header field, such as X-Request-Id".into());
        }
        Ok(text.to_owned())
    }

    fn format(&self, value: &String) -> String {
        value.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_is_a_decimal_from_0_to_1() {
        for (text, millionths, shown) in [
            ("1", 1_000_000, "1"),
            ("1.0", 1_000_000, "1"),
            ("0", 0, "0"),
            ("0.5", 500_000, "0.5"),
            ("0.010", 10_000, "0.01"),
            ("0.000001", 1, "0.000001"),
        ] {
            let share = SampleValue.parse(text).unwrap();
            assert_eq!(
                (share.millionths(), SampleValue.format(&share).as_str()),
                (millionths, shown)
            );
        }
        for text in ["", ".5", "1.000001", "2", "-0.1", "0.0000001", "50%", "0,5", "1e-2", "0."] {
            assert!(SampleValue.parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn field_name_is_a_token() {
        assert_eq!(FieldNameValue.parse("X-Request-Id").unwrap(), "X-Request-Id");
        for text in ["", "a b", "a:", "é", &"x".repeat(65)] {
            assert!(FieldNameValue.parse(text).is_err(), "{text}");
        }
    }
}
