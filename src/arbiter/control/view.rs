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

/// The view that the handlers of both endpoints share. A snapshot of thousands of workers is dear, so
/// the loop collects one only once a request has asked for it, and at most one a turn.
#[derive(Clone, Default)]
pub(super) struct SharedView(Arc<Mutex<Slot>>);

#[derive(Default)]
struct Slot {
    view: Arc<View>,
    /// How many views there have been.
    number: u64,
    /// Whether the view is one of this turn.
    is_fresh: bool,
    /// Whether a request waits for the next view.
    is_wanted: bool,
}

impl SharedView {
    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the view an old one: what comes now must not see it.
    pub(super) fn begin_turn(&self) {
        self.lock().is_fresh = false;
    }

    /// Returns the view of this turn.
    ///
    /// # Errors
    /// There is none yet. The number is that of the next view, for [`since`](Self::since).
    pub(super) fn current(&self) -> Result<Arc<View>, u64> {
        let mut slot = self.lock();
        if slot.is_fresh {
            return Ok(Arc::clone(&slot.view));
        }
        slot.is_wanted = true;
        Err(slot.number + 1)
    }

    /// Returns the last view, if it is the one of this number or a newer one.
    pub(super) fn since(&self, number: u64) -> Option<Arc<View>> {
        let slot = self.lock();
        (slot.number >= number).then(|| Arc::clone(&slot.view))
    }

    /// Returns whether a request waits for the next view.
    pub(super) fn is_wanted(&self) -> bool {
        self.lock().is_wanted
    }

    /// Sets the view of this turn.
    pub(super) fn set(&self, snapshot: Snapshot) {
        let mut slot = self.lock();
        let kept = slot.view.kept.clone();
        slot.view = Arc::new(View { snapshot, kept, ..View::default() });
        slot.number += 1;
        (slot.is_fresh, slot.is_wanted) = (true, false);
    }

    /// Returns how many bytes the answers of all views have that are kept.
    pub(super) fn kept_bytes(&self) -> usize {
        self.lock().view.kept.0.load(Ordering::Relaxed)
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
        views.set(Snapshot { pid: 1, ..Snapshot::default() });
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
        views.set(Snapshot::default());
        let slow = views.current().ok().unwrap().metrics(Format::Text);
        let length = views.kept_bytes();
        assert!(length > 1000, "{length}");
        drop(views.current().ok().unwrap().metrics(Format::Text));
        assert_eq!(views.kept_bytes(), length, "it is rendered once");
        views.set(Snapshot::default());
        drop(views.current().ok().unwrap().metrics(Format::Text));
        assert_eq!(views.kept_bytes(), 2 * length);
        drop(slow);
        assert_eq!(views.kept_bytes(), length);
    }
}
