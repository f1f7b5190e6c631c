//! How one text becomes a value, and the value a text again. Each form knows one kind of value and
//! its bounds; it must never know which option it serves or where the text stood.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::types::{CoreSize, Workers};
use crate::address::Address;
use crate::log::Target as LogTarget;
use crate::duration::{self, digits};

/// One text to one value and back.
pub(super) trait Form {
    /// What the text means.
    type Out: PartialEq;

    /// The value, or what is wrong in words that can follow the quoted text.
    fn parse(&self, text: &str) -> Result<Self::Out, String>;

    /// The shortest usual text; [`Form::parse`] gives the same value back.
    fn show(&self, value: &Self::Out) -> String;

    /// Whether two values cannot stand in one list.
    fn clash(&self, a: &Self::Out, b: &Self::Out) -> bool {
        a == b
    }
}

/// A whole number within bounds.
pub(super) struct Number<T> {
    pub(super) what: &'static str,
    pub(super) least: T,
    pub(super) most: T,
}

impl<T: FromStr + PartialOrd + fmt::Display + Copy> Form for Number<T> {
    type Out = T;

    fn parse(&self, text: &str) -> Result<T, String> {
        match digits(text).and_then(|text| text.parse::<T>().ok()) {
            Some(number) if self.least <= number && number <= self.most => Ok(number),
            _ => {
                let Self { what, least, most } = self;
                Err(format!("is not {what}: give a number from {least} to {most}"))
            }
        }
    }

    fn show(&self, value: &T) -> String {
        value.to_string()
    }
}

/// A whole number within bounds, of which some may be below zero.
pub(super) struct Signed {
    pub(super) what: &'static str,
    pub(super) least: i32,
    pub(super) most: i32,
}

impl Form for Signed {
    type Out = i32;

    fn parse(&self, text: &str) -> Result<i32, String> {
        let unsigned = text.strip_prefix('-').unwrap_or(text);
        match digits(unsigned).and_then(|_| text.parse().ok()) {
            Some(number) if self.least <= number && number <= self.most => Ok(number),
            _ => {
                let Self { what, least, most } = self;
                Err(format!("is not {what}: give a number from {least} to {most}"))
            }
        }
    }

    fn show(&self, value: &i32) -> String {
        value.to_string()
    }
}

/// How many workers: a number, or `auto`.
pub(super) struct WorkerCount;

/// More would not fit the counters that the workers share.
const WORKERS_MAX: usize = 4096;

impl Form for WorkerCount {
    type Out = Workers;

    fn parse(&self, text: &str) -> Result<Workers, String> {
        if text == "auto" {
            return Ok(Workers::Auto);
        }
        if let Some((low, high)) = text.split_once('-')
            && digits(low).is_some()
            && digits(high).is_some()
        {
            return Err("is a range, and ranges are not supported yet: give one number".into());
        }
        match digits(text).and_then(|text| text.parse().ok()) {
            Some(count @ 1..=WORKERS_MAX) => Ok(Workers::Fixed(count)),
            _ => Err(format!(
                "is not a number of workers: give a number from 1 to {WORKERS_MAX}, or auto"
            )),
        }
    }

    fn show(&self, value: &Workers) -> String {
        value.to_string()
    }
}

/// A span of time: a number of seconds, or a number with `ms`, `s`, `m` or `h`.
pub(super) struct Span {
    pub(super) least: Duration,
}

impl Form for Span {
    type Out = Duration;

    fn parse(&self, text: &str) -> Result<Duration, String> {
        duration::parse_duration(text, self.least)
    }

    fn show(&self, value: &Duration) -> String {
        duration::format_duration(*value)
    }
}

/// A number of bytes: plain, or with `K`, `M` or `G` (powers of 1024, in either case).
pub(super) struct Size {
    pub(super) least: u64,
    pub(super) most: u64,
}

impl Form for Size {
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
            Some(bytes) if self.least <= bytes && bytes <= self.most => Ok(bytes),
            _ => {
                let (least, most) = (self.show(&self.least), self.show(&self.most));
                Err(format!("is out of bounds: give a size from {least} to {most}"))
            }
        }
    }

    fn show(&self, value: &u64) -> String {
        for (unit, shift) in [("G", 30), ("M", 20), ("K", 10)] {
            if *value > 0 && value.is_multiple_of(1 << shift) {
                return format!("{}{unit}", value >> shift);
            }
        }
        value.to_string()
    }
}

/// The size of a core dump: a number of bytes as in [`Size`], or `unlimited`.
pub(super) struct Core;

/// Far beyond any memory, and still below the kernel's word for no limit.
const CORE_SIZE: Size = Size { least: 0, most: 1 << 60 };

impl Form for Core {
    type Out = CoreSize;

    fn parse(&self, text: &str) -> Result<CoreSize, String> {
        if text == "unlimited" {
            return Ok(CoreSize::Unlimited);
        }
        CORE_SIZE.parse(text).map(CoreSize::Bytes).map_err(|why| format!("{why}, or unlimited"))
    }

    fn show(&self, value: &CoreSize) -> String {
        match value {
            CoreSize::Unlimited => "unlimited".into(),
            CoreSize::Bytes(bytes) => CORE_SIZE.show(bytes),
        }
    }
}

/// Processors by their numbers, separated by commas.
pub(super) struct Cpus;

/// What a processor set of sched_setaffinity(2) has room for in glibc (`CPU_SETSIZE`).
const CPU_MAX: u16 = 1023;

