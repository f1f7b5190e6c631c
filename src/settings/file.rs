//! From a YAML file to a [`Sheet`] of overlays whose errors name their lines. This file must never
//! know what an option means, nor how YAML is parsed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use super::error::{SettingsError, Source, quoted};
use super::layer::{APP, Overlay, bad_value, judge, nearest_key};
use super::arity::{ValueError, Kind};
use super::schema::{KEYS, Key, Owner};
use super::interpolate::{self, Environment, Vars};
use super::yaml::{self, Node, Step};
use crate::app::Options;

/// The variables of a file.
const VARS: &str = "vars";

/// The pools of a file.
const POOLS: &str = "pools";

const VARS_MAX: usize = 1000;
const POOLS_MAX: usize = 64;
const POOL_NAME_BYTES_MAX: usize = 32;

/// Largest file, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a file says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sheet {
    /// What holds for the master, and for each pool that says nothing else.
    pub(super) top: Overlay,
    /// The pools, in their order; none if the file does not speak of any.
    pub(super) pools: Vec<OwnKeys>,
}

/// What a file says of one pool.
#[derive(Clone, Debug)]
pub(super) struct OwnKeys {
    pub(super) pool: String,
    pub(super) place: Source,
    pub(super) keys: Overlay,
}

impl Sheet {
    /// What a YAML file says: a regular file of at most 1 MiB, in UTF-8.
    ///
    /// # Errors
    /// Whatever keeps it from being read, or the first thing that is wrong in it.
    pub(crate) fn read(path: &Path, environment: &Environment) -> Result<Self, SettingsError> {
        let unreadable = |why| SettingsError::Unreadable { path: path.to_owned(), reason: why };
        let bytes = read_bytes(path).map_err(|error| unreadable(error.to_string()))?;
        match String::from_utf8(bytes) {
            Ok(text) => Self::parse(&text, path, environment),
            Err(error) => {
                let good = error.utf8_error().valid_up_to();
                let line = 1 + error.as_bytes()[..good].iter().filter(|b| **b == b'\n').count();
                let place = Source::File { path: path.to_owned(), line };
                Err(SettingsError::Malformed { source: place, reason: "is not UTF-8".into() })
            }
        }
    }

    /// What a text says, as if it stood in a file of that name.
    pub(super) fn parse(
        text: &str,
        path: &Path,
        environment: &Environment,
    ) -> Result<Self, SettingsError> {
        let root = yaml::read(text).map_err(|yaml::Malformed { line, reason: why }| {
            SettingsError::Malformed { source: Source::File { path: path.to_owned(), line }, reason: why }
        })?;
        let mut document = Document { text, path, vars: Vars::new(environment) };
        let entries = match root {
            Node::Null => return Ok(Self::default()),
            Node::Map(entries) => entries,
            Node::Scalar(_) | Node::List(_) => {
                return Err(document.malformed(&[], "is not a map: give lines of KEY: VALUE"));
            }
        };
        if let Some(at) = index_of(&entries, VARS) {
            document.define_vars(&[Step::Value(at)], &entries[at].1)?;
        }
        let top = Map { document: &document, path: &[], entries: &entries };
        let mut sheet = Self::default();
        for (at, name, node) in top.names()? {
            match name {
                VARS => (),
                POOLS => sheet.pools = document.pools(&[Step::Value(at)], node)?,
                _ => top.give(&mut sheet.top, name, at, node)?,
            }
        }
        Ok(sheet)
    }
}

fn index_of(entries: &[(Node, Node)], wanted: &str) -> Option<usize> {
    entries.iter().position(|(key, _)| matches!(key, Node::Scalar(name) if name == wanted))
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
    vars: Vars<'a>,
}

