//! Reads a YAML file into a [`ConfigFile`] of layers. Errors name the line. This file must never know
//! the meaning of an option, nor how YAML is parsed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use super::arity::{Arity, ValueError};
use super::error::{SettingsError, Source, quoted};
use super::interpolate::{self, Environment, Variables};
use super::layer::{APP_KEY, ConfigLayer, invalid_value, suggest_key};
use super::schema::{OPTIONS, OptionDef, Scope};
use super::yaml::{self, Node, Step};
use crate::app::Options;

/// The YAML key of the variables.
const VARS_KEY: &str = "vars";

/// The YAML key of the pools.
const POOLS_KEY: &str = "pools";

const VARS_LIMIT: usize = 1000;
const POOLS_LIMIT: usize = 64;
const POOL_NAME_BYTES_LIMIT: usize = 32;

/// Maximum size of a file.
const FILE_BYTES_LIMIT: u64 = 1 << 20;

/// The content of a file.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConfigFile {
    /// The keys of the master, and the defaults of all pools.
    pub(super) top_level: ConfigLayer,
    /// The pools in the order of the file; none if the key `pools` is absent.
    pub(super) pools: Vec<PoolSection>,
}

/// The section of one pool.
#[derive(Clone, Debug)]
pub(super) struct PoolSection {
    pub(super) pool: String,
    pub(super) source: Source,
    pub(super) layer: ConfigLayer,
}

impl ConfigFile {
    /// Reads a YAML file: a regular file of at most 1 MiB, in UTF-8.
    ///
    /// # Errors
    /// The file cannot be read, or the first error in it.
    pub(crate) fn read(path: &Path, environment: &Environment) -> Result<Self, SettingsError> {
        let unreadable = |reason| SettingsError::Unreadable { path: path.to_owned(), reason };
        let bytes = read_bytes(path).map_err(|error| unreadable(error.to_string()))?;
        match String::from_utf8(bytes) {
            Ok(text) => Self::parse(&text, path, environment),
            Err(error) => {
                let valid_bytes = error.utf8_error().valid_up_to();
                let line =
                    1 + error.as_bytes()[..valid_bytes].iter().filter(|b| **b == b'\n').count();
                let source = Source::File { path: path.to_owned(), line };
                Err(SettingsError::Malformed { source, reason: "is not UTF-8".into() })
            }
        }
    }

    /// Parses a text as if it were the content of a file of that name.
    pub(super) fn parse(
        text: &str,
        path: &Path,
        environment: &Environment,
    ) -> Result<Self, SettingsError> {
        let root = yaml::read(text).map_err(|yaml::Malformed { line, reason }| {
            SettingsError::Malformed {
                source: Source::File { path: path.to_owned(), line },
                reason,
            }
        })?;
        let mut document = Document { text, path, vars: Variables::new(environment) };
        let entries = match root {
            Node::Null => return Ok(Self::default()),
            Node::Map(entries) => entries,
            Node::Scalar(_) | Node::List(_) => {
                return Err(document.malformed(&[], "is not a map: give lines of KEY: VALUE"));
            }
        };
        if let Some(at) = index_of(&entries, VARS_KEY) {
            document.define_vars(&[Step::Value(at)], &entries[at].1)?;
        }
        let top = Mapping { document: &document, path: &[], entries: &entries };
        let mut file = Self::default();
        for (at, name, node) in top.entries_by_name()? {
            match name {
                VARS_KEY => (),
                POOLS_KEY => file.pools = document.pools(&[Step::Value(at)], node)?,
                _ => top.set_option(&mut file.top_level, name, at, node)?,
            }
        }
        Ok(file)
    }
}

fn index_of(entries: &[(Node, Node)], wanted: &str) -> Option<usize> {
    entries.iter().position(|(key, _)| matches!(key, Node::Scalar(name) if name == wanted))
}

/// Reads a regular file. Rejects other files before it opens them, because a pipe would block.
fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let reject = |reason: &str| Err(io::Error::other(reason.to_owned()));
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        return reject("it is a directory");
    }
    if !metadata.is_file() {
        return reject("it is not a regular file");
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_LIMIT {
        return reject("it is larger than 1 MiB");
    }
    Ok(bytes)
}

struct Document<'a> {
    text: &'a str,
    path: &'a Path,
    vars: Variables<'a>,
}

