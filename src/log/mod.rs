//! The log: one record is one write(2), so processes that share a file never mix their lines.
//!
//! A log must never stop the service: a full disk, or a reader of stderr that has gone or stopped
//! reading, costs records and nothing else.

mod compact;
mod flight_recorder;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use slog::{Drain, KV, Key, Level, Logger, Never, OwnedKVList, Record, Serializer, o};

use crate::os::{credentials, file, poll};
use compact::Compact;
use flight_recorder::FlightRecorder;

/// Longest record, in bytes: what a pipe takes in one piece (pipe(7), `PIPE_BUF`).
const RECORD_BYTES_MAX: usize = 4096;

/// Where records go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The standard error stream.
    Stderr,
    /// The end of this file, which is made if it is missing.
    File(PathBuf),
}

/// How records look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A line each, for people.
    Full,
    /// A line each, with what is common to several above them.
    Compact,
    /// A JSON object each, for programs.
    Json,
}

/// Why there is no log.
#[derive(Debug)]
pub struct LogError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed to open {} {}", self.what, self.path.display())
    }
}

impl std::error::Error for LogError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// What log a person wishes for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Where records go.
    pub target: Target,
    /// The least severe level that is still written.
    pub level: Level,
    /// How records look.
    pub format: Format,
    /// The file that keeps the last records of the master, from INFO on, whatever becomes of it.
    pub flight_recorder: Option<PathBuf>,
}

/// A user and a group, where they differ from the process's own.
pub type FileOwner = (Option<u32>, Option<u32>);

/// An open log.
#[derive(Clone, Debug)]
pub struct Log {
    logger: Logger,
    target_file: Arc<LogTargetFile>,
    /// The descriptor of the file of events.
    recorder: Option<RawFd>,
}

impl Log {
    /// Opens the log. A file is given to `owner`, who can then reopen it.
    ///
    /// # Errors
    /// The file cannot be opened for appending, or cannot be given away. The file of events holds
    /// something else.
    pub fn open(config: &LogConfig, owner: FileOwner) -> Result<Self, LogError> {
        let target_file = Arc::new(LogTargetFile::open(&config.target, owner)?);
        let recorder = config.flight_recorder.as_deref().map(open_recorder).transpose()?;
        let number = recorder.as_ref().map(FlightRecorder::raw_fd);
        let logger = build_logger(config, RecordWriter(Arc::clone(&target_file)), recorder);
        Ok(Self { logger, target_file, recorder: number })
    }

    /// The numbers of its descriptors, for a child that must close its copies.
    pub(crate) fn raw_fds(&self) -> impl Iterator<Item = RawFd> {
        let file = self.target_file.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.as_ref().map(AsRawFd::as_raw_fd).into_iter().chain(self.recorder)
    }

    /// The same log, in which each record names a pool.
    pub(crate) fn for_pool(&self, name: &str) -> Self {
        let logger = self.logger.new(o!("pool" => name.to_owned()));
        Self { logger, target_file: Arc::clone(&self.target_file), recorder: self.recorder }
    }

    /// The handle through which records are written.
    pub fn logger(&self) -> &Logger {
        &self.logger
    }

    /// Opens the file anew, as after somebody has moved it away. Nothing to do for stderr.
    ///
    /// # Errors
    /// It cannot be opened; the old one goes on being written to.
    pub fn reopen(&self) -> Result<(), LogError> {
        self.target_file.reopen()
    }

    /// How many records this process has dropped, since they would have had to wait or could not be
    /// written.
    pub fn dropped(&self) -> u64 {
        self.target_file.dropped.load(Ordering::Relaxed)
    }
}

/// Where the bytes go, for all who write: it can be exchanged under them.
#[derive(Debug)]
struct LogTargetFile {
    target: Target,
    owner: FileOwner,
    /// None for stderr.
    file: Mutex<Option<File>>,
    /// How many records this process has dropped.
    dropped: AtomicU64,
}

impl LogTargetFile {
    fn open(target: &Target, owner: FileOwner) -> Result<Self, LogError> {
        let target = match target {
            // A worker may run in another folder when it reopens the file.
            Target::File(path) => {
                Target::File(std::path::absolute(path).unwrap_or_else(|_| path.clone()))
            }
            Target::Stderr => Target::Stderr,
        };
        let (file, dropped) = (Mutex::new(None), AtomicU64::new(0));
        let target_file = Self { target, owner, file, dropped };
        target_file.reopen()?;
        Ok(target_file)
    }

