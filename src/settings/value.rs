//! Parses one text into a value, and formats a value as a text. A parser knows one type of value and
//! its bounds. It must never know which option it serves or where the text came from.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde_json::{Value, json};

pub(super) use self::access_log::{AccessFormatValue, FieldNameValue, SampleValue};
pub(super) use self::path::{LogTargetValue, PathCheck, PathValue};
pub(super) use self::size::{CoreSizeValue, SizeValue};
use super::schema_parts;
use super::types::Workers;
use crate::address::Address;
use crate::duration::{self, digits};

mod access_log;
mod path;
mod size;

/// Converts one text to one value and back.
pub(super) trait ValueParser {
    /// The type of the value.
    type Out: PartialEq;

    /// Returns the value, or a reason that can follow the quoted text.
    fn parse(&self, text: &str) -> Result<Self::Out, String>;

    /// Returns the shortest usual text. [`ValueParser::parse`] turns it into the same value.
    fn format(&self, value: &Self::Out) -> String;

    /// Returns the JSON Schema of the texts that are accepted, or of more.
    fn json_schema(&self) -> Value {
        schema_parts::scalar()
    }

    /// Returns whether one list cannot contain both values.
    fn conflicts(&self, a: &Self::Out, b: &Self::Out) -> bool {
        a == b
    }

    /// Makes the paths in the value absolute. Override it if the value may contain a path.
    fn make_absolute(&self, _value: &mut Self::Out, _base_dir: &Path) {}

    /// Checks the paths in the value against the file system, without changing anything. On error,
    /// returns the path and a reason that can follow it.
    fn check_path(&self, _value: &Self::Out) -> Result<(), (PathBuf, String)> {
        Ok(())
    }
}

/// A whole number within bounds.
pub(super) struct IntegerValue<T> {
    pub(super) noun: &'static str,
    pub(super) min: T,
    pub(super) max: T,
}

impl<T: FromStr + PartialOrd + fmt::Display + Copy + Into<Value>> ValueParser for IntegerValue<T> {
    type Out = T;

    fn parse(&self, text: &str) -> Result<T, String> {
        match digits(text).and_then(|text| text.parse::<T>().ok()) {
            Some(number) if self.min <= number && number <= self.max => Ok(number),
            _ => {
                let Self { noun, min, max } = self;
                Err(format!("is not {noun}: give a number from {min} to {max}"))
            }
        }
    }

    fn json_schema(&self) -> Value {
        schema_parts::integer(self.min, self.max)
    }

    fn format(&self, value: &T) -> String {
        value.to_string()
    }
}

/// A whole number within bounds that may be negative.
pub(super) struct SignedIntegerValue {
    pub(super) noun: &'static str,
    pub(super) min: i32,
    pub(super) max: i32,
}

impl ValueParser for SignedIntegerValue {
    type Out = i32;

    fn parse(&self, text: &str) -> Result<i32, String> {
        let unsigned = text.strip_prefix('-').unwrap_or(text);
        match digits(unsigned).and_then(|_| text.parse().ok()) {
            Some(number) if self.min <= number && number <= self.max => Ok(number),
            _ => {
                let Self { noun, min, max } = self;
                Err(format!("is not {noun}: give a number from {min} to {max}"))
            }
        }
    }

    fn json_schema(&self) -> Value {
        schema_parts::integer(self.min, self.max)
    }

    fn format(&self, value: &i32) -> String {
        value.to_string()
    }
}

/// The number of workers, a range of numbers, or `auto`.
pub(super) struct WorkerCountValue;

/// The shared counters of the workers have no room for more.
const WORKERS_MAX: usize = 4096;

impl ValueParser for WorkerCountValue {
    type Out = Workers;

    fn parse(&self, text: &str) -> Result<Workers, String> {
        if text == "auto" {
            return Ok(Workers::Auto);
        }
        let number = |text: &str| digits(text).and_then(|text| text.parse::<usize>().ok());
        let range = text.split_once('-').map(|(low, high)| (number(low), number(high)));
        match (number(text), range) {
            (Some(count @ 1..=WORKERS_MAX), _) => Ok(Workers::Fixed(count)),
            (_, Some((Some(min @ 1..), Some(max @ ..=WORKERS_MAX)))) if min <= max => {
                Ok(Workers::Range { min, max })
            }
            (_, Some((Some(_), Some(_)))) => Err(format!(
                "is not a range of workers: give MIN-MAX with 1 <= MIN <= MAX <= {WORKERS_MAX}"
            )),
            (_, Some(_) | None) => Err(format!(
                "is not a number of workers: give a number from 1 to {WORKERS_MAX}, a range such as \
                 2-8, or auto"
            )),
        }
    }

