//! The master's last log records, in memory and numbered without gaps, for the control interface.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde_json::Value;
use slog::{OwnedKVList, Record};

use super::fields::FieldMap;
use super::json::encode_line;

/// How many records are kept before the oldest is dropped.
const RECORDS_MAX: usize = 1024;
/// How many bytes they may have together.
const BYTES_MAX: usize = 1 << 20;

/// The last records, from INFO on. A reload keeps the ring; each master has its own.
///
/// Numbers begin with the microseconds since 1970 at which the master started, so those of a later
/// master are higher, and follow each other by one.
#[derive(Debug)]
pub(crate) struct EventRing {
    /// Set in a child: only the master's records are kept.
    is_detached: AtomicBool,
    records: Mutex<Records>,
}

#[derive(Debug)]
struct Records {
    /// The number of the first record that this master has made.
    start: u64,
    /// The number of the next one.
    next: u64,
    /// JSON objects.
    texts: VecDeque<Arc<str>>,
    bytes: usize,
}

/// What comes after a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NextEvent {
    /// This record.
    Record(u64, Arc<str>),
    /// Records that are not kept any more.
    Lost(LostEvents),
    /// Nothing yet.
    None,
}

/// Numbers whose records are not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LostEvents {
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// Whether the number before them comes from another master.
    pub(crate) is_of_other_master: bool,
    /// The number after which to go on.
    pub(crate) resume_after: u64,
}

impl EventRing {
    /// Creates an empty ring.
    pub(crate) fn new() -> Self {
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self::starting_at(u64::try_from(time.as_micros()).unwrap_or(1))
    }

    fn starting_at(start: u64) -> Self {
        let records = Records { start, next: start, texts: VecDeque::new(), bytes: 0 };
        Self { is_detached: AtomicBool::new(false), records: Mutex::new(records) }
    }

    /// Drops the records, and keeps no more, in a child of the master.
    pub(super) fn detach_in_child(&self) {
        self.is_detached.store(true, Ordering::Relaxed);
        self.lock().texts = VecDeque::new();
    }

    /// Keeps a record.
    pub(super) fn log(&self, record: &Record<'_>, values: &OwnedKVList) {
        if self.is_detached.load(Ordering::Relaxed) {
            return;
        }
        let mut records = self.lock();
        let mut fields = FieldMap::default();
        let time = humantime::format_rfc3339_millis(SystemTime::now());
        fields.insert_if_absent("seq", records.next);
        fields.insert_if_absent("time", time.to_string());
        fields.insert_if_absent("level", record.level().as_str());
        fields.insert_if_absent("message", record.msg().to_string());
        FieldMap::of_record(record, values)
            .for_each(|(key, value)| fields.insert_if_absent(&key, shown(&key, value)));
        let line = encode_line(fields.into_fields());
        records.push(String::from_utf8_lossy(&line).trim_end().into());
    }

    /// Returns the number of the last record; before the first one, the number before that.
    pub(crate) fn last(&self) -> u64 {
        self.lock().next - 1
    }

    /// Returns the number after which the last `count` records come.
    pub(crate) fn before_last(&self, count: u64) -> u64 {
        let records = self.lock();
        records.next - 1 - count.min(records.texts.len() as u64)
    }

    /// Returns what comes after a number.
    pub(crate) fn after(&self, number: u64) -> NextEvent {
        let records = self.lock();
        let first = records.next - records.texts.len() as u64;
        let is_of_other_master = number >= records.next || number.saturating_add(1) < records.start;
        if is_of_other_master || number.saturating_add(1) < first {
            let to = if number < first { first - 1 } else { number };
            return NextEvent::Lost(LostEvents {
                from: number.saturating_add(1).min(to),
                to,
                is_of_other_master,
                resume_after: first - 1,
            });
        }
        let index = usize::try_from(number + 1 - first).unwrap_or(usize::MAX);
        match records.texts.get(index) {
            Some(text) => NextEvent::Record(number + 1, Arc::clone(text)),
            None => NextEvent::None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns what the ring has of a field. Everybody who reaches `metrics_bind` may read it, and the
/// arguments of a program may be secrets: the ring has its name only.
fn shown(key: &str, value: Value) -> Value {
    match value {
        Value::String(command) if key == "command" => match command.split_once(' ') {
            Some((program, _)) => format!("{program} …").into(),
            None => command.into(),
        },
        value => value,
    }
}

impl Records {
    fn push(&mut self, text: Arc<str>) {
        self.bytes += text.len();
        self.texts.push_back(text);
        self.next += 1;
        while self.texts.len() > RECORDS_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.texts.pop_front() else { return };
            self.bytes -= oldest.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(texts: impl Iterator<Item = String>) -> EventRing {
        let ring = EventRing::starting_at(1000);
        texts.for_each(|text| ring.lock().push(text.into()));
        ring
    }

    fn lost(from: u64, to: u64, is_of_other_master: bool, resume_after: u64) -> NextEvent {
        NextEvent::Lost(LostEvents { from, to, is_of_other_master, resume_after })
    }

    #[test]
    fn after_of_each_number_is_the_next_record() {
        let ring = ring((0..3).map(|n| n.to_string()));
        assert_eq!(ring.last(), 1002);
        for n in 0..3 {
            assert_eq!(
                ring.after(999 + n),
                NextEvent::Record(1000 + n, n.to_string().into()),
                "the first record has the number of the start"
            );
        }
        assert_eq!(ring.after(1002), NextEvent::None);
        assert_eq!((ring.before_last(0), ring.before_last(2)), (1002, 1000));
        assert_eq!(ring.before_last(u64::MAX), 999);
    }

    #[test]
    fn after_of_overwritten_record_names_what_is_lost() {
        let count = RECORDS_MAX as u64 + 10;
        let ring = ring((0..count).map(|n| n.to_string()));
        assert_eq!(ring.after(1002), lost(1003, 1009, false, 1009));
        assert_eq!(ring.after(1009), NextEvent::Record(1010, "10".into()));
        assert_eq!(ring.after(999), lost(1000, 1009, false, 1009));
        assert_eq!(ring.before_last(u64::MAX), 1009);
    }

    #[test]
    fn after_of_other_masters_number_begins_with_the_first() {
        let empty = EventRing::starting_at(1000);
        assert_eq!((empty.last(), empty.after(999)), (999, NextEvent::None));
        assert_eq!(empty.after(0), lost(1, 999, true, 999));
        let ring = ring((0..3).map(|n| n.to_string()));
        assert_eq!(ring.after(7), lost(8, 999, true, 999));
        for later in [1003, 5000, u64::MAX] {
            assert_eq!(
                ring.after(later),
                lost(later.saturating_add(1).min(later), later, true, 999)
            );
        }
    }

    #[test]
    fn long_records_are_bounded_together() {
        let ring = ring((0..600).map(|_| "x".repeat(4000)));
        let records = ring.lock();
        assert!(records.bytes <= BYTES_MAX && records.texts.len() == BYTES_MAX / 4000);
        assert_eq!(records.next, 1600);
    }
}
