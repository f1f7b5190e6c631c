//! Records as JSON: an object a line, with `ts`, `level` and `msg` before the record's own fields.

use std::io::Write;
use std::sync::Mutex;
use std::time::SystemTime;

use serde_json::Value;
use slog::{Drain, Never, OwnedKVList, Record};

use super::escape::escape;
use super::fields::FieldMap;
use super::target::{RECORD_BYTES_MAX, RecordWriter};

/// The shortest text that is cut when a record is too long, in bytes.
const CUT_TEXT_BYTES_MIN: usize = 64;

pub(super) struct Json {
    writer: Mutex<RecordWriter>,
}

impl Json {
    pub(super) fn new(writer: RecordWriter) -> Self {
        Self { writer: Mutex::new(writer) }
    }
}

impl Drain for Json {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
        let now = humantime::format_rfc3339_millis(SystemTime::now());
        let mut map = FieldMap::default();
        map.insert_if_absent("ts", now.to_string());
        map.insert_if_absent("level", record.level().as_str());
        map.insert_if_absent("msg", record.msg().to_string());
        FieldMap::of_record(record, values)
            .for_each(|(key, value)| map.insert_if_absent(&key, value));
        let line = encode_line(map.into_fields());
        if let Ok(mut writer) = self.writer.lock() {
            let _ = writer.write(&line);
        }
        Ok(())
    }
}

/// Returns an object and a line feed. If it is too long for one record, its longest texts are cut,
/// and then its last fields left out, so that it stays valid JSON.
pub(super) fn encode_line(mut fields: Vec<(String, Value)>) -> Vec<u8> {
    loop {
        let line = encode_object(&fields);
        let surplus = line.len().saturating_sub(RECORD_BYTES_MAX);
        if surplus == 0 {
            return line;
        }
        if !shorten_longest(&mut fields, surplus) && fields.pop().is_none() {
            return line;
        }
    }
}

/// Returns an object and a line feed. Escapes what JSON permits in a string and a terminal obeys.
fn encode_object(fields: &[(String, Value)]) -> Vec<u8> {
    let members =
        fields.iter().map(|(key, value)| format!("{}:{value}", Value::from(key.as_str())));
    let object = format!("{{{}}}", members.collect::<Vec<_>>().join(","));
    let mut line = escape(&object).into_owned().into_bytes();
    line.push(b'\n');
    line
}

/// Cuts the longest text by at least `surplus` bytes. Returns false if no text is long enough.
fn shorten_longest(fields: &mut [(String, Value)], surplus: usize) -> bool {
    let texts = fields.iter_mut().filter_map(|(_, value)| match value {
        Value::String(text) => Some(text),
        _ => None,
    });
    let longest = texts.max_by_key(|text| text.len());
    let Some(text) = longest.filter(|text| text.len() > CUT_TEXT_BYTES_MIN) else { return false };
    let keep = text.len().saturating_sub(surplus + 3).max(32);
    let cut = (0..=keep).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.truncate(cut);
    text.push_str("...");
    true
}
