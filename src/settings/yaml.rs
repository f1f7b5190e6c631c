//! Parses YAML into a tree of [`Node`]s, and finds the line of a position in the tree. No other file
//! uses the YAML parser, and this file must never know a setting.
//!
//! The parser reads a text up to three times, because it tells types only without the text of a
//! scalar, and positions only in errors: `Outline` finds the structure, `Fill` the texts of scalars,
//! and `Locate` fails on purpose at a position, to learn its line.

use std::cell::Cell;
use std::fmt;

use serde::de::{Deserialize, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error, IgnoredAny};

/// Maximum size of a file after its aliases are expanded: [`NODE_COST`] for each node, and 1 for each
/// byte of text.
const EXPANDED_MAX: usize = 8 << 20;
const NODE_COST: usize = 16;

/// Maximum depth of nested brackets.
const OPEN_BRACKETS_MAX: usize = 256;

/// A node of YAML. A scalar is its text as written, without quotes: `1.10` is not a number yet.
#[derive(Debug, PartialEq)]
pub(super) enum Node {
    /// Null, or an absent value.
    Null,
    /// One value.
    Scalar(String),
    /// Items in their order.
    List(Vec<Node>),
    /// Entries in their order; a key may come twice.
    Map(Vec<(Node, Node)>),
}

impl Node {
    /// Names the type of the node, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Scalar(_) => "one value",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }
}

/// One step down a document.
#[derive(Clone, Copy)]
pub(super) enum Step {
    /// To the key of a map's entry.
    Key(usize),
    /// To the value of a map's entry.
    Value(usize),
    /// To an item of a list.
    Item(usize),
}

/// Why a text is not YAML, or is YAML that is not accepted.
#[derive(Debug, PartialEq)]
pub(super) struct Malformed {
    /// The line, from 1.
    pub(super) line: usize,
    /// The reason.
    pub(super) reason: String,
}

/// Parses a text of at most one document. An empty text is [`Node::Null`].
pub(super) fn read(text: &str) -> Result<Node, Malformed> {
    check_depth(text)?;
    let mut documents = serde_yaml::Deserializer::from_str(text);
    let Some(first) = documents.next() else { return Ok(Node::Null) };
    let budget = Cell::new(EXPANDED_MAX);
    let mut root = Outline { budget: &budget }.deserialize(first).map_err(|e| malformed(&e))?;
    if let Some(second) = documents.next() {
        let line = Locate { path: &[] }.deserialize(second).map_or_else(|e| error_line(&e), |()| 1);
        return Err(Malformed {
            line,
            reason: "a second document starts here: give only one".into(),
        });
    }
    // Only after the outline is it known which nodes are scalars, whose texts can be read as written.
    if let Some(again) = serde_yaml::Deserializer::from_str(text).next() {
        Fill { node: &mut root }.deserialize(again).map_err(|e| malformed(&e))?;
    }
    Ok(root)
}

/// Rejects too many nested brackets before the parser runs: its time grows with the square of the
/// open brackets, and it checks their depth only afterwards. Brackets in texts and comments count too.
fn check_depth(text: &str) -> Result<(), Malformed> {
    let (mut depth, mut line) = (0_usize, 1);
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'\n' => line += 1,
            _ => (),
        }
        if depth > OPEN_BRACKETS_MAX {
            return Err(Malformed { line, reason: "too many nested brackets".into() });
        }
    }
    Ok(())
}

/// Returns the line of a position in a text that [`read`] has accepted; 1 if the position does not
/// exist. An alias has the line of its anchor.
pub(super) fn line_of(text: &str, path: &[Step]) -> usize {
    // The parser tells its position only in an error, so this fails on purpose.
    match serde_yaml::Deserializer::from_str(text).next() {
        Some(first) => Locate { path }.deserialize(first).map_or_else(|e| error_line(&e), |()| 1),
        None => 1,
    }
}

fn error_line(error: &serde_yaml::Error) -> usize {
    error.location().map_or(1, |location| location.line())
}