impl Document<'_> {
    /// Reads the variables. A variable may use those defined above it.
    fn define_vars(&mut self, path: &[Step], node: &Node) -> Result<(), SettingsError> {
        let entries = match node {
            Node::Map(entries) => entries,
            Node::Null | Node::Scalar(_) | Node::List(_) => {
                let reason = format!("{} is given, not a map of names and values", node.kind());
                return Err(self.invalid_value(path, VARS_KEY, None, reason));
            }
        };
        if entries.len() > VARS_LIMIT {
            return Err(self.invalid_value(
                path,
                VARS_KEY,
                None,
                format!("has more than {VARS_LIMIT} items"),
            ));
        }
        let mut seen: Vec<&str> = Vec::new();
        for (at, pair) in entries.iter().enumerate() {
            let key_path = [path, &[Step::Key(at)]].concat();
            let (name, _) = scalar_entry(pair)
                .map_err(|reason| self.invalid_value(&key_path, VARS_KEY, None, reason))?;
            if let Some(reason) = interpolate::variable_name_error(name) {
                return Err(self.invalid_value(&key_path, VARS_KEY, Some(name), reason.into()));
            }
            if seen.contains(&name) {
                return Err(self.invalid_value(
                    &key_path,
                    VARS_KEY,
                    Some(name),
                    "is a duplicate".into(),
                ));
            }
            seen.push(name);
        }
        for (at, (_, value)) in entries.iter().enumerate() {
            let Node::Scalar(value) = value else { continue };
            let defined = self.vars.define(seen[at], value, &seen[at..]);
            defined.map_err(|reason| {
                let key_path = [path, &[Step::Key(at)]].concat();
                self.invalid_value(&key_path, seen[at], Some(value), reason)
            })?;
        }
        Ok(())
    }

    fn pools(&self, path: &[Step], node: &Node) -> Result<Vec<PoolSection>, SettingsError> {
        let invalid =
            |path: &[Step], name, reason: String| self.invalid_value(path, POOLS_KEY, name, reason);
        let entries = match node {
            Node::Map(entries) if !entries.is_empty() => entries,
            Node::Map(_) | Node::Null => {
                let reason = "is empty: give at least one pool, or leave out the key";
                return Err(invalid(path, None, reason.into()));
            }
            Node::Scalar(_) | Node::List(_) => {
                let reason = format!("{} is given, not a map of pools", node.kind());
                return Err(invalid(path, None, reason));
            }
        };
        if entries.len() > POOLS_LIMIT {
            return Err(invalid(path, None, format!("has more than {POOLS_LIMIT} items")));
        }
        let mut pools = Vec::new();
        let map = Mapping { document: self, path, entries };
        for (at, name, node) in map.entries_by_name()? {
            let pool_key_path = [path, &[Step::Key(at)]].concat();
            if let Some(reason) = pool_name_error(name) {
                return Err(invalid(&pool_key_path, Some(name), reason.into()));
            }
            let pool_path = [path, &[Step::Value(at)]].concat();
            let entries_of_pool = match node {
                Node::Null => &[][..],
                Node::Map(entries) => entries,
                Node::Scalar(_) | Node::List(_) => {
                    let reason = format!("has {}: give it a map of its own keys", node.kind());
                    return Err(invalid(&pool_key_path, Some(name), reason));
                }
            };
            let layer = Mapping { document: self, path: &pool_path, entries: entries_of_pool }
                .pool_layer(name)?;
            pools.push(PoolSection {
                pool: name.to_owned(),
                source: self.source_at(&pool_key_path),
                layer,
            });
        }
        Ok(pools)
    }

    fn source_at(&self, path: &[Step]) -> Source {
        Source::File { path: self.path.to_owned(), line: yaml::line_of(self.text, path) }
    }

    fn malformed(&self, path: &[Step], reason: &str) -> SettingsError {
        SettingsError::Malformed { source: self.source_at(path), reason: reason.into() }
    }

    fn invalid_value(
        &self,
        path: &[Step],
        key: &str,
        value: Option<&str>,
        reason: String,
    ) -> SettingsError {
        SettingsError::InvalidValue {
            source: self.source_at(path),
            key: key.to_owned(),
            value: value.map(str::to_owned),
            reason,
        }
    }
}

/// A map of keys in a document: the top level, or the section of one pool.
struct Mapping<'a> {
    document: &'a Document<'a>,
    /// The position of the map.
    path: &'a [Step],
    entries: &'a [(Node, Node)],
}

