//! The log. One record is one write(2), so processes that share a file never mix their lines.
//!
//! A log must never stop the service. A full disk, or a reader of stderr that has exited or stopped
//! reading, loses records and nothing else.

pub(crate) mod access;
mod compact;
mod escape;
mod event_ring;
mod fields;
mod flight_recorder;
mod json;
mod target;

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use slog::{Drain, Level, Logger, Never, OwnedKVList, Record, o, warn};

use compact::Compact;

use crate::os::fd_table;
pub use access::{AccessFormat, SampleShare};
use escape::Escaping;
pub(crate) use escape::escape;
pub use escape::escaped_len;
pub(crate) use event_ring::{EventRing, NextEvent};
pub use fields::Fields;
use flight_recorder::{FlightRecorder, Opened};
use json::Json;
pub use target::{FileOwner, LogError, Target};
use target::{LogTargetFile, RecordWriter, timestamp};

/// The format of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A line each, for people.
    Full,
    /// A line each, below a heading with the fields that several records have in common.
    Compact,
    /// A JSON object each, for programs.
    Json,
}

/// The settings of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Where records go.
    pub target: Target,
    /// The least severe level that is still written.
    pub level: Level,
    /// The format of records.
    pub format: Format,
    /// The file that keeps the last records of the master, from INFO on, however the master ends.
    pub flight_recorder: Option<PathBuf>,
}

/// An open log.
#[derive(Clone, Debug)]
pub struct Log {
    logger: Logger,
    target_file: Arc<LogTargetFile>,
    /// The descriptor of the flight recorder's file.
    recorder: Option<RawFd>,
    /// The last records, for the control interface.
    events: Option<Arc<EventRing>>,
}

/// What keeps the master's records besides the log.
struct Keepers {
    recorder: Option<FlightRecorder>,
    events: Option<Arc<EventRing>>,
}

impl Drain for Keepers {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
        if let Some(events) = &self.events {
            events.log(record, values);
        }
        self.recorder.as_ref().map_or(Ok(()), |recorder| recorder.log(record, values))
    }
}

impl Log {
    /// Opens the log. A log file is given to `owner`, who can then reopen it.
    ///
    /// # Errors
    /// The file cannot be opened for appending, or its owner cannot be changed. The flight
    /// recorder's file cannot be opened or created.
    pub fn open(config: &LogConfig, owner: FileOwner) -> Result<Self, LogError> {
        Self::open_with_events(config, owner, None)
    }

    /// Opens the log as [`open`](Self::open) does, and keeps the last records in `events`.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub(crate) fn open_with_events(
        config: &LogConfig,
        owner: FileOwner,
        events: Option<Arc<EventRing>>,
    ) -> Result<Self, LogError> {
        let target_file = Arc::new(LogTargetFile::open(&config.target, owner)?);
        let opened = config.flight_recorder.as_deref().map(open_recorder).transpose()?;
        let (recorder, replaced, failed) = match opened {
            None => (None, None, None),
            Some(Opened::Ring(ring)) => (Some(ring), None, None),
            Some(Opened::NewRing(ring, old)) => (Some(ring), Some(old), None),
            Some(Opened::NotReplaced(error)) => (None, None, Some(error)),
        };
        let number = recorder.as_ref().map(FlightRecorder::raw_fd);
        let keepers = Keepers { recorder, events: events.clone() };
        let logger = build_logger(config, RecordWriter::new(&target_file), keepers);
        let path = config.flight_recorder.as_deref().unwrap_or(Path::new("")).display().to_string();
        if let Some(old) = replaced {
            warn!(logger, "flight recorder file replaced";
                "path" => path, "old" => old.display().to_string());
        } else if let Some(error) = failed {
            warn!(logger, "failed to replace flight recorder file";
                "path" => path, "error" => error.to_string());
        }
        Ok(Self { logger, target_file, recorder: number, events })
    }

    /// Returns the numbers of its descriptors, for a child that must close its copies.
    pub(crate) fn raw_fds(&self) -> impl Iterator<Item = RawFd> {
        self.target_file.raw_fd().into_iter().chain(self.recorder)
    }

    /// Makes the log of a child its own: without that, the child could change how the parent writes.
    /// The flight recorder and the ring of events are the parent's alone.
    pub(crate) fn detach_in_child(&self) {
        if let Some(output) = self.target_file.raw_fd() {
            // Without /proc they share the open file description.
            let _ = fd_table::reopen(output);
        }
        if let Some(recorder) = self.recorder {
            let _ = fd_table::replace_with_null(recorder);
        }
        if let Some(events) = &self.events {
            events.detach_in_child();
        }
    }

    /// Returns this log with the field `pool` in each record.
    pub(crate) fn for_pool(&self, name: &str) -> Self {
        let logger = self.logger.new(o!("pool" => name.to_owned()));
        Self { logger, ..self.clone() }
    }

    /// Returns the ring of the last records, if it is kept.
    pub(crate) fn events(&self) -> Option<&Arc<EventRing>> {
        self.events.as_ref()
    }

    /// Returns the logger that writes records.
    pub fn logger(&self) -> &Logger {
        &self.logger
    }

    /// Opens the log file again, after it has been moved away. Does nothing for stderr.
    ///
    /// # Errors
    /// The file cannot be opened; records still go to the old one.
    pub fn reopen(&self) -> Result<(), LogError> {
        self.target_file.reopen()
    }

    /// Returns how many records this process has dropped because a write would have blocked or has
    /// failed.
    pub fn dropped(&self) -> u64 {
        self.target_file.dropped()
    }
}