    fn json_schema(&self) -> Value {
        let text = schema_parts::pattern("^(auto|[0-9]+(-[0-9]+)?)$");
        schema_parts::any_of([schema_parts::integer(1, WORKERS_MAX), text])
    }

    fn format(&self, value: &Workers) -> String {
        value.to_string()
    }
}

/// A duration: a number of seconds, or a number with `ms`, `s`, `m` or `h`.
pub(super) struct DurationValue {
    pub(super) min: Duration,
}

impl ValueParser for DurationValue {
    type Out = Duration;

    fn parse(&self, text: &str) -> Result<Duration, String> {
        duration::parse_duration(text, self.min)
    }

    fn json_schema(&self) -> Value {
        schema_parts::any_of([
            json!({ "type": "number", "minimum": self.min.as_secs_f64() }),
            schema_parts::pattern("^[0-9]+(\\.[0-9]+)?(ms|s|m|h)?$"),
        ])
    }

    fn format(&self, value: &Duration) -> String {
        duration::format_duration(*value)
    }
}

/// CPU numbers, separated by commas.
pub(super) struct CpuListValue;

/// The highest CPU of a set of sched_setaffinity(2) in glibc (`CPU_SETSIZE` - 1).
const CPU_LIMIT: u16 = 1023;

impl ValueParser for CpuListValue {
    type Out = Vec<u16>;

    fn parse(&self, text: &str) -> Result<Vec<u16>, String> {
        let parse_cpu = |word: &str| {
            let number = digits(word.trim()).and_then(|word| word.parse().ok());
            number.filter(|number| *number <= CPU_LIMIT).ok_or_else(|| {
                format!("is not a CPU number: give none, auto, or numbers from 0 to {CPU_LIMIT}")
            })
        };
        text.split(',').map(parse_cpu).collect()
    }

    fn json_schema(&self) -> Value {
        schema_parts::any_of([
            schema_parts::integer(0, CPU_LIMIT),
            schema_parts::pattern("^(none|auto)?$|^[0-9, ]+$"),
        ])
    }

    fn format(&self, value: &Vec<u16>) -> String {
        value.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }
}

/// A boolean: a word of YAML or a digit, upper or lower case.
pub(super) struct BoolValue;

impl ValueParser for BoolValue {
    type Out = bool;

    fn parse(&self, text: &str) -> Result<bool, String> {
        let is_one_of = |words: &[&str]| words.iter().any(|word| word.eq_ignore_ascii_case(text));
        if is_one_of(&["true", "yes", "on", "1"]) {
            Ok(true)
        } else if is_one_of(&["false", "no", "off", "0"]) {
            Ok(false)
        } else {
            Err("is not a boolean: give true or false".into())
        }
    }

    fn json_schema(&self) -> Value {
        let words = "^([Tt][Rr][Uu][Ee]|[Yy][Ee][Ss]|[Oo][Nn]|[Ff][Aa][Ll][Ss][Ee]|[Nn][Oo]|[Oo][Ff][Ff]|[01])$";
        schema_parts::any_of([
            json!({ "type": "boolean" }),
            schema_parts::integer(0, 1),
            schema_parts::pattern(words),
        ])
    }

    fn format(&self, value: &bool) -> String {
        value.to_string()
    }
}

/// A file mode in octal, 0 to 0777.
pub(super) struct OctalValue {
    pub(super) noun: &'static str,
    pub(super) example: &'static str,
}

impl ValueParser for OctalValue {
    type Out = u32;

    fn parse(&self, text: &str) -> Result<u32, String> {
        let number = text.strip_prefix("0o").unwrap_or(text);
        match digits(number).and_then(|number| u32::from_str_radix(number, 8).ok()) {
            Some(mask @ 0..=0o777) => Ok(mask),
            _ => {
                let Self { noun, example } = self;
                Err(format!("is not {noun}: give octal digits from 0 to 777, such as {example}"))
            }
        }
    }

