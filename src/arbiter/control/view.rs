//! What the requests see of the master: the last snapshot, and what was rendered of it.

use std::io::Cursor;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::metrics::{self, Format};
use super::page;
use crate::arbiter::snapshot::Snapshot;
use crate::http::Body;

/// One snapshot, and the answers that are rendered of it when the first client asks.
#[derive(Default)]
pub(super) struct View {
    pub(super) snapshot: Snapshot,
    kept: KeptBytes,
    status: OnceLock<SharedText>,
    metrics: OnceLock<SharedText>,
    open_metrics: OnceLock<SharedText>,
    page: OnceLock<SharedText>,
}

impl View {
    pub(super) fn status(&self) -> Body {
        self.shared_body(&self.status, || self.snapshot.to_json())
    }

    pub(super) fn metrics(&self, format: Format) -> Body {
        let rendered = match format {
            Format::Text => &self.metrics,
            Format::OpenMetrics => &self.open_metrics,
        };
        self.shared_body(rendered, || metrics::render(&self.snapshot, format))
    }

    pub(super) fn config(&self) -> Body {
        let bytes = &self.snapshot.config;
        Body::reader(Cursor::new(Arc::clone(bytes)), Some(bytes.len() as u64))
    }

    pub(super) fn page(&self) -> Body {
        self.shared_body(&self.page, || page::render(&self.snapshot))
    }

    /// Returns a body that is rendered for the first request. All clients share its bytes: slow ones do
    /// not each hold a copy.
    fn shared_body(
        &self,
        rendered: &OnceLock<SharedText>,
        render: impl FnOnce() -> String,
    ) -> Body {
        let text = rendered.get_or_init(|| self.kept.keep(render()));
        Body::reader(Cursor::new(text.clone()), Some(text.as_ref().len() as u64))
    }
}

/// How many bytes of rendered answers are kept, until the last client has them.
#[derive(Clone, Debug, Default)]
struct KeptBytes(Arc<AtomicUsize>);

impl KeptBytes {
    fn keep(&self, text: String) -> SharedText {
        self.0.fetch_add(text.len(), Ordering::Relaxed);
        SharedText(Arc::new(KeptText { text, kept: self.clone() }))
    }
}

#[derive(Debug)]
struct KeptText {
    text: String,
    kept: KeptBytes,
}

impl Drop for KeptText {
    fn drop(&mut self) {
        self.kept.0.fetch_sub(self.text.len(), Ordering::Relaxed);
    }
}

/// A text that several clients are sent.
#[derive(Clone, Debug)]
struct SharedText(Arc<KeptText>);

impl AsRef<[u8]> for SharedText {
    fn as_ref(&self) -> &[u8] {
        self.0.text.as_bytes()
    }
}

/// What the handlers of both endpoints share. What requests see may be dear, such as a snapshot of thousands
/// of workers, so the loop collects it only once a request has asked for it, and at most once a turn.
pub(super) struct Shared<T>(Arc<Mutex<Slot<T>>>);

/// Why the service is not ready; `None` if it is.
pub(super) type SharedReadiness = Shared<Option<String>>;

pub(super) type SharedView = Shared<View>;

#[derive(Default)]
struct Slot<T> {
    value: Arc<T>,
    /// How many values there have been.
    number: u64,
    /// Whether the value is one of this turn.
    is_fresh: bool,
    /// Whether a request waits for the next value.
    is_wanted: bool,
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Default> Default for Shared<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Slot<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the value an old one: what comes now must not see it.
    pub(super) fn begin_turn(&self) {
        self.lock().is_fresh = false;
    }

    /// Returns the value of this turn.
    ///
    /// # Errors
    /// There is none yet. The number is that of the next value, for [`since`](Self::since).
    pub(super) fn current(&self) -> Result<Arc<T>, u64> {
        let mut slot = self.lock();
        if slot.is_fresh {
            return Ok(Arc::clone(&slot.value));
        }
        slot.is_wanted = true;
        Err(slot.number + 1)
    }

    /// Returns the last value, if it is the one of this number or a newer one.
    pub(super) fn since(&self, number: u64) -> Option<Arc<T>> {
        let slot = self.lock();
        (slot.number >= number).then(|| Arc::clone(&slot.value))
    }

    /// Returns whether a request waits for the next value.
    pub(super) fn is_wanted(&self) -> bool {
        self.lock().is_wanted
    }

    /// Sets the value of this turn.
    pub(super) fn set(&self, value: T) {
        let mut slot = self.lock();
        slot.value = Arc::new(value);
        slot.number += 1;
        (slot.is_fresh, slot.is_wanted) = (true, false);
    }
}

impl SharedView {
    /// Sets the view of this turn.
    pub(super) fn set_snapshot(&self, snapshot: Snapshot) {
        let kept = self.lock().value.kept.clone();
        self.set(View { snapshot, kept, ..View::default() });
    }

    /// Returns how many bytes the answers of all views have that are kept.
    pub(super) fn kept_bytes(&self) -> usize {
        self.lock().value.kept.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn view_of_an_earlier_turn_is_not_current() {
        let views = SharedView::default();
        let first = views.current().err().unwrap();
        assert!(views.is_wanted() && views.since(first).is_none());
        views.set_snapshot(Snapshot { pid: 1, ..Snapshot::default() });
        assert_eq!(views.current().ok().unwrap().snapshot.pid, 1);
        assert!(!views.is_wanted());
        views.begin_turn();
        // A request that waited is answered by it, a new one by the next.
        assert_eq!(views.since(first).unwrap().snapshot.pid, 1);
        let next = views.current().err().unwrap();
        assert!(views.is_wanted() && views.since(next).is_none());
    }

    #[test]
    fn kept_bytes_are_those_of_answers_that_are_held() {
        let views = SharedView::default();
        views.set_snapshot(Snapshot::default());
        let slow = views.current().ok().unwrap().metrics(Format::Text);
        let length = views.kept_bytes();
        assert!(length > 1000, "{length}");
        drop(views.current().ok().unwrap().metrics(Format::Text));
        assert_eq!(views.kept_bytes(), length, "it is rendered once");
        views.set_snapshot(Snapshot::default());
        drop(views.current().ok().unwrap().metrics(Format::Text));
        assert_eq!(views.kept_bytes(), 2 * length);
        drop(slow);
        assert_eq!(views.kept_bytes(), length);
    }
}