    fn reopen(&self) -> Result<(), LogError> {
        let Target::File(path) = &self.target else { return Ok(()) };
        let failed = |source| LogError { what: "log file", path: path.clone(), source };
        let file = open_file(path).map_err(failed)?;
        if self.owner != (None, None) && credentials::is_root() {
            file::chown(file.as_fd(), self.owner.0, self.owner.1).map_err(failed)?;
        }
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
        Ok(())
    }
}

fn open_recorder(path: &Path) -> Result<FlightRecorder, LogError> {
    let failed =
        |source| LogError { what: "flight recorder file", path: path.to_path_buf(), source };
    FlightRecorder::open(path).map_err(failed)
}

fn build_logger(
    config: &LogConfig,
    writer: RecordWriter,
    recorder: Option<FlightRecorder>,
) -> Logger {
    let level = config.level;
    match config.format {
        Format::Full => {
            let decorator = slog_term::PlainSyncDecorator::new(writer);
            let drain = slog_term::FullFormat::new(decorator)
                .use_custom_timestamp(timestamp)
                .use_original_order()
                .build();
            root_logger(drain, level, recorder)
        }
        Format::Compact => {
            root_logger(Compact::new(slog_term::PlainSyncDecorator::new(writer)), level, recorder)
        }
        Format::Json => root_logger(Json { writer: Mutex::new(writer) }, level, recorder),
    }
}

