//! Reads a YAML file into a [`ConfigFile`] of layers. Errors name the line. This file must never know
//! the meaning of an option, nor how YAML is parsed.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use super::arity::{Arity, ValueError};
use super::error::{SettingsError, Source, quoted};
use super::file_ending::FileSummary;
use super::file_list::{FileList, INCLUDE_KEY, LEADER_KEY, POOLS_KEY, ParsedFile, VARS_KEY};
use super::interpolate::{Environment, Expanded, Variables};
use super::layer::{APP_KEY, APP_NAME_KEY, ConfigLayer, invalid_value, suggest_key};
use super::pool_name::pool_name_error;
use super::schema::{OPTIONS, OptionDef, Scope};
use super::vars;
use super::yaml::{Node, Value, scalar_entry};
use crate::app::Options;
use crate::os::lookups::Lookups;

const POOLS_LIMIT: usize = 64;

/// The content of all files, laid over each other.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConfigFile {
    /// The keys of the master, and the defaults of all pools.
    pub(super) top_level: ConfigLayer,
    /// The pools in the order of the file; none if the key `pools` is absent.
    pub(super) pools: Vec<PoolSection>,
    /// One for each file, in their order.
    pub(super) summaries: Vec<FileSummary>,
}

/// The section of one pool.
#[derive(Clone, Debug)]
pub(super) struct PoolSection {
    pub(super) pool: String,
    pub(super) source: Source,
    pub(super) layer: ConfigLayer,
}

impl ConfigFile {
    /// Reads YAML files, and those that they include: regular files of at most 1 MiB, in UTF-8. A later
    /// one wins, key by key.
    ///
    /// # Errors
    /// A file cannot be read, or the first error in one.
    pub(crate) fn read(
        paths: &[PathBuf],
        environment: &Environment,
        lookups: &Lookups,
    ) -> Result<Self, SettingsError> {
        Self::merge(FileList::read(paths, lookups)?, environment)
    }

    /// Parses a text as if it were the content of a file of that name.
    pub(super) fn parse(
        text: &str,
        path: &Path,
        environment: &Environment,
    ) -> Result<Self, SettingsError> {
        Self::merge(FileList::parse(text, path)?, environment)
    }

    fn merge(files: Vec<ParsedFile>, environment: &Environment) -> Result<Self, SettingsError> {
        let vars = vars::define(&files, environment)?;
        let mut merged = Self::default();
        for file in &files {
            let document = Document { path: &file.path, vars: &vars };
            for entry in document.top_level_entries(&file.entries)? {
                match entry.name {
                    VARS_KEY | INCLUDE_KEY => (),
                    POOLS_KEY => document.add_pools(&mut merged.pools, &entry)?,
                    _ => document.set_option(&mut merged.top_level, &entry)?,
                }
            }
        }
        merged.summaries = files.into_iter().map(|file| file.summary).collect();
        Ok(merged)
    }
}

/// An entry of a map, by its name.
struct Entry<'a> {
    name: &'a str,
    /// The line of the name.
    line: usize,
    node: &'a Node,
}

struct Document<'a> {
    path: &'a Path,
    vars: &'a Variables<'a>,
}