impl Document<'_> {
    /// Reads the variables, each of which may use those above it.
    fn define_vars(&mut self, path: &[Step], node: &Node) -> Result<(), SettingsError> {
        let entries = match node {
            Node::Map(entries) => entries,
            Node::Null | Node::Scalar(_) | Node::List(_) => {
                let why = format!("{} is given, not a map of names and values", node.kind());
                return Err(self.bad(path, VARS, None, why));
            }
        };
        if entries.len() > VARS_MAX {
            return Err(self.bad(path, VARS, None, format!("has more than {VARS_MAX} items")));
        }
        let mut names: Vec<&str> = Vec::new();
        for (at, pair) in entries.iter().enumerate() {
            let here = [path, &[Step::Key(at)]].concat();
            let (name, _) = entry_of(pair).map_err(|why| self.bad(&here, VARS, None, why))?;
            if let Some(why) = interpolate::bad_name(name) {
                return Err(self.bad(&here, VARS, Some(name), why.into()));
            }
            if names.contains(&name) {
                return Err(self.bad(&here, VARS, Some(name), "is given twice".into()));
            }
            names.push(name);
        }
        for (at, (_, value)) in entries.iter().enumerate() {
            let Node::Scalar(value) = value else { continue };
            let defined = self.vars.define(names[at], value, &names[at..]);
            defined.map_err(|why| {
                let here = [path, &[Step::Key(at)]].concat();
                self.bad(&here, names[at], Some(value), why)
            })?;
        }
        Ok(())
    }

    fn pools(&self, path: &[Step], node: &Node) -> Result<Vec<OwnKeys>, SettingsError> {
        let bad = |path: &[Step], name, why: String| self.bad(path, POOLS, name, why);
        let entries = match node {
            Node::Map(entries) if !entries.is_empty() => entries,
            Node::Map(_) | Node::Null => {
                let why = "is empty: give at least one pool, or leave out the key";
                return Err(bad(path, None, why.into()));
            }
            Node::Scalar(_) | Node::List(_) => {
                let why = format!("{} is given, not a map of pools", node.kind());
                return Err(bad(path, None, why));
            }
        };
        if entries.len() > POOLS_MAX {
            return Err(bad(path, None, format!("has more than {POOLS_MAX} items")));
        }
        let mut pools = Vec::new();
        let map = Map { document: self, path, entries };
        for (at, name, node) in map.names()? {
            let here = [path, &[Step::Key(at)]].concat();
            if let Some(why) = bad_pool_name(name) {
                return Err(bad(&here, Some(name), why.into()));
            }
            let inner = [path, &[Step::Value(at)]].concat();
            let own = match node {
                Node::Null => &[][..],
                Node::Map(entries) => entries,
                Node::Scalar(_) | Node::List(_) => {
                    let why = format!("has {}: give it a map of its own keys", node.kind());
                    return Err(bad(&here, Some(name), why));
                }
            };
            let keys = Map { document: self, path: &inner, entries: own }.own_keys(name)?;
            pools.push(OwnKeys { pool: name.to_owned(), place: self.place(&here), keys });
        }
        Ok(pools)
    }

    fn place(&self, path: &[Step]) -> Source {
        Source::File { path: self.path.to_owned(), line: yaml::line_of(self.text, path) }
    }

    fn malformed(&self, path: &[Step], why: &str) -> SettingsError {
        SettingsError::Malformed { source: self.place(path), reason: why.into() }
    }

    fn bad(&self, path: &[Step], key: &str, value: Option<&str>, why: String) -> SettingsError {
        let (key, value) = (key.to_owned(), value.map(str::to_owned));
        SettingsError::InvalidValue { source: self.place(path), key, value, reason: why }
    }
}

/// A map of keys somewhere in a document: the whole, or one pool's own.
struct Map<'a> {
    document: &'a Document<'a>,
    /// Where the map stands.
    path: &'a [Step],
    entries: &'a [(Node, Node)],
}

impl<'a> Map<'a> {
    /// The entries with their names, of which no two are the same.
    fn names(&self) -> Result<Vec<(usize, &'a str, &'a Node)>, SettingsError> {
        let mut names: Vec<(usize, &str, &Node)> = Vec::new();
        for (at, (key, node)) in self.entries.iter().enumerate() {
            let malformed = |why: &str| self.document.malformed(&self.to(&[Step::Key(at)]), why);
            let Node::Scalar(name) = key else { return Err(malformed("a key must be a word")) };
            if names.iter().any(|(_, other, _)| other == name) {
                return Err(malformed(&format!("key {} is given twice", quoted(name))));
            }
            names.push((at, name, node));
        }
        Ok(names)
    }