fn root_logger<D>(drain: D, level: Level, recorder: Option<FlightRecorder>) -> Logger
where
    D: Drain + Send + Sync + std::panic::UnwindSafe + std::panic::RefUnwindSafe + 'static,
{
    let drain = drain.filter_level(level).ignore_res();
    match recorder {
        None => Logger::root(drain, o!()),
        Some(recorder) => {
            let recorder = recorder.filter_level(Level::Info).ignore_res();
            Logger::root(slog::Duplicate::new(drain, recorder).ignore_res(), o!())
        }
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    // Opening a pipe for writing would wait for a reader, were it not for NONBLOCK.
    OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(file::NONBLOCK).open(path)
}

fn timestamp(out: &mut dyn Write) -> io::Result<()> {
    write!(out, "{}", humantime::format_rfc3339_millis(SystemTime::now()))
}

/// The end of the road: each `write` is one record.
struct RecordWriter(Arc<LogTargetFile>);

impl Write for RecordWriter {
    /// Writes the record, or drops it if that would block or cannot be done. Cuts what a pipe
    /// cannot take whole.
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        let bounded = &record[..record.len().min(RECORD_BYTES_MAX)];
        let mut file = self.0.file.lock().unwrap_or_else(PoisonError::into_inner);
        let written = match file.as_mut() {
            Some(file) if poll::is_writable(file.as_fd()) => file.write(bounded),
            None if poll::is_writable(io::stderr().as_fd()) => io::stderr().write(bounded),
            Some(_) | None => Ok(0),
        };
        if !matches!(written, Ok(1..)) {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A JSON object a line: `ts`, `level`, `msg`, then the record's own facts.
struct Json {
    writer: Mutex<RecordWriter>,
}

impl Drain for Json {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
        let mut object = Object::default();
        object.insert_if_absent(
            "ts",
            humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
        );
        object.insert_if_absent("level", record.level().as_str());
        object.insert_if_absent("msg", record.msg().to_string());
        Object::fields_of(record, values)
            .for_each(|(key, value)| object.insert_if_absent(&key, value));
        let line = object.line();
        if let Ok(mut writer) = self.writer.lock() {
            let _ = writer.write(&line);
        }
        Ok(())
    }
}

#[derive(Default)]
struct Object {
    fields: Vec<(String, serde_json::Value)>,
}

impl Object {
    /// The facts of a record and of its logger, in the order in which they were given.
    fn fields_of(
        record: &Record<'_>,
        values: &OwnedKVList,
    ) -> impl Iterator<Item = (String, serde_json::Value)> + use<> {
        let mut object = Self::default();
        // A fact that cannot be written down is left out; the record still says that it happened.
        let _ = record.kv().serialize(record, &mut object);
        let _ = values.serialize(record, &mut object);
        object.fields.into_iter().rev() // slog hands them over last first
    }

    /// Adds a field, unless there is one of that name.
    fn insert_if_absent(&mut self, key: &str, value: impl Into<serde_json::Value>) {
        if self.fields.iter().all(|(known, _)| known != key) {
            self.fields.push((key.to_owned(), value.into()));
        }
    }

    /// The object and a line feed. If it is too long for one record, its longest texts are cut, so
    /// that it stays JSON.
    fn line(mut self) -> Vec<u8> {
        loop {
            let mut line = b"{".to_vec();
            for (index, (key, value)) in self.fields.iter().enumerate() {
                let comma = if index == 0 { "" } else { "," };
                let key = serde_json::Value::from(key.as_str());
                line.extend_from_slice(format!("{comma}{key}:{value}").as_bytes());
            }
            line.extend_from_slice(b"}\n");
            let surplus = line.len().saturating_sub(RECORD_BYTES_MAX);
            if surplus == 0 || !self.shorten(surplus) {
                return line;
            }
        }
    }

    /// Cuts the longest text by `surplus` bytes at least, if it is long enough to be worth it.
    fn shorten(&mut self, surplus: usize) -> bool {
        let texts = self.fields.iter_mut().filter_map(|(_, value)| match value {
            serde_json::Value::String(text) => Some(text),
            _ => None,
        });
        let Some(text) = texts.max_by_key(|text| text.len()).filter(|text| text.len() > 64) else {
            return false;
        };
        let keep = text.len().saturating_sub(surplus + 3).max(32);
        let cut = (0..=keep).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(cut);
        text.push_str("...");
        true
    }
}

impl Serializer for Object {
    fn emit_arguments(&mut self, key: Key, value: &fmt::Arguments<'_>) -> slog::Result {
        self.insert_if_absent(key.as_ref(), value.to_string());
        Ok(())
    }

    fn emit_bool(&mut self, key: Key, value: bool) -> slog::Result {
        self.insert_if_absent(key.as_ref(), value);
        Ok(())
    }

    fn emit_f64(&mut self, key: Key, value: f64) -> slog::Result {
        self.insert_if_absent(key.as_ref(), value);
        Ok(())
    }

    fn emit_i64(&mut self, key: Key, value: i64) -> slog::Result {
        self.insert_if_absent(key.as_ref(), value);
        Ok(())
    }

    fn emit_u64(&mut self, key: Key, value: u64) -> slog::Result {
        self.insert_if_absent(key.as_ref(), value);
        Ok(())
    }

    fn emit_i32(&mut self, key: Key, value: i32) -> slog::Result {
        self.insert_if_absent(key.as_ref(), value);
        Ok(())
    }

    fn emit_u32(&mut self, key: Key, value: u32) -> slog::Result {
        self.insert_if_absent(key.as_ref(), value);
        Ok(())
    }

    fn emit_usize(&mut self, key: Key, value: usize) -> slog::Result {
        self.insert_if_absent(key.as_ref(), value);
        Ok(())
    }

    fn emit_str(&mut self, key: Key, value: &str) -> slog::Result {
        self.insert_if_absent(key.as_ref(), value);
        Ok(())
    }

    fn emit_none(&mut self, _: Key) -> slog::Result {
        Ok(())
    }
}

/// Facts for one record, of which some may be missing. They follow the message:
/// `info!(log, "worker exited"; facts)`.
#[derive(Debug, Default)]
pub struct Fields(Vec<(&'static str, FieldValue)>);

#[derive(Debug)]
enum FieldValue {
    Number(i64),
    Text(String),
}

impl Fields {
    /// No facts yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a number; one beyond 63 bits is shown as the largest.
    #[must_use]
    pub fn number(mut self, key: &'static str, value: impl TryInto<i64>) -> Self {
        self.0.push((key, FieldValue::Number(value.try_into().unwrap_or(i64::MAX))));
        self
    }

    /// Adds a text.
    #[must_use]
    pub fn text(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.0.push((key, FieldValue::Text(value.into())));
        self
    }

    /// Adds what there is to add, if anything.
    #[must_use]
    pub fn optional<T>(self, value: Option<T>, add: impl FnOnce(Self, T) -> Self) -> Self {
        match value {
            Some(value) => add(self, value),
            None => self,
        }
    }
}

impl KV for Fields {
    fn serialize(&self, _: &Record<'_>, serializer: &mut dyn Serializer) -> slog::Result {
        for (key, value) in self.0.iter().rev() {
            // The last first, as slog does it everywhere.
            match value {
                FieldValue::Number(number) => serializer.emit_i64(key, *number)?,
                FieldValue::Text(text) => serializer.emit_str(key, text)?,
            }
        }
        Ok(())
    }
}

/// An error and its causes, joined by colons.
pub fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use slog::info;

    fn lines(level: Level, emit: impl FnOnce(&Logger)) -> Vec<String> {
        lines_as(Format::Json, level, |log| emit(log.logger()))
    }

    fn lines_as(format: Format, level: Level, emit: impl FnOnce(&Log)) -> Vec<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let target = Target::File(file.path().to_path_buf());
        let config = LogConfig { target, level, format, flight_recorder: None };
        emit(&Log::open(&config, (None, None)).unwrap());
        std::fs::read_to_string(file.path()).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn json_record_keeps_types_of_fields() {
        let lines = lines(Level::Info, |log| {
            info!(log, "worker ready"; "pid" => 7, "slot" => 0usize, "name" => "a\"b");
        });
        let value: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(value["msg"], "worker ready");
        assert_eq!(value["level"], "INFO");
        assert_eq!((&value["pid"], &value["slot"]), (&7.into(), &0.into()));
        assert_eq!(value["name"], "a\"b");
    }

    /// The keys among these, in the order in which a line has them.
    fn order<'k>(line: &str, keys: &[&'k str]) -> Vec<&'k str> {
        let at = |key: &str| line.find(&format!("{key}:")).or(line.find(&format!("{key}\":")));
        let mut found: Vec<_> = keys.iter().filter_map(|key| Some((at(key)?, *key))).collect();
        found.sort_unstable();
        found.into_iter().map(|(_, key)| key).collect()
    }

    #[test]
    fn fields_keep_their_order_in_every_format() {
        let keys = ["pid", "slot", "apples", "zebras", "code"];
        for format in [Format::Full, Format::Compact, Format::Json] {
            let lines = lines_as(format, Level::Info, |log| {
                let more = Fields::new().number("apples", 3).text("zebras", "four");
                info!(log.logger(), "said"; "pid" => 1, "slot" => 2, more, "code" => 5);
            });
            assert_eq!(order(&lines[0], &keys), keys, "{format:?}: {lines:?}");
        }
    }

    #[test]
    fn compact_records_follow_their_common_fields() {
        let lines = lines_as(Format::Compact, Level::Info, |log| {
            let (web, jobs) = (log.for_pool("web"), log.for_pool("jobs"));
            info!(web.logger(), "one"; "pid" => 1);
            info!(web.logger(), "two"; "pid" => 2, "slot" => 0);
            info!(jobs.logger(), "three");
            info!(log.logger(), "four");
        });
        let shown: Vec<_> = lines.iter().map(|line| without_time(line)).collect();
        let below = [" INFO one, pid: 1", " INFO two, pid: 2, slot: 0"];
        let last = ["pool: jobs", " INFO three", "INFO four"];
        assert_eq!(shown, [&["pool: web"], &below[..], &last[..]].concat());
    }

    /// A line without the time at its beginning, but with the spaces before that.
    fn without_time(line: &str) -> String {
        let words = line.trim_start();
        let spaces = &line[..line.len() - words.len()];
        match words.split_once(' ') {
            Some((time, rest)) if time.ends_with('Z') => format!("{spaces}{rest}"),
            _ => line.to_owned(),
        }
    }

    #[test]
    fn records_below_the_level_are_left_out() {
        let lines = lines(Level::Warning, |log| info!(log, "quiet"));
        assert!(lines.is_empty());
    }

    #[test]
    fn a_record_that_is_too_long_is_cut_and_stays_json() {
        let lines = lines(Level::Info, |log| {
            info!(log, "long"; "text" => "é\n".repeat(9000));
        });
        assert!(lines[0].len() < RECORD_BYTES_MAX);
        let value: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert!(value["text"].as_str().unwrap().ends_with("..."));
    }
}
