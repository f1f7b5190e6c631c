//! Events of `tracing` in Ostler's log. With the Cargo feature `tracing`.

use std::fmt::{self, Write as _};

use ostler::log::Fields;
use slog::{Drain, debug, error, info, trace, warn};
use tracing_core::field::{Field, Visit};
use tracing_core::span::{Attributes, Id, Record};
use tracing_core::subscriber::Interest;
use tracing_core::{Dispatch, Event, Level, LevelFilter, Metadata, Subscriber, dispatcher};

use super::tracking;
use super::worker::Worker;

impl Worker {
    /// Sends the events of `tracing` to the log, with the pool, the slot and the label of the request
    /// whose code has emitted them. Call it once, in the function that makes the app. `log_level`
    /// filters them. Spans are not recorded.
    ///
    /// Returns false if the process has another subscriber already.
    pub fn log_tracing_events(&self) -> bool {
        let subscriber = EventLog { worker: *self, level: level_of(self) };
        dispatcher::set_global_default(Dispatch::new(subscriber)).is_ok()
    }
}

/// Returns up to which level the log takes records.
fn level_of(worker: &Worker) -> LevelFilter {
    let levels = [
        (slog::Level::Trace, LevelFilter::TRACE),
        (slog::Level::Debug, LevelFilter::DEBUG),
        (slog::Level::Info, LevelFilter::INFO),
        (slog::Level::Warning, LevelFilter::WARN),
    ];
    let enabled = levels.into_iter().find(|(level, _)| worker.log().is_enabled(*level));
    enabled.map_or(LevelFilter::ERROR, |(_, filter)| filter)
}

struct EventLog {
    worker: Worker,
    level: LevelFilter,
}

impl Subscriber for EventLog {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.level
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }

    fn event(&self, event: &Event<'_>) {
        let mut texts = Texts { message: String::new(), fields: Fields::new() };
        event.record(&mut texts);
        let Texts { message, fields } = texts;
        let info = self.worker.info();
        let fields = fields
            .text("target", event.metadata().target())
            .text("pool", info.pool.to_string())
            .number("slot", info.slot)
            .optional(tracking::running_request(), |fields, label| fields.text("request", label));
        let log = self.worker.log();
        match *event.metadata().level() {
            Level::ERROR => error!(log, "{message}"; fields),
            Level::WARN => warn!(log, "{message}"; fields),
            Level::INFO => info!(log, "{message}"; fields),
            Level::DEBUG => debug!(log, "{message}"; fields),
            Level::TRACE => trace!(log, "{message}"; fields),
        }
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1) // never called: no span is enabled
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The message and the fields of an event.
struct Texts {
    message: String,
    fields: Fields,
}

impl Texts {
    fn add(&mut self, field: &Field, text: fmt::Arguments<'_>) {
        if field.name() == "message" {
            let _ = self.message.write_fmt(text); // a String takes all
        } else {
            let fields = std::mem::take(&mut self.fields);
            self.fields = fields.text(field.name(), text.to_string());
        }
    }
}

impl Visit for Texts {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format_args!("{value:?}"));
    }
}