impl<'a> Mapping<'a> {
    /// Returns the entries with their names. Rejects duplicate names.
    fn entries_by_name(&self) -> Result<Vec<(usize, &'a str, &'a Node)>, SettingsError> {
        let mut names: Vec<(usize, &str, &Node)> = Vec::new();
        for (at, (key, node)) in self.entries.iter().enumerate() {
            let malformed =
                |reason: &str| self.document.malformed(&self.full_path(&[Step::Key(at)]), reason);
            let Node::Scalar(name) = key else { return Err(malformed("a key must be a string")) };
            if names.iter().any(|(_, other, _)| other == name) {
                return Err(malformed(&format!("duplicate key {}", quoted(name))));
            }
            names.push((at, name, node));
        }
        Ok(names)
    }

    /// Reads the section of a pool. Rejects keys of the master.
    fn pool_layer(&self, pool: &str) -> Result<ConfigLayer, SettingsError> {
        let mut layer = ConfigLayer::default();
        for (at, name, node) in self.entries_by_name()? {
            let master_options = OPTIONS.iter().filter(|option| option.scope == Scope::Master);
            let mut master_keys =
                master_options.map(|option| option.name).chain([VARS_KEY, POOLS_KEY]);
            if let Some(key) = master_keys.find(|key| *key == name) {
                return Err(SettingsError::Conflict {
                    source: self.source_at(&[Step::Key(at)]),
                    key,
                    reason: format!(
                        "is a setting of the master, not of pool {pool:?}: \
                         give it at the top level of the file"
                    ),
                });
            }
            self.set_option(&mut layer, name, at, node)?;
        }
        Ok(layer)
    }

    fn set_option(
        &self,
        layer: &mut ConfigLayer,
        name: &str,
        at: usize,
        node: &Node,
    ) -> Result<(), SettingsError> {
        if name == APP_KEY {
            return self.set_app(layer, at, node);
        }
        let Some(option) = OPTIONS.iter().find(|option| option.name == name) else {
            return Err(SettingsError::UnknownKey {
                source: self.source_at(&[Step::Key(at)]),
                key: name.to_owned(),
                suggestion: suggest_key(name),
            });
        };
        let raw_texts = self.raw_texts(option, at, node)?;
        let item_source = |item| match node {
            Node::List(_) => self.source_at(&[Step::Value(at), Step::Item(item)]),
            Node::Map(_) => self.source_at(&[Step::Value(at), Step::Key(item)]),
            Node::Null | Node::Scalar(_) => self.source_at(&[Step::Key(at)]),
        };
        let mut texts = Vec::with_capacity(raw_texts.len());
        for (item, text) in raw_texts.iter().enumerate() {
            texts.push(self.document.vars.expand(text).map_err(|reason| {
                let error = ValueError { index: Some(item), reason };
                invalid_value(option, &raw_texts, error, item_source(item))
            })?);
        }
        let key_source = self.source_at(&[Step::Key(at)]);
        layer.try_set_option(option, &texts, &key_source).map_err(|mut error| {
            let source = error.index.map_or(key_source, item_source);
            if let Some(item) = error.index.filter(|item| raw_texts[*item] != texts[*item]) {
                error.reason.push_str(&format!(" (written {})", quoted(&raw_texts[item])));
            }
            invalid_value(option, &texts, error, source)
        })
    }