    /// What a pool says of itself.
    fn own_keys(&self, pool: &str) -> Result<Overlay, SettingsError> {
        let mut overlay = Overlay::default();
        for (at, name, node) in self.names()? {
            let of_master = KEYS.iter().filter(|key| key.owner == Owner::Master);
            let mut of_master = of_master.map(|key| key.name).chain([VARS, POOLS]);
            if let Some(key) = of_master.find(|key| *key == name) {
                let why = format!(
                    "belongs to the master, of which there is one, and not to pool {pool:?}: give \
                     it at the top of the file"
                );
                return Err(SettingsError::Conflict {
                    source: self.place(&[Step::Key(at)]),
                    key,
                    reason: why,
                });
            }
            self.give(&mut overlay, name, at, node)?;
        }
        Ok(overlay)
    }

    fn give(
        &self,
        overlay: &mut Overlay,
        name: &str,
        at: usize,
        node: &Node,
    ) -> Result<(), SettingsError> {
        if name == APP {
            return self.give_app(overlay, at, node);
        }
        let Some(key) = KEYS.iter().find(|key| key.name == name) else {
            return Err(SettingsError::UnknownKey {
                source: self.place(&[Step::Key(at)]),
                key: name.to_owned(),
                suggestion: nearest_key(name),
            });
        };
        let written = self.texts(key, at, node)?;
        let item_place = |item| match node {
            Node::List(_) => self.place(&[Step::Value(at), Step::Item(item)]),
            Node::Map(_) => self.place(&[Step::Value(at), Step::Key(item)]),
            Node::Null | Node::Scalar(_) => self.place(&[Step::Key(at)]),
        };
        let mut texts = Vec::with_capacity(written.len());
        for (item, text) in written.iter().enumerate() {
            let fault = |why| ValueError { index: Some(item), reason: why };
            let expanded = self.document.vars.expand(text).map_err(fault);
            texts
                .push(expanded.map_err(|fault| bad_value(key, &written, fault, item_place(item)))?);
        }
        if let Err(mut fault) = judge(key, &texts) {
            let place = fault.index.map_or_else(|| self.place(&[Step::Key(at)]), item_place);
            if let Some(item) = fault.index.filter(|item| written[*item] != texts[*item]) {
                fault.reason.push_str(&format!(" (written {})", quoted(&written[item])));
            }
            return Err(bad_value(key, &texts, fault, place));
        }
        overlay.give(key, texts, self.place(&[Step::Key(at)]))
    }

    /// The texts of an option as written: as many as its value has items.
    fn texts(&self, key: &Key, at: usize, node: &Node) -> Result<Vec<String>, SettingsError> {
        let shape = |step: &[Step], why: String| SettingsError::InvalidValue {
            source: self.place(step),
            key: key.name.into(),
            value: None,
            reason: why,
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
        let shape = |step: &[Step], why: String| SettingsError::InvalidValue {
            source: self.place(step),
            key: APP.into(),
            value: None,
            reason: why,
        };
        let (mut app, mut options, mut places) = (None, Options::new(), BTreeMap::new());
        match node {
            Node::Scalar(text) => app = Some(self.expand(text, &[Step::Key(at)])?),
            Node::Map(entries) => {
                for (entry, pair) in entries.iter().enumerate() {
                    let here = [Step::Value(at), Step::Key(entry)];
                    let (name, value) = entry_of(pair).map_err(|why| shape(&here, why))?;
                    let value = self.expand(value, &here)?;
                    let before = if name == "name" {
                        app.replace(value)
                    } else {
                        places.insert(name.to_owned(), self.place(&here));
                        options.insert(name.to_owned(), value)
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

    /// A value of the app with its variables replaced.
    fn expand(&self, text: &str, path: &[Step]) -> Result<String, SettingsError> {
        let expanded = self.document.vars.expand(text);
        expanded.map_err(|why| self.document.bad(&self.to(path), APP, Some(text), why))
    }

    fn to(&self, path: &[Step]) -> Vec<Step> {
        [self.path, path].concat()
    }

    fn place(&self, path: &[Step]) -> Source {
        self.document.place(&self.to(path))
    }
}

/// Why a name cannot be that of a pool, if it cannot.
fn bad_pool_name(name: &str) -> Option<&'static str> {
    let usual = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
    let begins_well = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let is_good = name.len() <= POOL_NAME_BYTES_MAX
        && name.as_bytes().first().is_some_and(begins_well)
        && name.bytes().all(usual);
    (!is_good).then_some(
        "is not the name of a pool: give at most 32 of a-z, 0-9, _ and -, and a letter or digit \
         first",
    )
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
