//! Reads the settings files in the order in which they are laid over each other: each file of the command
//! line, followed by what it includes. This file must never know the meaning of an option.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::{SettingsError, Source, quoted};
use super::file_ending::{FileEnding, FileSummary};
use super::source_file::read_text;
use super::yaml::{self, Node, Value};
use crate::os::lookups::Lookups;

/// The YAML key of further files.
pub(super) const INCLUDE_KEY: &str = "include";

/// The YAML key of the variables.
pub(super) const VARS_KEY: &str = "vars";

/// The YAML key of the pools.
pub(super) const POOLS_KEY: &str = "pools";

/// The key of a map of options without this prefix: `leader: {ttl: 5s}` is `leader_ttl: 5s`.
pub(super) const LEADER_KEY: &str = "leader";

/// How many files are read altogether.
const FILES_MAX: usize = 256;

/// How many files are in each other.
const DEPTH_MAX: usize = 8;

/// What the names of the files end in that a directory contributes.
const FILE_ENDING: &str = ".yaml";

/// A file that is YAML, and a map.
pub(super) struct ParsedFile {
    pub(super) path: PathBuf,
    /// The entries of the map, of which [`INCLUDE_KEY`] has been followed.
    pub(super) entries: Vec<(Node, Node)>,
    pub(super) summary: FileSummary,
}

/// The files that have been read.
#[derive(Default)]
pub(super) struct FileList {
    files: Vec<ParsedFile>,
    /// The files that include what is read now, outermost first.
    open: Vec<PathBuf>,
}

impl FileList {
    /// Reads files and all that they include.
    ///
    /// # Errors
    /// A file cannot be read, is not a map in YAML, or includes itself.
    pub(super) fn read(
        paths: &[PathBuf],
        lookups: &Lookups,
    ) -> Result<Vec<ParsedFile>, SettingsError> {
        let mut list = Self::default();
        for path in paths {
            list.add(path, lookups.text(path, read_text)?, Some(lookups))?;
        }
        Ok(list.files)
    }

    /// Parses a text as if it were the content of a file. It can include nothing.
    ///
    /// # Errors
    /// It is not a map in YAML.
    pub(super) fn parse(text: &str, path: &Path) -> Result<Vec<ParsedFile>, SettingsError> {
        let mut list = Self::default();
        list.add(path, text.to_owned(), None)?;
        Ok(list.files)
    }

    /// Adds a file with this text, then what it includes.
    fn add(
        &mut self,
        path: &Path,
        text: String,
        lookups: Option<&Lookups>,
    ) -> Result<(), SettingsError> {
        let entries = parse_map(path, &text)?;
        // A file of variables alone is of use beside another one.
        let is_key = |(key, _): &(Node, Node)| !has_name(key, VARS_KEY) || !self.files.is_empty();
        let ending =
            if entries.iter().any(is_key) { FileEnding::of(&text) } else { FileEnding::NoKey };
        let is_included = !self.open.is_empty();
        let summary =
            FileSummary { path: path.to_owned(), ending, is_included, included_dirs: Vec::new() };
        let mut included = entries.iter().filter(|(key, _)| has_name(key, INCLUDE_KEY));
        let included = included.next().map(|(key, value)| included_paths(path, key, value));
        let included = included.transpose()?.unwrap_or_default();
        self.files.push(ParsedFile { path: path.to_owned(), entries, summary });
        self.open.push(path.to_owned());
        for (source, included) in included {
            self.include(&source, &included, lookups)?;
        }
        self.open.pop();
        Ok(())
    }

