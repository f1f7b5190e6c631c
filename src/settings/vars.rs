//! Defines the variables of all settings files. A file replaces the values of earlier ones, which also
//! changes what the earlier ones make of them.

use std::path::Path;

use super::error::{SettingsError, Source};
use super::file_list::{ParsedFile, VARS_KEY};
use super::interpolate::{self, Environment, Variables};
use super::yaml::{Node, Value, scalar_entry};

const VARS_LIMIT: usize = 1000;

/// One variable, as written.
struct Definition<'f> {
    name: &'f str,
    value: &'f str,
    path: &'f Path,
    line: usize,
}

/// Defines the variables. Each may use those above it; one that a later file repeats keeps its place.
///
/// # Errors
/// The first invalid or circular definition, with its file and line.
pub(super) fn define<'e>(
    files: &[ParsedFile],
    environment: &'e Environment,
) -> Result<Variables<'e>, SettingsError> {
    let mut definitions: Vec<Definition<'_>> = Vec::new();
    for ParsedFile { path, entries, .. } in files {
        let is_vars = |(key, _): &&(Node, Node)| matches!(&key.value, Value::Scalar(name) if name == VARS_KEY);
        let Some((key, node)) = entries.iter().find(is_vars) else { continue };
        let defined = read(path, key.line, node)?;
        for definition in defined {
            match definitions.iter_mut().find(|earlier| earlier.name == definition.name) {
                Some(earlier) => *earlier = definition,
                None => definitions.push(definition),
            }
        }
        if definitions.len() > VARS_LIMIT {
            return Err(invalid(path, key.line, None, format!("has more than {VARS_LIMIT} items")));
        }
    }
    let names: Vec<&str> = definitions.iter().map(|it| it.name).collect();
    let mut vars = Variables::new(environment);
    for (at, Definition { name, value, path, line }) in definitions.iter().enumerate() {
        vars.define(name, value, &names[at..]).map_err(|reason| SettingsError::InvalidValue {
            source: Source::File { path: path.to_path_buf(), line: *line },
            key: (*name).to_owned(),
            value: Some((*value).to_owned()),
            reason,
        })?;
    }
    Ok(vars)
}

/// Reads the definitions of one file.
fn read<'f>(
    path: &'f Path,
    line: usize,
    node: &'f Node,
) -> Result<Vec<Definition<'f>>, SettingsError> {
    let entries = match &node.value {
        Value::Map(entries) => entries,
        Value::Null | Value::Scalar(_) | Value::List(_) => {
            let reason = format!("{} is given, not a map of names and values", node.value.kind());
            return Err(invalid(path, line, None, reason));
        }
    };
    let mut definitions: Vec<Definition<'_>> = Vec::new();
    for pair in entries {
        let line = pair.0.line;
        let (name, value) =
            scalar_entry(pair).map_err(|reason| invalid(path, line, None, reason))?;
        if let Some(reason) = interpolate::variable_name_error(name) {
            return Err(invalid(path, line, Some(name), reason.into()));
        }
        if definitions.iter().any(|earlier| earlier.name == name) {
            return Err(invalid(path, line, Some(name), "is a duplicate".into()));
        }
        if definitions.len() == VARS_LIMIT {
            return Err(invalid(path, line, None, format!("has more than {VARS_LIMIT} items")));
        }
        definitions.push(Definition { name, value, path, line });
    }
    Ok(definitions)
}

fn invalid(path: &Path, line: usize, value: Option<&str>, reason: String) -> SettingsError {
    SettingsError::InvalidValue {
        source: Source::File { path: path.to_owned(), line },
        key: VARS_KEY.to_owned(),
        value: value.map(str::to_owned),
        reason,
    }
}