impl Document<'_> {
    /// Adds the pools of a file, or lays them over those of earlier files.
    fn add_pools(
        &self,
        pools: &mut Vec<PoolSection>,
        section: &Entry<'_>,
    ) -> Result<(), SettingsError> {
        let invalid =
            |line, name, reason: String| self.invalid_value(line, POOLS_KEY, name, reason);
        let entries = match &section.node.value {
            Value::Map(entries) if !entries.is_empty() => entries,
            Value::Map(_) | Value::Null => {
                let reason = "is empty: give at least one pool, or leave out the key";
                return Err(invalid(section.line, None, reason.into()));
            }
            Value::Scalar(_) | Value::List(_) => {
                let reason = format!("{} is given, not a map of pools", section.node.value.kind());
                return Err(invalid(section.line, None, reason));
            }
        };
        for Entry { name, line, node } in self.entries_by_name(entries)? {
            if let Some(reason) = pool_name_error(name) {
                return Err(invalid(line, Some(name), reason.into()));
            }
            let entries_of_pool = match &node.value {
                Value::Null => &[][..],
                Value::Map(entries) => entries,
                Value::Scalar(_) | Value::List(_) => {
                    let reason =
                        format!("has {}: give it a map of its own keys", node.value.kind());
                    return Err(invalid(line, Some(name), reason));
                }
            };
            let known = pools.iter().position(|pool| pool.pool == name);
            let at = known.unwrap_or(pools.len());
            if at == POOLS_LIMIT {
                let reason = format!("has more than {POOLS_LIMIT} items");
                return Err(invalid(section.node.line, None, reason));
            }
            if known.is_none() {
                let (pool, source) = (name.to_owned(), self.source_at(line));
                pools.push(PoolSection { pool, source, layer: ConfigLayer::default() });
            }
            self.set_pool_options(&mut pools[at].layer, name, entries_of_pool)?;
        }
        Ok(())
    }

    /// Returns the entries of a file. Those of the map `leader` have the names of their options.
    fn top_level_entries<'n>(
        &self,
        entries: &'n [(Node, Node)],
    ) -> Result<Vec<Entry<'n>>, SettingsError> {
        let mut flat = Vec::with_capacity(entries.len());
        for entry in self.entries_by_name(entries)? {
            if entry.name != LEADER_KEY {
                flat.push(entry);
                continue;
            }
            let Value::Map(of_leader) = &entry.node.value else {
                let kind = entry.node.value.kind();
                let reason = format!("{kind} is given, not a map with etcd or kubernetes_lease");
                return Err(self.invalid_value(entry.line, LEADER_KEY, None, reason));
            };
            for Entry { name, line, node } in self.entries_by_name(of_leader)? {
                let key = format!("{LEADER_KEY}_{name}");
                let option = OPTIONS.iter().find(|option| option.name == key);
                let name = option.map(|option| option.name).ok_or_else(|| {
                    let suggestion = suggest_key(&key);
                    SettingsError::UnknownKey { source: self.source_at(line), key, suggestion }
                })?;
                flat.push(Entry { name, line, node });
            }
        }
        let mut seen = HashSet::new();
        match flat.iter().find(|entry| !seen.insert(entry.name)) {
            Some(Entry { name, line, .. }) => {
                Err(self.malformed(*line, &format!("duplicate key {}", quoted(name))))
            }
            None => Ok(flat),
        }
    }

    /// Returns the entries of a map with their names. Rejects duplicate names.
    fn entries_by_name<'n>(
        &self,
        entries: &'n [(Node, Node)],
    ) -> Result<Vec<Entry<'n>>, SettingsError> {
        let mut seen = HashSet::new();
        let mut named = Vec::with_capacity(entries.len());
        for (key, node) in entries {
            let Value::Scalar(name) = &key.value else {
                return Err(self.malformed(key.line, "a key must be a string"));
            };
            if !seen.insert(name) {
                return Err(self.malformed(key.line, &format!("duplicate key {}", quoted(name))));
            }
            named.push(Entry { name, line: key.line, node });
        }
        Ok(named)
    }

    /// Reads the section of a pool. Rejects keys of the master.
    fn set_pool_options(
        &self,
        layer: &mut ConfigLayer,
        pool: &str,
        entries: &[(Node, Node)],
    ) -> Result<(), SettingsError> {
        for entry in self.entries_by_name(entries)? {
            let master_options = OPTIONS.iter().filter(|option| option.scope == Scope::Master);
            let mut master_keys = master_options.map(|option| option.name).chain([
                VARS_KEY,
                POOLS_KEY,
                INCLUDE_KEY,
                LEADER_KEY,
            ]);
            if let Some(key) = master_keys.find(|key| *key == entry.name) {
                return Err(SettingsError::Conflict {
                    source: self.source_at(entry.line),
                    key,
                    reason: format!(
                        "is a setting of the master, not of pool {pool:?}: \
                         give it at the top level of the file"
                    ),
                });
            }
            self.set_option(layer, &entry)?;
        }
        Ok(())
    }

    fn set_option(&self, layer: &mut ConfigLayer, entry: &Entry<'_>) -> Result<(), SettingsError> {
        if entry.name == APP_KEY {
            return self.set_app(layer, entry);
        }
        let Some(option) = OPTIONS.iter().find(|option| option.name == entry.name) else {
            return Err(SettingsError::UnknownKey {
                source: self.source_at(entry.line),
                key: entry.name.to_owned(),
                suggestion: suggest_key(entry.name),
            });
        };
        let raw_texts = self.raw_texts(option, entry)?;
        let item_source = |item: usize| {
            let line = match &entry.node.value {
                Value::List(items) => items.get(item).map(|node| node.line),
                Value::Map(entries) => entries.get(item).map(|(key, _)| key.line),
                Value::Null | Value::Scalar(_) => None,
            };
            self.source_at(line.unwrap_or(entry.line))
        };
        let mut expanded = Vec::with_capacity(raw_texts.len());
        for (item, text) in raw_texts.iter().enumerate() {
            expanded.push(self.vars.expand(text).map_err(|reason| {
                let error = ValueError { index: Some(item), reason };
                invalid_value(option, &raw_texts, error, item_source(item))
            })?);
        }
        let texts: Vec<_> = expanded.iter().map(|text| text.value.clone()).collect();
        let key_source = self.source_at(entry.line);
        layer.try_set_option(option, &texts, &key_source).map_err(|mut error| {
            let source = error.index.map_or(key_source, item_source);
            if let Some(item) = error.index.filter(|item| raw_texts[*item] != texts[*item])
                && expanded[item].reference.is_none()
            {
                error.reason.push_str(&format!(" (written {})", quoted(&raw_texts[item])));
            }
            let shown = hide_environment(&expanded, &raw_texts, &mut error.reason);
            invalid_value(option, &shown, error, source)
        })?;
        layer.set_references(option, &expanded);
        Ok(())
    }

    /// Returns the texts of an option as written, one for each item of its value.
    fn raw_texts(
        &self,
        option: &OptionDef,
        entry: &Entry<'_>,
    ) -> Result<Vec<String>, SettingsError> {
        let shape_error =
            |line, reason: String| self.invalid_value(line, option.name, None, reason);
        match (option.arity, &entry.node.value) {
            (Arity::Optional, Value::Null) => Ok(Vec::new()),
            (_, Value::Null) => Err(shape_error(
                entry.line,
                "no value is given: give one, or leave out the key".into(),
            )),
            (_, Value::Scalar(text)) => Ok(vec![text.clone()]),
            (Arity::List | Arity::PairList, Value::List(items)) => {
                let mut texts = Vec::new();
                for node in items {
                    let Value::Scalar(text) = &node.value else {
                        let kind = node.value.kind();
                        let reason = format!("the list contains {kind}, not a value");
                        return Err(shape_error(node.line, reason));
                    };
                    texts.push(text.clone());
                }
                Ok(texts)
            }
            (Arity::PairList, Value::Map(entries)) => {
                let mut texts = Vec::new();
                for pair in entries {
                    let line = pair.0.line;
                    let (name, value) =
                        scalar_entry(pair).map_err(|reason| shape_error(line, reason))?;
                    if name.contains('=') {
                        let reason = format!("{} is not a variable: it contains =", quoted(name));
                        return Err(shape_error(line, reason));
                    }
                    texts.push(format!("{name}={value}"));
                }
                Ok(texts)
            }
            (arity, Value::List(_) | Value::Map(_)) => {
                let expected = match arity {
                    Arity::Single | Arity::Flag | Arity::Optional => "one value",
                    Arity::List => "a list",
                    Arity::PairList => "a map or a list",
                };
                let reason = format!("{} is given, not {expected}", entry.node.value.kind());
                Err(shape_error(entry.line, reason))
            }
        }
    }

    fn set_app(&self, layer: &mut ConfigLayer, entry: &Entry<'_>) -> Result<(), SettingsError> {
        let shape_error = |line, reason: String| self.invalid_value(line, APP_KEY, None, reason);
        let mut app = None;
        let mut options = Options::new();
        let (mut option_sources, mut references) = (BTreeMap::new(), BTreeMap::new());
        let mut expand = |key: &str, text: &str, line| {
            let expanded = self.expand_in_app(text, line)?;
            if expanded.reference.is_some() {
                references.insert(key.to_owned(), expanded.clone());
            }
            Ok::<_, SettingsError>(expanded.value)
        };
        match &entry.node.value {
            Value::Scalar(text) => app = Some(expand(APP_NAME_KEY, text, entry.line)?),
            Value::Map(entries) => {
                for pair in entries {
                    let line = pair.0.line;
                    let (name, value) =
                        scalar_entry(pair).map_err(|reason| shape_error(line, reason))?;
                    let value = expand(name, value, line)?;
                    let previous = if name == APP_NAME_KEY {
                        app.replace(value)
                    } else {
                        option_sources.insert(name.to_owned(), self.source_at(line));
                        options.insert(name.to_owned(), value)
                    };
                    if previous.is_some() {
                        let reason = format!("duplicate key {}", quoted(name));
                        return Err(shape_error(line, reason));
                    }
                }
            }
            Value::Null | Value::List(_) => {
                let reason = "give a name, or a map with a name and options";
                return Err(shape_error(entry.line, reason.into()));
            }
        }
        let Some(name) = app else {
            let reason = "the map needs a name: give name: APP in it";
            return Err(shape_error(entry.line, reason.into()));
        };
        layer.set_app(name, options, self.source_at(entry.line))?;
        layer.set_option_sources(option_sources, references);
        Ok(())
    }

    /// Expands the variables in a value of the app.
    fn expand_in_app(&self, text: &str, line: usize) -> Result<Expanded, SettingsError> {
        let expanded = self.vars.expand(text);
        expanded.map_err(|reason| self.invalid_value(line, APP_KEY, Some(text), reason))
    }

    fn source_at(&self, line: usize) -> Source {
        Source::File { path: self.path.to_owned(), line }
    }

    fn malformed(&self, line: usize, reason: &str) -> SettingsError {
        SettingsError::Malformed { source: self.source_at(line), reason: reason.into() }
    }

    fn invalid_value(
        &self,
        line: usize,
        key: &str,
        value: Option<&str>,
        reason: String,
    ) -> SettingsError {
        SettingsError::InvalidValue {
            source: self.source_at(line),
            key: key.to_owned(),
            value: value.map(str::to_owned),
            reason,
        }
    }
}

/// Returns the texts for an error: as written, where they contain environment variables, which may be
/// secrets. Replaces them in the reason too.
fn hide_environment(
    expanded: &[Expanded],
    raw_texts: &[String],
    reason: &mut String,
) -> Vec<String> {
    let texts = expanded.iter().zip(raw_texts).map(|(text, raw)| match &text.reference {
        Some(_) => {
            *reason = reason.replace(&format!("{:?}", text.value), &quoted(raw));
            raw.clone()
        }
        None => text.value.clone(),
    });
    texts.collect()
}
