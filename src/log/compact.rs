//! Records as lines, below the fields that several of them have in common. It is slog-term's
//! compact format, built from its parts: slog-term's own drain always shows a record's fields last
//! first.

use std::io;
use std::sync::{Mutex, PoisonError};

use slog::{Drain, KV, OwnedKVList, Record};
use slog_term::{CompactFormatSerializer, Decorator, RecordDecorator, Serializer};

use super::target::timestamp;

/// The keys and values shown above the last record, in the order of their lines.
type Context = Vec<(Vec<u8>, Vec<u8>)>;

pub(super) struct Compact<D> {
    decorator: D,
    context: Mutex<Context>,
}

impl<D> Compact<D> {
    pub(super) fn new(decorator: D) -> Self {
        Self { decorator, context: Mutex::default() }
    }
}

impl<D: Decorator> Drain for Compact<D> {
    type Ok = ();
    type Err = io::Error;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> io::Result<()> {
        let mut context = self.context.lock().unwrap_or_else(PoisonError::into_inner);
        self.decorator.with_record(record, values, |out| {
            let depth = show_context(out, &mut context, record, values)?;
            show_record(out, depth, record)
        })
    }
}

/// Shows the logger's fields that are new, a line each. Returns how many fields it has in all.
fn show_context(
    out: &mut dyn RecordDecorator,
    context: &mut Context,
    record: &Record<'_>,
    values: &OwnedKVList,
) -> io::Result<usize> {
    let mut lines = CompactFormatSerializer::new(out, context);
    values.serialize(record, &mut lines)?;
    lines.finish()
}

fn show_record(out: &mut dyn RecordDecorator, depth: usize, record: &Record<'_>) -> io::Result<()> {
    out.start_whitespace()?;
    write!(out, "{:depth$}", "")?;
    let needs_comma = slog_term::print_msg_header(&timestamp, out, record, false)?;
    let mut fields = Serializer::new(out, needs_comma, true); // slog passes the last one first
    record.kv().serialize(record, &mut fields)?;
    fields.finish()?;
    out.start_whitespace()?;
    writeln!(out)?;
    out.flush()
}