fn open_recorder(path: &Path) -> Result<Opened, LogError> {
    FlightRecorder::open(path).map_err(|source| LogError::new("flight recorder file", path, source))
}

fn build_logger(config: &LogConfig, writer: RecordWriter, keepers: Keepers) -> Logger {
    let level = config.level;
    match config.format {
        Format::Full => {
            let decorator = Escaping(slog_term::PlainSyncDecorator::new(writer));
            let drain = slog_term::FullFormat::new(decorator)
                .use_custom_timestamp(timestamp)
                .use_original_order()
                .build();
            root_logger(drain, level, keepers)
        }
        Format::Compact => {
            let decorator = Escaping(slog_term::PlainSyncDecorator::new(writer));
            root_logger(Compact::new(decorator), level, keepers)
        }
        Format::Json => root_logger(Json::new(writer), level, keepers),
    }
}

fn root_logger<D>(drain: D, level: Level, keepers: Keepers) -> Logger
where
    D: Drain + Send + Sync + std::panic::UnwindSafe + std::panic::RefUnwindSafe + 'static,
{
    let drain = drain.filter_level(level).ignore_res();
    if keepers.recorder.is_none() && keepers.events.is_none() {
        return Logger::root(drain, o!());
    }
    let keepers = keepers.filter_level(Level::Info).ignore_res();
    Logger::root(slog::Duplicate::new(drain, keepers).ignore_res(), o!())
}