impl Form for Cpus {
    type Out = Vec<u16>;

    fn parse(&self, text: &str) -> Result<Vec<u16>, String> {
        let number = |word: &str| {
            let number = digits(word.trim()).and_then(|word| word.parse().ok());
            number.filter(|number| *number <= CPU_MAX).ok_or_else(|| {
                format!("is not a processor: give none, auto, or numbers from 0 to {CPU_MAX}")
            })
        };
        text.split(',').map(number).collect()
    }

    fn show(&self, value: &Vec<u16>) -> String {
        value.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }
}

/// Yes or no, in the words of YAML or as a digit, in either case.
pub(super) struct YesNo;

impl Form for YesNo {
    type Out = bool;

    fn parse(&self, text: &str) -> Result<bool, String> {
        let is_one_of = |words: &[&str]| words.iter().any(|word| word.eq_ignore_ascii_case(text));
        if is_one_of(&["true", "yes", "on", "1"]) {
            Ok(true)
        } else if is_one_of(&["false", "no", "off", "0"]) {
            Ok(false)
        } else {
            Err("is neither yes nor no: give true or false".into())
        }
    }

    fn show(&self, value: &bool) -> String {
        value.to_string()
    }
}

/// The bits of a mode in octal, 0 to 0777.
pub(super) struct Octal {
    pub(super) what: &'static str,
    pub(super) example: &'static str,
}

impl Form for Octal {
    type Out = u32;

    fn parse(&self, text: &str) -> Result<u32, String> {
        let number = text.strip_prefix("0o").unwrap_or(text);
        match digits(number).and_then(|number| u32::from_str_radix(number, 8).ok()) {
            Some(mask @ 0..=0o777) => Ok(mask),
            _ => {
                let Self { what, example } = self;
                Err(format!("is not {what}: give octal digits from 0 to 777, such as {example}"))
            }
        }
    }

    fn show(&self, value: &u32) -> String {
        format!("{value:03o}")
    }
}

/// A short name: not empty, on one line.
pub(super) struct Name;

/// Enough for any user, class or title.
const NAME_BYTES_MAX: usize = 255;

impl Form for Name {
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

    fn show(&self, value: &String) -> String {
        value.clone()
    }
}

/// A path of a file or folder, which need not exist.
pub(super) struct Path;

impl Form for Path {
    type Out = PathBuf;

    fn parse(&self, text: &str) -> Result<PathBuf, String> {
        if text.is_empty() || text.contains('\0') {
            return Err("is not a path: give at least one byte, and no NUL".into());
        }
        Ok(text.into())
    }

    fn show(&self, value: &PathBuf) -> String {
        value.display().to_string()
    }
}

/// `-` for the standard error stream, or a path.
pub(super) struct Target;

impl Form for Target {
    type Out = LogTarget;

    fn parse(&self, text: &str) -> Result<LogTarget, String> {
        if text == "-" { Ok(LogTarget::Stderr) } else { Path.parse(text).map(LogTarget::File) }
    }

    fn show(&self, value: &LogTarget) -> String {
        match value {
            LogTarget::Stderr => "-".into(),
            LogTarget::File(path) => Path.show(path),
        }
    }
}

/// An address to listen on.
pub(super) struct Listen;

impl Form for Listen {
    type Out = Address;

    fn parse(&self, text: &str) -> Result<Address, String> {
        text.parse()
    }

    fn show(&self, value: &Address) -> String {
        value.to_string()
    }
}

/// One of a few words; the first word of a row is the one shown, the others are accepted too.
pub(super) struct Choice<T: 'static> {
    pub(super) what: &'static str,
    pub(super) words: &'static [(T, &'static [&'static str])],
}

impl<T: Copy + PartialEq> Form for Choice<T> {
    type Out = T;

    fn parse(&self, text: &str) -> Result<T, String> {
        self.words
            .iter()
            .find(|(_, words)| words.contains(&text))
            .map(|(value, _)| *value)
            .ok_or_else(|| {
                let words: Vec<&str> =
                    self.words.iter().filter_map(|(_, words)| words.first().copied()).collect();
                format!("is not {}: give {}", self.what, words.join(", "))
            })
    }

    fn show(&self, value: &T) -> String {
        let row = self.words.iter().find(|(known, _)| known == value);
        row.and_then(|(_, words)| words.first()).copied().unwrap_or_default().to_owned()
    }
}

/// A word of a command. It may be empty, and the same may come twice.
pub(super) struct Word;

impl Form for Word {
    type Out = String;

    fn parse(&self, text: &str) -> Result<String, String> {
        if text.contains('\0') {
            return Err("contains NUL, which no program can be given".into());
        }
        Ok(text.to_owned())
    }

    fn show(&self, value: &String) -> String {
        value.clone()
    }

    fn clash(&self, _: &String, _: &String) -> bool {
        false
    }
}

/// `NAME=VALUE`, as in an environment. The name has at least one byte and no `=`.
pub(super) struct Pair;

impl Form for Pair {
    type Out = (String, String);

    fn parse(&self, text: &str) -> Result<Self::Out, String> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() && !text.contains('\0') => {
                Ok((name.to_owned(), value.to_owned()))
            }
            _ => Err("is not a variable: give NAME=VALUE, without NUL".into()),
        }
    }

    fn show(&self, (name, value): &Self::Out) -> String {
        format!("{name}={value}")
    }

    fn clash(&self, a: &Self::Out, b: &Self::Out) -> bool {
        a.0 == b.0
    }
}

#[cfg(test)]
mod tests;
