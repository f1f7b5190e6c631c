//! How the texts of an option, one or none or several, become its value. It must never know what
//! kind of value that is: a [`ValueParser`] knows.

use super::types::CpuAffinity;
use super::value::{BoolValue, CpuListValue, PairValue, ValueParser};

/// How many texts an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arity {
    /// One.
    Single,
    /// One that says yes or no; a flag without a text says yes.
    Flag,
    /// One, or none at all.
    Optional,
    /// A list.
    List,
    /// A list of `NAME=VALUE`, or a map.
    PairList,
}

/// All texts of an option to its value and back.
pub(super) trait OptionType {
    /// The type of the option's field.
    type Out;

    /// How many texts it takes.
    const ARITY: Arity;

    /// The value, or which text is wrong and why.
    fn parse(&self, texts: &[String]) -> Result<Self::Out, ValueError>;

    /// The texts that give the same value back.
    fn format(&self, value: &Self::Out) -> Vec<String>;
}

/// What is wrong with the texts of an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ValueError {
    /// The bad text's place in its list; `None` if no text is to blame.
    pub(crate) index: Option<usize>,
    /// What is wrong, in words that can follow the quoted text or the option's name.
    pub(crate) reason: String,
}

/// Exactly one value.
pub(super) struct Single<F>(pub(super) F);

/// A value or none. The empty text also means none, so that a flag can undo what a file says.
pub(super) struct OptionalOf<F>(pub(super) F);

/// Any number of values; no two may clash.
pub(super) struct ListOf<F> {
    pub(super) item: F,
    /// Whether the word `none` stands for no value at all, so that a flag can say so.
    pub(super) accepts_none: bool,
}

/// Any number of `NAME=VALUE`.
pub(super) struct PairList;

/// Yes or no.
pub(super) struct Flag;

/// Nothing or `none`, `auto`, or any number of processors, commas in a text included.
pub(super) struct CpuAffinityList;

/// The [`OptionType::ARITY`] of a shape that stands in a table.
pub(super) const fn arity_of<S: OptionType>(_: &S) -> Arity {
    S::ARITY
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

    fn format(&self, value: &F::Out) -> Vec<String> {
        vec![self.0.format(value)]
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

    fn format(&self, value: &Self::Out) -> Vec<String> {
        value.iter().map(|value| self.0.format(value)).collect()
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

    fn format(&self, value: &Self::Out) -> Vec<String> {
        value.iter().map(|value| self.item.format(value)).collect()
    }
}

impl OptionType for PairList {
    type Out = Vec<(String, String)>;
    const ARITY: Arity = Arity::PairList;

    fn parse(&self, texts: &[String]) -> Result<Self::Out, ValueError> {
        parse_list(&PairValue, texts)
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

    fn format(&self, value: &Self::Out) -> Vec<String> {
        match value {
            None => vec!["none".into()],
            Some(CpuAffinity::Auto) => vec!["auto".into()],
            Some(CpuAffinity::List(cpus)) => cpus.iter().map(ToString::to_string).collect(),
        }
    }
}

/// Far more than anybody writes by hand; clashes are sought pair by pair.
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
    parser.parse(text).map_err(|why| ValueError { index: Some(index), reason: why })
}