    /// Returns the texts of an option as written, one for each item of its value.
    fn raw_texts(
        &self,
        option: &OptionDef,
        at: usize,
        node: &Node,
    ) -> Result<Vec<String>, SettingsError> {
        let shape_error = |step: &[Step], reason: String| SettingsError::InvalidValue {
            source: self.source_at(step),
            key: option.name.into(),
            value: None,
            reason,
        };
        match (option.arity, node) {
            (Arity::Optional, Node::Null) => Ok(Vec::new()),
            (_, Node::Null) => Err(shape_error(
                &[Step::Key(at)],
                "no value is given: give one, or leave out the key".into(),
            )),
            (_, Node::Scalar(text)) => Ok(vec![text.clone()]),
            (Arity::List | Arity::PairList, Node::List(items)) => {
                let mut texts = Vec::new();
                for (item, node) in items.iter().enumerate() {
                    let Node::Scalar(text) = node else {
                        let reason = format!("the list contains {}, not a value", node.kind());
                        return Err(shape_error(&[Step::Value(at), Step::Item(item)], reason));
                    };
                    texts.push(text.clone());
                }
                Ok(texts)
            }
            (Arity::PairList, Node::Map(entries)) => {
                let mut texts = Vec::new();
                for (entry, pair) in entries.iter().enumerate() {
                    let (name, value) = scalar_entry(pair).map_err(|reason| {
                        shape_error(&[Step::Value(at), Step::Key(entry)], reason)
                    })?;
                    if name.contains('=') {
                        let reason = format!("{} is not a variable: it contains =", quoted(name));
                        return Err(shape_error(&[Step::Value(at), Step::Key(entry)], reason));
                    }
                    texts.push(format!("{name}={value}"));
                }
                Ok(texts)
            }
            (arity, Node::List(_) | Node::Map(_)) => {
                let expected = match arity {
                    Arity::Single | Arity::Flag | Arity::Optional => "one value",
                    Arity::List => "a list",
                    Arity::PairList => "a map or a list",
                };
                Err(shape_error(
                    &[Step::Key(at)],
                    format!("{} is given, not {expected}", node.kind()),
                ))
            }
        }
    }

    fn set_app(
        &self,
        layer: &mut ConfigLayer,
        at: usize,
        node: &Node,
    ) -> Result<(), SettingsError> {
        let shape_error = |step: &[Step], reason: String| SettingsError::InvalidValue {
            source: self.source_at(step),
            key: APP_KEY.into(),
            value: None,
            reason,
        };
        let mut app = None;
        let mut options = Options::new();
        let mut option_sources = BTreeMap::new();
        match node {
            Node::Scalar(text) => app = Some(self.interpolate(text, &[Step::Key(at)])?),
            Node::Map(entries) => {
                for (entry, pair) in entries.iter().enumerate() {
                    let entry_path = [Step::Value(at), Step::Key(entry)];
                    let (name, value) =
                        scalar_entry(pair).map_err(|reason| shape_error(&entry_path, reason))?;
                    let value = self.interpolate(value, &entry_path)?;
                    let previous = if name == "name" {
                        app.replace(value)
                    } else {
                        option_sources.insert(name.to_owned(), self.source_at(&entry_path));
                        options.insert(name.to_owned(), value)
                    };
                    if previous.is_some() {
                        return Err(shape_error(
                            &entry_path,
                            format!("duplicate key {}", quoted(name)),
                        ));
                    }
                }
            }
            Node::Null | Node::List(_) => {
                let reason = "give a name, or a map with a name and options";
                return Err(shape_error(&[Step::Key(at)], reason.into()));
            }
        }
        let Some(name) = app else {
            let reason = "the map needs a name: give name: APP in it";
            return Err(shape_error(&[Step::Key(at)], reason.into()));
        };
        layer.set_app(name, options, self.source_at(&[Step::Key(at)]))?;
        layer.set_option_sources(option_sources);
        Ok(())
    }

    /// Expands the variables in a value of the app.
    fn interpolate(&self, text: &str, path: &[Step]) -> Result<String, SettingsError> {
        let expanded = self.document.vars.expand(text);
        expanded.map_err(|reason| {
            self.document.invalid_value(&self.full_path(path), APP_KEY, Some(text), reason)
        })
    }

    fn full_path(&self, path: &[Step]) -> Vec<Step> {
        [self.path, path].concat()
    }

    fn source_at(&self, path: &[Step]) -> Source {
        self.document.source_at(&self.full_path(path))
    }
}

/// Returns why a name is not a valid pool name; `None` if it is valid.
fn pool_name_error(name: &str) -> Option<&'static str> {
    let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
    let is_allowed_first = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let is_good = name.len() <= POOL_NAME_BYTES_LIMIT
        && name.as_bytes().first().is_some_and(is_allowed_first)
        && name.bytes().all(is_allowed);
    (!is_good).then_some(
        "is not the name of a pool: give at most 32 of a-z, 0-9, _ and -, and a letter or digit \
         first",
    )
}

/// Returns a name and its value, each of which must be one scalar.
fn scalar_entry((name, value): &(Node, Node)) -> Result<(&str, &str), String> {
    let Node::Scalar(name) = name else { return Err("a key must be a string".into()) };
    match value {
        Node::Scalar(value) => Ok((name, value)),
        Node::Null | Node::List(_) | Node::Map(_) => {
            Err(format!("{} has {}: give it one value", quoted(name), value.kind()))
        }
    }
}