fn malformed(error: &serde_yaml::Error) -> Malformed {
    let text = error.to_string();
    // Errors of settings begin with the line, so the parser's own mention of it is removed.
    let reason = text.split(" at line ").next().unwrap_or_default().to_owned();
    Malformed { line: error_line(error), reason }
}

/// Reads the structure and leaves every scalar empty.
#[derive(Clone, Copy)]
struct Outline<'b> {
    budget: &'b Cell<usize>,
}

impl Outline<'_> {
    fn charge<E: Error>(self, bytes: usize) -> Result<(), E> {
        let remaining = self.budget.get().checked_sub(NODE_COST + bytes);
        self.budget.set(remaining.ok_or_else(|| E::custom("the file is too large once expanded"))?);
        Ok(())
    }

    fn scalar<E: Error>(self, bytes: usize) -> Result<Node, E> {
        self.charge(bytes)?;
        Ok(Node::Scalar(String::new()))
    }
}

impl<'de> DeserializeSeed<'de> for Outline<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Outline<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value, a list or a map")
    }

    fn visit_unit<E: Error>(self) -> Result<Node, E> {
        self.charge(0)?;
        Ok(Node::Null)
    }

    /// An empty document.
    fn visit_none<E: Error>(self) -> Result<Node, E> {
        self.visit_unit()
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Node, E> {
        self.scalar(0)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Node, E> {
        self.scalar(0)
    }

    fn visit_i128<E: Error>(self, _: i128) -> Result<Node, E> {
        self.scalar(0)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Node, E> {
        self.scalar(0)
    }

    fn visit_u128<E: Error>(self, _: u128) -> Result<Node, E> {
        self.scalar(0)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Node, E> {
        self.scalar(0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Node, E> {
        self.scalar(text.len())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        self.charge(0)?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        self.charge(0)?;
        let mut map = Vec::new();
        while let Some(key) = entries.next_key_seed(self)? {
            map.push((key, entries.next_value_seed(self)?));
        }
        Ok(Node::Map(map))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<Node, A::Error> {
        Err(A::Error::custom("tags such as !name are not supported"))
    }
}

/// Reads the same structure again, and takes the text of each scalar as it was written.
struct Fill<'n> {
    node: &'n mut Node,
}

impl<'de> DeserializeSeed<'de> for Fill<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.node {
            Node::Null => IgnoredAny::deserialize(deserializer).map(drop),
            Node::Scalar(text) => {
                *text = String::deserialize(deserializer)?;
                Ok(())
            }
            Node::List(_) => deserializer.deserialize_seq(self),
            Node::Map(_) => deserializer.deserialize_map(self),
        }
    }
}

impl<'de> Visitor<'de> for Fill<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} as before", self.node.kind())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        if let Node::List(list) = self.node {
            for node in list {
                items.next_element_seed(Fill { node })?;
            }
        }
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        if let Node::Map(map) = self.node {
            for (key, value) in map {
                entries.next_key_seed(Fill { node: key })?;
                entries.next_value_seed(Fill { node: value })?;
            }
        }
        while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

/// Descends to one position and fails there: the error contains the line.
struct Locate<'p> {
    path: &'p [Step],
}

impl<'de> DeserializeSeed<'de> for Locate<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Locate<'_> {
    type Value = ();

    /// Everything at the end of the path, or off it, is unexpected and thus an error.
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("to fail here")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Some((Step::Item(item), path)) = self.path.split_first() else {
            return Err(A::Error::invalid_type(Unexpected::Seq, &self));
        };
        for _ in 0..*item {
            items.next_element::<IgnoredAny>()?;
        }
        items.next_element_seed(Locate { path }).map(drop)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let Some((step @ (Step::Key(entry) | Step::Value(entry)), path)) = self.path.split_first()
        else {
            return Err(A::Error::invalid_type(Unexpected::Map, &self));
        };
        for _ in 0..*entry {
            entries.next_entry::<IgnoredAny, IgnoredAny>()?;
        }
        match step {
            Step::Value(_) => {
                entries.next_key::<IgnoredAny>()?;
                entries.next_value_seed(Locate { path })
            }
            Step::Key(_) | Step::Item(_) => entries.next_key_seed(Locate { path: &[] }).map(drop),
        }
    }
}
