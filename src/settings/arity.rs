//! Parses the texts of an option (none, one or several) into its value. It must never know the type
//! of a single value: a [`ValueParser`] does.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::schema_parts::{any_of, or_variable};
use super::types::CpuAffinity;
use super::value::{BoolValue, CpuListValue, PairValue, ValueParser};

/// The number of texts that an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arity {
    /// One.
    Single,
    /// One boolean; a flag without a text means true.
    Flag,
    /// None or one.
    Optional,
    /// A list.
    List,
    /// A list of `NAME=VALUE`, or a map.
    PairList,
}

/// Converts all texts of an option to its value and back.
pub(super) trait OptionType {
    /// The type of the option's field.
    type Out;

    /// The number of texts.
    const ARITY: Arity;

    /// Returns the value, or the invalid text and the reason.
    fn parse(&self, texts: &[String]) -> Result<Self::Out, ValueError>;

    /// Returns the texts that are parsed into the same value.
    fn format(&self, value: &Self::Out) -> Vec<String>;

    /// Returns the JSON Schema of the values in a file that are accepted, or of more.
    fn json_schema(&self) -> Value;

    /// Calls [`ValueParser::make_absolute`] for each part of the value.
    fn make_absolute(&self, _value: &mut Self::Out, _base_dir: &Path) {}

    /// Calls [`ValueParser::check_path`] for each part of the value.
    fn check_path(&self, _value: &Self::Out) -> Result<(), (PathBuf, String)> {
        Ok(())
    }
}

/// Why the texts of an option are invalid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ValueError {
    /// The index of the invalid text; `None` if the error concerns no single text.
    pub(crate) index: Option<usize>,
    /// The reason, in words that can follow the quoted text or the name of the option.
    pub(crate) reason: String,
}

/// Exactly one value.
pub(super) struct Single<F>(pub(super) F);

/// A value or none. The empty text also means none, so that a flag can override a file.
pub(super) struct OptionalOf<F>(pub(super) F);

/// Any number of values, none of which conflict.
pub(super) struct ListOf<F> {
    pub(super) item: F,
    /// Whether the word `none` means the empty list, so that a flag can override a file.
    pub(super) accepts_none: bool,
}

/// Any number of `NAME=VALUE`.
pub(super) struct PairList;

/// A boolean.
pub(super) struct Flag;

/// Nothing or `none`, `auto`, or any number of CPUs; a text may contain several with commas.
pub(super) struct CpuAffinityList;

/// Returns the [`OptionType::ARITY`] of an expression in the table.
pub(super) const fn arity_of<T: OptionType>(_: &T) -> Arity {
    T::ARITY
}

impl<F: ValueParser> OptionType for Single<F> {
    type Out = F::Out;
    const ARITY: Arity = Arity::Single;

    fn parse(&self, texts: &[String]) -> Result<F::Out, ValueError> {
        match texts {
            [text] => parse_at(&self.0, text, 0),
            [] => Err(ValueError { index: None, reason: "has no value".into() }),
            [_, _, ..] => Err(ValueError { index: None, reason: "is given more than once".into() }),
        }
    }

    fn json_schema(&self) -> Value {
        or_variable(self.0.json_schema())
    }

    fn format(&self, value: &F::Out) -> Vec<String> {
        vec![self.0.format(value)]
    }

    fn make_absolute(&self, value: &mut F::Out, base_dir: &Path) {
        self.0.make_absolute(value, base_dir);
    }

    fn check_path(&self, value: &F::Out) -> Result<(), (PathBuf, String)> {
        self.0.check_path(value)
    }
}

impl<F: ValueParser> OptionType for OptionalOf<F> {
    type Out = Option<F::Out>;
    const ARITY: Arity = Arity::Optional;

    fn parse(&self, texts: &[String]) -> Result<Self::Out, ValueError> {
        match texts {
            [] => Ok(None),
            [text] if text.is_empty() => Ok(None),
            [text] => parse_at(&self.0, text, 0).map(Some),
            [_, _, ..] => Err(ValueError { index: None, reason: "is given more than once".into() }),
        }
    }

    fn json_schema(&self) -> Value {
        any_of([or_variable(self.0.json_schema()), json!({ "enum": [null, ""] })])
    }

    fn format(&self, value: &Self::Out) -> Vec<String> {
        value.iter().map(|value| self.0.format(value)).collect()
    }

    fn make_absolute(&self, value: &mut Self::Out, base_dir: &Path) {
        value.iter_mut().for_each(|value| self.0.make_absolute(value, base_dir));
    }

    fn check_path(&self, value: &Self::Out) -> Result<(), (PathBuf, String)> {
        value.iter().try_for_each(|value| self.0.check_path(value))
    }
}

