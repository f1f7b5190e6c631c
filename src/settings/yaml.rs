//! Parses YAML into a tree of [`Node`]s with their lines, in one pass over the text. No other file uses
//! the YAML parser, and this file must never know a setting.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, Tag};

use super::error::quoted;

/// Maximum size of a file after its aliases are expanded: [`NODE_COST`] for each node, and 1 for each
/// byte of text. An anchored node counts once more, since it is kept for its aliases.
const EXPANDED_MAX: usize = 8 << 20;
const NODE_COST: usize = 16;

/// Maximum depth of lists and maps in each other.
const DEPTH_MAX: usize = 128;

/// A node of YAML, and its line from 1. A copy made by an alias has the line of its anchor.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) value: Value,
}

/// The value of a node. A scalar is its text as written, without quotes: `1.10` is not a number yet.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// Null, or an absent value.
    Null,
    /// One value.
    Scalar(String),
    /// Items in their order.
    List(Vec<Node>),
    /// Entries in their order; a key may come twice.
    Map(Vec<(Node, Node)>),
}

impl Value {
    /// Names the type of the value, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Scalar(_) => "one value",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }
}

/// Why a text is not YAML, or is YAML that is not accepted.
#[derive(Debug, PartialEq)]
pub(super) struct Malformed {
    /// The line, from 1.
    pub(super) line: usize,
    /// The reason.
    pub(super) reason: String,
}

impl Malformed {
    fn new(line: usize, reason: &str) -> Self {
        Self { line, reason: reason.to_owned() }
    }

    /// Names a tab if it is most likely the cause. The line of an error may be that before the tab.
    pub(super) fn explain(self, text: &str) -> Self {
        let is_indentation = |c: char| c == ' ' || c == '\t';
        let is_indented_by_tab = |line: &str| {
            line.split(|c| !is_indentation(c)).next().unwrap_or_default().contains('\t')
        };
        let mut near = (1..).zip(text.lines()).skip(self.line - 1).take(2);
        match near.find(|(_, line)| is_indented_by_tab(line) || line.contains(":\t")) {
            Some((line, text)) if is_indented_by_tab(text) => {
                Self::new(line, "a tab indents this line: indent with spaces")
            }
            Some((line, _)) => Self::new(line, "a tab follows a colon: put a space there"),
            None => self,
        }
    }
}

impl From<ScanError> for Malformed {
    fn from(error: ScanError) -> Self {
        Self { line: error.marker().line(), reason: error.info().to_owned() }
    }
}

/// Parses a text of at most one document. An empty text is [`Value::Null`].
pub(super) fn read(text: &str) -> Result<Node, Malformed> {
    let mut tree = Tree::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event?;
        tree.add(event, span)?;
    }
    Ok(tree.root.unwrap_or(Node { line: 1, value: Value::Null }))
}

/// A tree that is built from the events of the parser.
#[derive(Default)]
struct Tree {
    root: Option<Node>,
    /// The lists and maps that are not complete, outermost first.
    open: Vec<OpenNode>,
    /// The complete anchored nodes, and what each counts towards [`EXPANDED_MAX`].
    anchors: BTreeMap<usize, (Node, usize)>,
    expanded: usize,
}

/// A list or map whose end has not been read.
struct OpenNode {
    line: usize,
    /// The number of its anchor; 0 if it has none.
    anchor: usize,
    /// [`Tree::expanded`] before it.
    expanded_before: usize,
    children: Vec<Node>,
    is_map: bool,
}

