//! The settings file as a JSON Schema, from the table of options, for editors that complete and check YAML.
//! A value that it rejects is rejected by the parsers; the opposite does not hold.

use serde_json::{Map, Value, json};

use super::arity::Arity;
use super::file_list::{INCLUDE_KEY, LEADER_KEY, POOLS_KEY, VARS_KEY};
use super::layer::{APP_KEY, APP_NAME_KEY};
use super::schema::{OPTIONS, OptionDef, Scope, Settings};

/// Returns the schema, as JSON.
pub(crate) fn json_schema() -> Value {
    let mut properties = Map::new();
    let (mut pool, mut leader) = (Map::new(), Map::new());
    let defaults = Settings::default();
    for option in OPTIONS {
        properties.insert(option.name.to_owned(), option_schema(option, &defaults));
        if option.scope == Scope::Pool {
            pool.insert(option.name.to_owned(), reference(option.name));
        }
        let in_leader = option.name.strip_prefix(LEADER_KEY).and_then(|it| it.strip_prefix('_'));
        if let Some(key) = in_leader {
            leader.insert(key.to_owned(), reference(option.name));
        }
    }
    pool.insert(APP_KEY.to_owned(), reference(APP_KEY));
    properties.insert(APP_KEY.to_owned(), app_schema(&defaults));
    properties.insert(
        INCLUDE_KEY.to_owned(),
        json!({
            "description": "Further files, or directories of *.yaml files, which are laid over this one.",
            "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }],
        }),
    );
    properties.insert(
        VARS_KEY.to_owned(),
        json!({
            "description": "Variables, which ${name} inserts into other values.",
            "type": "object",
            "propertyNames": { "pattern": "^[A-Za-z_][A-Za-z0-9_-]{0,63}$" },
            "additionalProperties": { "$ref": "#/$defs/scalar" },
        }),
    );
    properties.insert(
        LEADER_KEY.to_owned(),
        json!({
            "description": "The keys leader_..., without this prefix.",
            "type": "object",
            "additionalProperties": false,
            "properties": leader,
        }),
    );
    properties.insert(
        POOLS_KEY.to_owned(),
        json!({
            "description": "Pools of workers, each with its own values of the keys above.",
            "type": "object",
            "minProperties": 1,
            "propertyNames": { "pattern": "^[a-z0-9_-]{1,32}$" },
            "additionalProperties": { "anyOf": [{ "type": "null" }, { "$ref": "#/$defs/pool" }] },
        }),
    );
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Settings of Ostler",
        "type": ["object", "null"],
        "additionalProperties": false,
        "properties": properties,
        "$defs": {
            "scalar": { "type": ["string", "number", "boolean"] },
            "variable": { "type": "string", "pattern": "\\$\\{" },
            "pool": { "type": "object", "additionalProperties": false, "properties": pool },
        },
    })
}

fn reference(key: &str) -> Value {
    json!({ "$ref": format!("#/properties/{key}") })
}

fn option_schema(option: &OptionDef, defaults: &Settings) -> Value {
    let mut schema = option.json_schema();
    schema["description"] = option.doc().into();
    schema["default"] = default_value(option, defaults);
    schema
}

/// Returns the default as a file may have it.
fn default_value(option: &OptionDef, defaults: &Settings) -> Value {
    let texts = option.format(defaults);
    let scalar = |text: &String| {
        let number = text.parse::<u64>().ok().filter(|number| number.to_string() == *text);
        number.map_or_else(|| text.as_str().into(), Value::from)
    };
    match (option.arity, &texts[..]) {
        (Arity::Optional, []) => Value::Null,
        (Arity::Flag, [text, ..]) => (text == "true").into(),
        (Arity::Single | Arity::Optional, [text, ..]) => scalar(text),
        (_, texts) => texts.iter().map(scalar).collect(),
    }
}

fn app_schema(defaults: &Settings) -> Value {
    json!({
        "description": "The app: its name, or a map with its name and its own options.",
        "default": defaults.app,
        "anyOf": [
            { "type": "string", "minLength": 1 },
            {
                "type": "object",
                "required": [APP_NAME_KEY],
                "additionalProperties": { "$ref": "#/$defs/scalar" },
            },
        ],
    })
}