impl<F: ValueParser> OptionType for ListOf<F> {
    type Out = Vec<F::Out>;
    const ARITY: Arity = Arity::List;

    fn parse(&self, texts: &[String]) -> Result<Self::Out, ValueError> {
        match texts {
            [text] if self.accepts_none && text == "none" => Ok(Vec::new()),
            _ => parse_list(&self.item, texts),
        }
    }

    fn json_schema(&self) -> Value {
        let none = self.accepts_none.then(|| json!({ "const": "none" }));
        any_of(list_schemas(self.item.json_schema()).into_iter().chain(none))
    }

    fn format(&self, value: &Self::Out) -> Vec<String> {
        value.iter().map(|value| self.item.format(value)).collect()
    }

    fn make_absolute(&self, value: &mut Self::Out, base_dir: &Path) {
        value.iter_mut().for_each(|value| self.item.make_absolute(value, base_dir));
    }

    fn check_path(&self, value: &Self::Out) -> Result<(), (PathBuf, String)> {
        value.iter().try_for_each(|value| self.item.check_path(value))
    }
}

impl OptionType for PairList {
    type Out = Vec<(String, String)>;
    const ARITY: Arity = Arity::PairList;

    fn parse(&self, texts: &[String]) -> Result<Self::Out, ValueError> {
        parse_list(&PairValue, texts)
    }

    fn json_schema(&self) -> Value {
        let map = json!({
            "type": "object",
            "propertyNames": { "pattern": "^[^=]+$" },
            "additionalProperties": { "$ref": "#/$defs/scalar" },
        });
        any_of(list_schemas(PairValue.json_schema()).into_iter().chain([map]))
    }

    fn format(&self, value: &Self::Out) -> Vec<String> {
        value.iter().map(|pair| PairValue.format(pair)).collect()
    }
}

impl OptionType for Flag {
    type Out = bool;
    const ARITY: Arity = Arity::Flag;

    fn parse(&self, texts: &[String]) -> Result<bool, ValueError> {
        Single(BoolValue).parse(texts)
    }

    fn json_schema(&self) -> Value {
        Single(BoolValue).json_schema()
    }

    fn format(&self, value: &bool) -> Vec<String> {
        Single(BoolValue).format(value)
    }
}

impl OptionType for CpuAffinityList {
    type Out = Option<CpuAffinity>;
    const ARITY: Arity = Arity::List;

    fn parse(&self, texts: &[String]) -> Result<Self::Out, ValueError> {
        if texts.len() > LIST_ITEMS_LIMIT {
            return Err(too_many_items());
        }
        match texts {
            [] => return Ok(None),
            [text] if text.is_empty() || text == "none" => return Ok(None),
            [text] if text == "auto" => return Ok(Some(CpuAffinity::Auto)),
            _ => (),
        }
        let mut cpus = Vec::new();
        for (at, text) in texts.iter().enumerate() {
            cpus.extend(parse_at(&CpuListValue, text, at)?);
        }
        Ok(Some(CpuAffinity::List(cpus)))
    }

    fn json_schema(&self) -> Value {
        any_of(list_schemas(CpuListValue.json_schema()))
    }

    fn format(&self, value: &Self::Out) -> Vec<String> {
        match value {
            None => vec!["none".into()],
            Some(CpuAffinity::Auto) => vec!["auto".into()],
            Some(CpuAffinity::List(cpus)) => cpus.iter().map(ToString::to_string).collect(),
        }
    }
}

/// Returns the schemas of a list: of items, or of one item alone.
fn list_schemas(item: Value) -> [Value; 2] {
    let item = or_variable(item);
    [item.clone(), json!({ "type": "array", "items": item })]
}

/// Exceeds any list written by hand. Limits the search for conflicts, which is quadratic.
const LIST_ITEMS_LIMIT: usize = 1000;

fn parse_list<F: ValueParser>(parser: &F, texts: &[String]) -> Result<Vec<F::Out>, ValueError> {
    if texts.len() > LIST_ITEMS_LIMIT {
        return Err(too_many_items());
    }
    let mut values = Vec::with_capacity(texts.len());
    for (at, text) in texts.iter().enumerate() {
        let value = parse_at(parser, text, at)?;
        if let Some(duplicate) = values.iter().position(|other| parser.conflicts(other, &value)) {
            let reason = format!("repeats {:?}", texts[duplicate]);
            return Err(ValueError { index: Some(at), reason });
        }
        values.push(value);
    }
    Ok(values)
}

fn too_many_items() -> ValueError {
    ValueError { index: None, reason: format!("has more than {LIST_ITEMS_LIMIT} items") }
}

fn parse_at<F: ValueParser>(parser: &F, text: &str, index: usize) -> Result<F::Out, ValueError> {
    parser.parse(text).map_err(|reason| ValueError { index: Some(index), reason })
}
