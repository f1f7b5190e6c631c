//! How the texts of an option, one or none or several, become its value. It must never know what
//! kind of value that is: a [`Form`] knows.

use super::value::{Cpus, Form, Pair, YesNo};
use super::types::CpuAffinity;

/// How many texts an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One.
    One,
    /// One that says yes or no; a flag without a text says yes.
    Switch,
    /// One, or none at all.
    Maybe,
    /// A list.
    Many,
    /// A list of `NAME=VALUE`, or a map.
    Pairs,
}

/// All texts of an option to its value and back.
pub(super) trait Shape {
    /// The type of the option's field.
    type Out;

    /// How many texts it takes.
    const KIND: Kind;

    /// The value, or which text is wrong and why.
    fn read(&self, texts: &[String]) -> Result<Self::Out, ValueError>;

    /// The texts that give the same value back.
    fn show(&self, value: &Self::Out) -> Vec<String>;
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
pub(super) struct One<F>(pub(super) F);

/// A value or none. The empty text also means none, so that a flag can undo what a file says.
pub(super) struct Maybe<F>(pub(super) F);

/// Any number of values; no two may clash.
pub(super) struct Many<F> {
    pub(super) form: F,
    /// Whether the word `none` stands for no value at all, so that a flag can say so.
    pub(super) none: bool,
}

/// Any number of `NAME=VALUE`.
pub(super) struct Pairs;

/// Yes or no.
pub(super) struct Switch;

/// Nothing or `none`, `auto`, or any number of processors, commas in a text included.
pub(super) struct Affinity;

/// The [`Shape::KIND`] of a shape that stands in a table.
pub(super) const fn kind_of<S: Shape>(_: &S) -> Kind {
    S::KIND
}

impl<F: Form> Shape for One<F> {
    type Out = F::Out;
    const KIND: Kind = Kind::One;

    fn read(&self, texts: &[String]) -> Result<F::Out, ValueError> {
        match texts {
            [text] => parse_at(&self.0, text, 0),
            [] => Err(ValueError { index: None, reason: "has no value".into() }),
            [_, _, ..] => Err(ValueError { index: None, reason: "is given more than once".into() }),
        }
    }

    fn show(&self, value: &F::Out) -> Vec<String> {
        vec![self.0.show(value)]
    }
}

impl<F: Form> Shape for Maybe<F> {
    type Out = Option<F::Out>;
    const KIND: Kind = Kind::Maybe;

    fn read(&self, texts: &[String]) -> Result<Self::Out, ValueError> {
        match texts {
            [] => Ok(None),
            [text] if text.is_empty() => Ok(None),
            [text] => parse_at(&self.0, text, 0).map(Some),
            [_, _, ..] => Err(ValueError { index: None, reason: "is given more than once".into() }),
        }
    }

    fn show(&self, value: &Self::Out) -> Vec<String> {
        value.iter().map(|value| self.0.show(value)).collect()
    }
}

impl<F: Form> Shape for Many<F> {
    type Out = Vec<F::Out>;
    const KIND: Kind = Kind::Many;

    fn read(&self, texts: &[String]) -> Result<Self::Out, ValueError> {
        match texts {
            [text] if self.none && text == "none" => Ok(Vec::new()),
            _ => read_list(&self.form, texts),
        }
    }

    fn show(&self, value: &Self::Out) -> Vec<String> {
        value.iter().map(|value| self.form.show(value)).collect()
    }
}

impl Shape for Pairs {
    type Out = Vec<(String, String)>;
    const KIND: Kind = Kind::Pairs;

    fn read(&self, texts: &[String]) -> Result<Self::Out, ValueError> {
        read_list(&Pair, texts)
    }

    fn show(&self, value: &Self::Out) -> Vec<String> {
        value.iter().map(|pair| Pair.show(pair)).collect()
    }
}

impl Shape for Switch {
    type Out = bool;
    const KIND: Kind = Kind::Switch;

    fn read(&self, texts: &[String]) -> Result<bool, ValueError> {
        One(YesNo).read(texts)
    }

    fn show(&self, value: &bool) -> Vec<String> {
        One(YesNo).show(value)
    }
}

impl Shape for Affinity {
    type Out = Option<CpuAffinity>;
    const KIND: Kind = Kind::Many;

    fn read(&self, texts: &[String]) -> Result<Self::Out, ValueError> {
        if texts.len() > LIST_ITEMS_MAX {
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
            cpus.extend(parse_at(&Cpus, text, at)?);
        }
        Ok(Some(CpuAffinity::List(cpus)))
    }

    fn show(&self, value: &Self::Out) -> Vec<String> {
        match value {
            None => vec!["none".into()],
            Some(CpuAffinity::Auto) => vec!["auto".into()],
            Some(CpuAffinity::List(cpus)) => cpus.iter().map(ToString::to_string).collect(),
        }
    }
}

/// Far more than anybody writes by hand; clashes are sought pair by pair.
const LIST_ITEMS_MAX: usize = 1000;

fn read_list<F: Form>(form: &F, texts: &[String]) -> Result<Vec<F::Out>, ValueError> {
    if texts.len() > LIST_ITEMS_MAX {
        return Err(too_many_items());
    }
    let mut values = Vec::with_capacity(texts.len());
    for (at, text) in texts.iter().enumerate() {
        let value = parse_at(form, text, at)?;
        if let Some(first) = values.iter().position(|other| form.clash(other, &value)) {
            let reason = format!("repeats {:?}", texts[first]);
            return Err(ValueError { index: Some(at), reason });
        }
        values.push(value);
    }
    Ok(values)
}

fn too_many_items() -> ValueError {
    ValueError { index: None, reason: format!("has more than {LIST_ITEMS_MAX} items") }
}

fn parse_at<F: Form>(form: &F, text: &str, index: usize) -> Result<F::Out, ValueError> {
    form.parse(text).map_err(|why| ValueError { index: Some(index), reason: why })
}
