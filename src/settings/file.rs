//! From a YAML file to an [`Overlay`] whose errors name their lines. This file must never know what
//! an option means, nor how YAML is parsed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use super::error::{SettingsError, Source, quoted};
use super::overlay::{APP, Overlay, bad_value, judge, nearest_key};
use super::shape::Kind;
use super::table::{KEYS, Key};
use super::yaml::{self, Node, Step};
use crate::app::Options;

/// Largest file, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads a file.
pub(super) fn read(path: &Path) -> Result<Overlay, SettingsError> {
    let unreadable = |why| SettingsError::Unreadable { path: path.to_owned(), why };
    let bytes = read_bytes(path).map_err(|error| unreadable(error.to_string()))?;
    match String::from_utf8(bytes) {
        Ok(text) => parse(&text, path),
        Err(error) => {
            let good = error.utf8_error().valid_up_to();
            let line = 1 + error.as_bytes()[..good].iter().filter(|b| **b == b'\n').count();
            let place = Source::File { path: path.to_owned(), line };
            Err(SettingsError::Malformed { place, why: "is not UTF-8".into() })
        }
    }
}

/// Reads a text, as if it stood in a file of that name.
pub(super) fn parse(text: &str, path: &Path) -> Result<Overlay, SettingsError> {
    let document = Document { text, path };
    let mut overlay = Overlay::default();
    let root = yaml::read(text).map_err(|yaml::Malformed { line, why }| {
        SettingsError::Malformed { place: Source::File { path: path.to_owned(), line }, why }
    })?;
    let entries = match root {
        Node::Null => return Ok(overlay),
        Node::Map(entries) => entries,
        Node::Scalar(_) | Node::List(_) => {
            return Err(document.malformed(&[], "is not a map: give lines of KEY: VALUE"));
        }
    };
    for (at, (key, node)) in entries.iter().enumerate() {
        let Node::Scalar(name) = key else {
            return Err(document.malformed(&[Step::Key(at)], "a key must be a word"));
        };
        if entries[..at].iter().any(|(other, _)| other == key) {
            let why = format!("key {} is given twice", quoted(name));
            return Err(document.malformed(&[Step::Key(at)], &why));
        }
        if name == APP {
            document.give_app(&mut overlay, at, node)?;
        } else if let Some(key) = KEYS.iter().find(|key| key.name == name) {
            document.give(&mut overlay, key, at, node)?;
        } else {
            return Err(SettingsError::UnknownKey {
                place: document.place(&[Step::Key(at)]),
                key: name.clone(),
                nearest: nearest_key(name),
            });
        }
    }
    Ok(overlay)
}

/// A regular file's bytes. Other kinds are refused before they are opened: a pipe would block.
fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let refuse = |why: &str| Err(io::Error::other(why.to_owned()));
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        return refuse("it is a directory");
    }
    if !metadata.is_file() {
        return refuse("it is not a regular file");
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return refuse("it is larger than 1 MiB");
    }
    Ok(bytes)
}

struct Document<'a> {
    text: &'a str,
    path: &'a Path,
}