    fn json_schema(&self) -> Value {
        schema_parts::any_of([
            json!({ "type": "integer", "minimum": 0 }), // YAML has octal numbers of its own
            schema_parts::pattern("^(0o)?[0-7]+$"),
        ])
    }

    fn format(&self, value: &u32) -> String {
        format!("{value:03o}")
    }
}

/// A short name, not empty and without control characters.
pub(super) struct NameValue;

/// Suffices for any user, class or title.
const NAME_BYTES_MAX: usize = 255;

impl ValueParser for NameValue {
    type Out = String;

    fn parse(&self, text: &str) -> Result<String, String> {
        if text.is_empty() || text.chars().any(char::is_control) {
            return Err("is not a name: give at least one letter, and no control character".into());
        }
        if text.len() > NAME_BYTES_MAX {
            return Err(format!("is too long: give at most {NAME_BYTES_MAX} bytes"));
        }
        Ok(text.to_owned())
    }

    fn format(&self, value: &String) -> String {
        value.clone()
    }
}

/// An address to listen on.
pub(super) struct AddressValue;

impl ValueParser for AddressValue {
    type Out = Address;

    fn parse(&self, text: &str) -> Result<Address, String> {
        text.parse()
    }

    fn json_schema(&self) -> Value {
        schema_parts::pattern(":")
    }

    fn format(&self, value: &Address) -> String {
        value.to_string()
    }

    fn make_absolute(&self, value: &mut Address, base_dir: &Path) {
        if let Address::Unix(path) = value {
            *path = base_dir.join(&*path);
        }
    }
}

/// One of several words. The first word of a row is the one shown; the others are accepted too.
pub(super) struct EnumValue<T: 'static> {
    pub(super) noun: &'static str,
    pub(super) names: &'static [(T, &'static [&'static str])],
}

impl<T: Copy + PartialEq> ValueParser for EnumValue<T> {
    type Out = T;

    fn parse(&self, text: &str) -> Result<T, String> {
        self.names
            .iter()
            .find(|(_, words)| words.contains(&text))
            .map(|(value, _)| *value)
            .ok_or_else(|| {
                let words: Vec<&str> =
                    self.names.iter().filter_map(|(_, words)| words.first().copied()).collect();
                format!("is not {}: give {}", self.noun, words.join(", "))
            })
    }

    fn json_schema(&self) -> Value {
        let words: Vec<_> = self.names.iter().flat_map(|(_, words)| *words).collect();
        json!({ "enum": words })
    }

    fn format(&self, value: &T) -> String {
        let row = self.names.iter().find(|(known, _)| known == value);
        row.and_then(|(_, words)| words.first()).copied().unwrap_or_default().to_owned()
    }
}

/// A word of a command. It may be empty, and may be repeated.
pub(super) struct WordValue;

impl ValueParser for WordValue {
    type Out = String;

    fn parse(&self, text: &str) -> Result<String, String> {
        if text.contains('\0') {
            return Err("contains a NUL byte".into());
        }
        Ok(text.to_owned())
    }

    fn format(&self, value: &String) -> String {
        value.clone()
    }

    fn conflicts(&self, _: &String, _: &String) -> bool {
        false
    }
}

/// An environment variable, `NAME=VALUE`. The name has at least one byte and no `=`.
pub(super) struct PairValue;

impl ValueParser for PairValue {
    type Out = (String, String);

    fn parse(&self, text: &str) -> Result<Self::Out, String> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() && !text.contains('\0') => {
                Ok((name.to_owned(), value.to_owned()))
            }
            _ => Err("is not a variable: give NAME=VALUE, without NUL".into()),
        }
    }

    fn json_schema(&self) -> Value {
        schema_parts::pattern("^[^=]+=")
    }

    fn format(&self, (name, value): &Self::Out) -> String {
        format!("{name}={value}")
    }

    fn conflicts(&self, a: &Self::Out, b: &Self::Out) -> bool {
        a.0 == b.0
    }
}

#[cfg(test)]
mod tests;