impl Tree {
    fn add(&mut self, event: Event<'_>, span: Span) -> Result<(), Malformed> {
        let line = span.start.line();
        match event {
            Event::DocumentStart(_) if self.root.is_some() => {
                Err(Malformed::new(line, "a second document starts here: give only one"))
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
            Event::Alias(anchor) => {
                let Some((node, cost)) = self.anchors.get(&anchor) else {
                    return Err(Malformed::new(line, "an alias is inside of what it names"));
                };
                let (node, cost) = (node.clone(), *cost);
                self.charge(line, cost)?;
                self.attach(node);
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                check_tag(tag.as_deref(), line)?;
                let cost = NODE_COST + text.len();
                self.charge(line, cost)?;
                let is_null = style == ScalarStyle::Plain
                    && is_null(&text)
                    && tag.is_none_or(|tag| tag.suffix == "null");
                let value = if is_null { Value::Null } else { Value::Scalar(text.into_owned()) };
                self.complete(Node { line, value }, anchor, cost)
            }
            Event::SequenceStart(anchor, tag) => self.open(line, anchor, tag.as_deref(), false),
            Event::MappingStart(anchor, tag) => self.open(line, anchor, tag.as_deref(), true),
            Event::SequenceEnd | Event::MappingEnd => self.close(),
        }
    }

    fn open(
        &mut self,
        line: usize,
        anchor: usize,
        tag: Option<&Tag>,
        is_map: bool,
    ) -> Result<(), Malformed> {
        check_tag(tag, line)?;
        if self.open.len() == DEPTH_MAX {
            return Err(Malformed::new(line, "lists and maps are nested too deeply"));
        }
        let expanded_before = self.expanded;
        self.charge(line, NODE_COST)?;
        self.open.push(OpenNode { line, anchor, expanded_before, children: Vec::new(), is_map });
        Ok(())
    }

    fn close(&mut self) -> Result<(), Malformed> {
        let Some(OpenNode { line, anchor, expanded_before, children, is_map }) = self.open.pop()
        else {
            return Ok(()); // the parser ends nothing that it has not begun
        };
        let value = if is_map {
            let mut nodes = children.into_iter();
            let mut entries = Vec::new();
            while let (Some(key), Some(value)) = (nodes.next(), nodes.next()) {
                entries.push((key, value));
            }
            Value::Map(entries)
        } else {
            Value::List(children)
        };
        self.complete(Node { line, value }, anchor, self.expanded - expanded_before)
    }

    /// Adds a node to the list or map around it. Keeps it if it has an anchor.
    fn complete(&mut self, node: Node, anchor: usize, cost: usize) -> Result<(), Malformed> {
        if anchor != 0 {
            self.charge(node.line, cost)?;
            self.anchors.insert(anchor, (node.clone(), cost));
        }
        self.attach(node);
        Ok(())
    }

    fn attach(&mut self, node: Node) {
        match self.open.last_mut() {
            Some(around) => around.children.push(node),
            None => self.root = Some(node),
        }
    }

    fn charge(&mut self, line: usize, cost: usize) -> Result<(), Malformed> {
        self.expanded += cost;
        if self.expanded > EXPANDED_MAX {
            return Err(Malformed::new(line, "the file is too large once expanded"));
        }
        Ok(())
    }
}

/// Rejects tags, except those of YAML's own types, which change no value, except that `!!str null` is a text.
fn check_tag(tag: Option<&Tag>, line: usize) -> Result<(), Malformed> {
    let Some(Tag { handle, suffix }) = tag else { return Ok(()) };
    let is_core = tag.is_some_and(Tag::is_yaml_core_schema);
    if is_core && CORE_TAGS.contains(&suffix.as_str()) {
        return Ok(());
    }
    let handle = if is_core { "!!" } else { handle };
    let reason = format!("the tag {handle}{suffix} is not supported: leave it out");
    Err(Malformed { line, reason })
}

const CORE_TAGS: [&str; 7] = ["str", "int", "float", "bool", "null", "seq", "map"];

fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// Returns a name and its value, each of which must be one scalar.
pub(super) fn scalar_entry((name, value): &(Node, Node)) -> Result<(&str, &str), String> {
    let Value::Scalar(name) = &name.value else { return Err("a key must be a string".into()) };
    match &value.value {
        Value::Scalar(value) => Ok((name, value)),
        Value::Null | Value::List(_) | Value::Map(_) => {
            Err(format!("{} has {}: give it one value", quoted(name), value.value.kind()))
        }
    }
}

#[cfg(test)]
mod tests;