impl Document<'_> {
    fn give(
        &self,
        overlay: &mut Overlay,
        key: &'static Key,
        at: usize,
        node: &Node,
    ) -> Result<(), SettingsError> {
        let texts = self.texts(key, at, node)?;
        if let Err(fault) = judge(key, &texts) {
            let place = match (fault.at, node) {
                (Some(item), Node::List(_)) => self.place(&[Step::Value(at), Step::Item(item)]),
                (Some(item), Node::Map(_)) => self.place(&[Step::Value(at), Step::Key(item)]),
                _ => self.place(&[Step::Key(at)]),
            };
            return Err(bad_value(key, &texts, fault, place));
        }
        overlay.give(key, texts, self.place(&[Step::Key(at)]))
    }

    /// The texts of an option: as many as its value has items.
    fn texts(&self, key: &Key, at: usize, node: &Node) -> Result<Vec<String>, SettingsError> {
        let shape = |step: &[Step], why: String| SettingsError::BadValue {
            place: self.place(step),
            key: key.name.into(),
            value: None,
            why,
        };
        match (key.kind, node) {
            (Kind::Maybe, Node::Null) => Ok(Vec::new()),
            (_, Node::Null) => Err(shape(
                &[Step::Key(at)],
                "no value is given: give one, or leave out the key".into(),
            )),
            (_, Node::Scalar(text)) => Ok(vec![text.clone()]),
            (Kind::Many | Kind::Pairs, Node::List(items)) => {
                let mut texts = Vec::new();
                for (item, node) in items.iter().enumerate() {
                    let Node::Scalar(text) = node else {
                        let why = format!("{} stands in the list, not a value", node.kind());
                        return Err(shape(&[Step::Value(at), Step::Item(item)], why));
                    };
                    texts.push(text.clone());
                }
                Ok(texts)
            }
            (Kind::Pairs, Node::Map(entries)) => {
                let mut texts = Vec::new();
                for (entry, pair) in entries.iter().enumerate() {
                    let (name, value) = entry_of(pair)
                        .map_err(|why| shape(&[Step::Value(at), Step::Key(entry)], why))?;
                    if name.contains('=') {
                        let why = format!("{} is not a variable: it contains =", quoted(name));
                        return Err(shape(&[Step::Value(at), Step::Key(entry)], why));
                    }
                    texts.push(format!("{name}={value}"));
                }
                Ok(texts)
            }
            (kind, Node::List(_) | Node::Map(_)) => {
                let wanted = match kind {
                    Kind::One | Kind::Switch | Kind::Maybe => "one value",
                    Kind::Many => "a list",
                    Kind::Pairs => "a map or a list",
                };
                Err(shape(&[Step::Key(at)], format!("{} is given, not {wanted}", node.kind())))
            }
        }
    }

    fn give_app(&self, overlay: &mut Overlay, at: usize, node: &Node) -> Result<(), SettingsError> {
        let shape = |step: &[Step], why: String| SettingsError::BadValue {
            place: self.place(step),
            key: APP.into(),
            value: None,
            why,
        };
        let (mut app, mut options, mut places) = (None, Options::new(), BTreeMap::new());
        match node {
            Node::Scalar(text) => app = Some(text.clone()),
            Node::Map(entries) => {
                for (entry, pair) in entries.iter().enumerate() {
                    let here = [Step::Value(at), Step::Key(entry)];
                    let (name, value) = entry_of(pair).map_err(|why| shape(&here, why))?;
                    let before = if name == "name" {
                        app.replace(value.to_owned())
                    } else {
                        places.insert(name.to_owned(), self.place(&here));
                        options.insert(name.to_owned(), value.to_owned())
                    };
                    if before.is_some() {
                        return Err(shape(&here, format!("{} is given twice", quoted(name))));
                    }
                }
            }
            Node::Null | Node::List(_) => {
                let why = "give a name, or a map with a name and options";
                return Err(shape(&[Step::Key(at)], why.into()));
            }
        }
        let Some(name) = app else {
            let why = "the map needs a name: give name: APP in it";
            return Err(shape(&[Step::Key(at)], why.into()));
        };
        overlay.give_app(name, options, self.place(&[Step::Key(at)]))?;
        overlay.place_options(places);
        Ok(())
    }

    fn place(&self, path: &[Step]) -> Source {
        Source::File { path: self.path.to_owned(), line: yaml::line_of(self.text, path) }
    }

    fn malformed(&self, path: &[Step], why: &str) -> SettingsError {
        SettingsError::Malformed { place: self.place(path), why: why.into() }
    }
}

/// A name and its value, each one scalar.
fn entry_of((name, value): &(Node, Node)) -> Result<(&str, &str), String> {
    let Node::Scalar(name) = name else { return Err("a key must be a word".into()) };
    match value {
        Node::Scalar(value) => Ok((name, value)),
        Node::Null | Node::List(_) | Node::Map(_) => {
            Err(format!("{} has {}: give it one value", quoted(name), value.kind()))
        }
    }
}