    /// Reads a file, or the files of a directory, that another file names at `source`.
    fn include(
        &mut self,
        source: &Source,
        path: &Path,
        lookups: Option<&Lookups>,
    ) -> Result<(), SettingsError> {
        let refuse = |path: &Path, reason: String| SettingsError::InvalidPath {
            source: source.clone(),
            key: INCLUDE_KEY,
            path: path.to_owned(),
            reason,
        };
        let Some(lookups) = lookups else {
            return Err(refuse(path, "cannot be included by a text that is no file".into()));
        };
        let names = lookups.names(path, names_in).map_err(|reason| refuse(path, reason))?;
        let paths = match names {
            Some(names) => {
                let including =
                    self.files.iter_mut().rfind(|it| Some(&it.path) == self.open.last());
                including.into_iter().for_each(|it| it.summary.included_dirs.push(path.to_owned()));
                names.iter().map(|name| path.join(name)).collect()
            }
            None => vec![path.to_owned()],
        };
        for path in paths {
            if self.open.contains(&path) {
                return Err(refuse(&path, "includes itself".into()));
            }
            if self.open.len() == DEPTH_MAX {
                return Err(refuse(&path, format!("is more than {DEPTH_MAX} files deep")));
            }
            if self.files.len() == FILES_MAX {
                return Err(refuse(&path, format!("is one of more than {FILES_MAX} files")));
            }
            let text = lookups.text(&path, read_text).map_err(|error| match error {
                SettingsError::Unreadable { path, reason } => {
                    refuse(&path, format!("cannot be read: {reason}"))
                }
                other => other,
            })?;
            self.add(&path, text, Some(lookups))?;
        }
        Ok(())
    }
}

/// Parses a text that must be a map, or empty.
fn parse_map(path: &Path, text: &str) -> Result<Vec<(Node, Node)>, SettingsError> {
    let malformed = |line: usize, reason: String| SettingsError::Malformed {
        source: Source::File { path: path.to_owned(), line },
        reason,
    };
    // The byte order mark that some editors put first.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let root = yaml::read(text).map_err(|error| {
        let yaml::Malformed { line, reason } = error.explain(text);
        malformed(line, reason)
    })?;
    match root.value {
        Value::Null => Ok(Vec::new()),
        Value::Map(entries) => Ok(entries),
        Value::Scalar(_) | Value::List(_) => {
            Err(malformed(root.line, "is not a map: give lines of KEY: VALUE".into()))
        }
    }
}

fn has_name(key: &Node, name: &str) -> bool {
    matches!(&key.value, Value::Scalar(text) if text == name)
}

/// Returns what a file includes, with its source. A relative path starts at the directory of the file.
fn included_paths(
    path: &Path,
    key: &Node,
    value: &Node,
) -> Result<Vec<(Source, PathBuf)>, SettingsError> {
    let invalid = |line: usize, value: Option<&str>, reason: &str| SettingsError::InvalidValue {
        source: Source::File { path: path.to_owned(), line },
        key: INCLUDE_KEY.into(),
        value: value.map(str::to_owned),
        reason: reason.to_owned(),
    };
    let items = match &value.value {
        Value::List(items) => &items[..],
        Value::Scalar(_) => std::slice::from_ref(value),
        Value::Null | Value::Map(_) => {
            return Err(invalid(key.line, None, "give a file or a directory, or a list of them"));
        }
    };
    let dir = path.parent().unwrap_or(Path::new(""));
    let paths = items.iter().map(|item| {
        let Value::Scalar(text) = &item.value else {
            let reason = format!("the list contains {}, not a path", item.value.kind());
            return Err(invalid(item.line, None, &reason));
        };
        if text.is_empty() || text.contains('\0') {
            return Err(invalid(item.line, Some(text), "is not a path"));
        }
        if text.contains("${") {
            let reason = "has a variable, which the path of another file cannot have";
            return Err(invalid(item.line, Some(text), reason));
        }
        Ok((Source::File { path: path.to_owned(), line: item.line }, dir.join(text)))
    });
    paths.collect()
}

/// Returns the names of the files in a directory that end in [`FILE_ENDING`], sorted, without hidden ones;
/// `None` if the path is not a directory.
fn names_in(path: &Path) -> Result<Option<Vec<String>>, String> {
    let unreadable = |error: std::io::Error| format!("cannot be read: {error}");
    if !fs::metadata(path).map_err(unreadable)?.is_dir() {
        return Ok(None);
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        let Some(name) = name.to_str() else {
            return Err(format!("has a file whose name is not UTF-8: {}", quoted_name(&name)));
        };
        if name.ends_with(FILE_ENDING) && !name.starts_with('.') {
            names.push(name.to_owned());
        }
        if names.len() > FILES_MAX {
            return Err(format!("has more than {FILES_MAX} files"));
        }
    }
    names.sort();
    Ok(Some(names))
}

fn quoted_name(name: &std::ffi::OsStr) -> String {
    quoted(&name.to_string_lossy())
}