/// Returns an error and its causes, joined by colons.
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
    use target::RECORD_BYTES_MAX;

    fn json_lines(level: Level, emit: impl FnOnce(&Logger)) -> Vec<String> {
        log_lines_as(Format::Json, level, |log| emit(log.logger()))
    }

    fn log_lines_as(format: Format, level: Level, emit: impl FnOnce(&Log)) -> Vec<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let target = Target::File(file.path().to_path_buf());
        let config = LogConfig { target, level, format, flight_recorder: None };
        emit(&Log::open(&config, FileOwner::default()).unwrap());
        std::fs::read_to_string(file.path()).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn json_record_keeps_field_types() {
        let lines = json_lines(Level::Info, |log| {
            info!(log, "worker ready"; "pid" => 7, "slot" => 0usize, "name" => "a\"b");
        });
        let value: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(value["msg"], "worker ready");
        assert_eq!(value["level"], "INFO");
        assert_eq!((&value["pid"], &value["slot"]), (&7.into(), &0.into()));
        assert_eq!(value["name"], "a\"b");
    }

    #[test]
    fn control_characters_in_every_format_are_escaped() {
        for format in [Format::Full, Format::Compact, Format::Json] {
            let lines = log_lines_as(format, Level::Info, |log| {
                let log = log.for_pool("web\ninner\u{1b}[2J");
                let fields = Fields::new().text("panic", "one\ntwo\u{1b}[31m\u{9b}0m\r\u{7f}");
                info!(log.logger(), "from {}", "a\nb\tc"; "x" => "\u{8}\u{2028}", fields);
            });
            let text = lines.join("\n");
            let count = if format == Format::Compact { 2 } else { 1 };
            assert_eq!(lines.len(), count, "{format:?}: {text}");
            assert!(lines.iter().all(|line| !line.contains(char::is_control)), "{text:?}");
            for part in [
                r"web\ninner\u001b[2J",
                r"one\ntwo\u001b[31m\u009b0m\r\u007f",
                r"from a\nb\tc",
                r"\u2028",
            ] {
                assert!(text.contains(part), "{format:?}: {text}");
            }
        }
    }

    /// Returns the keys among these that a line has, in its order.
    fn key_order<'k>(line: &str, keys: &[&'k str]) -> Vec<&'k str> {
        let at = |key: &str| line.find(&format!("{key}:")).or(line.find(&format!("{key}\":")));
        let mut found: Vec<_> = keys.iter().filter_map(|key| Some((at(key)?, *key))).collect();
        found.sort_unstable();
        found.into_iter().map(|(_, key)| key).collect()
    }

    #[test]
    fn fields_in_every_format_keep_their_order() {
        let keys = ["pid", "slot", "apples", "zebras", "code"];
        for format in [Format::Full, Format::Compact, Format::Json] {
            let lines = log_lines_as(format, Level::Info, |log| {
                let more = Fields::new().number("apples", 3).text("zebras", "four");
                info!(log.logger(), "event"; "pid" => 1, "slot" => 2, more, "code" => 5);
            });
            assert_eq!(key_order(&lines[0], &keys), keys, "{format:?}: {lines:?}");
        }
    }

    #[test]
    fn compact_records_follow_common_fields() {
        let lines = log_lines_as(Format::Compact, Level::Info, |log| {
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

    /// Returns a line without its time, but with the spaces before it.
    fn without_time(line: &str) -> String {
        let words = line.trim_start();
        let spaces = &line[..line.len() - words.len()];
        match words.split_once(' ') {
            Some((time, rest)) if time.ends_with('Z') => format!("{spaces}{rest}"),
            _ => line.to_owned(),
        }
    }

    #[test]
    fn events_are_those_of_the_master_from_info_on() {
        let config = LogConfig {
            target: Target::File("/dev/null".into()),
            level: Level::Error,
            format: Format::Full,
            flight_recorder: None,
        };
        let events = Arc::new(EventRing::new());
        let before = events.last();
        let log = Log::open_with_events(&config, FileOwner::default(), Some(Arc::clone(&events)));
        let log = log.unwrap().for_pool("web");
        info!(log.logger(), "worker ready"; "pid" => 7, "seq" => "a\nb", "name" => "c\u{1b}");
        slog::debug!(log.logger(), "quiet");
        let NextEvent::Record(number, text) = events.after(before) else { panic!("no record") };
        assert_eq!((number, events.last()), (before + 1, before + 1));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["seq"], number, "a field of the record does not hide it");
        assert_eq!((&value["message"], &value["level"]), (&"worker ready".into(), &"INFO".into()));
        assert_eq!((&value["pool"], &value["pid"]), (&"web".into(), &7.into()));
        assert!(!text.contains(char::is_control), "{text:?}");
        events.detach_in_child();
        info!(log.logger(), "of a worker");
        assert_eq!((events.last(), events.before_last(1)), (before + 1, before + 1));
    }

    #[test]
    fn record_below_level_is_not_written() {
        let lines = json_lines(Level::Warning, |log| info!(log, "quiet"));
        assert!(lines.is_empty());
    }

    #[test]
    fn json_record_too_long_is_cut_and_stays_json() {
        let lines = json_lines(Level::Info, |log| {
            info!(log, "long"; "text" => "é\n".repeat(9000));
        });
        assert!(lines[0].len() < RECORD_BYTES_MAX);
        let value: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert!(value["text"].as_str().unwrap().ends_with("..."));
    }
}
